"""A machine made by hand, for tests that need no training: its table of recordings and segments."""

import numpy as np
import pandas as pd

from dns_jax.scoring import Segments


def make_machine(counts, *, windows=(2, 3, 4), seed=0, dimension=3, mels=0):
    """Make up recordings and their segments.

    Features are normal about a mean of the section; anomalies have features and scores further out.

    Args:
      counts: {(split, section, domain): (normal recordings, anomalous recordings)}.
      windows: segments that a recording may have.
      seed: of all numbers.
      dimension: of the features.
      mels: of spectrum and residual.

    Returns:
      The table of recordings with the column `usable`, and the segments.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {
            "machine": "fan",
            "clip": f"section_{section:02d}_{domain}_{split}_{word}_{number:04d}.wav",
            "split": split,
            "section": section,
            "domain": domain,
            "label": label,
            "usable": True,
        }
        for (split, section, domain), of_label in counts.items()
        for label, word in enumerate(("normal", "anomaly"))
        for number in range(of_label[label])
    ]
    clips = pd.DataFrame(rows)
    table = clips.iloc[np.repeat(np.arange(len(clips)), rng.choice(windows, len(clips)))]
    anomalous = table["label"].to_numpy() == 1
    means = 3 * rng.normal(size=(table["section"].max() + 1, dimension))
    scale = np.where(anomalous, 1.5, 1.0)[:, None]
    feature = means[table["section"]] + scale * rng.normal(size=(len(table), dimension))
    spectrum, residual = rng.normal(size=(2, len(table), mels)).astype(np.float32)
    return clips, Segments(
        clip=table["clip"].to_numpy(np.str_),
        split=table["split"].to_numpy(np.str_),
        section=table["section"].to_numpy(np.int32),
        domain=table["domain"].to_numpy(np.str_),
        label=table["label"].to_numpy(np.int32),
        start=np.zeros(len(table), np.float32),
        ae_score=(rng.gamma(9.0, size=len(table)) + 1.5 * anomalous).astype(np.float32),
        feature=feature.astype(np.float32),
        spectrum=spectrum,
        residual=residual,
    )


def smooth_by_hand(score, feature, scores, features, k):
    """Eq. 7 for one row and its possible neighbours, in float64: the mean over k - 1 and itself."""
    distances = np.sum((features.astype(np.float64) - feature) ** 2, axis=1)
    nearest = np.argsort(distances, kind="stable")[: k - 1]
    return np.mean([score, *scores[nearest].astype(np.float64)])
