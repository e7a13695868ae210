r"""Beyond the paper: smoothing where nobody has labels. docs/beyond.md says what it is worth.

    x_i = sum over the generative scores g of N(c(g_i)),   a = smoothed x

g are a_G ("ae"), SerialOE's score and that of a mixture of mean spectra ("gmm", `spectra`). c is
"none", "log" of a_G, or "calibrated": less the mean over the `NORMAL` training rows nearest in f_D,
what is usual where y_i lies. N is "none", "z", or "ranks": the rank among the test rows of the same
section and domain, as a quantile of the normal distribution; so scores of any unit and tail can be
added, and no domain is louder than another. Smoothed is by eq. 7 or by diffusion (`diffuse`), over
neighbours in f_D or in f_D joined with the autoencoder's mean residual ("f_d+residual").
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dns_jax.evaluation.normalising import calibrate, join_spaces, rank_normally, standardise
from dns_jax.evaluation.spectra import fit_spectra
from dns_jax.evaluation.systems import average_segments, take_unit
from dns_jax.scoring import Segments
from dns_jax.smoothing import diffuse, smooth

NEIGHBOURS = 10  # of a row of the graph
MOST_SHARE = 5  # K is at most a fifth of the pool: beyond the rarer kind's number it mixes both

PAPER = {
    "generative": "ae",
    "score_transform": "none",
    "domain_normalisation": "none",
    "pool": "test",
    "space": "f_d",
    "method": "mean",
}
TOGETHER = "label_free"  # the system of all options that are set


def list_variants(smoothing) -> dict[str, dict[str, str]]:
    """List the systems that a configuration asks for beyond those of the paper.

    Args:
      smoothing: `config.smoothing`.

    Returns:
      {system: its options}: each option that is not the paper's by itself, named by its value, and
      all of them together, `TOGETHER`. One option is that alone; the paper's have nothing.
    """
    ours = {name: smoothing[name] for name in PAPER}
    changed = {name: value for name, value in ours.items() if value != PAPER[name]}
    alone = {f"only_{value}": PAPER | {name: value} for name, value in changed.items()}
    return (alone if len(changed) > 1 else {}) | ({TOGETHER: ours} if changed else {})


def needs_spectra(smoothing) -> bool:
    """Whether `config.smoothing` asks for the spectra and residuals of the segments."""
    return "gmm" in smoothing["generative"].split("+") or smoothing["space"] != PAPER["space"]


def describe(system: str) -> str:
    """Name a system of `list_variants` as the tables do."""
    return "Label-free" if system == TOGETHER else f"Only {system.removeprefix('only_')}"


def score_label_free(
    segments: Segments,
    scores: Mapping[str, np.ndarray],
    options: Mapping[str, str],
    smoothing,
    clips: Sequence[str],
) -> np.ndarray:
    """Score recordings of a machine, with nothing that labels would have to choose.

    Segments of one recording are not neighbours in a graph.

    Args:
      segments: all of the machine.
      scores: of `score_generatively`.
      options: of `list_variants`.
      smoothing: `config.smoothing`; K is `default_k`, at most a fifth of the pool.
      clips: the recordings that are asked for.

    Returns:
      f64[clips], high means anomalous; NaN for those that are in no pool: in "test" those of
      training, in both those of a section (or machine) without test recordings.
    """
    rows = take_unit(segments, smoothing["unit"])
    x = make_scores(rows, scores, options)
    _, clip = np.unique(rows.clip, return_inverse=True)
    scope = rows.section if smoothing["scope"] == "section" else np.zeros_like(rows.section)
    known, tests = np.isfinite(x), rows.split == "test"
    pooled = known if options["pool"] == "test+train" else known & tests
    result = np.full(len(x), np.nan)
    for number in np.unique(scope[known & tests]):
        in_pool = np.flatnonzero((scope == number) & pooled)
        k = min(smoothing["default_k"], max(1, len(in_pool) // MOST_SHARE))
        space = rows.feature
        if options["space"] == "f_d+residual":
            space = join_spaces([space, rows.residual], in_pool)
        pool = x[in_pool], space[in_pool]
        if options["method"] == "mean" or len(in_pool) == 1:
            result[in_pool] = smooth(*pool, k)
        else:
            n = min(NEIGHBOURS, len(in_pool) - 1)
            result[in_pool] = diffuse(*pool, n_neighbors=n, groups=clip[in_pool])
    return average_segments(result, rows.clip, clips)


def score_generatively(
    segments: Segments, serial_oe: np.ndarray, smoothing, seed: int
) -> dict[str, np.ndarray]:
    """Return the scores that may be smoothed, of every row of the pools.

    Args:
      segments: all of the machine.
      serial_oe: f64[segments], SerialOE's scores with the default number of Gaussians.
      smoothing: `config.smoothing`.
      seed: of the mixture of spectra.

    Returns:
      {"ae", "serial_oe" and, where it is asked for, "gmm": real[rows]}.
    """
    rows = take_unit(segments, smoothing["unit"])
    if smoothing["unit"] == "clip":
        serial_oe = average_segments(serial_oe, segments.clip, rows.clip)
    scores = {"ae": rows.ae_score, "serial_oe": serial_oe}
    if "gmm" in smoothing["generative"].split("+"):
        usable = np.isfinite(rows.spectrum).all(axis=1)
        scores["gmm"] = np.full(len(usable), np.nan)
        score = fit_spectra(rows.spectrum[usable & (rows.split == "train")], seed)
        scores["gmm"][usable] = score(rows.spectrum[usable])
    return scores


def make_scores(
    rows: Segments, scores: Mapping[str, np.ndarray], options: Mapping[str, str]
) -> np.ndarray:
    """Make what is smoothed.

    Args:
      rows: of the pools, see `take_unit`.
      scores: of `score_generatively`, one for each row.
      options: of `list_variants`.

    Returns:
      f32[rows], x of the module; ranks and z-scores are among the test rows.
    """
    how, normalisation = options["score_transform"], options["domain_normalisation"]
    parts = options["generative"].split("+")
    if how != "none":
        scores = scores | {"ae": np.log(np.maximum(scores["ae"], np.finfo(np.float32).tiny))}
    values = np.column_stack([scores[part] for part in parts]).astype(np.float64)
    if normalisation == "none" and len(parts) > 1:
        normalisation = "z"  # or their units would weigh them
    tests = rows.split == "test"
    for section in np.unique(rows.section):
        here = rows.section == section
        if how == "calibrated":
            values[here] = _calibrate_section(rows.select(here), values[here])
        if normalisation != "none":
            normalise = {"z": standardise, "ranks": rank_normally}[normalisation]
            among = here & tests
            values[here] = np.column_stack(
                [
                    normalise(column[here], rows.domain[here], column[among], rows.domain[among])
                    for column in values.T
                ]
            )
    return values.sum(axis=1).astype(np.float32)


def _calibrate_section(rows, values):
    normal = rows.split == "train"
    _, clip = np.unique(rows.clip, return_inverse=True)
    return calibrate(
        values,
        rows.feature,
        values[normal],
        rows.feature[normal],
        groups=clip,  # a training recording is not what is usual for itself
        normal_groups=clip[normal],
    )
