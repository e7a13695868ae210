"""The systems of Table II from the segments of one machine: SerialOE and Proposed (eq. 7).

Every candidate of Table I (clusters or K, and Data) is computed, so that the selection on the
validation sections and the oracle's only compare what is there. A recording's score is the mean
over its segments.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from jax.sharding import Mesh
from sklearn.mixture import GaussianMixture

from dns_jax.evaluation.selection import neighbour_grid
from dns_jax.inlier import fit_inlier, score_features
from dns_jax.parallel import smooth_spread
from dns_jax.scoring import Segments

DATA = ("source", "all")

Candidate = tuple[int, str]  # clusters or K, and Data


def average_segments(scores: np.ndarray, clip: np.ndarray, clips: Sequence[str]) -> np.ndarray:
    """Average over the segments of each recording.

    Args:
      scores: f32[segments].
      clip: U[segments], the recording of each.
      clips: the recordings that are asked for.

    Returns:
      f64[clips]; NaN for a recording that has no segment.
    """
    names, member = np.unique(clip, return_inverse=True)
    means = np.bincount(member, scores.astype(np.float64)) / np.bincount(member)
    mean_of = dict(zip(names.tolist(), means.tolist(), strict=True))
    return np.array([mean_of.get(name, np.nan) for name in clips])


def fit_inliers(
    segments: Segments,
    fitted_on: np.ndarray,
    clusters: Sequence[int],
    seed: int,
    say: Callable[[str], None],
    pause: Callable[[], None] = lambda: None,
) -> dict[Candidate, dict[int, GaussianMixture]]:
    """Fit h for every candidate and section.

    Args:
      segments: of one machine.
      fitted_on: bool[segments], normal training segments that h may be fitted on.
      clusters: numbers of Gaussians to try.
      seed: of the fits.
      say: told of every candidate that cannot be fitted in some section, and dropped.
      pause: called before every candidate; may raise to stop.

    Returns:
      {(clusters, Data): {section: h}} with the candidates that could be fitted in all sections.
    """
    sections = np.unique(segments.section[segments.split == "train"]).tolist()
    fitted = {}
    for size, data in product(clusters, DATA):
        pause()
        allowed = fitted_on & _in_domain(segments.domain, data)
        try:
            fitted[size, data] = {
                section: fit_inlier(
                    segments.feature[allowed & (segments.section == section)], size, seed
                )
                for section in sections
            }
        except ValueError as error:
            reason = str(error).splitlines()[0]
            say(f"SerialOE: {size} clusters on {data} data cannot be fitted: {reason}")
    return fitted


def score_by_inliers(segments: Segments, inliers: dict[int, GaussianMixture]) -> np.ndarray:
    """Return f64[segments], SerialOE's score of every segment under the h of its section."""
    scores = np.full(len(segments.clip), np.nan)
    for section, inlier in inliers.items():
        rows = segments.section == section
        scores[rows] = score_features(inlier, segments.feature[rows])
    return scores


def smooth_candidates(
    segments: Segments, config, clips: Sequence[str], mesh: Mesh
) -> dict[Candidate, np.ndarray]:
    """Compute a_prop (eq. 7) of every test recording for each K and Data.

    Args:
      segments: the test segments of one machine, the set Y.
      config: `config.smoothing`: unit and scope of the pool.
      clips: the recordings that are asked for.
      mesh: the devices, which share the rows to be smoothed.

    Returns:
      {(K, Data): f64[clips]} with K in powers of two up to the smallest pool of that Data.
    """
    pool = take_unit(segments, config.unit)
    number = pool.section if config.scope == "section" else np.zeros_like(pool.section)
    scopes = [number == scope for scope in np.unique(number)]
    smoothed = {}
    for data in DATA:
        allowed = _in_domain(pool.domain, data)
        ks = neighbour_grid(min(np.sum(allowed & scope) for scope in scopes))
        if not ks:
            continue
        scores = np.empty((len(ks), len(pool.clip)))
        for scope in scopes:
            rows = pool.ae_score[scope], pool.feature[scope], np.arange(np.sum(scope))
            scores[:, scope] = smooth_spread(mesh, rows, rows, allowed[scope], ks)
        for k, row in zip(ks, scores, strict=True):
            smoothed[k, data] = average_segments(row, pool.clip, clips)
    return smoothed


def smooth_training(
    training: Segments,
    test: Segments,
    choice: Candidate,
    config,
    clips: Sequence[str],
    mesh: Mesh,
) -> np.ndarray:
    """Smooth training recordings as queries against the test pool, for the decision threshold.

    Args:
      training: the training segments of one machine.
      test: its test segments, the set Y.
      choice: (K, Data).
      config: `config.smoothing`.
      clips: the recordings that are asked for.
      mesh: the devices, which share the rows to be smoothed.

    Returns:
      f64[clips]; NaN in a section without test recordings.
    """
    k, data = choice
    queries, pool = take_unit(training, config.unit), take_unit(test, config.unit)
    scores = np.full(len(queries.clip), np.nan)
    for section in np.unique(pool.section):
        asked = queries.section == section
        scope = (pool.section == section) | (config.scope == "machine")
        scores[asked] = smooth_spread(
            mesh,
            (queries.ae_score[asked], queries.feature[asked], None),
            (pool.ae_score[scope], pool.feature[scope], None),
            _in_domain(pool.domain[scope], data),
            (k,),
        )[0]
    return average_segments(scores, queries.clip, clips)


def take_unit(segments: Segments, unit: str) -> Segments:
    """Return the rows of the pool: segments, or one row a recording where `unit` is "clip"."""
    if unit == "segment":
        return segments
    _, first, member = np.unique(segments.clip, return_index=True, return_inverse=True)
    count = np.bincount(member)

    def average(rows):
        total = np.zeros((len(first), rows.shape[1]))
        np.add.at(total, member, rows)
        return (total / count[:, None]).astype(np.float32)

    return segments.select(first)._replace(
        ae_score=(np.bincount(member, segments.ae_score) / count).astype(np.float32),
        feature=average(segments.feature),
        spectrum=average(segments.spectrum),
        residual=average(segments.residual),
    )


def count_smallest(test: Segments, config, data: str = "all") -> int:
    """Count the rows of Data in the smallest pool of some test segments; `config.smoothing`."""
    rows = take_unit(test, config.unit)
    number = rows.section if config.scope == "section" else np.zeros_like(rows.section)
    _, member = np.unique(number, return_inverse=True)
    return int(np.bincount(member, _in_domain(rows.domain, data)).min())


def _in_domain(domain, data):
    return (domain == "source") | (data == "all")
