"""What a run has found out about one machine, read back for its figures and report."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dns_jax.data.refusals import reading
from dns_jax.evaluation.label_free import TOGETHER
from dns_jax.evaluation.results import SYSTEMS
from dns_jax.evaluation.score_files import read_scores
from dns_jax.evaluation.systems import take_unit
from dns_jax.scoring import Segments, load_segments
from dns_jax.smoothing import smooth

TRAINING = 1000  # training segments drawn, of a section
_SELECTION = ("serial_oe", "proposed", "oracle", "evaluation_sections")


class Outcome(NamedTuple):
    """One machine and seed.

    Attributes:
      machine: its name.
      segments: all of its segments.
      selection: `selection.json`, see `tables`.
      tested: one row per scored test recording, sorted by name: clip, section, domain, label, and
        the score and the decision (0, 1, NaN) of every system, as `ae` and `ae_decision`.
    """

    machine: str
    segments: Segments
    selection: dict
    tested: pd.DataFrame

    @property
    def systems(self) -> list[str]:
        """The systems that have scores, in the order of Table II."""
        return [system for system in (*SYSTEMS, TOGETHER) if system in self.tested]

    @property
    def system(self) -> str:
        """The system that the recordings are ranked by: the one that was asked for."""
        return TOGETHER if TOGETHER in self.tested else "proposed" if self.choice else "ae"

    @property
    def choice(self) -> tuple[int, str] | None:
        """(K, Data) of Proposed, None where there is none."""
        chosen = self.selection["proposed"]
        return chosen and (chosen["size"], chosen["data"])


def read_outcome(workdir: Path, machine: str, seed: int) -> Outcome:
    """Read what a finished run has left about a machine.

    Raises:
      DataError: an artifact is missing or damaged.
    """
    directory = Path(workdir) / machine / f"seed_{seed}"
    segments = load_segments(directory / "segments.npz")
    with reading(directory / "selection.json"):
        selection = dict(json.loads((directory / "selection.json").read_text()))
        for name in _SELECTION:
            selection[name]
        test = segments.select(segments.split == "test")
        clips, first = np.unique(test.clip, return_index=True)
        columns = {name: getattr(test, name)[first] for name in ("section", "domain", "label")}
        tested = pd.DataFrame({"clip": clips, **columns})
        for system in (*SYSTEMS, TOGETHER):
            folder = directory / "scores" / system
            for kind, column in (
                ("anomaly_score", system),
                ("decision_result", f"{system}_decision"),
            ):
                if (system == "ae" and len(clips)) or folder.is_dir():
                    tested[column] = _look_up(folder.glob(f"{kind}_*.csv"), clips)
    return Outcome(machine, segments, selection, tested)


def sample_training(segments: Segments, section: int, domain: str = "") -> Segments:
    """Return training segments of a section ("": both domains), of very many a sample to draw."""
    here = (segments.split == "train") & (segments.section == section)
    rows = np.flatnonzero(here & ((segments.domain == domain) | (domain == "")))
    if len(rows) > TRAINING:
        rows = np.sort(np.random.default_rng(section).choice(rows, TRAINING, replace=False))
    return segments.select(rows)


def _look_up(files, clips):
    """f64[clips] from the score or decision files of a system."""
    value_of = {}
    for file in sorted(files):
        value_of |= dict(zip(*read_scores(file), strict=True))
    return np.array([value_of[clip] for clip in clips.tolist()])


def smooth_tests(
    segments: Segments, choice: tuple[int, str], smoothing
) -> tuple[Segments, np.ndarray]:
    """Smooth the test rows of a machine (eq. 7).

    Args:
      segments: of the machine.
      choice: (K, Data); K at most the rows of the smallest pool.
      smoothing: `config.smoothing`, unit and scope of the pools.

    Returns:
      The rows of the pools, in the order of the segments, and a_prop of each, f32[rows].
    """
    k, data = choice
    rows = take_unit(segments.select(segments.split == "test"), smoothing["unit"])
    candidates = (rows.domain == "source") | (data == "all")
    pool = rows.section if smoothing["scope"] == "section" else np.zeros_like(rows.section)
    a_prop = np.empty(len(pool), np.float32)
    for here in (pool == number for number in np.unique(pool)):
        a_prop[here] = smooth(
            rows.ae_score[here], rows.feature[here], k, candidates=candidates[here]
        )
    return rows, a_prop
