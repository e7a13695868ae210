"""The waveforms of a data set, standardised (Sec. IV-A)."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from dns_jax.data.cache import INDEX, THREADS, open_machine
from dns_jax.data.headers import CONSTANT, SILENT, Wanted
from dns_jax.data.refusals import DataError, Refusal, printable


@dataclasses.dataclass(frozen=True, eq=False)
class Waveforms:
    """Waveforms of a table of clips; every array is aligned with its rows.

    Attributes:
      lengths: i64[clips], samples; 0 where the clip cannot be used.
      digests: str[clips], of the decoded samples, the same for a WAV file and its FLAC twin.
      means: f64[clips], of the samples in their stored unit.
      scales: f64[clips], 1 / standard deviation; 0 for a constant clip.
      machines: i64[clips], which of `samples` holds the clip.
      offsets: i64[clips], where in it the clip begins.
      samples: memory-mapped i16[any] or f32[any], one per machine.
    """

    lengths: np.ndarray
    digests: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    machines: np.ndarray
    offsets: np.ndarray
    samples: tuple[np.ndarray, ...]

    def crop(self, rows: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
        """Cut pieces out of recordings that are standardised as a whole; see `standardise`.

        Args:
          rows: i64[n], rows of the table of clips.
          starts: i64[n], first sample of each piece.
          length: samples.

        Returns:
          f32[n, length]; zeros for a recording that is standardised by itself and constant.

        Raises:
          ValueError: a piece reaches outside its recording.
        """
        pieces = np.empty((len(rows), length), np.float32)
        for piece, row, samples in zip(pieces, rows, self._find(rows, starts, length), strict=True):
            piece[:] = (samples - self.means[row]) * self.scales[row]
        return pieces

    def read(self, rows: np.ndarray, starts: np.ndarray, length: int, kind: np.dtype) -> np.ndarray:
        """Cut pieces out of recordings, in their stored unit; arguments and errors as of `crop`.

        Args:
          rows: i64[n].
          starts: i64[n].
          length: samples.
          kind: of `choose_kind`.

        Returns:
          kind[n, length].
        """
        pieces = np.empty((len(rows), length), kind)
        for piece, samples in zip(pieces, self._find(rows, starts, length), strict=True):
            piece[:] = samples
        return pieces

    def choose_kind(self, rows: np.ndarray) -> np.dtype:
        """Return what holds the samples of `rows` as they are, int16 or else float32."""
        used = np.unique(self.machines[rows])
        return np.result_type(np.int16, *(self.samples[machine].dtype for machine in used))

    def check_inside(self, rows: np.ndarray, starts: np.ndarray, length: int) -> None:
        """Raise ValueError where a piece reaches outside its recording; arguments as of `crop`."""
        rows, starts = np.ravel(rows), np.ravel(starts)
        outside = np.flatnonzero((starts < 0) | (starts + length > self.lengths[rows]))
        if len(outside):
            row, start = rows[outside[0]], starts[outside[0]]
            raise ValueError(
                f"samples {start} to {start + length} of row {row}; it has {self.lengths[row]}"
            )

    def _find(self, rows, starts, length):
        """Yield views of the stored samples."""
        rows, starts = np.asarray(rows), np.asarray(starts)
        self.check_inside(rows, starts, length)
        for row, first in zip(rows, self.offsets[rows] + starts, strict=True):
            yield self.samples[self.machines[row]][first : first + length]


def standardise(waveforms: Waveforms, how: str, rows: np.ndarray) -> Waveforms:
    """Choose what `crop` subtracts and divides by.

    Args:
      waveforms: as they were opened.
      how: "recording": mean 0 and variance 1 of each (the paper); "machine": mean and variance of
        all samples of `rows`, applied to every recording (SerialOE's code); "none": the samples as
        they are, full scale 1 (the official baseline).
      rows: i64[n], the training recordings of the target machine.
    """
    if how == "recording":
        return waveforms
    whole = [32768.0 if samples.dtype == np.int16 else 1.0 for samples in waveforms.samples]
    full_scale = np.array(whole)[waveforms.machines]
    if how == "none":
        return dataclasses.replace(
            waveforms, means=np.zeros_like(full_scale), scales=1 / full_scale
        )
    weights = waveforms.lengths[rows] / waveforms.lengths[rows].sum()
    means = waveforms.means[rows] / full_scale[rows]
    scales = waveforms.scales[rows] * full_scale[rows]
    variances = np.divide(1.0, scales**2, out=np.zeros_like(scales), where=scales > 0)
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    scale = 1 / np.sqrt(variance) if variance > 0 else 0.0
    return dataclasses.replace(waveforms, means=mean * full_scale, scales=scale / full_scale)


def open_waveforms(
    clips: pd.DataFrame,
    cache_dir: str | os.PathLike,
    *,
    rate: int = 16000,
    segment_samples: int = 64000,
    resample: bool = False,
    channel: int = -1,
    progress: bool = False,
) -> tuple[Waveforms, np.ndarray, list[Refusal], list[str]]:
    """Open the waveforms of a table of clips; what the cache does not hold yet is decoded.

    Accepted, with a warning, are recordings that are silent (all samples 0), constant (all samples
    equal), clipped (at least one sample in a thousand is at 99 % of full scale or above and equal
    to the one before it), or of the same samples as another recording of the machine.

    Args:
      clips: the table of `read_clips`.
      cache_dir: holds one directory per machine; made where it is missing.
      rate: Hz, of the waveforms.
      segment_samples: the least length of a recording, at `rate`.
      resample: recordings of other rates are resampled; otherwise they are refused.
      channel: the channel to use, from 0; -1: recordings that are not mono are refused.
      progress: show a progress bar while decoding.

    Returns:
      The waveforms; bool[clips], which of them can be used; the refusals of those that cannot; and
      the warnings, one line each.

    Raises:
      DataError: the cache cannot be written, or reading a recording fails half-way.
    """
    if channel < -1:
        raise DataError(f"channel is {channel}; it may be -1 (mono expected), 0, 1, 2, ...")
    wanted = Wanted(rate, segment_samples, resample, channel)
    index = {name: np.zeros(len(clips), kind) for name, kind in INDEX.items()}
    machines = np.zeros(len(clips), np.int64)
    samples, warnings = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for machine, rows in clips.groupby("machine").indices.items():
            paths = list(clips["path"].iloc[rows])
            cached, found, damage = open_machine(
                Path(cache_dir), machine, paths, wanted, pool, progress
            )
            for name in INDEX:
                index[name][rows] = found[name]
            machines[rows] = len(samples)
            samples.append(cached)
            warnings += damage + _describe_notes(paths, found)
    usable = index["reason"] == ""
    refusals = [
        Refusal(clips["path"].iloc[row], index["reason"][row], index["option"][row])
        for row in np.flatnonzero(~usable)
    ]
    waveforms = Waveforms(
        lengths=index["length"],
        digests=index["digest"].astype(str),
        means=index["mean"],
        scales=index["scale"],
        machines=machines,
        offsets=index["offset"],
        samples=tuple(samples),
    )
    return waveforms, usable, refusals, warnings


def _describe_notes(paths: list[str], found: dict[str, np.ndarray]) -> list[str]:
    """Return one line per remarkable recording of a machine, in the order of the recordings."""
    lines, first = [], {}
    for path, digest, note in zip(paths, found["digest"], found["note"], strict=True):
        twin = first.setdefault(digest, path) if digest else path
        notes = [note] if note else []
        if twin is not path and note not in (SILENT, CONSTANT):
            notes.append(f"same content as {printable(twin)}")
        if notes:
            lines.append(f"{printable(path)}: {', '.join(notes)}")
    return lines
