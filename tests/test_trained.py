"""What is loaded of a finished run is what scored its segments, and what is refused, and how."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from dns_jax.checkpoint import open_checkpoints, save
from dns_jax.data.refusals import ConfigError, DataError
from dns_jax.evaluation.selection import Choice
from dns_jax.models.autoencoder import score_segments
from dns_jax.operation.trained import load_trained
from dns_jax.scoring import load_segments, save_segments
from dns_jax.training import TrainState

SEED = "fan/seed_0"


@pytest.fixture
def workdir(finished_run, tmp_path):
    """A copy of the run, to be changed; its recordings lie where they were."""
    return shutil.copytree(finished_run, tmp_path / "run")


def edit(file, change):
    """Change a JSON file in place; `change` may return another value."""
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def read_recordings(workdir, split):
    """{name: f64[samples]} of the fan's recordings, full scale 1."""
    data_dir = json.loads((workdir / "config.json").read_text())["config"]["data_dir"]
    folder = f"{data_dir}/fan"
    paths = sorted(Path(folder).glob(f"*{split}/*.wav"))
    return {path.name: soundfile.read(path)[0] for path in paths}


def cut(waveform):
    """The five segments of a recording of a second at 4 kHz."""
    return np.stack([waveform[i : i + 2000] for i in range(0, 2001, 500)])


def weights(model):
    return nnx.to_pure_dict(nnx.state(model))


# What is loaded


def test_the_networks_score_the_segments_as_the_run_did(finished_run):
    trained = load_trained(finished_run)
    waveforms = read_recordings(finished_run, "test")
    segments = load_segments(finished_run / SEED / "segments.npz")
    assert len(waveforms) == 24
    for name in [*waveforms][::6]:
        waveform = waveforms[name]
        by_hand = (waveform - waveform.mean()) / waveform.std()
        applied = trained.standardisation.apply(waveform)
        np.testing.assert_allclose(applied, by_hand, rtol=1e-6, atol=1e-6)
        mine, rows = cut(applied), segments.clip == name
        a_g = score_segments(trained.autoencoder, mine)
        np.testing.assert_allclose(a_g, segments.ae_score[rows], rtol=1e-6)
        f_d = trained.serial_oe(mine, train=False)
        np.testing.assert_allclose(f_d, segments.feature[rows], rtol=1e-5, atol=1e-6)


def test_the_choice_the_segments_and_the_configuration_are_the_runs(finished_run):
    trained = load_trained(finished_run, "fan", 0)
    proposed = json.loads((finished_run / SEED / "selection.json").read_text())["proposed"]
    assert trained.choice == Choice(**proposed)
    assert (trained.machine, trained.seed) == ("fan", 0)
    assert trained.config.serial_oe.backbone.stages == ((1, 8, 1, 1, 3),)
    expected = load_segments(finished_run / SEED / "segments.npz")
    jax.tree.map(np.testing.assert_array_equal, trained.segments, expected)


def test_the_weights_are_those_of_the_lowest_validation_loss(workdir):
    model = load_trained(workdir).autoencoder
    params, statistics = (
        nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )
    rng = np.random.default_rng(0)

    def draw(tree):
        return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)

    state = TrainState(
        params=draw(params),
        statistics=draw(statistics),
        optimizer={"count": np.int32(3)},
        best_params=draw(params),
        best_statistics=draw(statistics),
        best_loss=np.float32(1),
        loss_sum=np.float32(0),
    )
    shutil.rmtree(workdir / SEED / "ae" / "checkpoints")
    with open_checkpoints(workdir / SEED / "ae" / "checkpoints") as checkpoints:
        save(checkpoints, 7, state)
    loaded = load_trained(workdir).autoencoder
    for kind, expected in ((nnx.Param, "best_params"), (nnx.BatchStat, "best_statistics")):
        got = nnx.to_pure_dict(nnx.state(loaded, kind))
        jax.tree.map(np.testing.assert_array_equal, got, getattr(state, expected))


def test_loading_leaves_the_workdir_as_it_was(workdir):
    def list_files():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in workdir.rglob("*")}

    before = list_files()
    load_trained(workdir)
    assert list_files() == before


def test_a_run_of_the_autoencoder_alone_has_no_features_and_no_choice(workdir):
    edit(workdir / "config.json", lambda run: run["config"]["data"].update(others="none"))
    trained = load_trained(workdir)
    assert (trained.serial_oe, trained.choice) == (None, None)


def test_without_test_recordings_k_is_the_default(workdir):
    edit(workdir / SEED / "selection.json", lambda chosen: chosen.update(proposed=None))
    assert load_trained(workdir).choice == Choice(32, "all", "default")


def test_the_seed_is_the_first_of_the_run_unless_named(workdir):
    edit(workdir / "config.json", lambda run: run["config"].update(seeds=[5, 0]))
    shutil.copytree(workdir / SEED, workdir / "fan" / "seed_5")
    segments = load_segments(workdir / SEED / "segments.npz")
    segments.ae_score[:] = 1
    save_segments(workdir / "fan" / "seed_5" / "segments.npz", segments)
    assert load_trained(workdir).segments.ae_score[0] == 1
    assert load_trained(workdir, seed=0).segments.ae_score[0] != 1


def test_a_run_of_before_a_field_was_there_is_what_it_was(workdir):
    def forget(run):
        del run["config"]["precision"], run["config"]["autoencoder"]["precision"]
        del run["config"]["data"]["year"]

    edit(workdir / "config.json", forget)
    config = load_trained(workdir).config
    assert (config.autoencoder.precision, config.data.year) == ("float32", 2021)


# Standardisation by machine


@pytest.fixture
def by_machine(workdir):
    edit(workdir / "config.json", lambda run: run["config"]["data"].update(standardise="machine"))
    return workdir


def test_mean_and_deviation_of_a_machine_are_those_of_its_training_recordings(by_machine):
    samples = np.concatenate([*read_recordings(by_machine, "train").values()])
    standardisation = load_trained(by_machine).standardisation
    assert standardisation.rule == "machine"
    assert standardisation.mean == pytest.approx(samples.mean(), rel=1e-9)
    assert standardisation.scale == pytest.approx(1 / samples.std(), rel=1e-9)
    some = np.linspace(-1, 1, 50)
    expected = (some - samples.mean()) / samples.std()
    np.testing.assert_allclose(standardisation.apply(some), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_training_recordings_that_are_not_those_of_the_run_are_refused(by_machine, tmp_path, how):
    def move(run):
        moved = tmp_path / "data"
        if how == "changed":
            shutil.copytree(run["config"]["data_dir"], moved)
            (first, *_) = sorted(moved.glob("fan/train/*.wav"))
            soundfile.write(first, np.sin(np.arange(4000)) / 2, 4000)
        run["config"]["data_dir"] = str(moved)

    edit(by_machine / "config.json", move)
    with pytest.raises(DataError, match=r"standardises by .* fan's training .* put them back") as e:
        load_trained(by_machine)
    assert "\n" not in str(e.value)


# What is refused


def remove(name):
    return lambda workdir: (workdir / name).unlink()


def write(name, text):
    return lambda workdir: (workdir / name).write_text(text)


def widen(workdir):
    edit(workdir / "config.json", lambda run: run["config"]["autoencoder"].update(hidden=16))


@pytest.mark.parametrize(
    ("change", "named", "error", "says"),
    [
        (shutil.rmtree, {}, ConfigError, "run: there is no such folder"),
        (remove("config.json"), {}, ConfigError, "holds no run: it has no config.json"),
        (write("config.json", "{"), {}, ConfigError, "is not the config.json of a run"),
        (
            lambda w: edit(w / "config.json", lambda run: run["config"].update(data=3)),
            {},
            ConfigError,
            "config.json cannot be used",
        ),
        (
            lambda w: edit(w / "config.json", lambda run: run["config"]["data"].update(rate=0)),
            {},
            ConfigError,
            r"config.json cannot be used: --config.data.rate=0: it must be",
        ),
        (lambda w: shutil.rmtree(w / "fan"), {}, DataError, "has no trained machine yet"),
        (
            lambda w: (w / "pump" / "seed_0").mkdir(parents=True),
            {},
            ConfigError,
            "--machine is missing; .*run has fan, pump",
        ),
        (None, {"machine": "fna"}, ConfigError, "--machine=fna: there is none; .*run has fan"),
        (None, {"machine": "../run/fan"}, ConfigError, "there is none; .*run has fan"),
        (None, {"seed": 3}, ConfigError, "--seed=3: there is none; .*run has 0"),
        (remove(f"{SEED}/selection.json"), {}, DataError, "is not finished, it has no selection"),
        (write(f"{SEED}/selection.json", "{"), {}, DataError, "selection.json is damaged"),
        (
            write(f"{SEED}/selection.json", '{"proposed": {"size": 0, "data": "all", "how": ""}}'),
            {},
            DataError,
            r"selection.json is damaged .*K = 0",
        ),
        (write(f"{SEED}/segments.npz", "PK"), {}, DataError, "segments.npz is damaged"),
        (
            lambda w: shutil.rmtree(w / SEED / "serial_oe"),
            {},
            DataError,
            "serial_oe/checkpoints is damaged or of another network",
        ),
        (widen, {}, DataError, r"ae/checkpoints is damaged or of another network .*in place of"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(workdir, change, named, error, says):
    if change:
        change(workdir)
    with pytest.raises(error, match=says) as caught:
        load_trained(workdir, **named)
    assert "\n" not in str(caught.value)


# Orbax drops its reads of the other arrays when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_weights_are_refused_until_they_are_copied_back(workdir, finished_run):
    files = [*(workdir / SEED / "ae").rglob("d/*")]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"ae/checkpoints is damaged .* copy it back, or") as caught:
        load_trained(workdir)
    assert "\n" not in str(caught.value)
    shutil.rmtree(workdir / SEED / "ae")
    shutil.copytree(finished_run / SEED / "ae", workdir / SEED / "ae")
    loaded, expected = (weights(load_trained(w).autoencoder) for w in (workdir, finished_run))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
