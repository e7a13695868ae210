"""`--config.precision=bfloat16`: what is rounded, what is not, and how far results move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from dns_jax.config import check_config
from dns_jax.models.autoencoder import Autoencoder, score_segments
from dns_jax.models.serial_oe import SerialOE

SEGMENTS = np.random.default_rng(0).standard_normal((8, 2000)).astype(np.float32)


def build(network, precision):
    config = tiny.make_config()
    config.precision = precision
    make = {
        "autoencoder": lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)),
        "serial_oe": lambda: SerialOE(config.serial_oe, 3, rngs=nnx.Rngs(0)),
    }[network]
    return tiny.randomise(make)


def describe(network, precision, train):
    """Return outputs and the types that matrix products and convolutions are computed in."""
    model = build(network, precision)
    graph, state = nnx.split(model)

    def run(state, segments):
        model = nnx.merge(graph, jax.tree.map(jnp.copy, state))
        if network == "autoencoder":
            return model(model.extract(segments), train=train)
        return model(segments, train=train, key=jax.random.key(0))

    text = jax.jit(run).lower(state, SEGMENTS).as_text()
    products = [
        line for line in text.splitlines() if "dot_general" in line or "convolution" in line
    ]
    return jax.jit(run)(state, SEGMENTS), ["bf16" in line for line in products]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("network", ["autoencoder", "serial_oe"])
def test_layers_compute_in_bfloat16_and_results_are_float32(network, train):
    exact, before = describe(network, "float32", train)
    rounded, after = describe(network, "bfloat16", train)
    assert not any(before)
    # All but the mel filter bank, and of SerialOE but the layers behind the backbone.
    assert after.count(False) == {"autoencoder": 1, "serial_oe": 3}[network]
    assert exact.dtype == rounded.dtype == np.float32
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_a_score_in_bfloat16_is_near_that_in_float32():
    exact, rounded = (
        np.asarray(score_segments(build("autoencoder", p), jnp.asarray(SEGMENTS)))
        for p in ("float32", "bfloat16")
    )
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


@pytest.mark.parametrize("network", ["autoencoder", "serial_oe"])
def test_gradients_and_statistics_are_float32(network):
    model = build(network, "bfloat16")
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))
        more = {} if network == "autoencoder" else {"key": jax.random.key(0)}
        inputs = model.extract(SEGMENTS) if network == "autoencoder" else SEGMENTS
        value = jnp.mean(jnp.square(model(inputs, train=True, **more)))
        return value, nnx.state(model, nnx.BatchStat)

    (value, statistics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for leaf in jax.tree.leaves((value, statistics, gradients)):
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()


def test_one_field_sets_both_networks():
    config = tiny.make_config()
    config.precision = "bfloat16"
    checked = check_config(config)
    assert (checked.autoencoder.precision, checked.serial_oe.precision) == ("bfloat16",) * 2
