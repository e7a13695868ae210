"""Smoothing without labels: what is smoothed, and over what, against loops in NumPy."""

import numpy as np
import pytest
from eq7 import oracle
from machine import make_machine
from scipy.stats import norm, rankdata

from dns_jax import diffuse
from dns_jax.evaluation.label_free import (
    PAPER,
    TOGETHER,
    describe,
    list_variants,
    needs_spectra,
    score_generatively,
    score_label_free,
)
from dns_jax.evaluation.normalising import NORMAL, join_spaces
from dns_jax.evaluation.spectra import fit_spectra
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
    clips, segments = make_machine(COUNTS, windows=(2,), mels=5)  # pools of one size
    segments = segments._replace(ae_score=np.exp(segments.ae_score))
    serial_oe = np.random.default_rng(5).gamma(2.0, size=len(segments.clip))
    return clips["clip"].tolist(), segments, serial_oe


def score(machine, unit="segment", scope="section", default_k=32, **options):
    clips, segments, serial_oe = machine
    options = PAPER | options
    smoothing = options | {"unit": unit, "scope": scope, "default_k": default_k}
    scores = score_generatively(segments, serial_oe, smoothing, 0)
    return score_label_free(segments, scores, options, smoothing, clips)


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


def smooth_section(machine, section, smooth):
    """{test recording: mean} of a section from a_G of its rows, smoothed by a function."""
    _, segments, _ = machine
    rows = segments.select((segments.section == section) & (segments.split == "test"))
    clip = np.unique(rows.clip, return_inverse=True)[1]
    smoothed = np.asarray(smooth(rows.ae_score, rows.feature, clip))
    names = np.unique(rows.clip)
    return dict(zip(names, average_segments(smoothed, rows.clip, names), strict=True))


def test_of_the_papers_options_it_is_eq_7_with_k_at_most_a_fifth_of_the_pool(machine):
    clips, segments, _ = machine
    for default_k in (3, 32):
        got = dict(zip(clips, score(machine, default_k=default_k), strict=True))
        for section in (0, 2):
            here = (segments.split == "test") & (segments.section == section)
            k = min(default_k, here.sum() // 5)
            expected = smooth_section(machine, section, lambda x, f, _, k=k: oracle(x, f, k))
            for clip, value in expected.items():
                assert got[clip] == pytest.approx(value, rel=1e-5)


def test_diffusion_goes_from_recording_to_recording(machine):
    got = dict(zip(machine[0], score(machine, method="diffusion"), strict=True))
    for section in (0, 2):
        expected = smooth_section(machine, section, lambda x, f, clip: diffuse(x, f, groups=clip))
        for clip, value in expected.items():
            assert got[clip] == pytest.approx(value, rel=1e-5)


def test_training_recordings_have_no_score_where_they_are_not_in_the_pool(machine):
    clips, segments, _ = machine
    train = np.isin(clips, segments.clip[segments.split == "train"])
    np.testing.assert_array_equal(np.isnan(score(machine, **OPTIONS)), train)
    assert np.isfinite(score(machine, **OPTIONS | {"pool": "test+train"})).all()


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


def test_neighbours_may_be_those_in_f_d_joined_with_the_residual(machine):
    clips, segments, serial_oe = machine
    got = score(machine, space="f_d+residual", default_k=4)
    joined = np.empty((len(segments.clip), 3 + 5), np.float32)
    for section in (0, 2):
        here = segments.section == section
        pool = np.flatnonzero(segments.split[here] == "test")
        both = segments.feature[here], segments.residual[here]
        joined[here] = join_spaces(both, pool)
    expected = score((clips, segments._replace(feature=joined), serial_oe), default_k=4)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (np.abs(got - score(machine, default_k=4)) > 1e-3).any()  # NaN is not


def test_a_mixture_of_the_training_recordings_spectra_is_a_score(machine):
    clips, segments, serial_oe = machine
    got = score(machine, generative="gmm", default_k=1, pool="test+train")
    mixture = fit_spectra(segments.spectrum[segments.split == "train"], 0)(segments.spectrum)
    np.testing.assert_allclose(got, average_segments(mixture, segments.clip, clips), rtol=1e-5)
    # Of all three the z-scores are added.
    z = np.zeros(len(mixture))
    for section in (0, 2):
        here = segments.section == section
        tests = here & (segments.split == "test")
        for column in (segments.ae_score, mixture, serial_oe):
            for domain in ("source", "target"):
                of_domain = tests & (segments.domain == domain)
                rows = here & (segments.domain == domain)
                z[rows] += (column[rows] - column[of_domain].mean()) / column[of_domain].std()
    got = score(machine, generative="ae+gmm+serial_oe", default_k=1, pool="test+train")
    np.testing.assert_allclose(got, average_segments(z, segments.clip, clips), atol=1e-4)


def test_a_segment_without_a_finite_spectrum_has_no_such_score(machine):
    clips, segments, serial_oe = machine
    for split in ("test", "train"):
        row = np.flatnonzero(segments.split == split)[0]
        spectrum = segments.spectrum.copy()
        spectrum[row, 0] = np.inf
        broken = clips, segments._replace(spectrum=spectrum), serial_oe
        got = score(broken, generative="gmm", default_k=1, pool="test+train")
        assert np.isnan(got).tolist() == [clip == segments.clip[row] for clip in clips]


def test_only_what_is_asked_for_needs_spectra():
    assert not needs_spectra(PAPER | OPTIONS)
    assert needs_spectra(PAPER | {"generative": "ae+gmm"})
    assert needs_spectra(PAPER | {"space": "f_d+residual"})


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


EVERYTHING = OPTIONS | {"generative": "ae+gmm+serial_oe", "space": "f_d+residual"}


@pytest.mark.parametrize("options", [{}, EVERYTHING, EVERYTHING | {"pool": "test+train"}])
@pytest.mark.parametrize(("unit", "scope"), [("segment", "section"), ("clip", "machine")])
def test_every_recording_has_a_score_that_no_label_changes(machine, options, unit, scope):
    clips, segments, serial_oe = machine
    expected = score(machine, unit, scope, **options)
    tests = np.isin(clips, segments.clip[segments.split == "test"])
    assert np.isfinite(expected[tests]).all()
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
    tests = set(segments.clip[segments.split == "test"].tolist())
    there = [of_clip[clip] == 0 and clip in tests for clip in clips]
    assert [bool(np.isfinite(x)) for x in got] == there


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
