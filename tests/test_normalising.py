"""What makes scores and spaces comparable without labels, against loops in NumPy."""

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from dns_jax.evaluation.normalising import (
    FEWEST,
    NORMAL,
    calibrate,
    join_spaces,
    rank_normally,
    standardise,
)


@pytest.mark.parametrize("columns", [(), (2,)])
def test_calibrated_is_what_lies_above_the_mean_of_the_nearest_training_rows(columns):
    rng = np.random.default_rng(0)
    scores, normal = rng.normal(50, 9, (30, *columns)), rng.normal(40, 9, (25, *columns))
    features, of_normal = rng.normal(size=(30, 4)), rng.normal(size=(25, 4))
    expected = np.empty_like(scores)
    for i, feature in enumerate(features):
        nearest = np.argsort(np.square(of_normal - feature).sum(1), kind="stable")[:NORMAL]
        expected[i] = scores[i] - normal[nearest].mean(0)
    got = calibrate(scores, features, normal, of_normal)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # A constant of the machine changes nothing, however large.
    np.testing.assert_allclose(
        calibrate(scores + 1e5, features, normal + 1e5, of_normal), expected, atol=1e-3
    )


def test_a_row_is_not_what_is_usual_for_itself():
    rng = np.random.default_rng(1)
    scores, features = rng.normal(size=12), rng.normal(size=(12, 3))
    groups = np.arange(12) // 2
    got = calibrate(scores, features, scores, features, groups=groups, normal_groups=groups)
    for i, feature in enumerate(features):
        others = np.flatnonzero(groups != groups[i])
        nearest = others[np.argsort(np.square(features[others] - feature).sum(1))[:NORMAL]]
        assert got[i] == pytest.approx(scores[i] - scores[nearest].mean(), abs=1e-6)


def test_without_training_rows_or_a_finite_feature_nothing_is_made_up():
    scores, features = np.array([1.0, 2, 3]), np.array([[0.0], [1], [np.nan]])
    nothing = np.zeros(0), np.zeros((0, 1))
    np.testing.assert_array_equal(calibrate(scores, features, *nothing), [1, 2, np.nan])
    one = np.array([5.0]), np.array([[0.0]])
    np.testing.assert_array_equal(calibrate(scores, features, *one), [-4, -3, np.nan])


def test_ranks_are_quantiles_of_the_normal_distribution_within_each_domain():
    rng = np.random.default_rng(2)
    values, domains = rng.integers(0, 9, 40).astype(float), np.array(["source", "target"] * 20)
    got = rank_normally(values, domains, values, domains)
    for domain in ("source", "target"):
        rows = domains == domain
        expected = norm.ppf((rankdata(values[rows]) - 0.5) / rows.sum())
        np.testing.assert_allclose(got[rows], expected, rtol=1e-5, atol=1e-6)
    # Only the order counts.
    np.testing.assert_array_equal(
        got, rank_normally(np.exp(3 * values), domains, np.exp(3 * values), domains)
    )


@pytest.mark.parametrize("normalise", [rank_normally, standardise])
def test_what_is_outside_keeps_its_order_and_is_finite(normalise):
    among, domains = np.arange(5.0), np.zeros(5)
    values = np.array([-1e9, 0, 0.5, 3, 4, 1e9])
    got = normalise(values, np.zeros(6), among, domains)
    assert np.isfinite(got).all()
    assert (np.diff(got) > 0).all()
    # A domain that is not among them is compared with all.
    np.testing.assert_array_equal(got, normalise(values, np.ones(6), among, domains))


@pytest.mark.parametrize("normalise", [rank_normally, standardise])
def test_what_is_no_number_stays_that_and_counts_nowhere(normalise):
    values, domain = np.array([1, np.nan, 3.0]), np.zeros(3)
    got = normalise(values, domain, values, domain)
    np.testing.assert_array_equal(
        got, np.insert(normalise(values[::2], domain[::2], values[::2], domain[::2]), 1, np.nan)
    )
    assert np.isnan(normalise(values, domain, np.zeros(0), np.zeros(0))).all()
    assert not normalise(np.ones(3), domain, np.ones(3), domain).any()  # all alike


def test_z_is_by_mean_and_deviation_of_the_domain():
    rng = np.random.default_rng(3)
    values, domains = rng.normal(7, 3, 2 * FEWEST), np.arange(2 * FEWEST) % 2
    got = standardise(values, domains, values, domains)
    for domain in (0, 1):
        rows = values[domains == domain]
        np.testing.assert_allclose(got[domains == domain], (rows - rows.mean()) / rows.std(), 1e-5)


@pytest.mark.parametrize("normalise", [rank_normally, standardise])
def test_a_domain_of_few_rows_is_compared_with_all(normalise):
    rng = np.random.default_rng(4)
    values = rng.normal(size=FEWEST + 3)
    domains = np.array(["source"] * FEWEST + ["target"] * 3)
    values[-1] = 99.0
    got = normalise(values, domains, values, domains)
    one = np.zeros(len(values))
    np.testing.assert_array_equal(got[-3:], normalise(values, one, values, one)[-3:])
    assert got[-1] == got.max()


def test_a_training_score_that_is_no_number_says_nothing_about_what_is_usual():
    features, normal = np.zeros((1, 1)), np.array([1.0, np.nan, 3.0])
    assert calibrate(np.array([5.0]), features, normal, np.zeros((3, 1))) == [3.0]


def test_joined_spaces_have_the_same_variance_in_the_pool():
    rng = np.random.default_rng(6)
    spaces = rng.normal(size=(12, 3)), 1e4 * rng.normal(size=(12, 5)) + 1e5
    pool = np.arange(2, 10)
    joined = join_spaces(spaces, pool)
    for own, space in zip(np.split(joined, [3], axis=1), spaces, strict=True):
        scale = np.sqrt(sum(np.var(space[pool, i]) for i in range(space.shape[1])))
        np.testing.assert_allclose(own, space / scale, rtol=1e-6)
    assert joined.dtype == np.float32


def test_a_row_that_is_no_number_does_not_decide_the_scale_and_a_constant_has_none():
    first, second = np.arange(6.0)[:, None], np.ones((6, 2))
    first[5] = np.nan
    joined = join_spaces([first, second], np.arange(6))
    np.testing.assert_allclose(joined[:5, 0], first[:5, 0] / first[:5].std(), rtol=1e-6)
    np.testing.assert_array_equal(joined[:, 1:], second)
    assert np.isnan(joined[5, 0])
