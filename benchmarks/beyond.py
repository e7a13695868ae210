r"""Is there something better than eq. 7 where nobody has labels? docs/beyond.md has the answer.

python benchmarks/beyond.py CELLS --seeds 2 3 4 5 6 --out=OUT

CELLS holds the files of `beyond_cells.py`. Every variant (`VARIANTS`) smooths every pool: the test
clips of one id, of which so many anomalous ones are drawn that they are 50, 20, 10, 5 or 1 % (all
at 50 %; 3, 5, 40 and 40 draws a seed). Under shift the networks are those of 6 dB; 6 dB is the
source domain and 0 or -6 dB the target, each a pool of its own with 50 or 10 % anomalous. AUC and
pAUC of every pool, and those of both domains together, go to a file in OUT for each of CELLS, from
which `beyond_tables.py` makes the tables. Files that are there are left, so that one process may
do `--machines fan` and another `--machines slider`.
"""

import argparse
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from sklearn.metrics import pairwise_distances_argmin_min
from tqdm import tqdm

from dns_jax import diffuse, smooth, smooth_sweep
from dns_jax.evaluation.normalising import calibrate, join_spaces, rank_normally, standardise
from dns_jax.evaluation.pools import measure_ranking
from dns_jax.files import write_text

SNRS = ("snr6", "snr0", "snr_6")
SHIFTED = SNRS[0]
IDS = 4
DRAWS = {50: 1, 20: 3, 10: 5, 5: 40, 1: 40}  # by % of anomalies
SHIFTED_AT = (50, 10)  # %
K = 32
KS = (8, 16, 32, 64, 128)
ROWS = 128  # pools are filled up to multiples, so that few programs are compiled

# Name: what is smoothed (a column of `make_columns`), and how (a key of `smooth_columns`).
VARIANTS = {
    "a_G": ("ae", "alone"),
    "SerialOE": ("serial_oe", "alone"),
    "SerialOE, ranks": ("ranks serial_oe", "alone"),
    "GMM": ("gmm", "alone"),
    "eq. 7": ("ae", "mean"),
    "eq. 7, K at most N/5": ("ae", "capped"),
    "eq. 7, K = N/5": ("ae", "fifth"),
    "log": ("log", "mean"),
    "diffused": ("ae", "diffused"),
    "log, diffused": ("log", "diffused"),
    "log, diffused, alpha 0.95": ("log", "further"),
    "log, f_D + residual": ("log", "joint mean"),
    "log, f_D + residual, diffused": ("log", "joint diffused"),
    "z log": ("z log", "alone"),
    "z log, eq. 7": ("z log", "mean"),
    "log, training pool": ("log", "trained mean"),
    "log, training pool, diffused": ("log", "trained diffused"),
    "GMM, diffused": ("gmm", "diffused"),
    "SerialOE, eq. 7": ("serial_oe", "mean"),
    "SerialOE, diffused": ("serial_oe", "diffused"),
    "z log + z GMM, diffused": ("z gmm", "diffused"),
    "z log + z SerialOE, diffused": ("z serial_oe", "diffused"),
    "nearest normal": ("nearest", "alone"),
    "nearest normal, diffused": ("nearest", "diffused"),
    "calibrated, diffused": ("local", "diffused"),
    "ranks, diffused": ("ranks", "diffused"),
    "ranks, calibrated, eq. 7": ("ranks local", "mean"),
    "ranks, calibrated, diffused": ("ranks local", "diffused"),
    "ranks, calibrated, f_D + residual, diffused": ("ranks local", "joint diffused"),
    "ranks, calibrated, two graphs": ("ranks local", "two graphs"),
    "ranks, calibrated, + GMM, diffused": ("ranks local gmm", "diffused"),
}


def make_columns(pool: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what may be smoothed, each f32[rows]."""
    test = np.column_stack([np.log(pool["ae"]), pool["serial_oe"], pool["gmm"]])
    normal = np.column_stack([np.log(pool["ae_train"]), pool["serial_oe_train"], pool["gmm_train"]])
    local = calibrate(test, pool["feature"], normal, pool["feature_train"])
    domain = pool["domain"]
    z = np.column_stack([standardise(x, domain, x, domain) for x in test.T])
    ranks, ranks_local = (
        [rank_normally(x, domain, x, domain) for x in columns.T] for columns in (test, local)
    )
    distance = pairwise_distances_argmin_min(pool["feature"], pool["feature_train"])[1]
    return {
        "ae": pool["ae"],
        "serial_oe": pool["serial_oe"],
        "gmm": pool["gmm"],
        "log": test[:, 0],
        "ranks serial_oe": ranks[1],
        "z log": z[:, 0],
        "z gmm": z[:, 0] + z[:, 2],
        "z serial_oe": z[:, 0] + z[:, 1],
        "nearest": np.log(distance + 1e-6),
        "local": local[:, 0],
        "ranks": ranks[0] + ranks[1],
        "ranks local": ranks_local[0] + ranks_local[1],
        "ranks local gmm": sum(ranks_local),
    }


def list_columns(smoother: str) -> list[str]:
    """List what a smoother has to smooth."""
    return list(dict.fromkeys(column for column, how in VARIANTS.values() if how == smoother))


@jax.jit
def smooth_columns(columns, spaces, pooled, there, k_fifth):
    """Smooth in all ways: {smoother: f32[rows, its columns]}.

    Args:
      columns: {smoother: f32[rows, its columns]}, those of "trained ..." of more rows.
      spaces: {"f_d", "residual", "joint": f32[rows, D]}.
      pooled: f_D of the test rows and of the training rows behind them, and which are there.
      there: bool[rows]; the others fill up.
      k_fifth: which of `KS` is the last that is at most a fifth of the rows.
    """
    f_d, joint = spaces["f_d"], spaces["joint"]
    all_features, all_there = pooled
    of_graphs = [
        diffuse(columns["two graphs"], spaces[name], candidates=there)
        for name in ("f_d", "residual")
    ]
    capped = KS.index(K)
    of_ks = smooth_sweep(columns["fifth"], f_d, KS, candidates=there)
    return {
        "alone": columns["alone"],
        "mean": smooth(columns["mean"], f_d, K, candidates=there),
        "fifth": of_ks[k_fifth],
        "capped": of_ks[jnp.minimum(k_fifth, capped)],  # of the same column
        "joint mean": smooth(columns["joint mean"], joint, K, candidates=there),
        "trained mean": smooth(columns["trained mean"], all_features, K, candidates=all_there),
        "diffused": diffuse(columns["diffused"], f_d, candidates=there),
        "further": diffuse(columns["further"], f_d, alpha=0.95, candidates=there),
        "joint diffused": diffuse(columns["joint diffused"], joint, candidates=there),
        "trained diffused": diffuse(
            columns["trained diffused"], all_features, candidates=all_there
        ),
        "two graphs": sum(of_graphs) / 2,
    }


@jax.jit
def measure_columns(scores, anomalous, there):
    """AUC and pAUC of every column: f32[columns, 2]."""
    rank = partial(measure_ranking, anomalous, counted=there)
    return jax.vmap(lambda x: jnp.stack(rank(scores=x)), in_axes=1)(scores)


def smooth_pool(pool: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of every variant, f32[rows, filled up]."""
    columns, rows = make_columns(pool), len(pool["label"])
    joint = join_spaces([pool["feature"], pool["residual"]], np.arange(rows))
    spaces = {"f_d": pool["feature"], "residual": pool["residual"], "joint": joint}
    there = fill(np.ones(rows, bool))

    def stack(smoother):
        of_test = fill(np.column_stack([columns[name] for name in list_columns(smoother)]))
        if not smoother.startswith("trained"):
            return of_test
        of_train = np.log(pool["ae_train"])[:, None]  # these take log a_G alone
        return fill(np.concatenate([of_test, of_train]))

    smoothed = smooth_columns(
        {how: np.float32(stack(how)) for how in {how for _, how in VARIANTS.values()}},
        {name: fill(x.astype(np.float32)) for name, x in spaces.items()},
        (
            fill(np.concatenate([fill(pool["feature"]), pool["feature_train"]])),
            fill(np.append(there, np.ones(len(pool["ae_train"]), bool))),
        ),
        there,
        max(0, np.searchsorted(KS, rows // 5, "right") - 1),
    )
    return {
        name: smoothed[how][: len(there), list_columns(how).index(column)]
        for name, (column, how) in VARIANTS.items()
    }


def fill(x: np.ndarray) -> np.ndarray:
    """Fill the rows up to a multiple of `ROWS`."""
    return np.pad(x, [(0, -len(x) % ROWS)] + [(0, 0)] * (x.ndim - 1))


def draw_rows(label: np.ndarray, percent: int, rng: np.random.Generator) -> np.ndarray:
    """Draw all normal clips and so many anomalous ones, at least one: their numbers."""
    normal, anomalous = np.flatnonzero(label == 0), np.flatnonzero(label == 1)
    count = max(1, round(len(normal) * percent / (100 - percent)))
    return np.sort(np.append(normal, rng.permutation(anomalous)[:count]))


def take_pool(cell: dict, tested: str, number: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of some test clips of an id, and of its training clips."""
    trains = cell["section_train"] == number
    names = "ae", "gmm", "serial_oe", "feature", "residual"
    return (
        {name: cell[f"{name}_{tested}"][rows] for name in names}
        | {f"{name}_train": cell[f"{name}_train"][trains] for name in names}
        | {"label": cell["label"][rows], "domain": np.zeros(len(rows))}
    )


def draw_pools(cell: dict, seed: int) -> dict[tuple[int, int, int], np.ndarray]:
    """Draw the rows of every pool: {(%, draw, id): rows}."""
    pools = {}
    for percent, draws in DRAWS.items():
        rng = np.random.default_rng((seed, percent))
        for draw, number in product(range(draws), range(IDS)):
            of_id = np.flatnonzero(cell["section"] == number)
            pools[percent, draw, number] = of_id[draw_rows(cell["label"][of_id], percent, rng)]
    return pools


def measure_cell(cell: dict, machine: str, snr: str, seed: int) -> Iterator[tuple]:
    """Yield `COLUMNS` of every variant in every pool."""
    pools = draw_pools(cell, seed)

    @cache
    def smooth_drawn(tested, *drawn):
        rows, number = pools[drawn], drawn[-1]
        scores = smooth_pool(take_pool(cell, tested, number, rows))
        anomalous, there = fill(cell["label"][rows] == 1), fill(np.ones(len(rows), bool))
        return jnp.column_stack([scores[name] for name in VARIANTS]), anomalous, there

    def measure(kind, source, tested, drawn, *parts):
        percent, draw, number = drawn
        about = machine, seed, number, percent, source, draw, kind, tested
        count = int(smooth_drawn(tested, *drawn)[1].sum())
        values = measure_columns(*map(np.concatenate, zip(*parts, strict=True)))
        for name, of_variant in zip(VARIANTS, np.asarray(values).tolist(), strict=True):
            yield (*about, name, count, *of_variant)

    for drawn in pools:
        percent, draw, number = drawn
        yield from measure("same", percent, snr, drawn, smooth_drawn(snr, *drawn))
        for target in SNRS[1:] if snr == SHIFTED and percent in SHIFTED_AT else ():
            own = smooth_drawn(target, *drawn)
            yield from measure("shift", percent, target, drawn, own)
            for source in SHIFTED_AT:
                other = smooth_drawn(SHIFTED, source, draw % DRAWS[source], number)
                yield from measure("both", source, target, drawn, other, own)


COLUMNS = "machine seed id percent source draw kind tested variant anomalies auc pauc".split()


def main() -> None:
    """Measure all variants in all pools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, metavar="CELLS")
    parser.add_argument("--machines", nargs="+", default=["fan", "slider"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4, 5, 6])
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    args = parser.parse_args()
    todo = {
        args.cells / f"{machine}_{snr}_{seed}.npz": (machine, snr, seed)
        for machine, snr, seed in product(args.machines, SNRS, args.seeds)
    }
    if lacking := [str(file) for file in todo if not file.exists()]:
        parser.exit(2, f"beyond: {lacking[0]} is missing; beyond_cells.py makes it\n")
    args.out.mkdir(parents=True, exist_ok=True)
    for file, about in tqdm(todo.items(), unit="file", disable=None):
        out = (args.out / file.name).with_suffix(".csv")
        if not out.exists():
            with np.load(file) as arrays:
                measured = pd.DataFrame(measure_cell(dict(arrays), *about), columns=COLUMNS)
            write_text(out, measured.to_csv(index=False))


if __name__ == "__main__":
    main()
