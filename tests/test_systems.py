"""SerialOE and Proposed over hand-made segments, held against loops in NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from machine import make_machine, smooth_by_hand
from sklearn.mixture import GaussianMixture

from dns_jax.evaluation.systems import (
    average_segments,
    fit_inliers,
    score_by_inliers,
    smooth_candidates,
    smooth_training,
)
from dns_jax.parallel import make_mesh

MESH = make_mesh(8)
COUNTS = {
    ("train", 0, "source"): (8, 0),
    ("train", 0, "target"): (2, 0),
    ("train", 3, "source"): (5, 0),
    ("train", 3, "target"): (3, 0),
    ("test", 0, "source"): (3, 2),
    ("test", 0, "target"): (2, 2),
    ("test", 3, "source"): (2, 2),
    ("test", 3, "target"): (4, 1),
}


@pytest.fixture(scope="module")
def machine():
    clips, segments = make_machine(COUNTS)
    trained, tested = (segments.select(segments.split == split) for split in ("train", "test"))
    return clips, segments, trained, tested


def take(unit, scope):
    return SimpleNamespace(unit=unit, scope=scope)


def names(clips, split):
    return clips["clip"][clips["split"] == split].tolist()


# Recordings


def test_the_score_of_a_recording_is_the_mean_over_its_segments():
    scores = np.array([1, 2, 6, 10], np.float32)
    clip = np.array(["a", "b", "b", "a"])
    np.testing.assert_array_equal(average_segments(scores, clip, ["b", "a"]), [4, 5.5])


def test_a_recording_without_segments_has_no_score():
    means = average_segments(np.ones(1, np.float32), np.array(["a"]), ["b", "a"])
    np.testing.assert_array_equal(means, [np.nan, 1])


def test_means_are_taken_in_float64():
    scores = np.array([2.0**24, 1, 1], np.float32)  # 2^24 + 1 is not a float32
    clip = np.array(["a", "a", "a"])
    assert average_segments(scores, clip, ["a"])[0] == (2.0**24 + 2) / 3


# SerialOE


def test_h_is_fitted_per_section_on_the_data_of_each_candidate(machine):
    _, segments, _, _ = machine
    fitted = fit_inliers(segments, segments.split == "train", (1, 2), 7, pytest.fail)
    assert {*fitted} == {(1, "source"), (1, "all"), (2, "source"), (2, "all")}
    for (clusters, data), of_section in fitted.items():
        assert {*of_section} == {0, 3}
        for section, ours in of_section.items():
            rows = (segments.split == "train") & (segments.section == section)
            rows &= (segments.domain == "source") | (data == "all")
            theirs = GaussianMixture(clusters, random_state=7).fit(
                segments.feature[rows].astype(np.float64)
            )
            np.testing.assert_array_equal(ours.means_, theirs.means_)


def test_h_sees_only_the_segments_that_it_may(machine):
    _, segments, _, _ = machine
    allowed = (segments.split == "train") & (np.arange(len(segments.clip)) % 2 == 0)
    ours = fit_inliers(segments, allowed, (1,), 0, pytest.fail)[1, "all"][3]
    rows = allowed & (segments.section == 3)
    np.testing.assert_allclose(ours.means_[0], segments.feature[rows].mean(0), rtol=1e-5)


def test_a_candidate_that_cannot_be_fitted_in_some_section_is_dropped_with_a_line(machine):
    _, segments, _, _ = machine
    training = segments.split == "train"
    rows = [
        np.sum(training & (segments.section == s) & (segments.domain == "source")) for s in (0, 3)
    ]
    assert rows[0] != rows[1]
    lines = []
    fitted = fit_inliers(segments, training, (1, int(max(rows)), 10_000), 0, lines.append)
    assert {*fitted} == {(1, "source"), (1, "all"), (max(rows), "all")}
    assert [line.split(" cannot")[0] for line in lines] == [
        f"SerialOE: {max(rows)} clusters on source data",
        "SerialOE: 10000 clusters on source data",
        "SerialOE: 10000 clusters on all data",
    ]
    assert all("\n" not in line for line in lines)


def test_without_source_recordings_in_a_section_only_all_data_remain():
    _, segments = make_machine(
        {("train", 0, "source"): (5, 0), ("train", 1, "target"): (5, 0)},
    )
    lines = []
    fitted = fit_inliers(segments, segments.split == "train", (1,), 0, lines.append)
    assert {*fitted} == {(1, "all")}
    assert len(lines) == 1


def test_a_segment_is_scored_by_the_h_of_its_section(machine):
    _, segments, _, _ = machine
    inliers = fit_inliers(segments, segments.split == "train", (1,), 0, pytest.fail)[1, "all"]
    scores = score_by_inliers(segments, inliers)
    for section, h in inliers.items():
        rows = segments.section == section
        difference = segments.feature[rows] - h.means_[0]
        precision = np.linalg.inv(h.covariances_[0])
        expected = 0.5 * (
            np.einsum("ni,ij,nj->n", difference, precision, difference)
            + np.log(np.linalg.det(2 * np.pi * h.covariances_[0]))
        )
        np.testing.assert_allclose(scores[rows], expected, rtol=1e-6)


def test_a_segment_of_a_section_without_h_has_no_score(machine):
    _, segments, _, _ = machine
    inliers = fit_inliers(segments, segments.split == "train", (1,), 0, pytest.fail)[1, "all"]
    scores = score_by_inliers(segments, {0: inliers[0]})
    np.testing.assert_array_equal(np.isnan(scores), segments.section == 3)


# Proposed


def by_recording(segments):
    """Score, feature, section and domain of every recording, in the order of their names."""
    for name in np.unique(segments.clip):
        rows = segments.clip == name
        yield (
            segments.ae_score[rows].astype(np.float64).mean(),
            segments.feature[rows].astype(np.float64).mean(0),
            segments.section[rows][0],
            segments.domain[rows][0],
        )


def pool_by_hand(segments, unit):
    if unit == "segment":
        return segments.ae_score, segments.feature, segments.section, segments.domain
    return tuple(np.array(column) for column in zip(*by_recording(segments), strict=True))


@pytest.mark.parametrize("scope", ["section", "machine"])
@pytest.mark.parametrize("unit", ["segment", "clip"])
def test_every_candidate_is_equation_7_over_the_pool_of_its_unit_scope_and_data(
    machine, unit, scope
):
    clips, _, _, tested = machine
    asked = names(clips, "test")
    smoothed = smooth_candidates(tested, take(unit, scope), asked, MESH)
    score, feature, section, domain = pool_by_hand(tested, unit)
    for (k, data), ours in smoothed.items():
        expected = np.empty(len(score))
        for i in range(len(score)):
            others = (np.arange(len(score)) != i) & ((domain == "source") | (data == "all"))
            others &= (section == section[i]) | (scope == "machine")
            expected[i] = smooth_by_hand(score[i], feature[i], score[others], feature[others], k)
        rows_of = tested.clip if unit == "segment" else np.unique(tested.clip)
        means = [expected[rows_of == name].mean() for name in asked]
        np.testing.assert_allclose(ours, means, rtol=1e-5, err_msg=f"{k} {data}")


@pytest.mark.parametrize("scope", ["section", "machine"])
@pytest.mark.parametrize("unit", ["segment", "clip"])
def test_k_goes_in_powers_of_two_up_to_the_smallest_pool_of_each_data(machine, unit, scope):
    clips, _, _, tested = machine
    smoothed = smooth_candidates(tested, take(unit, scope), names(clips, "test"), MESH)
    _, _, section, domain = pool_by_hand(tested, unit)
    expected = set()
    for data in ("source", "all"):
        pools = [(domain == "source") | (data == "all")]
        if scope == "section":
            pools = [pools[0] & (section == s) for s in (0, 3)]
        k = 1
        while k <= min(pool.sum() for pool in pools):
            expected.add((k, data))
            k *= 2
    assert {*smoothed} == expected


def test_k_1_leaves_the_scores_as_they_are(machine):
    clips, _, _, tested = machine
    asked = names(clips, "test")
    smoothed = smooth_candidates(tested, take("segment", "section"), asked, MESH)
    expected = average_segments(tested.ae_score, tested.clip, asked)
    np.testing.assert_allclose(smoothed[1, "all"], expected, rtol=1e-6)


def test_a_section_without_source_recordings_leaves_only_all_data():
    clips, segments = make_machine(
        {
            ("test", 0, "source"): (4, 4),
            ("test", 0, "target"): (4, 4),
            ("test", 1, "target"): (4, 4),
        }
    )
    smoothed = smooth_candidates(segments, take("clip", "section"), clips["clip"].tolist(), MESH)
    assert {*smoothed} == {(k, "all") for k in (1, 2, 4, 8)}
    across = smooth_candidates(segments, take("clip", "machine"), clips["clip"].tolist(), MESH)
    assert {data for _, data in across} == {"source", "all"}


def test_a_target_recording_is_smoothed_by_source_recordings_alone_on_source_data():
    clips, segments = make_machine({("test", 0, "source"): (4, 0), ("test", 0, "target"): (3, 0)})
    moved = segments._replace(
        ae_score=np.where(segments.domain == "source", 1.0, 5.0).astype(np.float32)
    )
    smoothed = smooth_candidates(moved, take("segment", "section"), clips["clip"].tolist(), MESH)
    target = (clips["domain"] == "target").to_numpy()
    np.testing.assert_allclose(smoothed[4, "source"][target], (5 + 3 * 1) / 4)
    np.testing.assert_allclose(smoothed[4, "source"][~target], 1)


def test_a_recording_without_segments_stays_unscored(machine):
    _, _, _, tested = machine
    smoothed = smooth_candidates(
        tested, take("clip", "section"), ["gone.wav", tested.clip[0]], MESH
    )
    for scores in smoothed.values():
        np.testing.assert_array_equal(np.isnan(scores), [True, False])


@pytest.mark.parametrize("choice", [(1, "all"), (8, "source"), (8, "all")])
@pytest.mark.parametrize("scope", ["section", "machine"])
@pytest.mark.parametrize("unit", ["segment", "clip"])
def test_training_recordings_are_queries_against_the_test_pool(machine, unit, scope, choice):
    clips, _, trained, tested = machine
    k, data = choice
    k = min(k, 4) if unit == "clip" else k
    asked = names(clips, "train")
    ours = smooth_training(trained, tested, (k, data), take(unit, scope), asked, MESH)
    score, feature, section, _ = pool_by_hand(trained, unit)
    pool_score, pool_feature, pool_section, pool_domain = pool_by_hand(tested, unit)
    expected = np.empty(len(score))
    for i in range(len(score)):
        near = (pool_domain == "source") | (data == "all")
        near &= (pool_section == section[i]) | (scope == "machine")
        expected[i] = smooth_by_hand(score[i], feature[i], pool_score[near], pool_feature[near], k)
    rows_of = trained.clip if unit == "segment" else np.unique(trained.clip)
    means = [expected[rows_of == name].mean() for name in asked]
    np.testing.assert_allclose(ours, means, rtol=1e-5)


@pytest.mark.parametrize("scope", ["section", "machine"])
def test_training_recordings_of_a_section_without_test_recordings_are_not_smoothed(scope):
    counts = dict(COUNTS)
    del counts["test", 3, "source"], counts["test", 3, "target"]
    clips, segments = make_machine(counts)
    trained, tested = (segments.select(segments.split == split) for split in ("train", "test"))
    asked = names(clips, "train")
    scores = smooth_training(trained, tested, (8, "all"), take("segment", scope), asked, MESH)
    untested = (clips["section"][clips["split"] == "train"] == 3).to_numpy()
    np.testing.assert_array_equal(np.isnan(scores), untested)
