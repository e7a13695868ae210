"""AUC and pAUC against rank counts and trapezoids; test_official.py has published results."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from dns_jax.evaluation.metrics import (
    compute_auc,
    compute_pauc,
    evaluate,
    harmonic_mean,
    section_hmean,
)


def count_auc(labels, scores):
    """Share of (anomalous, normal) pairs in the right order; ties count half."""
    pairs = np.subtract.outer(scores[labels == 1], scores[labels == 0])
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


def trapezoid_pauc(labels, scores, max_fpr):
    """McClish's pAUC from the ROC polygon, corner by corner, cut at `max_fpr`."""
    corners = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        corners.append((np.mean(called[labels == 0]), np.mean(called[labels == 1])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(corners):
        end = min(x1, max_fpr)
        if end > x0:
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    chance = max_fpr**2 / 2
    return (1 + (area - chance) / (max_fpr - chance)) / 2


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    return labels, np.round(rng.normal(labels, 1.5), 1)  # rounded: many ties


@pytest.fixture
def clips():
    """Two sections, the second in the target domain only, and one without labels."""
    rng = np.random.default_rng(1)
    section = np.repeat([3, 1, 7], [40, 20, 10])
    domain = np.where((section == 1) | (np.arange(70) % 3 == 0), "target", "source")
    label = np.where(section == 7, -1, rng.integers(0, 2, 70))
    frame = pd.DataFrame({"section": section, "domain": domain, "label": label})
    return frame.sample(frac=1, random_state=0)  # rows and index out of order


def test_auc_is_the_share_of_pairs_in_order(sample):
    labels, scores = sample
    assert compute_auc(labels, scores) == pytest.approx(count_auc(labels, scores), abs=1e-12)
    assert compute_auc(labels, -scores) == pytest.approx(1 - count_auc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0.1, 0.037, 0.5])
def test_pauc_is_the_standardised_area_left_of_max_fpr(sample, max_fpr):
    expected = trapezoid_pauc(*sample, max_fpr)
    assert compute_pauc(*sample, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-12)


def test_pauc_goes_to_ten_percent_unless_told(sample):
    assert compute_pauc(*sample) == compute_pauc(*sample, max_fpr=0.1)


def test_perfect_order_gives_one_and_equal_scores_a_half():
    labels = np.array([0, 0, 1, 1])
    for metric in (compute_auc, compute_pauc):
        assert metric(labels, [1, 2, 3, 4]) == 1.0
        assert metric(labels, [5, 5, 5, 5]) == 0.5


@pytest.mark.parametrize("metric", [compute_auc, compute_pauc])
def test_unknown_labels_and_missing_scores_are_left_out(sample, metric):
    labels, scores = sample
    more_labels = np.append(labels, [-1, -1, 0, 1])
    more_scores = np.append(scores, [99.0, np.nan, np.nan, np.nan])
    assert metric(more_labels, more_scores) == metric(labels, scores)


@pytest.mark.parametrize("metric", [compute_auc, compute_pauc])
@pytest.mark.parametrize(
    ("labels", "scores"),
    [([], []), ([0, 0], [1, 2]), ([1], [1]), ([-1, 0, 1], [1, 2, np.nan])],
)
def test_one_class_is_not_evaluable(metric, labels, scores):
    assert np.isnan(metric(labels, scores))


def test_infinite_scores_keep_their_place():
    labels = [0, 1, 0, 1, 1]
    infinite = [-np.inf, np.inf, 2.0, 1.0, np.inf]
    assert compute_auc(labels, infinite) == compute_auc(labels, [-9, 9, 2, 1, 9])


def test_labels_and_scores_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) labels, \(1,\) scores"):
        compute_auc([0, 1, 1], [1.0])


def test_harmonic_mean():
    assert harmonic_mean([1, 4, 4]) == pytest.approx(2)
    assert harmonic_mean([[0.5, np.nan], [1.0, np.nan]]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.0, 0.9, 0.0]) == 0
    assert np.isnan(harmonic_mean([np.nan]))
    assert np.isnan(harmonic_mean([]))


def test_evaluate_gives_each_domain_and_both_pooled(clips):
    scores = np.random.default_rng(2).normal(clips["label"].to_numpy())
    scores[clips["section"].to_numpy() == 3] += np.where(
        clips["domain"][clips["section"] == 3] == "target", 3, 0
    )
    for label in (0, 1):
        scores[np.flatnonzero((clips["section"] == 1) & (clips["label"] == label))[0]] = np.nan
    table = evaluate(clips, scores)
    assert list(table.columns) == ["section", "domain", "auc", "pauc", "n_normal", "n_anomaly"]
    assert list(zip(table["section"], table["domain"], strict=True)) == [
        (1, "target"), (1, "all"),
        (3, "source"), (3, "target"), (3, "all"),
        (7, "source"), (7, "target"), (7, "all"),
    ]  # fmt: skip
    labels = clips["label"].to_numpy()
    for row in table.itertuples():
        cell = (clips["section"] == row.section).to_numpy() & ~np.isnan(scores) & (labels >= 0)
        if row.domain != "all":
            cell &= (clips["domain"] == row.domain).to_numpy()
        assert row.n_normal == np.sum(labels[cell] == 0)
        assert row.n_anomaly == np.sum(labels[cell] == 1)
        if row.section == 7:
            assert (row.n_normal, row.n_anomaly) == (0, 0)
            assert np.isnan([row.auc, row.pauc]).all()
        else:
            assert row.auc == pytest.approx(count_auc(labels[cell], scores[cell]), abs=1e-12)
            pauc = trapezoid_pauc(labels[cell], scores[cell], 0.1)
            assert row.pauc == pytest.approx(pauc, abs=1e-12)


def test_section_hmean_pools_the_domains_of_the_sections_named(clips):
    scores = np.random.default_rng(3).normal(clips["label"].to_numpy())
    table = evaluate(clips, scores)
    pooled = table[table["domain"] == "all"].set_index("section")[["auc", "pauc"]].to_numpy()
    assert section_hmean(clips, scores, [1, 3, 7]) == pytest.approx(4 / np.sum(1 / pooled[:2]))
    assert section_hmean(clips, scores, [3]) == pytest.approx(2 / np.sum(1 / pooled[1]))
    for nothing in ([], [7], [99]):
        assert np.isnan(section_hmean(clips, scores, nothing))


def test_scores_that_are_not_one_per_clip_are_refused(clips):
    with pytest.raises(ValueError, match=r"one per clip, \[70\], but are \(69,\)"):
        section_hmean(clips, np.zeros(69), [1])
    with pytest.raises(ValueError, match=r"one per clip, \[70\], but are \(70, 1\)"):
        evaluate(clips, np.zeros((70, 1)))
