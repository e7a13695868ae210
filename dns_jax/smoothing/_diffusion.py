"""Scores that diffuse through the neighbour graph: personalised PageRank in place of eq. 7.

    s = (1 - alpha) (I - alpha P)^-1 x,  P = W with every row divided by its sum

P is similar to a symmetric matrix, whose eigenvalues lie in [-1, 1]: Chebyshev's iteration solves
the system in a number of steps that alpha alone decides.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax.smoothing._arguments import (
    as_mask,
    as_queries_and_pool,
    as_rows,
    check_ks,
    float_dtype,
)
from dns_jax.smoothing._graph import build_graph, sum_edges, sum_neighbours, weigh
from dns_jax.smoothing._nearest import find_nearest


def diffuse(
    scores, features, *, n_neighbors=10, alpha=0.9, candidates=None, groups=None
) -> jax.Array:
    """Diffuse the scores of a pool through its neighbour graph (personalised PageRank).

    Args:
      scores: real[N] or real[N, S], x: the logarithm of a_G of every row, as a rule.
      features: real[N, D], f_D of every row.
      n_neighbors: how many nearest rows a row is joined to, a Python int in 1..N-1.
      alpha: how far the scores spread, a Python float in [0, 1); 0 leaves them as they are.
      candidates: bool[N], the rows that may be neighbours (None: all). Any other row takes part of
        the result of its own neighbours, and gives nothing to anybody.
      groups: int[N], rows of equal group are never neighbours (None: every row its own).

    Returns:
      float of the shape of `scores`, s of every row; its own score where it has no neighbour, or
      none that weighs anything.

    Raises:
      TypeError: for an argument of the wrong type, as an `alpha` that is not a Python float.
      ValueError: for a number out of range and for shapes that do not fit each other.

    References:
      Zhou et al., "Learning with local and global consistency", NeurIPS 2004: the equation.
      Zelnik-Manor and Perona, "Self-tuning spectral clustering", NeurIPS 2004: the weights.
    """
    return diffuse_sharded(
        (),
        scores,
        features,
        n_neighbors=n_neighbors,
        alpha=alpha,
        candidates=candidates,
        groups=groups,
    )


def diffuse_sharded(
    axis, scores, features, *, n_neighbors=10, alpha=0.9, candidates=None, groups=None
) -> jax.Array:
    """Do the same with the rows spread over devices, inside `jax.shard_map` or `jax.pmap`.

    Every device searches for its own rows. The features are gathered once; a step of the iteration
    exchanges a number a row.

    Args:
      axis: name of the axis along which all rows are spread in order.
      scores: real[N / devices] or real[N / devices, S], this device's rows.
      features: real[N / devices, D].
      n_neighbors: a Python int in 1..N-1.
      alpha: as for `diffuse`.
      candidates: bool[N / devices].
      groups: int[N / devices].

    Returns:
      float of the shape of `scores`, of this device's rows what `diffuse` returns for all.

    Raises:
      TypeError: as `diffuse`.
      ValueError: as `diffuse`.
    """
    rows = as_rows("", scores, features, groups, float_dtype(scores, features))
    candidates = as_mask(candidates, len(rows.features), "features")
    number = len(rows.features) * jax.lax.axis_size(axis)
    meaning = f"one less than the {number} rows of features"
    check_ks("n_neighbors", (n_neighbors,), number - 1, meaning)
    _check_alpha(alpha)
    graph = build_graph(rows, candidates, n_neighbors, axis)
    return _diffuse_rows(graph, rows, alpha, axis)


def diffuse_queries(
    query_scores,
    query_features,
    pool_scores,
    pool_features,
    *,
    n_neighbors=10,
    alpha=0.9,
    candidates=None,
    query_groups=None,
    pool_groups=None,
) -> jax.Array:
    """Diffuse a pool by itself, and let every query take part of what its neighbours have then.

        s_q = (1 - alpha) x_q + alpha (sum over the nearest j of w_qj s_j) / (sum of w_qj)

    A query changes neither the pool nor another query.

    Args:
      query_scores: real[Q] or real[Q, S], x of every query.
      query_features: real[Q, D], f_D of every query.
      pool_scores: real[P] or real[P, S].
      pool_features: real[P, D].
      n_neighbors: a Python int in 1..P.
      alpha: as for `diffuse`.
      candidates: bool[P], the rows of the pool that may be neighbours (None: all).
      query_groups: int[Q], a pool row of the query's own group is no neighbour. Goes with
        `pool_groups` (both None: every row its own group).
      pool_groups: int[P].

    Returns:
      float of the shape of `query_scores`, s of every query.

    Raises:
      TypeError: as `diffuse`.
      ValueError: as `diffuse`, and for one of the groups without the other.
    """
    queries = query_scores, query_features, query_groups
    pool = pool_scores, pool_features, pool_groups
    queries, pool = as_queries_and_pool(queries, pool)
    number = len(pool.features)
    candidates = as_mask(candidates, number, "pool_features")
    check_ks("n_neighbors", (n_neighbors,), number, f"the {number} rows of pool_features")
    _check_alpha(alpha)
    graph = build_graph(pool, candidates, n_neighbors)
    edges = find_nearest(queries, pool, candidates, n_neighbors)
    return _diffuse_queries(graph, edges, queries, pool.scores, alpha)


def _check_alpha(alpha):
    if type(alpha) not in (float, int):
        raise TypeError(
            f"alpha must be a Python float, known before the program is compiled; it was "
            f"{type(alpha).__name__}. Convert it with float(), or make it a static argument of jit"
        )
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1), the part that spreads; it was {alpha}")


@partial(jax.jit, static_argnames=("alpha", "axis"))
def _diffuse_rows(graph, rows, alpha, axis):
    diffused = _map_columns(lambda x: _solve(graph, x, alpha, axis)[0], rows.scores)
    return _mark_undefined(diffused, rows.features)


@partial(jax.jit, static_argnames="alpha")
def _diffuse_queries(graph, edges, queries, pool_scores, alpha):
    neighbours, squares = edges
    weights = weigh(neighbours, squares, graph.sigmas)

    def diffuse_column(query_scores, pool_scores):
        diffused, counts = _solve(graph, pool_scores, alpha)
        sums = sum_neighbours(neighbours, weights, jnp.where(counts, diffused, 0))
        degrees = sum_neighbours(neighbours, weights, counts.astype(sums.dtype))
        return _mix(query_scores, sums, degrees, alpha)

    diffused = _map_columns(diffuse_column, queries.scores, pool_scores)
    return _mark_undefined(diffused, queries.features)


def _solve(graph, scores, alpha, axis=()):
    """Return s of this device's rows, float[rows], and whether it counts for others."""
    counts = graph.usable & jnp.isfinite(scores)
    degrees = sum_edges(graph, counts.astype(scores.dtype), axis)

    def spread(diffused):
        return _mix(scores, sum_edges(graph, jnp.where(counts, diffused, 0), axis), degrees, alpha)

    def accelerate(pair, omega):
        before, now = pair
        return (now, omega * (spread(now) - before) + before), None

    start = spread(scores)
    (_, diffused), _ = jax.lax.scan(accelerate, (start, start), _find_omegas(alpha, scores.dtype))
    # Once more for the rows that do not count: they are outside the symmetric system.
    return spread(diffused), counts


def _mix(scores, sums, degrees, alpha):
    """Take part of the neighbours' mean, where there is one: sums over degrees."""
    joined = degrees >= jnp.finfo(degrees.dtype).tiny
    mean = sums / jnp.where(joined, degrees, 1)
    return jnp.where(joined, (1 - alpha) * scores + alpha * mean, scores)


def _map_columns(function, *scores):
    """Apply a function of vectors; columns one after the other, which a CPU gathers faster."""
    if scores[0].ndim == 1:
        return function(*scores)
    return jax.lax.map(lambda columns: function(*columns), tuple(x.T for x in scores)).T


def _mark_undefined(diffused, features):
    undefined = ~jnp.isfinite(features).all(axis=1)
    return jnp.where(jnp.expand_dims(undefined, range(1, diffused.ndim)), jnp.nan, diffused)


def _find_omegas(alpha, dtype):
    """Return the relaxation of every step, as many as leave an error below the rounding.

    It is at most 2 rate^steps of that at the start, in the norm that the degrees weigh.
    """
    rate = alpha / (1 + math.sqrt(1 - alpha**2))
    steps = math.ceil(math.log(jnp.finfo(dtype).eps / 2) / math.log(rate)) if rate > 0 else 0
    omegas = [1.0, 1 / (1 - alpha**2 / 2)]
    while len(omegas) < steps:
        omegas.append(1 / (1 - alpha**2 * omegas[-1] / 4))
    return np.array(omegas[:steps], dtype)
