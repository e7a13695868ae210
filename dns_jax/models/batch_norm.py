"""Batch normalisation with PyTorch's running statistics, shared by the two networks.

Flax averages the biased variance; PyTorch, in which the paper's lineage is written, averages the
unbiased one, which matters where statistics come from few rows.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dns_jax.models.spread import average, count_shares


class BatchNorm(nnx.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias over all axes but the last."""

    def __init__(self, features: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        """Create scale 1, bias 0, running mean 0 and variance 1.

        Args:
          features: size of the last axis.
          momentum: weight of the new batch in the running statistics (PyTorch's convention).
          epsilon: added to the variance.
        """
        self.momentum = momentum
        self.epsilon = epsilon
        self.spread = None
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise ``x: f32[..., features]`` by its batch (train) or the running statistics."""
        mean, var = self.mean[...], self.var[...]
        if train:
            axes = tuple(range(x.ndim - 1))
            rows = x.size // x.shape[-1] * count_shares(self.spread)
            mean = average(jnp.mean(x, axes), self.spread)
            var = average(jnp.mean(jnp.square(x - mean), axes), self.spread)
            self.mean[...] += self.momentum * (mean - self.mean[...])
            self.var[...] += self.momentum * (var * rows / (rows - 1) - self.var[...])
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
