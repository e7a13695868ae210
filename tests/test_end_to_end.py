"""The whole experiment on noise: its artifacts, its resumption, and what it refuses to start on."""

import csv
import importlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from machine import make_machine, smooth_by_hand
from noise import BROKEN, LONG, make_config, name_recordings, write_tree
from safetensors.numpy import save_file
from sklearn.metrics import recall_score, roc_auc_score

from dns_jax import __version__, experiment
from dns_jax.config import check_config
from dns_jax.data.refusals import ConfigError, DataError
from dns_jax.evaluation import results, tables
from dns_jax.evaluation.protocol import score_systems
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.weights import to_timm

SYSTEMS = ("ae", "serial_oe", "proposed", "oracle")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """Every run compiles the same programs; keep them from run to run of this file."""
    options = {  # value here, and what JAX has otherwise
        "jax_compilation_cache_dir": (str(tmp_path_factory.mktemp("compiled")), None),
        "jax_persistent_cache_min_compile_time_secs": (0, 1.0),
        "jax_persistent_cache_min_entry_size_bytes": (-1, 0),
        "jax_disable_most_optimizations": (True, False),
    }
    for turn in (0, 1):
        for name, values in options.items():
            jax.config.update(name, values[turn])
        compilation_cache.reset_cache()
        if turn == 0:
            yield


class Run:
    """A finished run."""

    def __init__(self, config, workdir):
        self.config, self.workdir, self.seed = config, workdir, workdir / "fan" / "seed_0"
        experiment.run(config, workdir)

    def segments(self):
        with np.load(self.seed / "segments.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}

    def scores(self):
        """{(system, section, domain): {recording: score}}, as written."""
        scores = {}
        for path in self.seed.glob("scores/*/anomaly_score_*.csv"):
            with path.open(newline="") as file:
                _, section, domain, _ = path.stem.removeprefix("anomaly_score_fan_").split("_")
                scores[path.parent.name, int(section), domain] = dict(csv.reader(file))
        return scores


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    return Run(make_config(tree), tmp_path_factory.mktemp("runs") / "run")


# Artifacts


def test_the_configuration_lies_beside_the_results(run):
    written = json.loads((run.workdir / "config.json").read_text())
    assert written["config"]["machines"] == ["fan"]
    assert written["versions"]["jax"] == jax.__version__
    assert {*written["recordings"]} == {"fan", "pump"}


def test_each_network_leaves_checkpoints_and_a_line_for_each_epoch(run):
    for network, validated in (("ae", [None, "yes"]), ("serial_oe", ["yes", "yes"])):
        lines = (run.seed / network / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["epoch"] for row in rows] == [1, 2]
        assert ["validation_loss" in row for row in rows] == [v is not None for v in validated]
        (checkpoint,) = (run.seed / network / "checkpoints").iterdir()
        assert int(checkpoint.name) == rows[-1]["step"]


def test_there_is_a_row_for_every_training_and_test_segment(run):
    segments = run.segments()
    kinds = {name: array.dtype.kind for name, array in segments.items()}
    assert kinds == {
        "clip": "U", "split": "U", "section": "i", "domain": "U", "label": "i", "start": "f",
        "ae_score": "f", "feature": "f",
    }  # fmt: skip
    expected = []
    for machine, folder, stem in name_recordings():
        if machine == "fan" and stem != BROKEN:
            _, section, domain, split, word = stem.split("_")[:5]
            row = (f"{stem}.wav", split, int(section), domain, int(word == "anomaly"))
            assert folder == ("train" if split == "train" else f"{domain}_test")
            expected += [(*row, 0.125 * i) for i in range(10 if stem == LONG else 5)]
    names = ("clip", "split", "section", "domain", "label", "start")
    assert sorted(zip(*(segments[name].tolist() for name in names), strict=True)) == sorted(
        expected
    )
    assert segments["feature"].shape == (len(expected), 8)
    for name in ("ae_score", "feature"):
        assert segments[name].dtype == np.float32
        assert np.isfinite(segments[name]).all()
    assert len(np.unique(segments["feature"], axis=0)) == len(expected)


def test_every_system_has_both_files_of_every_section_and_domain(run):
    expected = {
        f"{system}/{kind}_fan_section_{section:02d}_{domain}_test.csv"
        for system in SYSTEMS
        for kind in ("anomaly_score", "decision_result")
        for section in (0, 1)
        for domain in ("source", "target")
    }
    files = run.seed.glob("scores/*/*")
    assert {str(path.relative_to(run.seed / "scores")) for path in files} == expected
    for scores in run.scores().values():
        assert [*scores] == sorted(scores)
        assert len(scores) == 8


def test_a_broken_recording_stays_as_an_unscored_row_and_is_listed(run, tree):
    for (_, section, domain), scores in run.scores().items():
        unscored = [name for name, score in scores.items() if score == "nan"]
        assert unscored == ([f"{BROKEN}.wav"] if (section, domain) == (1, "source") else [])
    skipped = pd.read_csv(run.workdir / "skipped.csv")
    assert skipped["path"].tolist() == [f"{tree}/fan/source_test/{BROKEN}.wav"]
    results = pd.read_csv(run.workdir / "results.csv")
    cell = results[(results["section"] == 1) & (results["domain"] == "source")]
    assert {*zip(cell["n_normal"], cell["n_anomaly"], strict=True)} == {(3, 4)}


def test_autoencoder_scores_are_means_over_segments(run):
    segments = run.segments()
    for (system, _, _), scores in run.scores().items():
        for name, score in scores.items():
            if system == "ae" and name != f"{BROKEN}.wav":
                mine = segments["ae_score"][segments["clip"] == name].astype(np.float64)
                assert float(score) == pytest.approx(mine.mean(), rel=1e-12)


@pytest.mark.parametrize("system", ["proposed", "oracle"])
def test_smoothed_scores_are_equation_7_over_the_sections_test_segments(run, system):
    chosen = json.loads((run.seed / "selection.json").read_text())[system]
    segments = run.segments()
    score, feature = segments["ae_score"], segments["feature"]
    for (of_system, section, _), scores in run.scores().items():
        pool = (segments["split"] == "test") & (segments["section"] == section)
        pool &= (segments["domain"] == "source") | (chosen["data"] == "all")
        for name, written in scores.items() if of_system == system else ():
            smoothed = []
            for i in np.flatnonzero(segments["clip"] == name):
                others = pool & (np.arange(len(score)) != i)
                near = score[others], feature[others], chosen["size"]
                smoothed.append(smooth_by_hand(score[i], feature[i], *near))
            if smoothed:
                assert float(written) == pytest.approx(np.mean(smoothed), rel=1e-5)


def test_results_are_those_of_the_score_files(run):
    results = pd.read_csv(run.workdir / "results.csv")
    columns = "machine seed section domain system auc pauc n_normal n_anomaly"
    assert [*results.columns] == columns.split()
    assert len(results) == len(SYSTEMS) * 2 * 3
    written = run.scores()
    for row in results.itertuples():
        domains = ("source", "target") if row.domain == "all" else (row.domain,)
        scores = {k: v for d in domains for k, v in written[row.system, row.section, d].items()}
        scores.pop(f"{BROKEN}.wav", None)
        labels, values = [int("anomaly" in name) for name in scores], [*map(float, scores.values())]
        assert row.auc == pytest.approx(roc_auc_score(labels, values))
        assert row.pauc == pytest.approx(roc_auc_score(labels, values, max_fpr=0.1))
        assert (row.machine, row.seed) == ("fan", 0)


def test_the_tables_hold_the_choices_and_the_evaluation_section(run):
    selection = json.loads((run.seed / "selection.json").read_text())
    (row,) = pd.read_csv(run.workdir / "table1.csv").to_dict("records")
    for system, size in (("serial_oe", "clusters"), ("proposed", "k"), ("oracle", "k")):
        assert row[f"{system}_{size}"] == selection[system]["size"]
        assert row[f"{system}_data"] == selection[system]["data"]
    results = pd.read_csv(run.workdir / "results.csv")
    table2 = pd.read_csv(run.workdir / "table2.csv").set_index("method")
    assert {*table2.index} == {*tables.METHODS.values(), tables.DIFFERENCE}
    for system in SYSTEMS:
        cell = results.set_index(["system", "section", "domain"]).loc[(system, 1, "all")]
        hmean = 2 / (1 / cell["auc"] + 1 / cell["pauc"])
        assert table2.loc[tables.METHODS[system], "fan"] == pytest.approx(100 * hmean)


def test_a_finished_run_only_reprints_its_tables_even_without_its_recordings(run, capsys):
    files = [path for path in run.workdir.rglob("*") if path.is_file()]
    before = [(path, path.stat().st_mtime_ns) for path in files]
    capsys.readouterr()
    experiment.run(make_config("gone"), run.workdir)
    printed = capsys.readouterr().out
    assert "Table I: hyper-parameters" in printed
    assert "Table II: harmonic mean of AUC and pAUC, in %" in printed
    for name in ("table1", "table2"):
        table = pd.read_csv(run.workdir / f"{name}.csv")
        assert all(str(cell) in printed for cell in (*table.columns, *table.iloc[:, 0]))
    after = [path for path in run.workdir.rglob("*") if path.is_file()]
    assert before == [(path, path.stat().st_mtime_ns) for path in after]


def test_what_another_version_left_unfinished_goes_on_with_a_warning(run, tree, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    file = workdir / "config.json"
    written = json.loads(file.read_text())
    written["versions"]["dns_jax"] = "0.1.0"
    file.write_text(json.dumps(written))
    experiment.run(make_config(tree), workdir)
    assert "begun by" not in capsys.readouterr().err
    (workdir / "table2.csv").unlink()
    experiment.run(make_config(tree), workdir)
    assert f"{workdir} was begun by dns_jax 0.1.0, this is {__version__}" in capsys.readouterr().err


# The same again


def assert_same(run, other):
    """Tables and scores byte for byte, segments bit for bit."""
    for name in ("results.csv", "table1.csv", "table2.csv"):
        assert (run.workdir / name).read_bytes() == (other.workdir / name).read_bytes(), name
    ours = {path.relative_to(run.seed): path for path in run.seed.glob("scores/*/*.csv")}
    theirs = {path.relative_to(other.seed): path for path in other.seed.glob("scores/*/*.csv")}
    assert {*ours} == {*theirs}
    for name, path in ours.items():
        assert path.read_bytes() == theirs[name].read_bytes(), name
    mine, its = run.segments(), other.segments()
    for name in mine:
        np.testing.assert_array_equal(mine[name], its[name], err_msg=name)


DAMAGES = {  # what is damaged, and what lies after it in a run and so is read again only without it
    "table2.csv": (),
    "fan/seed_0/selection.json": ("table2.csv",),
    "fan/seed_0/scores/ae/anomaly_score_fan_section_00_source_test.csv": ("table2.csv",),
    "fan/seed_0/segments.npz": ("table2.csv", "fan/seed_0/selection.json"),
    "fan/seed_0/ae/metrics.jsonl": (
        "table2.csv",
        "fan/seed_0/selection.json",
        "fan/seed_0/segments.npz",
    ),
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_damaged_artifact_is_named_and_made_anew_once_it_is_deleted(run, tree, tmp_path, damaged):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    for name in DAMAGES[damaged]:
        (workdir / name).unlink()
    file = workdir / damaged
    file.write_bytes(b"\x93\xff" + file.read_bytes()[:20])
    with pytest.raises(DataError, match=r"is damaged .*delete it and start again") as caught:
        experiment.run(make_config(tree), workdir)
    Path(str(caught.value).split(" is damaged")[0]).unlink()
    assert_same(run, Run(make_config(tree), workdir))


# Orbax drops its reads of the other arrays when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_and_trained_anew_once_it_is_deleted(run, tree, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run.workdir, workdir)
    for name in ("table2.csv", "fan/seed_0/selection.json", "fan/seed_0/segments.npz"):
        (workdir / name).unlink()
    checkpoints = workdir / "fan/seed_0/ae/checkpoints"
    for path in checkpoints.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="is damaged") as caught:
        experiment.run(make_config(tree), workdir)
    assert str(caught.value).startswith(f"{checkpoints} is damaged")
    shutil.rmtree(checkpoints)
    assert_same(run, Run(make_config(tree), workdir))


class Stop(Exception):
    pass


def stop_after(calls, function):
    """Wrap a function so that it raises after some calls."""
    left = [calls]

    def stopping(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return function(*args, **kwargs)

    return stopping


def test_a_run_that_is_stopped_and_started_again_ends_as_if_nothing_had_been(
    run, tree, tmp_path, monkeypatch
):
    config = make_config(tree, checkpoint_seconds=0.0)  # a checkpoint after every step
    places = [  # the autoencoder takes six steps, then SerialOE six
        ("dns_jax.tasks.draw_starts", 4),
        ("dns_jax.tasks.draw_starts", 2 + 4),
        ("dns_jax.experiment.save_segments", 0),
        ("dns_jax.evaluation.score_files.write_decisions", 5),
        ("dns_jax.evaluation.tables.make_table2", 0),
    ]
    left = []
    for place, calls in places:
        module, name = place.rsplit(".", 1)
        function = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(place, stop_after(calls, function))
        with pytest.raises(Stop):
            experiment.run(config, tmp_path)
        monkeypatch.undo()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in files if path.name.endswith(".part")]
        left.append({str(path.relative_to(tmp_path)) for path in files})
    seed = "fan/seed_0"
    assert any(f"{seed}/ae/checkpoints/4/" in name for name in left[0])
    assert any(f"{seed}/serial_oe/checkpoints/4/" in name for name in left[1])
    assert f"{seed}/segments.npz" not in left[2]
    assert f"{seed}/segments.npz" in left[3]
    assert f"{seed}/selection.json" not in left[3]
    assert f"{seed}/selection.json" in left[4]
    assert "table2.csv" not in left[4]
    assert_same(run, Run(config, tmp_path))


@pytest.fixture(scope="module")
def twin(tree, tmp_path_factory):
    """The same recordings as FLAC, with two seeds."""
    root = tmp_path_factory.mktemp("twin")
    for path in tree.rglob("*.wav"):
        copy = (root / path.relative_to(tree)).with_suffix(".flac")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.stem == BROKEN:
            copy.write_bytes(b"fLaC")
        else:
            samples, rate = soundfile.read(path, dtype="int16")
            soundfile.write(copy, samples, rate, subtype="PCM_16")
    return Run(make_config(root, seeds=(0, 1)), root / "run")


def test_flac_gives_the_same_as_wav(run, twin):
    ours, theirs = (pd.read_csv(r.workdir / "results.csv") for r in (run, twin))
    pd.testing.assert_frame_equal(ours, theirs[theirs["seed"] == 0].reset_index(drop=True))
    table1, table1_twin = (pd.read_csv(r.workdir / "table1.csv") for r in (run, twin))
    pd.testing.assert_frame_equal(table1, table1_twin.iloc[:1])
    for key, scores in run.scores().items():
        names = [name.replace(".wav", ".flac") for name in scores]
        assert twin.scores()[key] == dict(zip(names, scores.values(), strict=True))
    recordings = [json.loads((r.workdir / "config.json").read_text()) for r in (run, twin)]
    assert recordings[0]["recordings"] == recordings[1]["recordings"]


def test_each_seed_has_its_rows_and_their_mean_and_deviation(twin):
    assert pd.read_csv(twin.workdir / "table1.csv")["seed"].tolist() == [0, 1]
    table2 = pd.read_csv(twin.workdir / "table2.csv", dtype={"seed": str})
    for method, rows in table2.groupby("method"):
        if method == tables.DIFFERENCE:
            continue
        assert rows["seed"].tolist() == ["0", "1", "mean", "std"]
        figures = rows.drop(columns=["source", "seed", "method"]).to_numpy()
        np.testing.assert_allclose(figures[2], figures[:2].mean(0))
        np.testing.assert_allclose(figures[3], figures[:2].std(0, ddof=1))
    first, second = (
        np.load(twin.workdir / "fan" / f"seed_{seed}" / "segments.npz")["ae_score"]
        for seed in (0, 1)
    )
    assert (first != second).any()


def test_proposed_minus_ae_is_their_difference_averaged_over_seeds_within_its_interval(twin):
    table2 = pd.read_csv(twin.workdir / "table2.csv", dtype={"seed": str})
    columns = ["fan", "all_hmean"]
    proposed, ae = (
        table2[(table2["method"] == method) & (table2["seed"] == "mean")][columns].to_numpy()[0]
        for method in ("Proposed", "AE")
    )
    rows = table2[table2["method"] == tables.DIFFERENCE]
    assert rows["seed"].tolist() == ["mean", "2.5%", "97.5%"]
    difference, low, high = rows[columns].to_numpy()
    np.testing.assert_allclose(difference, proposed - ae)
    assert (low <= difference).all()
    assert (difference <= high).all()
    assert (low < high).all()


def test_official_results_are_of_both_parts_every_seed_and_every_system(twin):
    official = pd.read_csv(twin.workdir / "official.csv")
    blocks = official.groupby(["sections", "seed", "system"])
    assert {*blocks.groups} == {
        (part, seed, system)
        for part in ("validation", "evaluation")
        for seed in (0, 1)
        for system in SYSTEMS
    }
    results = pd.read_csv(twin.workdir / "results.csv").set_index(
        ["seed", "system", "section", "domain"]
    )
    for (part, seed, system), block in blocks:
        cells = block[block["kind"] == "section"]
        section = {"validation": 0, "evaluation": 1}[part]
        assert cells["section"].tolist() == [section, section]
        for cell in cells.itertuples():
            row = results.loc[(seed, system, section, cell.domain)]
            assert (cell.auc, cell.pauc) == (row["auc"], row["pauc"])
            name = f"decision_result_fan_section_{section:02d}_{cell.domain}_test.csv"
            path = twin.workdir / "fan" / f"seed_{seed}" / "scores" / system / name
            decided = dict(line.split(",") for line in path.read_text().split())
            pairs = [("anomaly" in k, v == "1") for k, v in decided.items() if v != "nan"]
            assert cell.recall == pytest.approx(recall_score(*zip(*pairs, strict=True)))


# What is refused before training


def test_a_broken_recording_stops_the_run_before_training(tree, tmp_path):
    config = make_config(tree, **{"data.skip_bad": False})
    with pytest.raises(DataError, match="1 file cannot be used") as caught:
        experiment.run(config, tmp_path)
    assert BROKEN in str(caught.value)
    assert not (tmp_path / "fan").exists()


def test_other_recordings_stop_a_run_that_began(run, tree, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "run")
    (tmp_path / "run" / "table2.csv").unlink()
    data = shutil.copytree(tree, tmp_path / "data")
    next((data / "pump" / "train").iterdir()).unlink()
    with pytest.raises(ConfigError, match="other recordings, labels or weights of pump"):
        experiment.run(make_config(data), tmp_path / "run")


# What a run would learn from, without learning it


def describe_tasks(monkeypatch, directory, clips):
    """Return the arguments of both tasks that `make_segments` sets up, and C of the network."""
    seen = {}

    def make_task(name):
        def make(config, waveforms, *arguments):
            seen[name] = arguments
            return None, None, None

        return make

    for name in ("autoencoder", "serial_oe"):
        monkeypatch.setattr(experiment, f"make_{name}_task", make_task(name))
    monkeypatch.setattr(experiment, "Autoencoder", lambda *_, **__: None)
    monkeypatch.setattr(
        experiment, "SerialOE", lambda _, products, **__: seen.update(products=products)
    )
    monkeypatch.setattr(experiment, "fit", lambda *_, **__: None)
    monkeypatch.setattr(experiment, "score_segments", stop_after(0, None))
    with pytest.raises(Stop):
        experiment.make_segments(
            make_config(""), clips, None, "fan", 0, directory=directory, mesh=None, preemption=None
        )
    return seen


def make_clips(counts):
    """A fan, and a pump beside it."""
    clips, _ = make_machine(counts)
    others, _ = make_machine({("train", 0, "source"): (5, 0)})
    return pd.concat([clips, others.assign(machine="pump")], ignore_index=True)


COUNTS = {
    ("train", 2, "source"): (20, 0),
    ("train", 2, "target"): (3, 0),
    ("train", 5, "source"): (7, 0),
    ("test", 2, "source"): (2, 2),
    ("test", 5, "source"): (2, 2),
}


def test_the_autoencoder_learns_from_the_machine_and_serial_oe_from_all(monkeypatch, tmp_path):
    clips = make_clips(COUNTS)
    seen = describe_tasks(monkeypatch, tmp_path, clips)
    train, validation, seed = seen["autoencoder"]
    kinds = [
        (clips["machine"][rows].unique().tolist(), clips["split"][rows].unique().tolist())
        for rows in (train, validation)
    ]
    assert kinds == [(["fan"], ["train"])] * 2
    assert seed == 0
    cells = clips.iloc[train].groupby(["section", "domain"]).size().to_dict()
    assert cells == {(2, "source"): 17, (2, "target"): 2, (5, "source"): 5}  # 85 %; all but one
    assert not {*train} & {*validation}
    assert len(train) + len(validation) == 30

    products, shifted, (positives, negatives), (held_out, others), _ = seen["serial_oe"]
    np.testing.assert_array_equal(shifted, clips["domain"] == "target")
    np.testing.assert_array_equal(positives, train)
    np.testing.assert_array_equal(held_out, validation)
    assert {*negatives, *others} == {*np.flatnonzero(clips["machine"] == "pump")}
    assert len(negatives) == 4
    learned = [*train, *validation]
    np.testing.assert_array_equal(products[learned], clips["section"][learned] == 5)
    np.testing.assert_array_equal(products[[*negatives, *others]], -1)
    assert seen["products"] == 2


def test_a_section_whose_training_recordings_are_all_skipped_is_no_product(monkeypatch, tmp_path):
    clips = make_clips({("train", s, "source"): (4, 0) for s in (1, 2, 3)})
    clips["usable"] = (clips["section"] != 3).to_numpy()
    seen = describe_tasks(monkeypatch, tmp_path, clips)
    assert seen["products"] == 2
    assert seen["serial_oe"][0].max() == 1


@pytest.mark.parametrize("kept", range(4))
def test_where_only_one_recording_can_be_used_it_trains(monkeypatch, tmp_path, kept):
    clips = make_clips({("train", 0, "source"): (4, 0)})
    clips["usable"] = (clips["machine"] == "pump") | (clips.index == kept)
    train, validation, _ = describe_tasks(monkeypatch, tmp_path, clips)["autoencoder"]
    assert (train.tolist(), validation.tolist()) == ([kept], [])


def test_the_waveforms_are_standardised_and_split_as_configured(monkeypatch, tmp_path):
    def standardise(waveforms, how, rows):
        assert (waveforms, how) == ("as opened", "machine")
        np.testing.assert_array_equal(rows, training)
        return "standardised"

    seen = []
    clips = make_clips(COUNTS)
    training = np.flatnonzero((clips["machine"] == "fan") & (clips["split"] == "train"))
    for name in ("autoencoder", "serial_oe"):
        monkeypatch.setattr(
            experiment,
            f"make_{name}_task",
            lambda config, *given: (seen.append(given), [None] * 3)[1],
        )
    for name in ("fit", "Autoencoder", "SerialOE", "save_segments"):
        monkeypatch.setattr(experiment, name, lambda *_, **__: None)
    monkeypatch.setattr(experiment, "standardise", standardise)
    monkeypatch.setattr(experiment, "score_segments", lambda *given, **_: seen.append(given[3:]))
    config = make_config("", **{"data.standardise": "machine", "data.train_share": 0.5})
    experiment.make_segments(
        config, clips, "as opened", "fan", 0, directory=tmp_path, mesh=None, preemption=None
    )
    assert [given[0] for given in seen] == ["standardised"] * 3
    train = clips.iloc[seen[0][1]].groupby(["section", "domain"]).size().to_dict()
    assert train == {(2, "source"): 10, (2, "target"): 2, (5, "source"): 3}


# Initial weights


def write_weights(path, seed):
    """A file of random weights for the backbone of these tests, and the backbone."""
    config = make_config("").serial_oe.backbone
    backbone = tiny.randomise(lambda: EfficientNet(config, rngs=nnx.Rngs(0)), seed)
    save_file(to_timm(backbone), path)
    return backbone


def test_serial_oe_starts_from_the_weights_of_a_file(monkeypatch, tmp_path):
    backbone = write_weights(tmp_path / "weights.safetensors", 0)
    started = {}

    def fit(model, *_, directory, **__):
        started[directory.name] = model

    monkeypatch.setattr(experiment, "fit", fit)
    monkeypatch.setattr(experiment, "score_segments", stop_after(0, None))
    config = make_config("", **{"serial_oe.init_from": str(tmp_path / "weights.safetensors")})
    with pytest.raises(Stop):
        experiment.make_segments(
            config, make_clips(COUNTS), None, "fan", 0, directory=tmp_path, **tiny.on_one_device()
        )
    model = started["serial_oe"]
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(model.backbone)),
        nnx.to_pure_dict(nnx.state(backbone)),
    )
    assert model.embed.kernel.shape == (8, 8)  # the heads are there, and random


def test_weights_that_do_not_fit_stop_the_run_before_training(monkeypatch, tree, tmp_path):
    monkeypatch.setattr(experiment, "read_recordings", lambda *_: pytest.fail("too late"))
    other = make_config("", **{"serial_oe.backbone.head": 24}).serial_oe.backbone
    backbone = tiny.randomise(lambda: EfficientNet(other, rngs=nnx.Rngs(0)))
    save_file(to_timm(backbone), tmp_path / "other.safetensors")
    config = make_config(tree, **{"serial_oe.init_from": str(tmp_path / "other.safetensors")})
    with pytest.raises(DataError, match=r"other\.safetensors has .* of shape .*, it must be"):
        experiment.run(config, tmp_path / "run")


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_keeps_its_initial_weights(monkeypatch, tree, tmp_path, finished):
    monkeypatch.setattr(experiment, "make_segments", stop_after(0, None))

    def start(file):
        config = make_config(tree, **{"serial_oe.init_from": file and str(tmp_path / file)})
        experiment.run(config, tmp_path / "run")

    write_weights(tmp_path / "a", 0)
    write_weights(tmp_path / "b", 0)
    with pytest.raises(Stop):
        start("a")
    if finished:
        (tmp_path / "run" / "table2.csv").touch()
    for other in ("b", ""):
        with pytest.raises(ConfigError, match=r"serial_oe\.init_from \(.*a there, .* now\)"):
            start(other)
    if not finished:
        with pytest.raises(Stop):
            start("a")
        write_weights(tmp_path / "a", 1)
        with pytest.raises(ConfigError, match=r"or weights of serial_oe\.init_from; give"):
            start("a")


# Targets


def choose(clips, *machines):
    return experiment.choose_targets(check_config(make_config("", machines=machines)), clips)


def test_without_names_every_machine_with_test_recordings_is_a_target():
    clips = make_clips(COUNTS)
    assert choose(clips) == ["fan"]
    assert choose(clips, "pump", "fan") == ["pump", "fan"]


@pytest.mark.parametrize(
    ("counts", "machines", "says"),
    [
        (COUNTS, ("fna",), "--config.machines: no fna; there are fan, pump"),
        ({("test", 0, "source"): (1, 1)}, (), "fan has no training recordings"),
        (
            COUNTS | {("test", 7, "source"): (1, 1)},
            (),
            r"fan has test recordings but no training recordings of sections \[7\]",
        ),
        ({("train", 0, "source"): (1, 0)}, (), "no machine has test recordings; name one by"),
    ],
)
def test_a_machine_that_cannot_be_trained_is_refused(counts, machines, says):
    with pytest.raises((ConfigError, DataError), match=says):
        choose(make_clips(counts), *machines)


@pytest.mark.parametrize(
    ("quota", "kept", "says"),
    [
        (1, "source", "target_per_batch=1: fan has no training recordings of the target domain"),
        (0, "target", "target_per_batch=0: fan has no training recordings of the source domain"),
        (0, "source", None),
        (-1, "target", None),
    ],
)
def test_a_domain_that_batches_ask_for_must_be_there(quota, kept, says):
    clips = make_clips({("train", 2, kept): (9, 0), ("test", 2, "source"): (2, 2)})
    config = check_config(make_config("", **{"serial_oe.target_per_batch": quota}))
    if says is None:
        assert experiment.choose_targets(config, clips) == ["fan"]
    else:
        with pytest.raises(ConfigError, match=says):
            experiment.choose_targets(config, clips)


def test_a_machine_alone_has_no_pseudo_anomalous_sounds():
    clips = make_clips(COUNTS)
    with pytest.raises(DataError, match="fan has no other machine with training recordings"):
        choose(clips[clips["machine"] == "fan"], "fan")
    clips["usable"] = (clips["machine"] == "fan").to_numpy()
    with pytest.raises(DataError, match="fan has no other machine with training recordings"):
        choose(clips, "fan")


# Tables


def tabulate(workdir, clips, segments, machine="fan"):
    config = check_config(make_config("", machines=(machine,), **{"inlier.clusters": (1,)}))
    clips = clips.assign(machine=machine)
    directory = workdir / machine / "seed_0"
    score_systems(
        config,
        clips,
        segments,
        seed=0,
        directory=directory,
        say=lambda line: None,
        **tiny.on_one_device(),
    )
    results.tabulate(config, clips, [machine], workdir)
    results.print_tables(workdir)


def test_a_machine_without_test_recordings_has_a_row_in_table_1_alone(tmp_path, capsys):
    tabulate(tmp_path, *make_machine({("train", 0, "source"): (9, 0)}))
    assert "no validation sections: default" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "table1.csv")) == 1
    assert pd.read_csv(tmp_path / "results.csv").empty
    assert pd.read_csv(tmp_path / "table2.csv")["all_hmean"].isna().all()


TESTED = {
    ("train", 1, "source"): (9, 0),
    ("test", 1, "source"): (4, 4),
    ("train", 0, "source"): (9, 0),
    ("test", 0, "source"): (4, 4),
}


def test_a_section_whose_test_recordings_are_all_skipped_is_not_evaluable(tmp_path):
    clips, segments = make_machine(TESTED)
    clips["usable"] = ~((clips["section"] == 0) & (clips["split"] == "test"))
    kept = segments.select((segments.section == 1) | (segments.split == "train"))
    tabulate(tmp_path, clips, kept)
    results = pd.read_csv(tmp_path / "results.csv")
    assert results["auc"][results["section"] == 0].isna().all()
    assert results["auc"][results["section"] == 1].notna().all()
    assert {*results["n_normal"][results["section"] == 0]} == {0}


@pytest.mark.parametrize("name", ["source", "seed", "method", "all_hmean", "all"])
def test_a_machine_may_not_be_named_like_another_column_of_table_2(name):
    clips = pd.DataFrame({"machine": [name], "split": ["train"], "usable": [True], "section": [0]})
    config = check_config(make_config("", machines=(name,)))
    with pytest.raises(DataError, match=f"a machine named {name}: "):
        experiment.choose_targets(config, clips)


def test_a_machine_may_be_named_by_a_number(tmp_path, capsys):
    tabulate(tmp_path, *make_machine(TESTED), machine="007")
    printed = capsys.readouterr().out
    assert "007      ours" in printed


@pytest.mark.parametrize(
    ("counts", "paper"),
    [
        ({"source": 1000, "target": 3}, True),
        ({"source": 1008, "target": 3}, True),
        ({"source": 999, "target": 3}, False),
        ({"source": 1000, "target": 4}, False),
        ({"source": 1000}, False),
        ({"target": 3}, False),
    ],
)
def test_the_papers_rows_stand_beside_ours_where_the_training_data_are_the_papers(counts, paper):
    domains = [domain for domain, count in counts.items() for _ in range(count)]
    clips = pd.DataFrame({"domain": domains}).assign(machine="fan", split="train", section=0)
    assert results._is_dcase2021(clips, ["fan"]) is paper
    assert results._is_dcase2021(clips.assign(machine="fans"), ["fans"]) is False


# Killed

DEMO = (
    "--config=configs/demo.py",
    "--config.checkpoint_seconds=1",
    "--config.autoencoder.epochs=60",
    "--config.serial_oe.epochs=12",
    "--config.serial_oe.backbone.stages=((1,8,1,2,3),(2,16,1,2,3))",
    "--config.inlier.clusters=(1,2)",
)


def start(workdir):
    command = [sys.executable, "-m", "dns_jax.main", *DEMO, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1])


def kill_while(workdir, begun, ended):
    """Start the command, and kill it at a random moment between two files' coming to be."""
    process = start(workdir)
    try:
        while process.poll() is None and not [*workdir.glob(begun)]:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 4))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert [*workdir.glob(begun)]
    assert not [*workdir.glob(ended)]


@pytest.mark.soak
def test_a_killed_command_that_is_started_again_gives_the_same_to_the_byte(tmp_path):
    seed = "blower/seed_0"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    kill_while(killed, f"{seed}/ae/checkpoints/*", f"{seed}/serial_oe")
    kill_while(killed, f"{seed}/serial_oe/checkpoints/*", f"{seed}/segments.npz")
    kill_while(killed, f"{seed}/serial_oe/checkpoints/72", f"{seed}/selection.json")
    assert start(killed).wait() == 0
    files = ["results.csv", "table1.csv", "table2.csv", f"{seed}/selection.json"]
    files += [str(path.relative_to(whole)) for path in whole.glob(f"{seed}/scores/*/*.csv")]
    assert len(files) == 4 + 4 * 2 * 8
    for name in files:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
