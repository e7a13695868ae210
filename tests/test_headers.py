"""Mutated headers: each is a recording or refused with a reason, soon and in little memory."""

import io
import resource
import signal

import numpy as np
import pytest
import soundfile

from dns_jax.data.headers import NeedsFloat, Unusable, Wanted, read_recording

RATE, SAMPLES = 16000, 1600
WANTED = Wanted(RATE, SAMPLES // 2, True, 0)
KINDS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16")]
# What the fields of a header count: lengths, channels, rates, bytes.
NUMBERS = [
    0,
    1,
    2,
    3,
    15,
    16,
    0x7FFF,
    0x8000,
    0xFFFF,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
]
WORDS = [b"RIFF", b"RF64", b"WAVE", b"fmt ", b"data", b"ds64", b"LIST", b"fact", b"JUNK", b"fLaC"]


def write_sounds():
    rng = np.random.default_rng(0)
    for container, kind in KINDS:
        file = io.BytesIO()
        soundfile.write(file, rng.normal(0, 0.1, SAMPLES), RATE, kind, format=container)
        yield file.getvalue()


def mutate(data, rng):
    """Change, insert, remove or cut at one to four places, most of them in the header."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, 120 if rng.random() < 0.9 else max(1, len(data))))
        way = rng.integers(0, 6)
        if way == 0:
            data[place : place + 1] = rng.bytes(1)
        elif way == 1:
            width = int(rng.choice([2, 4, 8]))
            number = int(rng.choice(NUMBERS)) % 2 ** (8 * width)
            data[place : place + width] = number.to_bytes(width, "little")
        elif way == 2:
            data[place : place + 4] = WORDS[rng.integers(len(WORDS))]
        elif way == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 40)))
        elif way == 4:
            del data[place : place + int(rng.integers(1, 40))]
        else:
            del data[max(place, int(rng.integers(0, len(data) + 1))) :]
    return bytes(data)


def give_up(*_):
    raise TimeoutError("a header took longer than five seconds")


def read_mutated(path, count):
    """Return how many are recordings, and how many are refused."""
    rng, sounds = np.random.default_rng(0), list(write_sounds())
    taken = refused = 0
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        for number in range(count):
            path.write_bytes(mutate(sounds[number % len(sounds)], rng))
            signal.alarm(5)
            try:
                recording = read_recording(path, WANTED, np.dtype(np.float32))
            except (Unusable, NeedsFloat) as error:
                reason = str(error)
                assert "\n" not in reason
                assert len(reason) < 300
                refused += 1
            else:
                assert np.isfinite(recording.samples).all()
                assert len(recording.samples) <= 200 * SAMPLES
                taken += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return taken, refused


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_mutated_headers_are_recordings_or_refused_and_take_little_memory(tmp_path, count):
    soundfile.write(tmp_path / "slow.wav", np.sin(np.arange(SAMPLES)), RATE // 2)
    read_recording(tmp_path / "slow.wav", WANTED, np.dtype(np.float32))  # imports what resamples
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken, refused = read_mutated(tmp_path / "a.wav", count)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{taken} recordings, {refused} refused, {grown:.0f} MiB more")
    assert taken + refused == count
    assert min(taken, refused) > count / 50
    assert grown < 200
