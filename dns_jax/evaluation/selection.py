"""Hyperparameters chosen on labelled sections: how Table I comes about.

A candidate is a size and the data it uses: the neighbours K of eq. 7 and the domain of the pool, or
SerialOE's clusters and the domain its GMM is fitted on.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count, takewhile
from typing import NamedTuple

import numpy as np
import pandas as pd

from dns_jax.evaluation.metrics import compute_auc, section_hmean

TIE = 1e-12  # rounding of the means; the smallest true difference is far above


class Choice(NamedTuple):
    """A row's entry in Table I.

    Attributes:
      size: K, or the clusters of the GMM.
      data: "source" or "all" (both domains).
      how: "validation", "oracle" (chosen on the evaluation sections) or "default".
    """

    size: int
    data: str
    how: str


def neighbour_grid(smallest_pool: int) -> tuple[int, ...]:
    """List the K to try: powers of two from 1 up to the rows of the smallest pool.

    Pools of 1,400 and 2,800 segments give the 1,024 and 2,048 that Table I ends at.
    """
    return tuple(takewhile(lambda k: k <= smallest_pool, (2**power for power in count())))


def select(
    candidates: Mapping[tuple[int, str], np.ndarray], clips: pd.DataFrame, sections: Sequence[int]
) -> tuple[int, str] | None:
    """Choose the candidate with the highest harmonic mean of AUC and pAUC.

    Args:
      candidates: (size, "source" or "all") to the clip scores it gives, [clips].
      clips: one row per test clip: section, domain, label (see `metrics.evaluate`).
      sections: those to choose on, both domains pooled.

    Returns:
      (size, data), ties to the smaller size, then to "source". None if no candidate is evaluable.
    """
    best = _best(candidates, lambda scores: section_hmean(clips, scores, sections))
    return best and best[:2]


def select_by_auc(
    candidates: Mapping[tuple[int, str], np.ndarray], clips: pd.DataFrame, section: int
) -> tuple[int, str, float] | None:
    """Choose the candidate with the highest AUC in one section: Oracle's choice for "ToyCar-5".

    Args:
      candidates: as in `select`.
      clips: as in `select`.
      section: the one to choose on, both domains pooled.

    Returns:
      (size, data, AUC), ties as in `select`. None if no candidate is evaluable.
    """
    rows = clips["section"].to_numpy() == section
    labels = clips["label"].to_numpy()[rows]
    return _best(candidates, lambda scores: compute_auc(labels, np.asarray(scores)[rows]))


def _best(
    candidates: Mapping[tuple[int, str], np.ndarray], measure: Callable[[np.ndarray], float]
) -> tuple[int, str, float] | None:
    values = {candidate: measure(scores) for candidate, scores in candidates.items()}
    values = {candidate: value for candidate, value in values.items() if not np.isnan(value)}
    if not values:
        return None
    highest = max(values.values())
    tied = [candidate for candidate, value in values.items() if value >= highest - TIE]
    size, data = min(tied, key=lambda candidate: (candidate[0], candidate[1] != "source"))
    return size, data, values[size, data]
