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

# On a CPU only; measured by benchmarks/frontend.py.
BLOCK = 2**21  # numbers in frames that are computed at a time, so that they stay in the cache
GROUP = 32  # adjacent filters, which reach few of the bins, in a matrix product


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

    def compute(segments, group):
        spectrum = _transform(segments, front_end, pad="constant")
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        power = _apply_mel(power, front_end, group, htk=False, norm="slaney")
        return 10 * jnp.log10(jnp.maximum(power, POWER_FLOOR))

    return _compute_in_blocks(compute, segments, front_end)


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

    def compute(segments, group):
        magnitude = jnp.abs(_transform(segments, front_end, pad="reflect"))
        norm = np.sqrt(np.sum(np.square(_window(front_end.window))))
        magnitude /= norm.astype(magnitude.dtype)
        return _apply_mel(magnitude, front_end, group, htk=True, norm=None)

    return _compute_in_blocks(compute, segments, front_end)


def _compute_in_blocks(compute, segments, front_end):
    """Apply ``compute(segments, filters in a group)``, on a CPU to some segments at a time."""
    samples = segments.shape[-1]
    rows = max(1, BLOCK // (front_end.count_frames(samples) * front_end.window))

    def compute_blocks(segments):
        count = segments.shape[0]
        if not isinstance(count, int) or count <= rows:  # `jax.export` for any number: at once
            return compute(segments, GROUP)
        return jax.lax.map(lambda segment: compute(segment, GROUP), segments, batch_size=rows)

    features = jax.lax.platform_dependent(
        segments.reshape(-1, samples),
        cpu=compute_blocks,
        default=lambda segments: compute(segments, front_end.mels),
    )
    return features.reshape(*segments.shape[:-1], *features.shape[1:])


def _transform(segments, front_end, pad):
    """STFT with a periodic Hann window: c64[..., frames, 1 + window // 2]."""
    window, hop = front_end.window, front_end.hop
    frames = front_end.count_frames(segments.shape[-1])
    free = [(0, 0)] * (segments.ndim - 1)
    padded = jnp.pad(segments, [*free, (window // 2, window // 2)], mode=pad)
    # A frame is a run of pieces as long as the hop. Slices in a sum, which XLA makes one loop: a
    # gather reads an index for every number, and a concatenation is slower on the CPU.
    pieces = -(-window // hop)
    surplus = (frames + pieces - 1) * hop - padded.shape[-1]  # below 0: cut
    whole = jax.lax.pad(padded, padded.dtype.type(0), [(0, 0, 0)] * len(free) + [(0, surplus, 0)])
    whole = whole.reshape(*segments.shape[:-1], -1, hop)
    taper = np.zeros(pieces * hop, padded.dtype)
    taper[:window] = _window(window)
    framed = sum(
        jnp.pad(
            whole[..., i : i + frames, :] * taper[i * hop : (i + 1) * hop],
            [*free, (0, 0), (i * hop, (pieces - 1 - i) * hop)],
        )
        for i in range(pieces)
    )
    return jnp.fft.rfft(framed[..., :window], axis=-1)


def _apply_mel(spectrum, front_end, group, htk, norm):
    """Sum bins up: f[..., frames, bins] -> f[..., mels, frames], `group` filters at a time."""
    bank = _mel_bank(front_end, htk, norm).astype(spectrum.dtype)
    products = []
    for first in range(0, front_end.mels, group):
        filters = bank[first : first + group]
        reached = filters.any(axis=0)
        bins = slice(reached.argmax(), len(reached) - reached[::-1].argmax())
        # An accelerator's default would round the spectrum to bfloat16 or TF32.
        precision = jax.lax.Precision.HIGHEST
        products.append(jnp.dot(spectrum[..., bins], filters[:, bins].T, precision=precision))
    return jnp.swapaxes(jnp.concatenate(products, axis=-1), -1, -2)


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
