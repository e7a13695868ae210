r"""Write a machine's networks and eq. 7 into one file that runs with JAX and NumPy alone.

    python -m dns_jax.operation.export --workdir=runs/fan --out=fan.zip

`--machine` and `--seed` choose among several of a run; the seed is the first one otherwise. The
file holds a program for CPU, CUDA and TPU (`jax.export`) for any number of segments and any pool of
K - 1 rows or more, the weights, the pool of the run's test segments, and `manifest.json`, which
says what goes in and comes out. `dns_jax.operation.artifact` loads it. Eq. 7 has its plain form in
it on every platform. The same run gives the same file, but for the time of export.

Exit status 2 for a mistake in the call, 1 for bad input.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import export

from dns_jax import __version__, smooth_queries
from dns_jax.commands import make_parser, stopping
from dns_jax.data.refusals import DataError, printable
from dns_jax.files import write_file
from dns_jax.models.autoencoder import score_segments
from dns_jax.operation.artifact import FORMAT
from dns_jax.operation.trained import Trained, load_trained

PLATFORMS = ("cpu", "cuda", "tpu")

_RULES = {
    "recording": "each whole recording has its mean subtracted and is divided by its standard "
    "deviation, before it is cut into segments; a constant one becomes zeros",
    "machine": "samples in units of full scale (1) have the mean subtracted and are multiplied by "
    "the scale that stand here",
    "none": "samples in units of full scale (1), as they are",
}


def export_trained(trained: Trained, path: Path, *, at: datetime) -> dict:
    """Write the artifact of one machine.

    Args:
      trained: of `load_trained`.
      path: of the file; a file that is there is replaced when the new one is complete.
      at: the time of export.

    Returns:
      The manifest.

    Raises:
      DataError: the run has no f_D, or smooths recordings instead of segments.
    """
    if trained.serial_oe is None:
        raise DataError(
            f"{trained.machine} was trained without SerialOE (--config.data.others=none); there is "
            "no space of features to smooth in, and nothing to export"
        )
    if trained.config.smoothing.unit != "segment":
        raise DataError(
            f"{trained.machine} was smoothed by recordings (--config.smoothing.unit="
            f"{trained.config.smoothing.unit}); what is exported smooths segments"
        )
    weights, exported = make_program(trained)
    pool = trained.segments.select(trained.segments.split == "test")
    members = {
        "program.bin": bytes(exported.serialize()),
        "weights.npz": _pack(weights),
        "pool.npz": _pack(
            {n: getattr(pool, n) for n in ("section", "domain", "ae_score", "feature")}
        ),
    }
    manifest = describe(trained, exported, at)
    manifest["sha256"] = {n: hashlib.sha256(member).hexdigest() for n, member in members.items()}
    text = json.dumps(manifest, indent=1) + "\n"

    def write(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, member in {"manifest.json": text, **members}.items():
                archive.writestr(zipfile.ZipInfo(name), member)  # dated 1980

    write_file(path, write)
    return manifest


def make_program(trained: Trained) -> tuple[dict[str, np.ndarray], export.Exported]:
    """Export the program of a machine.

    Args:
      trained: of `load_trained`, with f_D.

    Returns:
      The weights by name, and the program of (weights, segments f32[b, samples], pool_scores
      f32[p], pool_features f32[p, D]) that gives a_G f32[b], f_D f32[b, D] and a_prop f32[b].
    """
    config, k = trained.config, trained.choice.size
    networks = {"autoencoder": trained.autoencoder, "serial_oe": trained.serial_oe}
    graph, state = nnx.split(networks)
    named, tree = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]
    weights = {n: np.asarray(array) for n, (_, array) in zip(names, named, strict=True)}

    def score(weights, segments, pool_scores, pool_features):
        networks = nnx.merge(graph, jax.tree.unflatten(tree, [weights[name] for name in names]))
        a_g = score_segments(networks["autoencoder"], segments)
        f_d = networks["serial_oe"](segments, train=False)
        return a_g, f_d, smooth_queries(a_g, f_d, pool_scores, pool_features, k)

    b, p = export.symbolic_shape("b, p", constraints=["b >= 1", f"p >= {max(1, k - 1)}"])
    samples = round(config.data.rate * config.data.segment_seconds)
    shapes = (b, samples), (p,), (p, config.serial_oe.feature)
    arguments = weights, *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    with _forgetting_places():
        return weights, export.export(jax.jit(score), platforms=PLATFORMS)(*arguments)


@contextmanager
def _forgetting_places():
    """Leave out where in which file each operation was written: folders here, and who calls."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def describe(trained: Trained, exported: export.Exported, at: datetime) -> dict:
    """Return the manifest, all but its checksums: JSON for people and for the loader."""
    data, choice = trained.config.data, trained.choice

    def list_shapes(avals, units):
        return {
            name: {"shape": [_as_json(n) for n in x.shape], "dtype": x.dtype.name, "unit": unit}
            for x, (name, unit) in zip(avals, units.items(), strict=True)
        }

    return {
        "format": FORMAT,
        "machine": trained.machine,
        "seed": trained.seed,
        "sections": np.unique(trained.segments.section).tolist(),
        "rate_hz": data.rate,
        "segment_s": data.segment_seconds,
        "hop_s": data.hop_seconds,
        "standardisation": {
            **trained.standardisation._asdict(),
            "words": _RULES[data.standardise],
        },
        "smoothing": {
            "k": choice.size,
            "data": choice.data,
            "how": choice.how,
            "scope": trained.config.smoothing.scope,
        },
        "inputs": list_shapes(
            exported.in_avals[-3:],
            {"segments": "1, standardised", "pool_scores": "dB^2", "pool_features": "1"},
        ),
        "outputs": list_shapes(exported.out_avals, {"a_g": "dB^2", "f_d": "1", "a_prop": "dB^2"}),
        "limits": {"b": "1 or more", "p": f"{choice.size - 1} or more"},
        "platforms": list(exported.platforms),
        "versions": {
            "dns_jax": __version__,
            **{package: version(package) for package in ("jax", "flax", "numpy")},
        },
        "exported_at": at.isoformat(timespec="seconds"),
    }


def _as_json(dimension):
    return dimension if isinstance(dimension, int) else str(dimension)


def _pack(arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Export what the command line names, and say what it is."""
    parser = make_parser("dns_jax.operation.export", __doc__)
    parser.add_argument("--workdir", metavar="DIR")
    parser.add_argument("--out", metavar="FILE.zip")
    parser.add_argument("--machine", metavar="NAME")
    parser.add_argument("--seed", type=int)
    call = parser.parse_args(argv)
    for name, example in {"workdir": "runs/fan", "out": "fan.zip"}.items():
        if not getattr(call, name):
            parser.error(f"--{name} is missing, as in --{name}={example}")
    if os.path.exists(call.out) and not os.path.isfile(call.out):
        parser.error(f"--out={printable(call.out)} is there and not a file; choose another name")
    with stopping():
        trained = load_trained(Path(call.workdir), call.machine, call.seed)
        manifest = export_trained(trained, Path(call.out), at=datetime.now(UTC))
    smoothing = manifest["smoothing"]
    print(
        f"{printable(call.out)}: {trained.machine}, seed {trained.seed}, K = {smoothing['k']}, "
        f"Data: {smoothing['data']}, {os.path.getsize(call.out) / 1e6:.1f} MB, "
        f"for {', '.join(manifest['platforms'])}"
    )


if __name__ == "__main__":
    main()
