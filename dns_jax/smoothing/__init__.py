"""Discriminative neighbourhood smoothing, eq. 7 of the paper.

    a_prop(y_i) = 1/K (a_G(y_i) + sum of a_G(y_k) over the K - 1 nearest neighbours k of y_i in F)

`smooth` is eq. 7 within one pool, `smooth_sweep` the same for many K from one neighbour search,
`smooth_queries` smooths rows outside the pool, or one shard of it, `smooth_queries_sweep` those for
many K. `diffuse` goes further than the paper, from neighbour to neighbour (personalised PageRank):

    s = (1 - alpha) (I - alpha P)^-1 x

P is the neighbour graph, where i and j are joined if one is among the nearest of the other, with
weights exp(-d_ij^2 / (sigma_i sigma_j)) over their sum in every row, sigma_i the distance of i to
the last of its nearest. x are scores, by choice their logarithm: `diffuse` takes none.
`diffuse_queries` takes rows outside the pool along, `diffuse_sharded` spreads the pool over
devices. What holds for all of them:

* Scores are [rows], or [rows, columns] with the same neighbours for every column; features are
  [rows, dimensions]. K counts the row itself, exactly once, also among duplicates; `n_neighbors`
  does not. Neighbours are the nearest in Euclidean distance; ties go to the lower row.
* `candidates` are the rows of the pool that may be neighbours; rows of equal `groups` never are.
  Where that leaves fewer than K - 1, the mean is over those and the row itself.
* Any real type in; float32 inside and out, or float64 where all scores and features are float64 and
  x64 is on. A row with a non-finite feature is nobody's neighbour and scores NaN. A non-finite
  score reaches only the rows that count it; it does not diffuse: others do without that row.
* Features are centred on the finite candidates and multiplied at full precision. Where that is free
  of rounding, as on small integers, the neighbours are those of a stable sort of the exact
  distances. Elsewhere a neighbour may differ only where its squared distance is as near to the last
  neighbour's as the rounding of the two, which is at most (D + 8) eps (|x|^2 + |y|^2) between rows
  x and y of D dimensions, measured from the candidates' mean (to 1/64 of their widest range).
* Differentiable in the scores, constant in the features. Callable inside `jax.jit`, `jax.vmap`,
  `jax.pmap` and `jax.shard_map`. Memory is rows x block, or rows x n_neighbors for the graph,
  never rows x rows, also for the gradient.

Eq. 7 needs which rows are the nearest, not their order. On a CPU, where XLA sorts without vectors,
they are counted out (`sum_by_count`); elsewhere `lax.top_k` ranks them (`sum_by_rank`), which is
the reference too. docs/smoothing.md explains both.
"""

import jax
import numpy as np

from dns_jax.smoothing._arguments import (
    as_mask,
    as_queries_and_pool,
    as_rows,
    check_ks,
    float_dtype,
)
from dns_jax.smoothing._diffusion import diffuse, diffuse_queries, diffuse_sharded
from dns_jax.smoothing._search import smooth_rows

__all__ = [
    "diffuse",
    "diffuse_queries",
    "diffuse_sharded",
    "smooth",
    "smooth_queries",
    "smooth_queries_sharded",
    "smooth_queries_sweep",
    "smooth_sweep",
]


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
    return _smooth_pool("every k in ks", _as_tuple(ks), scores, features, candidates, groups)


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
    queries = query_scores, query_features, query_groups
    pool = pool_scores, pool_features, pool_groups
    return _smooth_queries("k", (k,), queries, pool, candidates)[0]


def smooth_queries_sweep(
    query_scores,
    query_features,
    pool_scores,
    pool_features,
    ks,
    *,
    candidates=None,
    query_groups=None,
    pool_groups=None,
) -> jax.Array:
    """Smooth queries for every K in `ks`, from one neighbour search for the largest.

    Args:
      query_scores: as for `smooth_queries`, and so are all the others but `ks`.
      query_features: real[Q, D].
      pool_scores: real[P] or real[P, S].
      pool_features: real[P, D].
      ks: the K, Python ints in 1..P+1 in any order.
      candidates: bool[P].
      query_groups: int[Q].
      pool_groups: int[P].

    Returns:
      float[len(ks), ...], for every K what `smooth_queries` returns.

    Raises:
      TypeError: as `smooth_queries`, and for `ks` that is no sequence.
      ValueError: as `smooth_queries`.
    """
    queries = query_scores, query_features, query_groups
    pool = pool_scores, pool_features, pool_groups
    return _smooth_queries("every k in ks", _as_tuple(ks), queries, pool, candidates)


def smooth_queries_sharded(
    pool_axis,
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
    """Do the same with a pool in shards, one a device, inside `jax.shard_map` or `jax.pmap`.

    The devices exchange a few numbers a query; nothing gathers the pool.

    Args:
      pool_axis: name of the axis along which the rows of the pool, with its candidates and groups,
        are spread in order. The queries are the same all along it.
      query_scores: as for `smooth_queries`, and so the arguments below.
      query_features: real[Q, D].
      pool_scores: real[P / devices] or real[P / devices, S], this device's rows.
      pool_features: real[P / devices, D].
      k: K of eq. 7, a Python int in 1..P+1.
      candidates: bool[P / devices].
      query_groups: int[Q].
      pool_groups: int[P / devices].

    Returns:
      float of the shape of `query_scores`, the same on every device.

    Raises:
      TypeError: as `smooth_queries`.
      ValueError: as `smooth_queries`.
    """
    queries = query_scores, query_features, query_groups
    pool = pool_scores, pool_features, pool_groups
    return _smooth_queries("k", (k,), queries, pool, candidates, pool_axis)[0]


def _as_tuple(ks):
    if not np.iterable(ks):
        raise TypeError(f"ks must be a sequence of Python ints; it was {type(ks).__name__}")
    ks = tuple(ks)
    if not ks:
        raise ValueError("ks must hold at least one K; it was empty")
    return ks


def _smooth_pool(name, ks, scores, features, candidates, groups):
    pool = as_rows("", scores, features, groups, float_dtype(scores, features))
    rows = len(pool.features)
    check_ks(name, ks, rows, "the rows of features")
    return smooth_rows(pool, pool, as_mask(candidates, rows, "features"), ks, within=groups is None)


def _smooth_queries(name, ks, queries, pool, candidates, axis=()):
    queries, pool = as_queries_and_pool(queries, pool)
    rows = pool.features.shape[0]
    candidates = as_mask(candidates, rows, "pool_features")
    rows *= jax.lax.axis_size(axis)
    check_ks(name, ks, rows + 1, f"the {rows} rows of pool_features and the query itself")
    return smooth_rows(queries, pool, candidates, ks, axis=axis)
