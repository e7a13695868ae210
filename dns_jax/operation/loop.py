"""The loop of the monitor: next finished recording, score, F, ledger; one at a time.

The order makes every recording count once, whatever stops the process: it is put into F together
with its entry of the ledger, then the entry is written to the ledger, then the next recording is
looked at. A kill before the first leaves a file that is found again; one between the two an entry
that the next start writes (`Loop.catch_up`). While one of the two cannot be written, the loop
stands still and says so. What waits lies on the disk and is counted, nothing of it is held here.
"""

import math
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dns_jax.data.names import find_name_fault
from dns_jax.data.refusals import DataError, printable
from dns_jax.operation.board import Board
from dns_jax.operation.judging import find_machine, judge
from dns_jax.operation.ledger import Ledger, compose, format_entry, parse_entry
from dns_jax.operation.showing import Showing
from dns_jax.operation.watching import Found, Watcher, matches

IDLE = 0.5  # s between two listings
RETRY = 1.0  # s until what could not be written is tried again
SHOW = 2.0  # s between two refreshments of what is shown
SLICE = 1.0  # s of a search of F after which recordings come first; then twice as many
TABLE = 5.0  # s between two writings of the table
CROWD = 100  # recordings waiting that are worth a line
_SHARE = 20  # while recordings wait, a long listing or search has one part in so many of the time


class Stopped(Exception):
    """The loop was asked to end while it waited for something to be written."""


class _Later(Exception):
    """A search of F has taken its time and goes on later."""


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
        self._showing, self._slice = Showing(detector, board, table), SLICE
        self._searching = self._compared = False  # whether a search goes on, and whether one did
        self._trouble = self._kept = ""  # of the table, and why nothing could be evicted

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
                self._showing.add(id_, entry.get("size", -1), entry.get("mtime_ns", -1))
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
            self._refresh(whole=True)
        self._write_table(last=True)

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
                if self._searching:
                    showing = self._clock()
                else:
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
        took = self._clock() - start
        return self._clock() + (least if self.once else max(least, _SHARE * took))

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
        machine, reason = self.machine or "", find_name_fault(found.path)
        if not (machine or reason):
            machine, reason = find_machine(found.path, self.watcher.folder, self.detector.machines)
        about["machine"] = machine
        judgement = None
        if not (reason := reason or found.fault):
            try:
                judgement, reason = judge(self.detector, found.path, machine)
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
        if reason and not machine and self.ledger.settle(found):
            self.watcher.finish(found)  # it was refused by an earlier call, which said so
        elif reason:
            self._finish(found, compose("refused", **about, reason=reason))
            self._show(f"{printable(found.path)} is refused: {printable(reason)}")

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
        self._showing.add(id_, found.size, found.mtime_ns)
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

    def _refresh(self, whole=False):
        """Show what is in F now, or search F for a slice of time and go on with it later."""
        seconds = math.inf if whole else self._slice
        end = None

        def pause():  # before every block of a search
            nonlocal end
            if self.stopping:
                raise Stopped
            if end is None:  # one block at least, however long it took to come here
                end = self._clock() + seconds
            elif self._clock() > end:
                raise _Later

        try:
            self._showing.refresh(self._evict, pause)
            self._searching, self._slice = False, SLICE
        except _Later:
            if not self._compared:
                self._show("F is compared with itself; its ranking is shown when that is done")
            self._searching = self._compared = True
            self._slice *= 2  # or it might never catch up with what comes

    def _evict(self):
        """Let what is too old or too much leave F; say whether that is done."""
        said = ""
        try:
            if self.limits:
                self.detector.evict(**self.limits)
        except DataError as error:
            if not _may_pass(error):
                raise
            said = str(error)
            if said != self._kept:
                self._show(said)
        self._kept = said
        return not said

    def _write_table(self, last=False):
        trouble = ""
        try:
            self._showing.write()
        except OSError as error:
            if last and self.once:
                raise
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
