"""The detector of the operating phase: one recording at a time, judged and put into F.

Its segments are scored and placed by the networks of a run (`machine`) and smoothed by their
neighbours in F (eq. 7). It is called anomalous above the threshold of the decision files
(`fit_threshold`), found on the training recordings smoothed by the same F: it moves with F.

Segments of one recording are never each other's neighbours here, neither when it comes nor later:
only so are its first score, its later ones and the threshold of one kind. (Tables I and II smooth
the test segments with their own windows among them.)
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from dns_jax.data.refusals import ConfigError, DataError, printable
from dns_jax.evaluation.score_files import fit_threshold
from dns_jax.operation.judgement import Held, Judgement
from dns_jax.operation.machine import Machine, name_tested
from dns_jax.operation.pool import NeighborPool, Recording, Setting
from dns_jax.operation.trained import Trained, list_machines, load_trained
from dns_jax.scoring import split_networks


class Detector:
    """The machines of a finished run, and F."""

    def __init__(
        self,
        trained: Sequence[Trained],
        store: Path | None,
        writable: bool,
        begin: str,
        capped: bool,
    ):
        """Open F; see `load`."""
        self._machines = {t.machine: Machine(t) for t in trained}
        self.machines = {name: machine.sections for name, machine in self._machines.items()}
        settings = {name: _make_setting(m.trained, capped) for name, m in self._machines.items()}
        dimensions = trained[0].segments.feature.shape[1]
        identity = _digest_weights(trained) + (f", begun with {begin}" if writable else "")
        self.pool = NeighborPool(store, settings, dimensions, identity=identity, writable=writable)
        self.notice = self.pool.notice
        try:
            self._changes = 0
            if begin == "test" and (writable or store is None):
                self._begin(trained)
            for t in trained:
                self._add_references(t)
        except BaseException:
            self.pool.close()
            raise

    @classmethod
    def load(
        cls,
        workdir: Path,
        *,
        machine: str | None = None,
        seed: int | None = None,
        store: Path | None = None,
        writable: bool = True,
        begin: str = "test",
        capped: bool = True,
    ) -> "Detector":
        """Load what a finished run has learned.

        Args:
          workdir: of the run.
          machine: None: all that were trained.
          seed: of the training; None: the first of the run.
          store: the file of F; None: F is in memory only.
          writable: whether this detector is the one that writes the file, or reads what it holds.
          begin: what F begins with: "test", the run's test segments, or "empty".
          capped: whether K is at most a fifth of F.

        Raises:
          ConfigError: no such run, machine or seed.
          DataError: the run is not finished, what it left is damaged, or the file of F cannot be
            opened.
        """
        if begin not in ("test", "empty"):
            raise ConfigError(f"F may begin with test or empty, not with {begin!r}")
        machines = list_machines(Path(workdir)) if machine is None else [machine]
        trained = [load_trained(Path(workdir), name, seed) for name in machines]
        return cls(trained, store, writable, begin, capped)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the file of F."""
        self.pool.close()

    def score(
        self,
        source: str | os.PathLike | np.ndarray,
        sample_rate: int | None = None,
        *,
        machine: str | None = None,
        section: int | None = None,
        domain: str | None = None,
    ) -> Judgement:
        """Judge a recording; F stays as it is.

        Args:
          source: path of a WAV or FLAC file, or i16[samples] or real[samples] with full scale 1.
          sample_rate: of an array, Hz.
          machine: its name; None: the only one.
          section: number of the individual; None: as a DCASE name says, or the only one.
          domain: "source" or "target"; None: as the name says, or "source".

        Raises:
          Unusable: the recording cannot be used, and why.
          DataError: it cannot be told what it is a recording of.
          OSError: the file cannot be read.
          TypeError, ValueError: the array is none of the above.
        """
        machine = self._choose_machine(machine)
        known = self._machines[machine]
        if isinstance(source, np.ndarray):
            clip, recording = "", known.take(source, sample_rate)
        else:
            clip, recording = os.path.basename(os.fspath(source)), known.read(source)
        section, domain = known.tell(clip, section, domain)
        starts, a_g, f_d = known.compute(recording)
        digest = known.find_tested(clip, a_g) or recording.digest
        smoothed = self.pool.score(machine, section, a_g, f_d, digest)
        threshold = self.find_threshold(machine, section)
        return Judgement(
            clip=clip,
            machine=machine,
            section=section,
            domain=domain,
            seconds=len(recording.samples) / known.wanted.rate,
            score=smoothed.score,
            ae_score=float(np.mean(a_g, dtype=np.float64)),
            threshold=threshold,
            anomalous=bool(smoothed.score > threshold),
            k=smoothed.k,
            behind=smoothed.behind,
            neighbors=tuple((self.pool.entries[i].clip, share) for i, share in smoothed.deciding),
            note=recording.note,
            digest=digest,
            starts=starts,
            ae_scores=a_g,
            scores=smoothed.segments,
            features=f_d,
        )

    def append(
        self,
        judgement: Judgement,
        *,
        path: str = "",
        arrived: float | None = None,
        result: str = "{}",
    ) -> int | None:
        """Put a judged recording into F.

        Args:
          judgement: of `score`.
          path: where the file lies.
          arrived: s since 1970; None: now.
          result: JSON that is kept with it.

        Returns:
          Its id; None where F holds the same samples of this machine, and nothing has changed.

        Raises:
          DataError: it cannot be kept; nothing has changed.
        """
        added = self.pool.append(
            Recording(
                machine=judgement.machine,
                section=judgement.section,
                domain=judgement.domain,
                clip=judgement.clip,
                path=path,
                digest=judgement.digest,
                arrived=time.time() if arrived is None else arrived,
                seconds=judgement.seconds,
                scores=judgement.ae_scores,
                features=judgement.features,
                result=result,
            )
        )
        self._changes += added.new
        return added.id if added.new else None

    def evict(self, **limits) -> list[int]:
        """Drop recordings from F that are too old or too many; see `NeighborPool.evict`."""
        gone = self.pool.evict(**limits)
        self._changes += len(gone)
        return gone

    def recordings(self, machine: str, pause: Callable = lambda: None) -> list[Held]:
        """Return all recordings of F of a machine, with their scores as they are now.

        Args:
          machine: its name.
          pause: called again and again while F is searched; may raise to stop.
        """
        sections = self.machines[machine]
        thresholds = {s: self.find_threshold(machine, s, pause) for s in sections}
        held = []
        for i, score, behind in zip(*self.pool.refresh(machine, pause), strict=True):
            entry = self.pool.entries[int(i)]
            held.append(
                Held(
                    id=int(i),
                    clip=entry.clip,
                    machine=machine,
                    section=entry.section,
                    domain=entry.domain,
                    path=entry.path,
                    arrived=entry.arrived,
                    score=float(score),
                    threshold=thresholds[entry.section],
                    behind=int(behind),
                )
            )
        return held

    def results(self) -> Iterator[tuple[int, str]]:
        """Yield id and `result` of all recordings in the file of F."""
        return self.pool.results()

    def find_threshold(self, machine: str, section: int, pause: Callable = lambda: None) -> float:
        """Return the threshold of a section, found anew when F has changed by a hundredth.

        Args:
          machine: its name.
          section: one of its sections.
          pause: as that of `recordings`.
        """
        known = self._machines[machine]
        k = self.pool.list_k(machine)
        if k != known.fitted_k or self._changes - known.fitted_at > 0.01 * len(self.pool):
            smoothed = self.pool.smooth_references(machine, pause)
            for number, clips in known.training.items():
                known.thresholds[number], _ = fit_threshold(
                    [smoothed[clip] for clip in clips],
                    known.trained.config.threshold_percentile,
                )
            known.fitted_k, known.fitted_at = k, self._changes
        return known.thresholds[section]

    def _choose_machine(self, machine):
        if machine is None and len(self.machines) == 1:
            return next(iter(self.machines))
        if machine not in self.machines:
            what = "of which machine?" if machine is None else f"no machine {printable(machine)}"
            raise DataError(f"{what}; there are {', '.join(map(printable, self.machines))}")
        return machine

    def _begin(self, trained):
        """Let F begin with the test recordings, or go on with that where it was interrupted."""
        seeds = [seed for t in trained for seed in _list_tested(t)]
        for recording in seeds[self.pool.last_id :]:
            self.pool.append(recording)

    def _add_references(self, trained):
        segments = trained.segments.select(trained.segments.split == "train")
        for section in np.unique(segments.section):
            rows = segments.select(segments.section == section)
            self.pool.add_references(
                trained.machine, int(section), rows.clip, rows.ae_score, rows.feature
            )


def _make_setting(trained, capped):
    smoothing, choice = trained.config.smoothing, trained.choice
    if choice is None:  # no f_D, nothing to smooth in
        return Setting(1)
    return Setting(
        choice.size, choice.data, smoothing.scope, smoothing.unit, capped, own_windows=False
    )


def _list_tested(trained):
    """The test recordings of a run, as they are kept in F."""
    segments = trained.segments.select(trained.segments.split == "test")
    hop = trained.config.data.hop_seconds
    for clip in dict.fromkeys(segments.clip.tolist()):
        rows = segments.select(segments.clip == clip)
        yield Recording(
            machine=trained.machine,
            section=int(rows.section[0]),
            domain=str(rows.domain[0]),
            clip=clip,
            path="",
            digest=name_tested(clip),
            arrived=0.0,
            seconds=trained.config.data.segment_seconds + hop * (len(rows.clip) - 1),
            scores=rows.ae_score,
            features=rows.feature,
        )


def _digest_weights(trained):
    """Say by which networks the scores and features of F were made."""
    digests = []
    for t in sorted(trained, key=lambda t: t.machine):
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(split_networks(t.autoencoder, t.serial_oe)[1]):
            digest.update(np.asarray(leaf).tobytes())
        digests.append(f"{t.machine} {digest.hexdigest()[:12]}")
    return ", ".join(digests)
