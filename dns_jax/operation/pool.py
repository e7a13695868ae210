"""F of the operating phase: the recordings of all machines, kept on disk and searched in memory.

A `NeighborPool` is a `Store` and one `Neighborhood` for every machine and section (or machine, as
its `Setting` says). It begins empty or with what the file holds; a recording is committed to the
file before it counts.

* `score` smooths a recording that is not in F, as `smooth_queries` does: its own segments are not
  among each other's neighbours, also if its samples are in F.
* `refresh` smooths those that are in F, as `smooth` does: the segments of a recording are
  neighbours of each other if `own_windows` (Tables I and II are computed so).
* References, the training recordings that a threshold is fitted on, are smoothed and nobody's
  neighbours; they are not in the file.
* A recording's score is the mean over its segments, or it is one row of F (`unit="clip"`).

Age is operating time: the sum of the times between the arrivals of what is in F, in the order of
the ids. An interval below 0 counts as none, one above a tenth of the age that is asked for as that
tenth: when the clock is set or the monitor stands still, at most a tenth of F goes at once.

Memory: `neighbors` says what a row takes, at most 1.8 KB for D = 128 and K = 32; a recording takes
some 0.6 KB more. 100,000 rows (14,286 recordings of 7 segments) take at most 190 MB.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dns_jax.data.refusals import DataError, printable
from dns_jax.operation.recording import Recording, check_recording
from dns_jax.operation.scope import Refreshed, Scope, Setting, Smoothed, check_setting, join
from dns_jax.operation.store import Added, Store

__all__ = ["Added", "NeighborPool", "Recording", "Refreshed", "Setting", "Smoothed"]


class Entry(NamedTuple):
    """What is remembered of a recording besides its rows."""

    machine: str
    section: int
    domain: str
    clip: str
    digest: str | None
    arrived: float
    path: str


class NeighborPool:
    """F of all machines.

    Args:
      path: of the file (None: F is in memory only).
      settings: of every machine by name.
      dimensions: D.
      identity: of the networks whose scores and features these are.
      writable: whether to be the one writer of the file, or a reader of what it holds now.

    Attributes:
      entries: {id: `Entry`}, what F holds, in the order of the ids.
      notice: what a user must be told about the opening of the file, or "".

    Raises:
      DataError: the file cannot be opened, and why.
      ValueError: a setting that is none.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Setting],
        dimensions: int,
        *,
        identity: str = "",
        writable: bool = True,
    ):
        for machine, setting in settings.items():
            check_setting(machine, setting)
        self.settings, self.dimensions = dict(settings), dimensions
        self.entries: dict[int, Entry] = {}
        self._cells: dict[tuple, dict[int, None]] = {}  # by machine, section and domain
        self._digests: dict[tuple, int] = {}
        self._scopes: dict[tuple, Scope] = {}
        self._references: dict[str, list[str]] = {}
        self._last = 0  # id, where there is no file
        self._store = None
        self.notice = ""
        if path is not None:
            self._store = Store(path, identity, dimensions, writable=writable)
            self.notice = self._store.notice
            try:
                self._load()
            except BaseException:
                self.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self):
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """The memory that all F take, of host and device."""
        return sum(scope.bytes for scope in self._scopes.values())

    @property
    def last_id(self) -> int:
        """The highest id that was ever given; 0 if none was."""
        return self._last if self._store is None else self._store.last_id

    def list_k(self, machine: str) -> tuple[int, ...]:
        """Return K as it is now in every F of a machine, in the order in which they began."""
        return tuple(scope.k for scope in self._get_scopes(machine))

    def results(self) -> Iterator[tuple[int, str]]:
        """Yield id and `result` of every recording in the file, in the order of the ids."""
        if self._store is not None:
            for id_, recording in self._store.read():
                yield id_, recording.result

    def close(self) -> None:
        """Close the file; another writer may come."""
        if self._store is not None:
            self._store.close()

    def append(self, recording: Recording) -> Added:
        """Put a recording into the file and into F, unless its samples are there.

        Returns:
          Its id, and whether it is new.

        Raises:
          DataError: it cannot be kept; nothing has changed.
        """
        self._get_setting(recording.machine)
        recording = check_recording(recording, self.dimensions)
        if self._store is not None:
            added = self._store.add(recording)
        else:
            there = self._digests.get((recording.machine, recording.digest))
            added = Added(there or self._last + 1, new=there is None)
            self._last = max(self._last, added.id)
        if added.new:
            self._remember({added.id: recording})
        return added

    def score(self, machine: str, section: int, scores, features, digest=None) -> Smoothed:
        """Smooth a recording as a query.

        Args:
          machine: its name.
          section: number of the individual.
          scores: real[segments], a_G.
          features: real[segments, D], f_D.
          digest: of its samples; a recording with the same is not its neighbour.

        Raises:
          DataError: an unknown machine.
          ValueError: shapes that do not fit each other.
        """
        self._get_setting(machine)
        own = None if digest is None else self._digests.get((machine, digest))
        return self._find_scope(machine, section).score(scores, features, own)

    def refresh(self, machine: str, pause: Callable = lambda: None) -> Refreshed:
        """Smooth all recordings of a machine that are in F, as it is now.

        Args:
          machine: its name.
          pause: called before every block of searches; may raise to stop, and the next call goes
            on from there.
        """
        return join([scope.refresh(False, pause) for scope in self._get_scopes(machine)])

    def add_references(self, machine: str, section: int, clips, scores, features) -> None:
        """Add training recordings of a section, to be smoothed in F and be nobody's neighbours.

        Args:
          machine: its name.
          section: number of the individual.
          clips: U[rows], the recording of every segment.
          scores: real[rows], a_G.
          features: real[rows, D], f_D.
        """
        self._get_setting(machine)
        scores, features = np.asarray(scores), np.asarray(features)
        names, member = np.unique(np.asarray(clips), return_inverse=True)
        known = self._references.setdefault(machine, [])
        parts = [
            (-1 - len(known) - number, scores[member == number], features[member == number], False)
            for number in range(len(names))
        ]
        if parts:
            self._find_scope(machine, section).append(parts)
            known += names.tolist()

    def smooth_references(self, machine: str, pause: Callable = lambda: None) -> dict[str, float]:
        """Return {clip: a_prop} of the references of a machine in F as it is now."""
        names = self._references.get(machine, [])
        found = join([scope.refresh(True, pause) for scope in self._get_scopes(machine)])
        return {
            names[-1 - id_]: score
            for id_, score in zip(found.id.tolist(), found.score.tolist(), strict=True)
        }

    def evict(
        self,
        *,
        older_than: float | None = None,
        keep: int | None = None,
        machine: str | None = None,
        section: int | None = None,
        domain: str | None = None,
    ) -> list[int]:
        """Drop recordings that are too old or too many.

        Args:
          older_than: s of operating time (see above); older ones go.
          keep: how many of every machine, section and domain stay, the latest.
          machine: only of this one, and so on (None: of all).
          section: as `machine`.
          domain: as `machine`.

        Returns:
          The ids of those that went.

        Raises:
          DataError: the file cannot be written; nothing has changed.
          ValueError: neither limit, or one that is none.
        """
        if older_than is None and keep is None:
            raise ValueError("evict needs older_than (s) or keep (recordings); both were None")
        if older_than is not None and not older_than > 0:
            raise ValueError(f"older_than must be above 0 s; it was {older_than!r}")
        if keep is not None and not keep >= 0:
            raise ValueError(f"keep must be at least 0; it was {keep!r}")
        old = set() if older_than is None else self._find_old(older_than)
        gone = []
        for cell, ids in self._cells.items():
            asked = zip(cell, (machine, section, domain), strict=True)
            if all(limit in (None, value) for value, limit in asked):
                gone += [id_ for id_ in ids if id_ in old] if old else []
                gone += islice(ids, max(0, len(ids) - keep)) if keep is not None else ()
        gone = sorted(set(gone))
        if gone:
            if self._store is not None:
                self._store.remove(gone)
            self._forget(gone)
        return gone

    def _find_old(self, older_than):
        arrived = np.array([entry.arrived for entry in self.entries.values()])
        steps = np.clip(np.diff(arrived), 0, older_than / 10)
        ages = np.append(np.cumsum(steps[::-1])[::-1], 0)[: len(arrived)]
        return set(np.array(list(self.entries))[ages > older_than].tolist())

    def _load(self):
        held, recordings = 0, {}
        for id_, recording in self._store.read():
            if recording.machine in self.settings:
                recordings[id_] = recording
                held += recording.features.nbytes
            if held > 2**26:
                self._remember(recordings)
                held, recordings = 0, {}
        self._remember(recordings)

    def _remember(self, recordings: dict[int, Recording]):
        """Put recordings into F, in the order of their ids."""
        parts = {}
        for id_, new in recordings.items():
            entry = Entry(*(getattr(new, name) for name in Entry._fields))
            self.entries[id_] = entry
            self._cells.setdefault(entry[:3], {})[id_] = None
            if new.digest is not None:
                self._digests[new.machine, new.digest] = id_
            setting = self.settings[new.machine]
            candidate = setting.data == "all" or new.domain == "source"
            scope = self._find_scope(new.machine, new.section)
            parts.setdefault(scope, []).append((id_, new.scores, new.features, candidate))
        for scope, part in parts.items():
            scope.append(part)

    def _forget(self, ids):
        parts = {}
        for id_ in ids:
            entry = self.entries.pop(id_)
            del self._cells[entry[:3]][id_]
            self._digests.pop((entry.machine, entry.digest), None)
            parts.setdefault(self._find_scope(entry.machine, entry.section), []).append(id_)
        for scope, part in parts.items():
            scope.evict(part)

    def _find_scope(self, machine, section):
        setting = self.settings[machine]
        key = machine, int(section) if setting.scope == "section" else None
        if key not in self._scopes:
            self._scopes[key] = Scope(setting, self.dimensions)
        return self._scopes[key]

    def _get_scopes(self, machine):
        self._get_setting(machine)
        return [scope for (name, _), scope in self._scopes.items() if name == machine]

    def _get_setting(self, machine):
        if machine not in self.settings:
            there = ", ".join(map(printable, self.settings)) or "none"
            raise DataError(f"no machine {printable(str(machine))!r} in this run; it has {there}")
        return self.settings[machine]
