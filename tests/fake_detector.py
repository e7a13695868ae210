"""A detector without networks for tests of the monitor, with the real store of F.

Run as a program it is the monitor with this detector; `DELAY` is how long a score takes (s). With
`kill_often KILLS WATCH OUT SEED` it runs the monitor in processes that it kills.
"""

import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from dns_jax.data.headers import NeedsFloat, Wanted, read_recording
from dns_jax.data.names import parse_name
from dns_jax.data.refusals import DataError
from dns_jax.data.years import YEARS
from dns_jax.operation.judgement import Held
from dns_jax.operation.recording import Recording
from dns_jax.operation.store import Store

RATE = 4000  # Hz
WANTED = Wanted(RATE, 400, False, -1)
THRESHOLD = 0.1


class Judgement(NamedTuple):
    clip: str
    machine: str
    section: int
    domain: str
    seconds: float
    score: float
    threshold: float
    anomalous: bool
    digest: str

    def to_json(self):
        return self._asdict()


class FakeDetector:
    """The score of a recording is the standard deviation of its samples."""

    def __init__(self, store, machines):
        self.machines = machines
        self._store = Store(store, "fake", 2)
        self.notice = self._store.notice
        self._held = {}
        for id_, recording in self._store.read():
            self._remember(id_, recording, float(recording.scores[0]))

    @classmethod
    def load(cls, workdir, *, machine=None, seed=None, store=None, begin="test"):
        machines = {"fan": (0, 1), "pump": (0,)}
        return cls(Path(store), machines if machine is None else {machine: machines[machine]})

    def score(self, path, *, machine, section=None, domain=None):
        time.sleep(float(os.environ.get("DELAY", 0)))
        try:
            recording = read_recording(path, WANTED, np.dtype(np.int16))
        except NeedsFloat:
            recording = read_recording(path, WANTED, np.dtype(np.float32))
        said = parse_name(os.path.basename(path), YEARS[2021])
        section, domain = said.get("section", section), said.get("domain") or domain
        if section not in self.machines[machine]:
            raise DataError(f"{os.path.basename(path)} is of section {section}")
        samples = recording.samples
        score = float(np.std(samples / 32768 if samples.dtype == np.int16 else samples))
        return Judgement(
            clip=os.path.basename(path),
            machine=machine,
            section=section,
            domain=domain or "source",
            seconds=len(samples) / RATE,
            score=score,
            threshold=THRESHOLD,
            anomalous=score > THRESHOLD,
            digest=recording.digest,
        )

    def append(self, judgement, *, path, arrived, result):
        said = judgement._asdict()
        names = ("machine", "section", "domain", "clip", "seconds", "digest")
        recording = Recording(
            **{name: said[name] for name in names},
            path=path,
            arrived=arrived,
            scores=np.float32([judgement.score]),
            features=np.zeros((1, 2), np.float32),
            result=result,
        )
        id_, new = self._store.add(recording)
        if new:
            self._remember(id_, recording, judgement.score)
        return id_ if new else None

    def _remember(self, id_, r, score):
        self._held[id_] = Held(
            id_, r.clip, r.machine, r.section, r.domain, r.path, r.arrived, score, THRESHOLD, 0
        )

    def recordings(self, machine, pause=lambda: None):
        return [held for held in self._held.values() if held.machine == machine]

    def results(self):
        return [(id_, recording.result) for id_, recording in self._store.read()]

    def evict(self, *, keep=None, older_than=None):
        gone = list(self._held)[:-keep] if keep else []
        self._store.remove(gone)
        for id_ in gone:
            del self._held[id_]
        return gone

    def close(self):
        self._store.close()


def make_sound(number, seconds=0.2, loudness=0.03):
    """Noise that no other number has, i16[samples]."""
    rng = np.random.default_rng(number)
    return (32768 * rng.normal(0, loudness, round(seconds * RATE))).clip(-32768, 32767).astype("i2")


def write_sound(path, number, **how):
    """Write such a recording; its name has a section and a domain if the path names none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "FLAC" if path.suffix.lower() == ".flac" else "WAV"
    with open(path, "wb") as file:
        soundfile.write(file, make_sound(number, **how), RATE, subtype="PCM_16", format=kind)
    return path


def install():
    """Take the place of the detector in this process."""
    module = types.ModuleType("dns_jax.operation.detector")
    module.Detector = FakeDetector
    sys.modules["dns_jax.operation.detector"] = module


def kill_often(kills, watch, out, seed):
    """Run the monitor again and again, and kill each but the last at a random moment.

    Before every start recordings are put into the folder: a new one, one under two names, one of no
    known section, and half of one, of which the other half comes with the next start.
    """
    from dns_jax.operation import monitor

    rng = np.random.default_rng(seed)
    argv = [f"--workdir={out}", f"--watch={watch}", f"--out={out}", "--settle=0", "--no-page"]
    half = None
    for number in range(kills + 1):
        name = f"fan/section_0{number % 2}_source_{number:04d}"
        write_sound(watch / f"{name}.wav", 4 * number)
        for copy in "ab":
            write_sound(watch / f"{name}_{copy}.flac", 4 * number + 1)
        write_sound(watch / f"fan/section_07_{number:04d}.wav", 4 * number + 2)
        if half:
            half[0].write_bytes(half[1])
        whole = write_sound(watch / f"{name}_half.wav", 4 * number + 3)
        if number < kills:
            half = whole, whole.read_bytes()
            whole.write_bytes(half[1][: len(half[1]) // 2])
        child = os.fork()
        if not child:
            status = 1
            try:
                monitor.main(argv + ["--once"] * (number == kills))
                status = 0
            finally:
                os._exit(status)
        if number < kills:
            time.sleep(rng.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (0 if number == kills else -signal.SIGKILL), status


if __name__ == "__main__":
    install()
    if sys.argv[1] == "kill_often":
        kill_often(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
    else:
        from dns_jax.operation import monitor

        monitor.main(sys.argv[1:])
