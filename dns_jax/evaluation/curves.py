"""How the metric depends on K and on the pool Y: Fig. 5, and two curves that the paper lacks.

A curve is a table of `COLUMNS`: its name, x, the line, the harmonic mean of AUC and pAUC over all
sections, and the standard deviation over the draws.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dns_jax.evaluation.pools import Pools, count_own_windows, list_ks, measure_draws
from dns_jax.evaluation.systems import DATA

SHARES = tuple(np.arange(1, 21) / 20)  # of the recordings, Fig. 5
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of anomalies among the recordings of the pool
REPETITIONS = 20  # seeds of Fig. 5
COLUMNS = ("curve", "x", "line", "value", "std")


def measure_neighbours(pools: Pools) -> pd.DataFrame:
    """Measure the metric against K for every Data, with and without windows of the own recording.

    Returns:
      `COLUMNS`: curve "neighbours" (x: K; lines "source", "all" and the same with ", other
      recordings"; value: harmonic mean of AUC and pAUC) and curve "own_windows" (x: K; lines
      "source", "all"; value: share of the K - 1 neighbours that are windows of the own recording).
    """
    ks = list_ks(pools)
    every = np.ones((1, len(pools.label)), bool)
    rows = []
    for own_windows, ending in ((True, ""), (False, ", other recordings")):
        values = measure_draws(pools, every, ks, own_windows)[0, 0]
        for data, of_data in zip(DATA, values, strict=True):
            rows += [
                ("neighbours", k, data + ending, v, np.nan)
                for k, v in zip(ks, of_data, strict=True)
            ]
    for data in DATA:
        shares = count_own_windows(pools, ks, data)
        rows += [
            ("own_windows", k, data, share, np.nan)
            for k, share in zip(ks, shares, strict=True)
            if k > 1
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_shares(pools: Pools, shares: Sequence[float], repetitions: int) -> np.ndarray:
    """Draw shares of the recordings, keeping the ratio of labels and domains in each section.

    Of every label, domain and section the share is drawn, rounded, and one recording at least.

    Returns:
      bool[shares, repetitions, recordings].
    """
    drawn = np.zeros((len(shares), repetitions, len(pools.label)), bool)
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        for members in _group(pools.section, pools.source, pools.label):
            order = rng.permutation(members)
            for share, row in zip(shares, drawn[:, repetition], strict=True):
                row[order[: max(1, round(share * len(order)))]] = True
    return drawn


def draw_rates(pools: Pools, rates: Sequence[float], repetitions: int) -> np.ndarray:
    """Draw recordings so that the rate of anomalies in every section and domain is the given one.

    Anomalies are left out, or normal recordings where there are too few anomalies; where there are
    none, all normal ones stay. A fraction of a recording is drawn or not at random, so that the
    rate holds on average.

    Returns:
      bool[rates, repetitions, recordings].
    """
    drawn = np.zeros((len(rates), repetitions, len(pools.label)), bool)
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        for members in _group(pools.section, pools.source):
            normal, anomalous = (
                rng.permutation(members[pools.label[members] == label]) for label in (0, 1)
            )
            for rate, row in zip(rates, drawn[:, repetition], strict=True):
                odds = rate / (1 - rate)
                for of_label, fitting in (
                    (normal, len(anomalous) / odds if len(anomalous) else np.inf),
                    (anomalous, len(normal) * odds),
                ):
                    row[of_label[: int(min(len(of_label), fitting) + rng.uniform())]] = True
    return drawn


def measure_pool_sizes(
    pools: Pools, shares: Sequence[float] = SHARES, repetitions: int = REPETITIONS
) -> pd.DataFrame:
    """Measure Fig. 5: smoothing with a share of the recordings, the best K and Data each time.

    Args:
      pools: of `pools.stack_pools`.
      shares: of the recordings, in (0, 1].
      repetitions: draws of each share.

    Returns:
      `COLUMNS`: curve "pool", x: share; line "drawn" (the drawn recordings are pool and evaluated
      set, as in the paper) and "all" (all are evaluated against the drawn pool).
    """
    drawn = draw_shares(pools, shares, repetitions)
    values = measure_draws(pools, drawn.reshape(-1, drawn.shape[-1]), list_ks(pools))
    best = _best(values).reshape(*drawn.shape[:2], 2)
    return _summarise("pool", shares, {"drawn": best[..., 0], "all": best[..., 1]})


def measure_anomaly_rates(
    pools: Pools,
    choice: tuple[int, str] | None = None,
    rates: Sequence[float] = RATES,
    repetitions: int = REPETITIONS,
) -> pd.DataFrame:
    """Measure smoothing in pools of few anomalies: a plant is not half broken, as a test set is.

    All recordings are evaluated, by windows of other recordings only: then it does not matter
    whether a recording is itself in the pool.

    Args:
      pools: of `pools.stack_pools`.
      choice: (K, Data) of a second line, as chosen for Table I.
      rates: of anomalies in the pool, in (0, 1).
      repetitions: draws of each rate.

    Returns:
      `COLUMNS`: curve "rate", x: rate; line "best K and Data" and "K = <K>, <Data>".
    """
    drawn, ks = draw_rates(pools, rates, repetitions), list_ks(pools)
    values = measure_draws(pools, drawn.reshape(-1, drawn.shape[-1]), ks, own_windows=False)[:, 1]
    values = values.reshape(*drawn.shape[:2], *values.shape[1:])
    lines = {"best K and Data": _best(values)}
    if choice and choice[0] in ks:
        chosen = values[..., DATA.index(choice[1]), ks.index(choice[0])]
        lines[f"K = {choice[0]:,}, {choice[1]}"] = chosen
    return _summarise("rate", rates, lines)


def _best(values):
    """The highest over Data and K, the last axes."""
    return np.nanmax(values, axis=(-2, -1))


def _summarise(curve, xs, lines):
    """The table of mean and standard deviation over the draws of {line: f64[xs, draws]}."""
    rows = [
        (curve, x, line, np.mean(of_x), np.std(of_x, ddof=1))
        for line, values in lines.items()
        for x, of_x in zip(xs, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _group(*keys):
    """The recordings that have all keys in common, group by group."""
    _, group = np.unique(np.stack(keys), axis=1, return_inverse=True)
    return [np.flatnonzero(group == number) for number in range(group.max() + 1)]
