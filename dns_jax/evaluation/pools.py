"""Eq. 7 on drawn parts of a test set, and what it is worth there (section IV-B).

One jitted program (`measure_pool`) smooths by a drawn pool of a machine and evaluates every K and
Data of Table I at once; it serves all draws of all curves of `dns_jax.evaluation.curves`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax.evaluation.metrics import harmonic_mean
from dns_jax.evaluation.selection import neighbour_grid
from dns_jax.evaluation.systems import DATA, take_unit
from dns_jax.scoring import Segments
from dns_jax.smoothing import smooth_sweep

MAX_FPR = 0.1  # the paper's p


class Pools(NamedTuple):
    """The test rows (segments) of a machine, pool by pool, filled up to the largest pool.

    Attributes:
      score: f32[pools, rows], a_G.
      feature: f32[pools, rows, D], f_D.
      clip: i32[pools, rows], number of the recording; that of all recordings where filled up.
      label: i32[clips], 0 normal, 1 anomalous, -1 unknown.
      source: bool[clips], of the source domain.
      section: i32[clips], from 0, in the order of the sections; -1 of a recording that is in the
        pool and not evaluated.
    """

    score: np.ndarray
    feature: np.ndarray
    clip: np.ndarray
    label: np.ndarray
    source: np.ndarray
    section: np.ndarray


def stack_pools(segments: Segments, sections: Sequence[int], unit: str, scope: str) -> Pools:
    """Arrange the test segments of some sections as the pools that eq. 7 is applied to.

    Args:
      segments: of one machine.
      sections: those to evaluate.
      unit: "segment" or "clip", the rows of a pool (`config.smoothing.unit`).
      scope: "section" or "machine", what one pool holds (`config.smoothing.scope`).
    """
    asked = (segments.split == "test") & (
        np.isin(segments.section, sections) | (scope == "machine")
    )
    rows = take_unit(segments.select(asked), unit)
    _, first, clip = np.unique(rows.clip, return_index=True, return_inverse=True)
    order = sorted({*sections})
    of_pool = [rows.section == s for s in np.unique(rows.section)]
    of_pool = of_pool if scope == "section" else [np.ones(len(rows.clip), bool)]
    size = max((int(np.sum(pool)) for pool in of_pool), default=0)

    def stack(values, fill):
        filled = np.full((len(of_pool), size, *values.shape[1:]), fill, values.dtype)
        for part, pool in zip(filled, of_pool, strict=True):
            part[: np.sum(pool)] = values[pool]
        return filled

    return Pools(
        score=stack(rows.ae_score, 0),
        feature=stack(rows.feature, 0),
        clip=stack(clip.astype(np.int32), len(first)),
        label=rows.label[first],
        source=rows.domain[first] == "source",
        section=np.array(
            [order.index(s) if s in order else -1 for s in rows.section[first].tolist()], np.int32
        ),
    )


def list_ks(pools: Pools) -> tuple[int, ...]:
    """List the K to try, as for Table I: powers of two up to the smallest pool."""
    there = pools.clip < len(pools.label)
    return neighbour_grid(np.sum(there, axis=1).min(initial=there.shape[1]))


def measure_ranking(
    anomalous: jax.Array, scores: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute AUC and pAUC as `metrics` does, inside a jitted program.

    Args:
      anomalous: bool[clips].
      scores: f32[clips], ties are shared out.
      counted: bool[clips], those that are evaluated; a NaN score is not.

    Returns:
      Both in [0, 1]; NaN for clips of one class only.
    """
    counted &= ~jnp.isnan(scores)
    scores = jnp.where(counted, scores, -jnp.inf)
    order = jnp.argsort(-scores)
    scores = scores[order]
    last = jnp.append(scores[1:] != scores[:-1], True)  # of those that tie: a corner of the curve

    def rate(of_class):
        found = jnp.cumsum((of_class & counted)[order])
        return jax.lax.cummax(jnp.where(last, found, 0)) / found[-1]

    hits, alarms = rate(anomalous), rate(~anomalous)
    hits_before, alarms_before = (jnp.append(0.0, x[:-1]) for x in (hits, alarms))

    def area(limit):
        start, end = (jnp.minimum(x, limit) for x in (alarms_before, alarms))
        slope = (hits - hits_before) / jnp.maximum(alarms - alarms_before, 1e-9)
        height = hits_before + slope * (end - start) / 2
        return jnp.sum(jnp.where(end > start, (end - start) * height, 0))

    evaluable = jnp.any(anomalous & counted) & jnp.any(~anomalous & counted)
    least = MAX_FPR**2 / 2  # what chance reaches; McClish maps it to 0.5
    pauc = (1 + (area(MAX_FPR) - least) / (MAX_FPR - least)) / 2
    return tuple(jnp.where(evaluable, value, jnp.nan) for value in (area(1.0), pauc))


@partial(jax.jit, static_argnames=("ks", "sections"))
def measure_pool(pools, groups, drawn, *, ks, sections) -> jax.Array:
    """Smooth by the drawn recordings and evaluate, for every Data and K.

    Args:
      pools: of `stack_pools`.
      groups: i32[pools, rows], rows of equal group are never neighbours.
      drawn: bool[clips], the recordings whose rows may be neighbours.
      ks: the K.
      sections: how many there are.

    Returns:
      f32[2, Data (source, all), K, sections, 2]: first of the drawn recordings, then of all; AUC
      and pAUC, both domains pooled. NaN where K exceeds the smallest pool, and where the evaluated
      recordings are of one class.
    """
    clips = len(pools.label)
    there = pools.clip < clips
    clip = jnp.minimum(pools.clip, clips - 1)
    rows_of_clip = jnp.zeros(clips).at[pools.clip].add(1.0, mode="drop")
    members = pools.section == jnp.arange(sections)[:, None]  # bool[sections, clips]
    evaluated = jnp.stack([drawn, jnp.ones_like(drawn)])[:, None] & members & (pools.label >= 0)

    def measure(scores):
        rank = partial(measure_ranking, pools.label == 1, scores)
        return jax.vmap(jax.vmap(lambda of: jnp.stack(rank(of))))(evaluated)

    results = []
    for data in DATA:
        candidates = there & (drawn & (pools.source | (data == "all")))[clip]
        a_prop = jax.lax.map(
            lambda pool: smooth_sweep(*pool[:2], ks, candidates=pool[2], groups=pool[3]),
            (pools.score, pools.feature, candidates, groups),
        )
        a_prop = jnp.moveaxis(a_prop, 1, 0)  # [K, pools, rows]
        total = jnp.zeros((len(ks), clips)).at[:, pools.clip].add(a_prop, mode="drop")
        fits = jnp.array(ks) <= jnp.sum(candidates, axis=1).min()
        measured = jax.vmap(measure, out_axes=1)(total / rows_of_clip)
        results.append(jnp.where(fits[:, None, None], measured, jnp.nan))
    return jnp.stack(results, axis=1)


def measure_draws(pools, drawn, ks, own_windows=True):
    """f64[draws, 2 (drawn, all), Data, K], the harmonic mean of AUC and pAUC over all sections."""
    rows = np.arange(pools.clip.size, dtype=np.int32).reshape(pools.clip.shape)
    groups = rows if own_windows else pools.clip
    pools, groups = jax.device_put((pools, groups))
    sections = int(pools.section.max()) + 1
    measured = [measure_pool(pools, groups, draw, ks=ks, sections=sections) for draw in drawn]
    return harmonic_mean(np.stack(measured), axis=(-2, -1))


def count_own_windows(pools: Pools, ks: Sequence[int], data: str) -> np.ndarray:
    """Count whose windows the neighbours are.

    Args:
      pools: of `stack_pools`.
      ks: the K.
      data: "source" or "all", whose rows may be neighbours.

    Returns:
      f64[K], the share of the K - 1 neighbours that are windows of the row's own recording, over
      all rows; NaN for K = 1 and where K exceeds the smallest pool.
    """
    found = np.zeros(pools.clip.shape[1])  # own windows by rank, the nearest first
    smallest = len(found)
    for feature, clip in zip(pools.feature, pools.clip, strict=True):
        rows = np.flatnonzero(clip < len(pools.label))
        feature, clip = feature[rows].astype(np.float64), clip[rows]
        candidates = np.flatnonzero(pools.source[clip] | (data == "all"))
        smallest, squares = min(smallest, len(candidates)), np.sum(feature**2, axis=1)
        for row in range(len(rows)):
            others = candidates[candidates != row]
            distance = squares[others] - 2 * feature[others] @ feature[row]
            order = others[np.argsort(distance, kind="stable")]
            found[: len(order)] += clip[order] == clip[row]
    rows = np.sum(pools.clip < len(pools.label))
    counts = np.append(0, np.cumsum(found))
    return np.array([counts[k - 1] / (rows * (k - 1)) if 1 < k <= smallest else np.nan for k in ks])
