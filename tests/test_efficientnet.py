"""EfficientNet: its convolutions and a whole small network against naive loops, B0 by its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from scipy import stats

from configs import default
from dns_jax.models import convolutions as conv
from dns_jax.models.convolutions import convolve_depthwise
from dns_jax.models.efficientnet import DepthwiseConv, EfficientNet, SqueezeExcite

B0 = default.get_config().serial_oe.backbone


def build(**changes):
    """Return the shapes of B0 with some fields changed."""
    config = B0.copy_and_resolve_references()
    config.update(changes)
    return nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))


def f64(variable):
    return np.asarray(variable[...], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def pad_same(x, size, stride):
    """Zeros so that ceil(n / stride) windows fit; the odd one goes to the end."""
    pads = [(0, 0)]
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)]), (pads[1][0], pads[2][0])


def convolve(x, kernel, stride=1):
    """Naive SAME convolution; f64[b, h, w, i], f64[k, k, i, o] -> f64[b, h', w', o]."""
    size = kernel.shape[0]
    padded, _ = pad_same(x, size, stride)
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for r, c, i, j in np.ndindex(rows, columns, size, size):
        out[:, r, c] += padded[:, r * stride + i, c * stride + j] @ kernel[i, j]
    return out


def filter_channels(x, kernel, stride, cotangent):
    """Naive depthwise convolution and the gradients of sum(output * cotangent)."""
    size = kernel.shape[0]
    padded, (top, left) = pad_same(x, size, stride)
    out, d_padded, d_kernel = np.zeros(cotangent.shape), np.zeros(padded.shape), 0 * kernel
    for r, c, i, j in np.ndindex(*cotangent.shape[1:3], size, size):
        y, x_ = r * stride + i, c * stride + j
        out[:, r, c] += padded[:, y, x_] * kernel[i, j]
        d_padded[:, y, x_] += cotangent[:, r, c] * kernel[i, j]
        d_kernel[i, j] += np.sum(cotangent[:, r, c] * padded[:, y, x_], axis=0)
    height, width = x.shape[1:3]
    return out, d_padded[:, top : top + height, left : left + width], d_kernel


def normalise(x, norm, train):
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (f64(norm.mean), f64(norm.var))
    return (x - mean) / np.sqrt(var + 1e-3) * f64(norm.scale) + f64(norm.bias)


def gate(x, module):
    """Squeeze-and-excitation as two dense layers on the channel means."""
    squeezed = silu(x.mean((1, 2)) @ f64(module.reduce.kernel)[0, 0] + f64(module.reduce.bias))
    excited = squeezed @ f64(module.expand.kernel)[0, 0] + f64(module.expand.bias)
    return x / (1 + np.exp(-excited))[:, None, None]


def run_block(x, block, stride, train):
    y = x
    if block.expands:
        y = silu(normalise(convolve(y, f64(block.expand.kernel)), block.expand_norm, train))
    shape = (len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), y.shape[-1])
    y, _, _ = filter_channels(y, f64(block.depthwise.kernel), stride, np.zeros(shape))
    y = gate(silu(normalise(y, block.depthwise_norm, train)), block.squeeze_excite)
    y = normalise(convolve(y, f64(block.project.kernel)), block.project_norm, train)
    return x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y


# Convolutions

SIZES = pytest.mark.parametrize("sizes", [(7, 8), (2, 3)], ids=str)
STRIDES = pytest.mark.parametrize("stride", [1, 2])
KERNELS = pytest.mark.parametrize("kernel", [1, 3, 5])
WAYS = pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])


def choose(monkeypatch, platform):
    """Let the CPU compute in the form of another platform."""

    def choose(*arguments, default, **forms):
        return forms.get(platform, default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def differentiate(function, *arguments):
    """Return the output and the gradients for the last argument as its cotangent, in float32."""

    @jax.jit
    def run(*arguments):
        out, pull_back = jax.vjp(function, *arguments[:-1])
        return out, *pull_back(arguments[-1])

    return run(*(jnp.asarray(a, jnp.float32) for a in arguments))


@WAYS
@SIZES
@STRIDES
@KERNELS
def test_depthwise_convolution_and_its_gradients_equal_naive_loops_on_every_platform(
    monkeypatch, platform, sizes, stride, kernel
):
    choose(monkeypatch, platform)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((kernel, kernel, 3))
    x = rng.standard_normal((2, *sizes, 3))
    cotangent = rng.standard_normal((2, *(-(-n // stride) for n in sizes), 3))
    expected = filter_channels(x, weights, stride, cotangent)
    got = differentiate(lambda x, w: convolve_depthwise(x, w, stride), x, weights, cotangent)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@WAYS
def test_a_convolution_of_single_points_and_its_gradients_are_matrix_products(
    monkeypatch, platform
):
    choose(monkeypatch, platform)
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((1, 1, 3, 6))
    cotangent = rng.standard_normal((2, 5, 4, 6))
    got = differentiate(lambda x, w: conv.convolve(x, w, 1), x, weights, cotangent)
    np.testing.assert_allclose(got[0], x @ weights[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[1], cotangent @ weights[0, 0].T, rtol=1e-4, atol=1e-5)
    expected = np.einsum("bhwi,bhwo->io", x, cotangent)
    np.testing.assert_allclose(got[2][0, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_cpu_gets_products_and_accelerators_convolutions():
    def lower(function, *shapes):
        traced = jax.jit(function).trace(*(jnp.ones(shape) for shape in shapes))
        return lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()

    depthwise = lower(lambda x, w: convolve_depthwise(x, w, 1), (1, 8, 8, 3), (3, 3, 3))
    pointwise = lower(lambda x, w: conv.convolve(x, w, 1), (1, 8, 8, 3), (1, 1, 3, 4))
    assert "convolution" not in depthwise("cpu") + pointwise("cpu")
    for platform in ("tpu", "cuda"):
        assert "feature_group_count = 3" in depthwise(platform)
        assert "convolution" in pointwise(platform)


def test_the_call_is_the_depthwise_convolution():
    layer = tiny.randomise(lambda: DepthwiseConv(3, 5, 2, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((2, 8, 7, 3))
    expected, _, _ = filter_channels(x, f64(layer.kernel), 2, np.zeros((2, 4, 4, 3)))
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


# Squeeze-and-excitation, and the whole network


def test_squeeze_and_excitation_gates_each_channel_by_the_channel_means():
    module = tiny.randomise(lambda: SqueezeExcite(6, 2, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(2).standard_normal((2, 4, 3, 6))
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), gate(x, module), rtol=1e-4)


@pytest.fixture(scope="module")
def network():
    """A residual and a striding block on an odd and an even number of bins."""
    config = tiny.make_config().serial_oe.backbone
    config.stages = ((1, 8, 1, 1, 3), (2, 16, 1, 2, 5))
    return tiny.randomise(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("train", [False, True], ids=["running", "batch"])
def test_the_network_equals_naive_loops(network, train):
    x = np.random.default_rng(3).uniform(0, 2, (2, 9, 14))
    expected = convolve(x[..., None], f64(network.stem.kernel), stride=2)
    expected = silu(normalise(expected, network.stem_norm, train))
    for block, stride in zip(network.blocks, (1, 2), strict=True):
        expected = run_block(expected, block, stride, train)
    expected = convolve(expected, f64(network.head.kernel))
    expected = silu(normalise(expected, network.head_norm, train))
    graph, state = nnx.split(network)
    got = jax.jit(lambda state, x: nnx.merge(graph, state)(x, train=train))(
        state, jnp.asarray(x, jnp.float32)
    )
    assert got.shape == (2, 3, 4, 16)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


# The stage table


@pytest.fixture(scope="module")
def b0():
    return build()


def test_b0_maps_224_mels_and_251_frames_to_7_by_8_by_1280(b0):
    assert b0.features == 1280
    graph, state = nnx.split(b0)
    spectra = jax.ShapeDtypeStruct((2, 224, 251), jnp.float32)
    got = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x, train=False), state, spectra)
    assert got.shape == (2, 7, 8, 1280)
    assert got.dtype == jnp.float32


def count_parameters(network):
    return sum(parameter.size for parameter in jax.tree.leaves(nnx.state(network, nnx.Param)))


def test_b0_has_4_006_972_parameters_up_to_its_features(b0):
    # 5,288,548 published, less the classifier (1,281,000) and two of three input channels (576).
    assert count_parameters(b0) == 4_006_972


def test_width_1_1_and_depth_1_2_give_b2():
    b2 = build(width=1.1, depth=1.2)
    assert b2.features == 1408
    # 9,109,994 published, less the classifier (1,409,000) and two of three input channels (576).
    assert count_parameters(b2) == 7_700_418


def test_the_blocks_of_b0_are_those_of_the_published_table(b0):
    blocks = [
        (
            block.depthwise.kernel.shape[0],
            block.depthwise.stride,
            block.depthwise.kernel.shape[-1],
            block.squeeze_excite.reduce.kernel.shape[-1],
            block.project.kernel.shape[-1],
        )
        for block in b0.blocks
    ]
    assert blocks == [  # kernel, stride, expanded, squeezed, output
        (3, 1, 32, 8, 16),
        (3, 2, 96, 4, 24),
        (3, 1, 144, 6, 24),
        (5, 2, 144, 6, 40),
        (5, 1, 240, 10, 40),
        (3, 2, 240, 10, 80),
        (3, 1, 480, 20, 80),
        (3, 1, 480, 20, 80),
        (5, 1, 480, 20, 112),
        (5, 1, 672, 28, 112),
        (5, 1, 672, 28, 112),
        (5, 2, 672, 28, 192),
        (5, 1, 1152, 48, 192),
        (5, 1, 1152, 48, 192),
        (5, 1, 1152, 48, 192),
        (3, 1, 1152, 48, 320),
    ]


def test_a_block_is_residual_only_with_stride_1_and_equal_channels():
    stages = (
        (1, 32, 1, 1, 3),  # as many channels as the stem: residual
        (1, 32, 1, 2, 3),  # strides
        (1, 40, 2, 1, 3),  # more channels, then the same again
    )
    assert [b.residual for b in build(stages=stages).blocks] == [True, False, False, True]


def test_narrow_networks_have_multiples_of_eight_never_rounded_down_by_more_than_a_tenth():
    stages = ((1, 22, 1, 1, 3), (6, 40, 1, 1, 3), (6, 2, 1, 1, 3), (6, 56, 1, 1, 3))
    network = build(stages=stages, stem=44, head=100, width=0.5)
    assert network.stem.kernel.shape[-1] == 24  # 22
    # 11 would lose more than a tenth as 8; 20 goes to 24; at least 8; 28 to 32
    assert [b.project.kernel.shape[-1] for b in network.blocks] == [16, 24, 8, 32]
    assert network.features == 48  # 50, less than a tenth away


# Initial weights


def test_initial_convolutions_are_normal_with_variance_2_over_fan_out():
    config = tiny.make_config().serial_oe.backbone
    config.update({"stem": 64, "head": 64, "stages": ()})
    network = EfficientNet(config, rngs=nnx.Rngs(0))
    depthwise = DepthwiseConv(64, 5, 1, rngs=nnx.Rngs(0))
    kernels = {
        "stem": (network.stem.kernel, 2 / (3 * 3 * 64)),
        "head": (network.head.kernel, 2 / 64),
        "depthwise": (depthwise.kernel, 2 / (5 * 5)),
    }
    for name, (kernel, variance) in kernels.items():
        standardised = np.ravel(kernel[...]) / np.sqrt(variance)
        assert stats.kstest(standardised, "norm").pvalue > 1e-3, name
    assert network.stem.bias is None
    assert network.head.bias is None
