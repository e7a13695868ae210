"""Draw how the neighbours of one sound are counted out: docs/smoothing.md's picture.

    python docs/counting.py --out=docs/counting.png

One query among 1,400 random rows, K = 128; the cuts are those of `dns_jax.smoothing._counting`,
found here by a plain loop.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

ROWS, K = 1_400, 128


def find_cuts(nearness: np.ndarray, count: int) -> list[tuple[float, int, float, float]]:
    """Return every cut, how many rows reach it, and both ends of the bracket it cuts."""
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
        cuts.append((at, above, low, high))
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
        2, 1, figsize=(7.5, 5.5), layout="constrained", height_ratios=(2, 1.8)
    )
    edges = np.histogram_bin_edges(nearness, 60)
    above.hist(nearness, edges, color="0.8", label=f"{ROWS - 1:,} other rows")
    above.hist(nearness[nearness >= cuts[-1][0]], edges, color="C1", label=f"the {K - 1} nearest")
    above.axvline(cuts[-1][0], color="C3", linewidth=1)
    above.set(ylabel="rows", title="Which rows are the nearest? Those that reach a threshold.")
    above.legend()
    ends = np.array([-1.5, 1.5]) + cuts[-1][0]
    for number, (at, reach, low, high) in enumerate(cuts, 1):
        below.hlines(number, max(low, ends[0]), min(high, ends[1]), color="0.8", linewidth=7)
        below.plot([at], [number], "o", color="C3" if number == len(cuts) else "C0")
        below.annotate(f"{reach}", (at, number), (7, -3), textcoords="offset points", fontsize=8)
    above.axvspan(*ends, color="C3", alpha=0.12)
    below.set(
        xlabel="nearness  x·y - |y|²/2  (the larger, the nearer)",
        ylabel="pass",
        xlim=ends,
        yticks=range(1, len(cuts) + 1),
        title=f"Close up: each pass cuts the bracket and counts, until {K - 1} rows reach the cut.",
    )
    below.invert_yaxis()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
