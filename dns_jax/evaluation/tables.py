"""Tables I and II: ours, with the paper's own numbers in rows beside them.

Both tables take `selections`, one dict per machine and seed::

    {"machine": str, "seed": int,
     "validation_sections": [int], "evaluation_sections": [int],   # those that are there
     "serial_oe": choice, "proposed": choice, "oracle": choice,    # None where there was none
     "section_oracle": {"<section>": {"size": int, "data": str, "auc": float}},
     "warnings": [str],                                            # of `guard`
     "scale": {system: {"<section>": {"mean": float, "deviation": float}}}}

where a choice holds size, data and how (`selection.Choice`), `section_oracle` what Oracle chooses
for one evaluation section alone, and `scale` what the recordings score by which a ranking measures:
the normal training recordings, and beyond the paper the test recordings. Whether the paper's rows
belong there is the caller's to say (`dcase2021`): other recordings may bear the same machine names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dns_jax.evaluation.metrics import harmonic_mean
from dns_jax.files import write_text

METHODS = {
    "serial_oe": "SerialOE",
    "ae": "AE",
    "proposed": "Proposed",
    "oracle": "Proposed (Oracle)",
}
DIFFERENCE = "Proposed - AE"

SIZES = ("serial_oe_clusters", "proposed_k", "oracle_k")  # columns of Table I

OTHER_COLUMNS = ("source", "seed", "method", "all_hmean")  # of Table II, beside its machines

# Table I: (clusters or K, data) of SerialOE, Proposed and Proposed (Oracle).
PAPER_TABLE1 = {
    "fan": ((2, "source"), (512, "source"), (1024, "source")),
    "gearbox": ((32, "source"), (1024, "all"), (2048, "all")),
    "pump": ((8, "source"), (128, "source"), (1024, "source")),
    "slider": ((4, "all"), (64, "source"), (128, "source")),
    "ToyCar": ((4, "all"), (128, "source"), (2048, "all")),
    "ToyTrain": ((16, "source"), (1024, "all"), (256, "all")),
    "valve": ((2, "all"), (128, "source"), (1024, "source")),
}

# Table II: harmonic means of AUC and pAUC per machine and over all, and the AUC of ToyCar-5, in %.
PAPER_COLUMNS = (*PAPER_TABLE1, "all_hmean", "ToyCar-5")
PAPER_TABLE2 = {
    "serial_oe": (80.78, 60.77, 76.86, 81.49, 49.37, 55.06, 64.02, 64.72, 33.58),
    "ae": (57.11, 59.50, 54.70, 55.63, 58.61, 58.74, 51.27, 56.38, 72.87),
    "proposed": (73.22, 64.42, 71.84, 69.13, 58.18, 55.91, 56.95, 63.52, 72.13),
    "oracle": (74.56, 64.64, 74.76, 70.63, 63.09, 70.19, 73.28, 69.89, 77.29),
}


def make_table1(selections: Sequence[Mapping], dcase2021: bool) -> pd.DataFrame:
    """Tabulate the hyperparameters chosen, one row per machine and seed.

    Args:
      selections: see the module.
      dcase2021: put the paper's row before ours for each of its seven machines.

    Returns:
      machine, source ("paper" or "ours"), seed (empty for the paper), serial_oe_clusters,
      serial_oe_data, proposed_k, proposed_data, oracle_k, oracle_data, note.
    """
    rows = []
    for machine in _machines(selections):
        if dcase2021 and machine in PAPER_TABLE1:
            chosen = [value for choice in PAPER_TABLE1[machine] for value in choice]
            rows.append([machine, "paper", "", *chosen, ""])
        for entry in (entry for entry in selections if entry["machine"] == machine):
            choices = [entry[system] or {} for system in ("serial_oe", "proposed", "oracle")]
            chosen = [choice.get(name) for choice in choices for name in ("size", "data")]
            rows.append([machine, "ours", str(entry["seed"]), *chosen, _note(entry)])
    data = ["serial_oe_data", "proposed_data", "oracle_data"]
    chosen = [name for pair in zip(SIZES, data, strict=True) for name in pair]
    table = pd.DataFrame(rows, columns=["machine", "source", "seed", *chosen, "note"])
    return table.astype(dict.fromkeys(SIZES, "Int64"))


def make_table2(
    results: pd.DataFrame,
    selections: Sequence[Mapping],
    dcase2021: bool,
    difference: pd.DataFrame | None = None,
    beyond: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Tabulate what the methods reach on the evaluation sections, both domains pooled.

    Args:
      results: machine, seed, section, domain, system ("ae", "serial_oe", "proposed", "oracle"),
        auc, pauc, n_normal, n_anomaly; fractions, as `metrics.evaluate` gives them.
      selections: see the module.
      dcase2021: put the paper's row before ours for each method.
      difference: of Proposed and AE, as `bootstrap.bootstrap_difference` gives it.
      beyond: {system: name of its row}, those that are not the paper's.

    Returns:
      One row per method and seed (with several seeds their mean and sample standard deviation
      follow, empty where a seed has no value). Columns: source ("paper" or "ours"), seed ("" for
      the paper, "mean", "std"), method; per machine the harmonic mean of AUC and pAUC over its
      evaluation sections; all_hmean, that over all machines and sections; then the AUC in the
      section `<machine>-<section>` where SerialOE's AUC, averaged over seeds, is lowest (no such
      column if SerialOE is evaluable nowhere); and that in ToyCar-5, the paper's, where evaluated.
      In the single sections Oracle has its own choice. Last the difference, averaged over seeds,
      and the ends of its 95 % interval: three rows whose seeds are "mean", "2.5%" and "97.5%". All
      in percent, NaN where not evaluable.
    """
    machines = _machines(selections)
    seeds = list(dict.fromkeys(entry["seed"] for entry in selections))
    evaluated = {
        (entry["machine"], entry["seed"], section)
        for entry in selections
        for section in entry["evaluation_sections"]
    }
    pooled = results[results["domain"] == "all"]
    cells = zip(pooled["machine"], pooled["seed"], pooled["section"], strict=True)
    pooled = pooled[np.array([cell in evaluated for cell in cells], dtype=bool)]
    single_sections = _single_sections(pooled, evaluated)
    section_auc = {
        (row.system, row.seed, row.machine, row.section): row.auc
        for row in pooled[pooled["system"] != "oracle"].itertuples()
    } | {
        ("oracle", entry["seed"], entry["machine"], int(section)): choice["auc"]
        for entry in selections
        for section, choice in entry["section_oracle"].items()
    }
    columns = [*machines, "all_hmean", *(f"{name}-{number}" for name, number in single_sections)]

    rows = []
    for system, method in (METHODS | dict(beyond or {})).items():
        if dcase2021 and system in PAPER_TABLE2:
            paper = dict(zip(PAPER_COLUMNS, PAPER_TABLE2[system], strict=True))
            if not set(PAPER_TABLE1) <= set(machines):
                del paper["all_hmean"]
            rows.append(["paper", "", method, *(paper.get(name, np.nan) for name in columns)])
        ours = []
        for seed in seeds:
            part = pooled[(pooled["system"] == system) & (pooled["seed"] == seed)]
            means = [_hmean(part[part["machine"] == machine]) for machine in machines]
            aucs = [section_auc.get((system, seed, *cell), np.nan) for cell in single_sections]
            ours.append(100 * np.array([*means, _hmean(part), *aucs], dtype=np.float64))
            rows.append(["ours", str(seed), method, *ours[-1]])
        if len(seeds) > 1:
            rows.append(["ours", "mean", method, *np.mean(ours, axis=0)])
            rows.append(["ours", "std", method, *np.std(ours, axis=0, ddof=1)])
    if difference is not None:
        names = [*difference["machine"][:-1], "all_hmean"]
        for seed, ends in (("mean", "difference"), ("2.5%", "low"), ("97.5%", "high")):
            ours = dict(zip(names, 100 * difference[ends], strict=True))
            rows.append(["ours", seed, DIFFERENCE, *(ours.get(name, np.nan) for name in columns)])
    return pd.DataFrame(rows, columns=["source", "seed", "method", *columns])


def format_table(table: pd.DataFrame, title: str) -> str:
    """Set a table for the terminal: two decimals, aligned, blanks where there is no value.

    Args:
      table: of `make_table1` or `make_table2`, or their CSV read with seed and note as str.
      title: the line above it.

    Returns:
      Lines without a trailing newline; below Table II one names the section where SerialOE is
      worst.
    """
    columns = []
    for name, cells in zip(table, _format_columns(table), strict=True):
        width = max(map(len, [str(name), *cells]))
        align = str.rjust if pd.api.types.is_numeric_dtype(table[name]) else str.ljust
        columns.append([align(cell, width) for cell in (str(name), *cells)])
    lines = [title, *("  ".join(row).rstrip() for row in zip(*columns, strict=True))]
    if "all_hmean" in table:
        ours = table[(table["source"] == "ours") & (table["method"] == METHODS["serial_oe"])]
        after = table.columns[table.columns.get_loc("all_hmean") + 1 :]
        if len(after) and ours[after[0]].notna().any():
            lines.append(
                f"SerialOE is worst in {after[0]}: AUC [%] there, harmonic means elsewhere"
            )
    return "\n".join(lines)


def format_cells(table: pd.DataFrame) -> list[list[str]]:
    """Return the cells of a table row by row: two decimals, "" where there is no value."""
    return [list(row) for row in zip(*_format_columns(table), strict=True)]


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, complete or not at all; numbers in full precision, blanks where none."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _machines(selections: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(entry["machine"] for entry in selections))


def _note(entry: Mapping) -> str:
    notes = []
    choices = [choice for choice in (entry["serial_oe"], entry["proposed"]) if choice]
    if any(choice["how"] == "default" for choice in choices):
        evaluable = "evaluable " if entry["validation_sections"] else ""
        notes.append(f"no {evaluable}validation sections: default")
    if entry["serial_oe"] is None:
        notes.append("SerialOE was not trained: AE alone")
    elif entry["oracle"] is None:
        evaluable = "evaluable " if entry["evaluation_sections"] else ""
        notes.append(f"no {evaluable}evaluation sections: no oracle")
    notes += [f"warning: {text}" for text in entry.get("warnings", ())]
    return "; ".join(notes)


def _single_sections(pooled: pd.DataFrame, evaluated: set[tuple]) -> list[tuple[str, int]]:
    """List the (machine, section) that get a column: SerialOE's worst, and the paper's ToyCar-5."""
    serial_oe = pooled[pooled["system"] == "serial_oe"]
    aucs = serial_oe.groupby(["machine", "section"], sort=False)["auc"].mean().dropna()
    cells = [aucs.idxmin()] if len(aucs) else []
    if any((machine, section) == ("ToyCar", 5) for machine, _, section in evaluated):
        cells.append(("ToyCar", 5))
    return list(dict.fromkeys(cells))


def _hmean(cells: pd.DataFrame) -> float:
    return harmonic_mean(cells[["auc", "pauc"]])


def _format_columns(table: pd.DataFrame) -> list[list[str]]:
    table = table.astype({name: "Int64" for name in SIZES if name in table})
    return [["" if pd.isna(value) else _format(value) for value in table[name]] for name in table]


def _format(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
