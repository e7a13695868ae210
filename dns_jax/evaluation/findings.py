"""What the paper's text finds on DCASE 2021 (section IV-B), checked on a run of those data."""

import numpy as np
import pandas as pd

from dns_jax.evaluation.tables import METHODS, PAPER_TABLE1

COLUMNS = ("finding", "holds", "here")
GAINS = {"fan": 13, "pump": 13, "slider": 13, "gearbox": 0, "valve": 0, "all_hmean": 7}  # points
ORACLE_GAINS = {"valve": 22}


def list_findings(table2: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Check every finding that the run can answer.

    Args:
      table2: of `tables.make_table2`; of several seeds their mean counts. Without the paper's rows
        the data are not DCASE 2021, and there is nothing to check.
      curves: `curves.csv`; the curve "neighbours" of each machine is looked at.

    Returns:
      `COLUMNS`: what the paper says, "yes" or "no", and the numbers here; one row for each machine
      concerned that is there.
    """
    if not (table2["source"] == "paper").any():
        return pd.DataFrame(columns=COLUMNS)
    ours = table2[(table2["source"] == "ours") & table2["method"].isin(METHODS.values())]
    seed = "mean" if (ours["seed"] == "mean").any() else ours["seed"].iloc[0]
    value = ours[ours["seed"] == seed].set_index("method")
    ae, serial_oe, proposed, oracle = (
        value.loc[METHODS[system]] for system in ("ae", "serial_oe", "proposed", "oracle")
    )
    rows = []

    def check(finding, holds, here):
        rows.append((finding, "yes" if holds else "no", here))

    for name, points in GAINS.items():
        there = name in value and (name != "all_hmean" or {*PAPER_TABLE1} <= {*value})
        if there and np.isfinite(gain := proposed[name] - ae[name]):
            least = f"more than {points} points" if points else "something"
            check(f"{name}: smoothing gains {least} over AE", gain > points, f"{gain:+.1f} points")
    for name, points in ORACLE_GAINS.items():
        if name in value and np.isfinite(gain := oracle[name] - ae[name]):
            text = f"{name}: with the best K smoothing gains {points} points over AE"
            check(text, round(gain) >= points, f"{gain:+.1f} points")
    worst, robust = (row.get("ToyCar-5", np.nan) for row in (serial_oe, proposed))
    if np.isfinite(worst + robust):
        check(
            "ToyCar-5: SerialOE ranks backwards, with an AUC below 50 %, and Proposed does not",
            worst < 50 <= robust,
            f"{worst:.1f} and {robust:.1f} %",
        )
    curves = curves[curves["curve"] == "neighbours"]
    for machine, curve in curves[~curves["line"].str.contains(",")].groupby("machine", sort=False):
        curve = curve.dropna(subset="value")
        if curve.empty:
            continue
        best = curve.loc[curve["value"].idxmax()]
        last = curve[curve["line"] == best["line"]].sort_values("x").iloc[-1]
        check(
            f"{machine}: too large a K harms",
            last["value"] < best["value"],
            f"{100 * best['value']:.1f} % with K = {best['x']:,.0f}, "
            f"{100 * last['value']:.1f} % with K = {last['x']:,.0f}",
        )
    return pd.DataFrame(rows, columns=COLUMNS)
