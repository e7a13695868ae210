"""What a run has left about a machine, read back, and eq. 7 on one of its sections."""

import gc
import json

import numpy as np
import pytest
from eq7 import oracle as smooth_by_hand
from machine import make_machine

from dns_jax.data.refusals import DataError
from dns_jax.evaluation.outcomes import read_outcome, smooth_tests
from dns_jax.evaluation.score_files import file_name, read_scores, write_decisions, write_scores
from dns_jax.scoring import save_segments

SYSTEMS = ("ae", "serial_oe", "proposed", "oracle")
TRAIN = {("train", s, d): (n, 0) for s in (0, 1) for d, n in (("source", 6), ("target", 2))}
COUNTS = TRAIN | {
    ("test", 0, "source"): (4, 3),
    ("test", 0, "target"): (3, 4),
    ("test", 1, "source"): (3, 5),
    ("test", 1, "target"): (4, 2),
}


def make_segments(windows=(3,), counts=COUNTS):
    """The segments of a machine, by default in pools of equal size, which are compiled once.

    Those of a recording start one second after the other.
    """
    _, segments = make_machine(counts, windows=windows)
    start = [np.sum(segments.clip[:i] == clip) for i, clip in enumerate(segments.clip)]
    return segments._replace(start=np.array(start, np.float32))


def write_run(
    workdir,
    segments,
    choice=(4, "all"),
    oracle=(8, "source"),
    *,
    evaluated=(1,),
    machine="fan",
    seed=0,
    year=2021,
    beyond=False,
):
    """Write by hand what a run leaves about a machine, with any numbers as scores.

    Args:
      workdir: of the run.
      segments: of the machine.
      choice: (K, Data) of Proposed; None: the autoencoder is alone.
      oracle: that of Oracle, or None.
      evaluated: the evaluation sections.
      machine: its name.
      seed: of the run.
      year: whose file names the scores have.
      beyond: whether there are scores without labels, too.

    Returns:
      {system: {recording: (score, decision)}}.
    """
    directory = workdir / machine / f"seed_{seed}"
    save_segments(directory / "segments.npz", segments)
    chosen = {"serial_oe": choice and (2, "all"), "proposed": choice, "oracle": choice and oracle}
    selection = {
        "machine": machine,
        "seed": seed,
        "validation_sections": [0],
        "evaluation_sections": [*evaluated],
        **{
            system: pair and {"size": pair[0], "data": pair[1], "how": "validation"}
            for system, pair in chosen.items()
        },
        "section_oracle": {},
        "scale": {},
    }
    (directory / "selection.json").write_text(json.dumps(selection))
    test = segments.select(segments.split == "test")
    clips, first = np.unique(test.clip, return_index=True)
    cells = list(zip(test.section[first].tolist(), test.domain[first].tolist(), strict=True))
    rng = np.random.default_rng(0)
    written = {}
    systems = ["ae", *(name for name, pair in chosen.items() if pair), *["label_free"] * beyond]
    for system in systems:
        scores = rng.normal(10, 3, len(clips))
        decisions = (scores > 12).astype(float)
        for kind, write, values in (
            ("anomaly_score", write_scores, scores),
            ("decision_result", write_decisions, decisions),
        ):
            names = np.array([file_name(kind, machine, *cell, year) for cell in cells])
            for name in set(names.tolist()):
                file = directory / "scores" / system / name
                write(file, clips[names == name].tolist(), values[names == name])
        both = zip(scores.tolist(), decisions.tolist(), strict=True)
        written[system] = dict(zip(clips.tolist(), both, strict=True))
    return written


@pytest.fixture(scope="module")
def segments():
    return make_segments((2, 3, 4))


# What is read back


@pytest.mark.parametrize("year", [2021, 2023])  # a file for each domain, a file for both
def test_every_test_recording_has_its_labels_and_the_scores_of_all_systems(
    segments, tmp_path, year
):
    written = write_run(tmp_path, segments, (4, "source"), year=year)
    outcome = read_outcome(tmp_path, "fan", 0)
    tested = outcome.tested
    names = sorted(set(segments.clip[segments.split == "test"].tolist()))
    assert tested["clip"].tolist() == names
    for row in tested.to_dict("records"):
        of_clip = segments.select(segments.clip == row["clip"])
        for name in ("section", "domain", "label"):
            assert set(getattr(of_clip, name).tolist()) == {row[name]}
        for system in SYSTEMS:
            assert (row[system], row[f"{system}_decision"]) == written[system][row["clip"]]
    assert outcome.machine == "fan"
    assert outcome.systems == list(SYSTEMS)
    assert outcome.choice == (4, "source")
    for ours, theirs in zip(outcome.segments, segments, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_scores_without_labels_are_read_back_and_rank_where_there_are_some(segments, tmp_path):
    written = write_run(tmp_path / "beyond", segments, beyond=True)
    outcome = read_outcome(tmp_path / "beyond", "fan", 0)
    assert outcome.systems == [*SYSTEMS, "label_free"]
    assert outcome.system == "label_free"
    of_clip = zip(outcome.tested["label_free"], outcome.tested["label_free_decision"], strict=True)
    assert [*of_clip] == [written["label_free"][clip] for clip in outcome.tested["clip"]]
    write_run(tmp_path / "paper", segments)
    assert read_outcome(tmp_path / "paper", "fan", 0).system == "proposed"


def test_where_serial_oe_was_not_trained_the_autoencoder_is_alone(segments, tmp_path):
    alone = segments._replace(feature=np.zeros((len(segments.clip), 0), np.float32))
    write_run(tmp_path, alone, None)
    outcome = read_outcome(tmp_path, "fan", 0)
    assert (outcome.systems, outcome.system) == (["ae"], "ae")
    assert outcome.choice is None
    assert set(outcome.tested) == {"clip", "section", "domain", "label", "ae", "ae_decision"}


def test_recordings_of_any_names_and_without_a_score_are_read_back(segments, tmp_path):
    odd = ['a,"b" ü.wav', "new\nline.wav", "day 1/#1%.wav", " 'x';.flac"]
    names = segments.clip.astype("U40")
    for name, old in zip(odd, np.unique(names[segments.split == "test"]), strict=False):
        names[names == old] = name
    segments = segments._replace(clip=names)
    written = write_run(tmp_path, segments)
    file = tmp_path / "fan/seed_0/scores/ae" / file_name("anomaly_score", "fan", 1, "source")
    names, _ = read_scores(file)
    write_scores(file, names, np.full(len(names), np.nan))
    tested = read_outcome(tmp_path, "fan", 0).tested.set_index("clip")
    for name in odd:
        assert tested.loc[name, "proposed"] == written["proposed"][name][0]
    assert sorted(tested.index[np.isnan(tested["ae"])]) == sorted(names)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-200])


def _drop(name):
    def drop(file):
        selection = json.loads(file.read_text())
        del selection[name]
        file.write_text(json.dumps(selection))

    return drop


SCORES = "scores/{}/{}_fan_section_01_source_test.csv"
DAMAGE = {
    "segments that are not there": ("segments.npz", lambda file: file.unlink()),
    "segments cut short": ("segments.npz", _truncate),
    "segments that are text": ("segments.npz", lambda file: file.write_text("clip")),
    "no selection": ("selection.json", lambda file: file.unlink()),
    "half a selection": ("selection.json", lambda file: file.write_text('{"machine": ')),
    "a score that is a word": (
        SCORES.format("ae", "anomaly_score"),
        lambda file: file.write_text(file.read_text().replace(",", ",high ", 1)),
    ),
    "a recording without a line": (
        SCORES.format("oracle", "decision_result"),
        lambda file: file.write_text(file.read_text().partition("\n")[2]),
    ),
    "a file of scores that is not there": (
        SCORES.format("proposed", "anomaly_score"),
        lambda file: file.unlink(),
    ),
    "a selection of nothing": ("selection.json", lambda file: file.write_text("{}")),
    "a selection without sections": ("selection.json", _drop("evaluation_sections")),
    "no scores of the autoencoder": (
        "scores/ae",
        lambda folder: [file.unlink() for file in folder.iterdir()],
    ),
    "no decisions of Proposed": (
        "scores/proposed",
        lambda folder: [file.unlink() for file in folder.glob("decision*")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_named_with_the_way_out(segments, tmp_path, damage):
    write_run(tmp_path, segments)
    name, do_damage = DAMAGE[damage]
    do_damage(tmp_path / "fan/seed_0" / name)
    with pytest.raises(DataError, match=r"is damaged .* delete it and start again") as raised:
        read_outcome(tmp_path, "fan", 0)
    named = "segments.npz" if name == "segments.npz" else "selection.json"
    assert str(tmp_path / "fan/seed_0" / named) in str(raised.value)
    assert "\n" not in str(raised.value)
    del raised
    gc.collect()  # a file left open is a warning here, that of np.load(path) of half an archive


# Eq. 7


@pytest.mark.parametrize("unit", ["segment", "clip"])
@pytest.mark.parametrize(("k", "data"), [(1, "all"), (4, "source"), (5, "all")])
def test_a_section_is_smoothed_as_by_hand(segments, unit, k, data):
    test = segments.select((segments.split == "test") & (segments.section == 1))
    rows, a_prop = smooth_tests(test, (k, data), {"unit": unit, "scope": "section"})
    candidates = (rows.domain == "source") | (data == "all")
    expected = smooth_by_hand(rows.ae_score, rows.feature, k, candidates=candidates)
    np.testing.assert_allclose(a_prop, expected, rtol=2e-6)
    assert len(rows.clip) == (len(test.clip) if unit == "segment" else len(set(test.clip)))
    if unit == "clip":
        for clip, score, feature in zip(rows.clip, rows.ae_score, rows.feature, strict=True):
            own = test.clip == clip
            assert score == pytest.approx(test.ae_score[own].mean(), rel=1e-6)
            np.testing.assert_allclose(feature, test.feature[own].mean(axis=0), rtol=1e-5)
