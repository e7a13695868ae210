"""Eq. 7, sentence by sentence, against a stable sort of float64 distances in NumPy."""

import inspect
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eq7 import oracle, oracle_queries
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dns_jax
from dns_jax import smooth, smooth_queries, smooth_sweep
from dns_jax.smoothing import _counting, _search, smooth_queries_sweep

N, D, Q = 48, 3, 16  # rows of the pool, dimensions, queries
ROWS = np.arange(N)
FLOAT_MAX = float(np.finfo(np.float32).max)


def assert_equal(got, expected):
    """Equal but for float32's rounding of the mean."""
    got = np.asarray(got)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


FORMS = {"ranking": _search.sum_by_rank, "counting": _search.sum_by_count}


@pytest.fixture(autouse=True, params=FORMS)
def form(request, monkeypatch):
    """Every behaviour holds for both forms: an accelerator's, run here, and a CPU's."""
    monkeypatch.setitem(_search.FORMS, "cpu", FORMS[request.param])
    return request.param


def assert_same(form, got, expected):
    """Equal to the last bit; where counting adds up in other parts, but for rounding."""
    tolerance = 0 if form == "ranking" else 1e-6
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def scores():
    return np.random.default_rng(1).standard_normal(N).astype(np.float32)


@pytest.fixture
def features():
    """Small integers: most distances are tied, and the arithmetic is exact."""
    return np.random.default_rng(2).integers(-2, 3, (N, D)).astype(np.float32)


@pytest.fixture
def candidates():
    return np.random.default_rng(3).random(N) < 0.5


@pytest.fixture
def groups():
    return np.random.default_rng(4).permutation(ROWS // 4)


@pytest.fixture
def queries():
    rng = np.random.default_rng(5)
    return rng.standard_normal(Q).astype(np.float32), rng.integers(-3, 4, (Q, D)) * 1.0


# Equation 7


@pytest.mark.parametrize("k", [2, 5, N])
def test_a_score_is_the_mean_of_its_own_and_those_of_the_k_minus_1_nearest(scores, features, k):
    assert_equal(smooth(scores, features, k), oracle(scores, features, k))


def test_the_paper_by_hand():
    features = [[0.0], [1.0], [3.0], [7.0]]
    got = smooth([8.0, 4.0, 2.0, 1.0], features, 2)
    np.testing.assert_array_equal(got, [6, 6, 3, 1.5])


def test_k_of_1_returns_the_scores(scores, features):
    np.testing.assert_array_equal(smooth(scores, features, 1), scores)


def test_the_row_itself_counts_once_among_duplicates():
    weights = np.eye(6, dtype=np.float32)
    got = 3 * np.asarray(smooth(weights, np.ones((6, 2)), 3))
    expected = weights + np.eye(6)[[1, 0, 0, 0, 0, 0]] + np.eye(6)[[2, 2, 1, 1, 1, 1]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ties_go_to_the_lower_row_as_in_a_stable_sort(features):
    got = np.asarray(smooth(np.eye(N), features, 5)) > 0
    np.testing.assert_array_equal(got, oracle(np.eye(N), features, 5) > 0)


def test_a_zero_of_either_sign_does_not_decide_a_tie():
    features = np.array([[0.0], [-6.0], [-3.0], [9.0]])  # rows 0 and 1 are equally far from row 2
    got = smooth(np.eye(4), features, 2)
    np.testing.assert_array_equal(np.asarray(got)[2], [0.5, 0, 0.5, 0])


def test_every_column_of_scores_is_smoothed_with_the_same_neighbours(scores, features):
    both = np.stack([scores, scores**2], axis=1)
    got = smooth(both, features, 5)
    assert_equal(got, oracle(both, features, 5))
    np.testing.assert_allclose(got[:, 0], smooth(scores, features, 5), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "dimensions"),
    [(6, 0), (1, 1), (1, 1024), (2, 3), (33, 1), (65, 2), (70, 1024), (300, 4)],
)
def test_any_number_of_rows_and_dimensions(rows, dimensions):
    rng = np.random.default_rng(rows)
    features = rng.integers(-3, 4, (rows, dimensions))
    scores = rng.standard_normal(rows).astype(np.float32)
    for k in {1, min(3, rows), rows}:
        assert_equal(smooth(scores, features, k), oracle(scores, features, k))


@pytest.mark.parametrize("every", [1, 157, 250])  # 157: all in one of the 157 groups of 32 rows
@pytest.mark.parametrize("k", [2, 5, 16, 700, 5001])
def test_pools_of_thousands_full_of_ties(k, every):
    candidates = np.arange(5000) % every == 7 % every
    rng = np.random.default_rng(0)
    features = rng.integers(-2, 3, (5000, 4))
    scores = rng.standard_normal((5000, 2)).astype(np.float32)
    rows = rng.choice(5000, 40, replace=False)
    groups = np.arange(5000) // 7
    got = smooth_queries(
        scores[rows],
        features[rows],
        scores,
        features,
        k,
        candidates=candidates,
        query_groups=groups[rows],
        pool_groups=groups,
    )
    expected = oracle_queries(
        scores[rows], features[rows], scores, features, k, candidates, groups[rows], groups
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_distances_beyond_the_cache_are_searched_some_columns_at_a_time(monkeypatch, form):
    monkeypatch.setattr(_counting, "_CACHED_BYTES", 0)
    rng = np.random.default_rng(0)
    features = rng.integers(-2, 3, (1101, 4))  # a shape that nothing else has compiled
    scores = rng.standard_normal((1101, 2)).astype(np.float32)
    arguments = scores[:48], features[:48], scores, features, 130
    program = jax.jit(partial(smooth_queries, k=130)).lower(*arguments[:4]).as_text()
    assert ("dynamic_slice" in program and "x16xf32" in program) == (form == "counting")
    np.testing.assert_allclose(
        smooth_queries(*arguments), oracle_queries(*arguments), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("k", [2, 40])
def test_all_rows_alike_are_tied(k):
    scores = np.random.default_rng(0).standard_normal(1500).astype(np.float32)
    features = np.full((1500, 5), 0.3)
    assert_equal(smooth(scores, features, k), oracle(scores, features, k))


# Who may be a neighbour


def test_only_candidates_are_neighbours_and_a_row_outside_them_counts_itself(
    scores, features, candidates
):
    got = smooth(scores, features, 5, candidates=candidates)
    assert_equal(got, oracle(scores, features, 5, candidates))
    members = np.asarray(smooth(np.eye(N), features, 5, candidates=candidates)) > 0
    assert members.diagonal().all()
    assert not (members & ~np.eye(N, dtype=bool))[:, ~candidates].any()


def test_rows_of_equal_group_are_never_neighbours(scores, features, candidates, groups):
    assert_equal(
        smooth(scores, features, 5, groups=groups), oracle(scores, features, 5, None, groups)
    )
    got = smooth(scores, features, 5, candidates=candidates, groups=groups)
    assert_equal(got, oracle(scores, features, 5, candidates, groups))


def test_the_mean_is_over_fewer_rows_where_neighbours_run_out(scores, features, groups):
    candidates = ROWS < 3
    got = smooth(scores, features, 20, candidates=candidates, groups=groups)
    assert_equal(got, oracle(scores, features, 20, candidates, groups))
    nobody = smooth(scores, features, 20, candidates=np.zeros(N, bool))
    np.testing.assert_array_equal(nobody, scores)
    one_clip = smooth(scores, features, 20, groups=np.zeros(N, int))
    np.testing.assert_array_equal(one_clip, scores)


# Every K from one search


@pytest.mark.parametrize("kwargs", [{}, {"candidates": True, "groups": True}])
def test_a_sweep_equals_smooth_at_every_k(scores, features, candidates, groups, kwargs):
    values = {"candidates": candidates, "groups": groups}
    kwargs = {name: values[name] for name in kwargs}
    ks = (20, 1, 5, N, 5)
    got = smooth_sweep(scores, features, ks, **kwargs)
    assert got.shape == (5, N)
    for row, k in zip(got, ks, strict=True):
        assert_equal(row, oracle(scores, features, k, **kwargs))
    np.testing.assert_allclose(got[0], smooth(scores, features, 20, **kwargs), rtol=3e-7, atol=1e-7)


def test_a_sweep_keeps_the_columns_and_takes_any_sequence(scores, features):
    both = np.stack([scores, -scores], axis=1)
    got = smooth_sweep(both, features, range(1, 4))
    assert got.shape == (3, N, 2)
    assert_equal(got[2], oracle(both, features, 3))


def test_the_running_sum_is_as_accurate_at_every_k_as_a_mean_of_its_own():
    rng = np.random.default_rng(0)
    rows = 2048
    scores = (rng.standard_normal(rows) * 0.1 + 1000).astype(np.float32)
    features = np.arange(rows)[:, None] % 64
    ks = (2, 700, rows)
    got = smooth_sweep(scores, features, ks, candidates=np.arange(rows) % 2 == 0)
    expected = [oracle(scores, features, k, np.arange(rows) % 2 == 0) for k in ks]
    np.testing.assert_allclose(got, expected, rtol=6e-7)


def test_a_sweep_searches_once(scores, features, form):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (scores, features))
    program = jax.jit(lambda s, f: smooth_sweep(s, f, (2, 5, 20))).lower(*shapes).as_text()
    assert len(re.findall(r"dot_general.*tensor<48x3xf32>|dot_general.*<64x4xf32>", program)) == 1
    assert len(re.findall(r"chlo\.top_k", program)) == (form == "ranking")


# Queries


@pytest.mark.parametrize("k", [5, N + 1])
def test_a_query_is_averaged_with_its_nearest_rows_of_the_pool(scores, features, queries, k):
    got = smooth_queries(*queries, scores, features, k)
    assert_equal(got, oracle_queries(*queries, scores, features, k))


def test_a_query_takes_candidates_of_other_groups_only(
    scores, features, candidates, groups, queries
):
    kwargs = {
        "candidates": candidates,
        "query_groups": np.arange(Q) % 5,
        "pool_groups": groups % 5,
    }
    got = smooth_queries(*queries, scores, features, 5, **kwargs)
    assert_equal(got, oracle_queries(*queries, scores, features, 5, **kwargs))


def test_a_shard_with_the_row_index_as_group_is_smoothed_exactly(scores, candidates):
    features = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    shard = slice(8, 24)
    got = smooth_queries(
        scores[shard],
        features[shard],
        scores,
        features,
        5,
        candidates=candidates,
        query_groups=ROWS[shard],
        pool_groups=ROWS,
    )
    expected = smooth(scores, features, 5, candidates=candidates)[shard]
    np.testing.assert_array_equal(got, expected)


def test_queries_of_several_columns_and_none_at_all(scores, features, queries):
    pool = np.stack([scores, -scores], axis=1)
    both = np.stack([queries[0], queries[0] + 1], axis=1)
    got = smooth_queries(both, queries[1], pool, features, 5)
    assert_equal(got, oracle_queries(both, queries[1], pool, features, 5))
    assert smooth_queries(both[:0], queries[1][:0], pool, features, 5).shape == (0, 2)
    np.testing.assert_array_equal(smooth_queries(*queries, scores[:0], features[:0], 1), queries[0])


def test_one_query_does_not_change_another(scores, queries):
    features = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    expected = smooth_queries(*queries, scores, features, 5)
    query_features = queries[1].copy()
    query_features[0] = 1e30
    got = smooth_queries(queries[0], query_features, scores, features, 5)
    np.testing.assert_array_equal(got[1:], expected[1:])
    assert np.isfinite(got[0])


# Types and non-finite values


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16, jnp.bfloat16, np.float64]
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_any_real_type_goes_in_and_float32_comes_out(dtype, convert):
    rng = np.random.default_rng(0)
    scores = convert(rng.integers(0, 2, N).astype(dtype))
    features = convert(rng.integers(0, 2, (N, D)).astype(dtype))
    got = smooth(scores, features, 5)
    assert_equal(got, oracle(scores, features, 5))


def test_64_bit_integers_do_not_wrap_around():
    scores = np.array([0, 3 * 2**40, 0])
    got = smooth(scores, np.array([[0], [2**33], [2**40]]), 2)
    np.testing.assert_allclose(got, [1.5 * 2**40, 1.5 * 2**40, 1.5 * 2**40])


def test_float64_is_kept_only_where_everything_is_float64_and_x64_is_on(scores):
    features = np.random.default_rng(0).standard_normal((N, D))
    scores = scores.astype(np.float64)
    assert smooth(scores, features, 5).dtype == np.float32
    with jax.enable_x64(True):
        got = smooth(scores, features, 5)
        np.testing.assert_allclose(got, oracle(scores, features, 5), rtol=1e-14)
        assert got.dtype == np.float64
        assert smooth(scores, features.astype(np.float32), 5).dtype == np.float32
        assert smooth(scores.astype(np.float32), features, 5).dtype == np.float32
        mixed = smooth_queries(scores, features, scores.astype(np.float32), features, 5)
        assert mixed.dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_non_finite_feature_is_nobodys_neighbour_and_scores_nan(
    scores, features, queries, value
):
    features[7, 1] = value
    features[30] = value
    got = smooth(scores, features, 5)
    assert_equal(got, oracle(scores, features, 5))
    assert np.flatnonzero(np.isnan(got)).tolist() == [7, 30]
    queries[1][2, 0] = value
    got = smooth_queries(*queries, scores, features, 5)
    assert_equal(got, oracle_queries(*queries, scores, features, 5))
    assert np.flatnonzero(np.isnan(got)).tolist() == [2]


def test_a_pool_without_a_finite_row_leaves_a_query_alone(scores, features, queries):
    got = smooth_queries(*queries, scores, np.full_like(features, np.nan), 5)
    np.testing.assert_array_equal(got, queries[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_score_reaches_only_the_rows_that_count_it(scores, features, value):
    members = np.asarray(smooth_sweep(np.eye(N), features, (2, 5, 20)))[:, :, 7] > 0
    expected = np.asarray(smooth_sweep(scores, features, (2, 5, 20)))
    scores[7] = value
    got = np.asarray(smooth_sweep(scores, features, (2, 5, 20)))
    np.testing.assert_array_equal(got[~members], expected[~members])
    np.testing.assert_array_equal(got[members], value)
    assert 0 < members[0].sum() < members[1].sum() < members[2].sum() < N


def test_infinite_scores_of_both_signs_give_nan_only_where_they_meet():
    scores = [np.inf, 0, -np.inf, 1, 2]
    got = smooth_sweep(scores, np.arange(5.0)[:, None], (1, 2, 3))
    np.testing.assert_array_equal(got[0], scores)
    np.testing.assert_array_equal(got[1], [np.inf, np.inf, -np.inf, -np.inf, 1.5])
    np.testing.assert_array_equal(got[2], [np.nan, np.nan, -np.inf, -np.inf, -np.inf])


# Exactness


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize(("dimensions", "most"), [(128, 1), (128, 255), (2, 2000)])
def test_small_integers_have_the_neighbours_of_a_stable_sort(dimensions, most, offset):
    features = np.random.default_rng(0).integers(0, most + 1, (N, dimensions)) + offset
    features[::5] = features[3]
    members = np.asarray(smooth(np.eye(N), features, 5)) > 0
    np.testing.assert_array_equal(members, oracle(np.eye(N), features, 5) > 0)


def assert_within_rounding(queries, pool, k, candidates=None):
    """The docstring's claim: who is taken is nearer, but for the rounding, than who is not."""
    queries, pool = np.asarray(queries, np.float32), np.asarray(pool, np.float32)
    rows, dimensions = pool.shape
    weights = smooth_queries(
        np.zeros((len(queries), rows)), queries, np.eye(rows), pool, k, candidates=candidates
    )
    taken = np.asarray(weights) > 0
    assert (taken.sum(1) == k - 1).all()
    queries, pool = queries.astype(np.float64), pool.astype(np.float64)
    usable = np.ones(rows, bool) if candidates is None else candidates
    assert not taken[:, ~usable].any()
    centre = pool[usable].mean(0)
    squares = (np.square(x - centre).sum(1) for x in (queries, pool))
    squares = np.add.outer(*squares)
    margin = (dimensions + 8) * np.finfo(np.float32).eps * squares
    distances = np.square(queries[:, None] - pool[None]).sum(-1)
    farthest = np.where(taken, distances - margin, -np.inf).max(1)
    nearest = np.where(taken | ~usable, np.inf, distances + margin).min(1)
    assert (farthest <= nearest).all()
    return taken, distances


@pytest.mark.parametrize("offset", [0, 30, 1e4])
def test_neighbours_differ_only_within_rounding_on_offset_clusters(offset):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((8, 16))
    features = offset + centres[rng.integers(0, 8, 200)] + 0.05 * rng.standard_normal((200, 16))
    assert_within_rounding(features, features, 32)


@pytest.mark.parametrize("spread", [None, 0.3, 0.01])
def test_neighbours_differ_only_within_rounding_in_clusters_and_without(spread):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((700, 128))
    if spread is not None:
        features = rng.standard_normal((20, 128))[rng.integers(0, 20, 700)] + spread * features
    assert_within_rounding(features, features, 64)


def test_an_offset_costs_no_neighbour():
    """Without the centring, products of 1e6 would drown squared distances of 1e-2."""
    rng = np.random.default_rng(0)
    features = np.float32(1000 + 0.05 * rng.standard_normal((200, 16)))
    taken, distances = assert_within_rounding(features, features, 32)
    expected = np.zeros_like(taken)
    np.put_along_axis(expected, np.argsort(distances, axis=1, kind="stable")[:, :31], True, axis=1)
    assert (taken != expected).sum() <= 4


def test_the_centre_is_the_candidates_whatever_else_the_pool_holds():
    rng = np.random.default_rng(0)
    features = 30 + 0.05 * rng.standard_normal((200, 16))
    candidates = np.arange(200) < 100
    features[150:] = 1e30  # the unfilled part of a growing pool may hold anything
    assert_within_rounding(features[:100], features, 32, candidates)


def test_remote_queries_do_not_move_the_centre():
    rng = np.random.default_rng(0)
    features = 30 + 0.05 * rng.standard_normal((200, 16))
    queries = features.copy()
    queries[100:] -= 1e6
    assert_within_rounding(queries, features, 32)


@pytest.mark.parametrize("scale", [1e-30, 1e25, FLOAT_MAX / 8])
def test_very_small_and_very_large_features_keep_their_neighbours(scores, features, scale):
    features = np.float32(features * 2.0 ** np.floor(np.log2(scale)))
    np.testing.assert_array_equal(
        smooth(scores, features, 5), smooth(scores, features / features.max(), 5)
    )


@pytest.mark.parametrize("offset", [1e7, 1e9, 1e30, -1e37])
def test_a_column_that_is_the_same_everywhere_does_not_matter(offset):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(1003).astype(np.float32)
    features = rng.integers(0, 5000, (1003, 1))
    constant = np.full((1003, 1), np.float32(offset))
    got = smooth(scores, np.hstack([constant, features]), 3)
    assert_equal(got, oracle(scores, features, 3))


def test_features_may_reach_from_the_lowest_to_the_largest_number():
    features = np.array([[-3e38], [3e38], [2.9e38], [-2.9e38], [0], [1e38]])
    got = smooth(np.arange(6.0), features, 2)
    np.testing.assert_allclose(got, [1.5, 1.5, 1.5, 1.5, 4.5, 4.5])


def test_a_query_beyond_the_range_of_squares_still_has_neighbours(features):
    remote = np.full((Q, D), FLOAT_MAX)
    got = smooth_queries(np.zeros(Q), remote, np.ones(N), features / 1e20, N + 1)
    np.testing.assert_allclose(got, N / (N + 1), rtol=1e-6)


def test_the_products_are_at_full_precision_also_where_the_default_is_less(scores, features):
    jaxpr = str(jax.make_jaxpr(lambda s, f: smooth(s, f, 5))(scores, features))
    precisions = re.findall(r"dot_general\[.*?precision=(\S+)", jaxpr, flags=re.DOTALL)
    assert precisions
    assert all("HIGHEST" in precision for precision in precisions)


# Errors


def shapes_of(function):
    """Valid arguments of smooth or smooth_queries by name."""
    if function is smooth:
        return {"scores": np.zeros(8), "features": np.zeros((8, 2))}
    return {
        "query_scores": np.zeros(4),
        "query_features": np.zeros((4, 2)),
        "pool_scores": np.zeros(8),
        "pool_features": np.zeros((8, 2)),
    }


BOTH = pytest.mark.parametrize("function", [smooth, smooth_queries])


@BOTH
@pytest.mark.parametrize("k", [True, 2.0, np.int64(2), np.array(2), jnp.int32(2), "2", None])
def test_k_is_a_python_int(function, k):
    with pytest.raises(TypeError, match=f"k must be a Python int.* was {type(k).__name__}"):
        function(**shapes_of(function), k=k)


@BOTH
def test_a_traced_k_is_a_type_error_that_names_the_way_out(function):
    with pytest.raises(TypeError, match=r"k must be a Python int.*Tracer.*static argument of jit"):
        jax.jit(lambda k: function(**shapes_of(function), k=k))(2)


@pytest.mark.parametrize("ks", [3, np.int64(3), None, [True], [np.int64(3)], np.arange(1, 3)])
def test_ks_is_a_sequence_of_python_ints(ks):
    with pytest.raises(TypeError, match=r"ks must be a .*Python int.* was (\w+)"):
        smooth_sweep(np.zeros(8), np.zeros((8, 2)), ks)


@pytest.mark.parametrize(("function", "most"), [(smooth, 8), (smooth_queries, 9)])
def test_k_lies_between_1_and_the_rows_there_are(function, most):
    function(**shapes_of(function), k=most)
    for k in (0, -3, most + 1):
        with pytest.raises(ValueError, match=rf"^k must be in 1\.\.{most}, .*it was {k}$"):
            function(**shapes_of(function), k=k)


def test_a_sweep_needs_a_k():
    with pytest.raises(ValueError, match="ks must hold at least one K"):
        smooth_sweep(np.zeros(8), np.zeros((8, 2)), ())


def test_every_k_of_a_sweep_lies_between_1_and_the_rows():
    for k in (0, 9):
        with pytest.raises(ValueError, match=rf"k in ks must be in 1\.\.8, .*it was {k}$"):
            smooth_sweep(np.zeros(8), np.zeros((8, 2)), (2, k))


@pytest.mark.parametrize(
    ("function", "argument", "value", "message"),
    [
        (smooth, "scores", np.zeros(7), r"^scores must be .*the 8 rows of features.*\(7,.*\)"),
        (
            smooth,
            "scores",
            np.zeros((7, 2)),
            r"^scores must be .*the 8 rows of features.*\(7,.*\)",
        ),
        (smooth, "scores", np.zeros(()), r"^scores must be \[rows\] or .*\(\)"),
        (smooth, "features", np.zeros(8), r"^features must be \[rows, dim.*\(8,\)"),
        (smooth, "candidates", np.ones(9, bool), r"^candidates .* 8 rows of features.*\(9,\)"),
        (smooth, "groups", np.ones(9, int), r"^groups must be .*the 8 rows of features.*\(9,\)"),
        (
            smooth_queries,
            "query_scores",
            np.zeros(8),
            r"query_scores .* 4 .*query_features.*\(8,\)",
        ),
        (smooth_queries, "pool_scores", np.zeros(4), r"pool_scores .* 8 .*pool_features.*\(4,\)"),
        (
            smooth_queries,
            "candidates",
            np.ones(4, bool),
            r"candidates .* 8 .*pool_features.*\(4,\)",
        ),
        (
            smooth_queries,
            "query_features",
            np.zeros((4, 3)),
            r"query_features .*pool_features.* \(4, 3\) and \(8, 2\)",
        ),
        (
            smooth_queries,
            "pool_scores",
            np.zeros((8, 3)),
            r"query_scores .*pool_scores.* \(4,\) and \(8, 3\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named_with_both_numbers(function, argument, value, message):
    arguments = {**shapes_of(function), argument: value}
    with pytest.raises(ValueError, match=message):
        function(**arguments, k=2)
    # ... already while tracing, before anything runs
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda arguments: function(**arguments, k=2), arguments)


def test_group_lengths_and_a_lonely_group_are_named():
    arguments = shapes_of(smooth_queries)
    for lengths, message in (
        ((5, 8), r"query_groups must be .*the 4 rows of query_features.*\(5,\)"),
        ((4, 9), r"pool_groups must be .*the 8 rows of pool_features.*\(9,\)"),
    ):
        of_query, of_pool = (np.zeros(length, int) for length in lengths)
        with pytest.raises(ValueError, match=message):
            smooth_queries(**arguments, k=2, query_groups=of_query, pool_groups=of_pool)
    for given, lacking in (("query_groups", "pool_groups"), ("pool_groups", "query_groups")):
        with pytest.raises(ValueError, match=f"go together; {lacking} was None"):
            smooth_queries(**arguments, k=2, **{given: np.zeros(4, int)})


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        (
            "scores",
            np.zeros(8, complex),
            "scores must be of type bool or integer or floating; .*complex128",
        ),
        ("features", np.full((8, 2), "1"), "features must be of type bool or .*<U1"),
        ("candidates", np.arange(8), "candidates must be of type bool; .*int64"),
        ("groups", np.zeros(8), "groups must be of type integer; .*float64"),
    ],
)
def test_a_wrong_type_is_named(argument, value, message):
    with pytest.raises(TypeError, match=message):
        smooth(**{**shapes_of(smooth), argument: value}, k=2)


def test_groups_that_would_wrap_around_are_refused(scores, features):
    with pytest.raises(ValueError, match="groups must fit int32 unless x64 is on"):
        smooth(scores, features, 5, groups=ROWS + 2**32)
    with jax.enable_x64(True):
        got = smooth(scores, features, 5, groups=2**32 * ROWS)
    assert_equal(got, oracle(scores, features, 5))


# Transformations


def test_the_gradient_in_the_scores_is_the_weights_of_the_mean(scores, features, groups):
    weights = oracle(np.eye(N), features, 5, None, groups)
    jacobian = jax.jacrev(lambda s: smooth(s, features, 5, groups=groups))(scores)
    np.testing.assert_allclose(jacobian, weights, rtol=1e-6)
    jacobian = jax.jacfwd(lambda s: smooth(s, features, 5, groups=groups))(scores)
    np.testing.assert_allclose(jacobian, weights, rtol=1e-6)


def test_the_gradient_is_finite_where_neighbours_run_out_or_features_are_not_finite(
    scores, features, candidates
):
    features[7] = np.nan
    candidates[20:] = False
    loss = lambda s: jnp.nansum(smooth_sweep(s, features, (2, 20), candidates=candidates))  # noqa: E731
    gradient = np.asarray(jax.grad(loss)(scores))
    assert np.isfinite(gradient).all()
    assert gradient[7] == 0
    assert gradient[8] > 0


@pytest.mark.parametrize("k", [5, 300])
def test_the_gradient_and_vmap_in_a_pool_of_thousands(k):
    rng = np.random.default_rng(0)
    features = rng.integers(-3, 4, (2, 4200, 3)).astype(np.float32)
    scores = rng.standard_normal((2, 4200)).astype(np.float32)
    rows = np.arange(8)

    def answer(pool_scores, features):
        return smooth_queries(pool_scores[rows], features[rows], pool_scores, features, k)

    got = jax.vmap(answer)(scores, features)
    for g, s, f in zip(got, scores, features, strict=True):
        assert_equal(g, oracle_queries(s[rows], f[rows], s, f, k))
    gradient = jax.vmap(jax.grad(lambda s, f: answer(s, f).sum()))(scores, features)
    np.testing.assert_allclose(gradient.sum(axis=1), len(rows), rtol=1e-5)
    assert ((np.asarray(gradient) > 0).sum(axis=1) <= len(rows) * k).all()


def test_features_are_constants(scores, features):
    gradient = jax.grad(lambda f: smooth(scores, f, 5).sum())(features)
    np.testing.assert_array_equal(gradient, 0)


def test_jit_takes_k_as_a_static_argument(scores, features, candidates, form):
    got = jax.jit(smooth, static_argnames="k")(scores, features, k=5, candidates=candidates)
    assert_same(form, got, smooth(scores, features, 5, candidates=candidates))


def test_vmap_is_a_loop(scores, features, candidates, groups):
    many = np.stack([scores, -scores]), np.stack([features, features[::-1]])
    masks = np.stack([candidates, ~candidates])
    expected = [oracle(s, f, 5, mask, groups) for s, f, mask in zip(*many, masks, strict=True)]

    def smooth_one(s, f, mask):
        return smooth(s, f, 5, candidates=mask, groups=groups)

    assert_equal(jax.vmap(smooth_one)(*many, masks), np.stack(expected))


def smooth_shard(scores, features, rows, pool_scores, pool_features):
    return smooth_queries(
        scores,
        features,
        pool_scores,
        pool_features,
        5,
        query_groups=rows,
        pool_groups=jnp.arange(N),
    )


def test_pmap_smooths_a_shard_per_device(scores, features, form):
    shards = [x.reshape(8, N // 8, *x.shape[1:]) for x in (scores, features, ROWS)]
    mapped = jax.pmap(smooth_shard, in_axes=(0, 0, 0, None, None))
    got = mapped(*shards, scores, features)
    assert_same(form, got.reshape(N), smooth(scores, features, 5))


def test_shard_map_smooths_a_shard_per_device_without_communication(scores, features, form):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P("data"), P(), P())
    mapped = jax.jit(jax.shard_map(smooth_shard, mesh=mesh, in_specs=specs, out_specs=P("data")))
    arguments = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip((scores, features, ROWS, scores, features), specs, strict=True)
    ]
    compiled = mapped.lower(*arguments).compile()
    got = compiled(*arguments)
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1)
    assert_same(form, got, smooth(scores, features, 5))
    assert not re.search("all-gather|all-reduce|all-to-all", compiled.as_text())


@pytest.mark.parametrize("candidates_given", [False, True])
def test_shard_map_smooths_queries_of_a_device_against_a_whole_pool(
    scores, features, candidates, form, candidates_given
):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    given = {"candidates": candidates} if candidates_given else {}

    def smooth_new(*queries_and_pool):
        return smooth_queries_sweep(*queries_and_pool, (2, 5), **given)

    specs = (P("data"), P("data"), P(), P())
    mapped = jax.shard_map(smooth_new, mesh=mesh, in_specs=specs, out_specs=P(None, "data"))
    queries = scores[::-1], features[::-1] + 0.25
    expected = smooth_new(*queries, scores, features)
    assert_same(form, jax.jit(mapped)(*queries, scores, features), expected)


# Many K for queries


def test_a_sweep_of_queries_is_smooth_queries_for_every_k(scores, features, candidates, groups):
    ks = (N // 2, 1, 7)
    queries = scores[:9], features[:9] + 0.25
    more = {"candidates": candidates, "query_groups": groups[:9], "pool_groups": groups}
    got = smooth_queries_sweep(*queries, scores, features, ks, **more)
    for k, row in zip(ks, got, strict=True):
        expected = smooth_queries(*queries, scores, features, k, **more)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("ks", "error", "message"),
    [
        (5, TypeError, "ks must be a sequence"),
        ((), ValueError, "at least one K"),
        ((1, 2.0), TypeError, "every k in ks"),
        ((1, N + 2), ValueError, f"{N + 2}"),
    ],
)
def test_a_sweep_of_queries_refuses_other_ks(scores, features, ks, error, message):
    with pytest.raises(error, match=message):
        smooth_queries_sweep(scores, features, scores, features, ks)


def test_the_gradient_passes_shard_map(scores, features):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        smooth_shard,
        mesh=mesh,
        in_specs=(P("data"), P("data"), P("data"), P(), P()),
        out_specs=P("data"),
    )
    loss = lambda s: (mapped(s, features, ROWS, s, features) * scores).sum()  # noqa: E731
    expected = jax.grad(lambda s: (smooth(s, features, 5) * scores).sum())(scores)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(scores), expected, rtol=1e-5, atol=1e-6)


# Memory and time


@pytest.mark.parametrize("rows_in_a_block", [1, 7, N])
def test_the_size_of_the_blocks_does_not_show(
    monkeypatch, scores, features, candidates, groups, rows_in_a_block
):
    monkeypatch.setattr(_search, "BLOCK_BYTES", rows_in_a_block * 4 * (3 * N + 4 * 5))
    jaxpr = jax.make_jaxpr(lambda s, f: smooth(s, f, 5))(scores, features)
    assert f"f32[{rows_in_a_block},{N}]" in str(jaxpr)
    got = smooth(scores, features, 5, candidates=candidates, groups=groups)
    assert_equal(got, oracle(scores, features, 5, candidates, groups))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_memory_is_rows_times_block(monkeypatch, with_gradient):
    rows, budget = 4096, 4 * 2**20
    monkeypatch.setattr(_search, "BLOCK_BYTES", budget)

    def function(scores, features):
        return smooth(scores, features, rows, groups=jnp.arange(rows) // 7).sum()

    shapes = jax.ShapeDtypeStruct((rows,), "float32"), jax.ShapeDtypeStruct((rows, 8), "float32")
    compiled = jax.jit(jax.grad(function) if with_gradient else function).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * budget < rows * rows * 4 / 4


def test_the_cpu_program_uses_the_top_k_kernel_or_counts_and_never_sorts(form):
    shapes = jax.ShapeDtypeStruct((1400,), "float32"), jax.ShapeDtypeStruct((1400, 8), "float32")
    for function in (
        lambda s, f: smooth(s, f, 128),
        lambda s, f: smooth_sweep(s, f, (16, 128)),
    ):
        program = jax.jit(function).lower(*shapes).compile().as_text()
        assert ('custom_call_target="TopK"' in program) == (form == "ranking")
        assert " sort(" not in program


def test_a_cpu_counts_and_an_accelerator_ranks(form):
    shapes = jax.ShapeDtypeStruct((100,), "float32"), jax.ShapeDtypeStruct((100, 8), "float32")
    traced = jax.jit(lambda s, f: smooth(s, f, 5)).trace(*shapes)
    for platform in ("cpu", "cuda", "tpu"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("top_k" in program) == (platform != "cpu" or form == "ranking")


def test_it_exports_for_every_platform_in_one_file(scores, features, queries):
    export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    arguments = [jnp.asarray(x, jnp.float32) for x in (*queries, scores, features)]
    exported = export.export(
        jax.jit(partial(smooth_queries, k=5)), platforms=("cpu", "cuda", "tpu")
    )(*arguments)
    loaded = export.deserialize(exported.serialize())
    np.testing.assert_array_equal(loaded.call(*arguments), smooth_queries(*arguments, 5))


# The package


def test_the_package_is_the_five_functions_and_a_version():
    smoothing = ["smooth", "smooth_queries", "smooth_sweep"]
    assert dns_jax.__all__ == ["diffuse", "diffuse_queries", *smoothing]
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert dns_jax.__version__ == project["version"]


def test_the_import_brings_no_audio_training_or_plotting_library():
    heavy = "chex flax optax orbax librosa soundfile sklearn scipy pandas matplotlib plotly numba"
    code = f"import sys, dns_jax; print([m for m in {heavy.split()} if m in sys.modules])"
    root = Path(__file__).parents[1]
    got = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert got.stdout.strip() == "[]", got.stdout + got.stderr


def test_the_signatures_are_the_contract():
    def arguments(function):
        return str(inspect.signature(function)).partition(" ->")[0]

    tail = "*, candidates=None, groups=None)"
    assert arguments(smooth) == f"(scores, features, k, {tail}"
    assert arguments(smooth_sweep) == f"(scores, features, ks, {tail}"
    assert arguments(smooth_queries) == (
        "(query_scores, query_features, pool_scores, pool_features, k, *, "
        "candidates=None, query_groups=None, pool_groups=None)"
    )
