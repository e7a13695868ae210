"""The feature spaces of a machine's sections as a page explores them: dots, scores, neighbours."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dns_jax.evaluation.drawing import place_features
from dns_jax.evaluation.outcomes import Outcome, sample_training, smooth_tests
from dns_jax.evaluation.ranking import find_neighbours

NEIGHBOURS = 8  # listed for each segment


def place_sections(
    outcome: Outcome, smoothing, ranking: pd.DataFrame, shown: Mapping[str, Mapping]
) -> dict:
    """Describe a machine for the page's script.

    Args:
      outcome: of the machine.
      smoothing: `config.smoothing`, unit and scope of the pools.
      ranking: of `ranking.rank_recordings`; a recording's number on the page is its rank less one.
      shown: {recording: its seconds, picture and sound}.

    Returns:
      JSON: name, K and Data, the recordings in the order of the ranking, and for each section (none
      where nothing was smoothed) its dots; `first` is the section to begin with.
    """
    recordings = [
        {
            "name": row.clip,
            "domain": row.domain,
            "label": int(row.label),
            "rank": int(row.rank),
            **{name: shown[row.clip][name] for name in ("seconds", "picture", "sound")},
        }
        for row in ranking.itertuples()
    ]
    k, data = outcome.choice or (0, "")
    machine = {"name": outcome.machine, "k": k, "data": data, "clips": recordings}
    sections = sorted(set(outcome.tested["section"])) if outcome.choice else []
    evaluated = [s for s in sections if s in outcome.selection["evaluation_sections"]]
    number = {clip: i for i, clip in enumerate(ranking["clip"])}
    smoothed = smooth_tests(outcome.segments, outcome.choice, smoothing) if sections else ()
    placed = [_place_section(outcome, smoothed, section, number) for section in sections]
    return machine | {
        "sections": placed,
        "first": sections.index(evaluated[0]) if evaluated else 0,
    }


def _place_section(outcome, smoothed, section, number):
    rows, a_prop = smoothed
    a_prop, rows = a_prop[rows.section == section], rows.select(rows.section == section)
    training = sample_training(outcome.segments, section).feature
    place = place_features(np.concatenate([training, rows.feature]))
    place, below = place[len(training) :], place[: len(training)]
    found = find_neighbours(rows, outcome.choice[1], NEIGHBOURS)
    return {
        "name": f"{section:02d}",
        "train_x": _round(below[:, 0]),
        "train_y": _round(below[:, 1]),
        "x": _round(place[:, 0]),
        "y": _round(place[:, 1]),
        "clip": [number[clip] for clip in rows.clip.tolist()],
        "start": _round(rows.start),
        "g": _round(rows.ae_score),
        "p": _round(a_prop),
        "neighbours": [row[row >= 0].tolist() for row in found],
    }


def _round(values):
    """Five digits, and None for what JSON does not know."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.tolist()]
