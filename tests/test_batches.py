"""The samplers: every recording once a turn, 1:1, and nothing but (seed, step) behind a batch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from dns_jax.data.batches import count_steps, draw_rows, draw_starts

POSITIVES = np.arange(1000, 1300)


def draw(rows, batch, steps, seed=0, stream=2):
    return [draw_rows(rows, batch, seed, stream, step)[0] for step in range(steps)]


@pytest.mark.parametrize(
    ("recordings", "steps"), [(1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (5112, 80)]
)
def test_an_epoch_has_as_many_steps_as_batches_begin_in_it(recordings, steps):
    assert count_steps(recordings, 64) == steps


@pytest.mark.parametrize("count", [300, 64, 37, 5], ids=lambda n: f"{n}_rows")
def test_every_recording_is_drawn_exactly_once_in_every_n_draws(count):
    rows = POSITIVES[:count]
    batches = draw(rows, 64, 1000)
    assert {len(batch) for batch in batches} == {64}
    chain = np.concatenate(batches)
    turns = chain[: len(chain) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(turns, axis=1), np.tile(rows, (len(turns), 1)))
    partial = chain[len(turns) * count :]  # of the last turn
    assert len({*partial}) == len(partial)


def test_positives_and_a_shorter_list_of_negatives_stay_1_to_1_over_1000_batches():
    negatives = np.arange(37)
    counts = Counter()
    for step in range(1000):
        (positive,) = draw_rows(POSITIVES, 64, 0, 2, step)
        (negative,) = draw_rows(negatives, 64, 0, 3, step)
        assert (len(positive), len(negative)) == (64, 64)
        assert np.isin(positive, POSITIVES).all()
        assert np.isin(negative, negatives).all()
        counts.update(negative.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_turn_is_shuffled_anew():
    chain = np.concatenate(draw(POSITIVES, 100, 300)).reshape(100, 300)
    assert len({tuple(turn) for turn in chain}) == 100
    # The place of a recording in a turn is uniform: no rank correlation from turn to turn.
    correlations = [stats.spearmanr(a, b).statistic for a, b in pairwise(chain)]
    assert np.abs(correlations).max() < 0.25
    assert abs(np.mean(correlations)) < 0.02


def test_a_batch_depends_on_seed_and_step_alone():
    expected = draw(POSITIVES, 64, 50)
    order = np.random.default_rng(0).permutation(50)
    for step in order:
        draw_rows(POSITIVES[:10], 64, 1, 0, step)  # other chains between
        (drawn,) = draw_rows(POSITIVES, 64, 0, 2, int(step))
        np.testing.assert_array_equal(drawn, expected[step])


def test_a_batch_far_on_is_that_of_the_whole_chain():
    chain = np.concatenate(draw(POSITIVES, 1, 12_000))
    (drawn,) = draw_rows(POSITIVES, 64, 0, 2, 180)
    np.testing.assert_array_equal(drawn, chain[180 * 64 : 181 * 64])


@pytest.mark.parametrize("count", [300, 64, 5], ids=lambda n: f"{n}_rows")
@pytest.mark.parametrize("run", [2, 7, 64])
def test_a_run_of_steps_holds_what_they_hold_one_by_one(count, run):
    expected = draw(POSITIVES[:count], 16, 64)
    for first in range(0, 64 - run + 1, 5):
        drawn = draw_rows(POSITIVES[:count], 16, 0, 2, first, run)
        np.testing.assert_array_equal(drawn, expected[first : first + run])


def test_the_rows_themselves_are_not_changed():
    rows = POSITIVES.copy()
    draw(rows, 64, 10)
    np.testing.assert_array_equal(rows, POSITIVES)


@pytest.mark.parametrize("other", [{"seed": 1}, {"stream": 3}], ids=["seed", "stream"])
def test_chains_of_other_seeds_and_streams_are_independent(other):
    rows = np.arange(5)
    first = np.concatenate(draw(rows, 5, 2000))
    second = np.concatenate(draw(rows, 5, 2000, **other))
    table = np.zeros((5, 5))
    np.add.at(table, (first, second), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert (first != second).any()


# Starts


def test_starts_are_uniform_from_0_to_room_less_1_whatever_the_room_of_each():
    room = np.tile([1, 2, 5, 11], (3000, 1))
    starts = draw_starts(room, 0, 4, 0)
    for row, places in enumerate(room[0]):
        counts = np.bincount(starts[:, row], minlength=places)
        assert len(counts) == places
        assert places == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_starts_of_the_papers_crops_are_uniform_over_the_whole_recording():
    starts = draw_starts(np.full((1000, 128), 96_001), 0, 4, 0)
    assert (starts.min(), starts.max()) == (0, 96_000)
    assert stats.kstest(starts.ravel() / 96_001, "uniform").pvalue > 1e-3


def test_starts_depend_on_seed_stream_and_step_alone():
    room = np.full((20, 7), 1000)
    expected = draw_starts(room, 0, 4, 100)
    np.testing.assert_array_equal(draw_starts(room, 0, 4, 100), expected)
    for other in ((1, 4, 100), (0, 1, 100), (0, 4, 101)):
        assert (draw_starts(room, *other) != expected).mean() > 0.9
    rooms = room // 2  # of other recordings; the place in the recording stays
    np.testing.assert_array_equal(draw_starts(rooms, 0, 4, 100), expected // 2)


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
def test_a_run_of_starts_is_the_same_however_it_is_cut(batch):
    room = np.full((60, batch), 96_001)
    expected = draw_starts(room, 0, 4, 0)
    for first, count in ((0, 1), (1, 1), (2, 5), (7, 53), (59, 1)):
        got = draw_starts(room[:count], 0, 4, first)
        np.testing.assert_array_equal(got, expected[first : first + count])


def test_starts_of_neighbouring_steps_and_rows_are_uncorrelated():
    starts = draw_starts(np.full((2000, 2), 1001), 0, 4, 0)
    assert stats.spearmanr(starts[:, 0], starts[:, 1]).pvalue > 1e-3
    assert stats.spearmanr(starts[:-1, 0], starts[1:, 0]).pvalue > 1e-3
