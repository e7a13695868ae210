"""The loop of the monitor: next finished recording, score, F, ledger; one at a time.

The order makes every recording count once, whatever stops the process: it is put into F together
with its entry of the ledger, then the entry is written to the ledger, then the next recording is
looked at. A kill before the first leaves a file that is found again; one between the two an entry
that the next start writes (`Loop.catch_up`). While one of the two cannot be written, the loop
stands still and says so. What waits lies on the disk and is counted, nothing of it is held here.
"""

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dns_jax.data.headers import Unusable
from dns_jax.data.refusals import DataError, printable
from dns_jax.operation.board import LAST, Board
from dns_jax.operation.ledger import Ledger, compose, format_entry, parse_entry
from dns_jax.operation.ranking import Row, write_ranking
from dns_jax.operation.watching import Found, Watcher, matches

IDLE = 0.5  # s between two listings
RETRY = 1.0  # s until what could not be written is tried again
SHOW = 2.0  # s between two refreshments of what is shown
TABLE = 5.0  # s between two writings of the table
CROWD = 100  # recordings waiting that are worth a line
_SHARE = 20  # what takes long in a large folder or F takes at most one part in so many of the time


class Stopped(Exception):
    """The loop was asked to end while it waited for something to be written."""


class Loop:
    """What the monitor does, again and again.

    Args:
      detector: `dns_jax.operation.detector.Detector` with its store.
      watcher: of the folder, with `ledger.known`.
      ledger: what was done.
      board: what is shown.
      table: the CSV file of the ranking.
      say: prints a line for people.
      machine: of all recordings; None: the first folder names it.
      limits: of `Detector.evict`; empty: F keeps everything.
      once: end when the recordings that are there are dealt with.
      clock: monotonic, s.
      sleep: waits for seconds.

    Attributes:
      stopping: set it to end after the recording at hand.
    """

    def __init__(
        self,
        detector: Any,
        watcher: Watcher,
        ledger: Ledger,
        board: Board,
        table: Path,
        say: Callable[[str], None],
        *,
        machine: str | None = None,
        limits: dict[str, Any] | None = None,
        once: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.detector, self.watcher, self.ledger, self.board = detector, watcher, ledger, board
        self.table, self.machine, self.limits, self.once = table, machine, limits or {}, once
        self.stopping = False
        self._say, self._clock, self._sleep = say, clock, sleep
        self._told: dict[str, str] = {}  # of files that are tried again, what was said
        self._crowd = CROWD
        self._busy: deque[float] = deque(maxlen=20)  # s that the latest recordings took
        self._files: dict[int, tuple[int, int]] = {}  # size and time of change, of what is shown
        self._shown = self._tabled = False  # whether they are up to date
        self._trouble = ""  # of the table

    def tell(self, message: str, path: str = "") -> None:
        """Say something, on the page and in the ledger, too."""
        self._show(f"{printable(path)} {message}" if path else message)
        with suppress(OSError):  # that the disk is full is told elsewhere
            self.ledger.write(
                compose("notice", message=message, **({"path": path} if path else {}))
            )

    def catch_up(self) -> None:
        """Write what F knows and the ledger lacks.

        Raises:
          OSError: the ledger cannot be written.
        """
        count = 0
        for id_, text in self.detector.results():
            entry = parse_entry(text)
            if entry and entry["event"] == "scored":
                self._files[id_] = entry.get("size", -1), entry.get("mtime_ns", -1)
                count += self.ledger.write_missing(entry | {"id": id_})
        if count:
            self.tell(f"{count} line(s) that the ledger lacked were written from F")

    def run(self) -> None:
        """Work until `stopping`; with `once`, until what is there is dealt with.

        Raises:
          DataError: F is damaged.
          OSError: with `once`, something cannot be written.
        """
        with suppress(Stopped):
            self._work()
        with suppress(Stopped):
            self._refresh()
        self._write_table()

    def _work(self):
        listing = showing = writing = begin = progress = self._clock()
        while not self.stopping:
            if self._clock() >= listing:
                # A call with `once` deals with what is there at its start.
                listing = self._pace(IDLE, self._list, not self.once or listing == begin)
            found = self.watcher.take()
            if found:
                start, before = self._clock(), len(self.watcher)
                self._deal_with(found)
                if len(self.watcher) < before:
                    progress = self._clock()
                    self._busy.append(progress - start)
            self.board.wait(len(self.watcher), self.watcher.oldest)
            if self._clock() >= showing:
                showing = self._pace(SHOW, self._refresh)
            if self._clock() >= writing:
                writing = self._pace(TABLE, self._write_table)
            if not found:
                if self.once and self._is_done(progress):
                    return
                self._sleep(IDLE)

    def _is_done(self, progress):
        """Whether a call with `once` has dealt with everything, or will hardly get any further."""
        left = len(self.watcher)
        waited = self._clock() > progress + self.watcher.settle + self.watcher.patience
        if left and waited:
            self.tell(f"{left} recording(s) are left for the next call")
        return waited or not left

    def _pace(self, least, act, *args):
        """Act; return when to do so again."""
        start = self._clock()
        act(*args)
        return self._clock() + max(least, _SHARE * (self._clock() - start))

    def _list(self, new):
        for event in self.watcher.scan(new=new):
            if event.kind == "gone":
                self._told.pop(event.path, None)
                self._insist(self.ledger.write, compose("gone", path=event.path))
            else:
                self.tell(event.message, event.path)
        waiting = len(self.watcher)
        if waiting > self._crowd and self._busy:
            rate = 60 * len(self._busy) / max(1e-3, sum(self._busy))
            self.tell(
                f"{waiting} recordings wait, the oldest for {self.watcher.oldest:.0f} s; about "
                f"{rate:.0f} a minute can be dealt with"
            )
            self._crowd = 2 * waiting
        elif waiting < CROWD / 2:
            self._crowd = CROWD

    def _deal_with(self, found: Found):
        about = {name: getattr(found, name) for name in ("path", "size", "mtime_ns", "arrived")}
        machine, reason = self._find_machine(found.path)
        about["machine"] = machine
        judgement = None
        if not (reason := reason or found.fault):
            try:
                judgement, reason = self._score(found, machine)
            except OSError as error:
                self._postpone(found, error)
                return
        if not matches(found.path, found.size, found.mtime_ns):
            # Another recording by now, or gone; a judgement of what is gone still holds.
            if judgement is None or os.path.lexists(found.path):
                return
        if judgement is not None:
            entry = compose("scored", **about | judgement.to_json())
            try:
                reason = self._keep(found, judgement, entry)
            except DataError as error:
                if _find_cause(error) is not None:
                    raise
                reason = str(error)
        if reason:
            self._finish(found, compose("refused", **about, reason=reason))
            self._show(f"{printable(found.path)} is refused: {printable(reason)}")

    def _find_machine(self, path):
        """The machine of a recording, and why there is none."""
        if any("\ud800" <= c <= "\udfff" for c in path):
            return "", "name: not valid UTF-8"
        if self.machine is not None:
            return self.machine, ""
        *folders, _ = os.path.relpath(path, self.watcher.folder).split(os.sep)
        if folders and folders[0] in self.detector.machines:
            return folders[0], ""
        lies = f"its first folder is {folders[0]!r}" if folders else "it lies in no folder"
        there = ", ".join(self.detector.machines)
        return "", f"no machine: {lies}; the folder may be {there}, or --machine names one for all"

    def _score(self, found, machine):
        """The judgement of a recording, and why there is none."""
        try:
            judgement = self.detector.score(found.path, machine=machine)
        except MemoryError:
            return None, "takes more memory than there is"
        except Unusable as error:
            return None, error.reason
        except DataError as error:
            return None, str(error)
        except (OSError, RuntimeError):
            raise  # which another recording might not have fared better with
        except Exception as error:  # whatever a file may hold, the next one is not to suffer
            return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
        return judgement, ""

    def _keep(self, found, judgement, entry):
        """Put a recording into F and the ledger."""
        id_ = self._insist(
            lambda: self.detector.append(
                judgement, path=found.path, arrived=found.arrived, result=format_entry(entry)
            )
        )
        if id_ is None:
            self._finish(found, entry | {"event": "duplicate"})
            return
        self._files[id_] = found.size, found.mtime_ns
        self._shown = False
        self._finish(found, entry | {"id": id_})
        if judgement.anomalous:
            self.board.count("anomalous", judgement.machine)
            self._show(
                f"{printable(found.path)} sounds anomalous: {judgement.score:.4g}, "
                f"the threshold is {judgement.threshold:.4g}"
            )

    def _postpone(self, found, error):
        if not isinstance(error, FileNotFoundError):  # the next listing tells of that
            reason = f"cannot be read: {error.strerror or error}; it is tried again"
            if self._told.get(found.path) != reason:
                self._told[found.path] = reason
                self.tell(reason, found.path)
            self.watcher.postpone(found)

    def _finish(self, found, entry):
        self._insist(self.ledger.write, entry)
        self._told.pop(found.path, None)
        self.watcher.finish(found)
        self.board.count(entry["event"], entry["machine"])
        self.board.observe(self._clock() - found.first)

    def _insist(self, write, *args):
        """Try until something is written, or until the loop is to end."""
        said = ""
        while True:
            try:
                result = write(*args)
                break
            except (DataError, OSError) as error:
                lasts = isinstance(error, DataError) and not _may_pass(error)
                if lasts or self.once:
                    raise
                if str(error) != said:
                    said = str(error)
                    message = f"{said}; nothing is lost, it is tried again"
                    self._show(message)
                    self.board.set_trouble(printable(message))
            if self.stopping:
                raise Stopped
            self._sleep(RETRY)
        if said:
            self.board.set_trouble(self._trouble)
            self._show("it can be written again")
        return result

    def _refresh(self):
        """Let what is old leave F, and show what is in it."""
        if self._shown:
            return
        if self.limits:
            try:
                self.detector.evict(**self.limits)
            except DataError as error:
                if not _may_pass(error):
                    raise
                self._show(str(error))  # it is tried again the next time
        files = {}
        for machine in self.detector.machines:
            there = self.detector.recordings(machine, self._pause)
            held = sorted((one for one in there if one.id in self._files), key=lambda one: one.id)
            rows = [_make_row(machine, one, *self._files[one.id]) for one in held[-LAST:]]
            files |= {row.id: (row.size, row.mtime_ns) for row in rows}
            self.board.show(machine, rows, len(there))
        self._files, self._shown, self._tabled = files, True, False

    def _pause(self):
        """Let a long search of F end when the loop is to end; the next start goes on with it."""
        if self.stopping:
            raise Stopped

    def _write_table(self):
        if self._tabled:
            return
        try:
            write_ranking(self.board.rows, self.table)
            trouble, self._tabled = "", True
        except OSError as error:
            trouble = f"{self.table} cannot be written: {error.strerror or error}; tried again"
            if trouble != self._trouble:
                self._show(trouble)
        self._trouble = trouble
        self.board.set_trouble(printable(trouble))

    def _show(self, message):
        self._say(message)
        self.board.tell(printable(message))


def _find_cause(error):
    """What a `DataError` came from, if anything but the recording itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return None if isinstance(error, DataError) else error


def _may_pass(error):
    """Whether it is the disk that is in trouble, and not F."""
    return isinstance(_find_cause(error), OSError | sqlite3.OperationalError)


def _make_row(machine, one, size, mtime_ns):
    return Row(
        id=int(one.id),
        machine=machine,
        section=int(one.section),
        domain=one.domain,
        clip=one.clip,
        path=one.path,
        size=size,
        mtime_ns=mtime_ns,
        arrived=float(one.arrived),
        score=float(one.score),
        threshold=float(one.threshold),
    )
