"""`evaluation.pools` against scikit-learn, and eq. 7 by hand on what was drawn."""

import chex
import jax
import numpy as np
import pytest
from machine import make_machine, smooth_by_hand
from sklearn.metrics import roc_auc_score

from dns_jax.evaluation import pools as pools_module
from dns_jax.evaluation.pools import (
    count_own_windows,
    list_ks,
    measure_draws,
    measure_pool,
    measure_ranking,
    stack_pools,
)

COUNTS = {
    ("train", 0, "source"): (4, 0),
    ("test", 0, "source"): (7, 6),
    ("test", 0, "target"): (5, 6),
    ("test", 2, "source"): (6, 4),
    ("test", 2, "target"): (3, 5),
    ("test", 4, "source"): (2, 2),
}


def stack(unit="segment", scope="section", sections=(0, 2)):
    _, segments = make_machine(COUNTS)
    return segments, stack_pools(segments, sections, unit, scope)


@pytest.mark.parametrize("values", [1000, 6])  # hardly any ties, many ties
def test_auc_and_pauc_are_scikit_learns_with_and_without_ties(values):
    rng = np.random.default_rng(values)
    rank = jax.jit(measure_ranking)
    for _ in range(50):
        labels = rng.integers(0, 2, 60)
        labels[:2] = 0, 1
        scores = rng.integers(0, values, 60).astype(np.float32)
        counted = rng.uniform(size=60) < 0.7
        counted[:2] = True
        auc, pauc = rank(labels == 1, scores, counted)
        labels, scores = labels[counted], scores[counted]
        assert auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert pauc == pytest.approx(roc_auc_score(labels, scores, max_fpr=0.1), abs=1e-6)


def test_a_ranking_of_one_class_or_without_a_score_says_nothing():
    scores = np.array([1, np.nan, 3], np.float32)
    assert np.isnan(measure_ranking(np.ones(3, bool), scores, np.ones(3, bool))).all()
    labels = np.array([False, True, False])
    assert np.isnan(measure_ranking(labels, scores, np.ones(3, bool))).all()
    labels = np.array([False, True, True])
    assert measure_ranking(labels, scores, np.ones(3, bool)) == (1, 1)


@pytest.mark.parametrize("scope", ["section", "machine"])
@pytest.mark.parametrize("own_windows", [True, False])
def test_a_drawn_pool_is_smoothed_and_evaluated_as_by_hand(scope, own_windows):
    segments, pools = stack(scope=scope)
    rng = np.random.default_rng(3)
    drawn = rng.uniform(size=len(pools.label)) < 0.6
    ks = (1, 2, 8)
    every_row = np.arange(pools.clip.size).reshape(pools.clip.shape)
    groups = every_row if own_windows else pools.clip
    measured = measure_pool(pools, groups.astype(np.int32), drawn, ks=ks, sections=2)

    everything = np.isin(segments.section, (0, 2)) | (scope == "machine")
    test = segments.select((segments.split == "test") & everything)
    names = np.unique(test.clip)
    in_pool = np.isin(test.clip, names[drawn])
    for d, data in enumerate(("source", "all")):
        candidates = in_pool & ((test.domain == "source") | (data == "all"))
        for i, k in enumerate(ks):
            a_prop = []
            for row in range(len(test.clip)):
                other = candidates & (np.arange(len(test.clip)) != row)
                if scope == "section":
                    other &= test.section == test.section[row]
                if not own_windows:
                    other &= test.clip != test.clip[row]
                pool = test.ae_score[other], test.feature[other]
                a_prop.append(smooth_by_hand(test.ae_score[row], test.feature[row], *pool, k))
            scores = np.array([np.mean(np.array(a_prop)[test.clip == name]) for name in names])
            for s, section in enumerate((0, 2)):
                here = np.array([test.section[test.clip == n][0] == section for n in names])
                for e, evaluated in enumerate((here & drawn, here)):
                    labels = pools.label[evaluated]
                    assert measured[e, d, i, s] == pytest.approx(
                        [
                            roc_auc_score(labels, scores[evaluated]),
                            roc_auc_score(labels, scores[evaluated], max_fpr=0.1),
                        ],
                        abs=1e-5,
                    )


def test_a_k_beyond_the_smallest_drawn_pool_is_not_measured():
    _, pools = stack()
    drawn = np.ones(len(pools.label), bool)
    rows = np.arange(pools.clip.size, dtype=np.int32).reshape(pools.clip.shape)
    there = pools.clip < len(pools.label)
    source = [
        np.sum(pools.source[clip[here]]) for clip, here in zip(pools.clip, there, strict=True)
    ]
    ks = (int(min(source)), int(min(source)) + 1)
    measured = np.asarray(measure_pool(pools, rows, drawn, ks=ks, sections=2))
    assert np.isfinite(measured[:, 0, 0]).all()
    assert np.isnan(measured[:, 0, 1]).all()
    assert np.isfinite(measured[:, 1]).all()


def test_ks_are_powers_of_two_up_to_the_smallest_pool():
    segments, pools = stack()
    smallest = min(
        np.sum((segments.split == "test") & (segments.section == section)) for section in (0, 2)
    )
    assert list_ks(pools)[-1] <= smallest < 2 * list_ks(pools)[-1]


def test_a_pool_of_recordings_has_one_row_for_each():
    _, pools = stack(unit="clip", scope="machine")
    assert pools.score.shape == (1, len(pools.label))
    assert sorted(pools.clip[0]) == list(range(len(pools.label)))


@pytest.mark.parametrize("data", ["source", "all"])
def test_own_windows_among_the_neighbours_are_counted_as_by_hand(data):
    segments, pools = stack()
    test = segments.select((segments.split == "test") & np.isin(segments.section, (0, 2)))
    counted = count_own_windows(pools, (1, 2, 4, 16), data)
    assert np.isnan(counted[0])
    assert np.isnan(count_own_windows(pools, (1024,), data)).all()
    for k, share in zip((2, 4, 16), counted[1:], strict=True):
        own = []
        for row in range(len(test.clip)):
            allowed = (test.section == test.section[row]) & (np.arange(len(test.clip)) != row)
            allowed &= (test.domain == "source") | (data == "all")
            rows = np.flatnonzero(allowed)
            distance = np.sum((test.feature[rows].astype(float) - test.feature[row]) ** 2, axis=1)
            nearest = rows[np.argsort(distance, kind="stable")[: k - 1]]
            own.append(np.mean(test.clip[nearest] == test.clip[row]))
        assert share == pytest.approx(np.mean(own), abs=1e-6)


def test_one_program_serves_all_draws_and_both_ways_to_count_windows(monkeypatch):
    _, pools = stack()
    traced = chex.assert_max_traces(pools_module.measure_pool.__wrapped__, n=1)
    monkeypatch.setattr(
        pools_module, "measure_pool", jax.jit(traced, static_argnames=("ks", "sections"))
    )
    drawn = np.random.default_rng(0).uniform(size=(5, len(pools.label))) < 0.7
    for own_windows in (True, False):
        assert measure_draws(pools, drawn, (1, 4), own_windows).shape == (5, 2, 2, 2)
