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
from dns_jax.evaluation.outcomes import Outcome, read_outcome, smooth_section
from dns_jax.evaluation.pools import stack_pools
from dns_jax.evaluation.systems import average_segments
from dns_jax.scoring import Segments

CURVES = {
    "neighbours": (curves.measure_neighbours, drawing.draw_neighbours),
    "pool": (curves.measure_pool_sizes, drawing.draw_pool_sizes),
    "rate": (curves.measure_anomaly_rates, drawing.draw_anomaly_rates),
}


def is_evaluable(outcome: Outcome) -> bool:
    """Whether curves can be measured: a_prop there is, and evaluation sections with both labels."""
    labels = outcome.tested["label"][_evaluated(outcome)]
    return bool(outcome.choice) and {0, 1} <= set(labels)


def measure_curve(name: str, outcome: Outcome, smoothing) -> pd.DataFrame:
    """Measure one of `CURVES` on the evaluation sections.

    Args:
      name: of the curve.
      outcome: of a machine for which `is_evaluable` holds.
      smoothing: `config.smoothing`, unit and scope of the pools.
    """
    sections = outcome.selection["evaluation_sections"]
    pools = stack_pools(outcome.segments, sections, smoothing["unit"], smoothing["scope"])
    return CURVES[name][0](pools, **({"choice": outcome.choice} if name == "rate" else {}))


def draw_curve(name: str, outcome: Outcome, curve: pd.DataFrame) -> Figure:
    """Draw one of `CURVES`, with AE and SerialOE over all recordings as lines."""
    tested = outcome.tested[_evaluated(outcome)]
    sections = outcome.selection["evaluation_sections"]
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
      smoothing: `config.smoothing`, for the unit of the pool.
      section: the section.
      domain: "source" or "target", what is drawn; "": both.
      ks: one picture for each, beside that of a_G; none: K of Proposed and
        of Oracle.
      data: "source" or "all", the rows that may be neighbours; "": Data of Table I.
      share: of the segments drawn.
    """
    segments = outcome.segments.select(outcome.segments.section == section)
    training, test = (segments.select(segments.split == split) for split in ("train", "test"))
    chosen, chosen_data = outcome.choice or (1, "all")
    data = data or chosen_data
    unit = smoothing["unit"]
    rows, a_g = smooth_section(test, (1, "all"), unit)
    scores = {"$a_G$": a_g}
    for k in ks or sorted({chosen, (outcome.selection["oracle"] or {}).get("size", chosen)}):
        scores[f"$a_{{prop}}$, K = {k:,}, {data}"] = smooth_section(test, (k, data), unit)[1]

    keep = (rows.domain == domain) | (domain == "")
    rows = rows.select(keep)
    training = training.select((training.domain == domain) | (domain == ""))
    drawn = Segments(*(np.concatenate(both) for both in zip(training, rows, strict=True)))
    clips, first = np.unique(rows.clip, return_index=True)
    titled = {}
    for title, a in scores.items():
        auc = compute_auc(rows.label[first], average_segments(a[keep], rows.clip, clips))
        title += "" if np.isnan(auc) else f": AUC {100 * auc:.1f} %"
        titled[title] = np.concatenate([np.full(len(training.clip), np.nan), a[keep]])
    return drawing.draw_space(drawing.place_features(drawn.feature), drawn, titled, share)


def _evaluated(outcome):
    return outcome.tested["section"].isin(outcome.selection["evaluation_sections"])


def main() -> None:
    """Draw one figure of a finished run."""
    parser = argparse.ArgumentParser(
        prog="python -m dns_jax.evaluation.figures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("figure", choices=["space", *CURVES])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--seed", type=int, help="the run's first one, if not given")
    parser.add_argument("--out", type=Path, required=True, help=".png, .svg or .pdf")
    of_space = parser.add_argument_group("space")
    of_space.add_argument("--section", type=int, help="the first evaluation section, if not given")
    of_space.add_argument("--domain", choices=["source", "target"], help="both, if not given")
    of_space.add_argument("--k", type=int, nargs="+", default=(), help="Table I, if not given")
    of_space.add_argument("--data", choices=["source", "all"], default="", help="likewise")
    of_space.add_argument("--share", type=float, default=1.0, help="of the segments drawn")
    args = parser.parse_args()
    try:
        drawing.save_figure(_draw(args), args.out)
    except _Mistake as error:
        parser.exit(2, f"dns_jax: {error}\n")
    except (DataError, OSError) as error:
        parser.exit(1, f"dns_jax: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "dns_jax: stopped\n")


class _Mistake(ValueError):
    """The call is wrong."""


def _draw(args):
    if args.out.suffix not in (".png", ".svg", ".pdf"):
        raise _Mistake(f"--out={printable(args.out)}: it must end in .png, .svg or .pdf")
    if not 0 < args.share <= 1:
        raise _Mistake(f"--share={args.share}: it must be above 0 and at most 1")
    if not (args.workdir / "config.json").is_file():
        raise _Mistake(f"--workdir={printable(args.workdir)}: there is no run in it")
    with reading(args.workdir / "config.json"):
        config = json.loads((args.workdir / "config.json").read_text())["config"]
        smoothing, seeds = config["smoothing"], config["seeds"]
    there = sorted(path.parent.parent.name for path in args.workdir.glob("*/seed_*/selection.json"))
    seed = seeds[0] if args.seed is None else args.seed
    if not (args.workdir / args.machine / f"seed_{seed}" / "selection.json").exists():
        raise _Mistake(
            f"no results of --machine={printable(args.machine)} with seed {seed}; there are "
            f"{', '.join(dict.fromkeys(there)) or 'none'} with seeds {', '.join(map(str, seeds))}"
        )
    outcome = read_outcome(args.workdir, args.machine, seed)
    if args.figure != "space":
        if not is_evaluable(outcome):
            raise DataError(
                f"{args.machine}: a curve needs evaluation sections with normal and anomalous "
                "recordings, labelled"
            )
        return draw_curve(args.figure, outcome, measure_curve(args.figure, outcome, smoothing))
    tested = outcome.tested
    sections = sorted(set(tested["section"]))
    section = args.section
    if section is None:
        section = (outcome.selection["evaluation_sections"] or sections or [0])[0]
    here = tested[tested["section"] == section]
    if args.domain:
        here = here[here["domain"] == args.domain]
    if here.empty:
        where = f"section {section}" + (f", {args.domain} domain" if args.domain else "")
        raise _Mistake(f"{args.machine} has no test recordings in {where}; sections: {sections}")
    pool = np.sum((outcome.segments.split == "test") & (outcome.segments.section == section))
    if wrong := [k for k in args.k if not 1 <= k <= pool]:
        raise _Mistake(f"--k={wrong[0]}: it must be from 1 to {pool}, the segments of the section")
    choice = args.domain or "", tuple(args.k), args.data, args.share
    return draw_space(outcome, smoothing, section, *choice)


if __name__ == "__main__":
    main()
