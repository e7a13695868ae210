"""The choice of hyperparameters: the best on the sections named, ties to the smaller and Source."""

import numpy as np
import pandas as pd
import pytest

from dns_jax.evaluation.metrics import section_hmean
from dns_jax.evaluation.selection import Choice, neighbour_grid, select, select_by_auc


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    section = np.repeat([0, 1, 3], 60)
    label = np.where(section < 3, rng.integers(0, 2, 180), np.tile([0, 1], 90))
    domain = np.tile(["source", "source", "target"], 60)
    frame = pd.DataFrame({"section": section, "domain": domain, "label": label})
    return frame.sample(frac=1, random_state=0)


@pytest.fixture
def candidates(clips):
    """Twelve scores of various quality, in no order."""
    rng = np.random.default_rng(1)
    names = [(size, data) for size in (32, 1, 8, 4, 2, 16) for data in ("all", "source")]
    label = clips["label"].to_numpy()
    return {name: rng.normal(label * rng.uniform(0, 2)) for name in names}


def test_the_grid_is_the_powers_of_two_up_to_the_smallest_pool():
    assert neighbour_grid(1400) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert neighbour_grid(2800)[-1] == 2048
    assert neighbour_grid(1024)[-1] == 1024
    assert neighbour_grid(1023)[-1] == 512
    assert neighbour_grid(1) == (1,)
    assert neighbour_grid(0) == ()


def test_a_choice_reads_as_in_table_1():
    assert Choice(32, "all", "default")._asdict() == {"size": 32, "data": "all", "how": "default"}


@pytest.mark.parametrize("sections", [[0], [1], [3], [0, 1], [0, 1, 3]])
def test_the_highest_harmonic_mean_wins(clips, candidates, sections):
    values = {name: section_hmean(clips, scores, sections) for name, scores in candidates.items()}
    assert select(candidates, clips, sections) == max(values, key=values.get)


def test_other_sections_do_not_count(clips, candidates):
    chosen = select(candidates, clips, [0, 1])
    elsewhere = (clips["section"] == 3).to_numpy()
    spoiled = {name: np.where(elsewhere, 0.0, scores) for name, scores in candidates.items()}
    assert select(spoiled, clips, [0, 1]) == chosen


@pytest.mark.parametrize("choose", [select, select_by_auc])
def test_ties_go_to_the_smaller_size_and_then_to_source(clips, choose):
    where = [3] if choose is select else 3
    good, bad = clips["label"].to_numpy(float), np.zeros(len(clips))
    tied = {(8, "source"): good, (4, "all"): good, (1, "source"): bad}
    assert choose(tied, clips, where)[:2] == (4, "all")
    tied = {(4, "all"): good, (4, "source"): good, (8, "source"): good}
    assert choose(tied, clips, where)[:2] == (4, "source")


@pytest.mark.parametrize(("gap", "chosen"), [(5e-13, (4, "all")), (2e-9, (8, "source"))])
def test_values_within_rounding_tie(monkeypatch, gap, chosen):
    values = {0: 0.7, 1: 0.7 - gap}
    monkeypatch.setattr(
        "dns_jax.evaluation.selection.section_hmean", lambda clips, scores, sections: values[scores]
    )
    assert select({(8, "source"): 0, (4, "all"): 1}, None, [0]) == chosen


@pytest.mark.parametrize("choose", [select, select_by_auc])
def test_a_candidate_that_is_not_evaluable_loses(clips, choose):
    where = [3] if choose is select else 3
    nothing, wrong = np.full(len(clips), np.nan), -clips["label"].to_numpy(float)
    assert choose({(1, "source"): nothing, (8, "all"): wrong}, clips, where)[:2] == (8, "all")
    assert choose({(1, "source"): nothing}, clips, where) is None
    assert choose({}, clips, where) is None
    assert choose({(1, "source"): wrong}, clips.assign(label=-1), where) is None


def test_one_section_is_chosen_for_by_its_auc_with_both_domains_pooled(clips, candidates):
    label = clips["label"].to_numpy()
    for section in (0, 1, 3):
        normal = (clips["section"] == section).to_numpy() & (label == 0)
        anomalous = (clips["section"] == section).to_numpy() & (label == 1)
        aucs = {
            name: np.mean(scores[anomalous][:, None] > scores[normal])
            for name, scores in candidates.items()
        }
        best = max(aucs, key=aucs.get)
        size, data, auc = select_by_auc(candidates, clips, section)
        assert (size, data) == best
        assert auc == pytest.approx(aucs[best], abs=1e-12)


def test_scores_that_are_not_one_per_clip_are_refused(clips):
    with pytest.raises(ValueError, match="one per clip"):
        select({(1, "all"): np.zeros(3)}, clips, [0])
