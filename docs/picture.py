r"""Draw the README's picture: one section's test segments before and after smoothing.

python docs/picture.py --workdir=runs/demo --machine=blower --section=3 --k=32 \
    --out=docs/smoothing.png

Needs matplotlib (`pip install -e .[report]`). The axes are a t-SNE of f_D, the colour a_G and
a_prop (eq. 7), each by rank.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE

from dns_jax import smooth
from dns_jax.evaluation.metrics import compute_auc
from dns_jax.evaluation.systems import average_segments
from dns_jax.scoring import Segments, load_segments


def draw(segments: Segments, section: int, k: int) -> plt.Figure:
    """Draw the test segments of one section of a machine, by a_G and by a_prop."""
    segments = segments.select((segments.split == "test") & (segments.section == section))
    smoothed = smooth(segments.ae_score, segments.feature, k)
    place = TSNE(random_state=0).fit_transform(segments.feature)
    clips, first = np.unique(segments.clip, return_index=True)
    names = {
        "$a_G$, the autoencoder": segments.ae_score,
        f"$a_{{prop}}$, smoothed with K = {k}": smoothed,
    }

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    for axis, (name, scores) in zip(axes, names.items(), strict=True):
        ranks = np.argsort(np.argsort(scores)) / (len(place) - 1)
        auc = compute_auc(
            segments.label[first], average_segments(np.asarray(scores), segments.clip, clips)
        )
        for label, marker, size, title in ((0, "o", 16, "normal"), (1, "X", 34, "anomalous")):
            rows = segments.label == label
            dots = axis.scatter(
                *place[rows].T,
                c=ranks[rows],
                vmin=0,
                vmax=1,
                marker=marker,
                s=size,
                cmap="viridis",
                label=title,
                edgecolors="0.3",
                linewidths=0.3,
            )
        axis.set(title=f"{name}: AUC {100 * auc:.1f} %", xticks=[], yticks=[])
    axes[0].legend(loc="best", framealpha=0.7)
    bar = figure.colorbar(dots, ax=axes, ticks=[0, 1], label="anomaly score, by rank")
    bar.ax.set_yticklabels(["low", "high"])
    return figure


def main() -> None:
    """Read a finished run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--section", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    segments = load_segments(args.workdir / args.machine / "seed_0" / "segments.npz")
    draw(segments, args.section, args.k).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
