"""The curves: what is drawn, and that their ends are what the tables say."""

import numpy as np
import pytest
from machine import make_machine

from dns_jax.evaluation.curves import (
    draw_rates,
    draw_shares,
    measure_anomaly_rates,
    measure_neighbours,
    measure_pool_sizes,
)
from dns_jax.evaluation.metrics import section_hmean
from dns_jax.evaluation.pools import list_ks, stack_pools
from dns_jax.evaluation.systems import smooth_candidates
from dns_jax.parallel import make_mesh


class Smoothing:
    unit, scope = "segment", "section"


COUNTS = {
    ("test", 0, "source"): (20, 10),
    ("test", 0, "target"): (12, 14),
    ("test", 1, "source"): (9, 30),
    ("test", 1, "target"): (5, 3),
}


@pytest.fixture(scope="module")
def machine():
    return make_machine(COUNTS)


@pytest.fixture(scope="module")
def pools(machine):
    return stack_pools(machine[1], (0, 1), "segment", "section")


def cells(pools):
    return {
        (section, domain, label): (pools.section == section)
        & (pools.source == (domain == "source"))
        & (pools.label == label)
        for (_, section, domain) in COUNTS
        for label in (0, 1)
    }


def test_a_share_keeps_the_ratio_of_labels_and_domains_in_each_section(pools):
    drawn = draw_shares(pools, (0.05, 0.5, 1.0), 4)
    assert drawn[2].all()
    for (_, _, _), cell in cells(pools).items():
        assert (drawn[0][:, cell].sum(axis=1) == max(1, round(0.05 * cell.sum()))).all()
        assert (drawn[1][:, cell].sum(axis=1) == round(0.5 * cell.sum())).all()
    assert (drawn[0] <= drawn[1]).all()  # a pool that grows
    assert len(np.unique(drawn[1], axis=0)) == 4  # other recordings in each repetition


def test_the_rate_of_anomalies_holds_on_average_in_every_section_and_domain(pools):
    rates = (0.02, 0.2, 0.5)
    drawn = draw_rates(pools, rates, 3000)
    for rate, of_rate in zip(rates, drawn, strict=True):
        for _, section, domain in COUNTS:
            normal, anomalous = (
                of_rate[:, cells(pools)[section, domain, label]].sum(axis=1) for label in (0, 1)
            )
            assert np.mean(anomalous) / np.mean(normal + anomalous) == pytest.approx(rate, abs=0.01)
            everything = COUNTS["test", section, domain]
            full = np.array([np.mean(normal), np.mean(anomalous)]) > np.array(everything) - 0.01
            assert full.any()  # as many recordings as the rate allows


def test_where_there_are_no_anomalies_all_normal_recordings_stay(pools):
    clean = pools._replace(label=np.where(pools.source, pools.label, 0))
    drawn = draw_rates(clean, (0.5,), 3)
    assert drawn[..., ~pools.source].all()


def test_the_metric_against_k_is_what_table_i_is_chosen_by(machine, pools):
    clips, segments = machine
    smoothed = smooth_candidates(segments, Smoothing, clips["clip"], make_mesh(1))
    curves = measure_neighbours(pools)
    curves = curves[curves["curve"] == "neighbours"]
    measured = {(row.x, row.line): row.value for row in curves.itertuples()}
    for (k, data), scores in smoothed.items():
        assert measured[k, data] == pytest.approx(section_hmean(clips, scores, (0, 1)), abs=1e-5)
    assert {k for k, _ in smoothed} == set(list_ks(pools))


def test_the_curves_end_where_the_whole_test_set_is_the_pool(pools):
    every_k = measure_neighbours(pools)
    own = every_k[every_k["curve"] == "neighbours"]
    with_windows = own[~own["line"].str.contains("other")]["value"].max()
    sizes = measure_pool_sizes(pools, (0.3, 1.0), 3)
    assert sizes[sizes["x"] == 1.0]["value"].to_numpy() == pytest.approx(with_windows, abs=1e-6)
    assert sizes[sizes["x"] == 1.0]["std"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert (sizes[sizes["x"] == 0.3]["std"] > 0).all()


def test_the_anomaly_rate_has_a_line_for_the_chosen_k(pools):
    rates = measure_anomaly_rates(pools, (4, "source"), (0.01, 0.5), 3)
    best, chosen = (rates[rates["line"] == n] for n in ("best K and Data", "K = 4, source"))
    assert best["x"].tolist() == chosen["x"].tolist() == [0.01, 0.5]
    assert (best["value"].to_numpy() >= chosen["value"].to_numpy()).all()
    assert set(measure_anomaly_rates(pools, (4096, "all"), (0.1,), 2)["line"]) == {
        "best K and Data"
    }
