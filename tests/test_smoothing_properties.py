"""Eq. 7 on whatever hypothesis comes up with, against the stable sort in float64."""

import numpy as np
import pytest
from eq7 import oracle_queries
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dns_jax import smooth, smooth_queries, smooth_sweep
from dns_jax.smoothing import _search

FORMS = {"ranking": _search.sum_by_rank, "counting": _search.sum_by_count}
SHAPES = st.sampled_from([(1, 1), (9, 1), (40, 2), (70, 3)])  # few: each is compiled
SMALL = st.integers(-3, 3).map(float)  # all arithmetic is exact
SCORES = st.floats(-1000, 1000, width=16)
WILD = st.one_of(SMALL, st.sampled_from([np.nan, np.inf, -np.inf]))


@pytest.fixture(autouse=True, params=FORMS, scope="module")
def form(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_search.FORMS, "cpu", FORMS[request.param])
        yield


@st.composite
def pools(draw, values=SMALL):
    rows, dimensions = draw(SHAPES)
    return {
        "scores": draw(arrays(np.float32, rows, elements=SCORES)),
        "features": draw(arrays(np.float32, (rows, dimensions), elements=values)),
        "candidates": draw(arrays(bool, rows)),
        "groups": draw(arrays(np.int32, rows, elements=st.integers(0, 3))),
        "k": draw(st.sampled_from([1, min(2, rows), max(1, rows // 3), rows])),
    }


def expect(scores, features, candidates, groups, k):
    return oracle_queries(scores, features, scores, features, k, candidates, groups, groups)


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@given(pools())
@settings(max_examples=60, deadline=None)
def test_the_neighbours_are_those_of_a_stable_sort(pool):
    assert_close(smooth(**pool), expect(**pool))


@given(pools(WILD))
@settings(max_examples=60, deadline=None)
def test_non_finite_features_are_nobodys_neighbours(pool):
    assert_close(smooth(**pool), expect(**pool))


@given(pools(), st.sampled_from([2.0**-90, 1e-3, 1e7, 2.0**90]))
@settings(max_examples=40, deadline=None)
def test_scores_of_any_size_are_averaged(pool, scale):
    pool["scores"] = np.float32(pool["scores"] * scale)
    expected = expect(**pool)
    tolerance = 1e-5 * np.abs(pool["scores"]).max() + 1e-37
    np.testing.assert_allclose(smooth(**pool), expected, rtol=1e-5, atol=tolerance)


@given(pools(), st.permutations(range(3)))
@settings(max_examples=40, deadline=None)
def test_a_sweep_and_queries_agree_with_it(pool, order):
    k = pool.pop("k")
    ks = [(1, k, len(pool["scores"]))[i] for i in order]
    got = np.asarray(smooth_sweep(**pool, ks=ks))
    expected = np.stack([smooth(**pool, k=k) for k in ks])
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-4)
    s, f, g = pool["scores"], pool["features"], pool["groups"]
    answers = smooth_queries(
        s, f, s, f, k, candidates=pool["candidates"], query_groups=g, pool_groups=g
    )
    np.testing.assert_allclose(answers, smooth(**pool, k=k), rtol=2e-6, atol=2e-4)
