"""Where the batches of a training come from: a store on the devices, or the memory-mapped cache.

Recordings that fit into the memory they may take lie on every device as they are stored, and a step
is told which pieces to cut. Of others the host reads the pieces while earlier steps are computed.
Either way the pieces are standardised on the device by the same arithmetic, so the batches are the
same to the last bit. A third way cuts log-mel spectra of whole recordings, computed once.
"""

import mmap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dns_jax.data.refusals import ConfigError
from dns_jax.data.waveforms import Waveforms
from dns_jax.features import FrontEnd, log_mel
from dns_jax.parallel import compile_rows, own_rows, place

_MOST_STEPS = 4096  # of a program whose batches are cut from a store
_MOST_BYTES = 2**27  # of the pieces that are read for a program
_MEL_BATCH = 8  # recordings that a device transforms at a time


class Feed(NamedTuple):
    """A way to batches.

    `fetch(rows, starts)`, both i64[...], gives on the host the NumPy arrays [..., any] that a step
    needs beside the `store`; `cut(store, fetched)` makes a batch of them on the devices.
    """

    store: Any  # arrays, the same on every device
    fetch: Callable[[np.ndarray, np.ndarray], Any]
    cut: Callable[[Any, Any], jax.Array]
    size: int = 0  # bytes of the store
    most_steps: int = _MOST_STEPS  # of one program


def open_feed(
    waveforms: Waveforms,
    rows: np.ndarray,
    lengths: np.ndarray,
    samples: int,
    batch: int,
    mesh: Mesh,
    budget: float,
) -> Feed:
    """Open the way to f32[batch, samples], standardised pieces of recordings.

    Args:
      waveforms: the recordings.
      rows: i64[n], those that pieces are cut from, rising.
      lengths: i64[n], how many samples of each are used.
      samples: length of a piece.
      batch: pieces in a batch.
      mesh: the devices.
      budget: bytes that a store may take on every device, padded to the longest of the recordings.
    """
    kind = waveforms.choose_kind(rows)
    size = len(rows) * int(lengths.max(initial=0)) * kind.itemsize
    if size <= budget:
        return _hold(waveforms, rows, lengths, samples, kind, mesh, size)
    scaling = split_scaling(waveforms)

    def read(rows, starts):
        pieces = waveforms.read(rows.ravel(), starts.ravel(), samples, kind)
        return pieces.reshape(*rows.shape, samples), *(x[rows] for x in scaling)

    most_steps = max(1, _MOST_BYTES // (batch * samples * kind.itemsize))
    return Feed((), read, lambda store, read: scale_pieces(*read), most_steps=most_steps)


def _hold(waveforms, rows, lengths, samples, kind, mesh, size):
    def locate(wanted, starts):
        waveforms.check_inside(wanted, starts, samples)
        return np.searchsorted(rows, wanted).astype(np.int32), starts.astype(np.int32)

    def cut(store, places):
        recordings, means, scales = store
        index, start = places
        pieces = _cut(recordings, index, start, samples)
        return scale_pieces(pieces, means[index], scales[index])

    recordings = _read_whole(waveforms, rows, lengths, lengths.max(initial=0), kind)
    store = place(mesh, (recordings, *(x[rows] for x in split_scaling(waveforms))))
    return Feed(store, locate, cut, size)


def open_mel_feed(
    waveforms: Waveforms,
    rows: np.ndarray,
    front_end: FrontEnd,
    samples: int,
    mesh: Mesh,
    budget: float,
) -> Feed:
    """Open the way to f32[batch, mels, frames], pieces of the log-mel spectra of whole recordings.

    Args:
      waveforms: the recordings.
      rows: i64[n], those that pieces are cut from, rising.
      front_end: of `log_mel`.
      samples: a piece has the frames of so many.
      mesh: the devices.
      budget: bytes that the spectra may take on every device, padded to the longest of them.

    Raises:
      ConfigError: they take more.
    """
    lengths = waveforms.lengths[rows]
    longest = int(lengths.max(initial=samples))
    shape = len(rows), front_end.count_frames(longest), front_end.mels
    if (size := 4 * int(np.prod(shape))) > budget:
        raise ConfigError(
            f"--config.autoencoder.cached_mel=True: the spectra of {len(rows)} recordings take "
            f"{size / 1e9:.2g} GB on every device, and --config.data.device_gigabytes is "
            f"{budget / 1e9:g}; give more, or --config.autoencoder.cached_mel=False"
        )
    kind, scaling = waveforms.choose_kind(rows), split_scaling(waveforms)
    transform = compile_rows(partial(_transform, front_end), mesh)
    spectra, batch = np.empty(shape, np.float32), _MEL_BATCH * mesh.size
    for first in range(0, len(rows), batch):
        some = slice(first, min(first + batch, len(rows)))
        own = np.resize(np.arange(some.start, some.stop), batch)[own_rows(mesh, batch)]
        pieces = _read_whole(waveforms, rows[own], lengths[own], longest, kind)
        transformed = transform((pieces, *(x[rows[own]] for x in scaling), lengths[own]))
        spectra[some] = jax.device_get(transformed)[: some.stop - some.start]

    def locate(wanted, starts):
        return np.searchsorted(rows, wanted).astype(np.int32), starts.astype(np.int32)

    def cut(spectra, places):
        return jnp.swapaxes(_cut(spectra, *places, front_end.count_frames(samples)), 1, 2)

    return Feed(place(mesh, spectra), locate, cut, size)


def _transform(front_end, rows):
    pieces, means, scales, lengths = rows
    inside = jnp.arange(pieces.shape[1]) < lengths[:, None]  # beyond it zeros, as `log_mel` pads
    waveforms = jnp.where(inside, scale_pieces(pieces, means, scales), 0)
    return jnp.swapaxes(log_mel(waveforms, front_end), 1, 2)


def _read_whole(waveforms, rows, lengths, longest, kind):
    """Read the beginnings of recordings: kind[n, longest], zeros behind them."""
    # Pages of its own: JAX takes them on a CPU without a copy, and the kernel gets them back.
    size = max(1, len(rows) * int(longest) * kind.itemsize)
    whole = np.ndarray((len(rows), longest), kind, mmap.mmap(-1, size))
    for recording, row, length in zip(whole, rows, lengths, strict=True):
        recording[:length] = waveforms.read([row], [0], length, kind)[0]
    return whole


def _cut(held, index, start, length):
    """Cut pieces: [n, longest, ...], i32[rows], i32[rows] -> [rows, length, ...]."""

    def cut(index, start):
        rest = held.ndim - 2
        at, size = (index, start, *[0] * rest), (1, length, *held.shape[2:])
        return jax.lax.dynamic_slice(held, at, size)[0]

    return jax.vmap(cut)(index, start)


def split_scaling(waveforms: Waveforms) -> tuple[np.ndarray, np.ndarray]:
    """Return what `scale_pieces` takes: means f32[clips, 2] in two parts, scales f32[clips]."""
    high = waveforms.means.astype(np.float32)
    low = (waveforms.means - high).astype(np.float32)
    return np.stack([high, low], axis=1), waveforms.scales.astype(np.float32)


def scale_pieces(pieces: jax.Array, means: jax.Array, scales: jax.Array) -> jax.Array:
    """Standardise pieces of recordings.

    Args:
      pieces: i16 or f32[rows, samples], in the stored unit.
      means: f32[rows, 2], of the recordings; the second column is what float32 rounds off the
        first, which counts beside a large constant offset.
      scales: f32[rows], 1 / standard deviation.

    Returns:
      f32[rows, samples].
    """
    centred = pieces.astype(jnp.float32) - means[:, :1] - means[:, 1:]
    return centred * scales[:, None]
