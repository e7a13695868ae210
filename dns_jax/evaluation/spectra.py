"""GMM-NLL: how unlikely a mean log-mel spectrum is among those of the normal recordings.

A generative score without a network: Gaussians on the principal components, and one isotropic
Gaussian on what these leave. docs/beyond.md says what it is worth.
"""

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA

from dns_jax.data.refusals import DataError
from dns_jax.inlier import fit_inlier, score_features

COMPONENTS = 32
CLUSTERS = 8


def fit_spectra(spectra: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Fit the mixture.

    Args:
      spectra: real[rows, mels] in dB, of normal recordings, 2 rows or more; of fewer than 4
        `COMPONENTS` there are fewer components and Gaussians in proportion.
      seed: of the initial k-means.

    Returns:
      The score, real[rows, mels] -> f64[rows], high means anomalous: the negative log-likelihood
      up to a constant.

    Raises:
      DataError: there are fewer rows.
    """
    rows, mels = spectra.shape
    if rows < 2:
        raise DataError(
            "--config.smoothing.generative with gmm: a mixture takes two or more normal training "
            f"recordings with a finite spectrum; there are {rows}; leave gmm out"
        )
    share = min(1.0, rows / (4 * COMPONENTS))
    components, clusters = (max(1, int(share * x)) for x in (min(COMPONENTS, mels), CLUSTERS))
    with np.errstate(invalid="ignore"):  # the share of each component where all are alike
        pca = PCA(components, svd_solver="full").fit(spectra)
    inlier = fit_inlier(pca.transform(spectra), clusters, seed)
    left = spectra.var(axis=0, ddof=1).sum() - pca.explained_variance_.sum()
    noise = max(left / max(1, mels - components), np.finfo(np.float32).eps)

    def score(spectra):
        inside = pca.transform(spectra)
        outside = np.square(spectra - pca.inverse_transform(inside)).sum(axis=1)
        return score_features(inlier, inside) + outside / (2 * noise)

    return score
