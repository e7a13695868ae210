"""Smoothing without labels: what is calibrated, ranked and smoothed, against loops in NumPy."""

import numpy as np
import pytest
from eq7 import oracle, oracle_queries
from machine import make_machine
from scipy.stats import norm, rankdata

from dns_jax import diffuse, diffuse_queries
from dns_jax.evaluation.label_free import (
    FEWEST,
    NORMAL,
    PAPER,
    TOGETHER,
    calibrate,
    describe,
    list_variants,
    rank_normally,
    score_label_free,
    standardise,
)
from dns_jax.evaluation.systems import average_segments, take_unit

COUNTS = {
    (split, section, domain): (count, anomalous)
    for section in (0, 2)
    for split, domain, count, anomalous in (
        ("train", "source", 9, 0),
        ("train", "target", 4, 0),
        ("test", "source", 8, 6),
        ("test", "target", 7, 5),
    )
}
OPTIONS = {
    "generative": "ae+serial_oe",
    "score_transform": "calibrated",
    "domain_normalisation": "ranks",
    "method": "diffusion",
}


@pytest.fixture(scope="module")
def machine():
    """Segments with a_G above 0, the table of clips, and scores of SerialOE."""
    clips, segments = make_machine(COUNTS, windows=(2,))  # pools of one size, compiled once
    segments = segments._replace(ae_score=np.exp(segments.ae_score))
    serial_oe = np.random.default_rng(5).gamma(2.0, size=len(segments.clip))
    return clips["clip"].tolist(), segments, serial_oe


def score(machine, unit="segment", scope="section", default_k=32, **options):
    clips, segments, serial_oe = machine
    smoothing = {"unit": unit, "scope": scope, "default_k": default_k}
    return score_label_free(segments, serial_oe, PAPER | options, smoothing, clips)


# The parts


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


# The systems


def test_a_configuration_of_the_paper_asks_for_nothing():
    assert list_variants(PAPER | {"unit": "segment"}) == {}


def test_each_option_has_its_system_and_all_have_one_together():
    variants = list_variants(PAPER | OPTIONS)
    assert variants == {
        "only_ae+serial_oe": PAPER | {"generative": "ae+serial_oe"},
        "only_calibrated": PAPER | {"score_transform": "calibrated"},
        "only_ranks": PAPER | {"domain_normalisation": "ranks"},
        "only_diffusion": PAPER | {"method": "diffusion"},
        TOGETHER: PAPER | OPTIONS,
    }
    # One option alone is all of them.
    assert [*list_variants(PAPER | {"method": "diffusion"})] == [TOGETHER]
    assert [describe(system) for system in variants][-2:] == ["Only diffusion", "Label-free"]


def smooth_section(machine, section, smooth_test, smooth_train):
    """{clip: mean} of a section from a_G of its rows, smoothed by the given functions."""
    _, segments, _ = machine
    rows = segments.select(segments.section == section)
    tests = rows.split == "test"
    pool = rows.ae_score[tests], rows.feature[tests]
    smoothed = np.empty(len(tests))
    smoothed[tests] = smooth_test(*pool, rows.clip[tests])
    smoothed[~tests] = smooth_train(
        rows.ae_score[~tests], rows.feature[~tests], *pool, rows.clip[tests]
    )
    names = np.unique(rows.clip)
    return dict(zip(names, average_segments(smoothed, rows.clip, names), strict=True))


def test_of_the_papers_options_it_is_eq_7_with_k_at_most_a_fifth_of_the_pool(machine):
    clips, segments, _ = machine
    for default_k in (3, 32):
        got = dict(zip(clips, score(machine, default_k=default_k), strict=True))
        for section in (0, 2):
            here = (segments.split == "test") & (segments.section == section)
            k = min(default_k, here.sum() // 5)
            expected = smooth_section(
                machine,
                section,
                lambda x, f, _, k=k: oracle(x, f, k),
                lambda x, f, p, q, _, k=k: oracle_queries(x, f, p, q, k),
            )
            for clip, value in expected.items():
                assert got[clip] == pytest.approx(value, rel=1e-5)


def test_diffusion_goes_from_recording_to_recording(machine):
    got = dict(zip(machine[0], score(machine, method="diffusion"), strict=True))
    for section in (0, 2):
        expected = smooth_section(
            machine,
            section,
            lambda x, f, clip: diffuse(x, f, groups=np.unique(clip, return_inverse=True)[1]),
            lambda x, f, p, q, clip: diffuse_queries(
                x, f, p, q,
                query_groups=np.full(len(x), -1),
                pool_groups=np.unique(clip, return_inverse=True)[1],
            ),
        )  # fmt: skip
        for clip, value in expected.items():
            assert got[clip] == pytest.approx(value, rel=1e-5)


def test_training_recordings_may_be_neighbours(machine):
    clips, segments, _ = machine
    got = dict(zip(clips, score(machine, pool="test+train", default_k=4), strict=True))
    for section in (0, 2):
        rows = segments.select(segments.section == section)
        order = np.argsort(rows.split == "train", kind="stable")  # test first
        rows = rows.select(order)
        smoothed = oracle(rows.ae_score, rows.feature, 4)
        for clip in np.unique(rows.clip):
            assert got[clip] == pytest.approx(smoothed[rows.clip == clip].mean(), rel=1e-5)


def test_what_is_smoothed_is_the_sum_of_calibrated_ranks(machine):
    clips, segments, serial_oe = machine
    options = OPTIONS | {"method": "mean"}
    got = dict(zip(clips, score(machine, default_k=1, **options), strict=True))
    both = np.column_stack([np.log(segments.ae_score), serial_oe])
    for section in (0, 2):
        here = segments.section == section
        rows, values = segments.select(here), both[here].copy()
        for i in range(len(values)):
            normal = np.flatnonzero((rows.split == "train") & (rows.clip != rows.clip[i]))
            distance = np.square(rows.feature[normal] - rows.feature[i]).sum(1)
            nearest = normal[np.argsort(distance, kind="stable")[:NORMAL]]
            values[i] -= both[here][nearest].mean(0)
        for domain in ("source", "target"):
            tests = (rows.split == "test") & (rows.domain == domain)
            ranks = (rankdata(values[tests], axis=0) - 0.5) / tests.sum()
            expected = average_segments(
                norm.ppf(ranks).sum(1), rows.clip[tests], np.unique(rows.clip[tests])
            )
            for clip, value in zip(np.unique(rows.clip[tests]), expected, strict=True):
                assert got[clip] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("options", [{}, OPTIONS, OPTIONS | {"pool": "test+train"}])
@pytest.mark.parametrize(("unit", "scope"), [("segment", "section"), ("clip", "machine")])
def test_every_recording_has_a_score_that_no_label_changes(machine, options, unit, scope):
    clips, segments, serial_oe = machine
    expected = score(machine, unit, scope, **options)
    assert np.isfinite(expected).all()
    shuffled = np.where(segments.split == "test", 1 - segments.label, segments.label)
    other = clips, segments._replace(label=shuffled), serial_oe
    np.testing.assert_array_equal(score(other, unit, scope, **options), expected)


def test_recordings_as_a_whole_are_rows_of_means(machine):
    clips, segments, serial_oe = machine
    rows = take_unit(segments, "clip")
    means = average_segments(serial_oe, segments.clip, rows.clip)
    whole = rows.clip.tolist(), rows, means
    np.testing.assert_allclose(
        average_segments(score(machine, "clip", **OPTIONS), np.array(clips), rows.clip),
        score(whole, **OPTIONS),
        rtol=1e-5,
    )


def test_a_section_without_test_recordings_has_no_scores(machine):
    clips, segments, serial_oe = machine
    left = (segments.split == "train") | (segments.section == 0)
    got = score((clips, segments.select(left), serial_oe[left]), **OPTIONS)
    of_clip = dict(zip(segments.clip.tolist(), segments.section.tolist(), strict=True))
    assert [bool(np.isfinite(x)) for x in got] == [of_clip[clip] == 0 for clip in clips]


def test_training_rows_of_a_section_without_test_recordings_are_left_out_of_the_pool(machine):
    clips, segments, serial_oe = machine
    left = (segments.split == "train") | (segments.section == 0)
    part = clips, segments.select(left), serial_oe[left]
    options = {"pool": "test+train", "domain_normalisation": "ranks"}
    got = score(part, scope="machine", **options)
    of_clip = dict(zip(segments.clip.tolist(), segments.section.tolist(), strict=True))
    assert [bool(np.isfinite(x)) for x in got] == [of_clip[clip] == 0 for clip in clips]


def test_a_pool_of_one_recording_keeps_its_score(machine):
    clips, segments, serial_oe = machine
    tests = np.flatnonzero(segments.split == "test")
    left = (segments.split == "train") | (segments.clip == segments.clip[tests[0]])
    one = clips, segments.select(left), serial_oe[left]
    got = dict(zip(clips, score(one, "clip", method="diffusion"), strict=True))
    name = segments.clip[tests[0]]
    own = segments.ae_score[segments.clip == name].astype(np.float64).mean()
    assert got[name] == pytest.approx(own, rel=1e-6)
