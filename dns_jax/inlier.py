"""The inlier model h of SerialOE: one Gaussian mixture a section (section II-B), by scikit-learn.

Its anomaly score is the negative log-likelihood of a segment's discriminative feature.
"""

import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from dns_jax.files import write_file


def fit_inlier(features: np.ndarray, clusters: int, seed: int) -> GaussianMixture:
    """Fit h with full covariances, as SerialOE's code does.

    Args:
      features: f32[segments, D], f_D of normal training segments of one section.
      clusters: number of Gaussians.
      seed: of the initial k-means.

    Raises:
      ValueError: the mixture cannot be fitted to these features; the message says why.
    """
    mixture = GaussianMixture(clusters, random_state=seed)
    # A mixture's matrices are small: threads would wait for each other most of the time.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # EM stopped at 100 rounds, or k-means found fewer clusters: the mixture is usable.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(features.astype(np.float64))


def score_features(inlier: GaussianMixture, features: np.ndarray) -> np.ndarray:
    """Return f64[segments], -log p(f_D) under h; high means anomalous."""
    return -inlier.score_samples(features.astype(np.float64))


def save_inliers(path: Path, inliers: dict[int, GaussianMixture]) -> None:
    """Save the mixtures of a machine, {section: h}, as an NPZ of plain arrays."""
    arrays = {}
    for section, inlier in inliers.items():
        arrays[f"section_{section:02d}_weights"] = inlier.weights_
        arrays[f"section_{section:02d}_means"] = inlier.means_
        arrays[f"section_{section:02d}_covariances"] = inlier.covariances_
        arrays[f"section_{section:02d}_precisions_cholesky"] = inlier.precisions_cholesky_
    write_file(path, lambda file: np.savez(file, **arrays))


def load_inliers(path: Path) -> dict[int, GaussianMixture]:
    """Load what `save_inliers` wrote; the mixtures score as those that were saved."""
    inliers = {}
    with np.load(path) as arrays:
        for name in (name for name in arrays.files if name.endswith("_weights")):
            prefix = name.removesuffix("weights")
            inlier = GaussianMixture(len(arrays[name]))
            for field in ("weights", "means", "covariances", "precisions_cholesky"):
                setattr(inlier, f"{field}_", arrays[prefix + field])
            inliers[int(prefix.split("_")[1])] = inlier
    return inliers
