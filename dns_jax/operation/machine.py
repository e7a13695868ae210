"""One machine of a finished run in operation: its recordings, and the way through its networks.

A recording is checked, standardised and cut into segments as in the run, scored by f_G (a_G) and
placed by f_D, with the same results.
"""

import os
import stat
from contextlib import suppress

import jax
import numpy as np
import soundfile

from dns_jax.data.headers import (
    NeedsFloat,
    Recording,
    Unusable,
    Wanted,
    check_container,
    check_length,
    read_recording,
    take_samples,
)
from dns_jax.data.names import find_name_fault, parse_name
from dns_jax.data.refusals import DataError, printable
from dns_jax.data.years import YEARS
from dns_jax.operation.trained import Trained
from dns_jax.scoring import cut_segments, split_networks

BATCH = 8  # segments at a time: a recording of 10 s has seven
LONGEST = 3600  # s; 11 MiB a minute while it is standardised


def name_tested(clip: str) -> str:
    """Name a test recording of the run, whose samples are not at hand, as F knows it."""
    return f"test {clip}"


class Machine:
    """The networks of one machine, its sections, and what its recordings have to be.

    Args:
      trained: of `load_trained`.
    """

    def __init__(self, trained: Trained):
        data = trained.config.data
        self.trained = trained
        self.year = YEARS[data.year]
        self.samples = round(data.rate * data.segment_seconds)
        self.hop = round(data.rate * data.hop_seconds)
        self.wanted = Wanted(data.rate, self.samples, data.resample, data.channel)
        train = trained.segments.select(trained.segments.split == "train")
        self.sections = tuple(np.unique(train.section).tolist())
        self.training = {
            section: np.unique(train.clip[train.section == section]).tolist()
            for section in self.sections
        }
        tested = trained.segments.select(trained.segments.split == "test")
        clips, first = np.unique(tested.clip, return_inverse=True)
        means = np.bincount(first, tested.ae_score) / np.bincount(first)
        self.tested: dict[str, list[tuple[str, float]]] = {}  # by the last part of the name
        for clip, mean in zip(clips.tolist(), means.tolist(), strict=True):
            self.tested.setdefault(os.path.basename(clip), []).append((clip, mean))
        score, self.state = split_networks(trained.autoencoder, trained.serial_oe)
        self.score = jax.jit(score)
        # By section; found when K and the number of changes of F were these.
        self.thresholds: dict[int, float] = {}
        self.fitted_k, self.fitted_at = None, 0

    def read(self, path: str | os.PathLike) -> Recording:
        """Read a recording.

        Raises:
          Unusable: it cannot be used, and why.
          OSError: the file cannot be read.
        """
        path = os.fspath(path)
        if fault := find_name_fault(path):
            raise Unusable(fault)
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its writer
            raise Unusable("not a regular file")
        check_container(path)
        with suppress(soundfile.LibsndfileError):  # which reading explains
            if (seconds := soundfile.info(path).duration) > LONGEST:
                raise Unusable(
                    f"{seconds:.0f} s long; more than {LONGEST} s are not held in memory: cut it"
                )
        try:
            return read_recording(path, self.wanted, np.dtype(np.int16))
        except NeedsFloat:
            return read_recording(path, self.wanted, np.dtype(np.float32))

    def take(self, samples: np.ndarray, rate: int) -> Recording:
        """Take samples for a recording.

        Args:
          samples: i16[samples], or real[samples] in units of full scale.
          rate: Hz.

        Raises:
          Unusable: they cannot be used, and why.
          TypeError, ValueError: arguments of another type or shape.
        """
        if type(rate) is not int or rate < 1:
            raise TypeError(f"sample_rate must be a whole number of Hz; it was {rate!r}")
        if samples.ndim != 1:
            raise ValueError(f"samples must be [samples], mono; their shape was {samples.shape}")
        if samples.dtype != np.int16 and samples.dtype.kind != "f":
            raise TypeError(f"samples must be int16 or of a floating type; it was {samples.dtype}")
        check_length(len(samples), rate, self.wanted)
        if samples.dtype != np.int16:
            samples = samples.astype(np.float32)
        elif rate != self.wanted.rate:
            samples = samples / np.float32(2**15)
        return take_samples(samples, rate, self.wanted.rate)

    def tell(self, clip: str, section: int | None, domain: str | None) -> tuple[int, str]:
        """Return section and domain: as they are given, or as the name says."""
        # Runs on two folders (`data.normal`) have learned nothing from names.
        said = {} if self.trained.config.data.normal else parse_name(clip, self.year)
        section = said.get("section") if section is None else section
        if section is None and len(self.sections) == 1:
            (section,) = self.sections
        if section not in self.sections:
            there = ", ".join(map(str, self.sections))
            what = "has no section in its name" if section is None else f"is of section {section}"
            raise DataError(
                f"{printable(clip) or 'the recording'} {what}; {self.trained.machine} has learned "
                f"{there}: give one of them"
            )
        domain = domain or said.get("domain") or "source"
        if domain not in ("source", "target"):
            raise DataError(f"domain {domain!r}: it may be source or target")
        return int(section), domain

    def find_tested(self, clip: str, a_g: np.ndarray) -> str | None:
        """Return how F knows the test recording of the run that this is, by name and a_G."""
        for tested, mean in self.tested.get(clip, ()):
            if np.allclose(mean, np.mean(a_g), rtol=1e-4):
                return name_tested(tested)
        return None

    def compute(self, recording: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return start f32[segments] (s), a_G f32[segments] and f_D f32[segments, D]."""
        whole = 2**15 if recording.samples.dtype == np.int16 else 1
        waveform = self.trained.standardisation.apply(recording.samples / np.float32(whole))
        _, starts = cut_segments(np.array([len(waveform)]), self.samples, self.hop)
        results = []
        for first in range(0, len(starts), BATCH):
            rows = np.resize(starts[first : first + BATCH], BATCH)  # one shape, compiled once
            segments = np.stack([waveform[start : start + self.samples] for start in rows])
            results.append(jax.device_get(self.score(self.state, segments)))
        a_g, f_d = (np.concatenate(part)[: len(starts)] for part in zip(*results, strict=True))
        return (starts / self.wanted.rate).astype(np.float32), a_g, f_d
