"""Batch normalisation with PyTorch's running statistics, shared by the two networks.

Flax averages the biased variance; PyTorch, in which the paper's lineage is written, averages the
unbiased one, which matters where statistics come from few rows. The activation behind is part of
the layer, since its input is worth less than the memory that it takes: for the way back only x is
kept, and what lies between is computed again.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from dns_jax.models.spread import average, count_shares


def identity(x: jax.Array) -> jax.Array:
    """Return x: no activation."""
    return x


class BatchNorm(nnx.Module):
    """y = activation((x - mean) / sqrt(var + epsilon) * scale + bias), statistics by channel."""

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        activation: Callable[[jax.Array], jax.Array] = identity,
    ):
        """Create scale 1, bias 0, running mean 0 and variance 1.

        Args:
          features: size of the last axis.
          momentum: weight of the new batch in the running statistics (PyTorch's convention).
          epsilon: added to the variance.
          activation: of each number by itself.
        """
        self.momentum = momentum
        self.epsilon = epsilon
        self.activation = activation
        self.spread = None
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise ``x: f[..., features]`` by its batch (train) or the running statistics.

        Statistics and arithmetic are in the parameters' precision, whatever that of x and y is.
        """
        affine = self.scale[...], self.bias[...]
        if not train:
            statistics = self.mean[...], self.var[...]
            y = self.activation(_scale(x, *statistics, *affine, self.epsilon))
            return y.astype(x.dtype)
        y, mean, var = _normalise(x, *affine, self.epsilon, self.activation, self.spread)
        rows = x.size // x.shape[-1] * count_shares(self.spread)
        self.mean[...] += self.momentum * (mean - self.mean[...])
        self.var[...] += self.momentum * (var * rows / (rows - 1) - self.var[...])
        return y


def _scale(x, mean, var, scale, bias, epsilon):
    return (x.astype(mean.dtype) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalise(x, scale, bias, epsilon, activation, spread):
    """Return y and the mean and variance of the batch, through which nothing is differentiated."""
    return _forward(x, scale, bias, epsilon, activation, spread)[0]


def _forward(x, scale, bias, epsilon, activation, spread: Mesh | str | None):
    axes = tuple(range(x.ndim - 1))
    mean = average(jnp.mean(x, axes, scale.dtype), spread)
    var = average(jnp.mean(jnp.square(x.astype(scale.dtype) - mean), axes), spread)
    y = activation(_scale(x, mean, var, scale, bias, epsilon)).astype(x.dtype)
    return (y, mean, var), (x, mean, var, scale, bias)


def _backward(epsilon, activation, spread, saved, cotangents):
    """Return dx = scale / sigma (dz - mean(dz) - x^ mean(dz x^)) for z = scale x^ + bias."""
    # Else the compiler would keep what the forward pass had computed.
    x, mean, var, scale, bias = jax.lax.optimization_barrier(saved)
    inverse = jax.lax.rsqrt(var + epsilon)
    centred = x.astype(mean.dtype) - mean
    _, pull = jax.vjp(activation, centred * (inverse * scale) + bias)
    (dz,) = pull(cotangents[0].astype(mean.dtype))
    axes = tuple(range(x.ndim - 1))
    sum_dz, sum_dz_x = jnp.sum(dz, axes), jnp.sum(dz * centred, axes) * inverse
    rows = x.size // x.shape[-1]
    mean_dz, mean_dz_x = average(sum_dz / rows, spread), average(sum_dz_x / rows, spread)
    dx = (inverse * scale) * (dz - mean_dz - centred * (inverse * mean_dz_x))
    return dx.astype(x.dtype), sum_dz_x, sum_dz


_normalise.defvjp(_forward, _backward)
