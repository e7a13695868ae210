"""EfficientNet-B0 (the TensorFlow variant of timm), the backbone of SerialOE's f_D.

SAME padding (asymmetric at even sizes), batch norm with epsilon 1e-3, SiLU, squeeze-and-excitation
with a quarter of the block's input channels, no stochastic depth. Tan and Le, "EfficientNet", 2019;
weights of Xie et al. [17] have this layout. Tensors are ``f32[batch, mels, frames, channels]``.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dns_jax.models.batch_norm import BatchNorm
from dns_jax.models.convolutions import convolve, convolve_depthwise

EPSILON = 1e-3


def silu(x: jax.Array) -> jax.Array:
    """Return x sigmoid(x), by tanh, of which XLA on the CPU needs less time than of exp."""
    return x * (0.5 + 0.5 * jnp.tanh(0.5 * x))


class Stage(NamedTuple):
    """One row of the stage table; `stride` is that of the first of the `repeats` blocks."""

    expand: int
    channels: int
    repeats: int
    stride: int
    kernel: int


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# timm's initial weights: normal with variance 2 / fan_out.
_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nnx.Module):
    """A convolution of all channels, SAME padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.kernel = nnx.Param(_FAN_OUT(rngs.params(), (kernel, kernel, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x: f[batch, mels, frames, inputs]``, in its precision."""
        y = convolve(x, self.kernel[...].astype(x.dtype), self.stride)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class DepthwiseConv(nnx.Module):
    """One k x k filter a channel, SAME padding."""

    def __init__(self, channels: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        weights = jax.random.normal(rngs.params(), (kernel, kernel, channels))
        self.kernel = nnx.Param(math.sqrt(2) / kernel * weights)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Filter ``x: f[batch, mels, frames, channels]``, in its precision."""
        return convolve_depthwise(x, self.kernel[...].astype(x.dtype), self.stride)


class SqueezeExcite(nnx.Module):
    """Scale the channels by a gate computed from their global means."""

    def __init__(self, channels: int, reduced: int, *, rngs: nnx.Rngs):
        self.reduce = Conv(channels, reduced, bias=True, rngs=rngs)
        self.expand = Conv(reduced, channels, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gate ``x: f[batch, mels, frames, channels]``."""
        gate = silu(self.reduce(jnp.mean(x, (1, 2), keepdims=True)))
        return x * nnx.sigmoid(self.expand(gate))


class MBConv(nnx.Module):
    """Inverted residual: expand, depthwise, squeeze-and-excitation, project."""

    def __init__(self, inputs: int, stage: Stage, stride: int, *, rngs: nnx.Rngs):
        middle = inputs * stage.expand
        self.residual = stride == 1 and inputs == stage.channels
        self.expands = stage.expand > 1
        if self.expands:
            self.expand = Conv(inputs, middle, rngs=rngs)
            self.expand_norm = BatchNorm(middle, epsilon=EPSILON, activation=silu)
        self.depthwise = DepthwiseConv(middle, stage.kernel, stride, rngs=rngs)
        self.depthwise_norm = BatchNorm(middle, epsilon=EPSILON, activation=silu)
        self.squeeze_excite = SqueezeExcite(middle, max(1, round(inputs / 4)), rngs=rngs)
        self.project = Conv(middle, stage.channels, rngs=rngs)
        self.project_norm = BatchNorm(stage.channels, epsilon=EPSILON)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Transform ``x: f[batch, mels, frames, inputs]``."""
        y = x
        if self.expands:
            y = self.expand_norm(self.expand(y), train=train)
        y = self.depthwise_norm(self.depthwise(y), train=train)
        y = self.project_norm(self.project(self.squeeze_excite(y)), train=train)
        return x + y if self.residual else y


class EfficientNet(nnx.Module):
    """Stem, stages and head, up to the features before pooling."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        """Build the network.

        Args:
          config: `config.serial_oe.backbone`: stem, stages (rows of expand, channels, repeats,
            stride, kernel), head, width and depth multipliers. B0 has 32, seven stages, 1280, 1, 1.
          rngs: source of the initial weights.
        """
        stages = [Stage(*row) for row in config.stages]
        channels = _round_channels(config.stem * config.width)
        self.stem = Conv(1, channels, kernel=3, stride=2, rngs=rngs)
        self.stem_norm = BatchNorm(channels, epsilon=EPSILON, activation=silu)
        self.repeats = tuple(math.ceil(stage.repeats * config.depth) for stage in stages)
        blocks = []
        for stage, repeats in zip(stages, self.repeats, strict=True):
            stage = stage._replace(channels=_round_channels(stage.channels * config.width))
            for i in range(repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(MBConv(channels, stage, stride, rngs=rngs))
                channels = stage.channels
        self.blocks = nnx.List(blocks)
        self.features = _round_channels(config.head * config.width)
        self.head = Conv(channels, self.features, rngs=rngs)
        self.head_norm = BatchNorm(self.features, epsilon=EPSILON, activation=silu)

    def __call__(self, spectra: jax.Array, *, train: bool) -> jax.Array:
        """Map ``f[batch, mels, frames]`` to ``f[batch, mels / 32, frames / 32, features]``.

        All activations have the precision of the spectra; batch statistics that of the parameters.
        """
        x = self.stem_norm(self.stem(spectra[..., None]), train=train)
        for block in self.blocks:
            x = block(x, train=train)
        return self.head_norm(self.head(x), train=train)
