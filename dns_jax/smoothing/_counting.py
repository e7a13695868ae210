"""The CPU's form of eq. 7: count out the nearest instead of ranking them.

A sum needs which rows are the nearest, not their order: a threshold that K - 1 rows reach. It is
found by counting, in some twelve passes over the distances whatever K is, and each pass is an
addition of whole arrays, which XLA gives to the vector units; its top_k has one thread and none.
docs/smoothing.md has the measurements.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax.smoothing._ranking import across, multiply


def sum_by_count(pool, usable, ks, within, axis):
    """Do the same without an order: the k - 1 nearest are those that reach a threshold."""
    size = len(usable)
    spare = max(32, -(-size // 32) * 32) - size  # whole parts of `_split`
    half_norms = jnp.square(pool.features).sum(axis=1) / 2
    offsets = jnp.where(usable, -half_norms, -jnp.inf)
    # One more dimension, in which queries are 1, adds the offset.
    features = jnp.pad(jnp.column_stack([pool.features, offsets]), [(0, spare), (0, 0)])
    features = features.at[size:, -1].set(-jnp.inf)
    scores = jnp.pad(pool.scores, [(0, spare)] + [(0, 0)] * (pool.scores.ndim - 1))
    rows = jnp.arange(size + spare) + (size + spare) * jax.lax.axis_index(axis)
    counts = np.maximum(ks[:, None] - 1, 1)

    def sum_block(queries, row):
        ones = jnp.ones_like(queries.features[:, :1])
        nearness = multiply(features, jnp.hstack([queries.features, ones]).T)  # [rows, block]
        if queries.groups is not None:
            same = jnp.pad(pool.groups, (0, spare))[:, None] == queries.groups
            nearness = jnp.where(same, -jnp.inf, nearness)
            found = _add_rows(lambda near: near > -jnp.inf, nearness)
        elif within:
            nearness = nearness.at[row, jnp.arange(len(row))].set(-jnp.inf, mode="drop")
            found = usable.sum() - usable[row]
        else:
            found = jnp.broadcast_to(usable.sum(), row.shape)
        found = across(axis, jax.lax.psum, found)
        is_chosen = _choose_nearest(nearness, rows, counts, found, axis)

        def add_scores(scores):
            return _add_rows(
                lambda score, *row: jnp.where(is_chosen(*row), score, 0),
                *(x[:, None] for x in (scores[:, None], nearness, rows[:, None])),
            )

        for _ in scores.shape[1:]:
            add_scores = jax.vmap(add_scores, in_axes=1, out_axes=2)
        sums = across(axis, jax.lax.psum, add_scores(scores))
        return jnp.where(jnp.expand_dims(ks > 1, range(1, sums.ndim)), sums, 0), found

    return sum_block


def _choose_nearest(nearness, rows, counts, found, axis):
    """Search, for every query, a threshold that just `count` of the rows above -inf reach.

    A bracket of two floats is cut where a normal distribution would have `count` rows above, and
    every fifth time in the middle of the floats that are left, which ends every search. Where rows
    are left between neighbouring floats, they are equally near: the lower of them are chosen.

    Args:
      nearness: float[rows, queries].
      rows: int[rows], their numbers among the rows of all devices.
      counts: int[ks, 1], each at least 1.
      found: int[queries], how many are above -inf.
      axis: name of the axis along which the rows are spread, or ().

    Returns:
      A function from (nearness, rows), of any shape that broadcasts to [..., ks, queries], to
      whether such a row is among the `count` nearest.
    """
    kind = nearness.dtype
    bits = jnp.int32 if kind == jnp.float32 else jnp.int64
    last, tiny = jnp.iinfo(bits).max, jnp.finfo(kind).tiny
    parts = nearness[:, None]
    size = len(nearness) * jax.lax.axis_size(axis)

    def encode(x):  # floats in their order as integers
        code = jax.lax.bitcast_convert_type(x, bits)
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

    def count(is_in, *of_rows):
        return across(axis, jax.lax.psum, _add_rows(is_in, parts, *of_rows))

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
        threshold = decode(at)
        above = count(lambda near: near >= threshold)
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
    highest = encode(_fold(lambda a, b: jnp.where(a > b, a, b), slices))
    highest = across(axis, jax.lax.pmax, highest.max(axis=0))
    # Filling up with `highest` makes this pass wait for that one: at once, each slows the other.
    slices = [jnp.where(x > -jnp.inf, x, decode(highest)) for x in slices]
    lowest = encode(_fold(lambda a, b: jnp.where(a < b, a, b), slices))
    lowest = across(axis, jax.lax.pmin, lowest.min(axis=0))
    lowest = jnp.where(found > 0, lowest, encode(jnp.asarray(jnp.inf, kind)))
    bracket = (lowest, highest + 1, found, 0 * found)
    bracket = (0, *(jnp.broadcast_to(x, (len(counts), len(found))) for x in bracket))
    _, low, high, above_low, _ = jax.lax.while_loop(is_open, cut, bracket)
    low, high, tied = decode(low), decode(high), above_low > counts

    def reaches(near, row, end):
        return near >= jnp.where(row < end, low, high)

    def halve(ends):
        start, end = ends
        middle = (start + end) // 2
        enough = count(lambda *of_row: reaches(*of_row, middle), rows[:, None, None]) >= counts
        return jnp.where(enough, start, middle), jnp.where(enough, middle, end)

    whole = 0 * above_low + size
    ends = jnp.where(tied, 0, whole), whole
    _, end = jax.lax.while_loop(lambda ends: (ends[0] + 1 < ends[1]).any(), halve, ends)
    return lambda near, row: reaches(near, row, end)


def _split(x):
    """Split the rows into parts that `_fold` can combine: 32 at the most, of 32 rows at least.

    XLA gives operations on whole arrays to the vector units of a CPU, its reductions not.
    """
    parts = min(32, max(1, len(x) // 32))
    return jnp.split(x, 2 ** (parts.bit_length() - 1))


def _fold(combine, parts):
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
        return _fold(jnp.add, [x.astype(jnp.int32) for x in terms]).sum(axis=0)
    folded = _fold(jnp.add, terms)
    # A product adds up in parts, with vectors; a sum of floats does neither.
    return jnp.tensordot(jnp.ones_like(folded, shape=len(folded)), folded, 1, precision="highest")
