"""A growing F against `smooth`, `smooth_queries` and a stable sort of float64 distances."""

import chex
import jax
import numpy as np
import pytest
from eq7 import oracle, oracle_queries
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax import smooth, smooth_queries
from dns_jax.operation import distances, neighbors
from dns_jax.operation.neighbors import Neighborhood

ROWS = 96  # what `smooth` is given: the rows held, and others that are no candidates


@pytest.fixture
def small(monkeypatch):
    """Few places and small blocks, so that short sequences fill and move them often."""
    monkeypatch.setattr(neighbors, "FIRST_CAPACITY", 16)
    monkeypatch.setattr(distances, "BLOCKS", (2, 4))


class Held:
    """What a `Neighborhood` should hold, as plain rows."""

    def __init__(self, k, capped, grouped=False, within=False, dimensions=2):
        self.pool = Neighborhood(dimensions, k, capped=capped, within_groups=within)
        self.k, self.capped, self.grouped = k, capped, grouped
        self.kept_apart = grouped and not within
        self.scores, self.features = np.zeros(0, np.float32), np.zeros((0, dimensions), np.float32)
        self.candidates, self.groups = np.zeros(0, bool), np.zeros(0, int)

    def append(self, scores, features, candidates, groups):
        given = groups if self.grouped else None
        self.pool.append(scores, features, candidates=candidates, groups=given)
        self.scores = np.append(self.scores, np.float32(scores))
        self.features = np.concatenate([self.features, np.float32(features)])
        self.candidates = np.append(self.candidates, candidates)
        self.groups = np.append(self.groups, groups)

    def evict(self, gone):
        self.pool.evict(gone)
        for name in ("scores", "features", "candidates", "groups"):
            setattr(self, name, getattr(self, name)[~gone])

    @property
    def effective_k(self):
        usable = int(np.sum(self.candidates & np.isfinite(self.features).all(axis=1)))
        return min(self.k, max(1, usable // 5)) if self.capped else self.k

    def expect(self):
        """Score by the oracle, and count neighbours one by one."""
        groups = self.groups if self.kept_apart else None
        expected = oracle(self.scores, self.features, self.effective_k, self.candidates, groups)
        behind = []
        for row, feature in enumerate(self.features):
            others = self.candidates & np.isfinite(self.features).all(axis=1)
            others[row] = False
            if self.kept_apart:
                others &= self.groups != self.groups[row]
            there = np.isfinite(feature).all() * min(self.effective_k - 1, others.sum())
            behind.append(int(there))
        return expected, behind

    def smooth(self):
        """`smooth` on the rows held, in one shape."""
        lacking = ROWS - len(self.scores)
        groups = self.groups if self.kept_apart else np.arange(len(self.scores))
        return np.asarray(
            smooth(
                np.pad(self.scores, (0, lacking)),
                np.pad(self.features, [(0, lacking), (0, 0)]),
                self.effective_k,
                candidates=np.pad(self.candidates, (0, lacking)),
                groups=np.pad(groups, (0, lacking), constant_values=-1),
            )
        )[: len(self.scores)]

    def check(self, by_smooth=True):
        score, behind = self.pool.refresh()
        expected, counts = self.expect()
        np.testing.assert_allclose(score, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(behind, counts)
        if by_smooth:
            np.testing.assert_allclose(score, self.smooth(), rtol=2e-6, atol=1e-5)
        some = np.arange(len(score)) % 3 == 1
        np.testing.assert_array_equal(self.pool.refresh(some)[0], score[some])

    def check_queries(self, scores, features, groups):
        answer = self.pool.query(scores, features, groups=groups if self.grouped else None)
        both = (groups, self.groups) if self.grouped else (None, None)
        expected = oracle_queries(
            scores, features, self.scores, self.features, self.effective_k, self.candidates, *both
        )
        np.testing.assert_allclose(answer.score, expected, rtol=1e-6, atol=1e-6)
        for row, feature in enumerate(features):
            near = answer.rows[row, : answer.behind[row]]
            assert (answer.rows[row, answer.behind[row] :] == -1).all()
            squared = ((self.features[near] - feature) ** 2).sum(axis=1)
            np.testing.assert_array_equal(answer.squared[row, : len(near)], squared)
            mean = np.append(self.scores[near].astype(float), scores[row]).mean()
            if np.isfinite(feature).all():
                np.testing.assert_allclose(answer.score[row], mean, rtol=1e-6, atol=1e-6)


def draw_rows(rng, rows, wild=False):
    features = rng.integers(-2, 3, (rows, 2)).astype(float)  # many ties; all arithmetic is exact
    if wild:
        features[rng.random(rows) < 0.2, 0] = rng.choice([np.nan, np.inf, -np.inf])
    scores = rng.normal(size=rows).astype(np.float32)
    return scores, features, rng.random(rows) < 0.8, rng.integers(0, 6, rows)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "evict first", "evict some", "refresh", "refresh some", "query"]
        ),
        st.integers(1, 11),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.usefixtures("small")
@given(
    steps=STEPS,
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 2, 5, 12]),
    capped=st.booleans(),
    grouped=st.booleans(),
    within=st.booleans(),
    wild=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_after_any_steps_it_is_smooth_on_the_rows_held(
    steps, seed, k, capped, grouped, within, wild
):
    rng = np.random.default_rng(seed)
    held = Held(k, capped, grouped, within)
    for step, rows in steps:
        if step == "refresh some" and len(held.scores):
            held.pool.refresh(rng.random(len(held.scores)) < rows / 20)
        elif step == "append" and len(held.scores) + rows <= ROWS:
            held.append(*draw_rows(rng, rows, wild))
        elif step == "evict first":
            held.evict(np.arange(len(held.scores)) < rows)
        elif step == "evict some":
            held.evict(rng.random(len(held.scores)) < rows / 20)
        elif step == "refresh" and len(held.scores) >= held.effective_k:
            held.check()
        elif step == "query":
            scores, features, _, groups = draw_rows(rng, rows, wild)
            held.check_queries(scores, features, groups)
        assert len(held.pool) == len(held.scores)
    if len(held.scores) >= held.effective_k:
        held.check()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("k", [2, 12])
def test_lists_stay_whole_while_a_pool_grows_and_shrinks(k, grouped):
    rng = np.random.default_rng(k)
    held = Held(k, capped=False, grouped=grouped)
    for round_ in range(30):
        rows = int(rng.integers(1, 30)) if len(held.scores) < 60 else 1
        held.append(*draw_rows(rng, rows))
        if round_ % 3:
            held.check(by_smooth=False)
        if round_ % 4 == 3:
            held.evict(rng.random(len(held.scores)) < 0.8)
            held.check(by_smooth=False)


@pytest.mark.usefixtures("small")
def test_a_pool_at_its_limit_stays_exact_and_in_its_memory():
    rng = np.random.default_rng(0)
    held = Held(5, capped=True)
    held.append(*draw_rows(rng, 40))
    sizes = []
    for _ in range(40):
        held.append(*draw_rows(rng, 3))
        held.evict(np.arange(len(held.scores)) < 3)
        held.check()
        sizes.append(held.pool.bytes)
    assert len(set(sizes)) == 1


@pytest.mark.usefixtures("small")
def test_memory_is_given_back_after_large_evictions():
    held = Held(5, capped=True)
    before = held.pool.bytes
    rng = np.random.default_rng(0)
    for _ in range(10):
        held.append(*draw_rows(rng, 9))
    large = held.pool.bytes
    held.evict(np.arange(len(held.scores)) < 85)
    while held.pool.bytes == large:
        held.append(*draw_rows(rng, 1))
        held.evict(np.arange(len(held.scores)) < 1)
    assert held.pool.bytes <= 2 * before
    held.check()


def test_random_features_differ_from_smooth_by_rounding_only():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=500).astype(np.float32)
    features = (rng.normal(size=(500, 24)) + 3).astype(np.float32)
    pool = Neighborhood(24, 16)
    for first in range(0, 500, 7):
        pool.append(scores[first : first + 7], features[first : first + 7])
        if first > 300:
            pool.refresh()
    gone = np.arange(500) % 11 == 3
    pool.evict(gone)
    score, behind = pool.refresh()
    kept = scores[~gone], features[~gone]
    np.testing.assert_allclose(score, oracle(*kept, 16), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(score, smooth(*kept, 16), rtol=1e-5, atol=1e-6)
    assert (behind == 15).all()
    queries = rng.normal(size=(70, 24)).astype(np.float32) + 3
    got = pool.query(scores[:70], queries).score
    np.testing.assert_allclose(got, oracle_queries(scores[:70], queries, *kept, 16), rtol=1e-5)
    np.testing.assert_allclose(
        got, smooth_queries(scores[:70], queries, *kept, 16), rtol=1e-5, atol=1e-6
    )


def test_rows_that_are_no_candidates_are_smoothed_and_nobodys_neighbours():
    pool = Neighborhood(1, 3, capped=False)
    pool.append([1.0, 2.0], [[0.0], [1.0]])
    pool.append([100.0], [[0.5]], candidates=False)
    score, behind = pool.refresh()
    np.testing.assert_allclose(score, [1.5, 1.5, 103 / 3])
    assert behind.tolist() == [1, 1, 2]
    pool.append([3.0], [[0.5]])
    score, _ = pool.refresh()
    np.testing.assert_allclose(score, [2, 2, 104 / 3, 2])


def test_a_cold_pool_says_how_many_neighbours_stood_behind():
    pool = Neighborhood(1, 32)
    answer = pool.query([2.0], [[0.0]])
    assert (answer.score.tolist(), answer.behind.tolist()) == ([2.0], [0])
    pool.append(np.arange(14.0), np.arange(14.0)[:, None])
    answer = pool.query([2.0], [[0.0]])
    assert (answer.score.tolist(), answer.behind.tolist()) == ([1.0], [1])
    assert pool.effective_k == 2
    uncapped = Neighborhood(1, 32, capped=False)
    uncapped.append(np.arange(14.0), np.arange(14.0)[:, None])
    answer = uncapped.query([2.0], [[0.0]])
    assert (answer.score.tolist(), answer.behind.tolist()) == ([93 / 15], [14])


def test_k_grows_with_the_pool_also_for_rows_that_were_there():
    held = Held(12, capped=True)
    rng = np.random.default_rng(2)
    ks = []
    for _ in range(9):
        held.append(*draw_rows(rng, 10))
        held.check(by_smooth=False)
        ks.append(held.pool.effective_k)
    assert ks[0] < 3
    assert ks[-1] == 12


def test_features_of_any_size_are_compared():
    pool = Neighborhood(2, 3, capped=False)
    pool.append([1.0, 2.0, 4.0, 8.0], [[1e30, 0], [-1e30, 0], [0, 0], [1, 0]])
    score, behind = pool.refresh()
    assert behind.tolist() == [2, 2, 2, 2]
    # From afar all others are equally far away, and the earlier rows count.
    np.testing.assert_allclose(score, [7 / 3, 7 / 3, 13 / 3, 13 / 3])


def test_non_finite_scores_reach_only_the_rows_that_count_them():
    pool = Neighborhood(1, 2, capped=False)
    pool.append(
        [np.nan, 1.0, np.inf, -np.inf, 3.0, 5.0], [[0.0], [1.0], [9.0], [9.5], [20.0], [21]]
    )
    score, _ = pool.refresh()
    np.testing.assert_array_equal(score, [np.nan, np.nan, np.nan, np.nan, 4, 4])


def test_a_search_that_was_stopped_goes_on():
    rng = np.random.default_rng(3)
    held = Held(5, capped=True)
    for _ in range(9):
        held.append(*draw_rows(rng, 10))

    calls = []

    def pause():
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held.pool.refresh(pause=pause)
    held.append(*draw_rows(rng, 6))
    held.check()


def test_no_recording_makes_anything_compile(monkeypatch):
    for name in ("compare", "put", "take"):  # of a recording, and of many rows
        traced = chex.assert_max_traces(getattr(distances, name).__wrapped__, n=2)
        monkeypatch.setattr(distances, name, jax.jit(traced))
    rng = np.random.default_rng(4)
    pool = Neighborhood(3, 4)
    pool.append(rng.normal(size=200), rng.normal(size=(200, 3)))
    for rows in (7, 1, 3, 8, 7, 2):
        features = rng.normal(size=(rows, 3))
        pool.query(np.zeros(rows), features)
        pool.append(np.zeros(rows), features)
        pool.refresh()
        pool.evict(rng.random(len(pool)) < 0.1)
    assert pool._features.shape == (16, 1024)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool: pool.append([1.0], [[1.0]]), r"features \[rows, 2\].*\(1, 1\)"),
        (lambda pool: pool.query([1.0, 2.0], [[1.0, 2.0]]), r"\(2,\) and \(1, 2\)"),
        (lambda pool: pool.append([1.0], [[1.0, 2.0]], groups=[1, 2]), r"groups must be \[1\]"),
        (lambda pool: pool.evict(np.ones(2, bool)), r"gone must be bool\[0\]"),
        (lambda pool: Neighborhood(2, 0), "at least 1; it was 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    pool = Neighborhood(2, 3)
    with pytest.raises(ValueError, match=message):
        call(pool)
    assert len(pool) == 0
