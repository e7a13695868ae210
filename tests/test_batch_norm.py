"""Batch norms with their activation: values, gradients and statistics against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dns_jax.models.batch_norm import BatchNorm, identity


def silu(x):
    return x / (1 + jnp.exp(-x))


def normalise(x, scale, bias, activation):
    """The definition, which JAX differentiates by itself."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = ((x - mean) ** 2).mean(axes)
    return activation((x - mean) / jnp.sqrt(var + 1e-3) * scale + bias)


def run(norm, x, cotangent):
    """Return output, gradients by x, scale and bias, and the running statistics afterwards."""
    graph, params, statistics = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def call(x, params):
        norm = nnx.merge(graph, params, jax.tree.map(jnp.copy, statistics))
        y = norm(x, train=True)
        return y, nnx.state(norm, nnx.BatchStat)

    y, pull, after = jax.vjp(call, x, params, has_aux=True)
    dx, dparams = pull(cotangent)
    return y, (dx, dparams["scale"][...], dparams["bias"][...]), after


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("activation", [identity, nnx.silu, nnx.relu])
def test_gradients_are_those_of_the_definition(shape, activation):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(3, 2, shape), rng.normal(size=shape)
    with jax.enable_x64(True):
        norm = BatchNorm(5, epsilon=1e-3, activation=activation)
        norm.scale[...], norm.bias[...] = rng.normal(size=5), rng.normal(size=5)
        plain = {identity: lambda x: x, nnx.silu: silu, nnx.relu: lambda x: x * (x > 0)}[activation]
        expected, pull = jax.vjp(
            lambda *a: normalise(*a, plain), jnp.asarray(x), norm.scale[...], norm.bias[...]
        )
        y, gradients, after = run(norm, jnp.asarray(x), jnp.asarray(cotangent))
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(gradients, pull(jnp.asarray(cotangent)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    rows = x.reshape(-1, 5)
    np.testing.assert_allclose(after["mean"][...], 0.1 * rows.mean(0))
    np.testing.assert_allclose(after["var"][...], 0.9 + 0.1 * rows.var(0, ddof=1))


def test_for_the_way_back_only_the_input_is_kept_of_all_that_is_as_large():
    x = jnp.ones((64, 5))
    norm = BatchNorm(5, activation=nnx.silu)
    _, pull, _ = jax.vjp(lambda x: run_forward(norm, x), x, has_aux=True)
    large = [leaf for leaf in jax.tree.leaves(pull) if np.size(leaf) >= x.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], x)


def run_forward(norm, x):
    norm = nnx.merge(*nnx.split(norm))
    graph, state = nnx.split(norm)
    norm = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    return norm(x, train=True), None


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_goes_through_and_statistics_stay_float32(train):
    x = np.random.default_rng(0).normal(100, 1, (4096, 3)).astype(np.float32)
    rounded = jnp.asarray(x, jnp.bfloat16)
    norm = BatchNorm(3, momentum=1.0)
    if train:
        y = norm(rounded, train=True)
        exact = np.asarray(rounded, np.float64)  # in bfloat16 the mean alone would be off by 0.25
        np.testing.assert_allclose(norm.mean[...], exact.mean(0), rtol=1e-6)
        np.testing.assert_allclose(norm.var[...], exact.var(0, ddof=1), rtol=1e-4)
    else:
        y = norm(rounded, train=False)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(norm))} == {np.dtype(np.float32)}
