"""Discriminative neighbourhood smoothing, eq. 7 of the paper.

    a_prop(y_i) = 1/K (a_G(y_i) + sum of a_G(y_k) over the K - 1 nearest neighbours k of y_i in F)

`smooth` is eq. 7 within one pool, `smooth_sweep` the same for many K from one neighbour search,
`smooth_queries` smooths rows outside the pool, or one shard of it. What holds for all three:

* Scores are [rows], or [rows, columns] with the same neighbours for every column; features are
  [rows, dimensions]. K counts the row itself, exactly once, also among duplicates. Neighbours are
  the nearest in Euclidean distance; ties go to the lower row.
* `candidates` are the rows of the pool that may be neighbours; rows of equal `groups` never are.
  Where that leaves fewer than K - 1, the mean is over those and the row itself.
* Any real type in; float32 inside and out, or float64 where all scores and features are float64 and
  x64 is on. A row with a non-finite feature is nobody's neighbour and scores NaN. A non-finite
  score reaches only the rows that count it.
* Features are centred on the finite candidates and multiplied at full precision. Where that is free
  of rounding, as on small integers, the neighbours are those of a stable sort of the exact
  distances. Elsewhere a neighbour may differ only where its squared distance is as near to the last
  neighbour's as the rounding of the two, which is at most (D + 8) eps (|x|^2 + |y|^2) between rows
  x and y of D dimensions, measured from the candidates' mean (to 1/64 of their widest range).
* Differentiable in the scores, constant in the features. Callable inside `jax.jit`, `jax.vmap`,
  `jax.pmap` and `jax.shard_map`. Memory is rows x block, never rows x rows, also for the gradient.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK_BYTES = 64 * 2**20  # for the distances, neighbours and running sums of a block of rows
_CACHED_BYTES = 2 * 2**20  # for distances that are read again and again, on a CPU
_COUNT_FROM = 128  # K, from which counting is faster there than sorting
_REAL = np.bool_, np.integer, np.floating


def smooth(scores, features, k, *, candidates=None, groups=None) -> jax.Array:
    """Smooth the anomaly scores of a pool in its discriminative feature space (eq. 7).

    Args:
      scores: real[N] or real[N, S], a_G of every row.
      features: real[N, D], f_D of every row.
      k: K of eq. 7, a Python int in 1..N; 1 leaves the scores as they are.
      candidates: bool[N], the rows that may be neighbours (None: all). A row that is no candidate
        still counts itself.
      groups: int[N], rows of equal group are never neighbours, such as the windows of one clip
        (None: every row its own).

    Returns:
      float of the shape of `scores`, a_prop of every row.

    Raises:
      TypeError: for an argument of the wrong type, as a `k` that is not a Python int.
      ValueError: for a `k` out of range and for shapes that do not fit each other.
    """
    return _smooth_pool("k", (k,), scores, features, candidates, groups)[0]


def smooth_sweep(scores, features, ks, *, candidates=None, groups=None) -> jax.Array:
    """Smooth a pool for every K in `ks`, from one neighbour search for the largest.

    Args:
      scores: real[N] or real[N, S], as for `smooth`.
      features: real[N, D], as for `smooth`.
      ks: the K, Python ints in 1..N in any order.
      candidates: bool[N], as for `smooth`.
      groups: int[N], as for `smooth`.

    Returns:
      float[len(ks), ...], for every K what `smooth` returns.

    Raises:
      TypeError: as `smooth`, and for `ks` that is no sequence.
      ValueError: as `smooth`.
    """
    if not np.iterable(ks):
        raise TypeError(f"ks must be a sequence of Python ints; it was {type(ks).__name__}")
    ks = tuple(ks)
    if not ks:
        raise ValueError("ks must hold at least one K; it was empty")
    return _smooth_pool("every k in ks", ks, scores, features, candidates, groups)


def smooth_queries(
    query_scores,
    query_features,
    pool_scores,
    pool_features,
    k,
    *,
    candidates=None,
    query_groups=None,
    pool_groups=None,
) -> jax.Array:
    """Smooth the scores of queries by their neighbours in a pool (eq. 7).

    With the row index as group, a shard of a pool is smoothed exactly as `smooth` does.

    Args:
      query_scores: real[Q] or real[Q, S], a_G of every query.
      query_features: real[Q, D], f_D of every query.
      pool_scores: real[P] or real[P, S].
      pool_features: real[P, D].
      k: K of eq. 7, a Python int in 1..P+1: the query itself counts once.
      candidates: bool[P], the rows of the pool that may be neighbours (None: all).
      query_groups: int[Q], a pool row of the query's own group is no neighbour. Goes with
        `pool_groups` (both None: every row its own group).
      pool_groups: int[P].

    Returns:
      float of the shape of `query_scores`, a_prop of every query.

    Raises:
      TypeError: as `smooth`.
      ValueError: as `smooth`, and for one of the groups without the other.
    """
    if (query_groups is None) != (pool_groups is None):
        lacking = "query_groups" if query_groups is None else "pool_groups"
        raise ValueError(f"query_groups and pool_groups go together; {lacking} was None")
    dtype = _float_dtype(query_scores, query_features, pool_scores, pool_features)
    queries = _as_rows("query_", query_scores, query_features, query_groups, dtype)
    pool = _as_rows("pool_", pool_scores, pool_features, pool_groups, dtype)
    for name in ("scores", "features"):
        of_queries, of_pool = getattr(queries, name).shape, getattr(pool, name).shape
        if of_queries[1:] != of_pool[1:]:
            raise ValueError(
                f"query_{name} and pool_{name} may differ in their rows only; "
                f"their shapes were {of_queries} and {of_pool}"
            )
    rows = len(pool.features)
    _check_ks("k", (k,), rows + 1, f"the {rows} rows of pool_features and the query itself")
    candidates = _as_mask(candidates, rows, "pool_features")
    return _smooth(queries, pool, candidates, (k,))[0]


class _Rows(NamedTuple):
    scores: jax.Array  # float[rows] or float[rows, columns]
    features: jax.Array  # float[rows, dimensions]
    groups: jax.Array | None  # int[rows]


def _smooth_pool(name, ks, scores, features, candidates, groups):
    pool = _as_rows("", scores, features, groups, _float_dtype(scores, features))
    rows = len(pool.features)
    _check_ks(name, ks, rows, "the rows of features")
    if pool.groups is None:
        pool = pool._replace(groups=jnp.arange(rows))
    return _smooth(pool, pool, _as_mask(candidates, rows, "features"), ks)


def _smooth(queries, pool, candidates, ks):
    columns = math.prod(pool.scores.shape[1:])
    numbers = 3 * len(pool.features) + 4 * columns * max(ks)  # alive for one query

    def smooth_blocks(select, size):
        block = max(1, min(size, len(queries.features)))
        return partial(_smooth_blocks, ks=ks, select=select, block=block)

    by_rank = smooth_blocks(_sum_by_rank, _BLOCK_BYTES // (pool.features.dtype.itemsize * numbers))
    if len(ks) > 1 or ks[0] < _COUNT_FROM:
        return by_rank(queries, pool, candidates)
    row = pool.features.dtype.itemsize * max(1, len(pool.features))
    by_count = smooth_blocks(_sum_by_count, min(max(64, _CACHED_BYTES // row), _BLOCK_BYTES // row))
    return jax.lax.platform_dependent(queries, pool, candidates, cpu=by_count, default=by_rank)


@partial(jax.jit, static_argnames=("ks", "select", "block"))
def _smooth_blocks(queries, pool, candidates, ks, select, block):
    """Search the neighbours of `block` queries at a time: float[len(ks), *query_scores.shape]."""
    usable = jnp.isfinite(pool.features).all(axis=1)
    defined = jnp.isfinite(queries.features).all(axis=1)
    if candidates is not None:
        usable &= candidates
    query_features, pool_features = _centre(queries.features, pool.features, usable)
    # |x - y|^2 / 2 = |x|^2 / 2 - (x.y - |y|^2 / 2), where the first term is the same for every y.
    half_norms = jnp.square(pool_features).sum(axis=1) / 2
    # Never -0, which top_k would rank below an equal 0.
    offsets = jnp.where(half_norms > 0, -half_norms, 0)
    pool_scores = pool.scores.T  # [(columns,) rows]

    def smooth_row(row):
        score, feature, group, is_defined = row
        nearness = jnp.dot(feature, pool_features.T, precision=jax.lax.Precision.HIGHEST) + offsets
        allowed = usable if group is None else usable & (group != pool.groups)
        nearness = jnp.where(allowed, nearness, -jnp.inf)
        sums = select(nearness, score, pool_scores, ks)
        means = sums / jnp.minimum(np.array(ks), 1 + (nearness > -jnp.inf).sum())
        return jnp.where(is_defined, means, jnp.nan)

    rows = (queries.scores, query_features, queries.groups, defined)
    # A gradient searches again; keeping the neighbours would take rows x rows for a large K.
    search = jax.checkpoint(smooth_row, prevent_cse=False)
    return jnp.moveaxis(jax.lax.map(search, rows, batch_size=block), -1, 0)


def _sum_by_rank(nearness, score, scores, ks):
    """Sum a score and those of its k - 1 nearest rows, for every k: float[(columns,) len(ks)]."""
    nearness, neighbours = jax.lax.top_k(nearness, max(ks) - 1)
    others = jnp.where(nearness > -jnp.inf, scores[..., neighbours], 0)
    counted = jnp.concatenate([score[..., None], others], axis=-1)  # [(columns,) K]
    return jnp.cumsum(counted, axis=-1)[..., np.array(ks) - 1]


def _sum_by_count(nearness, score, scores, ks):
    """Do the same for one k, without an order: a sum needs only which rows are the nearest."""
    (k,) = ks
    others = jnp.where(_choose_nearest(nearness, k - 1), scores, 0)
    # A product adds up in parts, which is more exact than one long sum.
    total = jnp.dot(others, jnp.ones_like(nearness), precision=jax.lax.Precision.HIGHEST)
    return (score + total)[..., None]


def _choose_nearest(nearness, count):
    """Mark the `count` >= 1 nearest rows above -inf, of equally near ones the lower: bool[N].

    Search for a threshold that just `count` rows reach, in a bracket of two floats: it is cut where
    a normal distribution would have that many above, and every fifth time in the middle of the
    floats that are left, which ends every search. On a CPU, where sorting has one thread and no
    vectors, reading N numbers some twelve times takes less than sorting K of them out.
    """
    kind = nearness.dtype
    bits = jnp.int32 if kind == jnp.float32 else jnp.int64
    largest, tiny = jnp.iinfo(bits).max, jnp.finfo(kind).tiny

    def encode(x):  # floats in their order as integers
        code = jax.lax.bitcast_convert_type(x, bits)
        return jnp.where(code < 0, code ^ largest, code)

    def decode(code):
        x = jax.lax.bitcast_convert_type(jnp.where(code < 0, code ^ largest, code), kind)
        # A CPU may take subnormal numbers for 0.
        return jnp.where(jnp.abs(x) < tiny, jnp.where(code > 0, tiny, 0), x)

    def quantile(above):  # of a normal distribution
        share = (jnp.asarray(above, kind) / len(nearness)).clip(0.5 / len(nearness), 1 - 1e-6)
        return -jax.scipy.special.ndtri(share)

    def is_open(bracket):
        _, low, high, above_low, _ = bracket
        return (above_low > count) & (low + 1 < high)

    def cut(bracket):
        step, low, high, above_low, above_high = bracket
        from_low, goal, to_high = (quantile(x) for x in (above_low, count, above_high))
        share = (goal - from_low) / (to_high - from_low)
        at = encode(decode(low) + (decode(high) - decode(low)) * share)
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        at = jnp.where(step % 5 == 4, middle, at).clip(low + 1, high - 1)
        above = (nearness >= decode(at)).sum()
        enough = above >= count
        return (
            step + 1,
            jnp.where(enough, at, low),
            jnp.where(enough, high, at),
            jnp.where(enough, above, above_low),
            jnp.where(enough, above_high, above),
        )

    near = nearness > -jnp.inf
    lowest = jnp.min(nearness, where=near, initial=jnp.inf)
    found = near.sum()
    none = 0 * found  # varies over a mesh as `found` does
    bracket = (0, encode(lowest), encode(jnp.max(nearness)) + 1, found, none)
    _, low, high, above_low, above_high = jax.lax.while_loop(is_open, cut, bracket)
    # Where rows are left between neighbouring floats they are equally near.
    first = nearness >= decode(high)
    tied = (nearness >= decode(low)) & ~first
    row = jnp.arange(len(nearness))

    def halve(ends):
        start, end = ends
        middle = (start + end) // 2
        enough = (tied & (row < middle)).sum() >= count - above_high
        return jnp.where(enough, start, middle), jnp.where(enough, middle, end)

    rows = none + len(nearness)
    whole = jnp.where(above_low > count, 0, rows), rows
    _, end = jax.lax.while_loop(lambda ends: ends[0] + 1 < ends[1], halve, whole)
    return first | (tied & (row < end))


def _centre(queries, pool, usable):
    """Move the usable rows of the pool around 0 and into about [-2, 2], the queries with them.

    Both steps leave integers exact: the scale is a power of two, the centre a multiple of 1/64 of
    it. The scale keeps the squares of very large or small features within the type's range.
    """
    queries, pool = jax.lax.stop_gradient((queries, pool))
    usable = usable[:, None]
    low = jnp.min(pool, axis=0, where=usable, initial=jnp.inf)
    high = jnp.max(pool, axis=0, where=usable, initial=-jnp.inf)
    reach = jnp.max(high / 2 - low / 2, initial=0)
    power_of_two = jax.lax.reduce_precision(reach, jnp.finfo(reach.dtype).nexp, mantissa_bits=0)
    scale = jnp.where(power_of_two > 0, power_of_two, 1)
    mean = jnp.mean(pool / scale, axis=0, where=usable)
    centre = jnp.round(64 * mean) / 64 * scale
    # The products of a query 1e15 times the pool's range away could overflow, and could not tell
    # its rows apart anyway.
    return (jnp.clip((x - centre) / scale, -1e15, 1e15) for x in (queries, pool))


def _float_dtype(*arrays):
    """Return the type to compute in: `float` is float64 where x64 is on, float32 elsewhere."""
    return float if all(_as_array(x).dtype == np.float64 for x in arrays) else np.float32


def _as_array(x):
    # Not jnp.asarray, which wraps 64-bit integers around unless x64 is on.
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _check_array(name, x, kinds, axes, rows=None, of=None):
    """Return `x` as an array if its type is among `kinds` and its number of axes in `axes`."""
    x = _as_array(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be of type {expected}; its dtype was {x.dtype}")
    if x.ndim not in axes or rows not in (None, len(x)):
        expected = " or ".join(axes.values()) + (f", with the {rows} rows of {of}" if of else "")
        raise ValueError(f"{name} must be {expected}; its shape was {x.shape}")
    return x


def _as_rows(prefix, scores, features, groups, dtype):
    name = f"{prefix}features"
    features = _check_array(name, features, _REAL, {2: "[rows, dimensions]"})
    rows = len(features)
    axes = {1: "[rows]", 2: "[rows, columns]"}
    scores = _check_array(f"{prefix}scores", scores, _REAL, axes, rows, name)
    if groups is not None:
        given = _check_array(f"{prefix}groups", groups, [np.integer], {1: "[rows]"}, rows, name)
        groups = jnp.asarray(given)
        if groups.dtype != given.dtype and (given.astype(groups.dtype) != given).any():
            raise ValueError(f"{prefix}groups must fit {groups.dtype} unless x64 is on")
    return _Rows(jnp.asarray(scores, dtype), jnp.asarray(features, dtype), groups)


def _as_mask(candidates, rows, of):
    if candidates is None:
        return None
    return jnp.asarray(_check_array("candidates", candidates, [np.bool_], {1: "[rows]"}, rows, of))


def _check_ks(name, ks, most, meaning):
    for k in ks:
        if type(k) is not int:
            raise TypeError(
                f"{name} must be a Python int, known before the program is compiled; it was "
                f"{type(k).__name__}. Convert it with int(), or make it a static argument of jit"
            )
        if not 1 <= k <= most:
            raise ValueError(f"{name} must be in 1..{most}, {meaning}; it was {k}")
