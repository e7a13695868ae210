"""The embedded factory: synthesised machine sounds in the layout of DCASE 2021 Task 2.

The pipeline (section IV-A on) runs on it with nothing downloaded. It is synthetic and untuned: its
levels are guesses at what is physically plausible, made without running any detector, and figures
obtained on it say nothing about real machines.

A machine is a shaft at a wandering speed with some pulses per turn (blades, strokes, rollers). A
pulse pushes the casing, a sum of second-order resonances, and lets out a burst of flow noise. A
section is one individual, a domain an operating point in one of two halls.
"""

import json
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
from scipy.signal import lfilter

FORMAT = 1  # raised whenever the same parameters would give other files
RATE, SAMPLES = 16_000, 160_000  # Hz; 10 s
SPEEDS = {"source": (0.95, 1.0, 1.05), "target": (0.82, 1.18)}  # set points, of the rated speed
SNR = {"source": (6.0, 12.0), "target": (0.0, 6.0)}  # dB, the healthy machine over the hall
SEVERITY = (-20.0, -3.0)  # dB beside the healthy machine (see `synthesise`), faint to plain
LEVEL, PEAK = (-46.0, -36.0), 0.45  # of full scale: RMS in dB, whatever a clip holds; maximum

# Rated speed and number of pulses per turn are drawn between the pairs; width (standard deviation)
# of a pulse and decay of the noise behind it are in intervals between pulses; levels are amplitudes
# before the casing: line at 1x, pulse, burst of noise, steady noise, hum.
Machine = namedtuple("Machine", "sections rpm pulses width decay levels faults")
MACHINES = {
    "blower": Machine(4, (1100, 2900), (5, 9), 0.12, 0.3, (0.1, 0.5, 0.6, 0.7, 0.03),
                      ("imbalance", "bearing", "leakage", "missing_blade")),
    "compressor": Machine(1, (500, 950), (1, 3), 0.02, 0.15, (0.1, 3.0, 1.5, 0.3, 0.05),
                          ("bearing", "leakage", "missing_stroke")),
    "conveyor": Machine(1, (60, 150), (3, 6), 0.02, 0.5, (0.1, 1.5, 0.5, 0.6, 0.05),
                        ("bearing", "squeal")),
    "press": Machine(1, (45, 95), (1, 1), 0.003, 0.06, (0.05, 8.0, 3.0, 0.3, 0.08),
                     ("leakage", "missing_stroke")),
}  # fmt: skip

_TIME, _FREQUENCY = np.arange(SAMPLES) / RATE, np.fft.rfftfreq(SAMPLES, 1 / RATE)
_OCTAVE = np.log2(np.maximum(_FREQUENCY, 1) / 1000)  # above 1 kHz
_PHASE = np.linspace(-0.5, 0.5, 2**14, endpoint=False)  # about a pulse, in intervals


def _spawn(count, *key):
    words = [int.from_bytes(k.encode(), "little") if isinstance(k, str) else k for k in key]
    children = np.random.SeedSequence(words).spawn(count)
    return [np.random.Generator(np.random.PCG64(child)) for child in children]


def _rms(spectrum):
    return np.sqrt(np.mean(np.abs(spectrum[1:]) ** 2) / SAMPLES)


def _draw_walk(rng, memory):
    """Draw a random walk of unit variance that forgets within `memory` s: f64[501], 50 a second."""
    keep = np.exp(-1 / (50 * memory))
    steps = np.sqrt(1 - keep**2) * rng.standard_normal(501)
    return lfilter([1.0], [1.0, -keep], steps, zi=[keep * rng.standard_normal()])[0]


def _spread(walk):
    return np.interp(_TIME, np.arange(501) / 50, walk)


def _draw_white(rng):
    pairs = rng.standard_normal(SAMPLES + 2, dtype=np.float32)
    return np.sqrt(SAMPLES / 2) * pairs.view(np.complex64)


def _draw_resonance(rng, frequency, quality):
    ratio = _FREQUENCY / np.exp(rng.uniform(*np.log(frequency)))
    damping = 1j * ratio / rng.uniform(*quality)
    return damping / (1 - ratio**2 + damping)


@lru_cache(maxsize=8)
def _draw_spectra(machine, section, domain, seed):
    """Draw casing (response to a force), housing (that of a bearing) and hall (noise of RMS 1)."""
    (rng,), (hall_rng,) = _spawn(1, seed, machine, section, "spectra"), _spawn(1, seed, domain)
    housing = _draw_resonance(rng, (2500, 6000), (20, 40))
    casing = 0.3 + 0.5 * housing
    for _ in range(4):
        casing += rng.normal() * _draw_resonance(rng, (150, 2500), (4, 15))
    casing /= np.sqrt(1 + (_FREQUENCY / 1500) ** 2)  # walls radiate less up there
    hall = 10 ** (-hall_rng.uniform(2, 5) * np.maximum(_OCTAVE, -4) / 20)
    for _ in range(5):  # distant machines
        band = np.abs(_draw_resonance(hall_rng, (80, 3000), (8, 30)))
        hall *= 1 + 10 ** (hall_rng.uniform(5, 15) / 20) * band
    return casing, housing, hall / _rms(hall) / np.sqrt(SAMPLES)


def synthesise(machine, section, domain, clip, *, seed=0, fault=None, severity=None):
    """Record one clip of the individual that (seed, machine, section) determine.

    Args:
      machine: one of `MACHINES`.
      section: number of the individual.
      domain: "source" or "target".
      clip: strings and whole numbers that tell the clip from others. A fault draws from a stream of
        its own: machine, hall and recording are the same without it.
      seed: of the factory.
      fault: one of the machine's `faults`, or None.
      severity: dB, or None to draw it from `SEVERITY`. Of a fault that sounds: its RMS over the
        healthy machine's. Of missing ones: the share lost, of one blade's force or of all strokes.

    Returns:
      i16[160000] at 16 kHz, and the set speed in turns per minute.
    """
    kind = MACHINES[machine]
    if fault not in (None, *kind.faults):
        raise ValueError(f"fault must be one of {kind.faults} or None, got {fault!r}")
    (own,) = _spawn(1, seed, machine, section)
    rated, bearing = own.uniform(*kind.rpm), own.uniform(3.1, 5.4)  # impacts per turn
    unevenness = own.uniform(0.8, 1.2, own.integers(*kind.pulses, endpoint=True))
    decibels = own.normal(0, 3, 5) + (own.normal(0, 2, 5) if domain == "target" else 0)
    shaft, push, burst, steady, hum = np.array(kind.levels) * 10 ** (decibels / 20)
    casing, housing, hall = _draw_spectra(machine, section, domain, seed)

    rng, room, chance = _spawn(3, seed, machine, section, domain, *clip)
    rpm = rated * rng.choice(SPEEDS[domain])
    speed = rpm / 60 * (1 + 0.006 * _draw_walk(rng, 1.0))  # turns per second
    turns = _spread(np.cumsum(speed) / 50 + rng.uniform())
    ticks = (turns * (len(unevenness) * len(_PHASE))).astype(np.int64)
    number, phase = ticks >> 14, ticks & (2**14 - 1)
    strength = np.resize(unevenness, number[-1] + 1) * rng.normal(1, 0.08, number[-1] + 1)
    if machine == "press":  # after three to six strokes one or two are left out
        runs = [[1] * rng.integers(3, 7) + [0] * rng.integers(1, 3) for _ in strength]
        strength *= np.concatenate(runs)[rng.integers(8) :][: len(strength)]
    contact = push * np.exp((np.cos(2 * np.pi * _PHASE) - 1) / (2 * np.pi * kind.width) ** 2)
    release = (burst * np.exp(-np.maximum(_PHASE, 0) / kind.decay) * (_PHASE >= 0))[phase]
    noise = rng.standard_normal(SAMPLES, dtype=np.float32)
    stroke = contact[phase] + release * noise
    once = np.cos(2 * np.pi * turns)
    force = strength[number] * stroke + steady * noise + shaft * once
    sound = casing * np.fft.rfft(force)  # circular: the machine was already running
    order = np.arange(1, 5)  # of 100 Hz: a motor on 50 Hz, weaker upwards
    sound[1000 * order] += hum / order * SAMPLES / 2 * np.exp(2j * np.pi * rng.uniform(size=4))
    healthy = _rms(sound)

    share = 10 ** ((chance.uniform(*SEVERITY) if severity is None else severity) / 20)
    lost = np.zeros(len(strength))
    if fault == "imbalance":  # a line at 1x, and everything else modulated by it
        added = casing * np.fft.rfft(once * (force + np.std(force)))
    elif fault == "bearing":  # impacts that slip by 2 % of their interval, strongest under load
        passed = np.floor(turns * bearing + 0.02 * _spread(_draw_walk(chance, 0.1)))
        impacts = np.diff(passed, prepend=passed[0]) > 0
        added = housing * np.fft.rfft(impacts * (1 + 0.5 * once))
    elif fault == "leakage":  # follows the pressure: steady or pulsating
        distance = (_OCTAVE - np.log2(chance.uniform(3, 6.5))) / chance.uniform(0.2, 0.5)
        hiss = np.fft.irfft(np.exp(-(distance**2)) * _draw_white(chance))
        added = np.fft.rfft(hiss * (strength[number] * release + steady))
    elif fault == "squeal":  # stick and slip, now and then
        pitch = chance.uniform(900, 1900) * (1 + 0.03 * _draw_walk(chance, 0.5))
        angle = 2 * np.pi * _spread(np.cumsum(pitch) / 50)
        tone = sum(np.cos(harmonic * angle) / harmonic for harmonic in (1, 2, 3, 4))
        added = np.fft.rfft(tone * _spread(np.clip(4 * _draw_walk(chance, 0.3), 0, 1)))
    elif fault == "missing_blade":  # the same one every turn; the wheel is out of balance without
        lost[chance.integers(len(unevenness)) :: len(unevenness)] = share
        sound += casing * np.fft.rfft(share * push * once)
    elif fault == "missing_stroke":
        present = np.flatnonzero(strength[number[0] + 1 : -1]) + number[0] + 1
        lost[chance.choice(present, max(1, round(share * len(present))), replace=False)] = 1
    if np.any(lost):
        sound -= casing * np.fft.rfft((lost * strength)[number] * stroke)
    elif fault:
        sound += share * healthy / _rms(added) * added

    snr, tilt = room.uniform(*SNR[domain]), room.uniform(-1.5, 0.5)  # dB; dB an octave
    sound += 10 ** (-snr / 20) * healthy * hall * _draw_white(room)
    sound[0] = 0
    wave = np.fft.irfft(sound * np.exp(tilt * np.log(10) / 20 * _OCTAVE))  # how near, and the angle
    wave += room.uniform(0.1, 0.4) * np.roll(wave, room.integers(20, 100))  # off the floor
    gain = min(10 ** (room.uniform(*LEVEL) / 20) / np.std(wave), PEAK / np.max(np.abs(wave)))
    return np.rint(32767 * gain * wave).astype(np.int16), rpm


def write_factory(directory, *, seed=0, train=24, target_train=3, test=8):
    """Write the factory, unless it is there already.

    Blower has sections 00 to 03, the other machines section 00 alone and half the test clips.
    Files: `<machine>/{train,source_test,target_test}/section_SS_<domain>_<split>_<label>_NNNN.wav`,
    16 bit; in training `_rpm_<set speed>` follows. Anomalies take turns at the machine's faults.

    Args:
      directory: filled under a temporary name beside it, then renamed.
      seed: equal seeds give equal files.
      train: source clips to train with, of each section.
      target_train: target clips to train with, of each section.
      test: normal clips, and as many anomalous ones, of each section and domain.

    Raises:
      ValueError: a number is not whole or below 0, or `directory` holds anything else.
    """
    directory = Path(directory).absolute()
    wanted = {"seed": seed, "train": train, "target_train": target_train, "test": test}
    for name, value in wanted.items():
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    clips = []
    for machine, kind in MACHINES.items():
        tests = test if kind.sections > 1 else (test + 1) // 2
        for section, domain in product(range(kind.sections), SPEEDS):
            trains = train if domain == "source" else target_train
            counts = {"train_normal": trains, "test_normal": tests, "test_anomaly": tests}
            clips += [(machine, section, domain, w, i) for w in counts for i in range(counts[w])]
    wanted |= {"clips": len(clips), "format": FORMAT}
    if _holds(directory, wanted):
        return

    def write(part, machine, section, domain, what, number):
        faults = MACHINES[machine].faults if what == "test_anomaly" else (None,)
        fault = faults[number % len(faults)]
        samples, rpm = synthesise(machine, section, domain, (what, number), seed=seed, fault=fault)
        train = what == "train_normal"
        folder, end = ("train", f"_rpm_{rpm:.0f}") if train else (f"{domain}_test", "")
        name = f"section_{section:02d}_{domain}_{what}_{number:04d}{end}.wav"
        (part / machine / folder).mkdir(parents=True, exist_ok=True)
        soundfile.write(part / machine / folder / name, samples, RATE, subtype="PCM_16")

    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
        (part := Path(temporary) / "factory").mkdir()
        with ThreadPoolExecutor(2) as pool:  # more would wait for the interpreter
            list(pool.map(lambda clip: write(part, *clip), clips))
        (part / "factory.json").write_text(json.dumps(wanted))
        try:
            part.replace(directory)
        except OSError:
            if not _holds(directory, wanted):  # another process may have been first
                raise


def _holds(directory, wanted):
    """Tell whether this factory is there, complete; raise if anything else is."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    marker, there = directory / "factory.json", len(list(directory.glob("*/*/*.wav")))
    found = marker.read_text(errors="replace") if marker.is_file() else "no factory"
    if (found, there) != (json.dumps(wanted), wanted["clips"]):
        asked = f"not {json.dumps(wanted)}: delete it, or choose another directory"
        raise ValueError(f"{directory} holds {found} ({there} clips), {asked}")
    return True
