"""What a configuration may hold."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import combinations

import ml_collections

from dns_jax.data.refusals import ConfigError
from dns_jax.data.years import YEARS, name_years
from dns_jax.evaluation.label_free import PAPER
from dns_jax.features import make_front_end


def _is_text(value):
    return isinstance(value, str)


def _is_count(value):
    return type(value) is int and 1 <= value <= 1_000_000


def _are_different(values, holds):
    return isinstance(values, tuple) and all(map(holds, values)) and len({*values}) == len(values)


def _are_sections(values):
    return _are_different(values, lambda v: type(v) is int and v >= 0)


def _are_stages(rows):
    return all(len(row) == 5 and all(map(_is_count, row)) for row in rows)


_GENERATIVE = tuple(
    "+".join(scores) for n in (1, 2, 3) for scores in combinations(("ae", "gmm", "serial_oe"), n)
)

# Every field there is, by what it may be; * stands for both networks.
_LIMITS = (
    (
        "text",
        _is_text,
        "data_dir data.labels data.normal data.score data.others data.cache_dir "
        "serial_oe.init_from",
    ),
    (
        "True or False",
        lambda v: isinstance(v, bool),
        "progress data.resample data.skip_bad data.synthetic autoencoder.cached_mel report.write",
    ),
    (name_years(YEARS), lambda v: type(v) is int and v in YEARS, "data.year"),
    ("different names, as fan,pump", lambda v: _are_different(v, _is_text), "machines"),
    (
        "different whole numbers from 0, as (0,1)",
        _are_sections,
        "validation_sections evaluation_sections",
    ),
    (
        "different whole numbers from 0 to 4294967295, as (0,1)",
        lambda v: v and _are_sections(v) and max(v) < 2**32,
        "seeds",
    ),
    (
        "different whole numbers from 1 to 1000000, as (1,2,4)",
        lambda v: v and _are_different(v, _is_count),
        "inlier.clusters",
    ),
    (
        "a whole number from 1 to 1000000",
        _is_count,
        "data.rate *.front_end.rate *.front_end.mels *.batch *.epochs *.validate_every "
        "autoencoder.adjacent_frames autoencoder.hidden autoencoder.depth autoencoder.bottleneck "
        "serial_oe.backbone.stem serial_oe.backbone.head serial_oe.feature inlier.default_clusters "
        "smoothing.default_k scoring_batch",
    ),
    ("even, half of it is pseudo-anomalous", lambda v: v % 2 == 0, "serial_oe.batch"),
    (
        "rows of five whole numbers from 1 to 1000000, as ((1,16,1,1,3),(6,24,2,2,3))",
        _are_stages,
        "serial_oe.backbone.stages",
    ),
    (
        "above 0 and at most 1e9",
        lambda v: 0 < v <= 1e9,
        "data.segment_seconds data.hop_seconds *.front_end.window_ms *.front_end.hop_ms "
        "*.front_end.high_hz *.learning_rate serial_oe.mixup_alpha serial_oe.backbone.width "
        "serial_oe.backbone.depth",
    ),
    (
        "from 0 to 1e9",
        lambda v: 0 <= v <= 1e9,
        "checkpoint_seconds data.device_gigabytes report.megabytes *.front_end.low_hz "
        "serial_oe.product_weight serial_oe.weight_decay",
    ),
    ("at least 0 and below 1", lambda v: 0 <= v < 1, "serial_oe.dropout"),
    ("above 0 and below 1", lambda v: 0 < v < 1, "data.train_share"),
    ("0 (all there are) or their number", lambda v: v == 0 or _is_count(v), "devices"),
    ("from 0 to 100", lambda v: 0 <= v <= 100, "threshold_percentile"),
    (
        "-1 (as any other recording) or a whole number from 0",
        lambda v: type(v) is int and v >= -1,
        "serial_oe.target_per_batch",
    ),
    ("-1 (mono) or a channel from 0", lambda v: type(v) is int and v >= -1, "data.channel"),
    (
        "float32 or bfloat16",
        ("float32", "bfloat16").__contains__,
        "precision *.precision",
    ),
    *(
        (" or ".join(choices), choices.__contains__, name)
        for name, choices in {
            "parallel": ("mesh", "pmap"),
            "serial_oe.machine_head": ("linear", "squared_norm"),
            "serial_oe.mixup_schedule": ("always", "ramp_up", "ramp_down"),
            "inlier.fit_split": ("all", "train", "validation"),
            "data.standardise": ("recording", "machine", "none"),
            "smoothing.unit": ("segment", "clip"),
            "smoothing.scope": ("section", "machine"),
            "smoothing.generative": _GENERATIVE,
            "smoothing.score_transform": ("none", "log", "calibrated"),
            "smoothing.domain_normalisation": ("none", "z", "ranks"),
            "smoothing.pool": ("test", "test+train"),
            "smoothing.space": ("f_d", "f_d+residual"),
            "smoothing.method": ("mean", "diffusion"),
        }.items()
    ),
)


def check_config(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """Return the configuration, immutable, after looking at every field.

    Raises:
      ConfigError: naming the field, its value and what it may be.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        names = [name for entry in config.get("machines", ()) for name in str(entry).split(",")]
        config.machines = tuple(name.strip() for name in names if name.strip())
    fields = flatten(config.to_dict())
    limits = list(_limits())
    names = {name for name, _, _ in limits}
    for name in sorted({*fields} - names):
        closest = "".join(f"; did you mean {n}?" for n in get_close_matches(name, names, n=1))
        raise ConfigError(f"--config.{name}: there is no such field{closest}")
    for name, what, holds in limits:
        if name not in fields:
            raise ConfigError(f"--config.{name}: the configuration lacks this field")
        if not _holds(holds, fields[name]):
            raise ConfigError(f"--config.{name}={fields[name]}: it must be {what}")
    for holds, what in _relations(config):
        if not holds:
            raise ConfigError(what)
    return ml_collections.FrozenConfigDict(config)


def _limits() -> Iterator[tuple[str, str, Callable]]:
    for what, holds, names in _LIMITS:
        for name in names.split():
            for network in ("autoencoder", "serial_oe") if "*" in name else ("",):
                yield name.replace("*", network), what, holds


def _holds(holds, value):
    try:
        return holds(value)
    except TypeError:
        return False


def _relations(config) -> Iterator[tuple[bool, str]]:
    """Yield (whether it holds, what must hold) of fields that limit each other."""
    data, samples = config.data, round(config.data.rate * config.data.segment_seconds)
    segment = f"a segment of --config.data.segment_seconds={data.segment_seconds}"
    yield (
        round(data.rate * data.hop_seconds) >= 1,
        f"--config.data.hop_seconds={data.hop_seconds}: it must be one sample or more",
    )
    for network in ("autoencoder", "serial_oe"):
        settings, name = config[network].front_end, f"--config.{network}.front_end"
        front_end = make_front_end(settings)
        yield (
            settings.low_hz < settings.high_hz <= settings.rate / 2,
            f"{name}.high_hz={settings.high_hz}: it must be above low_hz={settings.low_hz} and at "
            f"most half of --config.data.rate={settings.rate}",
        )
        yield (
            1 <= front_end.window <= samples,
            f"{name}.window_ms={settings.window_ms}: it must be one sample or more and fit into "
            + segment,
        )
        yield (
            front_end.hop >= 1,
            f"{name}.hop_ms={settings.hop_ms}: it must be one sample or more",
        )
    adjacent = config.autoencoder.adjacent_frames
    frames = make_front_end(config.autoencoder.front_end).count_frames(samples)
    yield (
        adjacent <= frames,
        f"--config.autoencoder.adjacent_frames={adjacent}: {segment} has {frames} frames",
    )
    quota, half = config.serial_oe.target_per_batch, config.serial_oe.batch // 2
    yield (
        quota < half,
        f"--config.serial_oe.target_per_batch={quota}: it must be below half a batch, {half}",
    )
    both = sorted({*config.validation_sections} & {*config.evaluation_sections})
    yield (
        not both,
        f"sections {both} are in both --config.validation_sections and "
        "--config.evaluation_sections",
    )
    smoothing = config.smoothing
    changed = [name for name, value in PAPER.items() if smoothing[name] != value]
    yield (
        not (changed and data.others == "none"),
        "--config.data.others=none: without SerialOE nothing is smoothed, and "
        + ", ".join(
            f"--config.smoothing.{name}={smoothing[name]} must be {PAPER[name]}" for name in changed
        ),
    )
    yield (
        "ae" in smoothing.generative or smoothing.score_transform != "log",
        "--config.smoothing.score_transform=log is of a_G, which "
        f"--config.smoothing.generative={smoothing.generative} leaves out; it may be none or "
        "calibrated",
    )
    yield (
        not (data.synthetic and config.data_dir),
        f"--config.data_dir={config.data_dir}: --config.data.synthetic=True has recordings of its "
        "own",
    )
    yield (
        bool(data.normal) == bool(data.score),
        "--config.data.normal and --config.data.score go together: recordings to learn from and "
        f"recordings to score; they were {data.normal!r} and {data.score!r}",
    )
    yield (
        not (data.normal and (config.data_dir or data.synthetic)),
        f"--config.data.normal={data.normal}: it takes the place of --config.data_dir and of "
        "--config.data.synthetic; leave those out",
    )
    yield (
        not (data.normal and len(config.machines) > 1),
        f"--config.machines={','.join(config.machines)}: --config.data.normal holds one machine",
    )


def flatten(tree: dict, prefix: str = "") -> dict:
    """Return {"a.b": value} of nested fields."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
