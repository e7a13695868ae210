"""One F of the operating phase: its rows, whose they are, and what they make of a recording.

What `NeighborPool` asks about recordings, `Neighborhood` answers about rows; this is in between.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dns_jax.operation.neighbors import Neighborhood


class Setting(NamedTuple):
    """How eq. 7 is applied to one machine.

    Attributes:
      k: K; rows count themselves.
      data: "source" or "all", the domains whose rows may be neighbours.
      scope: "section" or "machine", what one F holds.
      unit: "segment" or "clip", the rows of F.
      capped: whether K is at most a fifth of the candidates that F holds.
      own_windows: whether segments of a recording in F may be neighbours of each other.
    """

    k: int
    data: str = "all"
    scope: str = "section"
    unit: str = "segment"
    capped: bool = True
    own_windows: bool = True


class Smoothed(NamedTuple):
    """A recording in the light of F.

    Attributes:
      score: a_prop of the recording.
      segments: f64[rows], a_prop of its segments (of the recording where the unit is "clip").
      behind: the least number of neighbours behind one of them.
      k: K that was effective; `behind` is less than K - 1 where F has too few.
      deciding: (id, share of the mean) of the recordings whose rows were the neighbours, the
        largest share first. The rest is the recording's own.
    """

    score: float
    segments: np.ndarray
    behind: int
    k: int
    deciding: tuple[tuple[int, float], ...]


class Refreshed(NamedTuple):
    """Recordings in the light of F as it is now.

    Attributes:
      id: i64[recordings], in the order in which they came.
      score: f64[recordings], a_prop.
      behind: i32[recordings], the least number of neighbours behind one of its rows.
    """

    id: np.ndarray
    score: np.ndarray
    behind: np.ndarray


class Scope:
    """The rows of a section or a machine.

    Args:
      setting: how eq. 7 is applied.
      dimensions: D.
    """

    def __init__(self, setting: Setting, dimensions: int):
        self._unit = setting.unit
        self._rows = Neighborhood(
            dimensions, setting.k, capped=setting.capped, within_groups=setting.own_windows
        )
        # The id of a recording, or the number of a reference, below 0.
        self._owner = np.zeros(0, np.int64)

    @property
    def bytes(self) -> int:
        """The memory that is held, of host and device."""
        return self._rows.bytes + self._owner.nbytes

    @property
    def k(self) -> int:
        """K as it is now."""
        return self._rows.effective_k

    def append(self, parts: Sequence[tuple]) -> None:
        """Add recordings: (owner, real[segments], real[segments, D], may be neighbours) of each."""
        rows = []
        for owner, scores, features, candidate in parts:
            scores, features = _take_unit(self._unit, scores, features)
            of_all = np.full(len(scores), owner), np.full(len(scores), candidate)
            rows.append((scores, features, *of_all))
        scores, features, owners, candidates = map(np.concatenate, zip(*rows, strict=True))
        self._rows.append(scores, features, candidates=candidates, groups=owners)
        self._owner = np.append(self._owner, owners)

    def evict(self, owners: Sequence[int]) -> None:
        """Drop the rows of some recordings."""
        gone = np.isin(self._owner, owners)
        self._rows.evict(gone)
        self._owner = self._owner[~gone]

    def score(self, scores, features, owner: int | None) -> Smoothed:
        """Smooth a recording as a query; rows of `owner` are not its neighbours."""
        scores, features = _take_unit(self._unit, scores, features)
        if not len(scores):
            raise ValueError("scores must be of at least one segment; there was none")
        groups = None if owner is None else np.full(len(scores), owner)
        found = self._rows.query(scores, features, groups=groups)
        there = found.rows >= 0
        weight = np.where(there, 1 / (len(scores) * (1 + found.behind[:, None])), 0)
        owners, member = np.unique(self._owner[found.rows[there]], return_inverse=True)
        shares = np.bincount(member, weight[there], minlength=len(owners))
        order = np.argsort(-shares, kind="stable")
        with np.errstate(invalid="ignore"):  # infinities of both signs
            mean = float(np.mean(found.score))
        return Smoothed(
            score=mean,
            segments=found.score,
            behind=int(found.behind.min()),
            k=self._rows.effective_k,
            deciding=tuple(zip(owners[order].tolist(), shares[order].tolist(), strict=True)),
        )

    def refresh(self, references: bool, pause: Callable) -> Refreshed:
        """Smooth the references or the others, each the mean over its rows."""
        asked = self._owner < 0 if references else self._owner > 0
        score, behind = self._rows.refresh(asked, pause)
        owner = self._owner[asked]
        first = np.flatnonzero(np.diff(owner, prepend=0))  # rows of a recording lie side by side
        if not len(first):
            return Refreshed(owner, score, behind)
        rows = np.diff(first, append=len(owner))
        with np.errstate(invalid="ignore"):
            means = np.add.reduceat(score, first) / rows
        return Refreshed(owner[first], means, np.minimum.reduceat(behind, first))


def join(parts: Sequence[Refreshed]) -> Refreshed:
    """Join the recordings of several F, in the order in which they came."""
    empty = Refreshed(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32))
    joined = [np.concatenate(fields) for fields in zip(empty, *parts, strict=True)]
    order = np.argsort(np.abs(joined[0]), kind="stable")
    return Refreshed(*(field[order] for field in joined))


def check_setting(machine: str, setting: Setting) -> None:
    """Refuse a setting that is none.

    Raises:
      ValueError: naming the machine and the field.
    """
    choices = {"data": ("source", "all"), "scope": ("section", "machine")}
    choices["unit"] = ("segment", "clip")
    for name, allowed in choices.items():
        value = getattr(setting, name)
        if value not in allowed:
            raise ValueError(f"{machine}: {name} must be {' or '.join(allowed)}; it was {value!r}")
    if type(setting.k) is not int or setting.k < 1:
        raise ValueError(f"{machine}: k must be a Python int of at least 1; it was {setting.k!r}")


def _take_unit(unit, scores, features):
    """The rows of a recording: its segments, or their mean."""
    scores, features = np.asarray(scores, np.float32), np.asarray(features, np.float32)
    if unit == "segment" or not len(scores):
        return scores, features
    with np.errstate(invalid="ignore"):
        means = (np.mean(x, axis=0, keepdims=True, dtype=np.float64) for x in (scores, features))
        return tuple(mean.astype(np.float32) for mean in means)
