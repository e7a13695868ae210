"""Exact search of the nearest rows by number, for a graph: `smooth` needs sums only.

XLA's `top_k` goes through a row with one thread and no vectors on a CPU. It gets the maxima of
groups of rows instead, which are combined as whole arrays, and then the groups it has chosen.
"""

from functools import partial

import jax
import jax.numpy as jnp

from dns_jax.smoothing import _search
from dns_jax.smoothing._counting import fold
from dns_jax.smoothing._ranking import multiply

WIDTH = 32  # rows in a group


@partial(jax.jit, static_argnames="n")
def find_nearest(queries, pool, candidates, n, numbers=None):
    """Find the n nearest rows of the pool that may be neighbours, ties to the lower row.

    Args:
      queries: `Rows`, their scores of no account.
      pool: `Rows`, likewise.
      candidates: bool[rows] or None.
      n: how many, at most the rows of the pool.
      numbers: int[queries], the row of the pool that a query is itself, and no neighbour; None
        where it is not in the pool or its group says so.

    Returns:
      int[queries, n], the rows in ascending order, then the number of rows for each that is
      lacking, and float[queries, n], squared distances over some scale of the pool's, 0 there.
    """
    size, (rows, dimensions) = len(queries.features), pool.features.shape
    queries, pool, usable = _search.centre_rows(queries, pool, candidates)
    half_norms = jnp.square(pool.features).sum(axis=1) / 2
    # Never -0, which top_k would rank below an equal 0.
    offsets = jnp.where(usable, jnp.where(half_norms > 0, -half_norms, 0), -jnp.inf)
    spare = -rows % WIDTH
    features = jnp.pad(pool.features, [(0, spare), (0, 0)])
    offsets = jnp.pad(offsets, (0, spare), constant_values=-jnp.inf)
    groups = None if queries.groups is None else jnp.pad(pool.groups, (0, spare))

    def search_block(batch):
        query, group, number = batch
        nearness = multiply(features, query.T) + offsets[:, None]  # [rows, block]
        if group is not None:
            nearness = jnp.where(groups[:, None] == group, -jnp.inf, nearness)
        elif number is not None:
            nearness = jnp.where(jnp.arange(rows + spare)[:, None] == number, -jnp.inf, nearness)
        largest, neighbours = choose_largest(nearness, n)
        neighbours = jnp.sort(jnp.where(largest > -jnp.inf, neighbours, rows), axis=1)
        # Sums of squares are 0 between duplicates, where |x|^2 + |y|^2 - 2 x.y may be anything.
        apart = pool.features.at[neighbours].get(mode="clip") - query[:, None]
        squares = multiply(jnp.square(apart), jnp.ones(dimensions, apart.dtype))
        return neighbours, jnp.where(neighbours < rows, squares, 0)

    of_query = 3 * (rows + spare) + 4 * WIDTH * n + 3 * dimensions * n
    most = _search.BLOCK_BYTES // (of_query * features.dtype.itemsize)
    block = _search.choose_block(size, min(_search.QUERIES, most))
    return _search.map_blocks(search_block, (queries.features, queries.groups, numbers), block)


def choose_largest(values, n):
    """Choose the n largest of axis 0, the lower row among equals.

    A row that is not in one of the n groups chosen has n rows before it, the largest of each: of a
    larger maximum, or of an equal one in a lower group, all of whose rows are lower. Within the
    groups, in ascending order, a lower place is a lower row.

    Args:
      values: float[rows, columns], whole groups of rows.
      n: at most the rows.

    Returns:
      float[columns, n] and int[columns, n], the values and their rows.
    """
    if len(values) <= WIDTH * n:
        return jax.lax.top_k(values.T, n)
    # Not jnp.maximum, which looks for NaN.
    larger = lambda a, b: jnp.where(a > b, a, b)  # noqa: E731
    maxima = fold(larger, [values[place::WIDTH] for place in range(WIDTH)])
    _, groups = jax.lax.top_k(maxima.T, n)
    rows = jnp.sort(groups, axis=1)[..., None] * WIDTH + jnp.arange(WIDTH)
    rows = rows.reshape(len(rows), n * WIDTH)
    largest, places = jax.lax.top_k(values[rows, jnp.arange(len(rows))[:, None]], n)
    return largest, jnp.take_along_axis(rows, places, axis=1)
