"""GMM-NLL of mean spectra, against closed forms and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from dns_jax.data.refusals import DataError
from dns_jax.evaluation.spectra import CLUSTERS, COMPONENTS, fit_spectra


def split_components(spectra, fitted, count):
    """Coordinates on the first principal components, squares outside, variance of one outside."""
    mean = fitted.mean(axis=0)
    _, singular, axes = np.linalg.svd(fitted - mean, full_matrices=False)
    inside = (spectra - mean) @ axes[:count].T
    outside = np.square(spectra - mean - inside @ axes[:count]).sum(axis=1)
    return inside, outside, np.mean(singular[count:] ** 2) / (len(fitted) - 1)


def test_of_few_recordings_it_is_one_gaussian_and_an_isotropic_one_on_what_is_left():
    rng = np.random.default_rng(0)
    fitted, spectra = rng.normal(size=(24, 10)) * np.arange(1, 11), 3 * rng.normal(size=(7, 10))
    count = 10 * 24 // (4 * COMPONENTS)  # in proportion
    of_fitted, _, _ = split_components(fitted, fitted, count)
    inside, outside, variance = split_components(spectra, fitted, count)
    covariance = np.atleast_2d(np.cov(of_fitted.T, bias=True)) + 1e-6 * np.eye(count)
    gaussian = multivariate_normal(of_fitted.mean(axis=0), covariance)
    expected = -gaussian.logpdf(inside) + outside / (2 * variance)
    np.testing.assert_allclose(fit_spectra(fitted, 0)(spectra), expected, rtol=1e-6)


def test_of_many_it_has_eight_gaussians_on_32_components():
    rng = np.random.default_rng(1)
    places = 20 * rng.normal(size=(CLUSTERS, 40))
    fitted = places[rng.integers(CLUSTERS, size=400)] + rng.normal(size=(400, 40))
    spectra = 20 * rng.normal(size=(9, 40))
    of_fitted, _, _ = split_components(fitted, fitted, COMPONENTS)
    inside, outside, variance = split_components(spectra, fitted, COMPONENTS)
    mixture = GaussianMixture(CLUSTERS, random_state=3).fit(of_fitted)
    expected = -mixture.score_samples(inside) + outside / (2 * variance)
    np.testing.assert_allclose(fit_spectra(fitted, 3)(spectra), expected, rtol=1e-5)


def test_what_is_left_is_shared_by_all_other_bands_also_of_fewer_recordings_than_bands():
    rng = np.random.default_rng(4)
    fitted, spectra = rng.normal(size=(20, 50)), rng.normal(size=(9, 50))
    count = COMPONENTS * 20 // (4 * COMPONENTS)
    of_fitted, left, _ = split_components(fitted, fitted, count)
    inside, outside, _ = split_components(spectra, fitted, count)
    variance = left.sum() / 19 / (50 - count)
    covariance = np.cov(of_fitted.T, bias=True) + 1e-6 * np.eye(count)
    gaussian = multivariate_normal(of_fitted.mean(axis=0), covariance)
    expected = -gaussian.logpdf(inside) + outside / (2 * variance)
    np.testing.assert_allclose(fit_spectra(fitted, 0)(spectra), expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_one_recording_is_too_few(rows):
    with pytest.raises(DataError, match=f"there are {rows}; leave gmm out"):
        fit_spectra(np.zeros((rows, 6)), 0)


@pytest.mark.parametrize("rows", [2, 5, 40])
def test_few_recordings_or_all_alike_give_numbers(rows):
    rng = np.random.default_rng(2)
    for fitted in (rng.normal(size=(rows, 6)), np.ones((rows, 6))):
        score = fit_spectra(fitted, 0)
        assert np.isfinite(score(rng.normal(size=(3, 6)))).all()
