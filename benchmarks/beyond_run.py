r"""All variants of `beyond.py` on finished runs over real recordings, which are too few to decide.

python benchmarks/beyond_run.py WORKDIR --machine=NAME

The runs are of configs/label_free.py, which keeps the spectra and residuals. A pool is the test
recordings of an evaluation section, both domains, a row each; ranks and z-scores are of one domain.
Below, the seven windows of a recording are the rows, the label-free scores are diffused, and of
each recording the mean, the median or the highest counts, with its own windows among the neighbours
of a window or not. Prints a Markdown table: hm over the evaluation sections, both domains pooled,
in %, a column for each seed.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from beyond import smooth_pool

from dns_jax import diffuse
from dns_jax.data.refusals import ConfigError, DataError
from dns_jax.evaluation.label_free import TOGETHER, list_variants, make_scores, score_generatively
from dns_jax.evaluation.metrics import section_hmean
from dns_jax.evaluation.normalising import join_spaces
from dns_jax.evaluation.systems import fit_inliers, score_by_inliers, take_unit
from dns_jax.scoring import Segments, load_segments
from dns_jax.workdir import read_config

WINDOWS = {"mean": "mean", "median": "median", "highest": "max"}  # of pandas


def make_pool(rows: Segments, scores: Mapping[str, np.ndarray], section: int) -> dict:
    """Return the arrays of a pool as `beyond.take_pool` does."""
    arrays = scores | {"feature": rows.feature, "residual": rows.residual}
    parts = {"": "test", "_train": "train"}
    where = {end: (rows.split == split) & (rows.section == section) for end, split in parts.items()}
    pool = {name + end: x[here] for name, x in arrays.items() for end, here in where.items()}
    return pool | {"label": rows.label[where[""]], "domain": rows.domain[where[""]]}


def score_windows(
    rows: Segments, scores: Mapping[str, np.ndarray], smoothing, section: int
) -> dict[str, pd.Series]:
    """Diffuse the windows of a section; return {variant: scores by recording}."""
    x = make_scores(rows, scores, list_variants(smoothing)[TOGETHER])
    pool = np.flatnonzero((rows.split == "test") & (rows.section == section))
    space = join_spaces([rows.feature, rows.residual], pool)[pool]
    clip = rows.clip[pool]
    groups = {"": np.unique(clip, return_inverse=True)[1], ", own ones are neighbours": None}
    return {
        f"windows, {name} of them{own}": pd.Series(
            np.asarray(diffuse(x[pool], space, groups=of_own))
        )
        .groupby(clip)
        .agg(how)
        for own, of_own in groups.items()
        for name, how in WINDOWS.items()
    }


def measure_run(config, directory: Path, seed: int) -> dict[str, float]:
    """Return hm of every variant in one run, in %."""
    sections = config.evaluation_sections
    segments = load_segments(directory / "segments.npz")
    clusters = config.inlier.default_clusters
    fitted = fit_inliers(segments, segments.split == "train", (clusters,), seed, print)
    serial_oe = score_by_inliers(segments, fitted[clusters, "all"])
    by_clip, by_window = (dict(config.smoothing) | {"unit": unit} for unit in ("clip", "segment"))
    by_clip["generative"] = by_window["generative"] = "ae+gmm+serial_oe"  # as `beyond.py` wants
    rows = take_unit(segments, "clip")
    scores, of_windows = (
        score_generatively(segments, serial_oe, smoothing, seed)
        for smoothing in (by_clip, by_window)
    )
    parts = []
    for section in sections:
        pool, here = make_pool(rows, scores, section), (rows.split == "test")
        here &= rows.section == section
        smoothed = {name: np.asarray(x)[: here.sum()] for name, x in smooth_pool(pool).items()}
        table = pd.DataFrame(smoothed, index=rows.clip[here])
        windows = score_windows(segments, of_windows, config.smoothing, section)
        table = table.assign(**windows, section=section, label=pool["label"])
        parts.append(table.reset_index())
    table = pd.concat(parts, ignore_index=True)
    variants = [name for name in table if name not in ("index", "section", "label")]
    return {name: 100 * section_hmean(table, table[name].to_numpy(), sections) for name in variants}


def main() -> None:
    """Measure every seed of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, metavar="WORKDIR")
    parser.add_argument("--machine", required=True)
    args = parser.parse_args()
    try:
        config, _ = read_config(args.workdir)
        if config.smoothing.space != "f_d+residual":
            parser.exit(2, f"beyond_run: {args.workdir} is no run of configs/label_free.py\n")
        columns = {
            seed: measure_run(config, args.workdir / args.machine / f"seed_{seed}", seed)
            for seed in config.seeds
        }
    except ConfigError as error:
        parser.exit(2, f"beyond_run: {error}\n")
    except DataError as error:
        parser.exit(1, f"beyond_run: {error}\n")
    print(f"| variant | {' | '.join(f'seed {s}' for s in columns)} | mean |")
    print("|" + " --- |" * (len(columns) + 2))
    for name in next(iter(columns.values())):
        values = [of_seed[name] for of_seed in columns.values()]
        print(f"| {name} | {' | '.join(f'{v:.1f}' for v in (*values, np.mean(values)))} |")


if __name__ == "__main__":
    main()
