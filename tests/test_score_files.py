"""The official evaluator's files, byte for byte, and the decision threshold against SciPy."""

import os
import warnings

import numpy as np
import pytest
import scipy.stats

from dns_jax.evaluation.score_files import (
    file_name,
    fit_threshold,
    place_threshold,
    read_scores,
    write_decisions,
    write_scores,
)


def test_names_are_the_official_evaluators():
    assert (
        file_name("anomaly_score", "ToyCar", 3, "target")
        == "anomaly_score_ToyCar_section_03_target_test.csv"
    )
    assert (
        file_name("decision_result", "fan", 12, "source")
        == "decision_result_fan_section_12_source_test.csv"
    )
    with pytest.raises(ValueError, match=r"kind must be .* not 'scores'"):
        file_name("scores", "fan", 0, "source")


@pytest.mark.parametrize("domain", ["source", "target", "unknown"])
def test_other_years_name_one_file_a_section(domain):
    kinds = {"anomaly_score": "ToyCar", "decision_result": "3DPrinter"}
    for kind, machine in kinds.items():
        assert file_name(kind, machine, 5, domain, year=2020) == f"{kind}_{machine}_id_05.csv"
        for year in (2022, 2023, 2024, 2025):
            name = file_name(kind, machine, 0, domain, year=year)
            assert name == f"{kind}_{machine}_section_00_test.csv"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scores_come_back_exactly(tmp_path, dtype):
    rng = np.random.default_rng(0)
    scores = np.append(rng.normal(size=50) * 10.0 ** rng.integers(-30, 30, 50), [np.nan, -np.inf])
    scores = scores.astype(dtype)
    files = [f'clip {i}, left "ü".wav' for i in range(len(scores))]
    write_scores(tmp_path / "scores.csv", files, scores)
    read_files, read = read_scores(tmp_path / "scores.csv")
    assert read_files == files
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, scores.astype(np.float64))


def test_rows_have_no_header_and_the_unscored_are_nan(tmp_path):
    write_scores(tmp_path / "scores.csv", ["a.wav", "b.wav"], [0.1, np.nan])
    assert (tmp_path / "scores.csv").read_bytes() == b"a.wav,0.1\nb.wav,nan\n"
    write_decisions(tmp_path / "decisions.csv", ["a.wav", "b.wav", "c.wav"], [0, 1, np.nan])
    assert (tmp_path / "decisions.csv").read_bytes() == b"a.wav,0\nb.wav,1\nc.wav,nan\n"
    write_decisions(tmp_path / "decisions.csv", ["a.wav", "b.wav"], np.array([True, False]))
    assert (tmp_path / "decisions.csv").read_bytes() == b"a.wav,1\nb.wav,0\n"


def test_published_files_are_written_byte_for_byte(realdata, tmp_path):
    folder = realdata / "dcase2021_scores" / "yokaji_ae_baseline"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    for pattern, write in (("anomaly_score_*", write_scores), ("decision_*", write_decisions)):
        paths = sorted(folder.glob(pattern))
        assert len(paths) == 42
        for path in paths[::7]:
            write(tmp_path / path.name, *read_scores(path))
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", ["", "\n", "\ufeff"])
def test_a_file_without_rows_reads_as_none(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8")
    files, scores = read_scores(tmp_path / "scores.csv")
    assert files == []
    assert scores.shape == (0,)


def test_byte_order_mark_carriage_returns_and_empty_lines_are_no_part_of_a_row(tmp_path):
    (tmp_path / "scores.csv").write_bytes(b"\xef\xbb\xbfa.wav,1\r\n\r\nb.wav, 2e-3\r\n\r\n")
    files, scores = read_scores(tmp_path / "scores.csv")
    assert files == ["a.wav", "b.wav"]
    assert scores.tolist() == [1.0, 0.002]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"file,score\na.wav,1\n", 1),
        (b"a.wav,1\nb.wav\n", 2),
        (b"a.wav,1\nb.wav,2,3\n", 2),
        (b"a.wav,1\n\nb.wav,\n", 3),
        (b"a.wav,1\n,2\n", 2),
        (b"a.wav,1\nb.wav,high\nc.wav,3\n", 2),
        (b'a.wav,1\n"b.wav,2\n', 2),
        (b'a.wav,1\nb.wav,"2\n', 2),
        (b"a.wav,1\nb\xff.wav,2\n", 2),
        (b"a.wav,1\nb.wav,\xe2\x80\xa8two\n", 2),
        (b"PK\x03\x04\n\x00\x01\xfe\xff\n", 2),
    ],
)
def test_a_malformed_row_is_named(tmp_path, text, line):
    path = tmp_path / "scores.csv"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"scores.csv, line {line}: ") as error:
        read_scores(path)
    assert str(path) in str(error.value)


def test_the_row_found_is_shown_in_short(tmp_path):
    (tmp_path / "scores.csv").write_text("a.wav,1\n" + "b" * 500 + "\n")
    with pytest.raises(ValueError, match=r"found 'b{77}\.\.\.'"):
        read_scores(tmp_path / "scores.csv")


def test_wrong_rows_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_scores(tmp_path / "scores.csv", ["a.wav"], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"0, 1 or NaN, not 0\.5"):
        write_decisions(tmp_path / "scores.csv", ["a.wav", "b.wav"], [1, 0.5])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "scores.csv"
    write_scores(path, ["a.wav"], [1.0])

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_scores(path, ["b.wav"], [2.0])
    assert path.read_text() == "a.wav,1.0\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("location", [0.0, -40.0])
def test_threshold_is_the_percentile_of_scipys_gamma_fit(location):
    scores = location + np.random.default_rng(1).gamma(4.0, 2.0, 4000)
    expected = scipy.stats.gamma.ppf(0.9, *scipy.stats.gamma.fit(scores))
    threshold, how = fit_threshold(scores)
    assert how == "gamma"
    assert threshold == pytest.approx(expected, rel=1e-12)
    true = location + scipy.stats.gamma.ppf(0.9, 4.0, scale=2.0)
    assert threshold == pytest.approx(true, abs=0.5)
    assert fit_threshold(scores, percentile=50)[0] < threshold


def test_scores_that_are_not_finite_do_not_count_for_the_threshold():
    scores = np.random.default_rng(2).gamma(4.0, 2.0, 100)
    assert fit_threshold([*scores, np.nan, np.inf]) == fit_threshold(scores)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [([3.0], "fewer than 3"), ([1.0, 2.0], "fewer than 3"), ([2.0] * 20, "equal")],
)
def test_too_little_to_fit_gives_the_empirical_percentile(scores, reason):
    threshold, how = fit_threshold(scores)
    assert how.startswith("empirical: ")
    assert reason in how
    assert threshold == pytest.approx(np.percentile(scores, 90))


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (RuntimeError("did not converge"), "failed (did not converge)"),
        (FloatingPointError("overflow"), "failed (overflow)"),
        ((np.nan, 0.0, 1.0), "not finite"),
        ((2.0, 1e6, 1.0), "outside the training scores"),
    ],
)
def test_a_fit_that_says_nothing_gives_the_empirical_percentile(monkeypatch, fit, reason):
    def gamma_fit(data):
        if isinstance(fit, Exception):
            raise fit
        return fit

    monkeypatch.setattr(scipy.stats.gamma, "fit", gamma_fit)
    scores = np.arange(11.0)
    threshold, how = fit_threshold(scores)
    assert threshold == pytest.approx(9.0)
    assert how.startswith("empirical: ")
    assert reason in how


def test_a_fit_that_warns_is_taken_quietly(monkeypatch):
    def gamma_fit(data):
        warnings.warn("invalid value", RuntimeWarning, stacklevel=1)
        return 2.0, np.exp(np.float64(800)), 1.0

    monkeypatch.setattr(scipy.stats.gamma, "fit", gamma_fit)
    assert fit_threshold(np.arange(11.0))[1] == "empirical: the gamma fit is not finite"


@pytest.mark.parametrize("exponent", [-300, -20, 0, 20, 300])
def test_no_warning_escapes_whatever_the_scores(exponent):
    for seed in range(3):
        scores = np.random.default_rng(seed).standard_cauchy(30) * 10.0**exponent
        threshold, how = fit_threshold(scores)
        assert scores.min() <= threshold <= scores.max()
        assert how.partition(":")[0] in ("gamma", "empirical")


def test_a_threshold_needs_scores_and_a_percentile():
    with pytest.raises(ValueError, match="without a finite training score"):
        fit_threshold([np.nan])
    with pytest.raises(ValueError, match="from 0 to 100, not 900"):
        fit_threshold([1.0, 2.0, 3.0], percentile=900)


def test_a_threshold_may_be_placed_below_so_many_scores():
    scores = np.array([3.0, np.nan, 9.0, 1.0, np.inf, 4.0])
    for count in range(6):
        assert np.sum(scores > place_threshold(scores, count)) == count
    assert np.sum(scores > place_threshold(scores, 9)) == 5
    assert not np.any(np.ones(4) > place_threshold(np.ones(4), 2))  # no order among equals
    assert place_threshold([np.nan], 0) == -np.inf


def test_a_fit_that_an_outlier_bends_gives_way_to_the_training_scores():
    rng = np.random.default_rng(0)
    bent = 0
    for _ in range(20):
        scores = np.append(rng.gamma(4.0, 2.0, 200), 400.0)
        threshold, how = fit_threshold(scores)
        assert 0.05 <= np.mean(scores > threshold) <= 0.15
        bent += how == "empirical: the gamma fit disagrees with the training scores"
    assert bent
