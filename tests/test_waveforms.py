"""Waveforms: what is refused and why, what is standardised, and when the cache may be trusted."""

import errno
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile

from dns_jax.data import cache as module
from dns_jax.data import waveforms as waveforms_module
from dns_jax.data.clips import read_clips
from dns_jax.data.refusals import SKIP_BAD, DataError, Refusal, describe_refusals
from dns_jax.data.waveforms import Waveforms, open_waveforms

RATE, SEGMENT = 16000, 64000
CHANNEL, RESAMPLE = "--config.data.channel=0", "--config.data.resample=True"
NAME = "section_00_source_test_normal_{:04}"
TWIN = "same content as "


def noise(seed, samples=SEGMENT):
    return np.random.default_rng(seed).normal(0, 3000, samples).astype(np.int16)


def chunk(name, body, promise=None):
    size = len(body) if promise is None else promise
    return name + struct.pack("<I", size) + body + b"\0" * (len(body) % 2)


def riff(data, *, rate=RATE, channels=1, bits=16, tag=1, before=b"", behind=b"", promise=None):
    """A WAV file, chunk by chunk; `promise` is what its header says about the bytes of samples."""
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", tag, channels, rate, rate * frame % 2**32, frame, bits)
    body = b"WAVE" + before + chunk(b"fmt ", layout) + chunk(b"data", data, promise) + behind
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flac(path, samples, rate=RATE):
    soundfile.write(path, samples, rate, format="FLAC")
    return path.read_bytes()


def tree(root, **recordings):
    """A machine `fan` with three good clips, and `recordings` (file name: content) in its test."""
    for folder in ("train", "source_test"):
        (root / "fan" / folder).mkdir(parents=True, exist_ok=True)
    for i in range(2):
        path = root / f"fan/train/section_00_source_train_normal_{i:04}.wav"
        soundfile.write(path, noise(900 + i), RATE)
    soundfile.write(root / f"fan/source_test/{NAME.format(9000)}.wav", noise(902), RATE)
    for name, content in recordings.items():
        (root / "fan/source_test" / name).write_bytes(content)
    return root


class Opened(NamedTuple):
    clips: pd.DataFrame
    waveforms: Waveforms
    usable: np.ndarray
    refused: dict[str, Refusal]  # by file name
    warnings: list[str]

    def row(self, name):
        return list(self.clips["clip"]).index(name)


def opened(tmp_path, **options):
    clips, refusals = read_clips(tmp_path / "data")
    waveforms, usable, more, warnings = open_waveforms(clips, tmp_path / "cache", **options)
    named = {os.path.basename(refusal.path): refusal for refusal in refusals + more}
    assert len(named) == len(refusals) + len(more)
    return Opened(clips, waveforms, usable, named, warnings)


def opened_tree(tmp_path, recordings, **options):
    tree(tmp_path / "data", **recordings)
    return opened(tmp_path, **options)


def whole(waveforms, row):
    return waveforms.crop([row], [0], waveforms.lengths[row])[0]


def standardise(samples):
    samples = np.asarray(samples, np.float64)
    return (samples - samples.mean()) / samples.std()


# The recordings of the hostile set: what is said about each

REFUSED = {
    NAME.format(0) + ".wav": ("empty", SKIP_BAD),
    NAME.format(1) + ".wav": ("truncated header", SKIP_BAD),
    NAME.format(2) + ".wav": ("truncated (the header promises 128000 bytes", SKIP_BAD),
    NAME.format(3) + ".wav": ("not audio", SKIP_BAD),
    NAME.format(4) + ".wav": ("8 channels, mono expected", CHANNEL),
    NAME.format(5) + ".wav": ("2 channels, mono expected", CHANNEL),
    NAME.format(6) + ".wav": ("44100 Hz, 16000 expected", RESAMPLE),
    NAME.format(9) + ".wav": ("non-finite samples: 3", SKIP_BAD),
    NAME.format(13) + ".wav": ("shorter than a segment (0.5 s, a segment has 4 s)", SKIP_BAD),
    NAME.format(14) + ".wav": ("shorter than a segment", SKIP_BAD),
    NAME.format(15) + ".wav": ("truncated (the header promises 2147483632 bytes", SKIP_BAD),
    NAME.format(19) + ".wav": ("no samples", SKIP_BAD),
    NAME.format(20) + ".wav": ("truncated (", SKIP_BAD),
    NAME.format(21) + ".wav": ("8000 Hz, 16000 expected", RESAMPLE),
    NAME.format(22) + ".wav": ("bad sample rate 0 Hz", SKIP_BAD),
    NAME.format(23) + ".WAV": ("shorter than a segment (2 s", SKIP_BAD),
    NAME.format(25) + ".flac": ("cannot decode", SKIP_BAD),
    "fan_clip-7 (copy).wav": ("name: may be", SKIP_BAD),
    "section_aa_source_train_anomaly_0024.wav": ("name: may be", SKIP_BAD),
    "section_00_source_test_normál_測試_0018.wav": ("name: may be", SKIP_BAD),
}
ACCEPTED = {
    NAME.format(7) + ".wav": "",
    NAME.format(8) + ".wav": "",
    NAME.format(10) + ".wav": "silent",
    NAME.format(11) + ".wav": "constant",
    NAME.format(12) + ".wav": "clipped",
    NAME.format(16) + ".wav": "",
    NAME.format(17) + ".wav": "",
}


def hostile_twins(folder):
    """Home-made twins of the hostile set, one fault each: {file name: content}."""
    x = noise(0)
    pcm = x.tobytes()
    full = x / np.float32(2**15)
    broken = full.copy()
    broken[[5, 600, 7000]] = np.nan, np.inf, -np.inf
    square = np.where(
        np.sin(2 * np.pi * 200 / RATE * (np.arange(SEGMENT) + 0.5)) > 0, 32767, -32767
    )
    deep = (x.astype("<i4") << 16).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    eight = ((x >> 8) + 128).astype(np.uint8).tobytes()
    long_flac = flac(folder / "long.flac", noise(1, 160000))
    contents = {
        0: b"",
        1: riff(pcm)[:30],
        2: riff(pcm)[: 44 + SEGMENT],
        3: b"this is no recording\n" * 50,
        4: riff(np.repeat(x[:16000], 8).tobytes(), channels=8),
        5: riff(np.stack([x, x[::-1]], 1).tobytes(), channels=2),
        6: riff(pcm, rate=44100),
        7: riff(eight, bits=8),
        8: riff(deep, bits=24),
        9: riff(broken.tobytes(), bits=32, tag=3),
        10: riff(bytes(2 * SEGMENT)),
        11: riff(np.full(SEGMENT, 8000, np.int16).tobytes()),
        12: riff(square.astype(np.int16).tobytes()),
        13: riff(pcm[:16000]),
        14: riff(pcm[:2]),
        15: riff(pcm[:32000], promise=0x7FFFFFF0),
        16: riff(pcm),
        17: riff(pcm),
        19: riff(b""),
        20: riff(pcm)[: 44 + 32001],
        21: riff(pcm, rate=8000),
        22: riff(pcm, rate=0),
        23: riff(pcm[:64000]),
        25: long_flac[: len(long_flac) // 2],
    }
    numbered = {
        name: contents[int(name.split("_")[5].split(".")[0])]
        for name in REFUSED | ACCEPTED
        if name.startswith("section_00_source_test_normal_")
    }
    others = set(REFUSED | ACCEPTED).difference(numbered)
    return numbered | {name: riff(pcm) for name in others}


@pytest.fixture(scope="module", params=["home-made", "real"])
def hostile(request, tmp_path_factory):
    """The hostile set, {file name: content}: home-made, and as it came."""
    if request.param == "home-made":
        return hostile_twins(tmp_path_factory.mktemp("twins"))
    folder = request.getfixturevalue("realdata") / "hostile"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}


def test_the_table_covers_the_hostile_set(hostile):
    assert set(hostile) == set(REFUSED) | set(ACCEPTED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_alone_is_refused_with_its_reason_and_option(tmp_path, hostile, name):
    found = opened_tree(tmp_path, {name: hostile[name]})
    assert list(found.refused) == [name]
    path, reason, option = found.refused[name]
    assert reason.startswith(REFUSED[name][0])
    assert option == REFUSED[name][1]
    assert found.usable.sum() == 3
    assert not found.waveforms.lengths[~found.usable].any()
    assert not found.warnings
    assert describe_refusals(found.refused.values()).endswith(f"\n  {path}: {reason} [{option}]")


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_file_alone_is_accepted_and_warned_of(tmp_path, hostile, name):
    found = opened_tree(tmp_path, {name: hostile[name]})
    assert found.usable.all()
    assert not found.refused
    expected = [f"{tmp_path}/data/fan/source_test/{name}: {ACCEPTED[name]}"] * bool(ACCEPTED[name])
    assert [warning.split(" (")[0] for warning in found.warnings] == expected
    assert found.waveforms.lengths[found.row(name)] == SEGMENT
    piece = whole(found.waveforms, found.row(name))
    if ACCEPTED[name] in ("silent", "constant"):
        assert not piece.any()
    else:
        assert np.isfinite(piece).all()
        assert abs(piece.std() - 1) < 1e-4


def test_the_hostile_set_together_gives_one_verdict_per_file(tmp_path, hostile):
    found = opened_tree(tmp_path, hostile)
    assert set(found.refused) == set(REFUSED)
    for name, (reason, option) in REFUSED.items():
        assert found.refused[name].reason.startswith(reason)
        assert found.refused[name].option == option
    assert set(found.clips["clip"][found.usable]) > set(ACCEPTED)
    folder = f"{tmp_path}/data/fan/source_test/"
    silent, constant, clipped, *same = found.warnings
    for number, warning in ((10, silent), (11, constant), (12, clipped)):
        name = f"{NAME.format(number)}.wav"
        assert warning.startswith(f"{folder}{name}: {ACCEPTED[name]}")
    twin = f"{TWIN}{folder}{NAME.format(8)}.wav"
    assert same == [f"{folder}{NAME.format(number)}.wav: {twin}" for number in (16, 17)]


def test_24_bit_equals_its_16_bit_twin_and_8_bit_has_no_offset(tmp_path, hostile):
    names = [f"{NAME.format(number)}.wav" for number in (7, 8, 16)]
    found = opened_tree(tmp_path, {name: hostile[name] for name in names})
    waveforms = found.waveforms
    eight, deep, plain = map(found.row, names)
    assert waveforms.digests[deep] == waveforms.digests[plain]
    assert np.array_equal(whole(waveforms, deep), whole(waveforms, plain))
    assert abs(waveforms.means[eight]) < 0.01
    assert np.corrcoef(whole(waveforms, eight), whole(waveforms, plain))[0, 1] > 0.9


# Headers that lie, and headers that are only unusual


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (riff(noise(0).tobytes(), promise=0xFFFFFFFF), "truncated (the header promises 4294967295"),
        (riff(noise(0).tobytes(), promise=0), "truncated (the header promises 0 bytes"),
        (riff(noise(0).tobytes(), promise=32000), "truncated (the header promises 32000 bytes"),
        (riff(b"", behind=chunk(b"LIST", b"INFO")), "no samples"),
        (riff(noise(0).tobytes()[:-1]), "truncated (127999 bytes"),
        (b"RIFF", "truncated header"),
        (b"RIFF\x24\0\0\0WAVE", "truncated header"),
        (b"RIFF\x24\0\0\0WAVE" + chunk(b"data", noise(0).tobytes()), "truncated header (no 'fmt '"),
        (b"RIFF\x24\0\0\0AVI " + bytes(50), "not audio"),
        (b"ID3\x03" + bytes(500), "not audio"),
        (riff(noise(0).tobytes(), channels=0), "bad header"),
        (riff(noise(0).tobytes(), rate=4_000_000_000), "bad sample rate"),
        (riff(noise(0).tobytes(), tag=0x1234), "cannot decode"),
        (b"fLaC", "cannot decode"),
        (b"fLaC" + bytes(5000), "cannot decode"),
    ],
)
def test_a_header_that_cannot_be_so_is_refused(tmp_path, content, reason):
    name = NAME.format(0) + ".wav"
    found = opened_tree(tmp_path, {name: content})
    assert found.refused[name].reason.startswith(reason)


def with_length(content, samples):
    """A FLAC file whose STREAMINFO says another number of samples; 0 is "unknown"."""
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    return content[:18] + field.to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize("samples", [0, 2**36 - 1, 64001])
def test_a_flac_header_that_lies_is_refused_and_reserves_no_memory(tmp_path, samples):
    content = with_length(flac(tmp_path / "x.flac", noise(0)), samples)
    name = NAME.format(0) + ".flac"
    tree(tmp_path / "data", **{name: content})
    tracemalloc.start()
    refused = opened(tmp_path).refused
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused[name].reason.startswith("cannot decode")
    assert peak < 64e6


def test_a_wav_header_that_promises_2_gigabytes_reserves_no_memory(tmp_path):
    content = riff(noise(0).tobytes(), promise=0x7FFFFFF0)
    tree(tmp_path / "data", **{NAME.format(0) + ".wav": content})
    tracemalloc.start()
    opened(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6


def test_a_damaged_bit_within_a_flac_file_is_noticed(tmp_path):
    content = bytearray(flac(tmp_path / "x.flac", noise(0)))
    content[len(content) // 2] ^= 16
    name = NAME.format(0) + ".flac"
    found = opened_tree(tmp_path, {name: bytes(content)})
    assert found.refused[name].reason.startswith("cannot decode")


def test_a_decoder_that_stops_early_without_a_word_is_noticed(tmp_path, monkeypatch):
    tree(tmp_path / "data")

    def read(sound, *args, original=soundfile.SoundFile.read, **options):
        return original(sound, *args, **options)[:-1]

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    reasons = {refusal.reason for refusal in opened(tmp_path).refused.values()}
    assert reasons == {"cannot decode (the header promises 64000 samples, 63999 come out)"}


def test_unusual_headers_give_the_same_samples(tmp_path):
    x = noise(0)
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    extensible = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 2 * RATE, 2, 16, 22, 16, 4) + guid
    soundfile.write(tmp_path / "rf64.wav", x, RATE, format="RF64")
    soundfile.write(tmp_path / "rifx.wav", x, RATE, format="WAVEX")
    odd = chunk(b"LIST", b"INFOISFT\x03\0\0\0abc")
    variants = [
        riff(x.tobytes()),
        riff(x.tobytes(), before=odd),
        riff(x.tobytes(), behind=odd),
        riff(x.tobytes(), behind=b"TAG" + bytes(125)),
        b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", extensible) + chunk(b"data", x.tobytes()),
        riff((x / np.float32(2**15)).tobytes(), bits=32, tag=3),
        (tmp_path / "rf64.wav").read_bytes(),
        (tmp_path / "rifx.wav").read_bytes(),
        flac(tmp_path / "x.flac", x),  # told by its content, whatever its name
    ]
    assert variants[6].startswith(b"RF64")
    named = {f"{NAME.format(i)}.wav": content for i, content in enumerate(variants)}
    found = opened_tree(tmp_path, named)
    assert not found.refused
    rows = [found.row(name) for name in named]
    assert len(set(found.waveforms.digests[rows])) == 1
    assert len(found.warnings) == len(variants) - 1
    pieces = [whole(found.waveforms, row) for row in rows]
    assert all(np.array_equal(piece, pieces[0]) for piece in pieces)


def test_an_odd_number_of_bytes_may_do_without_its_padding(tmp_path):
    eight = (noise(0, SEGMENT + 1) // 256 + 128).astype(np.uint8).tobytes()
    named = {
        NAME.format(0) + ".wav": riff(eight, bits=8),
        NAME.format(1) + ".wav": riff(eight, bits=8)[:-1],
    }
    found = opened_tree(tmp_path, named)
    assert found.usable.all()
    assert len(found.warnings) == 1


def test_what_cannot_be_opened_is_unreadable(tmp_path):
    folder = tree(tmp_path / "data") / "fan/source_test"
    (folder / f"{NAME.format(0)}.wav").symlink_to(tmp_path / "gone.wav")
    (folder / f"{NAME.format(1)}.wav").mkdir()
    os.mkfifo(folder / f"{NAME.format(2)}.wav")
    reasons = [refusal.reason for refusal in opened(tmp_path).refused.values()]
    assert reasons == [
        "unreadable (No such file or directory)",
        "unreadable (not a regular file)",
        "unreadable (not a regular file)",
    ]
    shutil.copy(folder / f"{NAME.format(9000)}.wav", tmp_path / "gone.wav")
    assert len(opened(tmp_path).refused) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable_until_it_is_granted(tmp_path):
    path = tree(tmp_path / "data") / f"fan/source_test/{NAME.format(9000)}.wav"
    path.chmod(0)
    assert opened(tmp_path).refused[path.name].reason == "unreadable (Permission denied)"
    path.chmod(0o600)
    assert not opened(tmp_path).refused


def test_reading_that_fails_half_way_stops_and_is_not_remembered(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    tree(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_recording", fail)
        with pytest.raises(DataError, match=r"cannot read .*: Input"):
            opened(tmp_path)
    assert opened(tmp_path).usable.all()


# Options


def test_a_channel_is_chosen_and_files_without_it_are_refused(tmp_path):
    left, right = noise(1), noise(2)
    named = {
        NAME.format(0) + ".wav": riff(np.stack([left, right], 1).tobytes(), channels=2),
        NAME.format(1) + ".wav": riff(right.tobytes()),
    }
    _, waveforms, usable, _, _ = opened_tree(tmp_path, named, channel=0)
    assert usable.all()
    np.testing.assert_allclose(whole(waveforms, 0), standardise(left), atol=1e-6)
    assert waveforms.digests[0] != waveforms.digests[1]

    _, waveforms, usable, refused, _ = opened(tmp_path, channel=1)
    assert usable.sum() == 1
    np.testing.assert_allclose(whole(waveforms, 0), standardise(right), atol=1e-6)
    refusal = refused[NAME.format(1) + ".wav"]
    assert refusal.reason == "has no channel 1: 1 channel(s), counted from 0"
    assert refusal.option == CHANNEL

    with pytest.raises(DataError, match="channel is -2; it may be"):
        opened(tmp_path, channel=-2)


@pytest.mark.parametrize(("rate", "kind"), [(44100, "wav"), (48000, "flac"), (8000, "wav")])
def test_resampling_keeps_a_tone_and_the_length_in_seconds(tmp_path, rate, kind):
    tone = np.sin(2 * np.pi * 1000 * np.arange(int(4.1 * rate)) / rate)
    path = tree(tmp_path / "data") / f"fan/source_test/{NAME.format(0)}.{kind}"
    soundfile.write(path, 0.5 * tone, rate, subtype="PCM_16")
    assert opened(tmp_path).refused[path.name].option == RESAMPLE
    _, waveforms, usable, _, _ = opened(tmp_path, resample=True)
    assert usable.all()
    assert waveforms.lengths[0] == 65600
    expected = np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(65600) / RATE)
    np.testing.assert_allclose(whole(waveforms, 0)[500:-500], expected[500:-500], atol=2e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold(tmp_path):
    time_ = np.arange(int(4.1 * 48000)) / 48000
    tones = np.sin(2 * np.pi * 1000 * time_) + np.sin(2 * np.pi * 11000 * time_)
    path = tree(tmp_path / "data") / f"fan/source_test/{NAME.format(0)}.wav"
    soundfile.write(path, 0.4 * tones, 48000)
    piece = whole(opened(tmp_path, resample=True)[1], 0)
    spectrum = np.abs(np.fft.rfft(piece[800:-800] * np.hanning(len(piece) - 1600)))
    frequency = np.fft.rfftfreq(len(piece) - 1600, 1 / RATE)
    assert spectrum[frequency > 1100].max() < 1e-3 * spectrum.max()


def test_a_constant_recording_stays_zero_when_resampled(tmp_path):
    path = tree(tmp_path / "data") / f"fan/source_test/{NAME.format(0)}.wav"
    soundfile.write(path, np.full(5 * 44100, 0.25), 44100)
    _, waveforms, _, _, warnings = opened(tmp_path, resample=True)
    assert not whole(waveforms, 0).any()
    assert "constant" in warnings[0]


def test_the_segment_length_is_measured_at_the_rate_asked_for(tmp_path):
    named = {NAME.format(0) + ".wav": riff(noise(0, 32000).tobytes(), rate=8000)}
    options = {"resample": True, "segment_samples": SEGMENT}
    assert opened_tree(tmp_path, named, **options)[2].all()
    options["segment_samples"] += 1
    assert not opened(tmp_path, **options)[2].any()


# Standardised pieces


def test_pieces_are_standardised_by_their_whole_recording(tmp_path):
    loud = noise(3, 80000)
    loud[:40000] //= 50
    offset = (noise(4, 64001) // 1000 + 20000).astype(np.int16)
    named = {
        NAME.format(0) + ".wav": riff(loud.tobytes()),
        NAME.format(1) + ".wav": riff(offset.tobytes()),
    }
    _, waveforms, *_ = opened_tree(tmp_path, named)
    assert list(waveforms.lengths[:2]) == [80000, 64001]
    rows, starts = [1, 0, 0], [1, 0, 12345]
    pieces = waveforms.crop(np.array(rows), np.array(starts), SEGMENT)
    assert (pieces.dtype, pieces.shape) == (np.float32, (3, SEGMENT))
    for piece, row, start in zip(pieces, rows, starts, strict=True):
        expected = standardise((loud, offset)[row])[start : start + SEGMENT]
        np.testing.assert_allclose(piece, expected, rtol=1e-6, atol=1e-6)
    assert abs(waveforms.crop([0], [0], SEGMENT).std() - 1) > 0.1


@pytest.mark.parametrize("kind", ["16 bit", "float"])
def test_a_machine_is_standardised_by_all_samples_of_its_training_recordings(tmp_path, kind):
    constant = np.full(SEGMENT, 900, np.int16)
    parts = [noise(3, 80000) // 9, noise(4) + 500, constant, noise(5)]
    named = {f"{NAME.format(i)}.wav": riff(x.tobytes()) for i, x in enumerate(parts)}
    if kind == "float":
        named[NAME.format(4) + ".wav"] = riff(bytes(3 * SEGMENT), bits=24)
    _, waveforms, *_ = opened_tree(tmp_path, named)
    assert waveforms.samples[0].dtype == (np.int16 if kind == "16 bit" else np.float32)
    machine = waveforms_module.standardise(waveforms, "machine", np.array([0, 1, 2]))
    training = np.concatenate(parts[:3]).astype(np.float64)
    for row in (0, 2, 3):  # one that is not among them, too
        expected = (parts[row] - training.mean()) / training.std()
        np.testing.assert_allclose(whole(machine, row), expected, rtol=1e-5, atol=1e-6)
    silent = waveforms_module.standardise(waveforms, "machine", np.array([2]))
    assert not whole(silent, 2).any()


@pytest.mark.parametrize("kind", ["16 bit", "float"])
def test_without_standardisation_full_scale_is_1(tmp_path, kind):
    named = {NAME.format(0) + ".wav": riff(noise(3).tobytes())}
    if kind == "float":
        named[NAME.format(1) + ".wav"] = riff(bytes(3 * SEGMENT), bits=24)
    _, waveforms, *_ = opened_tree(tmp_path, named)
    plain = waveforms_module.standardise(waveforms, "none", np.array([0]))
    np.testing.assert_array_equal(whole(plain, 0), noise(3) / np.float32(32768))


def test_a_tiny_or_nearly_constant_float_recording_is_standardised_all_the_same(tmp_path):
    tiny = (noise(5) * 1e-42).astype(np.float32)
    nearly = np.full(SEGMENT, 0.1, np.float32)
    nearly[777] = np.nextafter(np.float32(0.1), np.float32(1))
    exactly = np.full(SEGMENT, 0.1, np.float32)
    named = {
        f"{NAME.format(i)}.wav": riff(x.tobytes(), bits=32, tag=3)
        for i, x in enumerate((tiny, nearly, exactly))
    }
    _, waveforms, _, _, warnings = opened_tree(tmp_path, named)
    np.testing.assert_allclose(whole(waveforms, 0), standardise(tiny), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole(waveforms, 1), standardise(nearly), rtol=1e-5, atol=1e-6)
    assert not whole(waveforms, 2).any()
    assert [warning.split(": ")[1][:8] for warning in warnings] == ["constant"]


def test_float_samples_far_beyond_full_scale_are_read_without_a_warning(tmp_path):
    loud = noise(0) * np.float32(1e34)
    found = opened_tree(tmp_path, {NAME.format(0) + ".wav": riff(loud.tobytes(), bits=32, tag=3)})
    np.testing.assert_allclose(whole(found.waveforms, 0), standardise(loud), rtol=1e-5, atol=1e-6)


def test_storing_as_16_bit_or_as_float_gives_the_same_pieces_and_digests(tmp_path):
    name = NAME.format(0) + ".wav"
    _, plain, *_ = opened_tree(tmp_path, {name: riff(noise(0).tobytes())})
    assert plain.samples[0].dtype == np.int16
    other = NAME.format(1) + ".wav"
    _, mixed, *_ = opened_tree(tmp_path, {other: riff(bytes(3 * SEGMENT), bits=24)})
    assert mixed.samples[0].dtype == np.float32
    assert plain.digests[0] == mixed.digests[0]
    assert np.array_equal(whole(plain, 0), whole(mixed, 0))


def test_a_recording_that_16_bit_do_not_hold_makes_its_machine_float_however_late_it_comes(
    tmp_path,
):
    recordings = {f"{NAME.format(i)}.wav": riff(noise(i).tobytes()) for i in range(30)}
    deep = (noise(40).astype("<i4") << 8 | 77).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    last = NAME.format(99) + ".wav"
    found = opened_tree(tmp_path, recordings | {last: riff(deep, bits=24)})
    assert found.waveforms.samples[0].dtype == np.float32
    assert len(caches(tmp_path)) == 1
    for name, expected in ((NAME.format(29) + ".wav", noise(29)), (last, noise(40) * 256.0 + 77)):
        piece = whole(found.waveforms, found.row(name))
        np.testing.assert_allclose(piece, standardise(expected), rtol=1e-6, atol=1e-6)


def test_mean_and_deviation_are_exact_at_full_scale_and_next_to_constant(tmp_path):
    low = np.full(SEGMENT, -32768, np.int16)
    low[7] = -32767
    wide = np.where(np.arange(SEGMENT) % 3, 32767, -32768).astype(np.int16)
    named = {f"{NAME.format(i)}.wav": riff(x.tobytes()) for i, x in enumerate((low, wide))}
    waveforms = opened_tree(tmp_path, named).waveforms
    for row, samples in enumerate((low, wide)):
        assert waveforms.means[row] == pytest.approx(samples.astype(float).mean(), rel=1e-15)
        assert 1 / waveforms.scales[row] == pytest.approx(samples.astype(float).std(), rel=1e-9)


def test_digests_tell_apart_what_differs_below_16_bit_and_agree_over_their_whole_range(tmp_path):
    every = np.arange(-32768, 32768).astype(np.int16)
    full = every / np.float32(2**15)
    finer = full * np.nextafter(np.float32(1), np.float32(2))  # away from 0
    above = np.concatenate([full[:-1], [np.float32(1)]])  # 1.0 is one more than int16 holds
    named = {
        NAME.format(0) + ".wav": riff(every.tobytes()),
        NAME.format(1) + ".wav": riff(full.tobytes(), bits=32, tag=3),
        NAME.format(2) + ".wav": riff(finer.tobytes(), bits=32, tag=3),
        NAME.format(3) + ".wav": riff(above.astype("<f4").tobytes(), bits=32, tag=3),
    }
    digests = opened_tree(tmp_path, named).waveforms.digests[:4]
    assert digests[0] == digests[1]
    assert len({*digests}) == 3


def test_what_is_refused_by_its_header_does_not_make_the_cache_float(tmp_path, hostile):
    named = {name: hostile[name] for name in REFUSED if "0009" not in name}
    _, waveforms, *_ = opened_tree(tmp_path, named)
    assert waveforms.samples[0].dtype == np.int16


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (64000, 1), (1, 64000), (0, 64001)])
def test_a_piece_outside_its_recording_is_an_error(tmp_path, start, length):
    _, waveforms, *_ = opened_tree(tmp_path, {})
    with pytest.raises(ValueError, match=r"of row [01]; it has 64000"):
        waveforms.crop([0, 1], [0, start], length)


def test_a_piece_of_a_refused_recording_is_an_error(tmp_path):
    _, waveforms, usable, _, _ = opened_tree(tmp_path, {NAME.format(0) + ".wav": b""})
    with pytest.raises(ValueError, match="it has 0"):
        waveforms.crop(np.flatnonzero(~usable), [0], 1)


def test_flac_and_wav_trees_are_twins(tmp_path):
    sides = []
    for suffix in ("wav", "flac"):
        for machine in ("fan", "pump"):
            folder = tmp_path / suffix / machine / "train"
            folder.mkdir(parents=True)
            for i in range(3):
                path = folder / f"section_00_source_train_normal_{i:04}_1.5.{suffix}"
                soundfile.write(path, noise(i, SEGMENT + 1000 * i), RATE)
        clips, _ = read_clips(tmp_path / suffix)
        sides.append(open_waveforms(clips, tmp_path / "cache")[0])
    wav, flac_ = sides
    assert np.array_equal(wav.digests, flac_.digests)
    assert np.array_equal(wav.lengths, flac_.lengths)
    rows, starts = np.arange(6), np.zeros(6, int)
    assert np.array_equal(wav.crop(rows, starts, SEGMENT), flac_.crop(rows, starts, SEGMENT))


def test_every_row_gets_its_own_recording_in_any_order_of_the_table(tmp_path):
    for m, machine in enumerate(("b", "a", "a b", "a_b")):
        (tmp_path / f"data/{machine}/train").mkdir(parents=True)
        for i in range(12):
            path = tmp_path / f"data/{machine}/train/section_00_source_train_normal_{i:04}.wav"
            soundfile.write(path, noise(100 * m + i, SEGMENT + 17 * i), RATE)
    clips, _ = read_clips(tmp_path / "data")
    clips = clips.sample(frac=1, random_state=0)
    waveforms, usable, _, _ = open_waveforms(clips, tmp_path / "cache")
    assert usable.all()
    for row, path in enumerate(clips["path"]):
        expected = standardise(soundfile.read(path, dtype="int16")[0])
        np.testing.assert_allclose(whole(waveforms, row), expected, atol=1e-6)


# The cache


def forbid_decoding(patch):
    def fail(*_):
        raise AssertionError("decoded again")

    patch.setattr(module, "read_recording", fail)


def caches(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_second_start_gives_the_same_without_decoding(tmp_path, monkeypatch, hostile):
    first = opened_tree(tmp_path, hostile)
    forbid_decoding(monkeypatch)
    second = opened(tmp_path)
    assert (first.refused, first.warnings) == (second.refused, second.warnings)
    assert np.array_equal(first.usable, second.usable)
    for name in ("lengths", "digests", "means", "scales", "offsets", "machines"):
        assert np.array_equal(getattr(first.waveforms, name), getattr(second.waveforms, name))
    assert isinstance(second.waveforms.samples[0], np.memmap)
    row = np.flatnonzero(first.usable)[-1]
    assert np.array_equal(whole(first.waveforms, row), whole(second.waveforms, row))


def test_the_cache_holds_no_pickle(tmp_path):
    opened_tree(tmp_path, {})
    (directory,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in directory.iterdir()) == ["index.npz", "samples.npy"]
    with np.load(directory / "index.npz", allow_pickle=False) as index:
        assert all(index[name].dtype.kind in "ifU" for name in index.files)
    np.load(directory / "samples.npy", allow_pickle=False)


@pytest.mark.parametrize(
    "options", [{"rate": 8000}, {"channel": 0}, {"resample": True}, {"segment_samples": 32000}]
)
def test_every_option_has_a_cache_of_its_own(tmp_path, options):
    opened_tree(tmp_path, {})
    opened(tmp_path, **options)
    assert len(caches(tmp_path)) == 2


@pytest.mark.parametrize("change", ["touch", "content", "add", "remove", "rename"])
def test_a_changed_file_is_decoded_again(tmp_path, change):
    opened_tree(tmp_path, {})
    folder = tmp_path / "data/fan/source_test"
    path = folder / f"{NAME.format(9000)}.wav"
    other = folder / f"{NAME.format(1)}.wav"
    if change == "touch":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "content":
        times = path.stat()
        soundfile.write(path, noise(77, SEGMENT + 1), RATE)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "add":
        soundfile.write(other, noise(77), RATE)
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(other)
    clips, waveforms, *_ = opened(tmp_path)
    assert len(caches(tmp_path)) == 2
    for row, file in enumerate(clips["path"]):
        expected = standardise(soundfile.read(file, dtype="int16")[0])
        np.testing.assert_allclose(whole(waveforms, row), expected, atol=1e-6)


def test_a_file_added_to_one_machine_leaves_the_cache_of_another(tmp_path, monkeypatch):
    opened_tree(tmp_path, {})
    shutil.copytree(tmp_path / "data/fan", tmp_path / "data/pump")
    decoded = []

    def record(path, *args, original=module.read_recording):
        decoded.append(path)
        return original(path, *args)

    monkeypatch.setattr(module, "read_recording", record)
    opened(tmp_path)
    assert len(decoded) == 3
    assert all("/pump/" in path for path in decoded)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_start_leaves_no_cache_behind(tmp_path, monkeypatch, stop):
    recordings = {f"{NAME.format(i)}.wav": riff(noise(i).tobytes()) for i in range(30)}
    tree(tmp_path / "data", **recordings)

    def interrupt(path, *args, original=module.read_recording):
        if NAME.format(25) in path:
            raise stop
        return original(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_recording", interrupt)
        with pytest.raises(stop):
            opened(tmp_path)
    assert caches(tmp_path) == []
    assert opened(tmp_path).usable.all()


def test_a_killed_start_leaves_only_a_temporary_directory_that_is_removed_later(tmp_path):
    tree(tmp_path / "data")
    script = (
        "import os, signal, sys\n"
        "from dns_jax.data import clips, waveforms\n"
        "waveforms.np.savez = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "table, _ = clips.read_clips(sys.argv[1] + '/data')\n"
        "waveforms.open_waveforms(table, sys.argv[1] + '/cache')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = caches(tmp_path)
    assert left.startswith(".fan-")
    assert opened(tmp_path).usable.all()
    assert len(caches(tmp_path)) == 2  # it might still be written to

    hours_ago = time.time() - 7200
    for path in (*(tmp_path / "cache" / left).iterdir(), tmp_path / "cache" / left):
        os.utime(path, (hours_ago, hours_ago))
    os.utime(tmp_path / f"data/fan/source_test/{NAME.format(9000)}.wav")
    opened(tmp_path)
    assert left not in caches(tmp_path)
    assert not any(name.startswith(".") for name in caches(tmp_path))


def test_two_starts_at_once_end_with_one_cache(tmp_path, monkeypatch):
    tree(tmp_path / "data")
    original, faster = module.write_file, []

    def write(path, content):
        original(path, content)
        if path.name == "index.npz" and not faster:
            faster.append("started")
            faster.append(opened(tmp_path).waveforms)

    monkeypatch.setattr(module, "write_file", write)
    slower = opened(tmp_path).waveforms
    assert np.array_equal(slower.digests, faster[1].digests)
    assert np.array_equal(whole(slower, 1), whole(faster[1], 1))
    (name,) = caches(tmp_path)
    assert name.startswith("fan-")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    tree(tmp_path / "data")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(DataError, match="cannot write the cache") as error:
            opened(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(error.value)
    assert "\n" not in str(error.value)
    assert caches(tmp_path) == []


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path):
    tree(tmp_path / "data")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cannot write the cache"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "short samples",
        "other samples",
        "no samples",
        "half an index",
        "no index",
        "other index",
        "fewer clips",
        "noise",
    ],
)
def test_a_damaged_cache_is_noticed_and_rebuilt_with_a_warning(tmp_path, damage):
    before = whole(opened_tree(tmp_path, {}).waveforms, 0)
    (directory,) = (tmp_path / "cache").iterdir()
    samples, index = directory / "samples.npy", directory / "index.npz"
    if damage == "short samples":
        os.truncate(samples, samples.stat().st_size - 2)
    elif damage == "other samples":
        np.save(samples, noise(0))
    elif damage == "no samples":
        samples.unlink()
    elif damage == "half an index":
        os.truncate(index, index.stat().st_size // 2)
    elif damage == "no index":
        index.unlink()
    elif damage == "other index":
        np.savez(index, length=np.array([1, 2, 3]))
    elif damage == "fewer clips":
        with np.load(index) as file:
            columns = {name: file[name][:2] for name in file.files}
        np.savez(index, **columns)
        np.save(samples, np.load(samples)[: columns["length"].sum()])
    elif damage == "noise":
        index.write_bytes(noise(0).tobytes())
    _, after, usable, _, warnings = opened(tmp_path)
    assert usable.all()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{directory}: damaged cache, rebuilt (")
    assert np.array_equal(whole(after, 0), before)
    assert caches(tmp_path) == [directory.name]
    assert opened(tmp_path).warnings == []


def test_machine_names_make_safe_directory_names(tmp_path):
    names = ["Drehbank Nr. 3", "a*b?", "a:b", "x..", "泵", "-", "m" * 200]
    for name in names:
        shutil.copytree(tree(tmp_path / "one") / "fan", tmp_path / "data" / name)
    assert opened(tmp_path).usable.all()
    assert len(caches(tmp_path)) == len(names)
    for name in caches(tmp_path):
        assert re.fullmatch(r"\w{1,80}-[0-9a-f]{20}", name, re.ASCII)


def test_a_table_of_refused_files_only_opens_and_holds_nothing(tmp_path):
    folder = tmp_path / "data/fan/train"
    folder.mkdir(parents=True)
    (folder / "section_00_source_train_normal_0000.wav").write_bytes(b"")
    for _ in range(2):
        _, waveforms, usable, refused, _ = opened(tmp_path)
        assert (usable.tolist(), waveforms.lengths.tolist()) == ([False], [0])
        assert len(refused) == 1


def test_an_empty_table_opens(tmp_path):
    (tmp_path / "data/fan/train").mkdir(parents=True)
    (tmp_path / "data/fan/train/x.wav").touch()
    _, waveforms, usable, refused, _ = opened(tmp_path)
    assert (len(usable), len(waveforms.lengths), len(refused)) == (0, 0, 1)


# Warnings


def test_the_same_content_is_said_within_a_machine_only_and_across_formats(tmp_path):
    named = {
        NAME.format(0) + ".wav": riff(noise(5).tobytes()),
        NAME.format(1) + ".flac": flac(tmp_path / "x.flac", noise(5)),
        NAME.format(2) + ".wav": riff(bytes(2 * SEGMENT)),
        NAME.format(3) + ".wav": riff(bytes(2 * SEGMENT)),
    }
    tree(tmp_path / "data", **named)
    shutil.copytree(tmp_path / "data/fan", tmp_path / "data/pump")
    warnings = opened(tmp_path).warnings
    for machine, lines in (("fan", warnings[:3]), ("pump", warnings[3:])):
        folder = f"{tmp_path}/data/{machine}/source_test/"
        assert lines == [
            f"{folder}{NAME.format(1)}.flac: {TWIN}{folder}{NAME.format(0)}.wav",
            f"{folder}{NAME.format(2)}.wav: silent (all samples are 0)",
            f"{folder}{NAME.format(3)}.wav: silent (all samples are 0)",
        ]


@pytest.mark.parametrize(
    ("gain", "bits", "clipped"),
    [(0.9, 16, False), (1.0, 16, False), (1.5, 16, True), (1.5, 8, True)],
)
def test_clipped_means_flat_at_full_scale(tmp_path, gain, bits, clipped):
    """A loud tone that just reaches full scale is whole; one that is cut off there is not."""
    tone = np.clip(gain * np.sin(2 * np.pi * 440 * np.arange(SEGMENT) / RATE), -1, 1)
    path = tree(tmp_path / "data") / f"fan/source_test/{NAME.format(0)}.wav"
    soundfile.write(path, tone, RATE, subtype={16: "PCM_16", 8: "PCM_U8"}[bits])
    assert [": clipped (" in warning for warning in opened(tmp_path).warnings] == [True] * clipped


def test_samples_at_the_negative_end_are_at_full_scale(tmp_path):
    square = np.where(np.arange(SEGMENT) % 100 < 50, -32768, 1000).astype(np.int16)
    named = {NAME.format(0) + ".wav": riff(square.tobytes())}
    (warning,) = opened_tree(tmp_path, named).warnings
    assert "clipped (49.0% of the samples" in warning


# Real recordings


def test_the_factory_is_read_whole(tmp_path, realdata):
    shutil.copytree(realdata / "factory/bldc", tmp_path / "data/bldc")
    clips, waveforms, usable, refused, warnings = opened(tmp_path)
    assert usable.all()
    assert not refused
    assert not warnings
    assert set(waveforms.lengths) == {160000}
    assert waveforms.samples[0].dtype == np.int16
    for row in (0, 11, 21):
        expected = standardise(soundfile.read(clips["path"].iloc[row])[0])
        np.testing.assert_allclose(whole(waveforms, row), expected, atol=2e-6)
