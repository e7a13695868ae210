"""Eq. 7 in blocks of queries: the form that suits the platform, and what every search shares."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax.smoothing._counting import sum_by_count
from dns_jax.smoothing._ranking import across, sum_by_rank

BLOCK_BYTES = 64 * 2**20  # for the distances, neighbours and running sums of a block of queries
QUERIES = 64  # that fill a CPU's matrix product, and whose distances its caches may still hold
# By platform: XLA's top_k has one thread and no vectors on a CPU.
FORMS = {"cpu": sum_by_count, "default": sum_by_rank}


def smooth_rows(queries, pool, candidates, ks, within=False, axis=()):
    """Choose the blocks. `within`: query i is row i of the pool, and no neighbour of itself."""
    size, rows = queries.features.shape[0], pool.features.shape[0]
    if not isinstance(size, int) or not isinstance(rows, int):
        # `jax.export` for any number of rows; counting divides them up.
        forms = (("default", sum_by_rank, QUERIES),)
        return _smooth_by_platform(queries, pool, candidates, forms, ks, within, axis)
    row = pool.features.dtype.itemsize * max(1, rows)
    columns = math.prod(pool.scores.shape[1:])
    ranked = 3 * row + 4 * pool.features.dtype.itemsize * columns * max(ks)
    fitting = {
        sum_by_rank: BLOCK_BYTES // ranked,
        sum_by_count: min(QUERIES, BLOCK_BYTES // (2 * row)),
    }
    forms = []
    for platform, form in FORMS.items():
        forms.append((platform, form, choose_block(size, fitting[form])))
    return _smooth_by_platform(queries, pool, candidates, tuple(forms), ks, within, axis)


@partial(jax.jit, static_argnames=("forms", "ks", "within", "axis"))
def _smooth_by_platform(queries, pool, candidates, forms, ks, within, axis):
    branches = {
        platform: partial(_smooth_blocks, form=form, block=block, ks=ks, within=within, axis=axis)
        for platform, form, block in forms
    }
    return jax.lax.platform_dependent(queries, pool, candidates, **branches)


def _smooth_blocks(queries, pool, candidates, form, block, ks, within, axis):
    """Smooth `block` queries at a time: float[len(ks), *query_scores.shape]."""
    defined = jnp.isfinite(queries.features).all(axis=1)
    queries, pool, usable = centre_rows(queries, pool, candidates, axis)
    sum_block = form(pool, usable, np.array(ks), within, axis)

    def smooth_block(batch):
        scores = batch[0].scores
        sums, found = sum_block(*batch)  # [ks, block(, columns)], [block]
        counted = jnp.minimum(np.array(ks)[:, None], 1 + found)
        means = (scores + sums) / counted.reshape(counted.shape + (1,) * (scores.ndim - 1))
        return jnp.moveaxis(means, 1, 0)

    # A gradient searches again; keeping the neighbours would take rows x rows for a large K.
    search = jax.checkpoint(smooth_block, prevent_cse=False)
    means = map_blocks(search, (queries, jnp.arange(defined.shape[0])), block)
    means = jnp.moveaxis(means, 1, 0)
    return jnp.where(jnp.expand_dims(defined, range(1, pool.scores.ndim)), means, jnp.nan)


def choose_block(size, most):
    """Divide `size` queries into blocks of about equal size, `most` at the most."""
    size, most = max(1, size), max(1, most)
    block = -(-size // -(-size // most))
    return min(most, -(-block // 16) * 16)  # whole vectors


def map_blocks(function, arrays, block):
    """Apply a function to `block` rows at a time: what it returns, for all rows."""
    size = jax.tree.leaves(arrays)[0].shape[0]
    blocks = -(-size // max(1, block))

    def divide(x):
        padded = jnp.pad(x, [(0, blocks * block - size)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(blocks, block, *x.shape[1:])

    results = jax.lax.map(function, jax.tree.map(divide, arrays))
    return jax.tree.map(lambda x: x.reshape(blocks * block, *x.shape[2:])[:size], results)


def find_usable(features, candidates):
    """Tell which rows may be neighbours: bool[rows]."""
    usable = jnp.isfinite(features).all(axis=1)
    return usable if candidates is None else usable & candidates


def centre_rows(queries, pool, candidates, axis=()):
    """Centre the features: the queries, the pool, 0 where a row is of no use, and bool[rows]."""
    usable = find_usable(pool.features, candidates)
    defined = jnp.isfinite(queries.features).all(axis=1)
    of_queries, of_pool = _centre(queries.features, pool.features, usable, axis)
    queries = queries._replace(features=jnp.where(defined[:, None], of_queries, 0))
    return queries, pool._replace(features=jnp.where(usable[:, None], of_pool, 0)), usable


def _centre(queries, pool, usable, axis):
    """Move the usable rows of the pool around 0 and into about [-2, 2], the queries with them.

    Both steps leave integers exact: the scale is a power of two, the centre a multiple of 1/64 of
    it. The scale keeps the squares of very large or small features within the type's range.
    """
    queries, pool = jax.lax.stop_gradient((queries, pool))
    usable = usable[:, None]
    low = across(axis, jax.lax.pmin, jnp.min(pool, axis=0, where=usable, initial=jnp.inf))
    high = across(axis, jax.lax.pmax, jnp.max(pool, axis=0, where=usable, initial=-jnp.inf))
    reach = jnp.max(high / 2 - low / 2, initial=0)
    reach = jnp.minimum(reach, jnp.finfo(reach.dtype).max / 4)  # or it rounds up to infinity
    power_of_two = jax.lax.reduce_precision(reach, jnp.finfo(reach.dtype).nexp, mantissa_bits=0)
    scale = jnp.where(power_of_two > 0, power_of_two, 1)
    total = across(axis, jax.lax.psum, jnp.sum(pool / scale, axis=0, where=usable))
    mean = total / jnp.maximum(1, across(axis, jax.lax.psum, usable.sum()))
    # The mean of large numbers that hardly differ may be rounded out of their range.
    centre = jnp.clip(jnp.round(64 * mean) / 64 * scale, low, high)
    # Halves, since a range may be twice the largest number. The products of a query 1e15 times the
    # pool's range away could overflow, and could not tell its rows apart anyway.
    shifted = ((x / 2 - centre / 2) / (scale / 2) for x in (queries, pool))
    return (jnp.clip(x, -1e15, 1e15) for x in shifted)
