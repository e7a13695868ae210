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


@pytest.mark.parametrize("samples", [4000, 4001, 4100])
def test_an_odd_window_has_librosas_frames(segments, samples):
    front_end = LOG_MEL._replace(window=1023, hop=100)
    x = segments[:, :samples]
    got = np.asarray(log_mel(x, front_end), np.float64)
    expected = librosa_mel(x, front_end, power=2.0, pad_mode="constant")
    assert got.shape == expected.shape
    np.testing.assert_allclose(10 ** (got / 10), expected, rtol=1e-3)
