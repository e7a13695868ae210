"""`report.html`: what a run says, for people. One file that opens offline.

First which recordings to listen to and why, then the feature space to point and listen into, then
the tables and figures. Beside it `ranking.csv`, `curves.csv` (the numbers of the curves) and
`figures/`. All but the tables is of the first seed of the run.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from dns_jax.data.waveforms import Waveforms
from dns_jax.evaluation import drawing, exhibits, figures
from dns_jax.evaluation.curves import COLUMNS
from dns_jax.evaluation.findings import list_findings
from dns_jax.evaluation.label_free import TOGETHER, list_variants
from dns_jax.evaluation.outcomes import Outcome, read_outcome
from dns_jax.evaluation.ranking import COLUMNS as RANKING
from dns_jax.evaluation.ranking import rank_recordings
from dns_jax.evaluation.results import TITLES, has_values, read_tables
from dns_jax.evaluation.spaces import place_sections
from dns_jax.evaluation.tables import format_cells, write_csv
from dns_jax.files import write_text

SUSPECTS = 10  # recordings described for each machine
NORMAL = 100  # training recordings of a section that a recording's spectrum is compared with

_MEASURE = {False: "normal training", True: "test"}  # recordings, whether it is Label-free

CAPTIONS = {
    "neighbours": (
        "The metric against K",
        "Left: every Data; dotted: without windows of the recording itself. Right: how many of the "
        "neighbours are such windows.",
    ),
    "pool": (
        "Fig. 5, the size of the pool",
        "Mean and standard deviation over 20 draws that keep labels and domains in proportion. Of "
        "each draw the best K and Data are taken, as in the paper, which flatters small pools.",
    ),
    "rate": (
        "The rate of anomalies in the pool",
        "The pool is thinned in every section and domain, and all recordings are evaluated, by "
        "windows of other recordings. Mean and standard deviation over 20 draws.",
    ),
    "space": (
        "Figs. 3 and 4, the feature space",
        "Colour: the rank of the anomaly score. Grey: training segments.",
    ),
    "section": ("Scores", "Of the recordings; in the shaded part of the ROC lies pAUC."),
}


def write_report(
    config, clips: pd.DataFrame, waveforms: Waveforms, machines: Sequence[str], workdir: Path
) -> None:
    """Write the report of a finished run and the files beside it.

    Args:
      config: the whole configuration.
      clips: the table of recordings, with the column `usable`.
      waveforms: of its rows.
      machines: the targets.
      workdir: of the run, with all its tables.
    """
    seed, tables = config.seeds[0], read_tables(workdir)
    outcomes = [read_outcome(workdir, machine, seed) for machine in machines]
    outcomes = [outcome for outcome in outcomes if len(outcome.tested)]
    rankings = [rank_recordings(outcome, config.smoothing) for outcome in outcomes]
    everything = pd.concat([pd.DataFrame(columns=RANKING), *rankings])
    write_csv(everything, workdir / "ranking.csv")
    curves = [_measure_curves(outcome, config.smoothing) for outcome in outcomes]
    numbers = [
        table.assign(machine=outcome.machine, seed=seed)
        for outcome, measured in zip(outcomes, curves, strict=True)
        for table in measured.values()
    ]
    numbers = pd.concat([pd.DataFrame(columns=["machine", "seed", *COLUMNS]), *numbers])
    write_csv(numbers, workdir / "curves.csv")
    findings = list_findings(tables["table2"], numbers)
    write_csv(findings, workdir / "findings.csv")
    shown, embedded = exhibits.show_recordings(config, clips, waveforms, rankings, workdir)
    pages, spaces = [], []
    for number, (outcome, ranking) in enumerate(zip(outcomes, rankings, strict=True)):
        machine = outcome.machine
        spectra = exhibits.average_normal(config, clips, waveforms, machine, NORMAL)
        spaces.append(place_sections(outcome, config.smoothing, ranking, shown[number]))
        pages.append(
            {
                "name": machine,
                "number": number,
                "note": _describe_machine(outcome, config.smoothing),
                "suspects": [
                    {
                        "clip": row.rank - 1,
                        "name": row.clip,
                        "picture": shown[number][row.clip]["picture"],
                        "reasons": _give_reasons(
                            row, shown[number][row.clip], spectra, outcome, config
                        ),
                    }
                    for row in ranking.head(SUSPECTS).itertuples()
                ],
                "figures": [
                    _file_figure(figure, workdir / "figures" / f"{machine}_{name}.png", title, text)
                    for name, figure, title, text in _draw_figures(config, outcome, curves[number])
                ],
            }
        )
    page = _template().render(
        machines=pages,
        names=machines,
        summary=_summarise(config, everything),
        measure=_MEASURE[(everything["system"] == TOGETHER).any()],
        embedded=embedded,
        dot={
            "segment": f"a segment of {config.data.segment_seconds:g} s",
            "clip": "a recording",
        }[config.smoothing.unit],
        tables=[
            {"title": TITLES[name], "columns": list(table), "rows": format_cells(table)}
            for name, table in tables.items()
            if name == "table1" or has_values(table)
        ],
        findings=findings.to_dict("records"),
        explorable=any(space["sections"] for space in spaces),
        data={"machines": spaces, "segment_seconds": config.data.segment_seconds},
        plotly=get_plotlyjs(),
        style=_read("report.css"),
        script=_read("report.js"),
    )
    write_text(workdir / "report.html", page)


def _measure_curves(outcome, smoothing):
    if not figures.list_evaluable(outcome):
        return {}
    return {name: figures.measure_curve(name, outcome, smoothing) for name in figures.CURVES}


def _draw_figures(config, outcome: Outcome, curves):
    """Yield (name, figure, title, caption) of a machine, the curves first."""
    for name, curve in curves.items():
        title, caption = CAPTIONS[name]
        title = f"{outcome.machine}: {title}"
        yield name, figures.draw_curve(name, outcome, curve), title, caption
    sections = outcome.selection["evaluation_sections"] or sorted(set(outcome.tested["section"]))
    for section in sections:
        here = outcome.tested[outcome.tested["section"] == section]
        title, caption = CAPTIONS["section"]
        title = f"{outcome.machine} section {section:02d}: {title}"
        yield f"{section:02d}", drawing.draw_section(here, outcome.systems), title, caption
        for domain in sorted(set(here["domain"])) if outcome.choice else ():
            figure = figures.draw_space(outcome, config.smoothing, section, domain)
            title, caption = CAPTIONS["space"]
            title = f"{outcome.machine} section {section:02d}, {domain} domain: {title}"
            yield f"{section:02d}_{domain}_space", figure, title, caption


def _file_figure(figure, path, title, caption):
    drawing.save_figure(figure, path)
    return {"picture": exhibits.embed("image/png", path.read_bytes())} | {
        "title": title,
        "caption": caption,
    }


def _summarise(config, ranking):
    how = (
        f"their score lies above percentile {config.threshold_percentile:g} of those of the normal "
        "training recordings (of a gamma distribution fitted to them, where it fits)"
    )
    if (ranking["system"] == TOGETHER).any():
        how = "in each section as many as by the autoencoder's score alone"
    called = int((ranking["anomalous"] == 1).sum())
    count = len(config.seeds)
    seeds = f" (of {count} seeds the first, {config.seeds[0]}, counts here)" if count > 1 else ""
    return f"{len(ranking):,} test recordings{seeds}; {called:,} are called anomalous, {how}."


def _describe_machine(outcome, smoothing):
    """Say what the score is, and what its reader should know."""
    if not outcome.choice:
        return "The score is a_G, the autoencoder's: SerialOE was not trained, nothing is smoothed."
    rows = {"segment": "segments", "clip": "recordings"}[smoothing.unit]
    if outcome.system == TOGETHER:
        changed = ", ".join(
            f"{name} {value}" for name, value in list_variants(smoothing)[TOGETHER].items()
        )
        text = (
            f"The score is that without labels, of {rows} ({changed}); no label has chosen it. "
            "The feature space below has a_prop of Proposed."
        )
    else:
        k, data = outcome.choice
        chosen = outcome.selection["proposed"]["how"]
        how = "chosen on the validation sections" if chosen == "validation" else "the default"
        text = f"The score is a_prop, smoothed over K = {k:,} {rows} ({data} domain data), {how}."
        if k == 1:
            text += " K = 1 is the autoencoder's score itself."
    for warning in outcome.selection.get("warnings", ()):
        text += f" Warning: {warning}."
    return text


def _give_reasons(row, recording, spectra, outcome, config):
    """The sentences below a recording's name."""
    segments = outcome.segments
    own = (segments.clip == row.clip) & (segments.split == "test")
    start, a_g = segments.start[own], segments.ae_score[own]
    verdict = {1: "called anomalous", 0: "called normal"}.get(row.anomalous, "no decision")
    above = (
        "not comparable with"
        if np.isnan(row.deviations)
        else f"{row.deviations:.1f} standard deviations above"
    )
    reasons = [
        f"Score {row.score:.4g}, {above} the {_MEASURE[row.system == TOGETHER]} recordings of "
        f"section {row.section:02d}: {verdict}; {row.domain} domain."
    ]
    band = exhibits.describe_band(recording["spectrum"], spectra[row.section], config)
    if band:
        low, high, difference = band
        more = "stronger" if difference > 0 else "weaker"
        reasons.append(
            f"Most unusual at equal loudness: {low:,.0f} to {high:,.0f} Hz, {abs(difference):.1f} "
            f"dB {more} than in normal training recordings."
        )
    if len(start) > 1:
        reasons.append(
            f"To the autoencoder the least usual of its {len(start)} segments is that from "
            f"{start[np.argmax(a_g)]:g} s on."
        )
    if row.ae_rank != row.rank:
        reasons.append(f"By the autoencoder alone it would be at rank {row.ae_rank}.")
    if row.nearest:
        reasons.append(f"Sounds most like {row.nearest.replace(';', ', ')}.")
    if row.label >= 0:
        reasons.append(f"Its label: {'anomalous' if row.label else 'normal'}.")
    return reasons


def _template():
    """Names in a page are anybody's: all are escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_read("report.html"))


def _read(name):
    return (files("dns_jax.evaluation") / name).read_text(encoding="utf-8")
