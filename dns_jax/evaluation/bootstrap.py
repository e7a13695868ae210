"""How sure a difference in Table II is: a paired bootstrap over the test clips.

The measure is that of Table II, the harmonic mean of AUC and pAUC over sections with both domains
pooled. The interval speaks of other clips from the same machines; of other training runs it says
nothing beyond averaging over the seeds.
"""

import zlib

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import ArrayLike

INTERVAL = (2.5, 97.5)  # percentiles


def bootstrap_difference(
    clips: pd.DataFrame,
    scores: ArrayLike,
    baseline: ArrayLike,
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two systems on the same clips.

    In each round the clips are drawn anew with replacement (`draw_resamples`), the same for both
    systems and all seeds. A round's difference is that of the harmonic means, each averaged over
    seeds first.

    Args:
      clips: one row per evaluated test clip: machine, section (int), domain, label (0 normal,
        1 anomalous, -1 unknown).
      scores: [seeds, clips], higher is more anomalous.
      baseline: [seeds, clips], of the system to compare with.
      rounds: number of resamples.
      seed: of the resampling. A machine's interval does not depend on the others in `clips`.

    Returns:
      machine, difference, low, high; fractions. One row per machine in the order of `clips`, then
      "all". The difference is that of the clips themselves, `scores` minus `baseline`; low and high
      are the 2.5 and 97.5 percentiles of the resamples. NaN if no section is evaluable. A clip
      counts if its label is known and no score of either system is NaN; a section if it has clips
      of both classes.

    Raises:
      ValueError: scores of another shape, or no rounds.
    """
    scores, baseline = np.asarray(scores, np.float64), np.asarray(baseline, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(clips) or scores.shape != baseline.shape:
        raise ValueError(
            f"both systems' scores must be [seeds, {len(clips)}], "
            f"but are {scores.shape} and {baseline.shape}"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds!r}")
    systems = np.stack([scores, baseline])
    machines, sections, labels = (
        clips[name].to_numpy() for name in ("machine", "section", "label")
    )
    counted = (labels >= 0) & ~np.isnan(systems).any(axis=(0, 1))

    rows, everything = [], []
    for machine in dict.fromkeys(machines):
        evaluated = []
        for section in np.unique(sections[machines == machine]):
            cell = np.flatnonzero((machines == machine) & (sections == section) & counted)
            if len(np.unique(labels[cell])) == 2:
                entropy = (seed, zlib.crc32(machine.encode()), section)
                strata = clips[["domain", "label"]].iloc[cell]
                counts = draw_resamples(strata, rounds, np.random.default_rng(entropy))
                counts = np.column_stack([np.ones(len(cell), int), counts])
                evaluated.append(
                    [
                        [resampled_aucs(labels[cell], run[cell], counts) for run in system]
                        for system in systems
                    ]
                )
        rows.append((machine, *_difference(evaluated)))
        everything += evaluated
    rows.append(("all", *_difference(everything)))
    return pd.DataFrame(rows, columns=["machine", "difference", "low", "high"])


def draw_resamples(strata: pd.DataFrame, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clips with replacement, as many from each stratum as it has.

    Args:
      strata: one row per clip; those with equal rows are a stratum.
      rounds: number of resamples.
      rng: random numbers.

    Returns:
      int[clips, rounds], how often each clip is drawn.
    """
    counts = np.zeros((len(strata), rounds), int)
    for _, rows in sorted(strata.groupby(list(strata.columns)).indices.items()):
        drawn = rng.integers(len(rows), size=(rounds, len(rows)))
        places = drawn * rounds + np.arange(rounds)[:, None]
        drawn = np.bincount(places.ravel(), minlength=len(rows) * rounds)
        counts[rows] = drawn.reshape(len(rows), rounds)
    return counts


def resampled_aucs(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute AUC and pAUC, up to a false-positive rate of 0.1, of every resample.

    The same as `metrics.compute_auc` and `metrics.compute_pauc` of the clips repeated, without
    sorting them again.

    Args:
      labels: int[clips], 0 or 1.
      scores: f64[clips], not NaN; equal ones are one step of the ROC curve.
      counts: int[clips, rounds], how often each clip is there, with both classes in every round.

    Returns:
      f64[2, rounds].
    """
    order = np.argsort(-scores)
    labels, scores, counts = labels[order], scores[order], counts[order]
    steps = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    rates = []
    for label in (0, 1):
        called = np.cumsum(np.where((labels == label)[:, None], counts, 0), axis=0)[steps]
        rates.append(np.vstack([np.zeros(called.shape[1]), called / called[-1]]))
    return np.stack([_standardised_area(*rates, max_fpr) for max_fpr in (1.0, 0.1)])


def _standardised_area(fpr: np.ndarray, tpr: np.ndarray, max_fpr: float) -> np.ndarray:
    """McClish's partial area under ROC polygons f64[corners, rounds], cut at `max_fpr`."""
    rise, run = np.diff(tpr, axis=0), np.diff(fpr, axis=0)
    width = np.clip(max_fpr - fpr[:-1], 0, run)
    share = np.divide(width, run, out=np.zeros_like(run), where=run > 0)
    area = np.sum(width * (tpr[:-1] + rise * share / 2), axis=0)
    chance = max_fpr**2 / 2
    return (1 + (area - chance) / (max_fpr - chance)) / 2


def _difference(sections: list) -> tuple[float, float, float]:
    """Return difference, low and high from one f64[systems, seeds, 2, 1 + rounds] per section.

    The first of the last axis are the clips themselves.
    """
    if not sections:
        return (np.nan,) * 3
    hmeans = scipy.stats.hmean(np.concatenate(sections, axis=2), axis=2)
    system, baseline = hmeans.mean(axis=1)
    difference = system - baseline
    return (float(difference[0]), *map(float, np.percentile(difference[1:], INTERVAL)))
