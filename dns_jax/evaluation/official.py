"""What the official DCASE 2021 Task 2 evaluator makes of scores and decisions.

It evaluates each section per domain, never pooled as in Table II (`metrics` does both). From
github.com/y-kawagu/dcase2021_task2_evaluator are the measures, the means, `official score` and the
floor in harmonic means. What differs:

- Rows are matched by name. There the sorted rows of two files are matched one by one, so that clips
  renamed with their labels need a ground truth renamed alike, or scores go to the wrong clips.
- Clips without a label or a score are left out, and so are cells of one class. There they end it.
- Any number of machines and sections will do. There the source and target means of a machine are
  of the source and target domain with three sections and 6 or 7 machines only.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_fscore_support

from dns_jax.evaluation.metrics import compute_auc, compute_pauc, harmonic_mean
from dns_jax.evaluation.score_files import file_name, read_scores

MEASURES = ("auc", "pauc", "precision", "recall", "f1")
COLUMNS = ("kind", "machine", "section", "domain", *MEASURES)
FLOOR = float(np.finfo(np.float64).eps)  # what a smaller value counts as in a harmonic mean


def read_results(
    clips: pd.DataFrame, folders: Mapping[str, str | Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Read the score and decision files of one system.

    Args:
      clips: one row per test clip: machine, clip (file name), section, domain.
      folders: where the files of each machine lie.

    Returns:
      Scores and decisions, f64[clips] each, in the order of `clips`; NaN where not scored.

    Raises:
      OSError: a file is missing.
      ValueError: a file is malformed, or does not hold each of its clips once and no other.
    """
    results = []
    for kind in ("anomaly_score", "decision_result"):
        values = np.full(len(clips), np.nan)
        for cell, rows in clips.groupby(["machine", "section", "domain"]).indices.items():
            path = Path(folders[cell[0]]) / file_name(kind, *cell)
            files, read = read_scores(path)
            names = clips["clip"].to_numpy()[rows]
            surplus = Counter(files)
            surplus.subtract(names)
            if odd := [name for name, count in surplus.items() if count]:
                raise ValueError(
                    f"{path}: must hold each of the {len(names)} clips there once and no other, "
                    f"but has {len(files)} rows; see {min(odd)}"
                )
            by_name = dict(zip(files, read, strict=True))
            values[rows] = [by_name[name] for name in names]
        results.append(values)
    return results[0], results[1]


def evaluate_officially(
    clips: pd.DataFrame, scores: ArrayLike, decisions: ArrayLike
) -> pd.DataFrame:
    """Tabulate what the official evaluator's `result.csv` holds.

    Args:
      clips: one row per test clip: machine, section (int), domain ("source" or "target"), label
        (0 normal, 1 anomalous, -1 unknown).
      scores: [clips], higher is more anomalous, NaN where not scored.
      decisions: [clips], 0, 1 or NaN.

    Returns:
      kind, machine, section, domain, auc, pauc, precision, recall, f1; fractions. One row of kind
      "section" per machine, domain and section, NaN where the clips are not of both classes. Then
      for each machine and for "all" of them an "arithmetic mean" and a "harmonic mean" over both
      domains ("both") and a "harmonic mean" over "source" and "target", NaN left out. Last the
      "official score": under auc, the harmonic mean of all AUC and pAUC. Precision, recall and F1
      are 0 where their denominator is. In a harmonic mean 0 counts as `FLOOR`, as there: one
      recall of 0 makes it some 1e-15 instead of 0.

    Raises:
      ValueError: scores or decisions that are not one per clip, or another decision.
    """
    scores, decisions = np.asarray(scores, np.float64), np.asarray(decisions, np.float64)
    if not scores.shape == decisions.shape == (len(clips),):
        raise ValueError(
            f"scores and decisions must be one per clip, [{len(clips)}], "
            f"but are {scores.shape} and {decisions.shape}"
        )
    if wrong := set(decisions[~np.isnan(decisions)]) - {0.0, 1.0}:
        raise ValueError(f"a decision must be 0, 1 or NaN, not {min(wrong)!r}")
    labels = clips["label"].to_numpy()
    machines = list(dict.fromkeys(clips["machine"]))
    indices = clips.groupby(["machine", "domain", "section"]).indices
    cells = [
        ("section", machine, section, domain, *_measure(labels[r], scores[r], decisions[r]))
        for (machine, domain, section), r in sorted(
            indices.items(), key=lambda cell: (machines.index(cell[0][0]), cell[0])
        )
    ]
    table = pd.DataFrame(cells, columns=COLUMNS)
    means = []
    for machine in (*machines, "all"):
        part = table if machine == "all" else table[table["machine"] == machine]
        means.append(("arithmetic mean", machine, None, "both", *part[[*MEASURES]].mean()))
        for domain in ("both", "source", "target"):
            values = part if domain == "both" else part[part["domain"] == domain]
            hmeans = [_floored_hmean(values[name]) for name in MEASURES]
            means.append(("harmonic mean", machine, None, domain, *hmeans))
    score = _floored_hmean(table[["auc", "pauc"]])
    means.append(("official score", "all", None, "both", score, *[np.nan] * 4))
    return pd.DataFrame([*cells, *means], columns=COLUMNS).astype({"section": "Int64"})


def _measure(labels: np.ndarray, scores: np.ndarray, decisions: np.ndarray) -> list[float]:
    """Compute `MEASURES` for one section and domain; NaN for clips of one class only."""
    counted = (labels >= 0) & ~np.isnan(decisions)
    labels_decided, decisions = labels[counted], decisions[counted]
    decided = [np.nan] * 3
    if len(np.unique(labels_decided)) == 2:
        decided = precision_recall_fscore_support(
            labels_decided, decisions, average="binary", zero_division=0
        )[:3]
    return [compute_auc(labels, scores), compute_pauc(labels, scores), *map(float, decided)]


def _floored_hmean(values: ArrayLike) -> float:
    return harmonic_mean(np.maximum(np.asarray(values, np.float64), FLOOR))
