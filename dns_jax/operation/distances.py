"""Squared distances between rows and all of F, and the nearest of them.

F lies on the device as f32[D, capacity], its rows in columns: XLA then adds up whole arrays, one
dimension after the other, without a reduction. Rows go through in blocks of few sizes (`BLOCKS`),
so that every program is compiled once for a capacity.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLOCKS = (8, 64)  # rows at a time: of a recording, and of a search
SLICE = 16  # dimensions that are added up in one pass over the capacity


def make_room(dimensions: int, capacity: int) -> np.ndarray:
    """Return zeros for `capacity` rows, f32[D, capacity], D rounded up to whole slices."""
    return np.zeros((-(-dimensions // SLICE) * SLICE, capacity), np.float32)


def divide(rows: int) -> list[slice]:
    """Divide rows into blocks."""
    return [slice(i, min(i + BLOCKS[-1], rows)) for i in range(0, rows, BLOCKS[-1])]


def pad(rows: np.ndarray) -> np.ndarray:
    """Fill ``[rows, ...]`` of a block up to the next size of blocks with zeros."""
    size = min(size for size in BLOCKS if len(rows) <= size)
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def pad_features(features: np.ndarray) -> np.ndarray:
    """Turn f32[rows, D] of a block into what lies on the device, f32[D, size]."""
    padded = pad(features).T
    return np.pad(padded, [(0, -len(padded) % SLICE), (0, 0)])


@jax.jit
def compare(pool: jax.Array, queries: jax.Array) -> jax.Array:
    """Compute squared distances; those beyond float32's range are its largest number.

    Args:
      pool: f32[D, capacity].
      queries: f32[D, queries].

    Returns:
      f32[queries, capacity]
    """

    def add(total, part):
        for of_pool, of_queries in zip(*part, strict=True):
            total += jnp.square(of_queries[:, None] - of_pool)
        return total, None

    slices = tuple(x.reshape(-1, SLICE, x.shape[1]) for x in (pool, queries))
    start = jnp.zeros((queries.shape[1], pool.shape[1]), pool.dtype)
    total, _ = jax.lax.scan(add, start, slices)
    return jnp.minimum(total, jnp.finfo(total.dtype).max)


@partial(jax.jit, donate_argnums=0)
def put(pool: jax.Array, block: jax.Array, first: int) -> jax.Array:
    """Write f32[D, rows] into f32[D, capacity] from place `first` on, in place."""
    return jax.lax.dynamic_update_slice(pool, block, (0, first))


@jax.jit
def take(pool: jax.Array, places: jax.Array) -> jax.Array:
    """Return f32[D, rows], the features at i32[rows]."""
    return pool[:, places]


def find_nearest(squared: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the `most` nearest places of every row, the lower one first among equals.

    Args:
      squared: f32[rows, places], inf where there is no neighbour.
      most: how many to find.

    Returns:
      i32[rows, most], places, -1 where there are fewer; f32[rows, most], their squared distances,
      inf where there are fewer; f32[rows], that of the last where there are more, else inf.
    """
    rows, places = squared.shape
    neighbor = np.full((rows, most), -1, np.int32)
    found = np.full((rows, most), np.inf, np.float32)
    bound = np.full(rows, np.inf, np.float32)
    if places > most:
        bound = np.partition(squared, most, axis=1)[:, most]
    for i, row in enumerate(squared):
        near = np.flatnonzero((row <= bound[i]) & (row < np.inf))
        near = near[np.argsort(row[near], kind="stable")[:most]]
        neighbor[i, : len(near)], found[i, : len(near)] = near, row[near]
    if most:
        bound = np.where(bound < np.inf, found[:, -1], np.inf)
    return neighbor, found, bound
