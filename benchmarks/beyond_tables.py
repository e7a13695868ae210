r"""The tables and the figure of docs/beyond.md from what `beyond.py` has measured.

python benchmarks/beyond_tables.py OUT --figure=docs/beyond.png

* "hm" is the harmonic mean of AUC and pAUC over the four ids, in %, averaged over SNRs, seeds and
  draws; at 5 and 1 % that of AUC and pAUC over all anomalous clips of a machine, since an id has
  one to 21 of them.
* Intervals belong to the difference from eq. 7 with K = 32 in the same pools: of the harmonic mean
  of AUC and pAUC of an id (both averaged over draws first), averaged over SNRs and seeds, by
  Student's t over the eight ids, at 95 % for all variants of the table together (Bonferroni).
* The choice: the highest mean of hm at 50 and 10 % among the variants that, on the same clips, are
  not below a_G at 1 % and under shift in any machine's mean, and above SerialOE in the AUC of both
  domains together, with 50 and with 10 % anomalous in both.
  What is chosen on one machine is reported on the other; what is chosen on two ids, on the others.
  The gain of what was chosen on the other machine is one test: its interval is not widened.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from dns_jax.evaluation.metrics import harmonic_mean

REFERENCE, GENERATIVE, DISCRIMINATIVE = "eq. 7", "a_G", "SerialOE"
SHIFTED_AT = (50, 10)  # % of anomalies
RARE = (5, 1)  # % of anomalies at which an id has too few
LEVEL = 0.05
GOALS = {50: 3.0, 10: 2.0}


def summarise(measured: pd.DataFrame) -> pd.DataFrame:
    """Return hm and auc of every draw: of all its ids."""
    keys = ["kind", "machine", "tested", "percent", "source", "seed", "draw", "variant"]
    frame = measured.assign(
        wins=measured["auc"] * measured["anomalies"], part=measured["pauc"] * measured["anomalies"]
    )
    groups = frame.groupby(keys, sort=False)
    sums = groups[["wins", "part", "anomalies"]].sum()
    inverse = (1 / frame[["auc", "pauc"]].clip(lower=1e-9)).set_axis(["a", "p"], axis=1)
    inverse = frame[keys].join(inverse).groupby(keys, sort=False)[["a", "p"]].sum().sum(axis=1)
    of_ids = 2 * groups.size() / inverse
    together = 2 / (sums["anomalies"] / sums["wins"] + sums["anomalies"] / sums["part"])
    result = pd.DataFrame({"hm": of_ids, "auc": groups["auc"].mean()}).reset_index()
    rare = result["percent"].isin(RARE).to_numpy()
    result.loc[rare, "hm"] = together.to_numpy()[rare]
    result[["hm", "auc"]] *= 100
    return result


def average(
    summary: pd.DataFrame, kind: str, percent: int, value: str = "hm", source: int | None = None
) -> pd.DataFrame:
    """Return variants x machines, averaged over SNRs, seeds and draws.

    Args:
      summary: of `summarise`.
      kind: "same", "shift" or "both".
      percent: of anomalies, of "both" in the target domain.
      value: "hm" or "auc".
      source: % of anomalies in the source domain, if others than in the target domain.
    """
    part = summary[(summary["kind"] == kind) & (summary["percent"] == percent)]
    part = part[part["source"] == (percent if source is None else source)]
    cells = part.groupby(["variant", "machine", "tested"], sort=False)[value].mean()
    return cells.groupby(["variant", "machine"], sort=False).mean().unstack()


def measure_gains(measured: pd.DataFrame, percent: int) -> pd.DataFrame:
    """Return ids x variants, the gain over `REFERENCE` in points of an id's hm."""
    part = measured[(measured["kind"] == "same") & (measured["percent"] == percent)]
    keys = ["machine", "id", "variant"]
    cells = part.groupby([*keys, "tested", "seed"], sort=False)[["auc", "pauc"]].mean()
    cells = cells.assign(hm=100 * harmonic_mean(cells.to_numpy(), axis=1))
    of_ids = cells.groupby(keys, sort=False)["hm"].mean().unstack()
    return of_ids.sub(of_ids[REFERENCE], axis=0)


def find_intervals(gains: pd.DataFrame, tests: int = 1) -> pd.DataFrame:
    """Return mean, low and high of columns of gains, at 95 % for so many tests together."""
    reach = scipy.stats.t.ppf(1 - LEVEL / tests / 2, len(gains) - 1) * gains.sem()
    mean = gains.mean()
    return pd.DataFrame({"gain": mean, "low": mean - reach, "high": mean + reach})


def choose(measured: pd.DataFrame) -> str:
    """Choose a variant by the rule, on the given clips; eq. 7 itself where none wins."""
    summary = summarise(measured)
    hm = {p: average(summary, "same", p).mean(axis=1) for p in (50, 10, 1)}
    allowed = hm[1] >= hm[1][GENERATIVE]
    for percent in SHIFTED_AT:
        shift = average(summary, "shift", percent)
        both = average(summary, "both", percent, "auc").mean(axis=1)
        allowed &= (shift >= shift.loc[GENERATIVE]).all(axis=1) & (both > both[DISCRIMINATIVE])
    goodness = hm[50] + hm[10]
    allowed &= goodness > goodness[REFERENCE]
    return str(goodness[allowed].idxmax()) if allowed.any() else REFERENCE


def report_choices(measured: pd.DataFrame) -> list[str]:
    """Choose on one part and report on the other; return the lines of a table."""
    folds = []
    for machine in measured["machine"].unique():
        on = measured["machine"] != machine
        folds.append((f"the other machine | {machine}", on))
    for ids in ((0, 1), (2, 3)):
        on = measured["id"].isin(ids)
        others = ", ".join(f"{2 * i:02d}" for i in range(4) if i not in ids)
        folds.append((f"the other ids | ids {others}", on))
    lines = [
        "| chosen on | reported on | chosen | eq. 7 at 50 / 10 % | chosen at 50 / 10 % | gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for where, on in folds:
        chosen = choose(measured[on])
        summary = summarise(measured[~on])
        hm = [average(summary, "same", p).mean(axis=1) for p in GOALS]
        ours, theirs = ([x[name] for x in hm] for name in (chosen, REFERENCE))
        gain = " / ".join(f"{a - b:+.1f}" for a, b in zip(ours, theirs, strict=True))
        cells = (" / ".join(f"{x:.1f}" for x in part) for part in (theirs, ours))
        lines.append(f"| {where} | {chosen} | {' | '.join(cells)} | {gain} |")
    return lines


def report_gain(measured: pd.DataFrame) -> list[str]:
    """Return a line for every share: the gain of what was chosen on the other machine."""
    chosen = {m: choose(measured[measured["machine"] != m]) for m in measured["machine"].unique()}
    lines = []
    for percent in sorted(measured["percent"].unique(), reverse=True):
        gains = measure_gains(measured, percent)
        of_chosen = [gains.loc[[m], name].rename("gain") for m, name in chosen.items()]
        row = find_intervals(pd.concat(of_chosen).to_frame()).loc["gain"]
        cells = (f"{row[name]:+.1f}" for name in ("gain", "low", "high"))
        lines.append("| {} % | {} ({}, {}) |".format(percent, *cells))
    return ["| anomalous | gain of an id's hm over eq. 7 (95 %) |", "| --- | --- |", *lines]


def tabulate(measured: pd.DataFrame) -> list[str]:
    """Return the lines of the large table."""
    summary = summarise(measured)
    percents = sorted(measured["percent"].unique(), reverse=True)
    hm = {p: average(summary, "same", p).mean(axis=1) for p in percents}
    others = measured["variant"].nunique() - 1
    gains = {p: find_intervals(measure_gains(measured, p), others) for p in (50, 10, 1)}
    shift = {p: average(summary, "shift", p) for p in SHIFTED_AT}
    machines = list(shift[50])
    heads = [f"{p} %" for p in percents] + [f"gain at {p} %" for p in gains]
    heads += [f"shift, {m}, {p} %" for p in shift for m in machines]
    lines = [f"| variant | {' | '.join(heads)} |", "|" + " --- |" * (len(heads) + 1)]
    for name in measured["variant"].unique():
        cells = [f"{hm[p][name]:.1f}" for p in percents]
        for frame in gains.values():
            row = frame.loc[name]
            interval = f" ({row['low']:+.1f}, {row['high']:+.1f})" if name != REFERENCE else ""
            cells.append(f"{row['gain']:+.1f}{interval}")
        cells += [f"{shift[p].loc[name, m]:.1f}" for p in shift for m in machines]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def tabulate_domains(measured: pd.DataFrame) -> list[str]:
    """Return the lines of the table of both domains in one list, equally rare anomalies or not."""
    summary, shares = summarise(measured), list(product(SHIFTED_AT, repeat=2))
    both = {
        (source, target): average(summary, "both", target, "auc", source).mean(axis=1)
        for source, target in shares
    }
    heads = [f"{source} / {target} %" for source, target in shares]
    lines = [f"| variant | {' | '.join(heads)} |", "|" + " --- |" * (len(heads) + 1)]
    for name in measured["variant"].unique():
        cells = [f"{of_share[name]:.1f}" for of_share in both.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(measured: pd.DataFrame, path: Path) -> None:
    """Draw every variant's gain with its interval, and what it is worth under shift."""
    import matplotlib.pyplot as plt

    summary = summarise(measured)
    others = measured["variant"].nunique() - 1
    gains = {p: find_intervals(measure_gains(measured, p), others) for p in (50, 10)}
    shift = average(summary, "shift", 50).mean(axis=1)
    order = (gains[50]["gain"] + gains[10]["gain"]).sort_values().index
    place = np.arange(len(order))
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.28 * len(order) + 1.2), sharey=True)
    for axis, (percent, frame) in zip(axes, gains.items(), strict=False):
        frame = frame.loc[order]
        ends = np.abs(frame[["low", "high"]].to_numpy().T - frame["gain"].to_numpy())
        axis.errorbar(frame["gain"], place, xerr=ends, fmt="o", markersize=4, color="C0")
        axis.axvline(GOALS[percent], color="C1", linewidth=1)
        axis.set(title=f"{percent} % anomalous", xlabel="above eq. 7 [points of hm]")
    difference = shift[order] - shift[GENERATIVE]
    axes[2].plot(difference, place, "o", markersize=4, color="C0")
    axes[2].set(title="under shift, 50 %", xlabel="above a_G [points of hm]")
    for axis in axes:
        axis.axvline(0, color="0.5", linewidth=1)
        axis.grid(axis="y", linewidth=0.4)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(place, order)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Print the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, metavar="OUT", help="of beyond.py")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    args = parser.parse_args()
    files = sorted(args.measured.glob("*.csv"))
    if not files:
        parser.exit(2, f"beyond_tables: {args.measured} has no files of beyond.py\n")
    measured = pd.concat(map(pd.read_csv, files), ignore_index=True)
    tables = tabulate, tabulate_domains, report_choices, report_gain
    parts = (table(measured) for table in tables)
    print("\n\n".join("\n".join(lines) for lines in parts))
    print(f"\nchosen on all clips: {choose(measured)}")
    if args.figure:
        draw(measured, args.figure)


if __name__ == "__main__":
    main()
