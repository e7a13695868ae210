"""What is said against smoothed scores without labels."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from dns_jax.evaluation.guard import AGREEMENT, FEWEST, find_hazards, measure_agreement

COUNT = 40


@pytest.fixture
def clips():
    cells = [(0, "source"), (0, "target"), (3, "source")]
    frame = pd.DataFrame(cells * COUNT, columns=["section", "domain"])
    return frame.set_index(np.arange(len(frame)) + 100)  # as rows of a larger table


@pytest.fixture
def scores(clips):
    a_g = np.random.default_rng(0).normal(size=len(clips))
    return a_g, a_g + 0.1 * np.random.default_rng(1).normal(size=len(clips))


def test_scores_that_agree_and_a_small_k_are_not_complained_about(clips, scores):
    assert find_hazards(clips, *scores, 32, 160) == []


@pytest.mark.parametrize(("k", "pool", "said"), [(33, 160, True), (1, 3, False), (2, 9, True)])
def test_a_k_above_a_fifth_of_the_pool_is_said(clips, scores, k, pool, said):
    hazards = find_hazards(clips, *scores, k, pool)
    assert len(hazards) == said
    if said:
        assert hazards[0].startswith(
            f"K = {k} of eq. 7 is more than a fifth of the smallest pool ({pool} "
        )


def test_a_section_and_domain_where_the_scores_do_not_agree_is_named(clips, scores):
    a_g, serial_oe = scores
    here = ((clips["section"] == 0) & (clips["domain"] == "target")).to_numpy()
    turned = np.where(here, -serial_oe, serial_oe)
    (hazard,) = find_hazards(clips, a_g, turned, 1, 160)
    assert "in section 00 target (-" in hazard
    assert "03" not in hazard


def test_the_agreement_is_the_correlation_of_ranks(clips):
    rng = np.random.default_rng(3)
    a_g, serial_oe = rng.normal(size=len(clips)), rng.normal(size=len(clips))
    a_g[7] = serial_oe[11] = np.nan
    for section, domain, agreement in measure_agreement(clips, a_g, np.exp(serial_oe)):
        here = ((clips["section"] == section) & (clips["domain"] == domain)).to_numpy()
        here = here & ~np.isnan(a_g + serial_oe)
        ranks = rankdata(a_g[here]), rankdata(serial_oe[here])
        assert agreement == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_of_few_recordings_or_of_scores_all_alike_nothing_is_said(clips, scores):
    a_g, serial_oe = scores
    few = np.where(np.arange(len(clips)) < 3 * (FEWEST - 1), -serial_oe, np.nan)
    assert measure_agreement(clips, a_g, few) == []
    assert measure_agreement(clips, a_g, np.zeros(len(clips))) == []
    assert 0 < AGREEMENT < 1
