"""What the detector says about a recording: when it comes, and later in the light of F."""

from typing import Any, NamedTuple

import numpy as np


class Judgement(NamedTuple):
    """What the detector says about one recording.

    Attributes:
      clip: file name.
      machine: its name.
      section: number of the individual.
      domain: "source" or "target".
      seconds: length.
      score: a_prop, the mean over the segments; dB^2, high means anomalous.
      ae_score: a_G, likewise.
      threshold: above which a recording of this section is called anomalous.
      anomalous: whether it is.
      k: K of eq. 7, at most a fifth of F.
      behind: the least number of neighbours that stood behind a segment's score.
      neighbors: (recording, its share of all neighbours), the largest share first.
      note: what is remarkable about the samples, "" if nothing.
      digest: of the samples, or the name of the test recording of the run that it is.
      starts: f32[segments], s.
      ae_scores: f32[segments], a_G.
      scores: f64[segments], a_prop; [1] where recordings are smoothed as a whole.
      features: f32[segments, D], f_D.
    """

    clip: str
    machine: str
    section: int
    domain: str
    seconds: float
    score: float
    ae_score: float
    threshold: float
    anomalous: bool
    k: int
    behind: int
    neighbors: tuple[tuple[str, float], ...]
    note: str
    digest: str
    starts: np.ndarray
    ae_scores: np.ndarray
    scores: np.ndarray
    features: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return all but the features as plain JSON values; what is not finite is None."""
        return {name: _as_json(x) for name, x in self._asdict().items() if name != "features"}


def _as_json(value):
    if isinstance(value, np.ndarray | tuple):
        return [_as_json(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


class Held(NamedTuple):
    """A recording of F in the light of F as it is now.

    Attributes:
      id: its number in F.
      clip: file name.
      machine: its name.
      section: number of the individual.
      domain: "source" or "target".
      path: where the file lay; "" for those that the run was tested on.
      arrived: s since 1970.
      score: a_prop; dB^2.
      threshold: above which it is called anomalous now.
      behind: the least number of neighbours behind a segment.
    """

    id: int
    clip: str
    machine: str
    section: int
    domain: str
    path: str
    arrived: float
    score: float
    threshold: float
    behind: int
