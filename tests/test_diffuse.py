"""Diffusion through the neighbour graph, against a dense float64 solution in NumPy."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import dns_jax
from dns_jax import diffuse, diffuse_queries
from dns_jax.smoothing import diffuse_sharded

N, D, Q, DEVICES = 48, 3, 16, 8  # rows of the pool, dimensions, queries
ROWS = np.arange(N)
EPS, TINY = (float(getattr(np.finfo(np.float32), name)) for name in ("eps", "tiny"))


# The oracle


def find_nearest(queries, pool, n, allowed):
    """Return bool[queries, pool], the n nearest of those allowed, and all squared distances."""
    squares = np.square(queries[:, None] - pool).sum(axis=2)
    nearest = np.zeros(squares.shape, bool)
    for i, own in enumerate(squares):
        rows = np.flatnonzero(allowed[i])
        nearest[i, rows[np.argsort(own[rows], kind="stable")[:n]]] = True
    return nearest, squares


def weigh(edges, squares, of_rows, of_pool):
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.exp(-squares / np.outer(of_rows, of_pool))
    return np.where(edges, np.where(squares > 0, weights, 1), 0)


def solve_pool(features, n, candidates=None, groups=None):
    """Return W, float64[N, N], sigma and which rows may be neighbours."""
    defined = np.isfinite(features).all(axis=1)
    usable = defined if candidates is None else defined & candidates
    groups = np.arange(len(features)) if groups is None else groups
    finite = np.where(defined[:, None], features, 0).astype(np.float64)
    nearest, squares = find_nearest(finite, finite, n, usable & (groups[:, None] != groups))
    sigmas = np.sqrt(np.where(nearest, squares, 0).max(axis=1))
    edges = nearest | (nearest.T & usable[:, None])
    return weigh(edges, squares, sigmas, sigmas), sigmas, usable


def average(scores, weights, counts, alpha):
    """Return b and M of s = b + M s: (1 - alpha) x and alpha P; x and 0 where all weights are 0."""
    weights = weights * counts
    degrees = weights.sum(axis=1, keepdims=True)
    joined = degrees >= TINY
    shares = np.where(joined, alpha * weights / np.where(joined, degrees, 1), 0)
    return np.where(joined[:, 0], (1 - alpha) * scores, scores), shares


def solve(scores, weights, usable, alpha):
    """Solve for one column: s of every row, 0 where it does not count for others, and who does."""
    counts = usable & np.isfinite(scores)
    alone, shares = average(scores, weights, counts, alpha)
    solved = np.zeros(len(scores))
    system = np.eye(counts.sum()) - shares[np.ix_(counts, counts)]
    solved[counts] = np.linalg.solve(system, alone[counts])
    return alone + shares @ solved, solved, counts


def oracle(scores, features, n=10, alpha=0.9, candidates=None, groups=None):
    weights, _, usable = solve_pool(np.asarray(features), n, candidates, groups)
    columns = np.asarray(scores, np.float64).reshape(len(scores), -1).T
    diffused = np.array([solve(x, weights, usable, alpha)[0] for x in columns])
    diffused[:, ~np.isfinite(features).all(axis=1)] = np.nan
    return diffused.T.reshape(np.shape(scores))


def oracle_queries(
    query_scores,
    query_features,
    pool_scores,
    pool_features,
    n=10,
    alpha=0.9,
    candidates=None,
    query_groups=None,
    pool_groups=None,
):
    pool_features = np.asarray(pool_features, np.float64)
    weights, sigmas, usable = solve_pool(pool_features, n, candidates, pool_groups)
    allowed = np.tile(usable, (len(query_features), 1))
    if query_groups is not None:
        allowed &= query_groups[:, None] != pool_groups
    finite = np.where(usable[:, None], pool_features, 0)
    defined = np.isfinite(query_features).all(axis=1)
    queries = np.where(defined[:, None], query_features, 0)
    nearest, squares = find_nearest(queries, finite, n, allowed)
    own_sigmas = np.sqrt(np.where(nearest, squares, 0).max(axis=1))
    to_pool = weigh(nearest, squares, own_sigmas, sigmas)
    columns = (np.asarray(x, np.float64).reshape(len(x), -1).T for x in (query_scores, pool_scores))
    diffused = []
    for query_column, pool_column in zip(*columns, strict=True):
        _, solved, counts = solve(pool_column, weights, usable, alpha)
        alone, shares = average(query_column, to_pool, counts, alpha)
        diffused.append(alone + shares @ solved)
    diffused = np.array(diffused)
    diffused[:, ~defined] = np.nan
    return diffused.T.reshape(np.shape(query_scores))


def assert_equal(got, expected):
    """Equal but for float32's rounding."""
    got = np.asarray(got)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


@pytest.fixture
def scores():
    return np.random.default_rng(1).standard_normal(N).astype(np.float32)


@pytest.fixture
def features():
    """Small integers: most distances are tied, many rows are duplicates."""
    return np.random.default_rng(2).integers(-2, 3, (N, D)).astype(np.float32)


@pytest.fixture
def distinct():
    """Features without ties."""
    return np.random.default_rng(6).standard_normal((N, D)).astype(np.float32)


@pytest.fixture
def candidates():
    return np.random.default_rng(3).random(N) < 0.5


@pytest.fixture
def groups():
    return np.random.default_rng(4).permutation(ROWS // 4)


@pytest.fixture
def queries():
    rng = np.random.default_rng(5)
    return rng.standard_normal(Q).astype(np.float32), rng.integers(-3, 4, (Q, D)).astype(np.float32)


# The equation


def test_two_rows_by_hand():
    # (I - P/2)^-1 / 2 of P = [[0, 1], [1, 0]] is [[2, 1], [1, 2]] / 3.
    got = diffuse([3.0, 0.0], [[0.0], [7.0]], n_neighbors=1, alpha=0.5)
    np.testing.assert_allclose(got, [2, 1], rtol=1e-6)


def test_three_rows_on_a_line_by_hand():
    # 0 and 1 are each other's nearest, and 1 is 3's: a path, with weights exp(-1) and exp(-4 / 2).
    weights = np.exp([-1.0, -2.0])
    middle = weights / weights.sum()
    p = np.array([[0, 1, 0], [middle[0], 0, middle[1]], [0, 1, 0]])
    expected = np.linalg.solve(np.eye(3) - 0.8 * p, 0.2 * np.array([5, 1, -2]))
    got = diffuse([5, 1, -2], [[0], [1], [3]], n_neighbors=1, alpha=0.8)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.9), (10, 0.3), (10, 0.99), (N - 1, 0.9)])
def test_it_is_the_solution_of_the_dense_system(scores, features, distinct, n, alpha):
    for x in (features, distinct):
        got = diffuse(scores, x, n_neighbors=n, alpha=alpha)
        assert_equal(got, oracle(scores, x, n, alpha))


@pytest.mark.parametrize(("rows", "dimensions"), [(1111, 4), (400, 40)])
def test_pools_in_which_the_search_goes_by_groups_of_rows(rows, dimensions):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(rows).astype(np.float32)
    for x in (rng.integers(-2, 3, (rows, dimensions)), rng.standard_normal((rows, dimensions))):
        x = np.float32(x)
        assert_equal(diffuse(scores, x), oracle(scores, x))


def test_10_neighbours_and_0_9_are_the_defaults(scores, distinct):
    got = diffuse(scores, distinct, n_neighbors=10, alpha=0.9)
    np.testing.assert_array_equal(diffuse(scores, distinct), got)


def test_duplicates_weigh_1_and_rows_of_no_extent_nothing_beyond_them():
    # Rows 0..3 are alike and each other's 2 nearest: sigma is 0. The others reach them in vain.
    features = [[0.0], [0.0], [0.0], [0.0], [1.0], [1.5]]
    scores = np.array([1.0, 2, 3, 4, 10, 20])
    got = diffuse(scores, features, n_neighbors=2, alpha=0.9)
    assert_equal(got, oracle(scores, features, 2))
    for changed in (diffuse([1, 2, 3, 4, -3, 9], features, n_neighbors=2), got):
        np.testing.assert_array_equal(changed[:4], got[:4])
    all_alike = diffuse(scores, np.full((6, 2), 0.3), n_neighbors=5)
    assert_equal(all_alike, oracle(scores, np.full((6, 2), 0.3), 5))


def test_an_alpha_of_0_returns_the_scores(scores, features, candidates):
    np.testing.assert_array_equal(diffuse(scores, features, alpha=0.0), scores)
    got = diffuse(scores, features, alpha=0.0, candidates=candidates)
    np.testing.assert_array_equal(got, scores)


@pytest.mark.parametrize("alpha", [1e-300, 1e-8, 1e-3])
def test_a_small_alpha_changes_the_scores_as_little(scores, features, alpha):
    got = np.asarray(diffuse(scores, features, alpha=alpha))
    np.testing.assert_allclose(got, scores, atol=(2 * alpha + EPS) * np.ptp(scores))
    assert_equal(got, oracle(scores, features, 10, alpha))


def test_constant_scores_stay_constant(features, candidates, groups):
    for alpha in (0.9, 0.99):
        got = diffuse(np.full(N, 3.0), features, alpha=alpha, candidates=candidates, groups=groups)
        np.testing.assert_allclose(got, 3, rtol=2 * EPS / (1 - alpha))


def test_results_lie_between_the_lowest_and_the_highest_score(scores, distinct):
    got = np.asarray(diffuse(scores, distinct, alpha=0.95))
    assert scores.min() < got.min() < got.max() < scores.max()


def test_the_operator_is_symmetric_where_rows_are_weighed_by_their_degrees(distinct, groups):
    weights, _, _ = solve_pool(distinct, 5, None, groups)
    kernel = np.asarray(diffuse(np.eye(N), distinct, n_neighbors=5, groups=groups))
    assert (kernel >= 0).all()
    weighed = weights.sum(axis=1)[:, None] * kernel
    np.testing.assert_allclose(weighed, weighed.T, atol=2e-6)


@pytest.mark.parametrize(
    ("alpha", "x64"), [(0.5, False), (0.9, False), (0.95, False), (0.99, False), (0.99, True)]
)
def test_the_steps_suffice_for_a_residual_of_a_few_roundings(alpha, x64):
    """On 400 rows of some clusters, and outliers of very small weights."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8, 5))[rng.integers(0, 8, 400)] * 3
    features = np.float32(features + rng.standard_normal((400, 5)))
    features[::13] *= np.linspace(1, 300, 31)[:, None]
    scores = rng.standard_normal(400)
    with jax.enable_x64(x64):
        x = features.astype(np.float64) if x64 else features
        got = diffuse(scores if x64 else np.float32(scores), x, alpha=alpha)
        eps = float(jnp.finfo(got.dtype).eps)
        got = np.asarray(got, np.float64)
    weights, _, _ = solve_pool(features, 10)
    alone, shares = average(scores, weights, np.ones(400, bool), alpha)
    residual = np.abs(alone + shares @ got - got).max()  # of the error, at least 1 - alpha
    assert residual < 8 * eps * np.abs(scores).max()


def test_rows_may_come_in_any_order(scores, distinct, candidates, groups):
    order = np.random.default_rng(0).permutation(N)
    got = diffuse(
        scores[order], distinct[order], candidates=candidates[order], groups=groups[order]
    )
    expected = diffuse(scores, distinct, candidates=candidates, groups=groups)
    assert_equal(got, np.asarray(expected)[order])


def test_the_scale_of_the_features_does_not_matter(scores, distinct):
    expected = np.asarray(diffuse(scores, distinct))
    for scale in (1e-25, 1e-3, 1e25):
        assert_equal(diffuse(scores, np.float32(distinct * scale)), expected)
    assert_equal(diffuse(scores, distinct * 2.0**20 + 2.0**20), expected)


# Who may be a neighbour


def test_candidates_and_groups_against_the_dense_system(scores, features, candidates, groups):
    for kwargs in (
        {"candidates": candidates},
        {"groups": groups},
        {"candidates": candidates, "groups": groups},
    ):
        got = diffuse(scores, features, **kwargs)
        assert_equal(got, oracle(scores, features, **kwargs))


def test_a_row_that_is_no_candidate_takes_from_its_neighbours_and_gives_nothing(
    scores, distinct, candidates
):
    kernel = np.asarray(diffuse(np.eye(N), distinct, candidates=candidates, alpha=0.9))
    outside = np.flatnonzero(~candidates)
    np.testing.assert_allclose(kernel[outside, outside], 0.1, rtol=1e-6)
    assert (kernel[:, outside] > 0).sum() == len(outside)
    assert (kernel[outside] > 0).sum() > 10 * len(outside)
    # The candidates are what they are by themselves.
    got = diffuse(scores, distinct, candidates=candidates)
    alone = diffuse(scores[candidates], distinct[candidates])
    assert_equal(np.asarray(got)[candidates], np.asarray(alone))


def test_rows_without_a_neighbour_keep_their_scores(scores, features, candidates):
    nobody = diffuse(scores, features, candidates=np.zeros(N, bool))
    np.testing.assert_array_equal(nobody, scores)
    one_clip = diffuse(scores, features, groups=np.zeros(N, int))
    np.testing.assert_array_equal(one_clip, scores)
    # All but row 5 are of one group: they have only that, and no candidate at all without it.
    groups = np.where(ROWS == 5, 1, 0)
    got = diffuse(scores, features, groups=groups, candidates=ROWS != 5)
    np.testing.assert_array_equal(got[ROWS != 5], scores[ROWS != 5])


def test_fewer_neighbours_than_asked_for_are_all_joined(scores, distinct, groups):
    candidates = ROWS < 4
    got = diffuse(scores, distinct, n_neighbors=30, candidates=candidates)
    assert_equal(got, oracle(scores, distinct, 30, 0.9, candidates))
    got = diffuse(scores, distinct, n_neighbors=N - 1, groups=groups % 2)
    assert_equal(got, oracle(scores, distinct, N - 1, 0.9, None, groups % 2))


def test_a_row_whose_weights_all_vanish_keeps_its_score(scores, features):
    features[9] = 1000  # hundreds of its neighbours' sigma away
    got = diffuse(scores, features)
    assert_equal(got, oracle(scores, features))
    assert got[9] == scores[9]


# Columns, types and non-finite values


def test_every_column_of_scores_is_diffused_alike(scores, features, candidates):
    both = np.stack([scores, scores**2, -scores], axis=1)
    got = diffuse(both, features, candidates=candidates)
    assert_equal(got, oracle(both, features, candidates=candidates))
    np.testing.assert_allclose(
        got[:, 0], diffuse(scores, features, candidates=candidates), atol=1e-6
    )
    assert diffuse(both[:, :0], features).shape == (N, 0)


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, jnp.bfloat16, np.float64])
def test_any_real_type_goes_in_and_float32_comes_out(dtype):
    rng = np.random.default_rng(0)
    scores = np.asarray(rng.integers(0, 2, N).astype(dtype))
    features = jnp.asarray(rng.integers(0, 2, (N, D)).astype(dtype))
    assert_equal(diffuse(scores, features), oracle(scores, np.asarray(features, float)))


def test_float64_is_kept_only_where_everything_is_float64_and_x64_is_on(scores, distinct):
    scores, features = scores.astype(np.float64), distinct.astype(np.float64)
    assert diffuse(scores, features).dtype == np.float32
    with jax.enable_x64(True):
        got = diffuse(scores, features)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, oracle(scores, features), atol=1e-14)
        assert diffuse(scores, distinct).dtype == np.float32
        got = diffuse_queries(scores[:5], features[:5], scores, features)
        expected = oracle_queries(scores[:5], features[:5], scores, features)
        np.testing.assert_allclose(got, expected, atol=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_non_finite_feature_is_nan_and_as_good_as_absent(scores, distinct, value):
    distinct[7, 1] = value
    got = np.asarray(diffuse(scores, distinct))
    assert np.flatnonzero(np.isnan(got)).tolist() == [7]
    rest = ROWS != 7
    assert_equal(got[rest], np.asarray(diffuse(scores[rest], distinct[rest])))
    assert_equal(got, oracle(scores, distinct))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_score_stays_with_its_row_and_column(scores, features, value):
    both = np.stack([scores, scores], axis=1)
    both[7, 0] = value
    got = np.asarray(diffuse(both, features))
    np.testing.assert_array_equal(got[7, 0], value)
    assert np.isfinite(np.delete(got, 7, axis=0)).all()
    assert_equal(got, oracle(both, features))
    np.testing.assert_allclose(got[:, 1], diffuse(scores, features), atol=1e-6)
    assert np.abs(np.delete(got[:, 0] - got[:, 1], 7)).max() > 1e-3  # others do without it


# Queries


def test_queries_against_the_dense_system(scores, features, candidates, groups, queries):
    for kwargs in (
        {"alpha": 0.5, "candidates": candidates},
        {"query_groups": np.arange(Q) % 5, "pool_groups": groups % 5},
    ):
        got = diffuse_queries(*queries, scores, features, **kwargs)
        assert_equal(got, oracle_queries(*queries, scores, features, **kwargs))
    for n in (1, N):
        got = diffuse_queries(*queries, scores, features, n_neighbors=n)
        assert_equal(got, oracle_queries(*queries, scores, features, n))


def test_a_query_is_diffused_as_a_row_of_the_pool_that_is_no_candidate(
    scores, distinct, queries, groups
):
    together = [np.concatenate(pair) for pair in zip((scores, distinct), queries, strict=True)]
    query_groups = np.arange(Q)
    expected = diffuse(
        *together,
        candidates=np.arange(N + Q) < N,
        groups=np.concatenate([groups, query_groups]),
    )
    got = diffuse_queries(*queries, scores, distinct, query_groups=query_groups, pool_groups=groups)
    assert_equal(got, np.asarray(expected)[N:])


def test_a_query_keeps_part_of_its_score_and_changes_no_other(scores, distinct, queries):
    expected = np.asarray(diffuse_queries(*queries, scores, distinct, alpha=0.8))
    query_scores, query_features = (x.copy() for x in queries)
    query_scores[2] += 1
    query_features[3] = 1e30
    query_features[4] = np.nan
    got = np.asarray(diffuse_queries(query_scores, query_features, scores, distinct, alpha=0.8))
    np.testing.assert_allclose(got[2], expected[2] + 0.2, rtol=1e-5)
    assert got[3] == query_scores[3]
    assert np.isnan(got[4])
    np.testing.assert_array_equal(np.delete(got, [2, 3, 4]), np.delete(expected, [2, 3, 4]))


def test_queries_of_several_columns_pools_with_gaps_and_none_at_all(scores, features, queries):
    pool = np.stack([scores, -scores], axis=1)
    both = np.stack([queries[0], queries[0] + 1], axis=1)
    pool[3, 0], both[2, 1] = np.nan, np.inf
    features[30] = np.nan
    got = diffuse_queries(both, queries[1], pool, features)
    assert_equal(got, oracle_queries(both, queries[1], pool, features))
    assert (~np.isfinite(got)).sum() == 1
    assert diffuse_queries(both[:0], queries[1][:0], pool, features).shape == (0, 2)
    got = diffuse_queries(*queries, scores, np.full_like(features, np.nan))
    np.testing.assert_array_equal(got, queries[0])


# Whatever hypothesis comes up with

SMALL = st.integers(-3, 3).map(float)
WILD = st.one_of(SMALL, st.sampled_from([np.nan, np.inf]))


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, 20, elements=WILD),
    arrays(np.float32, (20, 2), elements=WILD),
    arrays(bool, 20),
    arrays(np.int32, 20, elements=st.integers(0, 6)),
    st.sampled_from([1, 4, 19]),
)
def test_any_small_pool(scores, features, candidates, groups, n):
    got = diffuse(scores, features, n_neighbors=n, candidates=candidates, groups=groups)
    assert_equal(got, oracle(scores, features, n, 0.9, candidates, groups))


# Transformations


def test_the_gradient_in_the_scores_is_the_operator_transposed(scores, distinct, candidates):
    kernel = oracle(np.eye(N), distinct, candidates=candidates)
    weights = np.random.default_rng(0).standard_normal(N)

    def loss(scores):
        return (diffuse(scores, distinct, candidates=candidates) * weights).sum()

    np.testing.assert_allclose(jax.grad(loss)(scores), weights @ kernel, atol=1e-5)
    jacobian = jax.jacfwd(lambda s: diffuse(s, distinct, candidates=candidates))(scores)
    np.testing.assert_allclose(jacobian, kernel, atol=1e-5)


def test_the_gradient_is_finite_around_values_that_are_not(scores, distinct, queries):
    scores[3], distinct[7], distinct[9] = np.nan, np.nan, 1e6
    gradient = jax.grad(lambda s: jnp.nansum(diffuse(s, distinct)))(scores)
    assert np.isfinite(gradient).all()
    assert gradient[7] == 0
    assert gradient[9] == 1

    def loss(query_scores, pool_scores):
        return jnp.nansum(diffuse_queries(query_scores, queries[1], pool_scores, distinct))

    of_queries, of_pool = jax.grad(loss, argnums=(0, 1))(queries[0], scores)
    np.testing.assert_allclose(of_queries, 0.1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(of_pool), 0.9 * Q, rtol=1e-5)


def test_features_are_constants(scores, distinct):
    gradient = jax.grad(lambda f: diffuse(scores, f).sum())(distinct)
    np.testing.assert_array_equal(gradient, 0)


def test_jit_takes_alpha_and_n_neighbors_as_static_arguments(scores, features, candidates):
    jitted = jax.jit(diffuse, static_argnames=("alpha", "n_neighbors"))
    got = jitted(scores, features, n_neighbors=4, alpha=0.7, candidates=candidates)
    assert_equal(got, oracle(scores, features, 4, 0.7, candidates))


def test_vmap_is_a_loop(scores, features, candidates, groups):
    many = np.stack([scores, -scores]), np.stack([features, features[::-1]])
    masks = np.stack([candidates, ~candidates])

    def diffuse_one(s, f, mask):
        return diffuse(s, f, candidates=mask, groups=groups)

    expected = [oracle(s, f, 10, 0.9, m, groups) for s, f, m in zip(*many, masks, strict=True)]
    assert_equal(jax.vmap(diffuse_one)(*many, masks), np.stack(expected))


# Rows spread over devices


def diffuse_shards(arrays, **kwargs):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda arrays: diffuse_sharded("data", **arrays, **kwargs),
        mesh=mesh,
        in_specs=({name: P("data") for name in arrays},),
        out_specs=P("data"),
    )
    return jax.jit(mapped)


@pytest.mark.parametrize(("n", "restricted"), [(10, False), (10, True), (N - 1, True)])
def test_shards_give_what_the_whole_gives(scores, features, candidates, groups, n, restricted):
    assert jax.device_count() == DEVICES
    scores[4], features[40] = np.nan, np.inf
    arrays = {"scores": scores, "features": features}
    if restricted:
        arrays |= {"candidates": candidates, "groups": groups}
    got = diffuse_shards(arrays, n_neighbors=n)(arrays)
    assert_equal(got, np.asarray(diffuse(**arrays, n_neighbors=n)))


def test_shards_of_columns_and_their_gradient(scores, distinct):
    both = np.stack([scores, -2 * scores], axis=1)
    arrays = {"scores": both, "features": distinct}
    mapped = diffuse_shards(arrays, alpha=0.5)
    assert_equal(mapped(arrays), np.asarray(diffuse(**arrays, alpha=0.5)))
    losses = (
        lambda s: (mapped({"scores": s, "features": distinct}) * both).sum(),
        lambda s: (diffuse(s, distinct, alpha=0.5) * both).sum(),
    )
    got, expected = (np.asarray(jax.grad(loss)(both)) for loss in losses)
    assert_equal(got, expected)


def test_pmap_does_the_same(scores, features, candidates):
    shards = [x.reshape(DEVICES, -1, *x.shape[1:]) for x in (scores, features, candidates)]
    mapped = jax.pmap(lambda s, f, c: diffuse_sharded("data", s, f, candidates=c), axis_name="data")
    expected = diffuse(scores, features, candidates=candidates)
    assert_equal(np.reshape(mapped(*shards), N), np.asarray(expected))


def test_shard_map_answers_the_queries_of_a_device_from_a_whole_pool(scores, features, queries):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P())
    mapped = jax.shard_map(diffuse_queries, mesh=mesh, in_specs=specs, out_specs=P("data"))
    compiled = jax.jit(mapped).lower(*queries, scores, features).compile()
    assert_equal(compiled(*queries, scores, features), oracle_queries(*queries, scores, features))
    assert not re.search("all-gather|all-reduce|all-to-all|reduce-scatter", compiled.as_text())


def test_shard_map_diffuses_a_pool_on_every_device(scores, features, groups):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    many = np.stack([np.roll(groups, i) for i in range(DEVICES)])
    mapped = jax.shard_map(
        lambda g: diffuse(scores, features, groups=g[0])[None],
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    expected = [oracle(scores, features, groups=g) for g in many]
    assert_equal(jax.jit(mapped)(many), np.stack(expected))


def test_the_devices_exchange_the_features_once_and_then_numbers_a_row():
    rows, dimensions, n = 4096, 64, 5
    shapes = {
        "scores": jax.ShapeDtypeStruct((rows,), "float32"),
        "features": jax.ShapeDtypeStruct((rows, dimensions), "float32"),
    }
    program = diffuse_shards(shapes, n_neighbors=n).lower(shapes).compile().as_text()
    collectives = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|reduce-scatter)", program
    )
    sizes = sorted(np.prod([int(x) for x in s.split(",") if x]) for s in collectives)
    assert sizes[-1] == rows * dimensions
    assert sizes[-2] == rows * n
    assert sizes[-3] <= rows
    everything = re.findall(r"[fs]32\[([\d,]+)\]", program)
    assert max(np.prod([int(x) for x in s.split(",")]) for s in everything) <= rows * rows // 8


# Memory


@pytest.mark.parametrize("with_gradient", [False, True])
def test_memory_is_rows_times_neighbours_and_a_block(with_gradient):
    rows, n = 20_000, 10

    def function(scores, features):
        return diffuse(scores, features, n_neighbors=n, groups=jnp.arange(rows) // 7).sum()

    function = jax.grad(function) if with_gradient else function
    shapes = jax.ShapeDtypeStruct((rows,), "float32"), jax.ShapeDtypeStruct((rows, 8), "float32")
    memory = jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2 * 64 * 2**20 + 16 * rows * n * 4 < rows * rows * 4 / 8


# Errors


def shapes_of(function):
    if function is diffuse:
        return {"scores": np.zeros(8), "features": np.zeros((8, 2))}
    return {
        "query_scores": np.zeros(4),
        "query_features": np.zeros((4, 2)),
        "pool_scores": np.zeros(8),
        "pool_features": np.zeros((8, 2)),
    }


BOTH = pytest.mark.parametrize(("function", "most"), [(diffuse, 7), (diffuse_queries, 8)])


@BOTH
def test_n_neighbors_is_a_python_int_up_to_the_rows_there_are(function, most):
    call = partial(function, **shapes_of(function))
    for n in (True, 2.0, np.int64(2), None):
        with pytest.raises(TypeError, match=f"^n_neighbors must be .*int.* was {type(n).__name__}"):
            call(n_neighbors=n)
    for n in (0, -1, most + 1):
        message = rf"^n_neighbors must be in 1\.\.{most}, .* 8 rows .*it was {n}$"
        with pytest.raises(ValueError, match=message):
            call(n_neighbors=n)


@BOTH
def test_alpha_is_a_python_float_from_0_to_less_than_1(function, most):
    call = partial(function, **shapes_of(function), n_neighbors=2)
    for alpha in (True, np.float64(0.5), jnp.float32(0.5), "0.5", None):
        with pytest.raises(
            TypeError, match=f"^alpha must be a .*float.* was {type(alpha).__name__}"
        ):
            call(alpha=alpha)
    with pytest.raises(TypeError, match=r"alpha must be .*Tracer.*static argument of jit"):
        jax.jit(lambda alpha: call(alpha=alpha))(0.5)
    for alpha in (1, 1.0, -0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"^alpha must be in \[0, 1\), .*it was {alpha}$"):
            call(alpha=float(alpha) if alpha != 1 else alpha)


@pytest.mark.parametrize(
    ("function", "argument", "value", "message"),
    [
        (diffuse, "scores", np.zeros(7), r"^scores must be .*the 8 rows of features.*\(7,.*\)"),
        (diffuse, "candidates", np.ones(9, bool), r"^candidates .* 8 rows of features.*\(9,\)"),
        (diffuse, "groups", np.ones(9, int), r"^groups must be .*the 8 rows of features.*\(9,\)"),
        (diffuse_queries, "candidates", np.ones(4, bool), r"candidates .* 8 .*pool_features.*\(4,"),
        (diffuse_queries, "query_features", np.zeros((4, 3)), r"query_features .*\(4, 3\) and"),
        (diffuse_queries, "query_groups", np.zeros(4, int), r"go together; pool_groups was None"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function, argument, value, message):
    with pytest.raises(ValueError, match=message):
        function(**{**shapes_of(function), argument: value}, n_neighbors=2)


def test_a_shard_counts_the_rows_of_all_devices(scores, features):
    arrays = {"scores": scores, "features": features}
    with pytest.raises(ValueError, match=rf"n_neighbors must be in 1\.\.{N - 1}, .*it was {N}"):
        diffuse_shards(arrays, n_neighbors=N)(arrays)


def test_the_signatures_are_the_contract():
    def arguments(function):
        return str(inspect.signature(function)).partition(" ->")[0]

    middle = "*, n_neighbors=10, alpha=0.9, candidates=None, "
    assert arguments(diffuse) == f"(scores, features, {middle}groups=None)"
    assert arguments(diffuse_sharded) == f"(axis, scores, features, {middle}groups=None)"
    assert arguments(diffuse_queries) == (
        "(query_scores, query_features, pool_scores, pool_features, "
        f"{middle}query_groups=None, pool_groups=None)"
    )
    assert {"diffuse", "diffuse_queries"} < set(dns_jax.__all__)
