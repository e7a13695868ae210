"""What of F the monitor shows: the latest recordings by their scores as they are now.

Whoever deals with recordings says what has come (`add`) and asks for `refresh` and `write` from
time to time. The first refreshment compares all of F with itself: it may be interrupted and goes
on from there, one machine after the other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dns_jax.operation.board import LAST, Board
from dns_jax.operation.ranking import Row, write_ranking


class Showing:
    """The board and the table of the ranking.

    Args:
      detector: `dns_jax.operation.detector.Detector`.
      board: where it is shown.
      table: the CSV file.
    """

    def __init__(self, detector: Any, board: Board, table: Path):
        self._detector, self._board, self._table = detector, board, table
        self._files: dict[int, tuple[int, int]] = {}  # size and time of change (ns), by id
        self._fresh, self._written = False, True  # the table of the last time stands till then

    def add(self, id_: int, size: int, mtime_ns: int) -> None:
        """Take in that a recording has come into F, and what its file was like."""
        self._files[id_] = size, mtime_ns
        self._fresh = False

    def refresh(self, evict: Callable[[], bool], pause: Callable[[], None]) -> None:
        """Show F as it is now, if anything has come.

        Args:
          evict: lets what is too old leave F before that; False where it must be tried again.
          pause: called again and again while F is searched; may raise, and the next call goes on.
        """
        if self._fresh:
            return
        evicted, files = evict(), {}
        for machine in self._detector.machines:
            there = self._detector.recordings(machine, pause)
            known = sorted((one for one in there if one.id in self._files), key=lambda one: one.id)
            rows = [_make_row(machine, one, *self._files[one.id]) for one in known[-LAST:]]
            files |= {row.id: (row.size, row.mtime_ns) for row in rows}
            self._board.show(machine, rows, len(there))
        self._files, self._fresh, self._written = files, evicted, False

    def write(self) -> None:
        """Write the table, if it has changed.

        Raises:
          OSError: it cannot be written; the file is as it was.
        """
        if not self._written:
            write_ranking(self._board.rows, self._table)
            self._written = True


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
