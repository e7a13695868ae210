"""Eq. 7 in NumPy: the mean over a stable sort of float64 distances, row by row."""

import numpy as np


def oracle_queries(
    query_scores,
    query_features,
    pool_scores,
    pool_features,
    k,
    candidates=None,
    query_groups=None,
    pool_groups=None,
):
    query_scores, query_features, pool_scores, pool_features = (
        np.asarray(x, np.float64)
        for x in (query_scores, query_features, pool_scores, pool_features)
    )
    usable = np.isfinite(pool_features).all(1)
    if candidates is not None:
        usable = usable & candidates
    smoothed = np.full(query_scores.shape, np.nan)
    for i, (score, feature) in enumerate(zip(query_scores, query_features, strict=True)):
        if not np.isfinite(feature).all():
            continue
        allowed = usable if query_groups is None else usable & (pool_groups != query_groups[i])
        rows = np.flatnonzero(allowed)
        distances = ((pool_features[rows] - feature) ** 2).sum(1)
        nearest = rows[np.argsort(distances, kind="stable")[: k - 1]]
        smoothed[i] = np.concatenate([score[None], pool_scores[nearest]]).mean(0)
    return smoothed


def oracle(scores, features, k, candidates=None, groups=None):
    groups = np.arange(len(features)) if groups is None else groups
    return oracle_queries(scores, features, scores, features, k, candidates, groups, groups)
