"""Scores and decisions in the files of the official DCASE evaluator, and the decision threshold.

A file holds one section of one machine, in 2021 one domain of it, without header: `file,score` or
`file,decision`.
"""

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from dns_jax.data.years import YEARS
from dns_jax.files import write_text

# A fit that calls another share of the training clips anomalous, by more than this, has failed.
FIT_TOLERANCE = 0.05


def file_name(kind: str, machine: str, section: int, domain: str, year: int = 2021) -> str:
    """Name a file as the official evaluator looks for it.

    Args:
      kind: "anomaly_score" or "decision_result".
      machine: the machine type.
      section: written with two digits at least.
      domain: "source" or "target"; in other years than 2021 both are in one file.
      year: of DCASE Task 2.

    Returns:
      For example `anomaly_score_fan_section_03_source_test.csv`.
    """
    if kind not in ("anomaly_score", "decision_result"):
        raise ValueError(f"kind must be 'anomaly_score' or 'decision_result', not {kind!r}")
    cell = YEARS[year].cell.format(machine=machine, section=f"{section:02d}", domain=domain)
    return f"{kind}_{cell}.csv"


def read_scores(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read `file,score` rows, without header; empty lines are passed over.

    Returns:
      The file names in the order of the rows, and f64[rows] (`nan` where a clip was not scored).

    Raises:
      ValueError: naming the file and the line that is not text in UTF-8, has no name, or is not a
        name and one number.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}, line {line}: not text in UTF-8") from None
    files, scores = [], []
    lines = io.StringIO(text, newline="").readlines()
    rows = csv.reader(lines, strict=True)
    try:
        for row in rows:
            if row:
                file, score = row
                if not file:
                    raise ValueError
                scores.append(float(score))
                files.append(file)
    except (ValueError, csv.Error):
        found = lines[rows.line_num - 1].rstrip("\r\n")
        found = found if len(found) <= 80 else found[:77] + "..."
        raise ValueError(
            f"{path}, line {rows.line_num}: expected 'file,score' (no header), found {found!r}"
        ) from None
    return files, np.array(scores, dtype=np.float64)


def write_scores(path: str | Path, files: Sequence[str], scores: ArrayLike) -> None:
    """Write `file,score` rows; reading them back gives the same float64 numbers.

    Args:
      path: replaced as a whole if it is there.
      files: names of the clips.
      scores: [clips], NaN where a clip was not scored.
    """
    _write_rows(path, files, [repr(score) for score in np.asarray(scores, np.float64).tolist()])


def write_decisions(path: str | Path, files: Sequence[str], decisions: ArrayLike) -> None:
    """Write `file,0` (normal) and `file,1` (anomalous) rows.

    Args:
      path: replaced as a whole if it is there.
      files: names of the clips.
      decisions: [clips], 0, 1 or bool, NaN where a clip was not scored.

    Raises:
      ValueError: a decision is something else.
    """
    words = {0.0: "0", 1.0: "1"}
    values = np.asarray(decisions, np.float64).tolist()
    for value in values:
        if value not in words and not np.isnan(value):
            raise ValueError(f"a decision must be 0, 1 or NaN, not {value!r}")
    _write_rows(path, files, [words.get(value, "nan") for value in values])


def place_threshold(scores: ArrayLike, count: int) -> float:
    """Find the score above which `count` of some scores lie (fewer, where some are equal).

    Args:
      scores: [clips], NaN where a clip was not scored.
      count: at least 0.
    """
    scores = np.asarray(scores, dtype=np.float64)
    descending = -np.sort(-scores[~np.isnan(scores)])
    return float(descending[count]) if count < len(descending) else -np.inf


def fit_threshold(training_scores: ArrayLike, percentile: float = 90) -> tuple[float, str]:
    """Find the score above which a clip is called anomalous.

    As in the official baseline: the percentile of a gamma distribution (shape, location and scale
    by maximum likelihood) fitted to the scores of the normal training clips. Where that says
    nothing, the percentile of the scores themselves.

    Args:
      training_scores: [clips], NaN and infinite ones are left out.
      percentile: between 0 and 100.

    Returns:
      The threshold, and how it was found: "gamma" or "empirical: <reason>".

    Raises:
      ValueError: no finite score, or `percentile` outside 0 to 100.
    """
    scores = np.asarray(training_scores, dtype=np.float64)
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        raise ValueError("no threshold without a finite training score")
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be from 0 to 100, not {percentile!r}")
    empirical = float(np.percentile(scores, percentile))
    if scores.size < 3:
        return empirical, "empirical: fewer than 3 training scores"
    if scores.min() == scores.max():
        return empirical, "empirical: all training scores are equal"
    try:
        with warnings.catch_warnings(action="ignore"):
            fitted = scipy.stats.gamma.fit(scores)
            threshold = float(scipy.stats.gamma.ppf(percentile / 100, *fitted))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return empirical, f"empirical: the gamma fit failed ({error})"
    if not np.isfinite(threshold):
        return empirical, "empirical: the gamma fit is not finite"
    if not scores.min() <= threshold <= scores.max():
        return empirical, "empirical: the gamma fit lies outside the training scores"
    above = np.mean(scores > threshold) - (1 - percentile / 100)
    if abs(above) > FIT_TOLERANCE:
        return empirical, "empirical: the gamma fit disagrees with the training scores"
    return threshold, "gamma"


def _write_rows(path: str | Path, files: Sequence[str], values: Iterable[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(files, values, strict=True))
    write_text(path, text.getvalue())
