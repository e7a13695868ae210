"""What the official DCASE Task 2 evaluator of a year makes of scores and decisions.

In 2021 it evaluates each section per domain, never pooled as in Table II (`metrics` does both).
Since 2022 the AUC of a domain is that of its normal clips and the anomalies of both, as nobody
tells the domain of an anomaly, and the pAUC is the section's; in 2020 there are no domains. From
the evaluators named in `dns_jax.data.years` are the measures, the means, `official score` and the
floor in harmonic means. What differs:

- Rows are matched by name. There the sorted rows of two files are matched one by one, so that clips
  renamed with their labels need a ground truth renamed alike, or scores go to the wrong clips.
- Clips without a label or a score are left out, and so are cells of one class. There they end it.
- Any number of machines and sections will do. There the source and target means of a machine are
  of the source and target domain in 2021 with three sections and 6 or 7 machines only, and not at
  all in 2022.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_fscore_support

from dns_jax.data.years import DOMAINS, YEARS
from dns_jax.evaluation.metrics import compute_auc, compute_pauc, harmonic_mean
from dns_jax.evaluation.score_files import file_name, read_scores

MEASURES = ("auc", "pauc", "precision", "recall", "f1")
COLUMNS = ("kind", "machine", "section", "domain", *MEASURES)
FLOOR = float(np.finfo(np.float64).eps)  # what a smaller value counts as in a harmonic mean


def read_results(
    clips: pd.DataFrame, folders: Mapping[str, str | Path], year: int = 2021
) -> tuple[np.ndarray, np.ndarray]:
    """Read the score and decision files of one system.

    Args:
      clips: one row per test clip: machine, clip (file name), section, domain.
      folders: where the files of each machine lie.
      year: of DCASE Task 2.

    Returns:
      Scores and decisions, f64[clips] each, in the order of `clips`; NaN where not scored.

    Raises:
      OSError: a file is missing.
      ValueError: a file is malformed, or does not hold each of its clips once and no other.
    """
    results = []
    for kind in ("anomaly_score", "decision_result"):
        values = np.full(len(clips), np.nan)
        cells = zip(clips["machine"], clips["section"], clips["domain"], strict=True)
        names = np.array([file_name(kind, *cell, year) for cell in cells])
        for (machine, name), rows in clips.groupby(["machine", names]).indices.items():
            path = Path(folders[machine]) / name
            files, read = read_scores(path)
            asked = clips["clip"].to_numpy()[rows]
            surplus = Counter(files)
            surplus.subtract(asked)
            if odd := [name for name, count in surplus.items() if count]:
                raise ValueError(
                    f"{path}: must hold each of the {len(asked)} clips there once and no other, "
                    f"but has {len(files)} rows; see {min(odd)}"
                )
            by_name = dict(zip(files, read, strict=True))
            values[rows] = [by_name[name] for name in asked]
        results.append(values)
    return results[0], results[1]


def evaluate_officially(
    clips: pd.DataFrame, scores: ArrayLike, decisions: ArrayLike, year: int = 2021
) -> pd.DataFrame:
    """Tabulate what the official evaluator's `result.csv` holds.

    Args:
      clips: one row per test clip: machine, section (int), domain ("source" or "target"; others are
        left out), label (0 normal, 1 anomalous, -1 unknown).
      scores: [clips], higher is more anomalous, NaN where not scored.
      decisions: [clips], 0, 1 or NaN.
      year: of DCASE Task 2.

    Returns:
      kind, machine, section, domain, auc, pauc, precision, recall, f1; fractions. One row of kind
      "section" per machine, domain and section, NaN where the clips are not of both classes. Then
      for each machine and for "all" of them an "arithmetic mean" and a "harmonic mean" over both
      domains ("both") and a "harmonic mean" over "source" and "target", NaN left out. Last the
      "official score": under auc, the harmonic mean of all AUC and pAUC. Precision, recall and F1
      are 0 where their denominator is. In a harmonic mean 0 counts as `FLOOR`, as there: one
      recall of 0 makes it some 1e-15 instead of 0.

      Since 2022 both domains of a section have its pAUC, which counts once in the official score.
      In 2020 there are the arithmetic means of each machine alone, and no more than AUC and pAUC;
      the official score is NaN, as nothing is known of one.

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
    rule = YEARS[year].official
    labels, domains = clips["label"].to_numpy(), clips["domain"].to_numpy()
    machines = list(dict.fromkeys(clips["machine"]))
    of_section = clips.groupby(["machine", "section"]).indices
    of_cell = clips.groupby(["machine", "domain", "section"]).indices
    cells = []
    for cell in sorted(of_cell, key=lambda cell: (machines.index(cell[0]), cell)):
        machine, domain, section = cell
        if domain not in DOMAINS:
            continue
        own = of_cell[cell]
        pooled = of_section[machine, section] if rule.mixed else own
        faced = pooled[(domains[pooled] == domain) | (labels[pooled] == 1)]
        measures = [
            compute_auc(labels[faced], scores[faced]),
            compute_pauc(labels[pooled], scores[pooled]),
            *([np.nan] * 3 if rule.missing else _judge(labels[own], decisions[own])),
        ]
        cells.append(("section", machine, section, domain, *measures))
    table = pd.DataFrame(cells, columns=COLUMNS).astype(dict.fromkeys(MEASURES, np.float64))
    means = []
    for machine in machines if rule.missing else (*machines, "all"):
        part = table if machine == "all" else table[table["machine"] == machine]
        means.append(("arithmetic mean", machine, None, "both", *part[[*MEASURES]].mean()))
        for domain in () if rule.missing else ("both", *DOMAINS):
            values = part if domain == "both" else part[part["domain"] == domain]
            hmeans = [_floored_hmean(values[name]) for name in MEASURES]
            means.append(("harmonic mean", machine, None, domain, *hmeans))
    counted = table[["auc", "pauc"]].copy()
    if rule.mixed:
        counted.loc[table.duplicated(["machine", "section"]), "pauc"] = np.nan
    score = np.nan if rule.missing else _floored_hmean(counted)
    means.append(("official score", "all", None, "both", score, *[np.nan] * 4))
    return pd.DataFrame([*cells, *means], columns=COLUMNS).astype({"section": "Int64"})


def _judge(labels: np.ndarray, decisions: np.ndarray) -> list[float]:
    """Compute precision, recall and F1; NaN for clips of one class only."""
    counted = (labels >= 0) & ~np.isnan(decisions)
    labels, decisions = labels[counted], decisions[counted]
    if len(np.unique(labels)) < 2:
        return [np.nan] * 3
    judged = precision_recall_fscore_support(labels, decisions, average="binary", zero_division=0)
    return list(map(float, judged[:3]))


def _floored_hmean(values: ArrayLike) -> float:
    return harmonic_mean(np.maximum(np.asarray(values, np.float64), FLOOR))
