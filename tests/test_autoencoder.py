"""The autoencoder: its layers, equations 1 and 2, and the batch norm, re-computed by NumPy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import tiny
from flax import nnx
from scipy import stats

from configs import default
from dns_jax.models.autoencoder import (
    Autoencoder,
    describe_segments,
    reconstruction_loss,
    score_segments,
)
from dns_jax.models.batch_norm import BatchNorm

PAPER = nnx.eval_shape(lambda: Autoencoder(default.get_config().autoencoder, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def autoencoder():
    return tiny.randomise(lambda: Autoencoder(tiny.make_config().autoencoder, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def segments():
    return np.random.default_rng(1).standard_normal((3, 2000)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors(segments):
    """psi by librosa: f64[segments, vectors, 80]."""
    mel = librosa.feature.melspectrogram(
        y=segments.astype(np.float64),
        sr=4000,
        n_fft=256,
        hop_length=128,
        n_mels=16,
        fmin=50,
        fmax=1900,
        pad_mode="constant",
    )
    frames = np.swapaxes(10 * np.log10(mel), -1, -2)
    return np.stack([frames[:, t : t + 5].reshape(3, -1) for t in range(12)], axis=1)


def f64(variable):
    return np.asarray(variable[...], np.float64)


def reconstruct(autoencoder, x, train):
    """f_G in float64; also the input's mean and unbiased variance at every batch norm."""
    moments = []
    for layer, norm in zip(autoencoder.layers[:-1], autoencoder.norms, strict=True):
        x = x @ f64(layer.kernel) + f64(layer.bias)
        rows = x.reshape(-1, x.shape[-1])
        moments.append((rows.mean(0), rows.var(0, ddof=1)))
        mean, var = (rows.mean(0), rows.var(0)) if train else (f64(norm.mean), f64(norm.var))
        x = (x - mean) / np.sqrt(var + 1e-3) * f64(norm.scale) + f64(norm.bias)
        x = np.maximum(x, 0)
    last = autoencoder.layers[-1]
    return x @ f64(last.kernel) + f64(last.bias), moments


def test_the_papers_network_has_ten_layers_640_128x4_8_128x4_640():
    sizes = [layer.kernel.shape for layer in PAPER.layers]
    inner = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    assert sizes == list(pairwise(inner))
    assert [norm.scale.shape for norm in PAPER.norms] == [(n,) for n in inner[1:-1]]


def test_the_papers_network_has_as_many_parameters_as_the_official_baseline():
    # 265,864 of the dense layers and 4 x 1,032 of the batch norms, running statistics included.
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(PAPER))) == 269_992


def test_a_segment_of_the_paper_gives_122_vectors_of_640():
    segments = jax.ShapeDtypeStruct((16, 64000), jnp.float32)
    assert jax.eval_shape(PAPER.extract, segments).shape == (16, 122, 640)


def test_psi_is_five_adjacent_frames_in_db(autoencoder, segments, vectors):
    np.testing.assert_allclose(autoencoder.extract(segments), vectors, rtol=1e-4, atol=1e-3)


def test_equation_1_is_the_mean_over_vectors_and_dimensions_of_the_training_batch(
    autoencoder, segments, vectors
):
    model = nnx.clone(autoencoder)
    x = model.extract(segments)
    got = reconstruction_loss(x, model(x, train=True))
    expected, _ = reconstruct(autoencoder, vectors, train=True)
    squares = np.square(np.linalg.norm((vectors - expected).reshape(-1, 80), axis=1))
    np.testing.assert_allclose(got, squares.sum() / (36 * 80), rtol=1e-4)


def test_equation_2_is_averaged_over_the_vectors_of_each_segment(autoencoder, segments, vectors):
    expected, _ = reconstruct(autoencoder, vectors, train=False)
    a_ae = np.square(np.linalg.norm(vectors - expected, axis=-1)) / 80
    got = score_segments(autoencoder, segments)
    assert got.shape == (3,)
    np.testing.assert_allclose(got, a_ae.mean(axis=1), rtol=1e-4)


def test_spectrum_and_residual_are_means_over_time_of_each_mel_band(autoencoder, segments, vectors):
    reconstructed, _ = reconstruct(autoencoder, vectors, train=False)
    _, *got = describe_segments(autoencoder, segments)
    for ours, of_vectors in zip(got, (vectors, vectors - reconstructed), strict=True):
        assert ours.shape == (3, 16)
        bands = [of_vectors[:, :, band::16].mean(axis=(1, 2)) for band in range(16)]
        np.testing.assert_allclose(ours, np.stack(bands, axis=1), rtol=1e-4, atol=2e-4)


def test_training_moves_the_running_statistics_by_a_hundredth_of_the_unbiased_moments(
    autoencoder, vectors
):
    model = nnx.clone(autoencoder)
    model(jnp.asarray(vectors, jnp.float32), train=True)
    _, moments = reconstruct(autoencoder, vectors, train=True)
    for norm, before, (mean, var) in zip(model.norms, autoencoder.norms, moments, strict=True):
        np.testing.assert_allclose(
            norm.mean[...], 0.99 * f64(before.mean) + 0.01 * mean, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            norm.var[...], 0.99 * f64(before.var) + 0.01 * var, rtol=1e-4, atol=1e-5
        )


def test_scoring_leaves_the_running_statistics_alone(autoencoder, segments):
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(autoencoder)))
    score_segments(autoencoder, segments)
    after = nnx.to_pure_dict(nnx.state(autoencoder))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(autoencoder, segments):
    others = np.concatenate([segments[:1], 7 * segments[1:] + 3])
    got, together = score_segments(autoencoder, others), score_segments(autoencoder, segments)
    np.testing.assert_allclose(got[0], together[0], rtol=1e-5)
    assert not np.allclose(got[1:], together[1:], rtol=0.01)


def test_silence_has_a_finite_score(autoencoder):
    assert np.isfinite(score_segments(autoencoder, np.zeros((3, 2000), np.float32))).all()


def test_the_initial_weights_are_glorot_uniform_and_the_biases_zero():
    autoencoder = tiny.initialise(
        lambda: Autoencoder(tiny.make_config().autoencoder, rngs=nnx.Rngs(0))
    )
    first = np.ravel(autoencoder.layers[0].kernel[...])
    bound = np.sqrt(6 / (80 + 16))
    assert stats.kstest(first, "uniform", (-bound, 2 * bound)).pvalue > 1e-3
    assert not any(np.any(layer.bias[...]) for layer in autoencoder.layers)


@pytest.mark.parametrize("momentum", [0.01, 0.1])
def test_batch_norm_averages_the_unbiased_variance_of_few_rows(momentum):
    norm = BatchNorm(2, momentum=momentum, epsilon=1e-5)
    rows = np.array([[1.0, -2.0], [4.0, 2.0]])  # variances 4.5 and 8 with one degree of freedom
    got = norm(jnp.asarray(rows), train=True)
    np.testing.assert_allclose(got, [[-1, -1], [1, 1]], rtol=1e-4)
    np.testing.assert_allclose(norm.mean[...], momentum * np.array([2.5, 0]), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 1 + momentum * np.array([3.5, 7]), rtol=1e-6)
