"""Batches that are spread over devices: what a network says where it looks at more than one row.

A module's `spread` tells how the batch lies, and is None where one device has it all. Under `jit`
it is a `Mesh`: arrays hold whole batches, and XLA moves what is needed. Under `pmap` it is the name
of the axis: arrays hold the rows of one device, which asks for those of the others.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


def count_shares(spread: Mesh | str | None) -> int:
    """Return the number of arrays like those at hand that make up the whole batch."""
    return jax.lax.axis_size(spread) if isinstance(spread, str) else 1


def average(x: jax.Array, spread: Mesh | str | None) -> jax.Array:
    """Average what each device has computed from its rows, equally many of the whole batch."""
    return jax.lax.pmean(x, spread) if isinstance(spread, str) else x


def gather_rows(x: jax.Array, spread: Mesh | str | None) -> jax.Array:
    """Return the rows of the whole batch: ``[rows at hand, ...] -> [rows, ...]``."""
    return jax.lax.all_gather(x, spread, tiled=True) if isinstance(spread, str) else x


def take_own_rows(x: jax.Array, spread: Mesh | str | None) -> jax.Array:
    """Return the rows at hand of an array of the whole batch, the other way round."""
    if not isinstance(spread, str):
        return x
    size = len(x) // jax.lax.axis_size(spread)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(spread) * size, size)


def row_by_row(function: Callable, spread: Mesh | str | None) -> Callable:
    """Let each device apply `function`, of rows apart, to its own: XLA gathers all for an FFT."""
    if not isinstance(spread, Mesh):
        return function
    rows = P(*spread.axis_names)
    return jax.shard_map(function, mesh=spread, in_specs=rows, out_specs=rows)
