"""The plain form of eq. 7: rank the pool with `lax.top_k`. Accelerators', and the reference.

    |x - y|^2 / 2 = |x|^2 / 2 - nearness, where nearness = x.y - |y|^2 / 2

The first term is the same for every row y of the pool, so that the nearest have the largest
nearness.
"""

import jax
import jax.numpy as jnp


def sum_by_rank(pool, usable, ks, within, axis):
    """Sum the scores of the k - 1 nearest for every k: running sums over those of `top_k`.

    Args:
      pool: centred `Rows`, 0 where they are not usable.
      usable: bool[rows], which may be neighbours.
      ks: int[ks].
      within: whether query i is row i of the pool, and then no neighbour of itself.
      axis: name of the axis along which the rows are spread over devices, or ().

    Returns:
      A function from centred queries and their numbers to float[ks, queries(, columns)], the sums,
      and int[queries], how many neighbours there were to choose from.
    """
    half_norms = jnp.square(pool.features).sum(axis=1) / 2
    # Never -0, which top_k would rank below an equal 0.
    offsets = jnp.where(half_norms > 0, -half_norms, 0)
    rows, most = usable.shape[0], max(ks) - 1

    def gather(x):  # of all shards, in their order
        return (
            jax.lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True, to="invarying") if axis else x
        )

    def sum_block(queries, row):
        nearness = multiply(queries.features, pool.features.T) + offsets  # [block, rows]
        allowed = usable
        if queries.groups is not None:
            allowed = usable & (queries.groups[:, None] != pool.groups)
        elif within:
            allowed = usable & (row[:, None] != jnp.arange(rows))
        nearness = jnp.where(allowed, nearness, -jnp.inf)
        found = across(axis, jax.lax.psum, (nearness > -jnp.inf).sum(axis=1))
        nearness, neighbours = jax.lax.top_k(nearness, min(most, rows))
        scores = gather(pool.scores.T[..., neighbours])  # [(columns,) block, K - 1]
        if axis:
            nearness, neighbours = jax.lax.top_k(gather(nearness), most)
            neighbours = jnp.broadcast_to(neighbours, (*scores.shape[:-1], most))
            scores = jnp.take_along_axis(scores, neighbours, axis=-1)
        scores = jnp.where(nearness > -jnp.inf, scores, 0)
        sums = jnp.cumsum(jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(1, 0)]), axis=-1)
        return jnp.moveaxis(sums[..., ks - 1], (-1, -2), (0, 1)), found

    return sum_block


def multiply(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def across(axis, collective, x):
    """Combine `x` of all shards of a pool, where it is in shards."""
    return collective(x, axis) if axis else x
