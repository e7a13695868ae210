"""SerialOE: the head of f_D, equations 3 to 6, and mix-up, re-computed by NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from scipy import special, stats

from configs import default
from dns_jax.features import mel_magnitude
from dns_jax.models.serial_oe import (
    SerialOE,
    draw_mixture,
    mix_up,
    mix_up_share,
    serial_oe_loss,
)

PRODUCTS = 3


def build(**changes):
    config = tiny.make_config().serial_oe
    config.update(changes)
    return tiny.randomise(lambda: SerialOE(config, PRODUCTS, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return build()


def f64(variable):
    return np.asarray(variable[...], np.float64)


# The feature f_D


def give_maps(model, maps):
    """Return a copy of the model whose backbone gives these feature maps."""
    model = nnx.clone(model)
    model.backbone = lambda spectra, train: jnp.asarray(maps, jnp.float32)
    return model


@pytest.fixture(scope="module")
def maps():
    """Feature maps of a backbone: f64[segments, mels / 32, frames / 32, features]."""
    return np.random.default_rng(1).uniform(-1, 3, (32, 2, 3, 16))


SILENCE = np.zeros((32, 2000), np.float32)


def apply_head(model, pooled, train):
    """Linear, batch norm, PReLU, linear."""
    x = pooled @ f64(model.neck.kernel) + f64(model.neck.bias)
    norm = model.neck_norm
    mean, var = (x.mean(0), x.var(0)) if train else (f64(norm.mean), f64(norm.var))
    x = (x - mean) / np.sqrt(var + 1e-5) * f64(norm.scale) + f64(norm.bias)
    assert (x < 0).any()
    x = np.where(x < 0, float(model.slope[...]) * x, x)
    return x @ f64(model.embed.kernel) + f64(model.embed.bias)


def test_the_papers_feature_has_128_numbers_of_1280():
    config = default.get_config().serial_oe
    model = nnx.eval_shape(lambda: SerialOE(config, 6, rngs=nnx.Rngs(0)))
    assert model.neck.kernel.shape == (1280, 128)
    assert model.embed.kernel.shape == (128, 128)
    assert model.machine.kernel.shape == (128, 1)
    assert model.product.kernel.shape == (128, 6)
    assert model.machine.bias.shape == (1,)
    assert model.product.bias is None
    assert model.slope.shape == ()
    assert model.dropout.rate == 0.3


def test_initial_linear_layers_are_uniform_as_pytorchs_and_the_slope_a_quarter():
    def initialise():
        model = SerialOE(tiny.make_config().serial_oe, 500, rngs=nnx.Rngs(0))
        return model.slope[...], model.neck.bias[...], model.product.kernel[...]

    slope, bias, kernel = jax.jit(initialise)()
    assert slope == 0.25
    assert (np.abs(bias) <= 1 / np.sqrt(16)).all()
    assert (bias != 0).all()
    bound = 1 / np.sqrt(8)
    assert stats.kstest(np.ravel(kernel), "uniform", (-bound, 2 * bound)).pvalue > 1e-3


def test_the_backbone_sees_the_mel_magnitudes_and_its_maps_are_averaged(model):
    segments = np.random.default_rng(2).standard_normal((2, 2000)).astype(np.float32)
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, segments):
        model = nnx.merge(graph, state)
        maps = model.backbone(mel_magnitude(segments, model.front_end), train=False)
        return maps, model(segments, train=False)

    maps, got = run(state, segments)
    assert got.shape == (2, 8)
    expected = apply_head(model, f64(maps).mean((1, 2)), train=False)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_the_feature_is_linear_batch_norm_prelu_linear_of_the_pooled_maps(model, maps):
    got = give_maps(model, maps)(SILENCE, train=False)
    expected = apply_head(model, maps.mean((1, 2)), train=False)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_training_normalises_by_the_batch_and_keeps_a_tenth_of_its_unbiased_variance(maps):
    model = give_maps(build(dropout=0.0), maps)
    before = f64(model.neck_norm.mean), f64(model.neck_norm.var)
    pooled = maps.mean((1, 2))
    got = model(SILENCE, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(got, apply_head(model, pooled, train=True), rtol=1e-3, atol=1e-4)
    x = pooled @ f64(model.neck.kernel) + f64(model.neck.bias)
    mean, var = 0.9 * before[0] + 0.1 * x.mean(0), 0.9 * before[1] + 0.1 * x.var(0, ddof=1)
    np.testing.assert_allclose(model.neck_norm.mean[...], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.neck_norm.var[...], var, rtol=1e-4)


def pass_dropout(model, maps, **mode):
    """What the first linear layer gets: f32[segments, 16]."""
    model = give_maps(model, maps)
    neck, got = model.neck, []
    model.neck = lambda x: [got.append(np.asarray(x)), neck(x)][1]
    model(SILENCE, **mode)
    return got[0]


def test_dropout_drops_three_tenths_of_the_pooled_numbers_only_in_training(model, maps):
    pooled = maps.mean((1, 2))
    np.testing.assert_allclose(pass_dropout(model, maps, train=False), pooled, rtol=1e-5)
    got = pass_dropout(model, maps, train=True, key=jax.random.key(0))
    kept = got != 0
    assert stats.binomtest(int(np.sum(~kept)), got.size, 0.3).pvalue > 1e-3
    np.testing.assert_allclose(got[kept], pooled[kept] / 0.7, rtol=1e-5)


def test_dropout_is_a_function_of_the_key(model, maps):
    first, again, other = (
        pass_dropout(model, maps, train=True, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_training_without_a_key_is_refused(model, maps):
    with pytest.raises(ValueError, match="rngs"):
        give_maps(model, maps)(SILENCE, train=True)


# The loss


def bce(p, q):
    """Eq. 5 with the minus sign that makes it a loss."""
    return -(p * np.log(q) + (1 - p) * np.log(1 - q))


@pytest.fixture(scope="module")
def batch():
    """Features, t_mac and t_id: a positive of each product, a pseudo-anomalous row, mixed rows."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((6, 8)).astype(np.float32)
    machine = np.array([1, 1, 1, 0, 0.3, 0.85], np.float32)
    product = np.zeros((6, PRODUCTS), np.float32)
    product[:3] = np.eye(3)
    product[4, 1] = 0.3
    product[5] = 0.25, 0, 0.6
    return features, machine, product


@pytest.mark.parametrize("product_weight", [0.0, 5.0])
@pytest.mark.parametrize("machine_head", ["linear", "squared_norm"])
def test_equations_3_to_6_hold_for_hard_soft_and_empty_labels(machine_head, product_weight, batch):
    model = build(machine_head=machine_head)
    features, t_mac, t_id = (a.astype(np.float64) for a in batch)
    scalar = features if machine_head == "linear" else np.mean(features**2, 1, keepdims=True)
    g_mac = (scalar @ f64(model.machine.kernel) + f64(model.machine.bias))[:, 0]
    g_id = features @ f64(model.product.kernel)

    m, c = t_id.shape
    l_machine = sum(bce(t_mac[i], special.expit(g_mac[i])) for i in range(m)) / m
    l_id = sum(bce(t_id[i, j], special.expit(g_id[i, j])) for i in range(m) for j in range(c)) / (
        m * c
    )

    rows = serial_oe_loss(model, *batch, product_weight)
    assert rows.shape == (6,)
    np.testing.assert_allclose(np.mean(rows), l_machine + product_weight * l_id, rtol=1e-5)
    np.testing.assert_allclose(model.classify_machine(batch[0]), g_mac, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.classify_product(batch[0]), g_id, rtol=1e-4, atol=1e-6)


def test_every_row_has_its_own_loss(model, batch):
    together = serial_oe_loss(model, *batch, 5.0)
    alone = [serial_oe_loss(model, *(a[i : i + 1] for a in batch), 5.0)[0] for i in range(6)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def give_logits(model, machine, product):
    """Return (model, features) whose heads give exactly these logits."""
    model = nnx.clone(model)
    model.machine.kernel[...] = jnp.eye(8, 1)
    model.machine.bias[...] = jnp.zeros(1)
    model.product.kernel[...] = jnp.eye(8, PRODUCTS, -1)
    features = np.zeros((len(machine), 8), np.float32)
    features[:, 0], features[:, 1 : 1 + PRODUCTS] = machine, product
    return model, features


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_much(model):
    machine = np.array([1.0, 0.0], np.float32)
    product = np.array([[0.0, 1, 0], [0, 0, 0]], np.float32)
    right = give_logits(model, 40 * machine - 20, 40 * product - 20)
    wrong = give_logits(model, 20 - 40 * machine, 20 - 40 * product)
    np.testing.assert_allclose(serial_oe_loss(*right, machine, product, 5.0), 0, atol=1e-6)
    np.testing.assert_allclose(serial_oe_loss(*wrong, machine, product, 5.0), 20 + 5 * 20)


def test_a_pseudo_anomalous_row_is_of_no_product(model):
    machine, product = np.zeros(1, np.float32), np.zeros((1, PRODUCTS), np.float32)
    claims_one = give_logits(model, [-50], [[-50, 12, -50]])
    np.testing.assert_allclose(
        serial_oe_loss(*claims_one, machine, product, 1.0), 12 / 3, rtol=1e-4
    )


def test_confident_logits_keep_loss_and_gradient_finite(model):
    model, features = give_logits(model, [1e4, -1e4], [[1e4] * 3, [-1e4] * 3])
    machine, product = np.array([0.0, 1.0]), np.array([[0.0] * 3, [1.0] * 3])

    def mean_loss(features):
        return jnp.mean(serial_oe_loss(model, features, machine, product, 5.0))

    loss, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(features))
    np.testing.assert_allclose(loss, 6e4, rtol=1e-5)
    assert np.isfinite(gradient).all()


# Mix-up

ROWS = 16


@pytest.fixture(scope="module")
def draw():
    """A thousand draws compiled once: share -> partners and weights, [1000, 16]."""

    @jax.jit
    def run(keys, share):
        return jax.vmap(lambda key: draw_mixture(key, 0.2, share, ROWS))(keys)

    def draw(share, seed=0):
        return [np.asarray(x) for x in run(jax.random.split(jax.random.key(seed), 1000), share)]

    return draw


@pytest.fixture
def batch_to_mix():
    """Waveforms, t_mac and t_id."""
    rng = np.random.default_rng(4)
    shapes = (ROWS, 50), (ROWS,), (ROWS, PRODUCTS)
    return [rng.random(shape).astype(np.float32) for shape in shapes]


def test_waveforms_and_labels_are_mixed_by_the_same_partners_and_weights(batch_to_mix):
    rng = np.random.default_rng(5)
    partner, weight = rng.permutation(ROWS), rng.random(ROWS).astype(np.float32)
    for mixed, given in zip(mix_up(partner, weight, *batch_to_mix), batch_to_mix, strict=True):
        rows = enumerate(zip(partner, weight, strict=True))
        expected = [float(w) * given[i] + (1 - float(w)) * given[j] for i, (j, w) in rows]
        np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_partners_are_a_random_permutation(draw):
    partners, _ = draw(1.0)
    np.testing.assert_array_equal(np.sort(partners), np.tile(np.arange(ROWS), (1000, 1)))
    met = np.sum(partners[:, :, None] == np.arange(ROWS), axis=0)
    assert stats.chisquare(met.ravel()).pvalue > 1e-3


def test_every_row_draws_its_own_weight_from_beta_one_fifth_one_fifth(draw):
    _, weights = draw(1.0)
    rng = np.random.default_rng(0)  # float32 rounds 1 - 1e-8 to 1
    same, other = (rng.beta(a, a, 100_000).astype(np.float32) for a in (0.2, 0.25))
    assert stats.ks_2samp(weights.ravel(), same).pvalue > 1e-3
    assert stats.ks_2samp(weights.ravel(), other).pvalue < 1e-6
    assert stats.spearmanr(weights[:, 0], weights[:, 1]).pvalue > 1e-3


def test_a_mixture_is_a_function_of_the_key(draw):
    first, again, other = (draw(1.0, seed) for seed in (6, 6, 7))
    for i in range(2):
        np.testing.assert_array_equal(first[i], again[i])
        assert (first[i] != other[i]).any()


def test_weight_1_leaves_a_batch_as_it_was(batch_to_mix):
    partner = np.arange(ROWS)[::-1]
    mixture = mix_up(partner, np.ones(ROWS), *batch_to_mix)
    for mixed, given in zip(mixture, batch_to_mix, strict=True):
        np.testing.assert_array_equal(mixed, given)


def test_share_is_the_probability_that_a_whole_batch_is_mixed(draw):
    assert (draw(0.0)[1] == 1).all()
    unmixed = (draw(0.3)[1] == 1).all(axis=1)
    assert stats.binomtest(int(unmixed.sum()), 1000, 0.7).pvalue > 1e-3


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("always", [1, 1, 1, 1]),
        ("ramp_up", [0, 0.5, 1, 1]),
        ("ramp_down", [1, np.cos(np.pi / 8), np.sqrt(0.5), 0]),
    ],
)
def test_the_share_of_a_schedule_at_0_a_quarter_a_half_and_1(schedule, shares):
    got = [mix_up_share(schedule, jnp.float32(p)) for p in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(got, shares, atol=1e-6)


def test_another_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'sometimes'.*always, ramp_up or ramp_down"):
        mix_up_share("sometimes", 0.0)
