"""The precision of activations: what is rounded to bfloat16 on request, and what never is.

Weights, batch statistics, features, scores and losses stay in float32 (in float64 where a test says
so); between them layers compute in the precision of what they are given.
"""

import jax
import jax.numpy as jnp


def round_activations(x: jax.Array, precision: str) -> jax.Array:
    """Return `x` in bfloat16 where the precision is "bfloat16", else as it is."""
    return x.astype(jnp.bfloat16) if precision == "bfloat16" else x


def follow_input(arrays: tuple, *, dtype=None) -> tuple:
    """Give weights the precision of the first array: Flax's `promote_dtype` for linear layers."""
    del dtype
    return tuple(x if x is None else x.astype(arrays[0].dtype) for x in arrays)
