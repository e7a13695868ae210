"""What makes scores and feature spaces comparable where nobody has labels (`label_free`)."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from dns_jax.smoothing import smooth_queries

NORMAL = 10  # training rows that say what is usual
FEWEST = 20  # rows of a domain that are a scale of their own


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


def join_spaces(spaces: Sequence[np.ndarray], pool: np.ndarray) -> np.ndarray:
    """Join feature spaces, each divided by the square root of its total variance.

    Args:
      spaces: of real[rows, D].
      pool: rows over which the variance is, those without finite numbers left out.

    Returns:
      f32[rows, sum of D]; a space that is constant in the pool stays as it is.
    """
    joined = []
    for space in spaces:
        space = np.asarray(space, np.float64)
        there = space[pool]
        there = there[np.isfinite(there).all(axis=1)]
        scale = np.sqrt(there.var(axis=0).sum()) if len(there) else 0.0
        joined.append(space / (scale or 1.0))
    return np.hstack(joined).astype(np.float32)
