"""The inlier model h: scikit-learn's mixture, scored by SciPy, saved and loaded bit by bit."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.mixture import GaussianMixture

from dns_jax.inlier import fit_inlier, load_inliers, save_inliers, score_features


@pytest.fixture(scope="module")
def features():
    """Three correlated clusters far from the origin, where float32 would cancel."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 5, 5))
    clusters = [3000 + 20 * i + rng.standard_normal((80, 5)) @ mixing[i] for i in range(3)]
    return rng.permutation(np.concatenate(clusters)).astype(np.float32)


@pytest.fixture(scope="module")
def inlier(features):
    return fit_inlier(features, 3, seed=0)


def test_the_score_is_the_negative_log_likelihood_of_a_mixture_of_full_gaussians(inlier, features):
    log_densities = [
        np.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(features.astype(float))
        for weight, mean, covariance in zip(
            inlier.weights_, inlier.means_, inlier.covariances_, strict=True
        )
    ]
    scores = score_features(inlier, features)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, -special.logsumexp(log_densities, axis=0), rtol=1e-8)
    assert np.abs(inlier.covariances_[:, 0, 1]).min() > 0.1


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_the_mixture_is_scikit_learns_in_float64(features, clusters):
    wide = features.astype(np.float64)
    expected = GaussianMixture(clusters, covariance_type="full", random_state=3).fit(wide)
    got = score_features(fit_inlier(features, clusters, seed=3), features)
    np.testing.assert_array_equal(got, -expected.score_samples(wide))


def test_a_feature_far_from_the_training_features_scores_high(inlier, features):
    assert score_features(inlier, features[:1] + 50) > score_features(inlier, features).max()


def test_saved_mixtures_score_bit_for_bit_as_before(tmp_path, inlier, features):
    inliers = {3: inlier, 12: fit_inlier(features, 1, seed=0), 103: fit_inlier(features, 2, seed=1)}
    save_inliers(tmp_path / "inlier.npz", inliers)
    loaded = load_inliers(tmp_path / "inlier.npz")
    assert list(loaded) == [3, 12, 103]
    for section, mixture in inliers.items():
        np.testing.assert_array_equal(
            score_features(loaded[section], features), score_features(mixture, features)
        )


def test_the_file_holds_plain_numbers_without_pickle(tmp_path, inlier):
    save_inliers(tmp_path / "inlier.npz", {3: inlier})
    with np.load(tmp_path / "inlier.npz", allow_pickle=False) as arrays:
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype(np.float64)}
        np.testing.assert_array_equal(arrays["section_03_means"], inlier.means_)


@pytest.mark.parametrize(("rows", "clusters"), [(0, 1), (1, 1), (2, 3)])
def test_fewer_rows_than_a_mixture_needs_are_refused(features, rows, clusters):
    with pytest.raises(ValueError, match="sample"):
        fit_inlier(features[:rows], clusters, seed=0)


def test_a_feature_that_is_not_finite_is_refused(features):
    with pytest.raises(ValueError, match="NaN"):
        fit_inlier(np.where(features == features[7], np.nan, features), 2, seed=0)


def test_equal_features_are_fitted_without_a_warning(features):
    inlier = fit_inlier(np.tile(features[:1], (10, 1)), 2, seed=0)
    assert np.isfinite(score_features(inlier, features[:1])).all()
