"""The CPU's form of eq. 7: count out the nearest instead of ranking them.

A sum needs which rows are the nearest, not their order: a threshold that K - 1 rows reach. It is
found by counting, in some twelve passes over the distances whatever K is. Distances lie as rows of
the pool by queries, and a pass adds up slices of them as whole arrays, which XLA gives to all cores
and their vector units: eight times as fast as its reductions. docs/smoothing.md has measurements.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax.smoothing._ranking import across, multiply

_CACHED_BYTES = 4 * 2**20  # of distances that are read again and again; of more, some columns each
_TOGETHER = 16  # such columns, which fill a line of the cache


def sum_by_count(pool, usable, ks, within, axis):
    """Sum the scores of the k - 1 nearest for every k: those of the rows that reach a threshold.

    Args and result as those of `sum_by_rank`.
    """
    size = len(usable)
    spare = max(32, -(-size // 32) * 32) - size  # whole parts of `_split`
    half_norms = jnp.square(pool.features).sum(axis=1) / 2
    offsets = jnp.where(usable, -half_norms, -jnp.inf)
    # One more dimension, in which queries are 1, adds the offset.
    features = jnp.pad(jnp.column_stack([pool.features, offsets]), [(0, spare), (0, 0)])
    features = features.at[size:, -1].set(-jnp.inf)
    columns = pool.scores.reshape(size, math.prod(pool.scores.shape[1:]))
    columns = jnp.pad(columns, [(0, spare), (0, 0)]).T
    rows = jnp.arange(size + spare) + (size + spare) * jax.lax.axis_index(axis)
    counts = np.maximum(ks[:, None] - 1, 1)

    def sum_block(queries, row):
        ones = jnp.ones((len(row), 1), features.dtype)
        nearness = multiply(features, jnp.hstack([queries.features, ones]).T)  # [rows, block]
        if queries.groups is not None:
            same = jnp.pad(pool.groups, (0, spare))[:, None] == queries.groups
            nearness = jnp.where(same, -jnp.inf, nearness)
            found = _add_rows(lambda near: near > -jnp.inf, nearness)
        elif within:
            nearness = nearness.at[row, jnp.arange(len(row))].set(-jnp.inf, mode="drop")
            found = usable.sum() - usable[row]
        else:
            # Adds 0, by numbers that differ between devices where the queries do.
            found = usable.sum() + (nearness[0] > jnp.inf)
        found = across(axis, jax.lax.psum, found)

        def sum_columns(nearness, found):
            limits = _choose_nearest(nearness, rows, counts, found, axis)

            def add_chosen(limits, column):
                return _add_rows(
                    lambda score, *row: jnp.where(_is_chosen(*row, *limits), score, 0),
                    *(column[:, None], nearness, rows[:, None]),
                )

            # One after the other: [ks, columns, queries].
            return jax.lax.map(lambda k: jax.lax.map(partial(add_chosen, k), columns), limits)

        cached = nearness.nbytes <= _CACHED_BYTES or _search_maxima(len(rows), counts)
        if cached or len(row) % _TOGETHER:
            sums = sum_columns(nearness, found)
        else:

            def sum_some(start):
                some = jax.lax.dynamic_slice_in_dim(nearness, start, _TOGETHER, 1)
                some = jax.lax.optimization_barrier(some)  # or every pass goes through all columns
                return sum_columns(some, jax.lax.dynamic_slice_in_dim(found, start, _TOGETHER))

            sums = jax.lax.map(sum_some, jnp.arange(0, len(row), _TOGETHER))
            sums = jnp.moveaxis(sums, 0, 2).reshape(len(ks), len(columns), len(row))
        sums = across(axis, jax.lax.psum, jnp.moveaxis(sums, 1, 2))
        sums = jnp.where(ks[:, None, None] > 1, sums, 0)
        return sums.reshape(*sums.shape[:2], *pool.scores.shape[1:]), found

    return sum_block


def _choose_nearest(nearness, rows, counts, found, axis):
    """Search, for every query, a threshold that just `count` of the rows above -inf reach.

    Args:
      nearness: float[rows, queries].
      rows: int[rows], their numbers among the rows of all devices.
      counts: int[ks, 1], each at least 1.
      found: int[queries], how many are above -inf.
      axis: name of the axis along which the rows are spread, or ().

    Returns:
      What `_is_chosen` takes to tell the nearest, each [ks, queries].
    """
    low, high, above_low = _search_threshold(nearness, counts, found, axis)
    # Rows that are left between neighbouring floats are equally near: the lower ones are chosen.
    whole = 0 * above_low + len(nearness) * jax.lax.axis_size(axis)
    ends = jnp.where(above_low > counts, 0, whole), whole

    def halve(ends):
        start, end = ends
        middle = (start + end) // 2
        chosen = _add_rows(
            lambda *row: _is_chosen(*row, low, high, middle), nearness[:, None], rows[:, None, None]
        )
        enough = across(axis, jax.lax.psum, chosen) >= counts
        return jnp.where(enough, start, middle), jnp.where(enough, middle, end)

    _, end = jax.lax.while_loop(lambda ends: (ends[0] + 1 < ends[1]).any(), halve, ends)
    return low, high, end


def _is_chosen(near, row, low, high, end):
    return near >= jnp.where(row < end, low, high)


def _search_threshold(nearness, counts, found, axis):
    """Close in on the `count` nearest: (low, high, rows that reach low), each [ks, queries].

    A bracket of two floats is cut where a normal distribution would have `count` rows above, and
    every fifth time in the middle of the floats that are left, which ends every search. At its end
    `count` rows reach `low`, or those between it and `high` are equal.
    """
    kind = nearness.dtype
    bits = jnp.int32 if kind == jnp.float32 else jnp.int64
    last, tiny = jnp.iinfo(bits).max, jnp.finfo(kind).tiny
    size = len(nearness) * jax.lax.axis_size(axis)

    def encode(x):  # floats in their order as integers
        code = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), bits)  # -0 is 0
        return jnp.where(code < 0, code ^ last, code)

    def decode(code):
        x = jax.lax.bitcast_convert_type(jnp.where(code < 0, code ^ last, code), kind)
        # A CPU may take subnormal numbers for 0.
        return jnp.where(jnp.abs(x) < tiny, jnp.where(code > 0, tiny, 0), x)

    def quantile(above):  # of a normal distribution to 0.003, Abramowitz and Stegun 26.2.22
        share = (jnp.asarray(above, kind) / size).clip(0.5 / size, 1 - 0.5 / size)
        t = jnp.sqrt(-2 * jnp.log(jnp.minimum(share, 1 - share)))
        z = t - (2.30753 + 0.27061 * t) / (1 + 0.99229 * t + 0.04481 * t**2)
        return jnp.where(share < 0.5, z, -z)

    def count(threshold):
        above = _add_rows(lambda near: near >= threshold, nearness[:, None])
        return across(axis, jax.lax.psum, above)

    def is_open(bracket):
        _, low, high, above_low, _ = bracket
        return ((above_low > counts) & (low + 1 < high)).any()

    def cut(bracket):
        step, low, high, above_low, above_high = bracket
        from_low, goal, to_high = (quantile(x) for x in (above_low, counts, above_high))
        share = (goal - from_low) / (to_high - from_low)
        at = encode(decode(low) + (decode(high) - decode(low)) * share)
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        at = jnp.where(step % 5 == 4, middle, at).clip(low + 1, high - 1)
        above = count(decode(at))
        enough = above >= counts
        undecided = above_low > counts
        raised, lowered = undecided & enough, undecided & ~enough
        return (
            step + 1,
            jnp.where(raised, at, low),
            jnp.where(lowered, at, high),
            jnp.where(raised, above, above_low),
            jnp.where(lowered, above, above_high),
        )

    slices = _split(nearness)
    largest = fold(lambda a, b: jnp.where(a > b, a, b), slices)
    highest = across(axis, jax.lax.pmax, encode(largest).max(axis=0))
    if not _search_maxima(len(nearness), counts):
        # Filling up with `highest` makes this pass wait for that: at once, each slows the other.
        slices = [jnp.where(x > -jnp.inf, x, decode(highest)) for x in slices]
        lowest = encode(fold(lambda a, b: jnp.where(a < b, a, b), slices))
        lowest = across(axis, jax.lax.pmin, lowest.min(axis=0))
        low = jnp.where(found > 0, lowest, encode(jnp.asarray(jnp.inf, kind)))
        above_low = found
    else:
        # `count` of the largest of 32 rows reach some threshold, so at least as many rows do.
        spare = -len(largest) % 32
        largest = jnp.pad(largest, ((0, spare), (0, 0)), constant_values=-jnp.inf)
        largest = jax.lax.optimization_barrier(largest)  # or every use goes through all rows again
        some = across(axis, jax.lax.psum, _add_rows(lambda x: x > -jnp.inf, largest))
        low, _, _ = _search_threshold(largest, counts, some, axis)
        above_low = count(low)
        lowest = encode(jnp.asarray(jnp.finfo(kind).min, kind))
        low = jnp.where(above_low >= counts, encode(low), lowest)
        above_low = jnp.where(above_low >= counts, above_low, found)
    bracket = (low, highest + 1, above_low, 0 * found)
    bracket = (0, *(jnp.broadcast_to(x, (len(counts), len(found))) for x in bracket))
    _, low, high, above_low, _ = jax.lax.while_loop(is_open, cut, bracket)
    return decode(low), decode(high), above_low


def _search_maxima(rows, counts):
    """Whether to search the maxima of 32 rows first, which pays where they are many."""
    return rows >= 32 * max(16 * counts.max(), 128)


def _split(x):
    """Split the rows into parts that `fold` can combine: 32 at the most, of 32 rows at least.

    XLA gives operations on whole arrays to the vector units of a CPU, its reductions not.
    """
    parts = min(32, max(1, len(x) // 32))
    return jnp.split(x, 2 ** (parts.bit_length() - 1))


def fold(combine, parts):
    """Combine arrays of equal shape, two at a time."""
    while len(parts) > 1:
        halves = zip(parts[::2], parts[1::2], strict=True)
        parts = [combine(a, b) for a, b in halves]
    return parts[0]


def _add_rows(function, *arrays):
    """Add up function(*rows) over axis 0 of the arrays, each of [rows, ...]."""
    parts = zip(*(_split(x) for x in arrays), strict=True)
    terms = [function(*part) for part in parts]
    if terms[0].dtype == bool:
        return fold(jnp.add, [x.astype(jnp.int32) for x in terms]).sum(axis=0)
    folded = fold(jnp.add, terms)
    # A product adds up in parts, with vectors; a sum of floats does neither.
    return jnp.tensordot(jnp.ones_like(folded, shape=len(folded)), folded, 1, precision="highest")
