"""What can be seen without labels before eq. 7 does harm; docs/beyond.md: how often it is right.

Smoothing amplifies the order that a_G has, right or wrong. Where a_G and SerialOE, which learned
different things, do not order the recordings of a section and domain alike, one of them is wrong.
And a K that is not small against the pool averages over both kinds of sounds, if one is rare.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from dns_jax.evaluation.label_free import MOST_SHARE

AGREEMENT = 0.1  # rank correlation below which two scores do not agree
FEWEST = 20  # recordings of which a correlation says anything


def find_hazards(
    clips: pd.DataFrame, a_g: np.ndarray, serial_oe: np.ndarray, k: int, pool: int
) -> list[str]:
    """Find what speaks against the smoothed scores of a machine, without looking at labels.

    Args:
      clips: its test recordings: section, domain.
      a_g: f64[clips], NaN where there is none.
      serial_oe: f64[clips].
      k: K of eq. 7.
      pool: rows that may be neighbours, of the smallest pool.

    Returns:
      A sentence for each hazard.
    """
    hazards = []
    if k > 1 and k > pool // MOST_SHARE:
        hazards.append(
            f"K = {k:,} of eq. 7 is more than a fifth of the smallest pool ({pool:,} rows): so "
            "large a K makes scores alike and mixes the rarer sounds with the others; look at a_G, "
            "too, and score more recordings together"
        )
    places = [
        f"{section:02d} {domain} ({agreement:+.2f})"
        for section, domain, agreement in measure_agreement(clips, a_g, serial_oe)
        if agreement < AGREEMENT
    ]
    if places:
        hazards.append(
            "a_G and SerialOE do not agree (rank correlation) in section "
            f"{', '.join(places)}: one of them is wrong there, and smoothing amplifies a_G's order"
        )
    return hazards


def measure_agreement(
    clips: pd.DataFrame, a_g: np.ndarray, serial_oe: np.ndarray
) -> Sequence[tuple[int, str, float]]:
    """Return section, domain and Spearman's correlation of the two scores where it can be told."""
    found = []
    counts = np.isfinite(a_g) & np.isfinite(serial_oe)
    for (section, domain), rows in clips.reset_index(drop=True).groupby(["section", "domain"]):
        here = rows.index.to_numpy()
        here = here[counts[here]]
        if len(here) >= FEWEST and np.ptp(a_g[here]) > 0 and np.ptp(serial_oe[here]) > 0:
            found.append((section, domain, float(spearmanr(a_g[here], serial_oe[here])[0])))
    return found
