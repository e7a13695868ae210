"""F of eq. 7 in memory, while it grows: who is whose neighbour is kept, never searched twice.

A `Neighborhood` is the pool of one scope (a section, or a machine). At any moment its results are
those of `dns_jax.smooth` and `dns_jax.smooth_queries` on the rows that it holds, in the order in
which they came, with K = `effective_k`:

* A new row is compared with all others once. Every old row has a list of its nearest neighbours,
  somewhat longer than K - 1, which the new row enters where it is nearer than the last. A row
  whose list has become too short by evictions is searched again, in blocks, when it is asked for.
* Squared distances are sums of float32 squares of differences: exact on small integers, 0 between
  duplicates, elsewhere off by at most (D + 2) eps of the distance, less than what `smooth` allows.
  All pairs whose squared distance exceeds float32's range are equally far away.
* Features lie on the device as [dimensions, capacity]; the capacity is a power of two and changes
  only when it is full, so that no recording makes XLA compile anything. Evicted rows keep their
  place until then.

Memory: a place takes 4 D bytes on the device (D rounded up to 16) and 8 L + 40 bytes on the host,
L = K - 1 + max(8, K // 4) being the length of its list; there are 1,024 places, or at most 32/15
of the most rows that were held at a time (and 64 more). For D = 128 and K = 32 that is 1.8 KB a
row at most. A search of a block takes 1 KB a place for a while, a query an eighth of that, and
while rows are moved together everything exists twice.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dns_jax.operation import distances

FIRST_CAPACITY = 1024
MOST_SHARE = 5  # K is at most a fifth of the candidates: beyond that it mixes the classes

_ROOM = 15 / 16  # of a new capacity, at most, is filled at once


class Neighbors(NamedTuple):
    """Smoothed queries and what stood behind them.

    Attributes:
      score: f64[queries], a_prop; NaN for a non-finite feature.
      behind: i32[queries], how many neighbours were averaged with the query's own score.
      rows: i32[queries, K - 1], the neighbours' rows, the nearest first; -1 beyond `behind`.
      squared: f32[queries, K - 1], their squared distances; inf beyond `behind`.
    """

    score: np.ndarray
    behind: np.ndarray
    rows: np.ndarray
    squared: np.ndarray


class Neighborhood:
    """The rows of one F, in the order in which they came.

    Args:
      dimensions: D of the features.
      k: K of eq. 7; the row itself counts.
      capped: whether K is at most a fifth of the candidates that F holds.
      within_groups: whether rows of F may be neighbours of rows of their own group; queries never
        are.
    """

    def __init__(
        self, dimensions: int, k: int, *, capped: bool = True, within_groups: bool = False
    ):
        if type(k) is not int or k < 1:
            raise ValueError(f"k must be a Python int of at least 1; it was {k!r}")
        self.dimensions, self.k = dimensions, k
        self.capped, self.within_groups = capped, within_groups
        self._length = k - 1 + max(8, k // 4)
        self._top = 0  # places below it have been given to rows
        self._came = 0
        self._features = jnp.asarray(distances.make_room(dimensions, FIRST_CAPACITY))
        self._host = {name: _fill(FIRST_CAPACITY, *kind) for name, kind in _FIELDS.items()}
        self._lists = None  # made when old rows are first refreshed
        self._smoothed_k = 0

    def __len__(self):
        return int(np.count_nonzero(self._host["alive"]))

    @property
    def candidates(self) -> int:
        """How many rows may be neighbours."""
        return int(np.count_nonzero(self._host["usable"]))

    @property
    def effective_k(self) -> int:
        """K, or a fifth of the candidates where that is less; at least 1, the row itself."""
        return min(self.k, max(1, self.candidates // MOST_SHARE)) if self.capped else self.k

    @property
    def bytes(self) -> int:
        """The memory that is held, of host and device."""
        arrays = [self._features, *self._host.values(), *(self._lists or {}).values()]
        return sum(array.nbytes for array in arrays)

    def append(self, scores, features, *, candidates=True, groups=None) -> None:
        """Add rows after all others.

        Args:
          scores: real[rows], a_G.
          features: real[rows, D], f_D.
          candidates: bool or bool[rows], whether they may be neighbours of others.
          groups: int[rows], rows of equal group are never neighbours (None: every row its own).
            Given for all rows of F or for none.

        Raises:
          ValueError: shapes that do not fit each other; nothing is added.
        """
        scores, features = self._check(scores, features)
        rows = len(scores)
        candidates = np.broadcast_to(np.asarray(candidates, bool), rows)
        alone = -1 - self._came - np.arange(rows)
        groups = alone if groups is None else np.asarray(groups)
        if groups.shape != (rows,):
            raise ValueError(f"groups must be [{rows}], as scores; its shape was {groups.shape}")
        self._came += rows
        self._make_room(rows + max(distances.BLOCKS))
        for part in distances.divide(rows):
            kin = alone if self.within_groups else groups
            row = scores[part], groups[part], kin[part], candidates[part]
            self._write(features[part], *row)

    def evict(self, gone) -> None:
        """Drop the rows where ``gone: bool[rows]`` is true."""
        places = self._places()
        gone = np.asarray(gone)
        if gone.dtype != bool or gone.shape != places.shape:
            raise ValueError(f"gone must be bool[{len(places)}]; it was {gone.dtype}{gone.shape}")
        places = places[gone]
        self._host["alive"][places] = self._host["usable"][places] = False
        if self._lists is None or not len(places):
            return
        dead = np.zeros(self._features.shape[1] + 1, bool)  # the last for -1, no neighbour
        dead[places] = True
        self._lists["bound"][places] = -np.inf
        neighbor, squared = self._lists["neighbor"], self._lists["squared"]
        neighbor[places], squared[places] = -1, np.inf
        hit = np.flatnonzero(dead[neighbor[: self._top]].any(axis=1))
        lost = dead[neighbor[hit]]
        self._keep(hit, np.where(lost, -1, neighbor[hit]), np.where(lost, np.inf, squared[hit]))

    def query(self, scores, features, *, groups=None) -> Neighbors:
        """Smooth rows that are not in F, exactly as `smooth_queries` does.

        Args:
          scores: real[queries].
          features: real[queries, D].
          groups: int[queries], rows of F of the same group are no neighbours (None: all may be).

        Raises:
          ValueError: shapes that do not fit each other.
        """
        scores, features = self._check(scores, features)
        groups = None if groups is None else np.asarray(groups)
        most, position = self.effective_k - 1, np.cumsum(self._host["alive"]) - 1
        neighbor = np.full((len(scores), most), -1, np.int32)
        squared = np.full((len(scores), most), np.inf, np.float32)
        defined = np.isfinite(features).all(axis=1)
        for part in distances.divide(len(scores)):
            block = distances.pad_features(np.where(defined[part, None], features[part], 0))
            distance = self._compare(block, len(scores[part]))
            distance = self._mask(distance, "group", None if groups is None else groups[part])
            neighbor[part], squared[part], _ = distances.find_nearest(distance, most)
        neighbor[~defined], squared[~defined] = -1, np.inf
        score, behind = _average(scores, defined, neighbor, self._host["score"])
        rows = np.where(neighbor < 0, -1, position[neighbor]).astype(np.int32)
        return Neighbors(score, behind, rows, squared)

    def refresh(self, rows=None, pause=lambda: None) -> tuple[np.ndarray, np.ndarray]:
        """Smooth rows of F as it is now, exactly as `smooth` does.

        The first call searches the rows; later ones those that lack neighbours since evictions.

        Args:
          rows: bool[rows of F], those to smooth (None: all).
          pause: called before every block of searches; may raise to stop, and the next call goes
            on from there.

        Returns:
          f64[rows], a_prop of every row, and i32[rows], how many neighbours stood behind it.
        """
        if self._lists is None:
            capacity, kinds = self._features.shape[1], _list_fields(self._length)
            self._lists = {name: _fill(capacity, *kind) for name, kind in kinds.items()}
        host, lists, most = self._host, self._lists, self.effective_k - 1
        places = self._places() if rows is None else self._places()[rows]
        short = (lists["behind"][places] < most) & (lists["bound"][places] < np.inf)
        short = places[short & host["defined"][places]]
        for part in distances.divide(len(short)):
            pause()
            self._search(short[part])
        if most + 1 != self._smoothed_k:
            lists["changed"][:], self._smoothed_k = True, most + 1
        changed = places[lists["changed"][places]]
        lists["smoothed"][changed], _ = _average(
            host["score"][changed],
            host["defined"][changed],
            lists["neighbor"][changed, :most],
            host["score"],
        )
        lists["changed"][changed] = False
        behind = np.where(host["defined"][places], np.minimum(lists["behind"][places], most), 0)
        return lists["smoothed"][places], behind.astype(np.int32)

    def _check(self, scores, features):
        scores, features = np.asarray(scores, np.float32), np.asarray(features, np.float32)
        if scores.ndim != 1 or features.shape != (len(scores), self.dimensions):
            raise ValueError(
                f"scores must be [rows] and features [rows, {self.dimensions}]; their shapes were "
                f"{scores.shape} and {features.shape}"
            )
        return scores, features

    def _places(self):
        """Where the rows of F lie, in their order."""
        return np.flatnonzero(self._host["alive"])

    def _make_room(self, rows):
        """Move the rows that are left together, into a capacity that fits them, if it is full."""
        if self._top + rows <= self._features.shape[1]:
            return
        alive, capacity = self._places(), FIRST_CAPACITY
        while len(alive) + rows > _ROOM * capacity:
            capacity *= 2
        features = distances.make_room(self.dimensions, capacity)
        features[:, : len(alive)] = np.asarray(self._features)[:, alive]
        self._features = jnp.asarray(features)

        def move(arrays, kinds):
            for name, kind in kinds.items():
                moved = _fill(capacity, *kind)
                moved[: len(alive)] = arrays[name][alive]
                arrays[name] = moved

        place = np.full(self._top + 1, -1, np.int32)  # the last for -1, no neighbour
        place[alive] = np.arange(len(alive))
        move(self._host, _FIELDS)
        if self._lists is not None:
            move(self._lists, _list_fields(self._length))
            self._lists["neighbor"] = place[self._lists["neighbor"]]
        self._top = len(alive)

    def _write(self, features, scores, groups, kin, candidates):
        """Put a block of rows behind the others and into the lists of those it is nearest to."""
        first, end = self._top, self._top + len(scores)
        defined = np.isfinite(features).all(axis=1)
        block = distances.pad_features(np.where(defined[:, None], features, 0))
        self._features = distances.put(self._features, block, first)
        row = (scores, groups, kin, True, defined, defined & candidates)
        for name, value in zip(_FIELDS, row, strict=True):
            self._host[name][first:end] = value
        self._top = end
        if self._lists is None:
            return
        distance, lists = self._compare(block, len(scores)), self._lists
        nearer = distance[:, :first] < lists["bound"][:first]
        nearer &= self._host["usable"][first:end, None]
        nearer &= kin[:, None] != self._host["kin"][:first]
        touched = np.flatnonzero(nearer.any(axis=0))
        entering = np.where(nearer[:, touched], distance[:, touched], np.inf).T
        places = np.broadcast_to(np.arange(first, end, dtype=np.int32), entering.shape)
        self._keep(
            touched,
            np.concatenate([lists["neighbor"][touched], places], axis=1),
            np.concatenate([lists["squared"][touched], entering], axis=1),
        )
        self._list(np.arange(first, end), distance)

    def _search(self, places):
        """Make the lists of a block of rows anew."""
        block = distances.take(self._features, distances.pad(places.astype(np.int32)))
        self._list(places, self._compare(block, len(places)))

    def _list(self, places, distance):
        """Write the lists of a block of rows from their distances."""
        distance = self._mask(distance, "kin", self._host["kin"][places])
        neighbor, squared, bound = distances.find_nearest(distance, self._length)
        self._keep(places, neighbor, squared)
        self._lists["bound"][places] = np.where(self._host["defined"][places], bound, -np.inf)

    def _keep(self, places, neighbor, squared):
        """Sort the neighbours of some rows, the earlier first among equals, and keep the nearest.

        All candidates below `bound` are in a list; what came later and lies at it is behind it.
        """
        order = np.argsort(squared, axis=1, kind="stable")[:, : self._length]
        kept = np.take_along_axis(squared, order, axis=1)
        behind = np.sum(kept < np.inf, axis=1)
        lists = self._lists
        dropped = np.sum(squared < np.inf, axis=1) > behind
        lists["bound"][places[dropped]] = kept[dropped, -1]
        neighbor = np.take_along_axis(neighbor, order, axis=1)
        lists["neighbor"][places] = np.where(kept < np.inf, neighbor, -1)
        lists["squared"][places], lists["behind"][places] = kept, behind
        lists["changed"][places] = True

    def _compare(self, block, rows):
        """f32[rows, places], squared distances to all places that were ever given."""
        return np.asarray(distances.compare(self._features, block))[:rows, : self._top]

    def _mask(self, distance, kind, groups):
        """Move all that may not be neighbours infinitely far away, as those of equal `kind`."""
        distance = np.where(self._host["usable"][: self._top], distance, np.inf)
        if groups is not None:
            distance[groups[:, None] == self._host[kind][: self._top]] = np.inf
        return distance


# Of every place: the type, the value where there is no row, and the shape.
_FIELDS = {
    "score": (np.float32, 0),
    "group": (np.int64, 0),
    "kin": (np.int64, 0),  # within F, rows of equal kin are never neighbours
    "alive": (bool, False),
    "defined": (bool, False),  # all features are finite
    "usable": (bool, False),  # may be a neighbour
}


def _list_fields(length):
    return {
        "neighbor": (np.int32, -1, length),  # places, the nearest first
        "squared": (np.float32, np.inf, length),
        "bound": (np.float32, -np.inf),
        "behind": (np.int32, 0),  # how many neighbours the list holds
        "changed": (bool, True),
        "smoothed": (np.float64, np.nan),
    }


def _fill(capacity, dtype, value, *shape):
    return np.full((capacity, *shape), value, dtype)


def _average(scores, defined, neighbor, score_of):
    """f64[rows], the mean of own and neighbours' scores, and i32[rows], how many neighbours."""
    there = neighbor >= 0
    behind = np.sum(there, axis=1, dtype=np.int32)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        total = np.sum(score_of[neighbor], axis=1, dtype=np.float64, where=there) + scores
        return np.where(defined, total / (1 + behind), np.nan), behind
