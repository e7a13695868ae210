"""Features of any system in NPZ and NPY files, and which rows belong to which scored clip."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import PureWindowsPath

import numpy as np

from dns_jax.data.names import RECORDINGS
from dns_jax.data.refusals import DataError

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")  # NPZ, empty NPZ, NPY
_KEYS = (("clip", "feature"), ("path", "embed"))  # ours, ASDKit's
CONVERT = "numpy.savez(FILE, clip=numpy.array(names, 'U'), feature=numpy.array(features, 'f4'))"


def read_features(path: str | os.PathLike) -> tuple[list[str] | None, np.ndarray]:
    """Read the features of test clips or of their segments; no pickle is loaded.

    Args:
      path: an NPZ with `clip` and `feature`, or with ASDKit's `path` and `embed`, or an NPY.

    Returns:
      The clip's name of every row (None for an NPY), and real[rows, dimensions].

    Raises:
      DataError: not such a file, or not such arrays.
    """
    with open(path, "rb") as file:
        if not file.read(6).startswith(_MAGIC):
            raise DataError(f"{path} is neither an NPZ nor an NPY file. To make one: {CONVERT}")
        file.seek(0)
        try:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.ndarray):
                read = {*chain(*_KEYS), "split"}
                arrays = {key: arrays[key] if key in read else None for key in arrays}
        except Exception as error:  # whatever zipfile and NumPy let through of a damaged file
            what = (str(error).splitlines() or [""])[0][:200]
            if "allow_pickle" in what:
                raise DataError(
                    f"{path} holds Python objects (dtype object), which are not loaded "
                    f"because they may run code. Without them: {CONVERT}"
                ) from error
            raise DataError(f"{path} is damaged ({type(error).__name__}: {what})") from error
    names, features = None, arrays
    if isinstance(arrays, dict):
        keys = next((keys for keys in _KEYS if {*keys} <= {*arrays}), None)
        if keys is None:
            raise DataError(
                f"{path} must hold 'clip' and 'feature', or 'path' and 'embed' as ASDKit's do; "
                f"it holds {', '.join(map(repr, arrays)) or 'nothing'}"
            )
        names, features = (np.asarray(arrays[key]) for key in keys)
    if features.dtype.kind not in "biuf" or features.ndim != 2 or not features.size:
        raise DataError(
            f"{path}: features must be real numbers [rows, dimensions]; "
            f"they are {features.dtype}{[*features.shape]}"
        )
    if names is None:
        return None, features
    if names.dtype.kind != "U" or names.shape != features.shape[:1]:
        raise DataError(
            f"{path}: {keys[0]!r} must be text[{len(features)}], a name for every row of "
            f"{keys[1]!r}; it is {names.dtype}{[*names.shape]}"
        )
    training = np.asarray(arrays.get("split")) == "train"
    used = ~training if training.shape == names.shape else slice(None)
    return names[used].tolist(), features[used]


def match_rows(clips: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Find the clip of every row of the features.

    A name is matched as it is, else by the last part of its path without .wav or .flac.

    Args:
      clips: names in the score files, each once.
      names: [rows], names in the features.

    Returns:
      i64[rows], the number of the clip; -1 for a row of another clip.

    Raises:
      DataError: a clip has no features, or may have those of several names or another clip.
    """
    of_stem = defaultdict(dict)
    for name in names:
        of_stem[_stem(name)][name] = None
    known = {*names}
    found = {clip: [clip] if clip in known else [*of_stem[_stem(clip)]] for clip in clips}
    if lacking := [clip for clip in clips if not found[clip]]:
        raise DataError(
            f"{len(lacking)} of the {len(clips)} scored clips have no features: "
            f"{list_some(lacking)}; the names there: {list_some(names) or 'none'}"
        )
    claims = Counter(name for same in found.values() for name in same)
    if unclear := [clip for clip in clips if len(found[clip]) > 1 or claims[found[clip][0]] > 1]:
        raise DataError(
            f"it is unclear which features belong to {list_some(unclear)}: the names there are "
            f"{list_some(name for clip in unclear for name in found[clip])}; write all of them "
            "alike"
        )
    number = {name: i for i, (name,) in enumerate(found.values())}
    return np.array([number.get(name, -1) for name in names])


def _stem(name):
    name = PureWindowsPath(name).name  # knows / as well as \
    ending = next((ending for ending in RECORDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def list_some(names: Iterable[str]) -> str:
    """Return the first three of different names and how many more there are."""
    names = [*dict.fromkeys(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
