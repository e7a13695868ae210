"""One recording of F: its fields, and the rows of the store that they become and come from.

A checksum covers everything, so that no changed number is ever taken for a score. What SQLite does
not tell apart (the two zeros, the many NaN) is one before it is summed up.
"""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dns_jax.data.refusals import DataError, printable


class DamageError(Exception):
    """What was read is not what was written."""


class Recording(NamedTuple):
    """One recording of F.

    Attributes:
      machine: its name.
      section: number of the individual.
      domain: "source" or "target".
      clip: file name.
      path: where the file lay.
      digest: of its samples (None: unknown); a machine has none twice.
      arrived: s since 1970, by the clock of the time.
      seconds: its length.
      scores: f32[segments], a_G.
      features: f32[segments, D], f_D.
      result: JSON, what was said about it when it came.
    """

    machine: str
    section: int
    domain: str
    clip: str
    path: str
    digest: str | None
    arrived: float
    seconds: float
    scores: np.ndarray
    features: np.ndarray
    result: str = "{}"


def check_recording(recording: Recording, dimensions: int) -> Recording:
    """Return a recording with arrays as they are kept.

    Raises:
      DataError: a field that cannot be kept.
    """
    name = printable(str(recording.clip))
    try:
        scores, features = (
            np.ascontiguousarray(x, "<f4") for x in (recording.scores, recording.features)
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: its scores or features are no numbers ({error})") from None
    if scores.ndim != 1 or not len(scores) or features.shape != (len(scores), dimensions):
        raise DataError(
            f"{name}: scores must be [segments] and features [segments, {dimensions}], at least "
            f"one segment; their shapes were {scores.shape} and {features.shape}"
        )
    for field in ("arrived", "seconds"):
        value = getattr(recording, field)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{name}: {field} must be a finite number of seconds; it was {value!r}")
    for field in ("machine", "domain", "clip", "path", "result"):
        if not isinstance(getattr(recording, field), str):
            raise DataError(f"{name}: {field} must be text; it was {getattr(recording, field)!r}")
    if not isinstance(recording.digest, str | None):
        raise DataError(f"{name}: digest must be text or None; it was {recording.digest!r}")
    section = recording.section
    if isinstance(section, bool) or not isinstance(section, int | np.integer):
        raise DataError(f"{name}: section must be a whole number; it was {section!r}")
    return recording._replace(
        section=int(section),
        arrived=recording.arrived + 0.0,
        seconds=recording.seconds + 0.0,
        scores=np.where(np.isnan(scores), np.float32(np.nan), scores + 0),
        features=features,
    )


def pack(recording: Recording) -> tuple[tuple, list[tuple]]:
    """Turn a checked recording into the fields of its row, in the order of `FIELDS`, and segments.

    Returns:
      The fields, and of every segment number, score and feature as little-endian f32.
    """
    fields = (*recording[:8], recording.result, len(recording.scores))
    fields = tuple(map(_encode, fields))
    checksum = _sum(fields, recording.scores, recording.features)
    features = (feature.tobytes() for feature in recording.features)
    numbers = range(len(recording.scores))
    segments = list(zip(numbers, recording.scores.tolist(), features, strict=True))
    return (*fields, checksum), segments


def unpack(fields: Sequence, segments: Sequence[tuple], dimensions: int) -> Recording:
    """Do the reverse.

    Raises:
      DamageError: something is missing or was changed.
    """
    *fields, checksum = fields
    try:
        numbers, scores, features = zip(*segments, strict=True)
        scores = np.array([math.nan if x is None else x for x in scores], "<f4")
        features = np.frombuffer(b"".join(features), "<f4").reshape(len(scores), dimensions)
        whole = numbers == tuple(range(fields[-1])) and len(features) == len(numbers)
        whole &= checksum == _sum(tuple(fields), scores, features)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise DamageError("a recording is not what was written")
    fields = [x.decode(*_CODEC) if isinstance(x, bytes) else x for x in fields]
    return Recording(*fields[:8], scores, features, fields[8])


FIELDS = (*Recording._fields[:8], "result", "segments", "checksum")
_CODEC = "utf-8", "surrogatepass"


def _sum(fields, scores, features):
    text = repr(fields).encode()
    return zlib.crc32(features.tobytes(), zlib.crc32(scores.tobytes(), zlib.crc32(text)))


def _encode(value):
    """Keep a name that is no Unicode as bytes: files may have such names, text may not."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(*_CODEC)
    return value
