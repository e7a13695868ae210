"""Both front ends at the paper's sizes, against their definitions in float64."""

import jax
import librosa
import numpy as np
import pytest

from configs import default
from dns_jax.features import log_mel, make_front_end, mel_magnitude

RATE, LOW, HIGH = 16000, 50, 7800


@pytest.fixture(scope="module")
def segments():
    """f32[2, samples]: noise, and a tone in noise that digital silence interrupts."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 4 * RATE))
    noise[1] += 3 * np.sin(2 * np.pi * 440 / RATE * np.arange(4 * RATE))
    noise[1, RATE : 2 * RATE] = 0
    return noise.astype(np.float32)


def compute_mel_magnitude(segments):
    """HTK, normalised, power 1, reflect: f64[segments, 224, 251]."""
    window, hop, mels = 2048, 256, 224
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(segments.astype(np.float64), [(0, 0), (window // 2,) * 2], mode="reflect")
    framed = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)[:, ::hop]
    spectrum = np.abs(np.fft.rfft(hann * framed)) / np.sqrt(np.sum(hann**2))

    low, high = (2595 * np.log10(1 + f / 700) for f in (LOW, HIGH))
    corners = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)
    bins = np.arange(window // 2 + 1)[:, None] * RATE / window
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    return np.swapaxes(spectrum @ np.maximum(triangles, 0), -1, -2)


def compute_log_mel(segments):
    """Slaney, power 2, zero padding, dB with the baseline's floor: f64[segments, 128, 126]."""
    power = librosa.feature.melspectrogram(
        y=segments.astype(np.float64),
        sr=RATE,
        n_fft=1024,
        hop_length=512,
        n_mels=128,
        fmin=LOW,
        fmax=HIGH,
        power=2.0,
        pad_mode="constant",
        dtype=np.float64,
    )
    return 10 * np.log10(np.maximum(power, 2.0**-52))


def test_mel_magnitude_of_serial_oe(segments, dtype, compare):
    front_end = make_front_end(default.get_config().serial_oe.front_end)
    got = jax.jit(mel_magnitude, static_argnums=1)(segments.astype(dtype), front_end)
    compare("mel magnitude", got, compute_mel_magnitude(segments).astype(dtype))


def test_log_mel_of_the_autoencoder(segments, dtype, compare):
    expected = compute_log_mel(segments)
    assert expected.min() == 10 * np.log10(2.0**-52)
    front_end = make_front_end(default.get_config().autoencoder.front_end)
    got = jax.jit(log_mel, static_argnums=1)(segments.astype(dtype), front_end)
    compare("log-mel power", got, expected.astype(dtype))
