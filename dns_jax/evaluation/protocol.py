"""The paper's protocol for one machine: choose Table I, then write every system's scores.

Hyper-parameters are chosen on the validation sections, the oracle's on the evaluation sections.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from dns_jax.data.clips import split_validation
from dns_jax.data.refusals import DataError
from dns_jax.evaluation import score_files
from dns_jax.evaluation.guard import find_hazards
from dns_jax.evaluation.label_free import (
    MOST_SHARE,
    list_variants,
    score_generatively,
    score_label_free,
)
from dns_jax.evaluation.selection import Choice, select, select_by_auc
from dns_jax.evaluation.systems import (
    average_segments,
    count_smallest,
    fit_inliers,
    score_by_inliers,
    smooth_candidates,
    smooth_training,
)
from dns_jax.files import write_text
from dns_jax.hosts import Preemption, is_first
from dns_jax.inlier import save_inliers
from dns_jax.scoring import Segments


def score_systems(
    config,
    clips: pd.DataFrame,
    segments: Segments,
    *,
    seed: int,
    directory: Path,
    mesh: Mesh,
    preemption: Preemption,
    say: Callable[[str], None],
) -> None:
    """Choose Table I for one machine; write its score and decision files and `selection.json`.

    Args:
      config: the whole configuration.
      clips: the machine's rows of the table, with the column `usable`.
      segments: all segments of its usable recordings.
      seed: of the run.
      directory: of this machine and seed; the first host writes there.
      mesh: the devices.
      preemption: asked before every candidate whether to stop.
      say: told of candidates and thresholds that could not be fitted.

    Raises:
      Preempted: the run was asked to stop.
      DataError: no inlier model can be fitted.
    """
    machine = clips["machine"].iloc[0]
    test = clips[clips["split"] == "test"]
    train = clips[(clips["split"] == "train") & clips["usable"]]
    tested = segments.select(segments.split == "test")
    trained = segments.select(segments.split == "train")
    present = set(test["section"][test["usable"]])
    selection = {
        "machine": machine,
        "seed": seed,
        "validation_sections": [s for s in config.validation_sections if s in present],
        "evaluation_sections": [s for s in config.evaluation_sections if s in present],
        "serial_oe": None,
        "proposed": None,
        "oracle": None,
        "section_oracle": {},
        "warnings": [],
        "scale": {},
    }

    def choose(candidates, default_size):
        if chosen := select(candidates, test, selection["validation_sections"]):
            return Choice(*chosen, "validation")
        return Choice(*_take_default(candidates, default_size), "default")

    def average(scores, of):
        return average_segments(scores, segments.clip, of["clip"])

    scores = {}
    if len(tested.clip):
        scores["ae"] = average(segments.ae_score, test), average(segments.ae_score, train)
    inliers = {}
    if segments.feature.shape[1]:  # else SerialOE was not trained
        inliers = fit_inliers(
            segments,
            _fitted_on(config, clips, segments, seed),
            config.inlier.clusters,
            seed,
            say,
            preemption.stop_if_reached,
        )
        if not any(data == "all" for _, data in inliers):
            raise DataError(f"{machine}: no inlier model can be fitted on all data")
        by_inliers = {choice: score_by_inliers(segments, h) for choice, h in inliers.items()}
        serial_oe = choose(
            {choice: average(scores, test) for choice, scores in by_inliers.items()},
            config.inlier.default_clusters,
        )
        selection["serial_oe"] = serial_oe._asdict()
    if inliers and scores:
        of_segments = by_inliers[serial_oe[:2]]
        scores["serial_oe"] = average(of_segments, test), average(of_segments, train)
        smoothed = smooth_candidates(tested, config.smoothing, test["clip"], mesh)
        fifth = max(1, count_smallest(tested, config.smoothing) // MOST_SHARE)
        choices = {"proposed": choose(smoothed, min(fifth, config.smoothing.default_k))}
        if oracle := select(smoothed, test, selection["evaluation_sections"]):
            choices["oracle"] = Choice(*oracle, "oracle")
        for system, choice in choices.items():
            selection[system] = choice._asdict()
            scores[system] = (
                smoothed[choice[:2]],
                smooth_training(trained, tested, choice[:2], config.smoothing, train["clip"], mesh),
            )
        selection["warnings"] = find_hazards(
            test,
            scores["ae"][0],
            scores["serial_oe"][0],
            choices["proposed"].size,
            count_smallest(tested, config.smoothing, choices["proposed"].data),
        )
        for section in selection["evaluation_sections"]:
            if best := select_by_auc(smoothed, test, section):
                names = ("size", "data", "auc")
                selection["section_oracle"][str(section)] = dict(zip(names, best, strict=True))
        of_segments = by_inliers[_take_default(by_inliers, config.inlier.default_clusters)]
        generative = score_generatively(segments, of_segments, config.smoothing, seed)
        for system, options in list_variants(config.smoothing).items():
            preemption.stop_if_reached()
            how = segments, generative, options, config.smoothing
            scores[system] = score_label_free(*how, test["clip"]), None
    selection["scale"] = {
        system: _sum_up(*((test, of_test) if of_train is None else (train, of_train)))
        for system, (of_test, of_train) in scores.items()
    }
    if not is_first():
        return
    if inliers:
        save_inliers(directory / "inlier.npz", inliers[serial_oe[:2]])
    called = {}  # {section: recordings that the autoencoder calls anomalous}, see docs/beyond.md
    for system, (of_test, of_train) in scores.items():
        folder = directory / "scores" / system
        for section in sorted(set(test["section"])):
            of_section = of_test[(test["section"] == section).to_numpy()]
            threshold, how = np.nan, "not found: no test recording can be used"
            if section in present and of_train is None:
                threshold, how = score_files.place_threshold(of_section, called[section]), "placed"
            elif section in present:
                threshold, how = score_files.fit_threshold(
                    of_train[(train["section"] == section).to_numpy()],
                    config.threshold_percentile,
                )
            if system == "ae":
                called[section] = int(np.sum(of_section > threshold))
            if how not in ("gamma", "placed"):
                say(f"{machine} section {section:02d}, {system}: threshold {how}")
            _write_section(folder, test, of_test, section, threshold, config.data.year)
    write_text(directory / "selection.json", json.dumps(selection, indent=1) + "\n")


def _sum_up(clips, scores):
    """{section: mean and standard deviation of its recordings' scores}, where there are some."""
    scale = {}
    for section in sorted(set(clips["section"])):
        of_section = scores[(clips["section"] == section).to_numpy()]
        of_section = of_section[np.isfinite(of_section)]
        if len(of_section) > 1:
            deviation = float(np.std(of_section, ddof=1))
            scale[str(section)] = {"mean": float(np.mean(of_section)), "deviation": deviation}
    return scale


def _take_default(candidates, default_size):
    """The candidate that is taken without labels: on all data, of the default size or the next."""
    fits = [size for size, data in candidates if data == "all"]
    return max((s for s in fits if s <= default_size), default=min(fits)), "all"


def _fitted_on(config, clips, segments, seed):
    """bool[segments]: the normal training segments that h is fitted on."""
    usable = clips[clips["usable"]]
    validates = split_validation(usable, seed, config.data.train_share)
    held_out = np.isin(segments.clip, usable["clip"].to_numpy(np.str_)[validates])
    part = {"all": True, "train": ~held_out, "validation": held_out}[config.inlier.fit_split]
    return (segments.split == "train") & part


def _write_section(folder, test, scores, section, threshold, year):
    """Write the evaluator's files of one system and section, in 2021 one of each a domain."""
    rows = np.flatnonzero(test["section"] == section)
    rows = rows[np.argsort(test["clip"].to_numpy(np.str_)[rows])]
    decisions = np.where(np.isnan(scores), np.nan, scores > threshold)
    for kind, write, values in (
        ("anomaly_score", score_files.write_scores, scores),
        ("decision_result", score_files.write_decisions, decisions),
    ):
        cells = test[["machine", "section", "domain"]].iloc[rows].itertuples(index=False)
        names = np.array([score_files.file_name(kind, *cell, year) for cell in cells])
        for name in dict.fromkeys(names):
            here = rows[names == name]
            write(folder / name, test["clip"].iloc[here].tolist(), values[here])
