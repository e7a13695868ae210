"""The bootstrap of Table II's differences against clips that are really repeated."""

import numpy as np
import pandas as pd
import pytest
import scipy.integrate
import scipy.stats

from dns_jax.evaluation.bootstrap import bootstrap_difference, draw_resamples, resampled_aucs
from dns_jax.evaluation.metrics import compute_auc, compute_pauc, section_hmean


def make_clips(machines, sections, size):
    """Return `size` normal and as many anomalous clips per machine, section and domain."""
    index = pd.MultiIndex.from_product(
        [machines, sections, ["source", "target"], [0, 1], range(size)],
        names=["machine", "section", "domain", "label", "number"],
    )
    return index.to_frame(index=False).drop(columns="number")


def make_scores(clips, seeds, shift, rng):
    """Return scores and, correlated with them, those of a weaker baseline; ties among them."""
    labels = clips["label"].to_numpy()
    common = rng.normal(labels, 1.0, (seeds, len(clips)))
    noise = rng.normal(0, 0.4, (seeds, len(clips)))
    return np.round(common + shift * labels, 1), np.round(common + noise, 1)


def width(interval):
    return (interval["high"] - interval["low"]).to_numpy()


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    clips = make_clips(["fan", "pump"], [3, 5], 20).sample(frac=1, random_state=0)
    return clips, *make_scores(clips, 2, 0.4, rng)


def repeat(labels, scores, counts):
    return np.repeat(labels, counts), np.repeat(scores, counts)


@pytest.mark.parametrize("ties", ["none", "some", "nearly all", "all", "infinite"])
def test_aucs_of_a_resample_are_those_of_the_clips_repeated(ties):
    rng = np.random.default_rng(1)
    labels = np.append(rng.integers(0, 2, 78), [0, 1])
    scores = rng.normal(labels)
    scores = {
        "none": scores,
        "some": np.round(scores, 1),
        "nearly all": np.round(scores / 4),
        "all": np.zeros(80),
        "infinite": np.where(np.abs(scores) > 1, np.inf * scores, scores),
    }[ties]
    counts = rng.poisson(1, (80, 50))
    counts[-2:] += 1
    aucs = resampled_aucs(labels, scores, counts)
    assert aucs.shape == (2, 50)
    for resample, (auc, pauc) in zip(counts.T, aucs.T, strict=True):
        repeated = repeat(labels, scores, resample)
        assert auc == pytest.approx(compute_auc(*repeated), abs=1e-12)
        assert pauc == pytest.approx(compute_pauc(*repeated), abs=1e-12)


def test_resamples_keep_the_size_of_every_stratum_and_draw_evenly():
    strata = pd.DataFrame({"domain": list("aabbbabb"), "label": [0, 1, 0, 0, 1, 0, 1, 0]})
    counts = draw_resamples(strata, 4000, np.random.default_rng(2))
    assert counts.shape == (8, 4000)
    for rows in strata.groupby(["domain", "label"]).indices.values():
        n = len(rows)
        assert (counts[rows].sum(axis=0) == n).all()
        assert counts[rows].mean(axis=1) == pytest.approx(np.ones(n), abs=0.06)
        for row in counts[rows]:
            drawn = np.bincount(row, minlength=n + 1) / 4000
            assert drawn == pytest.approx(scipy.stats.binom.pmf(range(n + 1), n, 1 / n), abs=0.03)
        if n > 1:
            assert len(np.unique(counts[rows], axis=1).T) > 1


def table_two(clips, system, machine, rows):
    """Mean over seeds of Table II's cell for the clips at `rows`."""
    apart = clips.assign(section=clips["section"] + 10 * (clips["machine"] == "pump"))
    sections = {"fan": [3, 5], "pump": [13, 15], "all": [3, 5, 13, 15]}[machine]
    return np.mean([section_hmean(apart.iloc[rows], run[rows], sections) for run in system])


def test_the_difference_is_that_of_table_two(case):
    clips, scores, baseline = case
    table = bootstrap_difference(clips, scores, baseline, rounds=10)
    assert list(table.columns) == ["machine", "difference", "low", "high"]
    assert list(table["machine"]) == [*dict.fromkeys(clips["machine"]), "all"]
    rows = np.arange(len(clips))
    for machine, difference in zip(table["machine"], table["difference"], strict=True):
        ours, theirs = (table_two(clips, system, machine, rows) for system in (scores, baseline))
        assert difference == pytest.approx(ours - theirs, abs=1e-12)


def test_the_interval_is_that_of_clips_really_repeated(case, monkeypatch):
    clips, scores, baseline = case
    clips = clips.reset_index(drop=True)
    counts = np.zeros((len(clips), 12), int)

    def record(strata, rounds, rng):
        drawn = draw_resamples(strata, rounds, rng)
        counts[strata.index] += drawn
        return drawn

    monkeypatch.setattr("dns_jax.evaluation.bootstrap.draw_resamples", record)
    table = bootstrap_difference(clips, scores, baseline, rounds=12).set_index("machine")
    strata = pd.DataFrame(counts).groupby(
        [clips[name] for name in ("machine", "section", "domain", "label")]
    )
    assert strata.ngroups == 16
    assert (strata.sum() == 20).all(axis=None)
    for machine in table.index:
        differences = []
        for resample in counts.T:
            rows = np.repeat(np.arange(len(clips)), resample)
            ours, theirs = (
                table_two(clips, system, machine, rows) for system in (scores, baseline)
            )
            differences.append(ours - theirs)
        low, high = np.percentile(differences, [2.5, 97.5])
        assert low < high
        assert table.loc[machine, "low"] == pytest.approx(low, abs=1e-12)
        assert table.loc[machine, "high"] == pytest.approx(high, abs=1e-12)


def test_a_system_does_not_differ_from_itself(case):
    clips, scores, _ = case
    table = bootstrap_difference(clips, scores, scores, rounds=50)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    monotone = bootstrap_difference(clips, 5 * scores - 3, scores, rounds=50)
    assert (monotone[["difference", "low", "high"]] == 0).all(axis=None)


def test_exchanging_the_systems_turns_the_interval_round(case):
    clips, scores, baseline = case
    there = bootstrap_difference(clips, scores, baseline, rounds=99)
    back = bootstrap_difference(clips, baseline, scores, rounds=99)
    np.testing.assert_allclose(there["difference"], -back["difference"], atol=1e-12)
    np.testing.assert_allclose(there["low"], -back["high"], atol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    better, worse = 1.5, 1.0

    def true_hmean(shift):
        def hit_rate(false_alarm_rate):
            return scipy.stats.norm.sf(scipy.stats.norm.isf(false_alarm_rate) - shift)

        area = scipy.integrate.quad(hit_rate, 0, 0.1)[0]
        pauc = (1 + (area - 0.005) / 0.095) / 2
        return scipy.stats.hmean([scipy.stats.norm.cdf(shift / np.sqrt(2)), pauc])

    truth = true_hmean(better) - true_hmean(worse)
    clips = make_clips(["fan"], [3], 75)
    labels = clips["label"].to_numpy()
    rng = np.random.default_rng(3)
    below = above = 0
    for repetition in range(200):
        common, own = rng.normal(size=(2, 2, len(clips)))
        noise = np.sqrt(0.7) * common[:1] + np.sqrt(0.3) * own
        table = bootstrap_difference(
            clips,
            noise[:1] + better * labels,
            noise[1:] + worse * labels,
            rounds=200,
            seed=repetition,
        )
        below += table["high"].iloc[-1] < truth
        above += table["low"].iloc[-1] > truth
    assert 1 <= below + above <= 22  # of 200, 10 expected
    assert max(below, above) <= 15


def test_pairing_narrows_the_interval_of_systems_that_agree():
    rng = np.random.default_rng(4)
    clips = make_clips(["fan"], [3, 4], 60)
    scores, _ = make_scores(clips, 1, 0.0, rng)
    baseline = scores + rng.normal(0, 0.2, scores.shape)
    constant = np.zeros_like(scores)
    paired = width(bootstrap_difference(clips, scores, baseline))
    alone = [width(bootstrap_difference(clips, system, constant)) for system in (scores, baseline)]
    assert (paired > 0).all()
    assert (paired < 0.4 * np.hypot(*alone)).all()


def test_all_seeds_of_a_run_share_the_resample(case):
    clips, scores, baseline = case
    one = bootstrap_difference(clips, scores[:1], baseline[:1], rounds=50)
    same = bootstrap_difference(clips, scores[[0] * 4], baseline[[0] * 4], rounds=50)
    pd.testing.assert_frame_equal(one, same, rtol=0, atol=1e-12)


def test_the_interval_follows_from_the_seed_and_the_machine_alone(case):
    clips, scores, baseline = case
    table = bootstrap_difference(clips, scores, baseline, rounds=50, seed=1)
    pd.testing.assert_frame_equal(
        table, bootstrap_difference(clips, scores, baseline, rounds=50, seed=1)
    )
    other = bootstrap_difference(clips, scores, baseline, rounds=50, seed=2)
    assert (other["difference"] == table["difference"]).all()
    assert (other["low"] != table["low"]).all()
    ours = (clips["machine"] == "pump").to_numpy()
    alone = bootstrap_difference(
        clips[ours], scores[:, ours], baseline[:, ours], rounds=50, seed=1
    ).set_index("machine")
    pd.testing.assert_series_equal(alone.loc["pump"], table.set_index("machine").loc["pump"])
    assert alone.loc["pump"].tolist() == alone.loc["all"].tolist()


def test_machines_and_sections_are_resampled_independently(monkeypatch):
    clips = make_clips(["fan", "pump"], [3, 4], 10)
    drawn = []

    def record(strata, rounds, rng):
        drawn.append(draw_resamples(strata, rounds, rng))
        return drawn[-1]

    monkeypatch.setattr("dns_jax.evaluation.bootstrap.draw_resamples", record)
    scores, baseline = make_scores(clips, 1, 0.0, np.random.default_rng(5))
    bootstrap_difference(clips, scores, baseline, rounds=20)
    assert len({counts.tobytes() for counts in drawn}) == 4


def test_clips_that_do_not_count_change_nothing(case):
    clips, scores, baseline = case
    expected = bootstrap_difference(clips, scores, baseline, rounds=50)
    more = clips.head(9).assign(label=[-1, 0, 1] * 3)
    more_scores, more_baseline = np.random.default_rng(6).normal(size=(2, 2, 9))
    more_scores[0, [1, 2, 4]] = np.nan
    more_baseline[1, [5, 7, 8]] = np.nan
    table = bootstrap_difference(
        pd.concat([clips, more]),
        np.hstack([scores, more_scores]),
        np.hstack([baseline, more_baseline]),
        rounds=50,
    )
    pd.testing.assert_frame_equal(table, expected)


def test_sections_of_one_class_are_left_out_and_a_machine_of_none_is_nan(case):
    clips, scores, baseline = case
    outside = bootstrap_difference(clips, scores, baseline, rounds=50)
    normal, unknown = clips.assign(section=9, label=0), clips.assign(machine="valve", label=-1)
    more = pd.concat([clips, normal, unknown])
    table = bootstrap_difference(
        more, np.tile(scores, 3), np.tile(baseline, 3), rounds=50
    ).set_index("machine")
    assert table.loc["valve"].isna().all()
    pd.testing.assert_frame_equal(table.drop("valve").reset_index(), outside)
    nothing = bootstrap_difference(clips.assign(label=-1), scores, baseline)
    assert nothing[["difference", "low", "high"]].isna().all(axis=None)


def test_other_shapes_and_no_rounds_are_refused(case):
    clips, scores, baseline = case
    for wrong in (scores[0], scores[:, 1:], scores[:1]):
        with pytest.raises(ValueError, match=r"must be \[seeds, 320\], but are \("):
            bootstrap_difference(clips, wrong, baseline)
        with pytest.raises(ValueError, match=r"must be \[seeds, 320\], but are \("):
            bootstrap_difference(clips, baseline, wrong)
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        bootstrap_difference(clips, scores, baseline, rounds=0)
