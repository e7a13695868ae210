"""The recordings of a data set, decoded once, checked, and memory-mapped (Sec. IV-A).

Every machine has one directory in the cache: `samples.npy`, all its samples one after the other,
and `index.npz`, where each clip lies there and what was found about it. The name of the directory
carries a digest over the files (path, size, time of modification) and over what they have to be:
when one of these changes, another directory is written, and the old one may be deleted.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from tqdm import tqdm

from dns_jax.data.clips import DataError, Refusal, printable
from dns_jax.data.headers import (
    CONSTANT,
    SILENT,
    Header,
    Recording,
    Unusable,
    Wanted,
    check_header,
    decode,
)
from dns_jax.files import write_file

_FORMAT = 1  # of the cache; part of its key
_INDEX = {  # the columns of index.npz, one row per clip
    "length": np.int64,
    "mean": np.float64,
    "scale": np.float64,
    "digest": object,
    "note": object,
    "reason": object,
    "option": object,
    "offset": np.int64,
}
_THREADS = min(8, max(2, os.cpu_count() or 2))
_ABANDONED = 3600  # s without a write after which a temporary directory is nobody's


@dataclasses.dataclass(frozen=True, eq=False)
class Waveforms:
    """Waveforms of a table of clips; every array is aligned with its rows.

    Attributes:
      lengths: i64[clips], samples; 0 where the clip cannot be used.
      digests: str[clips], of the decoded samples, the same for a WAV file and its FLAC twin.
      means: f64[clips], of the samples in their stored unit.
      scales: f64[clips], 1 / standard deviation; 0 for a constant clip.
      machines: i64[clips], which of `samples` holds the clip.
      offsets: i64[clips], where in it the clip begins.
      samples: memory-mapped i16[any] or f32[any], one per machine.
    """

    lengths: np.ndarray
    digests: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    machines: np.ndarray
    offsets: np.ndarray
    samples: tuple[np.ndarray, ...]

    def crop(self, rows: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Cuts pieces out of recordings that are standardised as a whole: mean 0, variance 1.

        Args:
          rows: i64[n], rows of the table of clips.
          starts: i64[n], first sample of each piece.
          length: samples.

        Returns:
          f32[n, length]; zeros for a silent or constant recording.

        Raises:
          ValueError: a piece reaches outside its recording.
        """
        rows, starts = np.asarray(rows), np.asarray(starts)
        outside = np.flatnonzero((starts < 0) | (starts + length > self.lengths[rows]))
        if len(outside):
            row, start = rows[outside[0]], starts[outside[0]]
            raise ValueError(
                f"samples {start} to {start + length} of row {row}; it has {self.lengths[row]}"
            )
        pieces = np.empty((len(rows), length), np.float32)
        for piece, row, first in zip(pieces, rows, self.offsets[rows] + starts, strict=True):
            samples = self.samples[self.machines[row]][first : first + length]
            piece[:] = (samples - self.means[row]) * self.scales[row]
        return pieces


def open_waveforms(
    clips: pd.DataFrame,
    cache_dir: str | os.PathLike,
    *,
    rate: int = 16000,
    segment_samples: int = 64000,
    resample: bool = False,
    channel: int = -1,
    progress: bool = False,
) -> tuple[Waveforms, np.ndarray, list[Refusal], list[str]]:
    """Opens the waveforms of a table of clips; what the cache does not hold yet is decoded.

    Accepted, with a warning, are recordings that are silent (all samples 0), constant (all samples
    equal), clipped (at least one sample in a thousand is at 99 % of full scale or above and equal
    to the one before it), or of the same samples as another recording of the machine.

    Args:
      clips: the table of `read_clips`.
      cache_dir: holds one directory per machine; made where it is missing.
      rate: Hz, of the waveforms.
      segment_samples: the least length of a recording, at `rate`.
      resample: recordings of other rates are resampled; otherwise they are refused.
      channel: the channel to use, from 0; -1: recordings that are not mono are refused.
      progress: show a progress bar while decoding.

    Returns:
      The waveforms; bool[clips], which of them can be used; the refusals of those that cannot; and
      the warnings, one line each.

    Raises:
      DataError: the cache cannot be written, or reading a recording fails half-way.
    """
    if channel < -1:
        raise DataError(f"channel is {channel}; it may be -1 (mono expected), 0, 1, 2, ...")
    wanted = Wanted(rate, segment_samples, resample, channel)
    index = {name: np.zeros(len(clips), kind) for name, kind in _INDEX.items()}
    machines = np.zeros(len(clips), np.int64)
    samples, warnings = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        for machine, rows in clips.groupby("machine").indices.items():
            paths = list(clips["path"].iloc[rows])
            cached, found, damage = _open_machine(
                Path(cache_dir), machine, paths, wanted, pool, progress
            )
            for name in _INDEX:
                index[name][rows] = found[name]
            machines[rows] = len(samples)
            samples.append(cached)
            warnings += damage + _describe_notes(paths, found)
    usable = index["reason"] == ""
    refusals = [
        Refusal(clips["path"].iloc[row], index["reason"][row], index["option"][row])
        for row in np.flatnonzero(~usable)
    ]
    waveforms = Waveforms(
        lengths=index["length"],
        digests=index["digest"].astype(str),
        means=index["mean"],
        scales=index["scale"],
        machines=machines,
        offsets=index["offset"],
        samples=tuple(samples),
    )
    return waveforms, usable, refusals, warnings


def _describe_notes(paths: list[str], found: dict[str, np.ndarray]) -> list[str]:
    """Returns one line per remarkable recording of a machine, in the order of the recordings."""
    lines, first = [], {}
    for path, digest, note in zip(paths, found["digest"], found["note"], strict=True):
        twin = first.setdefault(digest, path) if digest else path
        notes = [note] if note else []
        if twin is not path and note not in (SILENT, CONSTANT):
            notes.append(f"same content as {printable(twin)}")
        if notes:
            lines.append(f"{printable(path)}: {', '.join(notes)}")
    return lines


def _open_machine(
    cache_dir: Path,
    machine: str,
    paths: list[str],
    wanted: Wanted,
    pool: Executor,
    progress: bool,
) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Returns the samples of a machine, its index, and warnings about its cache."""
    files = list(pool.map(_fingerprint, paths))
    key = json.dumps([_FORMAT, machine, wanted, [os.path.abspath(path) for path in paths], files])
    safe = re.sub(r"[^A-Za-z0-9]", "_", machine)[:80]
    directory = cache_dir / f"{safe}-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}"
    warnings = []
    try:
        if directory.exists():
            try:
                return *_load(directory, len(paths)), warnings
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                warnings = [f"{printable(directory)}: damaged cache, rebuilt ({error})"]
                _discard(directory)
        faults = [fault for _, _, fault in files]
        bar = tqdm(total=len(paths), desc=machine, unit="clip", disable=not progress)
        with bar:
            _build(directory, paths, faults, wanted, pool, bar.update)
        return *_load(directory, len(paths)), warnings
    except OSError as error:
        raise DataError(
            f"cannot write the cache {printable(directory)}: {error.strerror or error}; "
            "make room there or choose another directory"
        ) from error


def _fingerprint(path: str) -> tuple[int, int, str]:
    """Returns size, time of modification (ns), and why the file cannot even be opened."""
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            return 0, 0, "unreadable (not a regular file)"
        with open(path, "rb"):
            return facts.st_size, facts.st_mtime_ns, ""
    except OSError as error:
        return 0, 0, f"unreadable ({error.strerror})"


def _load(directory: Path, clips: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    with open(directory / "index.npz", "rb") as file, np.load(file) as index:
        found = {name: index[name] for name in _INDEX}
    samples = np.load(directory / "samples.npy", mmap_mode="r")
    if len(found["length"]) != clips or found["length"].sum() != len(samples):
        raise ValueError(f"{len(samples)} samples of {len(found['length'])} clips")
    return samples, found


def _build(
    directory: Path,
    paths: list[str],
    faults: list[str],
    wanted: Wanted,
    pool: Executor,
    advance: Callable[[], object],
) -> None:
    """Decodes the recordings of a machine into a cache directory, which appears when complete."""

    def attempt(read: Callable, path: str, *args) -> Header | Recording | Unusable:
        try:
            return read(path, *args)
        except Unusable as error:
            return error
        except OSError as error:
            raise DataError(f"cannot read {printable(path)}: {error.strerror}") from error

    def check(path: str, fault: str) -> Header | Unusable:
        return Unusable(fault) if fault else attempt(check_header, path, wanted)

    headers = list(pool.map(check, paths, faults))
    accepted = [header for header in headers if isinstance(header, Header)]
    plain = all((h.rate, h.subtype) == (wanted.rate, "PCM_16") for h in accepted)
    kind = np.dtype(np.int16 if plain else np.float32)

    def read(path: str, header: Header | Unusable) -> Recording | Unusable:
        refused = isinstance(header, Unusable)
        return header if refused else attempt(decode, path, header, wanted, kind)

    rows, total = [], 0

    def write_samples(file: BinaryIO) -> None:
        nonlocal total
        _write_npy_header(file, kind, 0)
        for found in _in_order(pool, read, zip(paths, headers, strict=True)):
            if isinstance(found, Unusable):
                rows.append((0, 0.0, 0.0, "", "", found.reason, found.option, total))
            else:
                file.write(found.samples)
                rows.append((len(found.samples), *found[1:], "", "", total))
                total += len(found.samples)
            advance()
        file.seek(0)
        _write_npy_header(file, kind, total)

    def write_index(file: BinaryIO) -> None:
        columns = zip(_INDEX, zip(*rows, strict=True), strict=True)
        np.savez(file, **{name: np.array(column) for name, column in columns})

    _discard_abandoned(directory)
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.part")
    try:
        write_file(temporary / "samples.npy", write_samples)
        write_file(temporary / "index.npz", write_index)
        try:
            os.rename(temporary, directory)
        except OSError:
            if not directory.is_dir():  # else another process has written the same meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_npy_header(file: BinaryIO, kind: np.dtype, length: int) -> None:
    """Writes the header of an array; it takes the same room for every length."""
    shape = {"descr": kind.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


def _in_order(pool: Executor, function: Callable, items: Iterable[tuple]) -> Iterator:
    """Maps in the pool, in order, and only a few items ahead: their results fill the memory."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, *item))
        if len(pending) > 2 * _THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _discard(directory: Path) -> None:
    """Removes a cache at once under its own name; who has mapped its samples keeps them."""
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.part")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(directory, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _discard_abandoned(directory: Path) -> None:
    """Removes what killed processes left: temporary directories that nobody writes to any more."""
    machine = directory.name.rsplit("-", 1)[0]
    for temporary in directory.parent.glob(f".{machine}-*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(temporary, ignore_errors=True)
