"""The exact search by number, against a stable sort of float64 distances in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dns_jax.smoothing import _search
from dns_jax.smoothing._arguments import Rows
from dns_jax.smoothing._nearest import WIDTH, choose_largest, find_nearest


def find(features, n, candidates=None, groups=None, queries=None, query_groups=None):
    """Search a pool for its own rows, or for queries: int[queries, n] and float[queries, n]."""
    pool = Rows(None, jnp.asarray(features, np.float32), groups)
    if queries is not None:
        queries = Rows(None, jnp.asarray(queries, np.float32), query_groups)
        return [np.asarray(x) for x in find_nearest(queries, pool, candidates, n)]
    found = find_nearest(pool, pool, candidates, n, np.arange(len(features)))
    return [np.asarray(x) for x in found]


def oracle(features, n, allowed, queries=None):
    queries = features if queries is None else queries
    neighbours = np.full((len(queries), n), len(features))
    for i, query in enumerate(queries):
        rows = np.flatnonzero(allowed[i])
        distances = np.square(features[rows] - query).sum(axis=1)
        nearest = rows[np.argsort(distances, kind="stable")[:n]]
        neighbours[i, : len(nearest)] = np.sort(nearest)
    return neighbours


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("values", [1, 2, 50])
@pytest.mark.parametrize("groups", [4, 50])
def test_the_largest_are_those_of_a_stable_sort(groups, values, n):
    array = np.random.default_rng(0).integers(0, values, (WIDTH * groups, 16)) * 1.0
    largest, rows = jax.jit(choose_largest, static_argnums=1)(np.float32(array), n)
    expected = np.argsort(-array, axis=0, kind="stable")[:n].T
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(largest, np.take_along_axis(array.T, expected, axis=1))


@pytest.mark.parametrize(("rows", "n"), [(30, 1), (30, 29), (100, 3), (1111, 10), (1111, 34)])
@pytest.mark.parametrize("restricted", [False, True])
def test_neighbours_are_those_of_a_stable_sort_where_most_are_tied(rows, n, restricted):
    rng = np.random.default_rng(rows)
    features = rng.integers(-2, 3, (rows, 3))
    candidates = rng.random(rows) < 0.5 if restricted else None
    groups = rng.permutation(rows) // 4 if restricted else np.arange(rows)
    neighbours, squares = find(features, n, candidates, groups if restricted else None)
    allowed = (groups[:, None] != groups) & (candidates if restricted else True)
    expected = oracle(features, n, allowed)
    np.testing.assert_array_equal(neighbours, expected)
    of_neighbours = features[np.minimum(expected, rows - 1)]
    distances = np.square(features[:, None] - of_neighbours).sum(axis=2)
    ratio = squares / np.where(expected < rows, np.maximum(distances, 1), np.inf)
    assert len(np.unique(ratio[(distances > 0) & (expected < rows)])) <= 1  # some power of two
    assert (squares[(distances == 0) | (expected == rows)] == 0).all()


@pytest.mark.parametrize("candidates", [[], [700], [31, 32, 33], range(64, 96)])
def test_few_candidates_in_few_groups_are_all_found(candidates):
    features = np.random.default_rng(0).integers(0, 9, (1000, 2))
    mask = np.isin(np.arange(1000), candidates)
    neighbours, _ = find(features, 10, mask)
    allowed = mask & ~np.eye(1000, dtype=bool)
    np.testing.assert_array_equal(neighbours, oracle(features, 10, allowed))


def test_queries_have_neighbours_of_other_groups_in_the_pool():
    rng = np.random.default_rng(0)
    features, queries = rng.integers(0, 9, (700, 2)), rng.integers(0, 9, (33, 2))
    groups, query_groups = rng.integers(0, 5, 700), rng.integers(0, 5, 33)
    neighbours, _ = find(features, 9, None, groups, queries, query_groups)
    allowed = query_groups[:, None] != groups
    np.testing.assert_array_equal(neighbours, oracle(features, 9, allowed, queries))


def test_rows_that_are_not_finite_are_found_by_nobody():
    features = np.random.default_rng(0).integers(0, 3, (400, 2)) * 1.0
    features[[0, 5, 200], 1] = np.nan, np.inf, -np.inf
    neighbours, _ = find(features, 4)
    assert not np.isin(neighbours, [0, 5, 200]).any()


def test_a_zero_of_either_sign_does_not_decide_a_tie():
    features = np.array([[0.0], [-6.0], [-3.0], [9.0]])  # rows 0 and 1 are equally far from row 2
    assert find(features, 1)[0][2] == 0


def test_squares_are_0_between_duplicates_and_as_exact_as_the_differences_elsewhere():
    rng = np.random.default_rng(0)
    features = np.float32(1000 + rng.standard_normal((400, 64)))
    features[1::2] = features[::2]
    features[3::4, 0] += np.float32(2**-10)
    neighbours, squares = find(features, 1)
    np.testing.assert_array_equal(neighbours[:, 0], np.arange(400) ^ 1)
    assert (squares[0::4] == 0).all()
    assert (squares[2::4] > 0).all()
    np.testing.assert_allclose(squares[2::4], squares[2, 0], rtol=1e-6)


def test_float64_features_are_told_apart_in_float64():
    features = np.array([[0.0], [1 + 1e-12], [1 - 1e-12], [2.0]])
    with jax.enable_x64(True):
        rows = Rows(None, jnp.asarray(features), None)
        neighbours, squares = find_nearest(rows, rows, None, 1, jnp.arange(4))
    assert squares.dtype == np.float64
    np.testing.assert_array_equal(neighbours[:, 0], [2, 2, 1, 1])


@pytest.mark.parametrize("rows_in_a_block", [1, 7])
def test_the_size_of_the_blocks_does_not_show(monkeypatch, rows_in_a_block):
    size = 101 + rows_in_a_block  # compiled by nobody else
    features = np.random.default_rng(0).integers(-2, 3, (size, 3))
    monkeypatch.setattr(_search, "QUERIES", rows_in_a_block)
    rows = Rows(None, jnp.asarray(features, np.float32), None)
    jaxpr = str(jax.make_jaxpr(lambda: find_nearest(rows, rows, None, 3, np.arange(size)))())
    assert f"f32[128,{rows_in_a_block}]" in jaxpr
    np.testing.assert_array_equal(
        find(features, 3)[0], oracle(features, 3, ~np.eye(size, dtype=bool))
    )


def test_memory_is_rows_times_block(monkeypatch):
    budget = 4 * 2**20
    monkeypatch.setattr(_search, "BLOCK_BYTES", budget)
    rows = Rows(None, jax.ShapeDtypeStruct((4099, 8), "float32"), None)  # compiled by nobody else
    for n in (10, 1000):
        lowered = find_nearest.lower(rows, rows, None, n, np.arange(4099))
        memory = lowered.compile().memory_analysis().temp_size_in_bytes
        assert memory < 2 * budget + 2 * 4099 * n * 8
        sizes = [
            np.prod([int(x) for x in shape.split("x")])
            for shape in re.findall(r"tensor<([\dx]+)x[fi]\d+>", lowered.as_text())
        ]
        assert max(sizes) < 4099 * max(4099 // 4, 2 * n)
