"""Training batches as a pure function of (seed, step): random crops in endless shuffles.

Section IV-A: batches of 4-second segments, for SerialOE with t_mac in {0, 1} at 1:1. Positives and
negatives are each an endless chain of shuffles of their recordings, so that every recording comes
exactly once in every N draws and a short list of negatives starts over.
"""

from functools import lru_cache

import numpy as np

from dns_jax.data.waveforms import Waveforms


def count_steps(recordings: int, batch: int) -> int:
    """Return the steps of one epoch: every recording is drawn once, ceil(recordings / batch)."""
    return -(-recordings // batch)


def draw_rows(rows: np.ndarray, batch: int, seed: int, stream: int, step: int) -> np.ndarray:
    """Draw the recordings of one step.

    Args:
      rows: i64[n], what is drawn from.
      batch: how many are drawn; may exceed n.
      seed: of the run.
      stream: number of the chain; chains of one seed are independent.
      step: number of the batch, from 0.

    Returns:
      i64[batch], entries step * batch to (step + 1) * batch of the chain.
    """
    position = np.arange(step * batch, (step + 1) * batch)
    turns = position // len(rows)
    drawn = [
        _shuffle(len(rows), seed, stream, int(turn))[position[turns == turn] % len(rows)]
        for turn in np.unique(turns)
    ]
    return rows[np.concatenate(drawn)]


@lru_cache(maxsize=8)
def _shuffle(count, seed, stream, turn):
    return np.random.default_rng((seed, stream, turn)).permutation(count)


def crop_randomly(
    waveforms: Waveforms,
    rows: np.ndarray,
    samples: int,
    seed: int,
    stream: int,
    step: int,
    part: slice = slice(None),
) -> np.ndarray:
    """Cut one random segment out of each recording.

    Args:
      waveforms: the recordings, each at least `samples` long.
      rows: i64[batch].
      samples: length of a segment.
      seed: of the run.
      stream: must differ from the streams given to `draw_rows`.
      step: number of the batch.
      part: which of the rows are cut; the starts of all are drawn.

    Returns:
      f32[rows of the part, samples], standardised; every start from 0 to length - samples is
      equally likely.
    """
    room = waveforms.lengths[rows] - samples + 1
    starts = np.random.default_rng((seed, stream, step)).integers(0, room)
    return waveforms.crop(rows[part], starts[part], samples)
