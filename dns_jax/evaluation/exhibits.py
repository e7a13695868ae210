"""What a report shows of a recording: mel picture, sound, and where its spectrum is unusual."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import quote

import librosa
import numpy as np
import pandas as pd
import soundfile
from matplotlib import colormaps
from PIL import Image

from dns_jax.data.cache import THREADS
from dns_jax.data.waveforms import Waveforms
from dns_jax.features import POWER_FLOOR, FrontEnd, make_front_end

PICTURES = 2000  # recordings with a picture, of all machines together
PICTURE_MELS = 64
DYNAMIC_RANGE = 60.0  # dB of a picture, from its loudest point
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
_LEAST_SPREAD = 0.5  # dB


def show_recordings(
    config,
    clips: pd.DataFrame,
    waveforms: Waveforms,
    rankings: Sequence[pd.DataFrame],
    workdir: Path,
) -> tuple[list[dict[str, dict]], str]:
    """Picture and encode the ranked recordings, those of the first ranks first.

    Args:
      config: the whole configuration; `report.megabytes` limits the sounds that are held.
      clips: the table of recordings.
      waveforms: of its rows.
      rankings: of each machine.
      workdir: where the page will lie, from which the other sounds are linked.

    Returns:
      For each machine {recording: {"seconds": float, "picture": data URI or None, "sound": data URI
      or relative address, "spectrum": f32[mels], mean over time in dB, or None}}, and a sentence on
      what the page holds.
    """
    front_end = make_front_end(config.autoencoder.front_end)
    names = zip(clips["machine"], clips["clip"], strict=True)
    row_of = {name: row for row, name in enumerate(names)}
    order = sorted(
        (row.rank, number, row_of[row.machine, row.clip])
        for number, ranking in enumerate(rankings)
        for row in ranking.itertuples()
    )
    left, full = config.report.megabytes * 1e6, False
    shown, pictured, held = [{} for _ in rankings], 0, 0

    def show(row, picture, sound):
        waveform = read_waveform(waveforms, row)
        log_mel = compute_log_mel(waveform, front_end) if picture else None
        return {
            "seconds": len(waveform) / config.data.rate,
            "picture": None if log_mel is None else draw_mel(log_mel),
            "spectrum": None if log_mel is None else log_mel.mean(axis=1),
            "sound": compress_sound(waveform, config.data.rate)
            if sound
            else link_sound(clips["path"].iloc[row], workdir),
        }

    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(order), THREADS):
            part = order[first : first + THREADS]
            show_row = partial(show, picture=first < PICTURES, sound=not full)
            recordings = pool.map(show_row, [row for _, _, row in part])
            for (_, number, row), recording in zip(part, recordings, strict=True):
                size = len(recording["sound"])
                full |= size > left
                if full:
                    recording["sound"] = link_sound(clips["path"].iloc[row], workdir)
                else:
                    left, held = left - size, held + 1
                pictured += recording["picture"] is not None
                shown[number][clips["clip"].iloc[row]] = recording
    text = f"This page holds the sounds of {held:,} of {len(order):,} recordings"
    if held < len(order):
        text += (
            f" (up to {config.report.megabytes:g} MB, the first ranks first; the others are played "
            "from where the recordings lie)"
        )
    if pictured < len(order):
        text += f" and the pictures of {pictured:,}"
    return shown, text + "."


def average_normal(
    config, clips: pd.DataFrame, waveforms: Waveforms, machine: str, most: int
) -> dict[int, np.ndarray]:
    """Return {section: f32[recordings, mels] in dB} of normal training recordings, means over time.

    Args:
      config: the whole configuration.
      clips: the table of recordings, with the column `usable`.
      waveforms: of its rows.
      machine: whose recordings.
      most: recordings of a section, spread evenly over it.
    """
    front_end = make_front_end(config.autoencoder.front_end)

    def average(row):
        return compute_log_mel(read_waveform(waveforms, row), front_end).mean(axis=1)

    spectra = {}
    train = (clips["machine"] == machine) & (clips["split"] == "train") & clips["usable"]
    with ThreadPoolExecutor(THREADS) as pool:
        for section, rows in clips[train].groupby("section").indices.items():
            rows = np.flatnonzero(train)[rows]
            chosen = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
            spectra[int(section)] = np.stack(list(pool.map(average, chosen)))
    return spectra


def read_waveform(waveforms: Waveforms, row: int) -> np.ndarray:
    """Return a recording as it was standardised, f32[samples]."""
    length = int(waveforms.lengths[row])
    return waveforms.crop(np.array([row]), np.array([0]), length)[0]


def compute_log_mel(waveform: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Compute the autoencoder's log-mel spectrum, f32[samples] -> f32[mels, frames] in dB."""
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=front_end.rate,
        n_fft=front_end.window,
        hop_length=front_end.hop,
        n_mels=front_end.mels,
        fmin=front_end.low,
        fmax=front_end.high,
        pad_mode="constant",
    )
    return 10 * np.log10(np.maximum(power, POWER_FLOOR))


def draw_mel(log_mel: np.ndarray) -> str:
    """Draw a log-mel spectrum, low frequencies at the bottom: f32[mels, frames] -> data URI."""
    top = log_mel.max()
    shade = np.clip((log_mel - top) / DYNAMIC_RANGE + 1, 0, 1)
    picture = colormaps["magma"](shade[::-1], bytes=True)[..., :3]
    image = Image.fromarray(picture)
    image = image.resize((min(image.width, 320), PICTURE_MELS), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return embed("image/jpeg", file.getvalue())


def compress_sound(waveform: np.ndarray, rate: int) -> str:
    """Compress a recording, levelled to its peak: f32[samples], Hz -> data URI of an MP3."""
    if rate not in _MP3_RATES:
        wanted = min((r for r in _MP3_RATES if r > rate), default=_MP3_RATES[-1])
        waveform = librosa.resample(waveform, orig_sr=rate, target_sr=wanted)
        rate = wanted
    peak = np.max(np.abs(waveform), initial=0)
    file = io.BytesIO()
    levelled = waveform * (0.9 / peak) if peak > 0 else waveform
    soundfile.write(file, levelled, rate, format="MP3")
    return embed("audio/mpeg", file.getvalue())


def link_sound(path: str, folder: Path) -> str:
    """Return the relative address of a recording, as a page in `folder` names it."""
    relative = os.path.relpath(Path(path).absolute(), Path(folder).absolute())
    return quote(Path(relative).as_posix())


def describe_band(
    spectrum: np.ndarray, normal: np.ndarray, config
) -> tuple[float, float, float] | None:
    """Find the band in which a recording differs most from normal ones.

    Args:
      spectrum: f32[mels] in dB, mean over time.
      normal: f32[recordings, mels] in dB, of normal recordings of the section.
      config: the whole configuration, for the autoencoder's front end.

    Returns:
      (from, to, difference): Hz, Hz and dB, of the mean over time in the band around the largest
      deviation in units of the normal recordings' spread; None with fewer than two of those
      and for a recording that does not differ.
    """
    if len(normal) < 2:
        return None
    difference = spectrum - normal.mean(axis=0)
    unusual = difference / np.maximum(normal.std(axis=0, ddof=1), _LEAST_SPREAD)
    if not unusual.any():
        return None
    peak = int(np.argmax(np.abs(unusual)))
    alike = unusual * np.sign(unusual[peak]) > abs(unusual[peak]) / 2
    low = peak - int(np.argmin(np.append(alike[peak::-1], False))) + 1
    high = peak + int(np.argmin(np.append(alike[peak:], False))) - 1
    front_end = make_front_end(config.autoencoder.front_end)
    edges = librosa.mel_frequencies(front_end.mels + 2, fmin=front_end.low, fmax=front_end.high)
    return float(edges[low]), float(edges[high + 2]), float(difference[low : high + 1].mean())


def embed(kind: str, data: bytes) -> str:
    """Return data as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
