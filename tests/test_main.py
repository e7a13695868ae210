"""The command line as a user types it: every mistake is one clear line and an exit status."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from absl.testing import flagsaver
from jax.errors import JaxRuntimeError

from dns_jax import compilation, experiment, main
from dns_jax.workdir import check_recordings

# ml_collections loads a configuration in a way that Python gives up.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
FAN = "--config=configs/fan.py"


def run_command(*argv, cwd=ROOT, env=None):
    """Run `python -m dns_jax.main`; return exit status, lines printed and lines on stderr."""
    env = os.environ if env is None else env
    done = subprocess.run(
        [sys.executable, "-m", "dns_jax.main", *map(str, argv)],
        cwd=cwd,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture
def call(monkeypatch, capfd):
    """The same in this process, for speed; no mistake here may come as far as training."""
    monkeypatch.setattr(experiment, "make_segments", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr(compilation, "keep_programs", lambda: None)  # not of all tests
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, argv)])
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        status = 0
        with flagsaver.flagsaver():
            try:
                main.main(main._parse_flags(sys.argv))
            except SystemExit as stop:
                status = stop.code
        printed, errors = capfd.readouterr()
        return status, printed.splitlines(), errors.splitlines()

    return call


# Mistakes that the flags or the configuration file show


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("", "--config is missing, as in --config=configs/fan.py"),
        ("--workdir=w", "--config is missing, as in --config=configs/fan.py"),
        (f"{FAN}", "--workdir is missing, as in --workdir=runs/fan"),
        (f"{FAN} --workdir=", "--workdir is missing, as in --workdir=runs/fan"),
        (f"{FAN} --workdir", "Missing value for flag --workdir"),
        (f"{FAN} --workdir=w run", "unexpected argument run"),
        (f"{FAN} --workdri=w", "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
        ("--config= --workdir=w", "Path to config file is an empty string."),
        ("--config=no.py --workdir=w", "No such file or directory: 'no.py'"),
        ("--config=/no.py --workdir=w", "No such file or directory: '/no.py'"),
        ("--config=no.py --workdir=w --config.seeds=1", "No such file or directory: 'no.py'"),
        ("--config=configs --workdir=w", "Is a directory: 'configs'"),
        (f"{FAN}:large --workdir=w", "get_config() takes 0 positional arguments but 1 was given"),
        (f"{FAN} --workdir=w --config.dtaa_dir=d", 'Did you mean "data_dir" instead of'),
        (f"{FAN} --workdir=w --config.data.resmple=1", 'Did you mean "resample" instead of'),
        (f"{FAN} --workdir=w --config.dta.resample=1", 'Did you mean "data" instead of'),
        (f"{FAN} --workdir=w --config.xyzzy=1", "no such field: 'xyzzy'"),
        (f"{FAN} --workdir=w --config.data_dir", "Missing value for flag --config.data_dir"),
        (f"{FAN} --workdir=w --config.progress=maybe", "--config.progress=maybe"),
        (f"{FAN} --workdir=w --config.autoencoder.epochs=1.5", "--config.autoencoder.epochs=1.5"),
        (f"{FAN} --workdir=w --config.autoencoder.epochs=all", "--config.autoencoder.epochs=all"),
        (f"{FAN} --workdir=w --config.serial_oe.dropout=low", "--config.serial_oe.dropout=low"),
        (f"{FAN} --workdir=w --config.autoencoder=3", "`3` is not a dict"),
        (f"{FAN} --workdir=w --config.seeds=(0,", "--config.seeds=(0,"),
        (f"{FAN} --workdir=w --config.seeds[0]=1", "seeds[0]"),
        (f"{FAN} --workdir=w --config.machines.fan=1", "tuple indices must be integers"),
        (f"--config.data_dir=d {FAN} --workdir=w", "before a value for --config was specified"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line_and_status_2(call, argv, says):
    status, printed, errors = call(*argv.split())
    assert (status, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("dns_jax: ")
    assert says in errors[0]
    assert "Traceback" not in errors[0]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("", "has no attribute 'get_config'"),
        ("def get_config(:\n", "invalid syntax (mine.py, line 1)"),
        ("import nonesuch\n", "No module named 'nonesuch'"),
        ("def get_config():\n  return {}\n", "'dict' object has no attribute 'data_dir'"),
        ("def get_config():\n  return unknown\n", "name 'unknown' is not defined"),
        ("def get_config():\n  return int('x')\n", "ValueError: invalid literal for int()"),
        ("def get_config():\n  raise RuntimeError\n", "RuntimeError()"),
    ],
    ids=str,
)
def test_a_configuration_file_that_fails_is_one_line_and_status_2(call, tmp_path, program, says):
    (tmp_path / "mine.py").write_text(program)
    status, printed, errors = call(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}/w")
    assert (status, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("dns_jax: the configuration cannot be read: ")
    assert says in errors[0]
    assert "Traceback" not in errors[0]
    assert not (tmp_path / "w").exists()


def test_a_configuration_that_is_not_ours_is_one_line_and_status_2(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import ml_collections\ndef get_config():\n"
        "  return ml_collections.ConfigDict({'data_dir': '', 'epochs': 3})\n"
    )
    status, _, errors = call(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}/w")
    assert status == 2
    assert errors == ["dns_jax: --config.epochs: there is no such field"]


def test_a_configuration_that_returns_nothing_is_one_line_of_the_real_command(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n  pass\n")
    status, printed, errors = run_command("--config=mine.py", "--workdir=w", cwd=tmp_path)
    assert (status, printed) == (2, [])
    assert errors == [
        "dns_jax: the configuration cannot be read: 'NoneType' object has no attribute 'data_dir'"
    ]


def test_the_real_command_tells_a_mistake_in_the_flags_in_one_line(tmp_path):
    status, printed, errors = run_command(FAN, "--workdir=w", "--config.data.resmple=True")
    assert (status, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("dns_jax: the configuration has no such field: ")


@pytest.mark.parametrize("hosts", ["one host", "several"])
def test_only_a_run_on_one_host_keeps_programs_in_the_users_cache_folder(tmp_path, hosts):
    env = {name: os.environ[name] for name in os.environ if name != "JAX_COMPILATION_CACHE_DIR"}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    flags = (FAN, f"--workdir={tmp_path}/w", *["--distributed"] * (hosts == "several"))
    status, printed, errors = run_command(*flags, env=env)
    assert (status, printed, len(errors)) == (2, [], 1)
    assert (tmp_path / "dns_jax" / "xla").is_dir() == (hosts == "one host")


# Mistakes that the configuration's values and the recordings show


@pytest.fixture
def seen(monkeypatch):
    """What reaches the experiment, which is not run."""
    seen = []
    monkeypatch.setattr(experiment, "run", lambda config, workdir: seen.append((config, workdir)))
    return seen


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--config.machines=fan", "machines", ("fan",)),
        ("--config.machines=fan --config.machines=pump", "machines", ("fan", "pump")),
        ("--config.machines=('fan','pump')", "machines", ("fan", "pump")),
        ("--config.seeds=3", "seeds", (3,)),
        ("--config.seeds=0,1,2", "seeds", (0, 1, 2)),
        ("--config.validation_sections=(0,1)", "validation_sections", (0, 1)),
        ("--config.evaluation_sections=()", "evaluation_sections", ()),
        ("--config.data_dir=a=b", "data_dir", "a=b"),
        ("--noconfig.progress", "progress", False),
        ("--config.checkpoint_seconds=5", "checkpoint_seconds", 5.0),
    ],
)
def test_a_field_is_overridden_by_its_flag(call, seen, flags, field, value):
    assert call(FAN, "--workdir=w", *flags.split()) == (0, [], [])
    ((config, workdir),) = seen
    assert config[field] == value
    assert workdir == Path("w")


def test_machines_with_commas_are_several(call, seen):
    call(FAN, "--workdir=w", "--config.machines=fan,pump")
    assert experiment.check_config(seen[0][0]).machines == ("fan", "pump")


def test_nested_fields_are_overridden_by_their_flags(call, seen):
    stages = "--config.serial_oe.backbone.stages=((1,16,1,1,3),)"
    call(FAN, "--workdir=w", "--config.data.resample", stages)
    assert seen[0][0].data.resample is True
    assert seen[0][0].serial_oe.backbone.stages == ((1, 16, 1, 1, 3),)


def test_configurations_find_each_other_from_any_directory(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('the wrong configs')")
    status, _, errors = run_command(f"--config={ROOT}/configs/fan.py", "--workdir=w", cwd=tmp_path)
    assert status == 2
    assert len(errors) == 1
    assert errors[0].startswith("dns_jax: --config.data_dir is missing: the folder that holds")
    assert "python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR" in errors[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Recordings of two machines: a fan with test recordings and a pump without."""
    root = tmp_path_factory.mktemp("tree")
    noise = np.random.default_rng(0).normal(0, 0.1, 64_000)
    for name in (
        "fan/train/section_00_source_train_normal_0000",
        "fan/train/section_00_target_train_normal_0000",
        "fan/source_test/section_00_source_test_normal_0000",
        "pump/train/section_00_source_train_normal_0000",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(f"{root / name}.wav", noise, 16_000, subtype="PCM_16")
        noise = noise[::-1] / 2
    return root


def copy(tree, to, *machines):
    for path in (p for machine in machines for p in tree.glob(f"{machine}/*/*.wav")):
        (to / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
        (to / path.relative_to(tree)).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--config.scoring_batch=0", "--config.scoring_batch=0: it must be "),
        ("--config.seeds=a", "--config.seeds=('a',): it must be "),
        ("--config.data.rate=8000", "--config.autoencoder.front_end.high_hz=7800.0: it must be "),
        ("--config.serial_oe.backbone.stages=((1,16,1,1,3))", "it must be rows of five whole"),
        ("", "--config.data_dir is missing"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_and_status_2(call, tmp_path, flags, says):
    status, printed, errors = call(FAN, f"--workdir={tmp_path}", *flags.split())
    assert (status, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith("dns_jax: ")
    assert says in errors[0]


def test_a_machine_that_is_not_there_is_one_line_with_those_that_are(call, tree, tmp_path):
    flags = ("--config.machines=fan,pmup", f"--config.data_dir={tree}")
    status, printed, errors = call(FAN, f"--workdir={tmp_path}", *flags)
    assert (status, printed) == (2, [])
    assert errors == ["dns_jax: --config.machines: no pmup; there are fan, pump"]


def test_a_workdir_of_another_configuration_is_one_line_and_status_2(call, tmp_path):
    call(FAN, f"--workdir={tmp_path}")
    check_recordings(tmp_path, {"fan": "a"})  # as a run does that starts
    status, printed, errors = call(FAN, f"--workdir={tmp_path}", "--config.seeds=5")
    assert (status, printed) == (2, [])
    assert errors == [
        f"dns_jax: {tmp_path} holds a run of another configuration: seeds ([0] there, [5] now); "
        "give another --workdir or the same fields"
    ]


def test_recordings_that_changed_are_one_line_and_status_2(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "fan", "pump")
    flags = (f"--workdir={tmp_path / 'w'}", f"--config.data_dir={data}")
    call(FAN, flags[0])
    check_recordings(tmp_path / "w", {"fan": "a", "pump": "b"})  # of a run on other recordings
    status, printed, errors = call(FAN, *flags)
    assert (status, printed, len(errors)) == (2, [], 1)
    assert (
        "was started with other recordings, labels or weights of fan, pump; give another"
        in errors[0]
    )


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "empty machines"])
def test_a_data_directory_without_recordings_is_one_line_and_status_1(call, tmp_path, kind):
    data = tmp_path / "data"
    if kind == "file":
        data.write_text("")
    elif kind != "missing":
        (data / "fan" / "train" if kind == "empty machines" else data).mkdir(parents=True)
    status, printed, errors = call(FAN, f"--workdir={tmp_path}/w", f"--config.data_dir={data}")
    assert (status, printed, len(errors)) == (1, [], 1)
    assert errors[0].startswith("dns_jax: ")
    assert str(data) in errors[0]


def test_a_single_machine_is_one_line_and_status_1(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "fan")
    status, printed, errors = call(FAN, f"--workdir={tmp_path}/w", f"--config.data_dir={data}")
    assert (status, printed, len(errors)) == (1, [], 1)
    assert errors[0].startswith("dns_jax: fan has no other machine with training recordings")


def test_without_any_test_recording_and_machine_there_is_nothing_to_do(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "pump")
    flags = (f"--workdir={tmp_path}/w", f"--config.data_dir={data}")
    status, printed, errors = call("--config=configs/default.py", *flags)
    assert (status, printed, len(errors)) == (1, [], 1)
    assert errors[0].startswith(
        "dns_jax: no machine has test recordings; name one by --config.mach"
    )


def test_a_test_section_that_nothing_was_recorded_of_to_train_is_status_1(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "fan", "pump")
    file = next(data.glob("fan/source_test/*.wav"))
    file.rename(file.with_name("section_07_source_test_normal_0000.wav"))
    status, printed, errors = call(FAN, f"--workdir={tmp_path}/w", f"--config.data_dir={data}")
    assert (status, printed) == (1, [])
    assert errors == ["dns_jax: fan has test recordings but no training recordings of sections [7]"]


def test_hostile_recordings_are_one_message_that_names_each_of_them(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "fan", "pump")
    (data / "fan" / "train" / "section_00_source_train_normal_0001.wav").write_bytes(b"RIFF")
    (data / "fan" / "train" / os.fsdecode(b"noise\xff.wav")).write_bytes(b"")
    status, printed, errors = call(FAN, f"--workdir={tmp_path}/w", f"--config.data_dir={data}")
    assert (status, printed, len(errors)) == (1, [], 3)
    assert errors[0].startswith("dns_jax: 2 files cannot be used")
    assert all(line.endswith("[--config.data.skip_bad=True]") for line in errors[1:])


def test_skipped_files_are_listed_whatever_their_names(call, tree, tmp_path):
    data = copy(tree, tmp_path / "data", "fan", "pump")
    (data / "fan" / "train" / os.fsdecode(b"noise\xff.wav")).write_bytes(b"")
    flags = (f"--config.data_dir={data}", "--config.machines=none", "--config.data.skip_bad")
    status, _, errors = call(FAN, f"--workdir={tmp_path}/w", *flags)
    assert status == 2
    assert errors == [
        f"warning: 1 files are skipped, see {tmp_path}/w/skipped.csv",
        "dns_jax: --config.machines: no none; there are fan, pump",
    ]
    listed = (tmp_path / "w" / "skipped.csv").read_text().splitlines()
    assert listed[0] == "path,reason"
    assert listed[1].startswith(rf"{data}/fan/train/noise\udcff.wav,")


def test_a_factory_that_holds_something_else_is_one_line_and_status_1(call, tmp_path):
    (tmp_path / "factory").mkdir()
    (tmp_path / "factory" / "mine.txt").write_text("")
    status, printed, errors = call("--config=configs/demo.py", f"--workdir={tmp_path}")
    assert (status, printed, len(errors)) == (1, [], 1)
    assert errors[0].startswith(f"dns_jax: {tmp_path / 'factory'} holds no factory")


@pytest.mark.parametrize("place", ["file", "below a file", "closed"])
def test_a_workdir_that_cannot_be_is_one_line_and_status_1(call, tmp_path, place):
    workdir = tmp_path / "w"
    if place == "closed":
        if os.geteuid() == 0:
            pytest.skip("nothing is closed to root")
        workdir.mkdir(mode=0o500)
    else:
        workdir.write_text("")
    workdir = workdir / "run" if place == "below a file" else workdir
    status, printed, errors = call(FAN, f"--workdir={workdir}")
    assert (status, printed, len(errors)) == (1, [], 1)
    assert errors[0].startswith("dns_jax: ")
    assert str(workdir) in errors[0]


def test_a_damaged_config_json_is_one_line_and_status_2(call, tmp_path):
    (tmp_path / "config.json").write_text("{")
    status, printed, errors = call(FAN, f"--workdir={tmp_path}")
    assert (status, printed, len(errors)) == (2, [], 1)
    assert errors[0].startswith(f"dns_jax: {tmp_path}/config.json is not the config.json of a run")


SMALLER = (
    "try a smaller --config.data.device_gigabytes (0: no recordings are held on the device) or "
    "smaller batches"
)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from the last checkpoint"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (
            MemoryError(),
            1,
            f"not enough memory (); {SMALLER}",
        ),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nallocator"),
            1,
            f"not enough memory (RESOURCE_EXHAUSTED: Out of memory.); {SMALLER}",
        ),
    ],
)
def test_what_stops_a_run_is_told_in_one_line(call, monkeypatch, error, status, says):
    def stop(config, workdir):
        raise error

    monkeypatch.setattr(experiment, "run", stop)
    assert call(FAN, "--workdir=w") == (status, [], [f"dns_jax: {says}"])


@pytest.mark.parametrize("error", [ZeroDivisionError, JaxRuntimeError("INTERNAL: a bug")])
def test_an_error_of_the_program_keeps_its_traceback(call, monkeypatch, error):
    def fail(config, workdir):
        raise error

    monkeypatch.setattr(experiment, "run", fail)
    with pytest.raises((ZeroDivisionError, JaxRuntimeError)):
        call(FAN, "--workdir=w")
