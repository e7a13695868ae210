"""AUC, pAUC and their harmonic mean: the measures of Table II.

Everything is a fraction in [0, 1] here; the tables turn it into percent. NaN means "not evaluable":
clips of one class only, or none at all.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score


def compute_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the area under the ROC curve.

    Args:
      labels: int[clips], 0 normal, 1 anomalous, -1 unknown.
      scores: [clips], higher is more anomalous. Infinite scores keep their place in the order.

    Returns:
      The AUC of the clips with a known label and a score that is not NaN; NaN if these are of one
      class only.
    """
    return compute_pauc(labels, scores, max_fpr=1.0)


def compute_pauc(labels: ArrayLike, scores: ArrayLike, max_fpr: float = 0.1) -> float:
    """Compute the AUC over false-positive rates up to `max_fpr` (the paper's p).

    Standardised as McClish (1989) does, so that chance is 0.5 at every `max_fpr`: scikit-learn's
    definition, and that of the official DCASE evaluator. Arguments and NaN are `compute_auc`'s.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    counted = _counted(labels, scores)
    labels = labels[counted]
    if len(np.unique(labels)) < 2:
        return float("nan")
    # Only the order counts, and ranks are finite where scores need not be.
    ranks = scipy.stats.rankdata(scores[counted], method="dense")
    return float(roc_auc_score(labels, ranks, max_fpr=max_fpr))


def harmonic_mean(
    values: ArrayLike, axis: int | tuple[int, ...] | None = None
) -> float | np.ndarray:
    """Average the finite values harmonically.

    Args:
      values: any shape, at least 0; NaN (not evaluable) is left out.
      axis: to average over; None: all.

    Returns:
      The harmonic mean: 0 if one value is 0, NaN if no value is finite.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.sum(1 / np.where(finite, values, np.inf), axis=axis)
        mean = np.sum(finite, axis=axis) / inverse
    return float(mean) if axis is None else mean


def evaluate(clips: pd.DataFrame, scores: ArrayLike) -> pd.DataFrame:
    """Evaluate every section of a machine, per domain as DCASE does and pooled as the paper does.

    Args:
      clips: one row per test clip: section (int), domain ("source" or "target"), label.
      scores: [clips], in the order of `clips`.

    Returns:
      section, domain, auc, pauc, n_normal, n_anomaly: for each section in ascending order the
      domains present (source, target), then "all", both pooled. The numbers of clips are of those
      that count: label known, score not NaN.
    """
    scores = _aligned(clips, scores)
    sections, domains, labels = (clips[name].to_numpy() for name in ("section", "domain", "label"))
    counted = _counted(labels, scores)
    rows = []
    for section in np.unique(sections):
        for domain in ("source", "target", "all"):
            cell = (sections == section) & ((domains == domain) | (domain == "all"))
            if cell.any():
                rows.append(
                    {
                        "section": int(section),
                        "domain": domain,
                        "auc": compute_auc(labels[cell], scores[cell]),
                        "pauc": compute_pauc(labels[cell], scores[cell]),
                        "n_normal": int(np.sum(labels[cell & counted] == 0)),
                        "n_anomaly": int(np.sum(labels[cell & counted] == 1)),
                    }
                )
    return pd.DataFrame(rows, columns=["section", "domain", "auc", "pauc", "n_normal", "n_anomaly"])


def section_hmean(clips: pd.DataFrame, scores: ArrayLike, sections: Sequence[int]) -> float:
    """Average AUC and pAUC harmonically over sections, both domains pooled: a cell of Table II.

    Args:
      clips: as in `evaluate`.
      scores: [clips], in the order of `clips`.
      sections: those to average over; one without clips of both classes is left out.

    Returns:
      The harmonic mean, NaN if no section is evaluable.
    """
    scores, labels = _aligned(clips, scores), clips["label"].to_numpy()
    cells = [clips["section"].to_numpy() == section for section in sections]
    return harmonic_mean(
        [
            metric(labels[cell], scores[cell])
            for cell in cells
            for metric in (compute_auc, compute_pauc)
        ]
    )


def _counted(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return bool[clips]: the label is known and the score is not NaN."""
    if labels.shape != scores.shape:
        raise ValueError(f"one score per label, but {labels.shape} labels, {scores.shape} scores")
    return (labels >= 0) & ~np.isnan(scores)


def _aligned(clips: pd.DataFrame, scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.shape != (len(clips),):
        raise ValueError(f"scores must be one per clip, [{len(clips)}], but are {scores.shape}")
    return scores
