"""The order in which to listen, and the nearest recordings, recomputed: all neighbours tried."""

import json
from collections import Counter

import numpy as np
import pytest
from test_outcomes import COUNTS, make_segments, write_run

from dns_jax.evaluation.outcomes import read_outcome
from dns_jax.evaluation.ranking import COLUMNS, find_neighbours, rank_recordings
from dns_jax.evaluation.systems import take_unit

SMOOTHING = {"unit": "segment", "scope": "section"}


SCALE = {  # a section whose scores are of another scale
    "ae": {"0": (5.0, 2.0), "1": (50.0, 0.5)},
    "proposed": {"0": (8.0, 3.0), "1": (-1.0, 40.0)},
    "label_free": {"0": (0.0, 1.0), "1": (9.0, 20.0)},
}


def leave_ae_alone(segments):
    return segments._replace(feature=np.zeros((len(segments.clip), 0), np.float32))


def rank(workdir, segments, choice=(4, "all"), smoothing=SMOOTHING, scale=SCALE, **run):
    """Return the ranking of a run made by hand, and what it wrote."""
    written = write_run(workdir, segments, choice, **run)
    file = workdir / "fan/seed_0/selection.json"
    of_systems = {
        system: {s: {"mean": mean, "deviation": deviation} for s, (mean, deviation) in of.items()}
        for system, of in scale.items()
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scale": of_systems}))
    return rank_recordings(read_outcome(workdir, "fan", 0), smoothing), written


def measure_deviations(ranking, column, system):
    """How far the scores lie above those of training, in standard deviations."""
    scale = [SCALE[system][str(section)] for section in ranking["section"]]
    pairs = zip(ranking[column], scale, strict=True)
    return [(score - mean) / deviation for score, (mean, deviation) in pairs]


# Order


@pytest.mark.parametrize("system", ["ae", "proposed", "label_free"])
def test_recordings_are_ranked_by_how_far_they_lie_above_training(tmp_path, system):
    segments = make_segments()
    if system == "ae":
        segments = leave_ae_alone(segments)
    choice, beyond = None if system == "ae" else (4, "all"), system == "label_free"
    ranking, written = rank(tmp_path, segments, choice, beyond=beyond)
    assert tuple(ranking) == COLUMNS
    assert set(ranking["system"]) == {system}
    for row in ranking.itertuples():
        assert (row.score, row.anomalous) == written[system][row.clip]
        assert row.ae_score == written["ae"][row.clip][0]
    assert len(ranking) == len(written["ae"])
    deviations = measure_deviations(ranking, "score", system)
    np.testing.assert_allclose(ranking["deviations"], deviations, rtol=1e-12)
    assert ranking["rank"].tolist() == list(range(1, len(ranking) + 1))
    assert (np.diff(deviations) < 0).all()
    by_ae = measure_deviations(ranking, "ae_score", "ae")
    assert ranking["ae_rank"].tolist() == [1 + sum(other > one for other in by_ae) for one in by_ae]


def test_sections_of_another_scale_are_ranked_alike(tmp_path):
    segments = make_segments()
    ranking, _ = rank(tmp_path, segments)
    assert ranking["score"].tolist() != sorted(ranking["score"], reverse=True)
    assert ranking["rank"].tolist() != ranking["ae_rank"].tolist()


def test_labels_do_not_enter_the_ranking(tmp_path):
    segments = make_segments()
    known, _ = rank(tmp_path / "known", segments)
    unknown = segments._replace(label=np.where(segments.split == "test", -1, 0).astype(np.int32))
    ranking, _ = rank(tmp_path / "unknown", unknown)
    assert set(ranking["label"]) == {-1}
    assert set(known["label"]) == {0, 1}
    columns = [name for name in COLUMNS if name != "label"]
    assert ranking[columns].equals(known[columns])


# Where the deviation is not known


@pytest.fixture(params=[{}, {"1": (3.0, 0.0)}], ids=["not to be told", "all alike"])
def unknown_deviations(request, tmp_path):
    """The ranking by the autoencoder where the deviations of section 1 are not known."""
    scale = {"ae": {"0": (5.0, 2.0)} | request.param}
    return rank(tmp_path, leave_ae_alone(make_segments()), None, scale=scale)[0]


def test_recordings_without_a_deviation_come_last_by_their_scores(unknown_deviations):
    ranking = unknown_deviations
    unknown = ranking["deviations"].isna()
    assert (unknown == (ranking["section"] == 1)).all()
    assert (np.diff(unknown.astype(int)) >= 0).all()
    last = ranking[unknown]
    assert last["score"].tolist() == sorted(last["score"], reverse=True)
    assert ranking["rank"].tolist() == list(range(1, len(ranking) + 1))


def test_the_rank_by_the_autoencoder_is_by_the_same_rule(unknown_deviations):
    assert unknown_deviations["ae_rank"].tolist() == unknown_deviations["rank"].tolist()


# Nearest recordings


@pytest.mark.parametrize("unit", ["segment", "clip"])
@pytest.mark.parametrize("data", ["source", "all", "label-free"])
def test_the_nearest_recordings_are_those_nearest_to_most_segments(tmp_path, unit, data):
    segments = make_segments()
    beyond = data == "label-free"  # of all data, whatever Proposed has
    how = (4, "source" if beyond else data), {"unit": unit, "scope": "section"}
    ranking, _ = rank(tmp_path, segments, *how, beyond=beyond)
    test = take_unit(segments.select(segments.split == "test"), unit)
    for row in ranking.itertuples():
        counts = Counter()
        for i in np.flatnonzero(test.clip == row.clip):
            other = (test.section == row.section) & (test.clip != row.clip)
            other &= (test.domain == "source") | (data != "source")
            distance = {}
            for j in np.flatnonzero(other):
                d = np.linalg.norm(test.feature[i].astype(float) - test.feature[j])
                distance[test.clip[j]] = min(d, distance.get(test.clip[j], np.inf))
            counts.update(sorted(distance, key=distance.get)[:3])
        named = row.nearest.split(";")
        assert len(named) == 3 == len(set(named))
        assert [counts[name] for name in named] == sorted(counts.values(), reverse=True)[:3]


def test_the_autoencoder_alone_knows_no_nearest_recordings(tmp_path):
    segments = make_segments()
    assert set(rank(tmp_path, leave_ae_alone(segments), None)[0]["nearest"]) == {""}


# Neighbours


def find_by_hand(rows, data, count):
    """Nearest rows of different other recordings, in exact arithmetic, ties to the lower row."""
    found = np.full((len(rows.clip), count), -1)
    for i in range(len(rows.clip)):
        distance = np.sum((rows.feature.astype(np.float64) - rows.feature[i]) ** 2, axis=1)
        listed = []
        for j in np.argsort(distance, kind="stable"):
            allowed = rows.domain[j] == "source" or data == "all"
            clips = {rows.clip[i], *rows.clip[listed]}
            if allowed and np.isfinite(distance[j]) and rows.clip[j] not in clips:
                listed.append(j)
        found[i, : len(listed[:count])] = listed[:count]
    return found


@pytest.fixture(scope="module")
def section():
    segments = make_segments()
    return segments.select((segments.split == "test") & (segments.section == 1))


@pytest.mark.parametrize("data", ["source", "all"])
def test_neighbours_are_the_nearest_rows_of_different_recordings(section, data):
    expected = find_by_hand(section, data, 4)
    np.testing.assert_array_equal(find_neighbours(section, data, 4), expected)
    assert (expected >= 0).all()


@pytest.mark.parametrize("data", ["source", "all"])
def test_where_recordings_run_out_there_are_no_more_neighbours(section, data):
    found = find_neighbours(section, data, 30)
    np.testing.assert_array_equal(found, find_by_hand(section, data, 30))
    source, target = (sum(COUNTS["test", 1, domain]) for domain in ("source", "target"))
    own = section.domain == "source"
    others = source - own if data == "source" else source + target - 1
    np.testing.assert_array_equal(np.sum(found >= 0, axis=1), others)


def test_duplicates_are_neighbours_of_each_other_the_lower_row_first(section):
    rng = np.random.default_rng(0)
    few = rng.normal(size=(4, 3)).astype(np.float32)[rng.integers(0, 4, len(section.clip))]
    rows = section._replace(feature=few)
    np.testing.assert_array_equal(find_neighbours(rows, "all", 5), find_by_hand(rows, "all", 5))


def test_ties_go_to_the_lower_row(section):
    whole = np.random.default_rng(1).integers(-2, 3, section.feature.shape).astype(np.float32)
    rows = section._replace(feature=whole)
    np.testing.assert_array_equal(find_neighbours(rows, "all", 5), find_by_hand(rows, "all", 5))


def test_rows_with_a_feature_that_is_not_finite_are_nobodys_neighbours(section):
    feature = section.feature.copy()
    feature[section.clip == section.clip[3]] = np.nan
    rows = section._replace(feature=feature)
    for count in (4, 30):
        found, expected = find_neighbours(rows, "all", count), find_by_hand(rows, "all", count)
        np.testing.assert_array_equal(found, expected)
