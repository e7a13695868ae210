"""Every limit of a configuration, and which configuration a workdir belongs to."""

import importlib
import json
from pathlib import Path

import jax
import ml_collections
import pytest
import tiny
from flax import nnx

from configs import default
from dns_jax.config import check_config
from dns_jax.data.refusals import ConfigError
from dns_jax.evaluation.label_free import PAPER
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.serial_oe import SerialOE
from dns_jax.workdir import check_recordings, open_workdir, read_config

CONFIGS = [
    "configs." + path.stem
    for path in sorted((Path(__file__).parents[1] / "configs").glob("[a-z]*.py"))
]


def change(**fields):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    return config


def refuse(fields):
    """Return the one line that refuses these fields."""
    with pytest.raises(ConfigError) as caught:
        check_config(change(**fields))
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is accepted


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_that_comes_along_is_accepted(name):
    config = check_config(importlib.import_module(name).get_config())
    assert isinstance(config, ml_collections.FrozenConfigDict)


def test_a_checked_configuration_cannot_be_changed():
    config = check_config(default.get_config())
    with pytest.raises(AttributeError, match="immutable"):
        config.scoring_batch = 1


def test_the_callers_configuration_stays_as_it_is():
    config = change(machines=("fan,pump",))
    before = config.to_json()
    check_config(config)
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("given", "machines"),
    [
        (("fan,pump",), ("fan", "pump")),
        (("fan", "pump"), ("fan", "pump")),
        (("fan, pump", "valve,"), ("fan", "pump", "valve")),
        ((1, 2), ("1", "2")),
        (("",), ()),
        ((), ()),
    ],
)
def test_machines_may_be_given_one_by_one_or_with_commas(given, machines):
    assert check_config(change(machines=given)).machines == machines


def test_both_front_ends_follow_the_rate():
    rates = {"data.rate": 8000}
    bands = {"autoencoder.front_end.high_hz": 3800.0, "serial_oe.front_end.high_hz": 4000.0}
    config = check_config(change(**rates, **bands))
    assert config.autoencoder.front_end.rate == config.serial_oe.front_end.rate == 8000


@pytest.mark.parametrize(
    "fields",
    [
        {"serial_oe.dropout": 0.0},
        {"serial_oe.product_weight": 0.0},
        {"checkpoint_seconds": 0.0},
        {"autoencoder.front_end.low_hz": 0.0, "autoencoder.front_end.high_hz": 8000.0},
        {"autoencoder.adjacent_frames": 126},
        {"serial_oe.front_end.window_ms": 4000.0},
        {"validation_sections": (), "evaluation_sections": ()},
        {"seeds": (4294967295,)},
        {"data.channel": 0},
        {"serial_oe.batch": 2},
        {"serial_oe.backbone.stages": ()},
        {"data.synthetic": True},
    ],
)
def test_a_value_at_its_limit_is_accepted(fields):
    check_config(change(**fields))


# What is refused

COUNTS = (
    "data.rate autoencoder.front_end.mels serial_oe.front_end.mels autoencoder.batch "
    "serial_oe.batch autoencoder.epochs serial_oe.epochs autoencoder.validate_every "
    "serial_oe.validate_every autoencoder.adjacent_frames autoencoder.hidden autoencoder.depth "
    "autoencoder.bottleneck serial_oe.backbone.stem serial_oe.backbone.head serial_oe.feature "
    "inlier.default_clusters smoothing.default_k scoring_batch"
).split()
POSITIVES = (
    "data.segment_seconds data.hop_seconds autoencoder.front_end.window_ms "
    "serial_oe.front_end.window_ms autoencoder.front_end.hop_ms serial_oe.front_end.hop_ms "
    "autoencoder.front_end.high_hz serial_oe.front_end.high_hz autoencoder.learning_rate "
    "serial_oe.learning_rate serial_oe.mixup_alpha serial_oe.backbone.width "
    "serial_oe.backbone.depth"
).split()
NOT_NEGATIVES = (
    "checkpoint_seconds autoencoder.front_end.low_hz serial_oe.front_end.low_hz "
    "serial_oe.product_weight serial_oe.weight_decay"
).split()
NAN, INF = float("nan"), float("inf")
REFUSED = [
    *((name, value) for name in COUNTS for value in (0, -1, 2**70)),
    *((name, value) for name in POSITIVES for value in (0.0, -1.0, NAN, INF)),
    *((name, value) for name in NOT_NEGATIVES for value in (-0.1, NAN, INF)),
    *(("serial_oe.dropout", value) for value in (-0.1, 1.0, 2.0, NAN)),
    *(("data.channel", value) for value in (-2, -100)),
    *(("data.train_share", value) for value in (0.0, 1.0, -0.1, NAN)),
    *(("threshold_percentile", value) for value in (-1.0, 100.5, NAN)),
    *(("serial_oe.target_per_batch", value) for value in (-2, 2**70 * -1)),
    ("data.standardise", "clip"),
    ("serial_oe.init_from", None),
    *(
        (name, values)
        for name in ("validation_sections", "evaluation_sections", "seeds")
        for values in ((-1,), (1.0,), ("1",), (7, 7), ((7,),), (True,), (None,))
    ),
    *(("seeds", values) for values in ((), (2**32,), (0, 2**70))),
    *(
        ("inlier.clusters", values)
        for values in ((), (0,), (-1,), (1.5,), ("1",), (2, 2), ((1, 2),), (2**70,))
    ),
    *(
        ("serial_oe.backbone.stages", rows)
        for rows in (
            (1, 16, 1, 1, 3),
            ((1, 16, 1, 1),),
            ((1, 16, 1, 1, 3, 1),),
            ((1, 16, 1, 1, 0),),
            ((1, 16, 1.5, 1, 3),),
            (("1", "16", "1", "1", "3"),),
            ("large",),
            ("(1, 16, 1, 1, 3)",),
            (None,),
        )
    ),
    ("serial_oe.batch", 7),
    ("machines", ("fan,fan",)),
    ("machines", ("fan", "fan")),
    ("serial_oe.machine_head", "quadratic"),
    ("serial_oe.mixup_schedule", "never"),
    ("inlier.fit_split", "test"),
    ("smoothing.unit", "segments"),
    ("smoothing.scope", ""),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=str)
def test_a_value_outside_its_limits_is_refused_by_name_and_value(name, value):
    shown = tuple(",".join(value).split(",")) if name == "machines" else value
    assert refuse({name: value}).startswith(f"--config.{name}={shown}: it must be ")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"data.rate": 8000},
            "--config.autoencoder.front_end.high_hz=7800.0: it must be above low_hz=50.0 and at "
            "most half of --config.data.rate=8000",
        ),
        (
            {"serial_oe.front_end.low_hz": 7800.0},
            "--config.serial_oe.front_end.high_hz=7800.0: it must be above low_hz=7800.0",
        ),
        (
            {"data.segment_seconds": 0.1},
            "--config.serial_oe.front_end.window_ms=128.0: it must be one sample or more and fit "
            "into a segment of --config.data.segment_seconds=0.1",
        ),
        ({"data.segment_seconds": 1e-5}, "--config.autoencoder.front_end.window_ms=64.0: "),
        ({"autoencoder.front_end.window_ms": 0.01}, "--config.autoencoder.front_end.window_ms"),
        ({"serial_oe.front_end.hop_ms": 0.01}, "--config.serial_oe.front_end.hop_ms=0.01: "),
        ({"data.hop_seconds": 1e-5}, "--config.data.hop_seconds=1e-05: "),
        (
            {"autoencoder.adjacent_frames": 127},
            "--config.autoencoder.adjacent_frames=127: a segment of "
            "--config.data.segment_seconds=4.0 has 126 frames",
        ),
        (
            {"validation_sections": (0, 3, 4)},
            "sections [3, 4] are in both --config.validation_sections and "
            "--config.evaluation_sections",
        ),
        (
            {"serial_oe.target_per_batch": 64},
            "--config.serial_oe.target_per_batch=64: it must be below half a batch, 64",
        ),
        (
            {"data.synthetic": True, "data_dir": "mine"},
            "--config.data_dir=mine: --config.data.synthetic=True has recordings of its own",
        ),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_each_other_are_refused(fields, says):
    assert refuse(fields).startswith(says)


def walk(config, name):
    *parents, last = name.split(".")
    for parent in parents:
        config = config[parent]
    return config, last


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("autoencoder.epoch", "autoencoder.epochs"),
        ("seed", "seeds"),
        ("data.resampled", "data.resample"),
        ("data_dr", "data_dir"),
    ],
)
def test_a_field_that_is_not_known_is_refused_and_the_closest_named(name, closest):
    config = default.get_config()
    part, last = walk(config, name)
    part[last] = 1
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert str(caught.value) == f"--config.{name}: there is no such field; did you mean {closest}?"


@pytest.mark.parametrize("name", ["data_dir", "seeds", "data", "serial_oe.front_end.mels"])
def test_a_field_that_is_lacking_is_refused(name):
    config = default.get_config()
    part, last = walk(config, name)
    del part[last]
    with pytest.raises(ConfigError, match=rf"--config\.{name}.*: the configuration lacks this"):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_dir", 3),
        ("data.resample", "yes"),
        ("autoencoder", 3),
        ("seeds", 3),
        ("scoring_batch", "3"),
        ("serial_oe.dropout", "0.3"),
    ],
)
def test_a_field_of_another_type_is_refused(name, value):
    config = ml_collections.ConfigDict(default.get_config().to_dict(), type_safe=False)
    part, last = walk(config, name)
    part[last] = value
    with pytest.raises(ConfigError, match=rf"--config\.{name}"):
        check_config(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"data.segment_seconds": 0.13, "autoencoder.front_end.window_ms": 130.0},
        {"autoencoder.front_end.window_ms": 0.0626, "autoencoder.front_end.mels": 3},
        {"serial_oe.front_end.window_ms": 0.0626, "serial_oe.front_end.hop_ms": 4000.0},
        {"serial_oe.front_end.window_ms": 4000.0, "serial_oe.front_end.hop_ms": 400.0},
        {"autoencoder.front_end.hop_ms": 1e6, "autoencoder.adjacent_frames": 1},
        {"serial_oe.backbone.stages": ()},
        {"serial_oe.backbone.stages": ((1, 1, 1, 1000, 9),), "serial_oe.front_end.mels": 1},
        {"serial_oe.backbone.width": 1e-9, "serial_oe.backbone.depth": 1e-9},
        {"autoencoder.depth": 1, "autoencoder.hidden": 1, "autoencoder.bottleneck": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Empty filters detected")
def test_what_is_accepted_gives_networks_that_take_a_segment(fields):
    config = check_config(change(**{"serial_oe.backbone.stages": ((1, 8, 1, 1, 3),)} | fields))
    samples = round(config.data.rate * config.data.segment_seconds)
    segments = jax.ShapeDtypeStruct((2, samples), "float32")

    def apply(segments):
        autoencoder = Autoencoder(config.autoencoder, rngs=nnx.Rngs(0))
        serial_oe = SerialOE(config.serial_oe, 2, rngs=nnx.Rngs(0))
        vectors = autoencoder.extract(segments)
        return autoencoder(vectors, train=False), serial_oe(segments, train=False)

    vectors, features = jax.eval_shape(apply, segments)
    assert vectors.shape[1] >= 1
    assert features.shape == (2, config.serial_oe.feature)


# Whose a workdir is


def frozen(**fields):
    config = tiny.make_config()
    config.update_from_flattened_dict(fields)
    return check_config(config)


def start_run(workdir):
    open_workdir(frozen(), workdir)
    check_recordings(workdir, {"fan": "a"})


def test_a_workdir_whose_run_never_started_takes_another_configuration(tmp_path):
    open_workdir(frozen(), tmp_path)
    open_workdir(frozen(machines=("fan",)), tmp_path)
    run = json.loads((tmp_path / "config.json").read_text())
    assert run["config"]["machines"] == ["fan"]


def test_a_new_workdir_gets_the_configuration_with_versions(tmp_path):
    config = frozen(machines=("fan",))
    open_workdir(config, tmp_path / "new" / "run")
    run = json.loads((tmp_path / "new" / "run" / "config.json").read_text())
    assert run["config"] == json.loads(json.dumps(config.to_dict()))
    assert {"dns_jax", "python", "jax", "flax", "numpy"} <= {*run["versions"]}
    assert run["recordings"] == {}


def test_the_same_configuration_is_let_in_again_and_nothing_is_written(tmp_path):
    start_run(tmp_path)
    before = (tmp_path / "config.json").stat()
    open_workdir(frozen(), tmp_path)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before.st_mtime_ns
    assert (tmp_path / "config.json").stat().st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "fields",
    [
        {"data_dir": "elsewhere"},
        {"progress": True},
        {"checkpoint_seconds": 1.0},
        {"data.cache_dir": "fast"},
        {"data.labels": "ground_truth_data"},
        {"data.device_gigabytes": 0.0},
    ],
    ids=str,
)
def test_where_the_recordings_lie_and_how_a_run_is_watched_may_change(tmp_path, fields):
    start_run(tmp_path)
    open_workdir(frozen(**fields), tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seeds": (0, 1)}, "seeds ([0] there, [0, 1] now)"),
        ({"machines": ("fan",)}, "machines ([] there, ['fan'] now)"),
        ({"autoencoder.epochs": 4}, "autoencoder.epochs (3 there, 4 now)"),
        ({"autoencoder.cached_mel": True}, "autoencoder.cached_mel (False there, True now)"),
        ({"smoothing.unit": "clip"}, "smoothing.unit (segment there, clip now)"),
        ({"data.skip_bad": True}, "data.skip_bad (False there, True now)"),
    ],
    ids=str,
)
def test_another_configuration_is_refused_naming_the_fields_and_both_values(tmp_path, fields, says):
    start_run(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        open_workdir(frozen(**fields, data_dir="elsewhere"), tmp_path)
    message = str(caught.value)
    assert f"{tmp_path} holds a run of another configuration: {says};" in message
    assert "\n" not in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_every_field_that_differs_is_named(tmp_path):
    start_run(tmp_path)
    with pytest.raises(ConfigError, match=r"scoring_batch \(.*\), seeds \(.*\); give another"):
        open_workdir(frozen(seeds=(3,), scoring_batch=5), tmp_path)


def test_a_run_from_before_the_fields_beyond_the_paper_did_what_the_paper_says(tmp_path):
    start_run(tmp_path)
    run = json.loads((tmp_path / "config.json").read_text())
    for name in PAPER:
        assert run["config"]["smoothing"].pop(name) == PAPER[name]
    (tmp_path / "config.json").write_text(json.dumps(run))
    open_workdir(frozen(), tmp_path)
    assert read_config(tmp_path)[0].smoothing.method == "mean"
    with pytest.raises(ConfigError, match=r"smoothing.method \(mean there, diffusion now\)"):
        open_workdir(frozen(**{"smoothing.method": "diffusion"}), tmp_path)


@pytest.mark.parametrize("field", ["smoothing.generative=gmm", "smoothing.method=diffusion"])
def test_without_serial_oe_there_is_nothing_to_smooth(field):
    name, _, value = field.partition("=")
    with pytest.raises(ConfigError, match=rf"others=none.*{name}={value} must be (ae|mean)$"):
        frozen(**{"data.others": "none", name: value})
    frozen(**{"data.others": "none"})


def test_fields_of_another_version_are_named_as_absent(tmp_path):
    start_run(tmp_path)
    run = json.loads((tmp_path / "config.json").read_text())
    run["config"]["temperature"] = run["config"].pop("scoring_batch")
    (tmp_path / "config.json").write_text(json.dumps(run))
    with pytest.raises(ConfigError) as caught:
        open_workdir(frozen(), tmp_path)
    assert "scoring_batch (absent there, 32 now)" in str(caught.value)
    assert "temperature (32 there, absent now)" in str(caught.value)


def test_the_recordings_of_a_run_are_remembered(tmp_path):
    open_workdir(frozen(), tmp_path)
    check_recordings(tmp_path, {"fan": "a", "pump": "b"})
    check_recordings(tmp_path, {"pump": "b", "fan": "a"})
    open_workdir(frozen(), tmp_path)


@pytest.mark.parametrize(
    ("digests", "machines"),
    [
        ({"fan": "a", "pump": "c"}, "pump"),
        ({"fan": "a"}, "pump"),
        ({"fan": "a", "pump": "b", "valve": "c"}, "valve"),
        ({"fan": "b", "pump": "a"}, "fan, pump"),
    ],
)
def test_other_recordings_are_refused_naming_their_machines(tmp_path, digests, machines):
    open_workdir(frozen(), tmp_path)
    check_recordings(tmp_path, {"fan": "a", "pump": "b"})
    with pytest.raises(
        ConfigError, match=f"other recordings, labels or weights of {machines}; give"
    ):
        check_recordings(tmp_path, digests)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"{}",
        b"\xff\xfe",
        b'{"config": 3, "versions": {}, "recordings": {}}',
        b'{"config": {}, "versions": {}, "recordings": 3}',
        b'{"config": {}, "versions": {}}',
    ],
)
def test_a_damaged_config_json_is_told_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    for check in (
        lambda: open_workdir(frozen(), tmp_path),
        lambda: check_recordings(tmp_path, {"fan": "a"}),
    ):
        with pytest.raises(ConfigError, match=r"is not the config\.json of a run") as caught:
            check()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == content
