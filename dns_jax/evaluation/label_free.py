r"""Beyond the paper: smoothing where nobody has labels. docs/beyond.md says what it is worth.

    x_i = sum over the generative scores g of N(c(g_i)),   a = smoothed x

c is "none", "log", or "calibrated": less the mean over the `NORMAL` training rows nearest in f_D,
what is usual where y_i lies. N is "none", "z", or "ranks": the rank among the test rows of the same
section and domain, as a quantile of the normal distribution; so scores of any unit and tail can be
added, and no domain is louder than another. Smoothed is by eq. 7 or by diffusion (`diffuse`).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from scipy.special import ndtri

from dns_jax.evaluation.systems import average_segments, take_unit
from dns_jax.scoring import Segments
from dns_jax.smoothing import diffuse, diffuse_queries, smooth, smooth_queries

NORMAL = 10  # training rows that say what is usual
NEIGHBOURS = 10  # of a row of the graph
FEWEST = 20  # rows of a domain that are a scale of their own
MOST_SHARE = 5  # K is at most a fifth of the pool: beyond the rarer kind's number it mixes both

PAPER = {
    "generative": "ae",
    "score_transform": "none",
    "domain_normalisation": "none",
    "pool": "test",
    "method": "mean",
}
TOGETHER = "label_free"  # the system of all options that are set


def list_variants(smoothing) -> dict[str, dict[str, str]]:
    """List the systems that a configuration asks for beyond those of the paper.

    Args:
      smoothing: `config.smoothing`.

    Returns:
      {system: its options}: each option that is not the paper's by itself, named by its value, and
      all of them together, `TOGETHER`. One option is that alone; the paper's have nothing.
    """
    ours = {name: smoothing[name] for name in PAPER}
    changed = {name: value for name, value in ours.items() if value != PAPER[name]}
    alone = {f"only_{value}": PAPER | {name: value} for name, value in changed.items()}
    return (alone if len(changed) > 1 else {}) | ({TOGETHER: ours} if changed else {})


def describe(system: str) -> str:
    """Name a system of `list_variants` as the tables do."""
    return "Label-free" if system == TOGETHER else f"Only {system.removeprefix('only_')}"


def score_label_free(
    segments: Segments,
    serial_oe: np.ndarray,
    options: Mapping[str, str],
    smoothing,
    clips: Sequence[str],
) -> np.ndarray:
    """Score recordings of a machine, with nothing that labels would have to choose.

    Test recordings are smoothed in the pool, training recordings as queries of it (for the
    threshold), or in it. Segments of one recording are not neighbours in a graph.

    Args:
      segments: all of the machine.
      serial_oe: f64[segments], SerialOE's scores with the default number of Gaussians.
      options: of `list_variants`.
      smoothing: `config.smoothing`; K is `default_k`, at most a fifth of the pool.
      clips: the recordings that are asked for.

    Returns:
      f64[clips], high means anomalous; NaN in a pool without test recordings.
    """
    rows = take_unit(segments, smoothing["unit"])
    if smoothing["unit"] == "clip":
        serial_oe = average_segments(serial_oe, segments.clip, rows.clip)
    x = _make_scores(rows, {"ae": rows.ae_score, "serial_oe": serial_oe}, options)
    _, clip = np.unique(rows.clip, return_inverse=True)
    scope = rows.section if smoothing["scope"] == "section" else np.zeros_like(rows.section)
    tests, result = (rows.split == "test") & np.isfinite(x), np.full(len(x), np.nan)
    trains = (rows.split == "train") & np.isfinite(x)
    for number in np.unique(scope[tests]):
        test = np.flatnonzero((scope == number) & tests)
        train = np.flatnonzero((scope == number) & trains)
        in_pool = np.append(test, train) if options["pool"] == "test+train" else test
        k = min(smoothing["default_k"], max(1, len(in_pool) // MOST_SHARE))
        own = x[in_pool], rows.feature[in_pool]
        queries = x[train], rows.feature[train]
        of_pool, of_queries = clip[in_pool], clip[train]
        if options["method"] == "mean" or len(in_pool) == 1:
            result[in_pool] = smooth(*own, k)
            smooth_train = partial(smooth_queries, k=k)
        else:
            n = min(NEIGHBOURS, len(in_pool) - 1)
            result[in_pool] = diffuse(*own, n_neighbors=n, groups=of_pool)
            smooth_train = partial(
                diffuse_queries, n_neighbors=n, query_groups=of_queries, pool_groups=of_pool
            )
        if options["pool"] == "test":
            result[train] = smooth_train(*queries, *own)
    return average_segments(result, rows.clip, clips)


def _make_scores(rows, scores, options):
    """f32[rows], x of the module."""
    how, normalisation = options["score_transform"], options["domain_normalisation"]
    parts = options["generative"].split("+")
    if how != "none":
        scores = scores | {"ae": np.log(np.maximum(scores["ae"], np.finfo(np.float32).tiny))}
    values = np.column_stack([scores[part] for part in parts]).astype(np.float64)
    if normalisation == "none" and len(parts) > 1:
        normalisation = "z"  # or their units would weigh them
    tests = rows.split == "test"
    for section in np.unique(rows.section):
        here = rows.section == section
        if how == "calibrated":
            values[here] = _calibrate_section(rows.select(here), values[here])
        if normalisation != "none":
            normalise = {"z": standardise, "ranks": rank_normally}[normalisation]
            among = here & tests
            values[here] = np.column_stack(
                [
                    normalise(column[here], rows.domain[here], column[among], rows.domain[among])
                    for column in values.T
                ]
            )
    return values.sum(axis=1).astype(np.float32)


def _calibrate_section(rows, values):
    normal = rows.split == "train"
    _, clip = np.unique(rows.clip, return_inverse=True)
    return calibrate(
        values,
        rows.feature,
        values[normal],
        rows.feature[normal],
        groups=clip,  # a training recording is not what is usual for itself
        normal_groups=clip[normal],
    )


def calibrate(
    scores, features, normal_scores, normal_features, *, groups=None, normal_groups=None
) -> np.ndarray:
    """Subtract from each score the mean over the nearest training rows.

    Args:
      scores: real[N] or real[N, S], of which a difference means something, such as logarithms.
      features: real[N, D], f_D.
      normal_scores: real[P] or real[P, S], of the section's training rows, all normal.
      normal_features: real[P, D].
      groups: int[N], training rows of the own group are left out (None: none are). Goes with
        `normal_groups`.
      normal_groups: int[P].

    Returns:
      f32 of the shape of `scores`; a row without a training row keeps its score less the mean of
      all, one with a non-finite feature is NaN. Training rows without a finite score count nowhere.
    """
    columns, usual = (np.asarray(x, np.float64) for x in (scores, normal_scores))
    if columns.ndim == 1:
        columns, usual = columns[:, None], usual[:, None]
    known = np.isfinite(usual).all(axis=1)
    usual, normal_features = usual[known], np.asarray(normal_features)[known]
    normal_groups = None if normal_groups is None else np.asarray(normal_groups)[known]
    level = usual.mean(axis=0) if len(usual) else 0.0
    # Of the neighbours alone: a query of 0, and a column that counts them.
    pool = np.column_stack([usual - level, np.ones(len(usual))]).astype(np.float32)
    nothing = np.zeros((len(columns), pool.shape[1]), np.float32)
    found = smooth_queries(
        nothing,
        features,
        pool,
        normal_features,
        1 + min(NORMAL, len(usual)),
        query_groups=groups,
        pool_groups=normal_groups,
    )
    *sums, count = np.asarray(found, np.float64).T
    means = np.divide(sums, count, out=np.zeros_like(sums), where=count != 0)
    return (columns - level - means.T).astype(np.float32).reshape(np.shape(scores))


def rank_normally(values, domains, of_values, of_domains) -> np.ndarray:
    """Turn values into normal scores: quantiles of the normal distribution by their rank.

    Args:
      values: real[N]; ties share their rank.
      domains: [N].
      of_values: real[M], among which they are ranked. One that is among them counts itself.
      of_domains: [M]; those of the value's own domain count, or all if it has less than `FEWEST`.

    Returns:
      f32[N], NaN where a value is, or where there is nothing to be ranked among.
    """

    def rank(values, among):
        among = np.sort(among)
        below, up_to = (np.searchsorted(among, values, side) for side in ("left", "right"))
        # The middle of its share; one outside is halfway between the last middle and the end.
        middle = (below + up_to) / 2
        return ndtri(np.clip(middle, 0.25, len(among) - 0.25) / len(among))

    return _by_domain(rank, values, domains, of_values, of_domains)


def standardise(values, domains, of_values, of_domains) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation; arguments as `rank_normally`."""

    def scale(values, among):
        return (values - among.mean()) / (among.std() or 1.0)

    return _by_domain(scale, values, domains, of_values, of_domains)


def _by_domain(apply, values, domains, of_values, of_domains):
    values, of_values = np.asarray(values, np.float64), np.asarray(of_values, np.float64)
    domains, of_domains = np.asarray(domains), np.asarray(of_domains)
    result, counts = np.full(len(values), np.nan), np.isfinite(of_values)
    for domain in np.unique(domains):
        rows = (domains == domain) & ~np.isnan(values)
        of_domain = counts & (of_domains == domain)
        among = of_values[of_domain if np.sum(of_domain) >= FEWEST else counts]
        if len(among):
            result[rows] = apply(values[rows], among)
    return result.astype(np.float32)
