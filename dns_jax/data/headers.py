"""One recording: what its header says, whether it can be so, and its samples.

A decoder reads a WAV file that holds less than its header promises without a word, and a header may
promise gigabytes that are not there; so the chunks of a WAV file are walked here, sizes and all,
before a sample is decoded.
"""

import hashlib
import math
import os
import struct
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from dns_jax.data.refusals import SKIP_BAD

SILENT = "silent (all samples are 0)"
CONSTANT = "constant (all samples are equal)"
CLIPPED = "clipped ({:.1%} of the samples lie flat at full scale)"

_RATES = range(100, 1_000_001)  # Hz; nothing outside is a sound recording
_BLOCK = 2**20  # samples decoded at a time


class Unusable(Exception):
    """A recording that cannot be used: the reason, and the option that would accept it."""

    def __init__(self, reason: str, option: str = SKIP_BAD):
        super().__init__(reason)
        self.reason, self.option = reason, option


class NeedsFloat(Exception):
    """A recording that int16 does not hold: of another encoding, or to be resampled."""


class Wanted(NamedTuple):
    """What a recording has to be.

    Attributes:
      rate: Hz.
      segment_samples: the least length, at `rate`.
      resample: other rates are accepted, and resampled.
      channel: the one to use, from 0; -1: mono is expected.
    """

    rate: int
    segment_samples: int
    resample: bool
    channel: int


class Recording(NamedTuple):
    """A decoded recording.

    Attributes:
      samples: i16[samples], or f32[samples] in units of full scale.
      mean: of the samples.
      scale: 1 / standard deviation; 0 where the samples are constant.
      digest: of the samples, whatever type and file format they come in.
      note: what is remarkable about it, "" if nothing.
    """

    samples: np.ndarray
    mean: float
    scale: float
    digest: str
    note: str


def read_recording(path: str, wanted: Wanted, kind: np.dtype) -> Recording:
    """Decode a recording if it can be used; its header is judged before its samples.

    Args:
      path: a WAV (also WAVE_FORMAT_EXTENSIBLE and RF64) or FLAC file, told by content, not by name.
      wanted: what it has to be; it is resampled where the rates differ.
      kind: of the samples, int16 or float32.

    Raises:
      Unusable: it cannot be used.
      NeedsFloat: int16 does not hold its samples.
      OSError: the file cannot be read.
    """
    check_container(path)
    try:
        with soundfile.SoundFile(path) as sound:
            _check_header(sound, wanted)
            if kind == np.int16 and (sound.samplerate, sound.subtype) != (wanted.rate, "PCM_16"):
                raise NeedsFloat
            samples = _decode(sound, max(wanted.channel, 0), kind)
            rate = sound.samplerate
    except soundfile.LibsndfileError as error:
        raise Unusable(f"cannot decode ({error.error_string})") from error
    return take_samples(samples, rate, wanted.rate)


def take_samples(samples: np.ndarray, rate: int, wanted_rate: int) -> Recording:
    """Describe samples that are there, and resample them where the rates differ.

    Args:
      samples: i16[samples], or f32[samples] in units of full scale; one at least.
      rate: theirs, Hz.
      wanted_rate: Hz.

    Raises:
      Unusable: a sample is not finite.
    """
    if samples.dtype != np.int16 and (
        lost := len(samples) - np.count_nonzero(np.isfinite(samples))
    ):
        raise Unusable(f"non-finite samples: {lost} (NaN or infinite)")
    note = _describe(samples)
    if rate != wanted_rate:
        import librosa  # takes a second, and hardly anybody resamples

        samples = librosa.resample(samples, orig_sr=rate, target_sr=wanted_rate)
    mean, deviation = _measure(samples)
    scale = 0.0 if note in (SILENT, CONSTANT) else 1 / deviation
    return Recording(samples, mean, scale, _digest(samples), note)


def _check_header(sound: soundfile.SoundFile, wanted: Wanted) -> None:
    """Raise Unusable if the header says that the recording is not what is wanted."""
    channel = wanted.channel
    if channel < 0 and sound.channels != 1:
        raise Unusable(f"{sound.channels} channels, mono expected", "--config.data.channel=0")
    if channel >= sound.channels:
        reason = f"has no channel {channel}: {sound.channels} channel(s), counted from 0"
        raise Unusable(reason, "--config.data.channel=0")
    check_length(sound.frames, sound.samplerate, wanted)


def check_length(frames: int, rate: int, wanted: Wanted) -> None:
    """Raise Unusable if there are too few samples, or of another rate than may be resampled.

    Args:
      frames: samples of each channel.
      rate: theirs, Hz.
      wanted: what the recording has to be.
    """
    if rate != wanted.rate and not wanted.resample:
        raise Unusable(f"{rate} Hz, {wanted.rate} expected", "--config.data.resample=True")
    if frames == 0:
        raise Unusable("no samples")
    if -(-frames * wanted.rate // rate) < wanted.segment_samples:
        seconds, segment = frames / rate, wanted.segment_samples / wanted.rate
        raise Unusable(f"shorter than a segment ({seconds:.4g} s, a segment has {segment:.4g} s)")


def _decode(sound: soundfile.SoundFile, channel: int, kind: np.dtype) -> np.ndarray:
    """Decode one channel in blocks, since a header may promise more than memory holds."""
    blocks, left = [], sound.frames
    while left and len(block := sound.read(_BLOCK, dtype=kind.name, always_2d=True)):
        blocks.append(block[:, channel])
        left -= len(block)
    if left:
        promise = f"the header promises {sound.frames} samples, {sound.frames - left} come out"
        raise Unusable(f"cannot decode ({promise})")
    return np.ascontiguousarray(blocks[0]) if len(blocks) == 1 else np.concatenate(blocks)


def _measure(samples: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation."""
    if samples.dtype != np.int16:
        return samples.mean(dtype=np.float64), samples.std(dtype=np.float64)
    # The same without rounding, in half the time.
    count, total = len(samples), int(samples.sum(dtype=np.int64))
    squares = int(np.einsum("i,i->", samples, samples, dtype=np.int64))
    return total / count, math.sqrt(count * squares - total**2) / count


def _digest(samples: np.ndarray) -> str:
    """Return a digest of samples that is the same in int16 and in float32, which holds both."""
    whole = samples / np.float32(2**15) if samples.dtype == np.int16 else samples
    return hashlib.blake2b(whole.astype("<f4", copy=False), digest_size=16).hexdigest()


def _describe(samples: np.ndarray) -> str:
    """Return what is remarkable about samples, "" if nothing."""
    low, high = samples.min(), samples.max()
    if low == high:
        return CONSTANT if high else SILENT
    loud = 0.99 * 2**15 if samples.dtype == np.int16 else 0.99
    if -loud < low and high < loud:
        return ""
    loud = (samples >= loud) | (samples <= -loud)
    flat = np.mean(loud[1:] & (samples[1:] == samples[:-1]))
    return CLIPPED.format(flat) if flat >= 0.001 else ""


def check_container(path: str) -> None:
    """Raise Unusable for what is no WAV or FLAC file, or holds less than a WAV header promises."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise Unusable("empty (0 bytes)")
        magic = file.read(4)
        if magic in (b"RIFF", b"RF64"):
            _check_wav(file, size)
        elif magic != b"fLaC":
            raise Unusable(f"not audio (neither WAV nor FLAC: starts with {magic!r})")


def _check_wav(file: BinaryIO, size: int) -> None:
    """Walk the chunks of a RIFF or RF64 file (EBU Tech 3306) up to its samples."""
    form = file.read(8)[4:]
    if len(form) == 4 and form != b"WAVE":
        raise Unusable(f"not audio (a RIFF file of type {form!r})")
    layout = long_length = None
    while True:
        head = file.read(8)
        start = file.tell()
        if len(head) < 8:
            raise Unusable(f"truncated header (the {size} bytes end before the samples begin)")
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            break
        if start + length > size:
            raise Unusable(f"truncated header (the {size} bytes end within chunk {name!r})")
        if name == b"fmt " and length >= 16:
            layout = struct.unpack("<2xHI4xH2x", file.read(16))
        elif name == b"ds64" and length >= 16:
            (long_length,) = struct.unpack("<8xQ", file.read(16))
        file.seek(start + length + length % 2)
    if layout is None:
        raise Unusable("truncated header (no 'fmt ' chunk before the samples)")
    channels, rate, frame = layout
    if rate not in _RATES:
        raise Unusable(f"bad sample rate {rate} Hz")
    if channels == 0 or frame == 0:
        raise Unusable(f"bad header ({channels} channels, {frame} bytes per sample)")
    if length == 0xFFFFFFFF and long_length is not None:
        length = long_length
    held = size - start
    if length > held:
        reason = f"truncated (the header promises {length} bytes of samples, the file holds {held})"
        raise Unusable(reason)
    if length % frame:
        raise Unusable(f"truncated ({length} bytes of samples of {frame} bytes each)")
    behind = held - length - length % 2
    # Tags and padding behind the samples are harmless; seconds of sound are not.
    if behind > (rate * frame if length else 0) and not _is_chunk(file, size - behind, size):
        reason = f"truncated (the header promises {length} bytes of samples, {held} follow it)"
        raise Unusable(reason)


def _is_chunk(file: BinaryIO, position: int, size: int) -> bool:
    file.seek(position)
    head = file.read(8)
    name, length = head[:4], int.from_bytes(head[4:], "little")
    return name.isascii() and name.decode().isprintable() and position + 8 + length <= size
