r"""The figures of a finished run: Figs. 3 to 5 of the paper, and two that it lacks.

    python -m dns_jax.evaluation.figures space --workdir=runs/demo --machine=blower --section=3 \
        --out=space.png

`space` (Figs. 3 and 4): UMAP of the discriminative features of a section, and of one domain where
`--domain` names it, training segments under test segments, by a_G and by a_prop for every `--k`.
`pool` (Fig. 5): the metric against the share of recordings used for smoothing. `neighbours`: the
metric against K for every Data, and how many neighbours are windows of the recording itself.
`rate`: the metric against the rate of anomalies in the pool.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dns_jax.data.refusals import DataError, printable, reading
from dns_jax.evaluation import curves, drawing
from dns_jax.evaluation.metrics import compute_auc, section_hmean
from dns_jax.evaluation.outcomes import Outcome, read_outcome, sample_training, smooth_tests
from dns_jax.evaluation.pools import stack_pools
from dns_jax.evaluation.systems import average_segments
from dns_jax.scoring import Segments

CURVES = {
    "neighbours": (curves.measure_neighbours, drawing.draw_neighbours),
    "pool": (curves.measure_pool_sizes, drawing.draw_pool_sizes),
    "rate": (curves.measure_anomaly_rates, drawing.draw_anomaly_rates),
}


def list_evaluable(outcome: Outcome) -> list[int]:
    """List the evaluation sections that a curve can be measured on: both labels, and a_prop."""
    labels = outcome.tested.groupby("section")["label"].agg(set)
    sections = outcome.selection["evaluation_sections"] if outcome.choice else ()
    return [section for section in sections if {0, 1} <= labels.get(section, set())]


def measure_curve(name: str, outcome: Outcome, smoothing) -> pd.DataFrame:
    """Measure one of `CURVES` on the evaluation sections with both labels.

    Args:
      name: of the curve.
      outcome: of a machine that has `list_evaluable` sections.
      smoothing: `config.smoothing`, unit and scope of the pools.
    """
    sections = list_evaluable(outcome)
    pools = stack_pools(outcome.segments, sections, smoothing["unit"], smoothing["scope"])
    return CURVES[name][0](pools, **({"choice": outcome.choice} if name == "rate" else {}))


def draw_curve(name: str, outcome: Outcome, curve: pd.DataFrame) -> Figure:
    """Draw one of `CURVES`, with AE and SerialOE over all recordings as lines."""
    tested, sections = outcome.tested, list_evaluable(outcome)
    lines = {
        system: section_hmean(tested, tested[system], sections) for system in ("ae", "serial_oe")
    }
    more = {"choice": outcome.choice} if name == "neighbours" else {}
    return CURVES[name][1](curve, lines=lines, **more)


def draw_space(
    outcome: Outcome,
    smoothing,
    section: int,
    domain: str = "",
    ks: tuple[int, ...] = (),
    data: str = "",
    share: float = 1.0,
) -> Figure:
    """Draw the feature space of a section before and after smoothing: Figs. 3 and 4.

    Args:
      outcome: of a machine.
      smoothing: `config.smoothing`, unit and scope of the pools.
      section: the section.
      domain: "source" or "target", what is drawn; "": both.
      ks: one picture for each, beside that of a_G; none: K and Data of Proposed and of Oracle.
      data: "source" or "all", the rows that may be neighbours; "": Data of Proposed.
      share: of the segments drawn.
    """
    segments = outcome.segments
    choices = {(k, data or outcome.choice[1]): None for k in ks}
    if not ks:
        chosen = (outcome.selection[system] for system in ("proposed", "oracle"))
        choices = {(choice["size"], choice["data"]): None for choice in chosen if choice}
    rows, a_g = smooth_tests(segments, (1, "all"), smoothing)
    scores = {"$a_G$": a_g}
    for k, of in choices:
        scores[f"$a_{{prop}}$, K = {k:,}, {of}"] = smooth_tests(segments, (k, of), smoothing)[1]

    training = sample_training(segments, section, domain)
    keep = (rows.section == section) & ((rows.domain == domain) | (domain == ""))
    rows = rows.select(keep)
    drawn = Segments(*(np.concatenate(both) for both in zip(training, rows, strict=True)))
    clips, first = np.unique(rows.clip, return_index=True)
    titled = {}
    for title, a in scores.items():
        auc = compute_auc(rows.label[first], average_segments(a[keep], rows.clip, clips))
        title += "" if np.isnan(auc) else f": AUC {100 * auc:.1f} %"
        titled[title] = np.concatenate([np.full(len(training.clip), np.nan), a[keep]])
    return drawing.draw_space(drawing.place_features(drawn.feature), drawn, titled, share)


def main() -> None:
    """Draw one figure of a finished run."""
    parser = argparse.ArgumentParser(
        "python -m dns_jax.evaluation.figures",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"dns_jax: {printable(str(message))}\n")
    parser.add_argument("figure", choices=["space", *CURVES])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--seed", type=int, help="the run's first one, if not given")
    parser.add_argument("--out", type=Path, required=True, help=".png, .svg or .pdf")
    of_space = parser.add_argument_group("space alone")
    of_space.add_argument("--section", type=int, help="the first evaluation section, if not given")
    of_space.add_argument("--domain", choices=["source", "target"], help="both, if not given")
    of_space.add_argument("--k", type=int, nargs="+", help="Table I, if not given")
    of_space.add_argument("--data", choices=["source", "all"], help="Table I, if not given")
    of_space.add_argument("--share", type=float, help="of the segments drawn; all, if not given")
    args = parser.parse_args()
    for name in ("section", "domain", "k", "data", "share"):
        if args.figure != "space" and getattr(args, name) is not None:
            parser.error(f"--{name} goes with the figure space, not with {args.figure}")
    try:
        drawing.save_figure(_draw(args), args.out)
    except _Mistake as error:
        parser.error(error)
    except (DataError, OSError) as error:
        parser.exit(1, f"dns_jax: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "dns_jax: stopped\n")


class _Mistake(ValueError):
    """The call is wrong."""


def _draw(args):
    if args.out.suffix not in (".png", ".svg", ".pdf"):
        raise _Mistake(f"--out={printable(args.out)}: it must end in .png, .svg or .pdf")
    if args.share is not None and not 0 < args.share <= 1:
        raise _Mistake(f"--share={args.share}: it must be above 0 and at most 1")
    if not (args.workdir / "config.json").is_file():
        raise _Mistake(f"--workdir={printable(args.workdir)}: there is no run in it")
    with reading(args.workdir / "config.json"):
        config = dict(json.loads((args.workdir / "config.json").read_text())["config"])
        smoothing = {name: config["smoothing"][name] for name in ("unit", "scope")}
        seeds = config["seeds"]
        if not seeds:
            raise ValueError("no seeds")
    there = sorted(path.parent.parent.name for path in args.workdir.glob("*/seed_*/selection.json"))
    seed = seeds[0] if args.seed is None else args.seed
    if not (args.workdir / args.machine / f"seed_{seed}" / "selection.json").exists():
        raise _Mistake(
            f"no results of --machine={printable(args.machine)} with seed {seed}; there are "
            f"{', '.join(dict.fromkeys(there)) or 'none'} with seeds {', '.join(map(str, seeds))}"
        )
    outcome = read_outcome(args.workdir, args.machine, seed)
    if not outcome.choice:
        raise DataError(f"{args.machine}: nothing is smoothed there, SerialOE was not trained")
    if args.figure != "space":
        if not list_evaluable(outcome):
            raise DataError(
                f"{args.machine}: a curve needs evaluation sections with normal and anomalous "
                "recordings, labelled"
            )
        return draw_curve(args.figure, outcome, measure_curve(args.figure, outcome, smoothing))
    return _draw_space(args, outcome, smoothing)


def _draw_space(args, outcome, smoothing):
    tested = outcome.tested
    sections = sorted(set(tested["section"]))
    section = args.section
    if section is None:
        section = (outcome.selection["evaluation_sections"] or sections)[0]
    here = tested[tested["section"] == section]
    if args.domain:
        here = here[here["domain"] == args.domain]
    if here.empty:
        where = f"section {section}" + (f", {args.domain} domain" if args.domain else "")
        raise _Mistake(f"{args.machine} has no test recordings in {where}; sections: {sections}")
    rows, _ = smooth_tests(outcome.segments, (1, "all"), smoothing)
    of_pools = np.unique(rows.section, return_counts=True)[1]
    most = int(of_pools.min() if smoothing["scope"] == "section" else of_pools.sum())
    if wrong := [k for k in args.k or () if not 1 <= k <= most]:
        unit = "segments" if smoothing["unit"] == "segment" else "recordings"
        raise _Mistake(f"--k={wrong[0]}: it must be from 1 to {most}, the {unit} of a pool")
    how = args.domain or "", tuple(args.k or ()), args.data or "", args.share or 1.0
    return draw_space(outcome, smoothing, section, *how)


if __name__ == "__main__":
    main()
