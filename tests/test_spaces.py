"""What a page's script is told of a machine: dots, scores and neighbours, without UMAP."""

import json

import numpy as np
import pytest
from eq7 import oracle
from test_outcomes import make_segments, write_run

from dns_jax.evaluation import outcomes, spaces
from dns_jax.evaluation.outcomes import read_outcome
from dns_jax.evaluation.ranking import find_neighbours, rank_recordings
from dns_jax.evaluation.spaces import place_sections
from dns_jax.evaluation.systems import take_unit

SMOOTHING = {"unit": "segment", "scope": "section"}


@pytest.fixture(autouse=True)
def place(monkeypatch):
    """The first two features are the places; notes how many were placed at once."""
    placed = []

    def place_features(features):
        placed.append(len(features))
        return 100 * features[:, :2]

    monkeypatch.setattr(spaces, "place_features", place_features)
    return placed


def describe(workdir, segments, choice=(4, "source"), smoothing=SMOOTHING, **run):
    """Return the description, after a way through JSON, and the ranking."""
    write_run(workdir, segments, choice, **run)
    outcome = read_outcome(workdir, "fan", 0)
    ranking = rank_recordings(outcome, smoothing)
    shown = {
        clip: {"seconds": 2.5, "picture": f"{clip}.jpg", "sound": f"{clip}.mp3", "spectrum": None}
        for clip in ranking["clip"]
    }
    described = place_sections(outcome, smoothing, ranking, shown)
    return json.loads(json.dumps(described, allow_nan=False)), ranking


@pytest.fixture(scope="module")
def segments():
    return make_segments()


def select(segments, split, section):
    return segments.select((segments.split == split) & (segments.section == section))


def five_digits(values):
    return pytest.approx(np.asarray(values, np.float64), rel=1e-4)


def test_recordings_stand_in_the_order_of_the_ranking(segments, tmp_path):
    described, ranking = describe(tmp_path, segments)
    assert (described["name"], described["k"], described["data"]) == ("fan", 4, "source")
    assert len(described["clips"]) == len(ranking)
    for clip, row in zip(described["clips"], ranking.itertuples(), strict=True):
        assert clip == {
            "name": row.clip,
            "domain": row.domain,
            "label": row.label,
            "rank": row.rank,
            "seconds": 2.5,
            "picture": f"{row.clip}.jpg",
            "sound": f"{row.clip}.mp3",
        }


@pytest.mark.parametrize("unit", ["segment", "clip"])
def test_every_row_of_the_pool_is_a_dot_with_its_recording_and_scores(segments, tmp_path, unit):
    described, _ = describe(tmp_path, segments, smoothing={"unit": unit, "scope": "section"})
    assert [section["name"] for section in described["sections"]] == ["00", "01"]
    for number, section in enumerate(described["sections"]):
        rows = take_unit(select(segments, "test", number), unit)
        names = [described["clips"][i]["name"] for i in section["clip"]]
        assert names == rows.clip.tolist()
        assert section["x"] == five_digits(100 * rows.feature[:, 0])
        assert section["y"] == five_digits(100 * rows.feature[:, 1])
        assert section["start"] == rows.start.tolist()
        assert section["g"] == five_digits(rows.ae_score)
        source = rows.domain == "source"
        a_prop = oracle(rows.ae_score, rows.feature, 4, candidates=source)
        assert section["p"] == five_digits(a_prop)
        training = select(segments, "train", number)
        assert section["train_x"] == five_digits(100 * training.feature[:, 0])
        assert section["train_y"] == five_digits(100 * training.feature[:, 1])


@pytest.mark.parametrize("data", ["source", "all"])
def test_the_neighbours_of_a_dot_are_dots_of_other_recordings(segments, tmp_path, data):
    described, _ = describe(tmp_path, segments, (4, data))
    for number, section in enumerate(described["sections"]):
        rows = select(segments, "test", number)
        found = find_neighbours(rows, data, 8)
        assert section["neighbours"] == [[i for i in row if i >= 0] for row in found.tolist()]
        for dot, neighbours in enumerate(section["neighbours"]):
            clips = [section["clip"][i] for i in (dot, *neighbours)]
            assert len(set(clips)) == len(clips)
    many = {len(n) for section in described["sections"] for n in section["neighbours"]}
    assert many == ({8} if data == "all" else {6, 7, 8})  # a section has 7 or 8 of source


def test_of_many_training_segments_some_are_drawn(segments, tmp_path, monkeypatch, place):
    monkeypatch.setattr(outcomes, "TRAINING", 20)
    described, _ = describe(tmp_path / "first", segments)
    again, _ = describe(tmp_path / "again", segments)
    assert described == again
    for number, section in enumerate(described["sections"]):
        places = 100 * select(segments, "train", number).feature[:, :2]
        drawn = np.column_stack([section["train_x"], section["train_y"]])
        of_row = [np.flatnonzero(np.isclose(places, row, rtol=1e-4).all(axis=1)) for row in drawn]
        assert len(np.unique(np.concatenate(of_row))) == 20 == len(drawn)
        assert place[number] == 20 + len(section["x"])


def test_a_section_without_training_segments_has_dots(segments, tmp_path):
    kept = segments.select((segments.split == "test") | (segments.section == 0))
    described, _ = describe(tmp_path, kept)
    assert described["sections"][1]["train_x"] == []
    assert len(described["sections"][1]["x"]) == 42


@pytest.mark.parametrize(("evaluated", "first"), [((1,), 1), ((0, 1), 0), ((7, 1), 1), ((), 0)])
def test_the_first_section_shown_is_one_to_be_evaluated(segments, tmp_path, evaluated, first):
    assert describe(tmp_path, segments, evaluated=evaluated)[0]["first"] == first


def test_where_nothing_is_smoothed_there_is_no_space(segments, tmp_path):
    alone = segments._replace(feature=np.zeros((len(segments.clip), 0), np.float32))
    described, ranking = describe(tmp_path, alone, None)
    assert (described["sections"], described["first"], described["k"]) == ([], 0, 0)
    assert [clip["name"] for clip in described["clips"]] == ranking["clip"].tolist()


def test_a_score_that_is_not_finite_is_null(segments, tmp_path):
    scores = segments.ae_score.copy()
    row = np.flatnonzero((segments.split == "test") & (segments.section == 1))[0]
    scores[row] = np.inf
    described, _ = describe(tmp_path, segments._replace(ae_score=scores))
    assert described["sections"][1]["g"][0] is None
    assert described["sections"][1]["p"][0] is None
    assert None not in described["sections"][1]["g"][1:]
