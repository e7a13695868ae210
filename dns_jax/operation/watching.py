"""The watched folder: which recordings lie in it, and which of them are finished.

It is listed again and again; there is nothing else that works on every file system. A recording is
a regular file `*.wav` or `*.flac` (any case) in the folder or one below it; hidden names are left
out, links are not followed. It is finished when its size and time of change have stood still for
`settle` seconds and its header promises no more than is there; one whose header stays wrong for
`patience` seconds is handed out with its fault.

What was dealt with is known by path, size and time of change (`identify`): the same name with
another content is another recording. Times of change are compared for equality only and all waiting
is by the monotonic clock, so it does not matter where the clock is set to. The order is that in
which the recordings were first seen; those of one listing, by name.
"""

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from hashlib import blake2b
from typing import NamedTuple

from dns_jax.data.headers import Unusable, check_container
from dns_jax.data.names import RECORDINGS


class Found(NamedTuple):
    """A recording to be dealt with.

    Attributes:
      path: where it lies, absolute.
      size: bytes.
      mtime_ns: time of its last change, ns.
      arrived: when it was first seen, s since 1970 by the clock of the time.
      first: the same by the monotonic clock, s.
      fault: what is wrong with its header; "" if nothing.
    """

    path: str
    size: int
    mtime_ns: int
    arrived: float
    first: float
    fault: str = ""


class Event(NamedTuple):
    """Something to be told: a waiting recording is "gone", or a "notice" about a path."""

    kind: str
    path: str
    message: str


class _Waiting:
    """A recording that was seen and not yet dealt with; `due`: not before, by the clock, s."""

    __slots__ = ("arrived", "due", "first", "listing", "mtime_ns", "since", "size")


def identify(path: str, size: int, mtime_ns: int) -> bytes:
    """Return 12 bytes that stand for a file in one state: a year of them takes little memory."""
    text = f"{size}/{mtime_ns}/{path}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=12).digest()


class Watcher:
    """What waits in a folder.

    Args:
      folder: to be watched.
      known: the recordings (`identify`) that were dealt with; whoever deals with one adds it.
      settle: s without a change after which a recording is finished.
      patience: s without a change after which a wrong header is believed.
      clock: monotonic, s.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        known: Container[bytes],
        *,
        settle: float = 2.0,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = os.path.realpath(folder)
        self.known, self.settle, self.patience, self.clock = known, settle, patience, clock
        self._waiting: dict[str, _Waiting] = {}  # in the order in which they were first seen
        self._due: deque[str] = deque()
        self._troubles: dict[str, str] = {}
        self._listing = 0

    def __len__(self):
        """How many recordings wait, half-written ones among them."""
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """How long the oldest recording has waited, s."""
        first = next(iter(self._waiting.values()), None)
        return self.clock() - first.first if first else 0.0

    def scan(self, *, new: bool = True) -> list[Event]:
        """List the folder.

        Args:
          new: whether to take in recordings that were not there before.

        Returns:
          What is to be told; a trouble that lasts is told once.
        """
        now, arrived, troubles = self.clock(), time.time(), {}
        self._listing += 1
        for path, size, mtime_ns in self._list_recordings(troubles):
            entry = self._waiting.get(path)
            if identify(path, size, mtime_ns) in self.known:
                self._waiting.pop(path, None)
                continue
            if entry is None:
                if not new:
                    continue
                entry = self._waiting[path] = _Waiting()
                entry.arrived, entry.first, entry.size = arrived, now, -1
            if (entry.size, entry.mtime_ns if entry.size >= 0 else None) != (size, mtime_ns):
                entry.size, entry.mtime_ns = size, mtime_ns
                entry.since, entry.due = now, now + self.settle
            entry.listing = self._listing
        events = [
            Event("notice", path, message)
            for path, message in troubles.items()
            if self._troubles.get(path) != message
        ]
        self._troubles = troubles
        for path in [p for p, e in self._waiting.items() if e.listing != self._listing]:
            # What cannot be looked at, or lies in a folder that cannot be listed, is not gone.
            if not any(path == of or path.startswith(of + os.sep) for of in troubles):
                del self._waiting[path]
                events.append(Event("gone", path, "is gone before it was scored"))
        self._due = deque(path for path, entry in self._waiting.items() if entry.due <= now)
        return events

    def take(self) -> Found | None:
        """Return the oldest recording that is finished, None if there is none since the listing."""
        while self._due:
            path = self._due.popleft()
            entry = self._waiting.get(path)
            if entry is None or not matches(path, entry.size, entry.mtime_ns):
                continue  # the next listing sees what became of it
            fault = _find_fault(path)
            if fault and self.clock() - entry.since < self.patience:
                entry.due = entry.since + self.patience
                continue
            return Found(path, entry.size, entry.mtime_ns, entry.arrived, entry.first, fault)
        return None

    def postpone(self, found: Found) -> None:
        """Hand a recording out again, at the earliest after `patience` seconds."""
        if found.path in self._waiting:
            self._waiting[found.path].due = self.clock() + self.patience

    def finish(self, found: Found) -> None:
        """Forget a recording that was dealt with."""
        self._waiting.pop(found.path, None)

    def _list_recordings(self, troubles: dict[str, str]) -> Iterator[tuple[str, int, int]]:
        """Yield path, size and time of change; what cannot be looked at goes to `troubles`."""
        folders = [self.folder]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    entries = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if folder == self.folder or not isinstance(error, FileNotFoundError):
                    troubles[folder] = f"cannot be listed: {error.strerror}; it is tried again"
                continue
            below = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_sound = os.path.splitext(entry.name)[1].lower() in RECORDINGS
                try:
                    if entry.is_symlink():
                        if is_sound or entry.is_dir():
                            troubles[entry.path] = "is a link, which is not followed"
                    elif entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
                    elif is_sound:
                        about = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(about.st_mode):
                            yield entry.path, about.st_size, about.st_mtime_ns
                        else:
                            troubles[entry.path] = "is no regular file"
                except FileNotFoundError:
                    continue
                except OSError as error:
                    troubles[entry.path] = f"cannot be read: {error.strerror}; it is tried again"
            folders += reversed(below)


def matches(path: str, size: int, mtime_ns: int) -> bool:
    """Whether a regular file lies there in this state."""
    try:
        about = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and (about.st_size, about.st_mtime_ns) == (size, mtime_ns)


def _find_fault(path):
    try:
        check_container(path)
    except Unusable as fault:
        return fault.reason
    except OSError:
        pass  # whoever reads it comes upon it
    return ""
