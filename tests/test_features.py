"""The two front ends against librosa's definition of the same spectrum."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from dns_jax.features import FrontEnd, log_mel, mel_magnitude, stack_frames

LOG_MEL = FrontEnd(rate=16000, window=1024, hop=512, mels=128, low=50, high=7800)
MAGNITUDE = FrontEnd(rate=16000, window=2048, hop=256, mels=224, low=50, high=7800)


@pytest.fixture(scope="module")
def segments():
    rng = np.random.default_rng(0)
    time = np.arange(64000) / 16000
    tone = 2 * np.sin(2 * np.pi * 440 * time) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    x = np.stack([rng.standard_normal(64000), tone + 0.1 * rng.standard_normal(64000)])
    x -= x.mean(-1, keepdims=True)
    return (x / x.std(-1, keepdims=True)).astype(np.float32)


def librosa_mel(x, front_end, power, **kwargs):
    return librosa.feature.melspectrogram(
        y=x.astype(np.float64),
        sr=front_end.rate,
        n_fft=front_end.window,
        hop_length=front_end.hop,
        n_mels=front_end.mels,
        fmin=front_end.low,
        fmax=front_end.high,
        power=power,
        **kwargs,
    )


def reference(x, front_end, feature):
    if feature is log_mel:
        return librosa_mel(x, front_end, power=2.0, pad_mode="constant")
    spectrum = librosa_mel(x, front_end, power=1.0, htk=True, norm=None, pad_mode="reflect")
    return spectrum / np.sqrt(0.375 * front_end.window)  # the norm of a periodic Hann window


def linear(x, feature):
    return 10 ** (x / 10) if feature is log_mel else x


BOTH = pytest.mark.parametrize(
    ("feature", "front_end", "shape"),
    [(log_mel, LOG_MEL, (2, 128, 126)), (mel_magnitude, MAGNITUDE, (2, 224, 251))],
    ids=["log_mel", "mel_magnitude"],
)


@BOTH
def test_the_definition_is_librosas_in_every_bin(segments, feature, front_end, shape):
    with jax.enable_x64(True):
        got = np.asarray(feature(jnp.asarray(segments, jnp.float64), front_end))
    assert got.shape == shape
    expected = reference(segments, front_end, feature)
    np.testing.assert_allclose(linear(got, feature), expected, rtol=1e-6)


@BOTH
def test_float32_is_within_1e_5_of_the_frames_loudest_bin(segments, feature, front_end, shape):
    got = np.asarray(jax.jit(feature, static_argnums=1)(segments, front_end))
    assert got.dtype == np.float32
    assert got.shape == shape
    expected = reference(segments, front_end, feature)
    error = np.abs(linear(got.astype(np.float64), feature) - expected)
    assert np.max(error / expected.max(axis=-2, keepdims=True)) < 1e-5
    assert np.median(error / expected) < 1e-5


def test_silence_is_the_floor_in_db_and_zero_in_magnitude():
    silence = jnp.zeros((1, 64000))
    np.testing.assert_allclose(log_mel(silence, LOG_MEL), 10 * np.log10(2.0**-52), rtol=1e-6)
    np.testing.assert_array_equal(mel_magnitude(silence, MAGNITUDE), 0)


def test_stacked_vectors_hold_five_adjacent_frames_oldest_first():
    features = jnp.arange(3 * 8.0).reshape(3, 8)  # mels, frames
    got = stack_frames(features, 5)
    assert got.shape == (4, 15)
    expected = [np.asarray(features)[:, t : t + 5].T.ravel() for t in range(4)]
    np.testing.assert_array_equal(got, expected)


def test_leading_axes_are_free(segments):
    once = log_mel(jnp.asarray(segments[0]), LOG_MEL)
    nested = log_mel(jnp.asarray(segments)[None], LOG_MEL)
    np.testing.assert_allclose(nested[0, 0], once, rtol=1e-6, atol=1e-4)


@BOTH
def test_a_batch_of_several_blocks_is_that_of_its_segments(monkeypatch, feature, front_end, shape):
    x = np.random.default_rng(1).standard_normal((7, 8000)).astype(np.float32)
    together = np.asarray(jax.jit(feature, static_argnums=1)(x, front_end))
    numbers = front_end.count_frames(8000) * front_end.window
    monkeypatch.setattr("dns_jax.features.BLOCK", 3 * numbers)  # blocks of 3, 3 and 1
    got = np.asarray(jax.jit(lambda x: feature(x, front_end))(x))
    assert got.shape == (7, shape[1], front_end.count_frames(8000))
    np.testing.assert_allclose(got, together, rtol=1e-4, atol=1e-4)


@BOTH
def test_it_can_be_differentiated(segments, feature, front_end, shape):
    x = jnp.asarray(segments[:, :4096])

    def loss(x):
        return jnp.sum(jnp.square(feature(x, front_end)))

    gradient = jax.jit(jax.grad(loss))(x)
    direction = gradient / jnp.linalg.norm(gradient)
    step = 1e-3 * jnp.linalg.norm(x)
    difference = loss(x + step * direction) - loss(x - step * direction)
    slope = float(jnp.vdot(gradient, direction))
    np.testing.assert_allclose(difference / (2 * step), slope, rtol=0.02)


@pytest.mark.parametrize("hop", [100, 256, 400, 2000])
def test_the_hop_need_not_divide_the_window_nor_lie_in_it(segments, hop):
    front_end = LOG_MEL._replace(hop=hop)
    got = np.asarray(jax.jit(log_mel, static_argnums=1)(segments, front_end), np.float64)
    expected = librosa_mel(segments, front_end, power=2.0, pad_mode="constant")
    assert got.shape == expected.shape
    np.testing.assert_allclose(10 ** (got / 10), expected, rtol=1e-3)


@pytest.mark.parametrize("samples", [4000, 4001, 4100])
def test_an_odd_window_has_librosas_frames(segments, samples):
    front_end = LOG_MEL._replace(window=1023, hop=100)
    x = segments[:, :samples]
    got = np.asarray(log_mel(x, front_end), np.float64)
    expected = librosa_mel(x, front_end, power=2.0, pad_mode="constant")
    assert got.shape == expected.shape
    np.testing.assert_allclose(10 ** (got / 10), expected, rtol=1e-3)
