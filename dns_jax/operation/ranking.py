"""The ranking of the monitor: recordings of F by score over threshold, as they are now."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dns_jax.data.refusals import printable
from dns_jax.files import write_text

COLUMNS = "machine section domain clip score threshold ratio arrived id path".split()


class Row(NamedTuple):
    """One recording as it stands now.

    Attributes:
      id: in F.
      machine: its name.
      section: number of the individual.
      domain: "source" or "target".
      clip: file name.
      path: where it lay.
      size: bytes it had.
      mtime_ns: time of its last change, ns.
      arrived: s since 1970.
      score: a_prop in F as it is now; NaN where a feature is not finite.
      threshold: of its section, now.
    """

    id: int
    machine: str
    section: int
    domain: str
    clip: str
    path: str
    size: int
    mtime_ns: int
    arrived: float
    score: float
    threshold: float

    @property
    def ratio(self) -> float:
        """Score over threshold, comparable between sections and machines; NaN where unknown."""
        return self.score / self.threshold if self.threshold > 0 else math.nan


def rank(rows: Iterable[Row]) -> list[Row]:
    """Sort by score over threshold: the highest first, unknown ones last, equal ones by id."""
    return sorted(rows, key=lambda row: (math.isnan(row.ratio), -row.ratio, row.id))


def write_ranking(rows: Iterable[Row], path: Path) -> None:
    """Write rows as CSV, ranked; names on one line and in valid Unicode, blanks for NaN.

    Raises:
      OSError: it cannot be written; the file is as it was.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rank(rows):
        table.writerow([_as_cell(getattr(row, name)) for name in COLUMNS])
    write_text(path, text.getvalue())


def _as_cell(value):
    if isinstance(value, str):
        return printable(value)
    return "" if isinstance(value, float) and math.isnan(value) else value
