"""Which configuration, and which recordings, a workdir belongs to: its `config.json`."""

import json
import platform
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import ml_collections

from dns_jax import __version__
from dns_jax.config import check_config, flatten
from dns_jax.data.refusals import ConfigError, printable
from dns_jax.files import write_text
from dns_jax.hosts import is_first, wait_for_all

# Where the recordings lie, what computes and how it is watched change nothing but rounding.
_NOT_IDENTITY = (
    *("data_dir", "data.cache_dir", "data.labels", "data.normal", "data.score", "data.others"),
    *("progress", "checkpoint_seconds", "devices", "parallel"),
    *("data.device_gigabytes", "report.write", "report.megabytes"),
)

# What runs did before these fields were there.
_ONCE = {
    "data.year": 2021,
    "autoencoder.cached_mel": False,
    "precision": "float32",
    "autoencoder.precision": "float32",
    "serial_oe.precision": "float32",
    "smoothing.generative": "ae",
    "smoothing.score_transform": "none",
    "smoothing.domain_normalisation": "none",
    "smoothing.pool": "test",
    "smoothing.space": "f_d",
    "smoothing.method": "mean",
}


def open_workdir(config: ml_collections.FrozenConfigDict, workdir: Path) -> str:
    """Make `workdir` the home of this configuration, or check that it is.

    Returns:
      The version of dns_jax that has begun the run.

    Raises:
      ConfigError: the workdir belongs to another configuration; names the fields that differ.
    """
    file = workdir / "config.json"
    ours = _identify(json.loads(json.dumps(config.to_dict())))
    if file.exists() and (run := _read(file))["recordings"]:  # else it never started
        theirs = _identify(run["config"])
        differ = [
            f"{name} ({theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} now)"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]
        if differ:
            raise ConfigError(
                f"{workdir} holds a run of another configuration: {', '.join(differ)}; "
                "give another --workdir or the same fields"
            )
        return str(run["versions"].get("dns_jax", "of unknown version"))
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    _write(
        file,
        {
            "config": config.to_dict(),
            "versions": {"dns_jax": __version__, "python": platform.python_version()}
            | {p: version(p) for p in packages},
            "recordings": {},
        },
    )
    return __version__


def read_config(workdir: Path) -> tuple[ml_collections.FrozenConfigDict, dict[str, str]]:
    """Read the configuration of a run, and the digests that `check_recordings` has kept.

    Raises:
      ConfigError: there is no run, or its config.json cannot be used.
    """
    if not workdir.is_dir():
        raise ConfigError(f"--workdir={printable(workdir)}: there is no such folder")
    file = workdir / "config.json"
    if not file.is_file():
        raise ConfigError(f"--workdir={printable(workdir)} holds no run: it has no config.json")
    run = _read(file)
    try:
        fields = _as_tuples(run["config"])
        for name, value in _ONCE.items():
            *place, last = name.split(".")
            reduce(dict.__getitem__, place, fields).setdefault(last, value)
        return check_config(ml_collections.ConfigDict(fields)), run["recordings"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{printable(file)} cannot be used: {error}") from None


def _as_tuples(value):  # JSON has lists
    if isinstance(value, dict):
        return {name: _as_tuples(part) for name, part in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def check_recordings(workdir: Path, digests: dict[str, str]) -> None:
    """Remember the content of what a run learns from, or check that it is the same.

    Args:
      workdir: opened by `open_workdir`.
      digests: {machine, or field that names a file: hex digest of the content}.

    Raises:
      ConfigError: naming the machines whose recordings, and the fields whose files, are others than
        at the run's start.
    """
    file = workdir / "config.json"
    run = _read(file)
    if not run["recordings"]:
        _write(file, run | {"recordings": digests})
    wait_for_all("recordings")
    before = _read(file)["recordings"]
    differ = sorted(m for m in {*before, *digests} if before.get(m) != digests.get(m))
    if differ:
        raise ConfigError(
            f"{workdir} was started with other recordings, labels or weights of "
            f"{', '.join(differ)}; give another --workdir or the same files"
        )


def _read(file):
    try:
        run = json.loads(file.read_text())
        return {part: dict(run[part]) for part in ("config", "versions", "recordings")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not the config.json of a run: {error!r}") from None


def _write(file, run):
    if is_first():
        write_text(file, json.dumps(run, indent=1) + "\n")


def _identify(tree):
    """The fields that a run is known by; of `data.others` only whether SerialOE is left out."""
    fields = _ONCE | flatten(tree)
    alone = {"data.others": "none"} if fields.get("data.others") == "none" else {}
    return {n: v for n, v in fields.items() if n not in _NOT_IDENTITY} | alone
