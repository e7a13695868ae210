"""Training batches as a pure function of (seed, step): random crops in endless shuffles.

Section IV-A: batches of 4-second segments, for SerialOE with t_mac in {0, 1} at 1:1. Positives and
negatives are each an endless chain of shuffles of their recordings, so that every recording comes
exactly once in every N draws and a short list of negatives starts over. Any run of steps is drawn
at once, and is the same however the steps are cut into runs.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Which segments some batches hold."""

    rows: np.ndarray  # i64[batches, batch], of the table of recordings
    starts: np.ndarray  # i64[batches, batch], samples (frames, of a cached spectrum)
    labels: tuple[np.ndarray, ...] = ()  # [batches, batch, ...], what the loss is told besides


def count_steps(recordings: int, batch: int) -> int:
    """Return the steps of one epoch: every recording is drawn once, ceil(recordings / batch)."""
    return -(-recordings // batch)


def draw_rows(
    rows: np.ndarray, batch: int, seed: int, stream: int, first: int, count: int = 1
) -> np.ndarray:
    """Draw the recordings of some steps.

    Args:
      rows: i64[n], what is drawn from.
      batch: how many are drawn for a step; may exceed n.
      seed: of the run.
      stream: number of the chain; chains of one seed are independent.
      first: number of the first step, from 0.
      count: how many steps.

    Returns:
      i64[count, batch], entries first * batch to (first + count) * batch of the chain.
    """
    turn, place = divmod(first * batch, len(rows))
    end = place + count * batch
    turns = range(turn, turn + -(-end // len(rows)))
    chain = np.concatenate([_shuffle(len(rows), seed, stream, turn) for turn in turns])
    return rows[chain[place:end]].reshape(count, batch)


@lru_cache(maxsize=8)
def _shuffle(count, seed, stream, turn):
    return np.random.default_rng((seed, stream, turn)).permutation(count)


def draw_starts(room: np.ndarray, seed: int, stream: int, first: int) -> np.ndarray:
    """Draw where the segments of some steps begin.

    Args:
      room: i64[count, batch], how many places there are for each, below 2^32.
      seed: of the run.
      stream: must differ from the streams given to `draw_rows`.
      first: number of the first step.

    Returns:
      i64[count, batch], from 0 to room - 1, each equally likely (to one in 2^32).
    """
    # Counted, not chained: Philox goes to any place of its sequence at once, four numbers a count.
    block, skipped = divmod(first * room.shape[1], 4)
    key = np.random.SeedSequence((seed, stream)).generate_state(2, np.uint64)
    numbers = np.random.Philox(key=key).advance(block).random_raw(skipped + room.size)
    high = (numbers[skipped:] >> np.uint64(32)).reshape(room.shape)
    return (high * room.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
