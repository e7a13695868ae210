r"""Smooth the anomaly scores of any system by the features of any other (eq. 7).

    python -m dns_jax.evaluation.smooth_scores --features=features.npz --k=32 \
      --scores=anomaly_score_fan_section_00_source_test.csv --out=smoothed_source.csv \
      --scores=anomaly_score_fan_section_00_target_test.csv --out=smoothed_target.csv

Scores are `file,score` rows without header, in and out, as the official evaluator reads them. The
clips of a call are one pool: in the paper the test clips of a section in both domains, hence two
files here. Give --scores and --out once, or equally often.

Features are one of: our `segments.npz`, or any NPZ with `clip` (names) and `feature` (real numbers
[rows, dimensions]); ASDKit's `test_extract.npz`, with `path` and `embed` instead; an NPY
[rows, dimensions], with the rows of the scores, file after file. Names are matched as they are, or
by the last part of the path without .wav or .flac. Every scored clip needs features; rows without a
score (other sections) are left out of the pool, and so are those with "train" as their `split`.

Several rows of a clip are its segments: each has the clip's score, is smoothed among all rows, also
those of its clip as in our own experiments, and the result is their mean. So K counts rows, and
should be well above those of one clip. Ties go to the earlier row. All is computed in float64.

A row with a feature that is not finite scores NaN and is nobody's neighbour; a score that is not
finite, NaN or infinite, reaches whatever counts it. A line says so.

Exit status 2 for a mistake in the call, 1 for bad input.

ASDKit is github.com/TakuyaFujimura/dcase-asd-toolkit, read at ed27d82: `asdkit/bin/extract.py`
saves the `extract_items` of `config/extract/main.yaml`, plain arrays; its frontends make `embed`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np

from dns_jax.commands import make_parser, say, stop, stopping
from dns_jax.data.refusals import DataError
from dns_jax.evaluation.feature_files import CONVERT, list_some, match_rows, read_features
from dns_jax.evaluation.score_files import read_scores, write_scores

_EXAMPLES = {"scores": "scores.csv", "features": "features.npz", "k": 32, "out": "smoothed.csv"}


def main(argv: Sequence[str] | None = None) -> None:
    """Smooth the score files that the command line names."""
    call = _parse_call(argv)
    with stopping():
        _run(call)


def _parse_call(argv):
    parser = make_parser("dns_jax.evaluation.smooth_scores", __doc__)
    parser.add_argument("--scores", action="append", metavar="FILE.csv")
    parser.add_argument("--features", metavar="FILE.npz")
    parser.add_argument("--k", metavar="K", type=int)
    parser.add_argument("--out", action="append", metavar="FILE.csv")
    call = parser.parse_args(argv)
    for name, example in _EXAMPLES.items():
        if getattr(call, name) in (None, "", [""]):
            parser.error(f"--{name} is missing, as in --{name}={example}")
    if len(call.scores) != len(call.out):
        parser.error(
            "every --scores needs its --out, in the same order; "
            f"there were {len(call.scores)} --scores and {len(call.out)} --out"
        )
    if len({os.path.realpath(out) for out in call.out}) < len(call.out):
        parser.error("every --out must be another file; one was given twice")
    for out in filter(os.path.exists, call.out):
        if not os.path.isfile(out):
            parser.error(f"--out={out} is there and not a file; choose another name")
        for name in filter(os.path.exists, [*call.scores, call.features]):
            if os.path.samefile(out, name):
                parser.error(f"--out={out} is read too and would be lost; choose another name")
    return call


def _run(call):
    files = [_read_scores(path) for path in call.scores]
    clips = [name for names, _ in files for name in names]
    scores = np.concatenate([column for _, column in files])
    if twice := [name for name, count in Counter(clips).items() if count > 1]:
        raise DataError(
            f"scored more than once: {list_some(twice)}; "
            "a pool has every clip once, and clips of one machine only"
        )
    names, features = read_features(call.features)
    notes = []
    if names is None:
        clip = np.arange(len(clips))
        if len(features) != len(clips):
            raise DataError(
                f"{call.features} has {len(features)} rows, but --scores has {len(clips)}; they "
                f"are matched row by row. Features with names: {CONVERT}"
            )
    else:
        clip = match_rows(clips, names)
        if left := [name for name, number in zip(names, clip, strict=True) if number < 0]:
            notes.append(
                f"{len(left)} rows of {call.features} have no score and are left out: "
                f"{list_some(left)}"
            )
        clip, features = clip[clip >= 0], features[clip >= 0]
    if not 1 <= call.k <= len(clip):
        stop(f"--k must be in 1..{len(clip)}, the rows of the pool; it was {call.k}", 2)
    if 1 < call.k <= (most := np.bincount(clip).max()):
        notes.append(
            f"K = {call.k} rows may all be of one clip, which has up to {most}; "
            "they have one score, and only a larger K smooths"
        )
    smoothed = smooth_clips(scores, clip, features, call.k)
    if lost := np.sum(~np.isfinite(smoothed)):
        notes.append(
            f"{lost} of the {len(clips)} smoothed scores are not finite, because of "
            f"{np.sum(~np.isfinite(scores))} scores and "
            f"{np.sum(~np.isfinite(features).all(axis=1))} rows of features that are not; "
            "take those clips out of --scores to have the others finite"
        )
    rest = iter(smoothed)
    for out, (names, _) in zip(call.out, files, strict=True):
        write_scores(out, names, [*islice(rest, len(names))])
    for note in notes:
        say(note)


def _read_scores(path):
    try:
        names, scores = read_scores(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not names:
        raise DataError(f"{path} holds no scores; expected rows 'file,score' (no header)")
    return names, scores


def smooth_clips(scores: np.ndarray, clip: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Smooth the scores of clips by the features of their segments.

    Args:
      scores: f64[clips].
      clip: i64[rows], the number of the clip of each segment; each clip has one at least.
      features: real[rows, dimensions].
      k: K of eq. 7, in 1..rows.

    Returns:
      f64[clips], the mean of a_prop over the segments of each clip.
    """
    import jax

    from dns_jax.smoothing import smooth

    with jax.enable_x64(True):
        smoothed = np.asarray(smooth(scores[clip], features.astype(np.float64), k))
    return np.bincount(clip, smoothed) / np.bincount(clip)


if __name__ == "__main__":
    main()
