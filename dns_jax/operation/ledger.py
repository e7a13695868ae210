"""The ledger of the monitor: a line of JSON about everything that happened, appended and kept.

A line has `event` ("scored", "refused", "duplicate", "gone", "notice"), `time` (ISO, UTC) and,
about a recording, `path`, `size`, `mtime_ns` and `arrived` (s since 1970). A line is on the disk
before `write` returns, or nothing of it is there.

The entry of a scored recording lies in the store, too, committed with the recording itself. So a
monitor that was killed between the two finds what the ledger lacks (`write_missing`), and every
recording in F has one line "scored". A line that a kill has torn is cut off when the file is
opened, and said.

The file grows by 1 to 2 KB a recording, and by 70 bytes for every recording among its neighbours
(15 KB for K = 32 and seven segments at most); it is read once, at the start.
"""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dns_jax.data.refusals import printable
from dns_jax.operation.watching import Found, identify

DONE = ("scored", "refused", "duplicate")  # what ends the waiting of a recording


class Ledger:
    """An open ledger.

    Args:
      path: of the file, which is made where there is none.

    Attributes:
      known: the recordings that were dealt with, by `watching.identify`.
      notices: what a user must be told about the opening.

    Raises:
      OSError: it cannot be opened, read or repaired.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.known: set[bytes] = set()
        self._unplaced: set[bytes] = set()  # refused by an earlier call that knew no machine of it
        self.notices: list[str] = []
        self._whole = None  # where the whole lines end, if something torn may stand behind them
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(self._file, self._read())
            os.fsync(self._file)
            _sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line.

        Args:
          entry: of `compose`.

        Raises:
          OSError: it cannot be written; the ledger is as it was.
        """
        line = (format_entry(entry) + "\n").encode()
        if self._whole is None:
            self._whole = os.fstat(self._file).st_size
        else:
            os.ftruncate(self._file, self._whole)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._whole)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._whole = None
        self._learn(entry)

    def write_missing(self, entry: dict[str, Any]) -> bool:
        """Append a line about a recording unless there is one; say whether it was missing.

        Raises:
          OSError: as `write`.
        """
        key = _get_key(entry)
        missing = key is not None and key not in self.known
        if missing:
            self.write(entry)
        return missing

    def settle(self, found: Found) -> bool:
        """Whether an earlier call has refused a recording of which it knew no machine; known now.

        Another call may know the machine, so such recordings are handed out again.
        """
        key = identify(found.path, found.size, found.mtime_ns)
        if key in self._unplaced:
            self.known.add(key)
        return key in self._unplaced

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self):
        """Learn what is known; return where the last whole line ends."""
        bad = end = 0
        name = printable(self.path)
        with open(self.path, "rb") as lines:
            for line in lines:
                entry = parse_entry(line)
                if not line.endswith(b"\n"):
                    self.notices.append(
                        f"{name}: its last line was torn ({len(line)} bytes) and is cut off; "
                        "what it was about is written again"
                    )
                    break
                end += len(line)
                if entry is None:
                    bad += 1
                elif entry.get("machine") != "":
                    self._learn(entry)
                elif key := _get_key(entry):
                    self._unplaced.add(key)
        if bad:
            self.notices.append(
                f"{name}: {bad} damaged line(s) are left as they are; a recording that only they "
                "told of is scored again if it is not in F"
            )
        return end

    def _learn(self, entry):
        if entry["event"] in DONE and (key := _get_key(entry)):
            self.known.add(key)


def compose(event: str, **fields: Any) -> dict[str, Any]:
    """Return an entry about what happens now; fields are plain JSON values."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"event": event, "time": now, **fields}


def format_entry(entry: dict[str, Any]) -> str:
    """Return an entry as one line of ASCII, whatever bytes the names in it are made of."""
    return json.dumps(entry, allow_nan=False)


def parse_entry(line: str | bytes) -> dict[str, Any] | None:
    """Return the entry of a line, None if it is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None


def _get_key(entry):
    path, size, mtime_ns = (entry.get(name) for name in ("path", "size", "mtime_ns"))
    if isinstance(path, str) and type(size) is int and type(mtime_ns) is int:
        return identify(path, size, mtime_ns)
    return None


def _sync_folder(folder):
    """Put the name of a new file on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
