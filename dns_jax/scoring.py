"""a_G and f_D of every test window of every recording (section IV-A, inference).

A recording is divided into segments that start 0, 1, 2, ... s as long as 4 s fit: seven in 10 s.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from dns_jax.data.refusals import reading
from dns_jax.data.waveforms import Waveforms
from dns_jax.files import write_file
from dns_jax.hosts import Preemption, is_first
from dns_jax.models.autoencoder import Autoencoder, describe_segments
from dns_jax.models.serial_oe import SerialOE
from dns_jax.parallel import compile_rows, own_rows, replicate


class Segments(NamedTuple):
    """`segments.npz`: one row a segment, those of a recording side by side."""

    clip: np.ndarray  # U[segments], file name
    split: np.ndarray  # U[segments], "train" or "test"
    section: np.ndarray  # i32[segments]
    domain: np.ndarray  # U[segments], "source" or "target"
    label: np.ndarray  # i32[segments], 0 normal, 1 anomalous, -1 unknown
    start: np.ndarray  # f32[segments], s
    ae_score: np.ndarray  # f32[segments], a_G of eq. 2
    feature: np.ndarray  # f32[segments, D], f_D
    # Of no dimension, and not in the file, where `config.smoothing` does not ask for them.
    spectrum: np.ndarray  # f32[segments, mels], time mean of the log-mel spectrum, dB
    residual: np.ndarray  # f32[segments, mels], that of what the autoencoder leaves, dB

    def select(self, mask: np.ndarray) -> "Segments":
        """Return the rows where ``mask: bool[segments]`` is true."""
        return Segments(*(field[mask] for field in self))


_OPTIONAL = ("spectrum", "residual")


def cut_segments(lengths: np.ndarray, samples: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (recording i64[segments], start i64[segments]) of all windows that fit.

    Args:
      lengths: i64[recordings], in samples.
      samples: length of a window.
      hop: samples between the starts of two windows.
    """
    counts = np.maximum(0, (lengths - samples) // hop + 1)
    recording = np.repeat(np.arange(len(lengths)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return recording, (np.arange(len(recording)) - first) * hop


def split_networks(
    autoencoder: Autoencoder, serial_oe: SerialOE | None, spectra: bool = False
) -> tuple[Callable, Any]:
    """Return the pure function ``state, f32[n, samples] -> a_G f32[n], f_D f32[n, D]``, and state.

    Args:
      autoencoder: trained f_G.
      serial_oe: trained f_D; None: features of no dimension.
      spectra: whether spectrum and residual follow f_D, f32[n, mels] each.
    """
    graph, state = nnx.split((autoencoder, serial_oe))

    def score(state, segments):
        autoencoder, serial_oe = nnx.merge(graph, state)
        a_g, *of_mels = describe_segments(autoencoder, segments)
        f_d = serial_oe(segments, train=False) if serial_oe else jnp.zeros((len(a_g), 0))
        return a_g, f_d, *(of_mels if spectra else ())

    return score, state


def score_segments(
    autoencoder: Autoencoder,
    serial_oe: SerialOE | None,
    clips: pd.DataFrame,
    waveforms: Waveforms,
    config,
    *,
    mesh: Mesh,
    preemption: Preemption,
    name: str,
    spectra: bool = False,
) -> Segments:
    """Compute a_G and f_D of all segments of the given recordings, in batches of one shape.

    Args:
      autoencoder: trained f_G.
      serial_oe: trained f_D; None: features of no dimension.
      clips: the recordings of the target machine; the index holds their rows in `waveforms`.
      waveforms: recordings.
      config: the whole configuration.
      mesh: the devices, which share the segments.
      preemption: asked after every batch whether to stop.
      name: for the progress bar.
      spectra: whether to keep spectrum and residual.

    Raises:
      Preempted: the run was asked to stop.
    """
    samples = round(config.data.rate * config.data.segment_seconds)
    hop = round(config.data.rate * config.data.hop_seconds)
    rows = clips.index.to_numpy()
    recording, start = cut_segments(waveforms.lengths[rows], samples, hop)

    score, state = split_networks(autoencoder, serial_oe, spectra)
    state = replicate(mesh, state)
    score = compile_rows(score, mesh)
    batch = config.scoring_batch * mesh.size
    part = own_rows(mesh, batch)
    results = []
    for first in tqdm(
        range(0, len(start), batch),
        desc=name,
        unit="batch",
        disable=not (config.progress and is_first()),
    ):
        own = np.resize(np.arange(first, min(first + batch, len(start))), batch)[part]
        results.append(score(state, waveforms.crop(rows[recording[own]], start[own], samples)))
        if first:  # the batch before is fetched while this one is computed
            results[-2] = jax.device_get(results[-2])
        preemption.stop_if_reached()
    results = jax.device_get(results)
    ae_score, feature, *of_mels = (
        np.concatenate(column)[: len(start)] for column in zip(*results, strict=True)
    )
    spectrum, residual = of_mels or 2 * [_keep_none(len(start))]
    table = clips.iloc[recording]
    return Segments(
        clip=table["clip"].to_numpy(np.str_),
        split=table["split"].to_numpy(np.str_),
        section=table["section"].to_numpy(np.int32),
        domain=table["domain"].to_numpy(np.str_),
        label=table["label"].to_numpy(np.int32),
        start=(start / config.data.rate).astype(np.float32),
        ae_score=ae_score,
        feature=feature,
        spectrum=spectrum,
        residual=residual,
    )


def save_segments(path: Path, segments: Segments) -> None:
    """Write `segments.npz`: plain arrays, no pickle."""
    arrays = segments._asdict()
    for name in _OPTIONAL:
        if not arrays[name].shape[1]:
            del arrays[name]
    write_file(path, lambda file: np.savez(file, **arrays))


def load_segments(path: Path) -> Segments:
    """Read `segments.npz`; raises DataError where it is damaged."""
    with reading(path), open(path, "rb") as file, np.load(file) as arrays:
        loaded = {name: arrays[name] for name in Segments._fields if name in arrays.files}
        for name in _OPTIONAL:
            loaded.setdefault(name, _keep_none(len(arrays["clip"])))
        return Segments(**{name: loaded[name] for name in Segments._fields})


def _keep_none(rows):
    return np.zeros((rows, 0), np.float32)
