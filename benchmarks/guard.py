r"""How often are the warnings of `dns_jax.evaluation.guard` right?

python benchmarks/guard.py CELLS --seeds 5 6

In the pools of `beyond.py` (50 and 10 % anomalous, the networks' own SNR and shifted ones) the
warning is given or not without labels, and then the labels say whether eq. 7 with K = 32 ranks
worse than a_G (AUC), and whether a_G ranks backwards; and what eq. 7 gains by the share that K has
of the pool. Last, how well what is seen without labels tells the pools that eq. 7 makes worse from
the others (AUC): little agreement, neighbours that are no nearer than other rows, features of many
dimensions. Prints Markdown tables. The threshold was set on seeds 0 to 4.
"""

import argparse
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
from beyond import IDS, SHIFTED, SNRS, draw_rows, take_pool
from sklearn.metrics import pairwise_distances
from tqdm import tqdm

from dns_jax import smooth_sweep
from dns_jax.evaluation.guard import AGREEMENT, measure_agreement
from dns_jax.evaluation.metrics import compute_auc

PERCENT = (50, 10)
KS = (32, 64, 128, 256)
SEEN = {
    "agreement": "a_G and SerialOE do not agree",
    "nearness": "neighbours no nearer than others",
    "dimensions": "many dimensions",
}


def measure_pool(pool: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the rows, what is `SEEN`, and the AUC of a_G and of eq. 7 for each of `KS`."""
    rows = len(pool["label"])
    clips = pd.DataFrame({"section": np.zeros(rows, int), "domain": "source"})
    ((_, _, agreement),) = measure_agreement(clips, pool["ae"], pool["serial_oe"])
    ks = [min(k, rows) for k in KS]
    smoothed = smooth_sweep(pool["ae"].astype(np.float32), pool["feature"], ks)
    distances = np.sort(pairwise_distances(pool["feature"].astype(np.float64)), axis=1)[:, 1:]
    centred = pool["feature"] - pool["feature"].mean(axis=0)
    axes = np.square(np.linalg.svd(centred, compute_uv=False))
    aucs = [compute_auc(pool["label"], x) for x in (pool["ae"], *np.asarray(smoothed))]
    return {
        "rows": rows,
        "agreement": agreement,
        "nearness": distances[:, : KS[0] - 1].mean() / distances.mean(),
        "dimensions": axes.sum() ** 2 / np.square(axes).sum(),
    } | dict(zip(("a_G", *KS), aucs, strict=True))


def measure(cells: Path, machines: list[str], seeds: list[int]) -> pd.DataFrame:
    """Return a row for every pool."""
    rows = []
    for machine, snr, seed in tqdm(list(product(machines, SNRS, seeds)), disable=None):
        with np.load(cells / f"{machine}_{snr}_{seed}.npz") as arrays:
            cell = dict(arrays)
        for percent, number in product(PERCENT, range(IDS)):
            of_id = np.flatnonzero(cell["section"] == number)
            rng = np.random.default_rng((seed, percent, number))
            drawn = of_id[draw_rows(cell["label"][of_id], percent, rng)]
            for tested in SNRS if snr == SHIFTED else (snr,):
                measured = measure_pool(take_pool(cell, tested, number, drawn))
                rows.append({"shift": tested != snr, "percent": percent} | measured)
    return pd.DataFrame(rows)


def count(part: pd.DataFrame) -> str:
    """Return how many pools there are, and in how many eq. 7 and a_G are wrong."""
    if not len(part):
        return "0 | - | -"
    worse, backwards = part[KS[0]] < part["a_G"], part["a_G"] < 0.5
    return f"{len(part)} | {worse.sum()} ({worse.mean():.0%}) | {backwards.sum()}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, metavar="CELLS")
    parser.add_argument("--machines", nargs="+", default=["fan", "slider"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6])
    args = parser.parse_args()
    pools = measure(args.cells, args.machines, args.seeds)
    print("| % anomalous | shift | a_G and SerialOE | pools | eq. 7 below a_G | a_G backwards |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (percent, shift), part in pools.groupby(["percent", "shift"], sort=False):
        agree = part["agreement"] >= AGREEMENT
        for word, chosen in (("agree", part[agree]), ("do not", part[~agree])):
            print(f"| {percent} | {'yes' if shift else 'no'} | {word} | {count(chosen)} |")
    print("\n| K over the rows of the pool | pools at 50 % | AUC | pools at 10 % | AUC |")
    print("| --- | --- | --- | --- | --- |")
    ends = (0, 0.05, 0.1, 0.2, 0.4, 1.0)
    for low, high in pairwise(ends):
        cells = []
        for percent in PERCENT:
            part = pools[(pools["percent"] == percent) & ~pools["shift"]]
            gains = np.concatenate(
                [(part[k] - part["a_G"])[(part["rows"] * low < k) & (k <= part["rows"] * high)]
                 for k in KS]
            )  # fmt: skip
            cells.append(f"{len(gains)} | {100 * gains.mean():+.1f}" if len(gains) else "0 | -")
        print(f"| {low:.0%} to {high:.0%} | {' | '.join(cells)} |")
    parts = dict(list(pools.groupby(["shift", "percent"], sort=False)))
    heads = [f"{'shift' if shift else 'no shift'}, {percent} %" for shift, percent in parts]
    print(f"\n| seen without labels | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for name, what in SEEN.items():
        sign = -1 if name == "agreement" else 1
        cells = [
            f"{100 * compute_auc((part[KS[0]] < part['a_G']).astype(int), sign * part[name]):.0f}"
            for part in parts.values()
        ]
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
