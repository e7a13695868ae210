"""The neighbour graph of `diffuse`: its edges, their self-tuned weights, and sums along them.

    w_ij = exp(-d_ij^2 / (sigma_i sigma_j))  where j is among the n nearest of i, or i of j

A row keeps the edges to its own n nearest, so that the graph is rows x n. An edge that only its
other end keeps is added at that end, to this one: gather and scatter, a symmetric sum.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dns_jax.smoothing._nearest import find_nearest
from dns_jax.smoothing._search import find_usable


class Graph(NamedTuple):
    """The edges that this device's rows keep."""

    neighbours: jax.Array  # int[rows, n], the number of all rows where there is none
    weights: jax.Array  # float[rows, n], 0 there
    returned: jax.Array  # float[rows, n], the weights of those that the neighbour does not keep
    sigmas: jax.Array  # float[all rows]
    usable: jax.Array  # bool[rows], which may be neighbours


@partial(jax.jit, static_argnames=("n", "axis"))
def build_graph(rows, candidates, n, axis=()):
    """Join every row to its n nearest candidates; rows in order along `axis`, or all of them."""
    pool, pool_candidates = jax.tree.map(partial(gather, axis=axis), (rows, candidates))
    size = len(rows.features)
    numbers = jnp.arange(size) + size * jax.lax.axis_index(axis)
    neighbours, squares = find_nearest(rows, pool, pool_candidates, n, numbers)
    sigmas = gather(jnp.sqrt(squares.max(axis=1)), axis)
    weights = weigh(neighbours, squares, sigmas)
    mutual = _contain(gather(neighbours, axis), neighbours, numbers[:, None])
    usable = find_usable(rows.features, candidates)
    return Graph(neighbours, weights, jnp.where(mutual, 0, weights), sigmas, usable)


def weigh(neighbours, squares, sigmas):
    """Return the self-tuned weights of the edges from rows to their n nearest.

    Args:
      neighbours: int[rows, n], as `find_nearest` returns them.
      squares: float[rows, n], likewise.
      sigmas: float[pool], the distance of every row of the pool to its last neighbour.

    Returns:
      float[rows, n], 1 between duplicates, 0 where there is no neighbour.
    """
    own = jnp.sqrt(squares.max(axis=1, keepdims=True))
    others = sigmas.at[neighbours].get(mode="clip")
    weights = jnp.where(squares > 0, jnp.exp(-squares / (own * others)), 1)
    return jnp.where(neighbours < len(sigmas), weights, 0)


def sum_neighbours(neighbours, weights, values):
    """Sum weighted values of the n nearest: float[rows] from float[pool]."""
    return (weights * values.at[neighbours].get(mode="clip")).sum(axis=1)


def sum_edges(graph, values, axis=()):
    """Sum weighted values along all edges: W values, for float[rows] of this device.

    They must be 0 in rows that are not usable, whose edges go one way.
    """
    everywhere = gather(values, axis)
    kept = sum_neighbours(graph.neighbours, graph.weights, everywhere)
    parts = graph.returned * values[:, None]
    returned = jnp.zeros_like(everywhere).at[graph.neighbours].add(parts, mode="drop")
    return kept + (jax.lax.psum_scatter(returned, axis, tiled=True) if axis else returned)


def gather(x, axis):
    """Put the rows of all devices together, in their order."""
    return jax.lax.all_gather(x, axis, tiled=True) if axis else x


def _contain(lists, rows, value):
    """Tell whether lists[rows] contain `value`; the lists are ascending: binary search."""
    length = lists.shape[1]
    before = jnp.zeros_like(rows)  # how many are known not to be larger
    for bit in reversed(range(length.bit_length())):
        further = before + 2**bit
        probed = lists.at[rows, jnp.minimum(further, length) - 1].get(mode="clip")
        before = jnp.where((further <= length) & (probed <= value), further, before)
    last = lists.at[rows, before - 1].get(mode="clip")
    return (before > 0) & (last == value)
