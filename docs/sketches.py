r"""Draw the ideas of Figs. 1 and 2 of the paper from the features of a finished run.

    python docs/sketches.py --workdir=runs/demo --machine=blower --out=docs

writes `discrepancy.png` (Fig. 1: SerialOE's score in the section where it ranks best and in that
where it ranks worst) and `overview.png` (Fig. 2: one segment is smoothed, then all are).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dns_jax.evaluation.drawing import place_features, save_figure
from dns_jax.evaluation.metrics import compute_auc
from dns_jax.evaluation.outcomes import Outcome, read_outcome, smooth_tests
from dns_jax.evaluation.ranking import find_neighbours

MARKERS = ((0, "o", 16, "normal"), (1, "X", 34, "anomalous"))


def scatter(axis, place, segments, scores, title) -> None:
    """Draw the segments of a section, the test segments coloured by the rank of their score."""
    test = segments.split == "test"
    ranks = np.zeros(len(place))
    ranks[test] = np.argsort(np.argsort(scores[test])) / (np.sum(test) - 1)
    if not test.all():
        axis.scatter(*place[~test].T, s=8, c="0.8", linewidths=0, label="training")
    for label, marker, size, name in MARKERS:
        rows = test & (segments.label == label)
        style = {"c": ranks[rows], "cmap": "viridis", "vmin": 0, "vmax": 1, "marker": marker}
        axis.scatter(*place[rows].T, s=size, label=name, ec="0.3", lw=0.3, **style)
    axis.set(title=title, xticks=[], yticks=[])


def draw_discrepancy(outcome: Outcome) -> Figure:
    """Draw Fig. 1: SerialOE's score where training and test data agree, and where they do not."""
    tested = outcome.tested
    sections = sorted(set(tested["section"]))
    auc = {}
    for section in sections:
        here = tested[tested["section"] == section]
        auc[section] = compute_auc(here["label"], here["serial_oe"])
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    score_of = dict(zip(tested["clip"], tested["serial_oe"], strict=True))
    for axis, section, part in zip(
        axes, (max(auc, key=auc.get), min(auc, key=auc.get)), "ab", strict=True
    ):
        segments = outcome.segments.select(outcome.segments.section == section)
        scores = np.array([score_of.get(clip, np.nan) for clip in segments.clip.tolist()])
        title = f"({part}) section {section:02d}: SerialOE's AUC {100 * auc[section]:.0f} %"
        scatter(axis, place_features(segments.feature), segments, scores, title)
    axes[0].legend(loc="best", fontsize="small", framealpha=0.7)
    return figure


def draw_overview(outcome: Outcome, section: int, k: int) -> Figure:
    """Draw Fig. 2: a_G in the feature space, the neighbours of one segment, a_prop."""
    segments = outcome.segments.select(outcome.segments.section == section)
    test = segments.select(segments.split == "test")
    _, a_prop = smooth_tests(test, (k, "all"), {"unit": "segment", "scope": "section"})
    place = place_features(test.feature)
    risen = np.argsort(np.argsort(a_prop)) - np.argsort(np.argsort(test.ae_score))
    one = np.argmax(np.where(test.label == 1, risen, -len(risen)))
    near = find_neighbours(test, "all", k - 1)[one]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    scatter(axes[0], place, test, test.ae_score, "$a_G$: generative anomaly scores")
    scatter(axes[1], place, test, test.ae_score, "an anomaly that was missed, and its neighbours")
    axes[1].plot(
        *np.stack([place[near], np.broadcast_to(place[one], (len(near), 2))]).T, "r-", lw=0.6
    )
    axes[1].plot(*place[one], "o", mfc="none", mec="r", ms=14)
    scatter(axes[2], place, test, a_prop, "$a_{prop}$: averaged over them (eq. 7)")
    axes[0].legend(*axes[0].get_legend_handles_labels(), loc="best", fontsize="small")
    return figure


def main() -> None:
    """Read a finished run and write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--section", type=int, default=3, help="of overview.png")
    parser.add_argument("--k", type=int, default=8, help="of overview.png")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    config = json.loads((args.workdir / "config.json").read_text())["config"]
    outcome = read_outcome(args.workdir, args.machine, config["seeds"][0])
    save_figure(draw_discrepancy(outcome), args.out / "discrepancy.png")
    save_figure(draw_overview(outcome, args.section, args.k), args.out / "overview.png")


if __name__ == "__main__":
    main()
