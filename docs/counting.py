"""Draw how the neighbours of one sound are counted out: docs/smoothing.md's picture.

    python docs/counting.py --out=docs/counting.png

Needs matplotlib (`pip install -e .[report]`). One query among 1,400 random rows, K = 128; the cuts
are those of `dns_jax.smoothing._counting`, found here by a plain loop.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

ROWS, K = 1_400, 128


def find_cuts(nearness: np.ndarray, count: int) -> list[tuple[float, int]]:
    """Return every threshold that is tried and how many rows reach it."""
    low, high = nearness.min(), np.nextafter(nearness.max(), np.inf)
    above_low, above_high = len(nearness), 0
    cuts = []
    while above_low > count:
        shares = np.array([above_low, count, above_high]) / len(nearness)
        at_low, goal, at_high = norm.isf(shares.clip(0.5 / len(nearness), 1 - 0.5 / len(nearness)))
        at = low + (high - low) * (goal - at_low) / (at_high - at_low)
        if len(cuts) % 5 == 4:
            at = (low + high) / 2
        above = int((nearness >= at).sum())
        cuts.append((at, above))
        if above >= count:
            low, above_low = at, above
        else:
            high, above_high = at, above
    return cuts


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    features = np.random.default_rng(0).standard_normal((ROWS, 128))
    nearness = (features[1:] @ features[0]) - np.square(features[1:]).sum(1) / 2
    cuts = find_cuts(nearness, K - 1)

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.5, 5), layout="constrained", sharex=True, height_ratios=(2, 1.6)
    )
    edges = np.histogram_bin_edges(nearness, 60)
    above.hist(nearness, edges, color="0.8", label=f"{ROWS - 1:,} other rows")
    above.hist(
        nearness[nearness >= cuts[-1][0]], edges, color="C1", label=f"the {K - 1} nearest"
    )
    above.axvline(cuts[-1][0], color="C3", linewidth=1)
    above.set(ylabel="rows", title="Which rows are the nearest? Those that reach a threshold.")
    above.legend()
    for number, (at, reach) in enumerate(cuts, 1):
        below.plot([at], [number], "o", color="C3" if number == len(cuts) else "C0")
        below.annotate(f"{reach}", (at, number), (6, -3), textcoords="offset points", fontsize=8)
    below.set(
        xlabel="nearness  x·y - |y|²/2  (the larger, the nearer)",
        ylabel="pass",
        yticks=range(1, len(cuts) + 1),
        title=f"Each pass counts the rows that reach a cut, until it is {K - 1}.",
    )
    below.invert_yaxis()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
