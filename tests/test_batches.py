"""The samplers: every recording once a turn, 1:1, and nothing but (seed, step) behind a batch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import tiny
from scipy import stats

from dns_jax.data.batches import count_steps, crop_randomly, draw_rows

POSITIVES = np.arange(1000, 1300)


def draw(rows, batch, steps, seed=0, stream=2):
    return [draw_rows(rows, batch, seed, stream, step) for step in range(steps)]


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
        positive = draw_rows(POSITIVES, 64, 0, 2, step)
        negative = draw_rows(negatives, 64, 0, 3, step)
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
        np.testing.assert_array_equal(draw_rows(POSITIVES, 64, 0, 2, int(step)), expected[step])


def test_a_batch_far_on_is_that_of_the_whole_chain():
    chain = np.concatenate(draw(POSITIVES, 1, 12_000))
    np.testing.assert_array_equal(draw_rows(POSITIVES, 64, 0, 2, 180), chain[180 * 64 : 181 * 64])


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


# Crops


def crop(recordings, rows, steps, seed=0, stream=4):
    """Starts of all crops: i64[steps, rows]."""
    for step in range(steps):
        crop_randomly(recordings, rows, 100, seed, stream, step)
    got = recordings.cut[-steps:]
    assert all((r == rows).all() for r, _ in got)
    return np.stack([starts for _, starts in got])


def test_starts_are_uniform_from_0_to_length_less_samples_inclusive_for_unequal_lengths():
    recordings = tiny.Recordings([100, 101, 104, 110])
    starts = crop(recordings, np.arange(4), 3000)
    for row, room in enumerate([1, 2, 5, 11]):
        counts = np.bincount(starts[:, row], minlength=room)
        assert len(counts) == room
        assert room == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_crops_are_the_samples_at_the_starts():
    recordings = tiny.Recordings([120, 150])
    rows = np.array([1, 0, 1])
    got = crop_randomly(recordings, rows, 100, 0, 4, 7)
    assert got.shape == (3, 100)
    assert got.dtype == np.float32
    (_, starts), *_ = recordings.cut
    for piece, row, start in zip(got, rows, starts, strict=True):
        np.testing.assert_array_equal(piece, recordings.samples[row][start : start + 100])


def test_starts_depend_on_seed_and_step_alone_and_not_on_the_order_of_calls():
    recordings, rows = tiny.Recordings([1000] * 8), np.arange(8)
    expected = crop(recordings, rows, 20)
    for step in (13, 2, 19):
        crop_randomly(recordings, rows, 100, 0, 4, step)
        np.testing.assert_array_equal(recordings.cut[-1][1], expected[step])
    assert (crop(recordings, rows, 20, seed=1) != expected).any()
    assert (crop(recordings, rows, 20, stream=1) != expected).any()


def test_starts_of_neighbouring_steps_and_rows_are_uncorrelated():
    starts = crop(tiny.Recordings([1100] * 2), np.arange(2), 2000)
    assert stats.spearmanr(starts[:, 0], starts[:, 1]).pvalue > 1e-3
    assert stats.spearmanr(starts[:-1, 0], starts[1:, 0]).pvalue > 1e-3
