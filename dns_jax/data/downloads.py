"""Download over HTTP so that what is interrupted goes on, and only what is whole counts as there.

A file grows under a hidden name that carries its checksum. The next call goes on from there, and it
gets its final name when size and MD5 are right. Failures that may pass are tried again.
"""

import email.utils
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from dns_jax.data.refusals import DataError, printable

GO_ON = "the same command goes on where it stopped"
_AGENT = "dns_jax"  # Zenodo has refused what calls itself after Python's libraries
_CHUNK = 1 << 20  # bytes
_SILENCE = 60  # s without a byte after which a connection counts as lost
_TRIES = 6  # in a row that bring less than a chunk
_PATIENCE = 600  # s, the longest that a server may ask to wait
_PASSING = (408, 429, 500, 502, 503, 504)


class _Dropped(Exception):
    """What failed may succeed when tried again; `wait` is what the server asks for, in s."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


def read_url(url: str) -> bytes:
    """Return what a URL holds, in memory.

    Raises:
      DataError: it is not to be had, and why.
    """

    def read():
        with _open(url) as response:
            return _receive(response.read)

    return _retry(url, read)


def count_missing(path: Path, size: int, md5: str) -> int:
    """Return how many bytes `download` would still have to transfer, at least."""
    there = max(p.stat().st_size if p.is_file() else 0 for p in (path, _name_part(path, md5)))
    return max(size - there, 0)


def download(url: str, path: Path, size: int, md5: str) -> None:
    """Download a file unless it is there; what an earlier call left unfinished is continued.

    Args:
      url: served with or without HTTP ranges; without, an interrupted transfer starts over.
      path: the final name, given to nothing but the whole file.
      size: bytes.
      md5: 32 hexadecimal digits, lower case.

    Raises:
      DataError: it is not to be had, is not the file that it should be, or does not fit on the
        disk. What has come so far is kept, unless its checksum is wrong.
      OSError: it cannot be written; what has come so far is kept.
    """
    if path.is_file() and _digest(path) == md5:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _name_part(path, md5)
    with part.open("ab") as file:
        if file.tell() > size:
            file.truncate(0)
    have = part.stat().st_size
    check_space(path.parent, size - have)
    headers = {}
    with tqdm(
        desc=path.name, total=size, initial=have, unit="B", unit_scale=True, disable=None
    ) as bar:
        _retry(
            url,
            lambda: _transfer(url, part, size, headers, bar.update),
            lambda: part.stat().st_size,
        )
    if (found := _digest(part)) != md5:
        part.unlink()
        raise DataError(
            f"{url}: the MD5 of what came is {found} and should be {md5}; it is deleted, and the "
            "same command downloads it again"
        )
    os.replace(part, path)


def check_space(folder: Path, needed: int) -> None:
    """Raise DataError if a folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the disk of {printable(folder)}: {needed:,} bytes are needed, {free:,} are free; "
            f"make room there and {GO_ON}"
        )


def say(message: str) -> None:
    """Print a line, above the progress bar if there is one."""
    tqdm.write(message)
    sys.stdout.flush()


def _name_part(path: Path, md5: str) -> Path:
    return path.with_name(f".{path.name}.{md5}.part")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _transfer(
    url: str, part: Path, size: int, headers: dict[str, str], advance: Callable[[int], None]
) -> None:
    """Append what is missing of a file, or start over where the server knows no ranges.

    Args:
      url: of the file.
      part: what has come so far.
      size: of the whole file, bytes.
      headers: of requests that continue; If-Range is put there once the server has said its ETag.
      advance: told how many bytes have come, below 0 when starting over.
    """
    have = part.stat().st_size
    if have == size:
        return
    asked = headers | {"Range": f"bytes={have}-"} if have else {}
    with _open(url, asked) as response, part.open("ab") as file:
        partial, total = response.status == http.client.PARTIAL_CONTENT, response.length
        if partial:
            said = response.headers.get("Content-Range", "")
            match = re.fullmatch(rf"bytes {have}-\d+/(\d+|\*)", said)
            if not match:
                raise DataError(
                    f"{url}: asked for all from byte {have} on, the server sends {said!r}; "
                    f"to start over delete {printable(part)}"
                )
            total = None if match[1] == "*" else int(match[1])
        if total not in (None, size):
            raise DataError(
                f"{url}: the server has {total:,} bytes, the record says {size:,}; it is another "
                "file, or something between here and the server answers in its place"
            )
        if have and not partial:
            say(f"{url}: the server cannot continue a download; starting over")
            file.truncate(0)
            advance(-have)
            have = 0
        if response.headers.get("ETag", "").startswith('"'):  # a weak one will not do
            headers["If-Range"] = response.headers["ETag"]
        while have < size:
            piece = _receive(response.read1, min(_CHUNK, size - have))
            if not piece:
                raise _Dropped(f"the connection closed after {have:,} of {size:,} bytes")
            file.write(piece)
            have += len(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _open(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Send a request; _Dropped for what may pass, DataError for what will not."""
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT} | (headers or {}))
    try:
        return _receive(urllib.request.urlopen, request, timeout=_SILENCE)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {http.client.responses.get(error.code, '')}"
        if error.code in _PASSING:
            raise _Dropped(answer, _read_wait(error.headers.get("Retry-After"))) from error
        if error.code == http.client.FORBIDDEN:
            answer += "; Zenodo does so for a while to networks that send unusually many requests"
        raise DataError(f"{url}: {answer}") from error


def _receive(call: Callable, *args, **kwargs):
    """Call what waits for the network; _Dropped where the connection fails."""
    try:
        return call(*args, **kwargs)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        reason = getattr(cause, "strerror", None) or str(cause) or repr(cause)
        at_all = "no connection: " if isinstance(error, urllib.error.URLError) else ""
        raise _Dropped(f"{at_all}{reason}") from error


def _read_wait(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for; 0 if it says nothing useful."""
    if header is None or header.isdecimal():
        return float(header or 0)
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _retry(url: str, attempt: Callable, progress: Callable[[], int] = lambda: 0):
    """Return what `attempt` returns; after _Dropped wait, longer each time, and try again.

    Args:
      url: for messages.
      attempt: what to do.
      progress: bytes that have come so far; an attempt that brings some starts the count afresh.

    Raises:
      DataError: too many attempts in a row brought nothing.
    """
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except _Dropped as dropped:
            now = progress()
            failures = 1 if now >= before + _CHUNK else failures + 1
            before = now
            if failures == _TRIES or dropped.wait > _PATIENCE:
                later = f"in {dropped.wait:,.0f} s" if dropped.wait else "later"
                times = f" ({failures} times in a row)" if failures > 1 else ""
                raise DataError(f"{url}: {dropped}{times}; {later} {GO_ON}") from dropped
            wait = dropped.wait or 2.0 ** (failures - 1)
            say(f"{url}: {dropped}; trying again in {wait:.0f} s")
        time.sleep(wait)
