"""The two audio features psi of section IV-A, in `jax.numpy`, inside the jitted steps.

Shape contract of the family: ``(..., samples) -> (..., mels, frames)``. Frames are centred, so a
segment of n samples gives ``1 + n // hop`` of them (an odd window needs one sample more). Window
and filter bank are built once by NumPy and become constants of the compiled program.

* `log_mel`: 10 log10 of the mel *power* spectrum, for the autoencoder; librosa's definition, which
  the official DCASE baseline uses (Slaney mel scale and norm, zero padding).
* `mel_magnitude`: the mel *magnitude* spectrum without logarithm, for SerialOE; the definition of
  SerialOE's code (HTK mel scale, no filter norm, divided by the window's norm, reflected edges).
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import librosa
import numpy as np

POWER_FLOOR = float(np.finfo(np.float64).eps)  # of the official baseline, before the logarithm


class FrontEnd(NamedTuple):
    """Size of a mel spectrum: rate and band edges in Hz, window and hop in samples."""

    rate: int
    window: int
    hop: int
    mels: int
    low: float
    high: float

    def count_frames(self, samples: int) -> int:
        """Return the frames that a segment of `samples` gives."""
        return 1 + (samples - self.window % 2) // self.hop


def make_front_end(config) -> FrontEnd:
    """Turn a configuration (window and hop in ms, band in Hz) into a `FrontEnd`."""
    return FrontEnd(
        rate=config.rate,
        window=round(config.rate * config.window_ms / 1000),
        hop=round(config.rate * config.hop_ms / 1000),
        mels=config.mels,
        low=config.low_hz,
        high=config.high_hz,
    )


def log_mel(segments: jax.Array, front_end: FrontEnd) -> jax.Array:
    """Compute the log-mel power spectrum of the autoencoder.

    Args:
      segments: f32[..., samples], standardised waveforms.
      front_end: 64 ms / 32 ms / 128 mels / 50-7800 Hz in the paper.

    Returns:
      f32[..., mels, frames] in dB, never below 10 log10(`POWER_FLOOR`).
    """
    spectrum = _magnitude(segments, front_end, pad="constant")
    power = _apply_mel(jnp.square(spectrum), front_end, htk=False, norm="slaney")
    return 10 * jnp.log10(jnp.maximum(power, POWER_FLOOR))


def stack_frames(features: jax.Array, adjacent: int) -> jax.Array:
    """Join every run of `adjacent` frames into one vector, as the autoencoder's input x.

    Args:
      features: f32[..., mels, frames].
      adjacent: five in the paper, hence D = 640.

    Returns:
      f32[..., frames - adjacent + 1, adjacent * mels], the oldest frame first.
    """
    frames = jnp.swapaxes(features, -1, -2)
    vectors = frames.shape[-2] - adjacent + 1
    return jnp.concatenate([frames[..., i : i + vectors, :] for i in range(adjacent)], axis=-1)


def mel_magnitude(segments: jax.Array, front_end: FrontEnd) -> jax.Array:
    """Compute the mel magnitude spectrum of SerialOE.

    Args:
      segments: f32[..., samples], standardised waveforms.
      front_end: 128 ms / 16 ms / 224 mels / 50-7800 Hz in the paper.

    Returns:
      f32[..., mels, frames], not negative.
    """
    spectrum = _magnitude(segments, front_end, pad="reflect")
    norm = np.sqrt(np.sum(np.square(_window(front_end.window))))
    return _apply_mel(spectrum / norm.astype(spectrum.dtype), front_end, htk=True, norm=None)


def _magnitude(segments, front_end, pad):
    """|STFT| with a periodic Hann window: f32[..., frames, 1 + window // 2]."""
    window, hop = front_end.window, front_end.hop
    frames = front_end.count_frames(segments.shape[-1])
    edges = [(0, 0)] * (segments.ndim - 1) + [(window // 2, window // 2)]
    padded = jnp.pad(segments, edges, mode=pad)
    start = hop * np.arange(frames)[:, None] + np.arange(window)
    framed = padded[..., start] * _window(window).astype(segments.dtype)
    return jnp.abs(jnp.fft.rfft(framed, axis=-1))


def _apply_mel(spectrum, front_end, htk, norm):
    bank = _mel_bank(front_end, htk, norm).astype(spectrum.dtype)
    # An accelerator's default would round the spectrum to bfloat16 or TF32.
    return jnp.einsum("mf,...tf->...mt", bank, spectrum, precision=jax.lax.Precision.HIGHEST)


@lru_cache
def _window(length):
    return librosa.filters.get_window("hann", length, fftbins=True)


@lru_cache
def _mel_bank(front_end, htk, norm):
    return librosa.filters.mel(
        sr=front_end.rate,
        n_fft=front_end.window,
        n_mels=front_end.mels,
        fmin=front_end.low,
        fmax=front_end.high,
        htk=htk,
        norm=norm,
        dtype=np.float64,
    )
