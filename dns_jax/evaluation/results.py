"""What a finished run says, from the score files it wrote: its results and Tables I and II."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dns_jax.data.refusals import printable, reading
from dns_jax.data.years import YEARS
from dns_jax.evaluation import tables
from dns_jax.evaluation.bootstrap import bootstrap_difference
from dns_jax.evaluation.label_free import describe, list_variants
from dns_jax.evaluation.metrics import evaluate
from dns_jax.evaluation.official import COLUMNS, evaluate_officially, read_results
from dns_jax.hosts import say

SYSTEMS = ("ae", "serial_oe", "proposed", "oracle")
TITLES = {
    "table1": "Table I: hyper-parameters",
    "table2": "Table II: harmonic mean of AUC and pAUC, in %",
}
LISTED = 10  # recordings of a ranking that are printed, of each machine
_RANKED = ("machine", "rank", "clip", "score", "deviations", "anomalous")
_TEXTS = ("machine", "seed", "note")  # columns of the tables that may look like numbers


def tabulate(config, clips: pd.DataFrame, machines: list[str], workdir: Path) -> None:
    """Evaluate the score files of all machines and seeds.

    Writes `results.csv` (AUC and pAUC per section), `official.csv` (the official evaluator's
    measures and means, of the validation and the evaluation sections) and the paper's tables, with
    the interval of Proposed minus AE in Table II.

    Args:
      config: the whole configuration.
      clips: the table of recordings.
      machines: the targets.
      workdir: of the run.

    Raises:
      DataError: a score file or `selection.json` is damaged.
    """
    tested = clips[(clips["split"] == "test") & clips["machine"].isin(machines)]
    beyond = {system: describe(system) for system in list_variants(config.smoothing)}
    results, selections = [], []
    runs = {}  # {(seed, system): scores and decisions f64[2, tested]}
    for machine in machines:
        rows = np.flatnonzero(tested["machine"] == machine)
        ours = tested.iloc[rows]
        for seed in config.seeds:
            directory = workdir / machine / f"seed_{seed}"
            with reading(directory / "selection.json"):  # written last, it stands for the scores
                selection = json.loads((directory / "selection.json").read_text())
                found = {
                    system: read_results(
                        ours, {machine: directory / "scores" / system}, config.data.year
                    )
                    for system in (*SYSTEMS, *beyond)
                    if (directory / "scores" / system).is_dir()
                }
            selections.append(selection)
            for system, both in found.items():
                table = evaluate(ours, both[0])
                results.append(table.assign(machine=machine, seed=seed, system=system))
                run = runs.setdefault((seed, system), np.full((2, len(tested)), np.nan))
                run[:, rows] = both
    columns = "machine seed section domain system auc pauc n_normal n_anomaly".split()
    results = pd.concat(results)[columns] if results else pd.DataFrame(columns=columns)
    tables.write_csv(results, workdir / "results.csv")
    tables.write_csv(_evaluate_officially(config, tested, runs), workdir / "official.csv")
    dcase2021 = _is_dcase2021(clips, machines, config.data.year)
    tables.write_csv(tables.make_table1(selections, dcase2021), workdir / "table1.csv")
    difference = _compare(config, tested, runs)
    table2 = tables.make_table2(results, selections, dcase2021, difference, beyond)
    tables.write_csv(table2, workdir / "table2.csv")


def _evaluate_officially(config, tested, runs):
    """The official evaluator's table of every part, seed and system, one below the other.

    Where the task is first-shot, machine types for development are a part of their own.
    """
    year = YEARS[config.data.year]
    if missing := year.official.missing:
        say(f"official.csv: no official score of {config.data.year} is known: {missing}")
    parts = {
        part: tested["section"].isin(config[f"{part}_sections"]).to_numpy()
        for part in ("validation", "evaluation")
    }
    developed = tested["machine"].isin(year.development_machines).to_numpy()
    parts["development"] = parts["evaluation"] & developed
    parts["evaluation"] = parts["evaluation"] & ~developed
    official = [pd.DataFrame(columns=["sections", "seed", "system", *COLUMNS])]
    for part, chosen in parts.items():
        for (seed, system), run in runs.items() if chosen.any() else ():
            table = evaluate_officially(tested[chosen], *run[:, chosen], config.data.year)
            official.append(table.assign(sections=part, seed=seed, system=system))
    return pd.concat(official)[official[0].columns]


def _compare(config, tested, runs):
    """Proposed minus AE on the evaluation sections, with its interval; None without scores."""
    chosen = tested["section"].isin(config.evaluation_sections).to_numpy()
    if not all((seed, "proposed") in runs for seed in config.seeds) or not chosen.any():
        return None
    proposed, ae = (
        np.stack([runs[seed, system][0, chosen] for seed in config.seeds])
        for system in ("proposed", "ae")
    )
    return bootstrap_difference(tested[chosen], proposed, ae)


def read_tables(workdir: Path) -> dict[str, pd.DataFrame]:
    """Return Tables I and II as they lie in the workdir, `table1` and `table2`."""
    with reading(workdir / "table2.csv"):  # the last one written, it stands for all
        return {
            name: pd.read_csv(workdir / f"{name}.csv", dtype=dict.fromkeys(_TEXTS, str))
            for name in TITLES
        }


def has_values(table2: pd.DataFrame) -> bool:
    """Whether there is a number in Table II; there is none where no recording is labelled."""
    return bool(table2.drop(columns=["source", "seed", "method"]).notna().any(axis=None))


def print_tables(workdir: Path) -> None:
    """Print what a run has found, as it lies in the workdir.

    That are Tables I and II, the paper's findings where the data are DCASE 2021, and the first of
    the ranking where no recording is labelled.
    """
    for name, table in read_tables(workdir).items():
        if name == "table1" or has_values(table):
            print(tables.format_table(table, TITLES[name]), end="\n\n")
    files = {"Every section and domain": workdir / "results.csv"}
    if (workdir / "report.html").exists():
        with reading(workdir / "report.html"):  # written last, it stands for the files beside it
            findings = pd.read_csv(workdir / "findings.csv")
            ranking = pd.read_csv(workdir / "ranking.csv", dtype={"machine": str, "clip": str})
        if len(findings):
            print(tables.format_table(findings, "What the paper found, here"), end="\n\n")
        if len(ranking) and (ranking["label"] < 0).all():
            first = ranking.groupby("machine", sort=False).head(LISTED)
            first = first.assign(clip=first["clip"].map(printable))
            print(tables.format_table(first[[*_RANKED]], "Listen to these first"), end="\n\n")
            files["All of them, ranked"] = workdir / "ranking.csv"
        files["To look at and listen to"] = workdir / "report.html"
    for what, file in files.items():
        print(f"{what}: {file}")


def _is_dcase2021(clips, machines, year=2021):
    """Whether the machines have the paper's training data: 1,000 + 3 recordings a section."""
    training = clips[(clips["split"] == "train") & clips["machine"].isin(machines)]
    counts = training.groupby(["machine", "section", "domain"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["source", "target"], fill_value=0)
    return bool(
        year == 2021
        and set(machines) <= set(tables.PAPER_TABLE1)
        and (counts["source"] >= 1000).all()
        and (counts["target"] == 3).all()
    )
