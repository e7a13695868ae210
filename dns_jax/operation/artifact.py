"""Load and run what `dns_jax.operation.export` has written: JAX, NumPy and this file are enough.

    artifact = load_artifact("fan.zip")
    scores = artifact.score(segments, *artifact.pool(section=0))
    scores.a_prop  # f32[b]

An artifact is a zip file of `manifest.json` (what it is, in words and numbers), `program.bin`
(`jax.export`: a_G, f_D and eq. 7 as StableHLO), `weights.npz` and `pool.npz`, none of them
compressed, and nothing pickled. Its checksums tell damage, not who has written it: a program
computes what its author wants, so run those of people you trust. JAX's package `flatbuffers` reads
the program.
"""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export

FORMAT = 1
MEMBERS = ("program.bin", "weights.npz", "pool.npz")


class ArtifactError(ValueError):
    """The file cannot be used; the message is one line for the user."""


class Scores(NamedTuple):
    """What an artifact computes of b segments."""

    a_g: np.ndarray  # f32[b], the autoencoder's score (eq. 2), dB^2
    f_d: np.ndarray  # f32[b, D], the discriminative feature
    a_prop: np.ndarray  # f32[b], a_g smoothed among the pool (eq. 7), dB^2


class Artifact:
    """Both networks of a machine and eq. 7, ready to score.

    Attributes:
      manifest: shapes, units, K, how waveforms are standardised, versions; see `export`.
    """

    def __init__(self, manifest: dict, exported: export.Exported, weights: dict, pool: dict):
        self.manifest = manifest
        smoothing, self._sections = manifest["smoothing"], frozenset(manifest["sections"])
        self._k = int(smoothing["k"])
        self._data, self._scope = smoothing["data"], smoothing["scope"]
        *_, segments, _, features = exported.in_avals
        self._samples, self._dimensions = segments.shape[1], features.shape[1]
        self._weights = jax.device_put(weights)
        self._pool = pool
        self._program = jax.jit(exported.call)

    def pool(self, section: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the run's own pool for a section: its test segments of the chosen Data.

        Args:
          section: of the recording that is to be scored.

        Returns:
          pool_scores f32[p] and pool_features f32[p, D] for `score`.

        Raises:
          ValueError: the machine has no such section.
        """
        if section not in self._sections:
            there = ", ".join(map(str, sorted(self._sections)))
            raise ValueError(f"section must be one of {there}; it was {section}")
        rows = (self._pool["section"] == section) | (self._scope == "machine")
        rows &= (self._pool["domain"] == "source") | (self._data == "all")
        return self._pool["ae_score"][rows], self._pool["feature"][rows]

    def score(self, segments, pool_scores, pool_features) -> Scores:
        """Score segments, each smoothed among the K - 1 rows of the pool nearest to it.

        A segment that is in the pool itself would count twice; leave it out there. Compiled for
        every other b, and for every doubling of p.

        Args:
          segments: float[b, samples], waveforms standardised as the manifest says; b >= 1.
          pool_scores: float[p], a_g of the pool; p >= K - 1.
          pool_features: float[p, D], f_d of the pool. A row that is not finite is no neighbour.

        Raises:
          TypeError: an argument is not of floating-point numbers.
          ValueError: an argument has another shape; names it and the numbers.
        """
        segments = _as_floats("segments", segments)
        scores = _as_floats("pool_scores", pool_scores)
        features = _as_floats("pool_features", pool_features)
        if segments.ndim != 2 or len(segments) < 1 or segments.shape[1] != self._samples:
            raise ValueError(
                f"segments must be [b, {self._samples}] with b >= 1; its shape was {segments.shape}"
            )
        if features.ndim != 2 or features.shape[1] != self._dimensions:
            raise ValueError(
                f"pool_features must be [p, {self._dimensions}]; its shape was {features.shape}"
            )
        if scores.shape != features.shape[:1]:
            raise ValueError(
                f"pool_scores must be [p] with the p = {len(features)} rows of pool_features; "
                f"its shape was {scores.shape}"
            )
        if len(scores) < self._k - 1:
            raise ValueError(
                f"pool_scores and pool_features must have p >= K - 1 = {self._k - 1} rows; "
                f"they had {len(scores)}"
            )
        # Rows that are nobody's neighbours, so that a growing pool is seldom compiled again.
        spare = (1 << max(len(scores) - 1, 0).bit_length()) - len(scores)
        scores = np.pad(scores, (0, spare))
        features = np.pad(features, ((0, spare), (0, 0)), constant_values=np.nan)
        return Scores(*jax.device_get(self._program(self._weights, segments, scores, features)))


def load_artifact(path: str | os.PathLike) -> Artifact:
    """Read an artifact, all of which is checked before any of it is run.

    Raises:
      ArtifactError: the file is not there, damaged, no artifact, of a later format, or not for the
        platform at hand.
    """
    path = Path(path)
    made_by = ""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            members = _read_stored(file, size)
        manifest = json.loads(members.pop("manifest.json"))
        if manifest["format"] > FORMAT:
            raise ArtifactError(
                f"{path} is of format {manifest['format']}, this loader reads up to {FORMAT}; "
                "take that of a later dns_jax"
            )
        if (theirs := manifest["versions"]["jax"]) != jax.__version__:
            made_by = f"; it was made with jax {theirs}, this is {jax.__version__}"
        sums = {name: hashlib.sha256(member).hexdigest() for name, member in members.items()}
        if sums != manifest["sha256"] or sorted(sums) != sorted(MEMBERS):
            raise ValueError("its members and their checksums are not those of the manifest")
        weights, pool = (_read_arrays(members[name]) for name in ("weights.npz", "pool.npz"))
        exported = export.deserialize(members["program.bin"])
        _check_program(exported, weights, pool)
        artifact = Artifact(manifest, exported, weights, pool)
    except ArtifactError:
        raise
    except FileNotFoundError:
        raise ArtifactError(f"{path}: there is no such file") from None
    except ImportError as error:
        raise ArtifactError(f"{path} needs the package flatbuffers ({error})") from None
    except Exception as error:  # whatever the parsers of damaged bytes come to
        what = (str(error).splitlines() or [""])[0][:200]
        raise ArtifactError(
            f"{path} is damaged or no artifact ({type(error).__name__}: {what}){made_by}"
        ) from error
    here = export.default_export_platform()
    if here not in exported.platforms:
        there = ", ".join(exported.platforms)
        raise ArtifactError(f"{path} is a program for {there}; JAX computes on {here} here")
    return artifact


def _read_stored(file, size):
    """Read a zip file whose members are not compressed, so that none outgrows the file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("a member is there twice")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("a member is compressed")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members are larger than the file")
        return {member.filename: archive.read(member) for member in members}


def _read_arrays(npz):
    return {
        name.removesuffix(".npy"): np.load(io.BytesIO(member), allow_pickle=False)
        for name, member in _read_stored(io.BytesIO(npz), len(npz)).items()
    }


def _check_program(exported, weights, pool):
    """Check that the parts fit each other, or the first call would say so in its own words."""
    arguments = ((weights, None, None, None), {})
    leaves, _ = jax.tree.flatten(arguments, is_leaf=lambda x: x is None)
    if jax.tree.structure(arguments, is_leaf=lambda x: x is None) != exported.in_tree:
        raise ValueError("its program takes other arguments")
    for array, expected in zip(leaves[:-3], exported.in_avals[:-3], strict=True):
        if (array.shape, array.dtype) != (expected.shape, expected.dtype):
            raise ValueError("its weights are not those of the program")
    rows, dimensions = pool["feature"].shape
    if dimensions != exported.in_avals[-1].shape[1]:
        raise ValueError("its pool has other features")
    if any(pool[name].shape != (rows,) for name in ("ae_score", "section", "domain")):
        raise ValueError("its pool has columns of different lengths")


def _as_floats(name, x):
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"{name} must be of floating-point numbers; its dtype was {x.dtype}")
    return x.astype(np.float32, copy=False)
