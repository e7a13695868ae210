"""The convolutions of EfficientNet: cuDNN's or the TPU's, and on the CPU forms of our own.

XLA's grouped convolution on the CPU takes ten to thirty times as long as sums of shifted products,
and differentiating those would write every shifted copy to memory; so the three forms that training
needs are written out here. A 1 x 1 convolution is a matrix product there, whose gradients are as
fast as itself. Tensors are ``f[batch, mels, frames, channels]``, padding is SAME.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve all channels with each other.

    Args:
      x: f[batch, mels, frames, inputs].
      kernel: f[k, k, inputs, outputs].
      stride: in both directions.

    Returns:
      f[batch, ceil(mels / stride), ceil(frames / stride), outputs].
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jax.lax.platform_dependent(x, kernel, cpu=_multiply, default=_convolve)
    return _convolve(x, kernel, stride)


def _multiply(x, kernel):
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Filter every channel by its own kernel.

    Args:
      x: f[batch, mels, frames, channels].
      kernel: f[k, k, channels].
      stride: in both directions.

    Returns:
      f[batch, ceil(mels / stride), ceil(frames / stride), channels].
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted_products, stride=stride),
        default=lambda x, w: _convolve(x, w[:, :, None, :], stride, groups=x.shape[-1]),
    )


@partial(jax.custom_vjp, nondiff_argnames=["stride"])
def _shifted_products(x, kernel, stride):
    shifts = _shift(_pad(x, len(kernel), stride), len(kernel), stride)
    return sum(x * weight for x, weight in zip(shifts, _taps(kernel), strict=True))


def _forward(x, kernel, stride):
    return _shifted_products(x, kernel, stride), (x, kernel)


def _backward(stride, saved, cotangent):
    x, kernel = saved
    by_x = _filter_back(cotangent, kernel, x.shape, stride)
    return by_x, _correlate(x, cotangent, kernel, stride)


_shifted_products.defvjp(_forward, _backward)


def _filter_back(cotangent, kernel, shape, stride):
    """The gradient by x: the flipped kernel over the cotangents with zeros between them."""
    size = len(kernel)
    edges = [
        (size - 1 - low, n + low - 1 - (rows - 1) * stride, stride - 1)
        for (low, _), n, rows in zip(
            _same(shape, size, stride), shape[1:3], cotangent.shape[1:3], strict=True
        )
    ]
    zero = jnp.zeros((), cotangent.dtype)
    spread = jax.lax.pad(cotangent, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    shifts = _shift(jax.lax.optimization_barrier(spread), size, 1)
    return sum(x * w for x, w in zip(shifts, _taps(kernel[::-1, ::-1]), strict=True))


def _correlate(x, cotangent, kernel, stride):
    """The gradient by the kernel: all taps in one pass, each row of frames to a sum, then those."""
    shifts = _shift(_pad(x, len(kernel), stride), len(kernel), stride)
    products = tuple(x * cotangent for x in shifts)
    zeros = (np.zeros((), x.dtype),) * len(products)
    rows = jax.lax.reduce(products, zeros, lambda a, b: tuple(map(jax.lax.add, a, b)), (2,))
    sums = [jnp.sum(row, (0, 1)) for row in jax.lax.optimization_barrier(rows)]
    return jnp.stack(sums).reshape(kernel.shape)


def _pad(x, size, stride):
    padded = jnp.pad(x, ((0, 0), *_same(x.shape, size, stride), (0, 0)))
    return jax.lax.optimization_barrier(padded)  # else every tap pads again


def _same(shape, size, stride):
    return jax.lax.padtype_to_pads(shape[1:3], (size, size), (stride, stride), "SAME")


def _shift(padded, size, stride):
    """The window of every tap, row by row."""
    rows, columns = ((n - size) // stride * stride + 1 for n in padded.shape[1:3])
    return [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]


def _taps(kernel):
    return kernel.reshape(-1, kernel.shape[-1])
