"""The cache of decoded recordings: one directory a machine, written whole or not at all.

It holds `samples.npy`, all samples of the machine one after the other, and `index.npz`, where each
clip lies there and what was found about it. The name of the directory carries a digest over the
files (path, size, time of modification) and over what they have to be: when one of these changes,
another directory is written, and the old one may be deleted.
"""

import contextlib
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
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from dns_jax.data.headers import NeedsFloat, Recording, Unusable, Wanted, read_recording
from dns_jax.data.refusals import DataError, printable
from dns_jax.files import write_file

_FORMAT = 1  # of the cache; part of its key
INDEX = {  # the columns of index.npz, one row per clip
    "length": np.int64,
    "mean": np.float64,
    "scale": np.float64,
    "digest": object,
    "note": object,
    "reason": object,
    "option": object,
    "offset": np.int64,
}
THREADS = min(8, max(2, os.cpu_count() or 2))
_ABANDONED = 3600  # s without a write after which a temporary directory is nobody's


def open_machine(
    cache_dir: Path,
    machine: str,
    paths: list[str],
    wanted: Wanted,
    pool: Executor,
    progress: bool,
) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Return the samples of a machine, its index, and warnings about its cache."""
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
        for kind in (np.dtype(np.int16), np.dtype(np.float32)):  # half the size, where it does
            bar = tqdm(total=len(paths), desc=machine, unit="clip", disable=not progress)
            with bar, contextlib.suppress(NeedsFloat):
                _build(directory, paths, faults, wanted, kind, pool, bar.update)
                break
        return *_load(directory, len(paths)), warnings
    except OSError as error:
        raise DataError(
            f"cannot write the cache {printable(directory)}: {error.strerror or error}; "
            "make room there or choose another directory"
        ) from error


def _fingerprint(path: str) -> tuple[int, int, str]:
    """Return size, time of modification (ns), and why the file cannot even be opened."""
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
        found = {name: index[name] for name in INDEX}
    samples = np.load(directory / "samples.npy", mmap_mode="r")
    if len(found["length"]) != clips or found["length"].sum() != len(samples):
        raise ValueError(f"{len(samples)} samples of {len(found['length'])} clips")
    return samples, found


def _build(
    directory: Path,
    paths: list[str],
    faults: list[str],
    wanted: Wanted,
    kind: np.dtype,
    pool: Executor,
    advance: Callable[[], object],
) -> None:
    """Decode the recordings of a machine into a cache directory, which appears when complete."""

    def read(path: str, fault: str) -> Recording | Unusable:
        try:
            return Unusable(fault) if fault else read_recording(path, wanted, kind)
        except Unusable as error:
            return error
        except OSError as error:
            raise DataError(f"cannot read {printable(path)}: {error.strerror}") from error

    rows, total = [], 0

    def write_samples(file: BinaryIO) -> None:
        nonlocal total
        _write_npy_header(file, kind, 0)
        for found in _in_order(pool, read, zip(paths, faults, strict=True)):
            if isinstance(found, Unusable):
                rows.append((0, 0.0, 0.0, "", "", found.reason, found.option, total))
            else:
                file.write(found.samples)
                _begin_writeback(file, found.samples.nbytes)
                rows.append((len(found.samples), *found[1:], "", "", total))
                total += len(found.samples)
            advance()
        file.seek(0)
        _write_npy_header(file, kind, total)

    def write_index(file: BinaryIO) -> None:
        columns = zip(INDEX, zip(*rows, strict=True), strict=True)
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
    """Write the header of an array; it takes the same room for every length."""
    shape = {"descr": kind.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


def _begin_writeback(file: BinaryIO, size: int) -> None:
    """Let the disk write what has come last while more is decoded: fsync then waits for little."""
    with contextlib.suppress(AttributeError, OSError):  # not everywhere
        # On Linux it starts writing, and drops clean pages only; those are dirty.
        os.posix_fadvise(file.fileno(), file.tell() - size, size, os.POSIX_FADV_DONTNEED)


def _in_order(pool: Executor, function: Callable, items: Iterable[tuple]) -> Iterator:
    """Map in the pool, in order, and only a few items ahead: their results fill the memory."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, *item))
        if len(pending) > 2 * THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _discard(directory: Path) -> None:
    """Remove a cache at once under its own name; who has mapped its samples keeps them."""
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.part")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.rename(directory, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _discard_abandoned(directory: Path) -> None:
    """Remove what killed processes left: temporary directories that nobody writes to any more."""
    machine = directory.name.rsplit("-", 1)[0]
    for temporary in directory.parent.glob(f".{machine}-*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(temporary, ignore_errors=True)
