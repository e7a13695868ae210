"""What the monitor shows: the ranking as it is now, and counts as Prometheus reads them.

The monitor writes it and the page's threads read it; a lock keeps one from seeing half of the
other's doing. Its size does not grow with the recordings: `LAST` of every machine, the latest
messages, and one number for every count.

The text format: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4.
"""

import json
import math
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

from dns_jax.data.refusals import printable
from dns_jax.operation.ranking import Row

LAST = 500  # recordings of a machine that are shown
COUNTS = {
    "scored": "Recordings scored and put into F.",
    "anomalous": "Recordings above their threshold when they came.",
    "duplicate": "Recordings whose samples were in F.",
    "refused": "Recordings that cannot be used.",
}
_BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)  # s, of the histogram
_PREFIX = "dns_jax_monitor_"


class Board:
    """What is shown.

    Args:
      machines: their names.
      clock: monotonic, s.
    """

    def __init__(self, machines: Sequence[str], clock=time.monotonic):
        self._clock, self._lock = clock, Lock()
        self._rows: dict[str, tuple[Row, ...]] = dict.fromkeys(machines, ())
        self._held: dict[str, int] = dict.fromkeys(machines, 0)
        self._counts = Counter({(name, machine): 0 for name in COUNTS for machine in machines})
        self._buckets, self._latency = [0] * (len(_BOUNDS) + 1), 0.0
        self._waiting, self._first = 0, None
        self._messages: deque[tuple[float, str]] = deque(maxlen=20)
        self._trouble = ""

    def count(self, name: str, machine: str = "") -> None:
        """Count one recording; `name` of `COUNTS`, machine "" where it could not be told."""
        with self._lock:
            self._counts[name, machine] += 1

    def observe(self, seconds: float) -> None:
        """Take in how long a recording took from its arrival to its line in the ledger."""
        with self._lock:
            self._buckets[bisect_left(_BOUNDS, seconds)] += 1
            self._latency += seconds

    def wait(self, waiting: int, oldest: float) -> None:
        """Take in how many recordings wait, and the oldest for how long (s)."""
        with self._lock:
            self._waiting, self._first = waiting, self._clock() - oldest

    def tell(self, message: str) -> None:
        """Take in a message."""
        with self._lock:
            self._messages.append((time.time(), message))

    def set_trouble(self, trouble: str) -> None:
        """Say what holds everything up now; "" if nothing does."""
        with self._lock:
            self._trouble = trouble

    def show(self, machine: str, rows: Sequence[Row], held: int) -> None:
        """Show the latest recordings of a machine, in the order they came, of those in F."""
        with self._lock:
            self._rows[machine], self._held[machine] = tuple(rows), held

    @property
    def rows(self) -> list[Row]:
        """All that are shown."""
        with self._lock:
            return [row for rows in self._rows.values() for row in rows]

    def find(self, id_: int) -> Row | None:
        """Return the recording of an id, None if it is not shown."""
        return next((row for row in self.rows if row.id == id_), None)

    def to_json(self) -> bytes:
        """Return everything as the page reads it; the recordings of a machine as they came."""
        with self._lock:
            totals = {
                name: sum(n for (kind, _), n in self._counts.items() if kind == name)
                for name in COUNTS
            }
            page = {
                **totals,
                "waiting": self._waiting,
                "oldest": self._get_oldest(),
                "trouble": self._trouble,
                "messages": [{"time": at, "text": text} for at, text in self._messages],
                "machines": [
                    {"name": machine, "held": self._held[machine], "rows": list(map(_show, rows))}
                    for machine, rows in self._rows.items()
                ],
            }
        return json.dumps(page, allow_nan=False).encode()

    def to_metrics(self) -> bytes:
        """Return everything as Prometheus reads it."""
        with self._lock:
            lines = []
            for name, what in COUNTS.items():
                of_kind = [(m, n) for (kind, m), n in self._counts.items() if kind == name]
                samples = [({"machine": machine}, n) for machine, n in of_kind]
                lines += _family(f"{name}_total", "counter", what, samples)
            gauges = {
                "waiting": ("Recordings not yet dealt with.", [({}, self._waiting)]),
                "oldest_waiting_seconds": ("Of the oldest of them.", [({}, self._get_oldest())]),
                "trouble": ("1 while nothing can be written.", [({}, int(bool(self._trouble)))]),
                "held": (
                    "Recordings in F.",
                    [({"machine": machine}, n) for machine, n in self._held.items()],
                ),
            }
            latest = {
                (row.machine, row.section): row for rows in self._rows.values() for row in rows
            }
            for name, what in (
                ("score", "The latest recording's score in F as it is now (dB^2)."),
                ("threshold", "Above which a recording is called anomalous (dB^2)."),
            ):
                labelled = [
                    ({"machine": machine, "section": str(section)}, getattr(row, name))
                    for (machine, section), row in latest.items()
                ]
                gauges[name] = what, labelled
            for name, (what, samples) in gauges.items():
                lines += _family(name, "gauge", what, samples)
            total, samples = 0, []
            for bound, n in zip([*_BOUNDS, math.inf], self._buckets, strict=True):
                total += n
                samples.append(("_bucket", {"le": _number(bound)}, total))
            samples += [("_sum", {}, self._latency), ("_count", {}, total)]
            what = "From when a recording was first seen to its line in the ledger."
            lines += _head("latency_seconds", "histogram", what)
            lines += [_sample("latency_seconds" + end, *rest) for end, *rest in samples]
        return ("\n".join(lines) + "\n").encode()

    def _get_oldest(self):
        return max(0.0, self._clock() - self._first) if self._waiting else 0.0


def _show(row):
    known = {"score": row.score, "threshold": row.threshold, "ratio": row.ratio}
    return {
        "id": row.id,
        "clip": printable(row.clip),
        "path": printable(row.path),
        "section": row.section,
        "domain": row.domain,
        "arrived": row.arrived,
        **{name: x if math.isfinite(x) else None for name, x in known.items()},
    }


def _family(name: str, kind: str, what: str, samples: Iterable[tuple[Mapping, float]]) -> list[str]:
    return [*_head(name, kind, what), *(_sample(name, labels, value) for labels, value in samples)]


def _head(name, kind, what):
    return [f"# HELP {_PREFIX}{name} {what}", f"# TYPE {_PREFIX}{name} {kind}"]


def _sample(name, labels, value):
    text = ",".join(f'{label}="{_escape(value)}"' for label, value in labels.items())
    return (
        f"{_PREFIX}{name}{{{text}}} {_number(value)}"
        if text
        else f"{_PREFIX}{name} {_number(value)}"
    )


def _escape(label):
    label = label.encode(errors="replace").decode()  # a name may be no Unicode
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value):
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)  # of a Python number
