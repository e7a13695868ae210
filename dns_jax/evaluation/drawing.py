"""How the figures look: the feature space (Figs. 3 and 4), the pool (Fig. 5), and two more.

Every function takes numbers and returns a Matplotlib figure; `figures` says which of a run.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata

from dns_jax.evaluation.label_free import TOGETHER, describe
from dns_jax.evaluation.tables import METHODS
from dns_jax.files import write_file
from dns_jax.scoring import Segments

COLOURS = {
    "ae": "0.5",
    "serial_oe": "tab:orange",
    "proposed": "tab:blue",
    "oracle": "tab:cyan",
    TOGETHER: "tab:green",
}
NAMES = METHODS | {TOGETHER: describe(TOGETHER)}
METRIC = "hmean of AUC and pAUC [%]"
_DATA_COLOURS = {"source": "tab:blue", "all": "tab:red"}
_MARKERS = ((0, "o", 16, "normal"), (1, "X", 34, "anomalous"), (-1, "s", 16, "not labelled"))


def place_features(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place f_D in the plane by UMAP.

    Args:
      features: f32[rows, D].
      seed: equal seeds give equal pictures.

    Returns:
      f32[rows, 2], NaN for a row that is not finite; the two widest directions where there are too
      few rows for UMAP.
    """
    place = np.full((len(features), 2), np.nan, np.float32)
    finite = np.isfinite(features).all(axis=1)
    features = features[finite]
    if len(features) < 5:
        centred = features - np.sum(features, axis=0) / max(1, len(features))
        widest = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        place[finite] = np.pad(widest, ((0, 0), (0, 2 - widest.shape[1])))
        return place
    with warnings.catch_warnings(action="ignore"):  # numba's and scikit-learn's own affairs
        from umap import UMAP  # takes seconds

        different = len(np.unique(features, axis=0))
        place[finite] = UMAP(
            n_neighbors=min(15, len(features) - 1),
            init="spectral" if different > 50 else "random",
            random_state=seed,
            n_jobs=1,
        ).fit_transform(features)
    return place


def draw_space(
    place: np.ndarray,
    segments: Segments,
    scores: Mapping[str, np.ndarray],
    share: float = 1.0,
    seed: int = 0,
) -> Figure:
    """Draw Fig. 3 or 4: the same places, coloured by one score after the other.

    Args:
      place: f32[segments, 2].
      segments: of one section; training segments are grey dots under the others.
      scores: {title: f32[segments]}; the colour is the rank among the test segments, which is what
        AUC sees.
      share: of the test and of the training segments that are drawn, at random.
      seed: of that draw.
    """
    drawn = np.random.default_rng(seed).uniform(size=len(place)) < share
    train, test = (drawn & (segments.split == split) for split in ("train", "test"))
    figure = Figure(figsize=(4.4 * len(scores) + 0.8, 4.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(scores), sharex=True, sharey=True))
    tested = segments.split == "test"
    dots = None
    for axis, (title, of_score) in zip(axes, scores.items(), strict=True):
        ranks = np.zeros(len(place))
        known = tested & ~np.isnan(of_score)
        ranks[tested & ~known] = np.nan
        ranks[known] = (rankdata(of_score[known]) - 1) / max(1, np.sum(known) - 1)
        axis.scatter(*place[train].T, s=8, c="0.8", linewidths=0, label="training")
        for label, marker, size, name in _MARKERS:
            rows = test & (segments.label == label)
            if rows.any():
                dots = axis.scatter(
                    *place[rows].T,
                    c=ranks[rows],
                    vmin=0,
                    vmax=1,
                    marker=marker,
                    s=size,
                    cmap="viridis",
                    label=name,
                    edgecolors="0.3",
                    linewidths=0.3,
                )
        axis.set(title=title, xticks=[], yticks=[])
    axes[0].legend(loc="best", framealpha=0.7, fontsize="small")
    if dots is not None:
        bar = figure.colorbar(dots, ax=axes, ticks=[0, 1], label="anomaly score, by rank")
        bar.ax.set_yticklabels(["low", "high"])
    return figure


def draw_neighbours(
    curves: pd.DataFrame, choice: tuple[int, str] | None, lines: Mapping[str, float]
) -> Figure:
    """Draw the metric against K for every Data, and the share of own windows among neighbours.

    Args:
      curves: of `curves.measure_neighbours`.
      choice: (K, Data) of Table I, which is marked.
      lines: {system: its value in [0, 1]}, drawn across.
    """
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in curves[curves["curve"] == "neighbours"].groupby("line", sort=False):
        data, _, others = name.partition(", ")
        style = {"ls": ":", "marker": ".", "alpha": 0.7} if others else {"marker": "o"}
        left.plot(rows["x"], 100 * rows["value"], color=_DATA_COLOURS[data], label=name, **style)
        if (choice or (0, ""))[1] == name and (rows["x"] == choice[0]).any():
            chosen = 100 * rows.loc[rows["x"] == choice[0], "value"].item()
            left.plot(choice[0], chosen, "*", color="k", ms=13, zorder=3, label="chosen (Table I)")
    _draw_lines(left, lines)
    left.set(xlabel="K", ylabel=METRIC, title="the metric")
    for name, rows in curves[curves["curve"] == "own_windows"].groupby("line", sort=False):
        right.plot(rows["x"], 100 * rows["value"], "o-", color=_DATA_COLOURS[name], label=name)
    right.set(xlabel="K", ylabel="share of neighbours [%]", ylim=(0, None))
    right.set_title("windows of the recording itself among the K - 1")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    return figure


def draw_pool_sizes(curves: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """Draw Fig. 5: the metric against the share of recordings used for smoothing.

    Args:
      curves: of `curves.measure_pool_sizes`.
      lines: {system: its value over all recordings in [0, 1]}, drawn across.
    """
    names = {
        "drawn": "Proposed: evaluated on the drawn recordings",
        "all": "Proposed: all recordings against the drawn pool",
    }
    return _draw_bands(
        curves,
        "pool",
        names,
        lines,
        "recordings used for smoothing [%]",
        "best K and Data each time",
    )


def draw_anomaly_rates(curves: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """Draw the metric against the rate of anomalies in the pool.

    Args:
      curves: of `curves.measure_anomaly_rates`.
      lines: {system: its value in [0, 1]}, drawn across.
    """
    figure = _draw_bands(
        curves, "rate", {}, lines, "anomalies in the pool [%]", "smoothed by other recordings only"
    )
    (axis,) = figure.axes
    axis.set_xscale("log")
    axis.set_xticks(100 * curves.loc[curves["curve"] == "rate", "x"].unique())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    return figure


def draw_section(tested: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Draw the score histograms of AE, Proposed and Label-free, and the ROC curves of all systems.

    Args:
      tested: the recordings of one section (`outcomes.Outcome.tested`).
      systems: those to draw.
    """
    from sklearn.metrics import roc_curve

    shown = [system for system in ("ae", "proposed", TOGETHER) if system in systems]
    figure = Figure(figsize=(3.6 * len(shown) + 3.4, 3.1), layout="constrained")
    *histograms, roc = figure.subplots(1, len(shown) + 1)
    for axis, system in zip(histograms, shown, strict=True):
        scores = tested[system].to_numpy()
        finite = scores[np.isfinite(scores)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        if high - low <= 1e-6 * abs(high):
            low, high = low - 0.5, high + 0.5
        bins = np.linspace(low, high, 25)
        for label, colour in ((0, "tab:blue"), (1, "tab:red"), (-1, "0.5")):
            rows = (tested["label"] == label).to_numpy()
            name = {0: "normal", 1: "anomalous", -1: "not labelled"}[label]
            if rows.any():
                axis.hist(
                    scores[rows & np.isfinite(scores)], bins, color=colour, alpha=0.55, label=name
                )
        axis.set(title=NAMES[system], xlabel="anomaly score", ylabel="recordings")
        axis.legend(fontsize="small")
    known = tested[tested["label"] >= 0]
    for system in systems:
        scored = known[np.isfinite(known[system])]
        if scored["label"].nunique() == 2:
            rates = roc_curve(scored["label"], scored[system])[:2]
            roc.plot(*(100 * rate for rate in rates), color=COLOURS[system], label=NAMES[system])
    roc.axvspan(0, 10, color="0.93", zorder=0)
    roc.plot([0, 100], [0, 100], color="0.8", lw=1, zorder=0)
    roc.set(title="ROC (shaded: pAUC)", xlabel="false alarms [%]", ylabel="anomalies found [%]")
    if roc.get_legend_handles_labels()[0]:
        roc.legend(fontsize="small")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the name asks for, complete or not at all."""
    kind = Path(path).suffix[1:] or "png"
    write_file(path, lambda file: figure.savefig(file, format=kind, dpi=110))


def _draw_bands(curves, curve, names, lines, xlabel, title):
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    chosen = curves[curves["curve"] == curve]
    for (name, rows), colour in zip(
        chosen.groupby("line", sort=False), ("tab:blue", "tab:cyan"), strict=False
    ):
        x, value, std = (100 * rows[column] for column in ("x", "value", "std"))
        axis.plot(x, value, "o-", ms=4, color=colour, label=names.get(name, f"Proposed, {name}"))
        axis.fill_between(x, value - std, value + std, color=colour, alpha=0.2, lw=0)
    _draw_lines(axis, lines)
    axis.set(xlabel=xlabel, ylabel=METRIC, title=title)
    axis.set_ylim(top=min(101, axis.get_ylim()[1]))
    axis.legend(fontsize="small")
    return figure


def _draw_lines(axis, lines):
    for system, value in lines.items():
        axis.axhline(100 * value, color=COLOURS[system], ls="--", lw=1, label=METHODS[system])
