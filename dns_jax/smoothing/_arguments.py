"""What goes into a smoother: types and shapes, refused by name, at trace time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_REAL = np.bool_, np.integer, np.floating


class Rows(NamedTuple):
    scores: jax.Array  # float[rows] or float[rows, columns]
    features: jax.Array  # float[rows, dimensions]
    groups: jax.Array | None  # int[rows]


def float_dtype(*arrays):
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
    if x.ndim not in axes or rows not in (None, x.shape[0]):
        expected = " or ".join(axes.values()) + (f", with the {rows} rows of {of}" if of else "")
        raise ValueError(f"{name} must be {expected}; its shape was {x.shape}")
    return x


def as_rows(prefix, scores, features, groups, dtype):
    name = f"{prefix}features"
    features = _check_array(name, features, _REAL, {2: "[rows, dimensions]"})
    rows = features.shape[0]
    axes = {1: "[rows]", 2: "[rows, columns]"}
    scores = _check_array(f"{prefix}scores", scores, _REAL, axes, rows, name)
    if groups is not None:
        given = _check_array(f"{prefix}groups", groups, [np.integer], {1: "[rows]"}, rows, name)
        groups = jnp.asarray(given)
        if groups.dtype != given.dtype and (given.astype(groups.dtype) != given).any():
            raise ValueError(f"{prefix}groups must fit {groups.dtype} unless x64 is on")
    return Rows(jnp.asarray(scores, dtype), jnp.asarray(features, dtype), groups)


def as_queries_and_pool(queries, pool):
    """Return the two as `Rows`; each comes as (scores, features, groups)."""
    if (queries[2] is None) != (pool[2] is None):
        lacking = "query_groups" if queries[2] is None else "pool_groups"
        raise ValueError(f"query_groups and pool_groups go together; {lacking} was None")
    dtype = float_dtype(*queries[:2], *pool[:2])
    queries, pool = as_rows("query_", *queries, dtype), as_rows("pool_", *pool, dtype)
    for part in ("scores", "features"):
        of_queries, of_pool = getattr(queries, part).shape, getattr(pool, part).shape
        if of_queries[1:] != of_pool[1:]:
            raise ValueError(
                f"query_{part} and pool_{part} may differ in their rows only; "
                f"their shapes were {of_queries} and {of_pool}"
            )
    return queries, pool


def as_mask(candidates, rows, of):
    if candidates is None:
        return None
    return jnp.asarray(_check_array("candidates", candidates, [np.bool_], {1: "[rows]"}, rows, of))


def check_ks(name, ks, most, meaning):
    for k in ks:
        if type(k) is not int:
            raise TypeError(
                f"{name} must be a Python int, known before the program is compiled; it was "
                f"{type(k).__name__}. Convert it with int(), or make it a static argument of jit"
            )
        if not 1 <= k <= most:
            raise ValueError(f"{name} must be in 1..{most}, {meaning}; it was {k}")
