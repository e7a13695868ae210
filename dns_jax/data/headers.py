"""One recording: what its header says, whether it can be so, and its samples.

A decoder reads a WAV file that holds less than its header promises without a word, and a header may
promise gigabytes that are not there; so the chunks of a WAV file are walked here, sizes and all,
before a sample is decoded.
"""

import hashlib
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
_BLOCK = 2**18  # samples decoded at a time


class Unusable(Exception):
    """A recording that cannot be used: the reason, and the option that would accept it."""

    def __init__(self, reason: str, option: str = SKIP_BAD):
        super().__init__(reason)
        self.reason, self.option = reason, option


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


class Header(NamedTuple):
    """The header of a recording: sample rate in Hz, channels, samples per channel, encoding."""

    rate: int
    channels: int
    samples: int
    subtype: str


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


def check_header(path: str, wanted: Wanted) -> Header:
    """Decide by its header whether a recording can be used.

    Args:
      path: a WAV (also WAVE_FORMAT_EXTENSIBLE and RF64) or FLAC file, told by content, not by name.
      wanted: what it has to be.

    Raises:
      Unusable: it cannot be used.
      OSError: the file cannot be read.
    """
    rate, segment_samples, resample, channel = wanted
    header = _read_header(path)
    if channel < 0 and header.channels != 1:
        raise Unusable(f"{header.channels} channels, mono expected", "--config.data.channel=0")
    if channel >= header.channels:
        reason = f"has no channel {channel}: {header.channels} channel(s), counted from 0"
        raise Unusable(reason, "--config.data.channel=0")
    if header.rate != rate and not resample:
        raise Unusable(f"{header.rate} Hz, {rate} expected", "--config.data.resample=True")
    if header.samples == 0:
        raise Unusable("no samples")
    if -(-header.samples * rate // header.rate) < segment_samples:
        seconds, segment = header.samples / header.rate, segment_samples / rate
        raise Unusable(f"shorter than a segment ({seconds:.4g} s, a segment has {segment:.4g} s)")
    return header


def decode(path: str, header: Header, wanted: Wanted, kind: np.dtype) -> Recording:
    """Decode a recording whose header has been accepted.

    Args:
      path: the file.
      header: its header.
      wanted: what the samples have to be; they are resampled where the rates differ.
      kind: int16 (then the file has to be 16-bit PCM at the rate) or float32.

    Raises:
      Unusable: its samples cannot be used.
    """
    blocks = []
    try:
        with soundfile.SoundFile(path) as sound:
            while len(block := sound.read(_BLOCK, dtype=kind.name, always_2d=True)):
                blocks.append(block[:, max(wanted.channel, 0)])
    except soundfile.LibsndfileError as error:
        raise Unusable(f"cannot decode ({error.error_string})") from error
    samples = np.concatenate(blocks) if blocks else np.empty(0, kind)
    if len(samples) != header.samples:
        promise = f"the header promises {header.samples} samples, {len(samples)} come out"
        raise Unusable(f"cannot decode ({promise})")
    lost = len(samples) - np.count_nonzero(np.isfinite(samples))
    if lost:
        raise Unusable(f"non-finite samples: {lost} (NaN or infinite)")
    note = _describe(samples)
    if header.rate != wanted.rate:
        import librosa  # takes a second, and hardly anybody resamples

        samples = librosa.resample(samples, orig_sr=header.rate, target_sr=wanted.rate)
    constant = note in (SILENT, CONSTANT)
    return Recording(
        samples,
        mean=samples.mean(dtype=np.float64),
        scale=0.0 if constant else 1 / samples.std(dtype=np.float64),
        digest=hashlib.blake2b(_full_scale(samples).astype("<f4"), digest_size=16).hexdigest(),
        note=note,
    )


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """The samples as f32 in units of full scale; exact."""
    return samples / np.float32(2**15) if samples.dtype == np.int16 else samples


def _describe(samples: np.ndarray) -> str:
    if not samples.any():
        return SILENT
    if (samples == samples[0]).all():
        return CONSTANT
    loud = np.abs(_full_scale(samples)) >= 0.99
    flat = np.mean(loud[1:] & (samples[1:] == samples[:-1]))
    return CLIPPED.format(flat) if flat >= 0.001 else ""


def _read_header(path: str) -> Header:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise Unusable("empty (0 bytes)")
        magic = file.read(4)
        if magic in (b"RIFF", b"RF64"):
            _check_wav(file, size)
        elif magic != b"fLaC":
            raise Unusable(f"not audio (neither WAV nor FLAC: starts with {magic!r})")
    try:
        with soundfile.SoundFile(path) as sound:
            return Header(sound.samplerate, sound.channels, sound.frames, sound.subtype)
    except soundfile.LibsndfileError as error:
        raise Unusable(f"cannot decode ({error.error_string})") from error


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
