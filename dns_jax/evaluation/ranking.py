"""Which recordings to listen to first: the test recordings of a run by how far they stand out.

Scores of sections are not on one scale. What a recording is ranked by is how many standard
deviations its score lies above those of the section's normal training recordings (for Proposed
these are smoothed as queries against the test pool, as for the decision threshold). Label-free
scores tell only recordings that are tested together from each other: those of the section's test
recordings take the place of the normal ones.
"""

from collections import Counter

import numpy as np
import pandas as pd

from dns_jax.evaluation.label_free import TOGETHER
from dns_jax.evaluation.outcomes import Outcome
from dns_jax.evaluation.systems import take_unit
from dns_jax.scoring import Segments

COLUMNS = (
    *("machine", "rank", "clip", "section", "domain", "label", "system", "score", "deviations"),
    *("anomalous", "ae_score", "ae_rank", "nearest"),
)


def rank_recordings(outcome: Outcome, smoothing) -> pd.DataFrame:
    """Rank the test recordings of a machine, the most suspicious first.

    Args:
      outcome: of the machine.
      smoothing: `config.smoothing`, unit and scope of the pools.

    Returns:
      `COLUMNS`: system, `Outcome.system`; its score; deviations from the normal training
      recordings, or for Label-free from the test recordings [standard deviations]; anomalous, the
      decision (0, 1); the autoencoder's score and the rank by it; nearest, the names of the
      recordings that most of its segments are nearest to in the discriminative feature space, `;`
      between them.
    """
    system = outcome.system
    tested = outcome.tested.assign(machine=outcome.machine, system=system, nearest="")
    tested = tested.rename(columns={f"{system}_decision": "anomalous"})
    tested["score"], tested["ae_score"] = tested[system], tested["ae"]
    for name in (system, "ae"):
        tested[f"{name}_deviations"] = np.nan
        scale = outcome.selection["scale"].get(name, {})
        for section, members in tested.groupby("section").indices.items():
            of_section = scale.get(str(section), {"deviation": 0})
            if of_section["deviation"] > 0:
                above = tested[name].to_numpy()[members] - of_section["mean"]
                rows = tested.index[members], f"{name}_deviations"
                tested.loc[rows] = above / of_section["deviation"]
    tested["deviations"] = tested[f"{system}_deviations"]
    tested["ae_rank"] = _rank(tested, "ae_deviations", "ae_score")
    tested["rank"] = _rank(tested, "deviations", "score")
    if outcome.choice:
        nearest = _list_nearest(outcome, smoothing)
        tested["nearest"] = [";".join(nearest.get(clip, ())) for clip in tested["clip"]]
    tested = tested.sort_values("rank")
    return tested[[*COLUMNS]].astype({"anomalous": "Int64"})


def _rank(tested, *columns):
    """The place of every row, from 1: the highest first, what is not known last."""
    order = tested.reset_index().sort_values([*columns], ascending=False, kind="stable").index
    return np.argsort(order) + 1


def find_neighbours(rows: Segments, data: str, count: int) -> np.ndarray:
    """Find the nearest rows of different other recordings, as eq. 7 sees them.

    Args:
      rows: of one pool.
      data: "source" or "all", whose rows may be neighbours.
      count: of recordings.

    Returns:
      i64[rows, count], the nearest first; -1 where there are no more.
    """
    clip = np.unique(rows.clip, return_inverse=True)[1]
    feature = rows.feature.astype(np.float64)
    squares = np.sum(feature**2, axis=1)
    allowed = np.isfinite(squares) & ((rows.domain == "source") | (data == "all"))
    candidates = np.flatnonzero(allowed)
    near = feature[candidates]
    found = np.full((len(clip), count), -1)
    for row in np.flatnonzero(np.isfinite(squares)):
        distance = squares[candidates] - 2 * near @ feature[row]
        order = candidates[np.argsort(distance, kind="stable")]
        order = order[clip[order] != clip[row]]
        _, first = np.unique(clip[order], return_index=True)
        nearest = order[np.sort(first)[:count]]
        found[row, : len(nearest)] = nearest
    return found


def _list_nearest(outcome, smoothing, count=3):
    """{recording: the other recordings that its segments are nearest to}."""
    test = outcome.segments.select(outcome.segments.split == "test")
    data = "all" if outcome.system == TOGETHER else outcome.choice[1]
    nearest = {}
    for section in np.unique(test.section):
        rows = take_unit(test.select(test.section == section), smoothing["unit"])
        found = find_neighbours(rows, data, count)
        for clip in np.unique(rows.clip):
            names = rows.clip[found[rows.clip == clip]][found[rows.clip == clip] >= 0]
            nearest[str(clip)] = [name for name, _ in Counter(names.tolist()).most_common(count)]
    return nearest
