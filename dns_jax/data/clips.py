"""A data set as a table: one row per clip, read from folder and file names (Sec. IV-A).

The names are those of a year of DCASE Task 2 (`years`). What they do not say is not made up: a file
whose name is outside the grammar is refused, and a test clip without a label stays unlabelled.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dns_jax.data.labels import add_labels, read_truth
from dns_jax.data.names import (
    RECORDINGS,
    find_name_fault,
    get_stem,
    list_visible,
    parse_stem,
)
from dns_jax.data.refusals import DataError, Refusal, printable
from dns_jax.data.years import YEARS, Year, name_years

COLUMNS = ("machine", "path", "clip", "split", "section", "domain", "label", "attributes")
OTHER_AUDIO = frozenset(
    ".aac .aif .aifc .aiff .amr .ape .au .bwf .caf .m4a .mka .mp2 .mp3 .mp4 .oga .ogg .opus .pcm "
    ".ra .raw .snd .spx .tta .w64 .wave .weba .webm .wma .wv".split()
)


def read_clips(
    data_dir: str | os.PathLike, labels: str | os.PathLike = "", year: int = 2021
) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read the names in a data directory into a table of clips; opens no recording.

    Args:
      data_dir: holds `<machine>/{train,source_test,target_test}/*.wav` or `.flac`, with or without
        `dev_data/` and `eval_data/` above the machines; what they share is one machine. In other
        years than 2021 test clips lie in `<machine>/test/`.
      labels: where test clips without a label in their name get it from, and from 2022 on their
        domain: a directory with the official evaluator's ground-truth files or with an
        `eval_data_list*.csv`, or one such file. Its `ground_truth_data/`, `ground_truth_domain/`,
        `eval_data/` and those in `eval_data/` are searched too. Empty: `data_dir` itself.
      year: of `years.YEARS`.

    Returns:
      The clips, sorted by machine, split, section, domain and stem, so that a WAV tree and its FLAC
      twin agree: `machine`, `path`, `clip` (file name; in 2020 `train/<file name>` of a training
      clip, since test clips have the same names), `split` (train or test), `section` (int; in 2020
      the machine ID), `domain` (source or target; unknown where nothing says it, nor the label),
      `label` (0 normal, 1 anomaly, -1 unknown) and `attributes` (the free text after the number).
      And the files that are not in it, each with its reason.

    Raises:
      DataError: no such directory, nothing in it, recordings of another year, or labels that cannot
        be right.
    """
    rules = YEARS[year]
    rows, refusals, stems = [], [], {}
    for path in _audio_files(data_dir, rules.folders, rules.layout):
        machine, folder = path.parts[-3:-1]
        split = "train" if folder == "train" else "test"
        reason = _fault(path, rules)
        if reason and (others := [y for y in YEARS if not _fault(path, YEARS[y])]):
            reason += f"; --config.data.year={name_years(others)} has such names"
        twin = not reason and stems.setdefault((machine, split, path.stem), path)
        if twin and twin is not path:
            reason = f"name: the clip is there twice, first as {printable(twin)}"
        if reason:
            refusals.append(Refusal(str(path), reason))
        else:
            said = parse_stem(path.stem, rules)
            clip = path.name if said["split"] or split == "test" else f"train/{path.name}"
            row = {"machine": machine, "path": str(path), "clip": clip}
            rows.append(row | said | {"split": split})
    if not any(row["split"] == "test" for row in rows):
        _refuse_other_years(data_dir, year)
    if not rows and not refusals:
        raise DataError(
            f"no recordings in {printable(data_dir)}: looked for {rules.layout}, "
            "there and in its dev_data/ and eval_data/"
        )
    add_labels(rows, read_truth(Path(labels or data_dir), rules, named=bool(labels)), rules)
    rows.sort(
        key=lambda c: (c["machine"], c["split"], c["section"], c["domain"], get_stem(c["clip"]))
    )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"section": int, "label": int}), refusals


def split_validation(clips: pd.DataFrame, seed: int, share: float = 0.85) -> np.ndarray:
    """Choose the training clips that validate.

    Per machine and section, a share of the source clips (rounded down) and all but one of the
    target clips train (Sec. IV-A). Of several clips at least one trains and one validates; a single
    one trains. The draw depends on the seed, the machine, the section, the domain and the stems
    there, and on nothing else in the table.

    Args:
      clips: the table of `read_clips`.
      seed: non-negative.
      share: of the source clips that train, above 0 and below 1.

    Returns:
      bool[clips], True for the validation part of the training clips, False for test clips.
    """
    validates = np.zeros(len(clips), bool)
    train = np.flatnonzero(clips["split"] == "train")
    stems = np.array([get_stem(clip) for clip in clips["clip"]])
    cells = clips.iloc[train].groupby(["machine", "section", "domain"]).indices
    for (machine, section, domain), members in cells.items():
        rows = train[members]
        rows = rows[np.argsort(stems[rows])]
        # To six digits, or 100 * 0.29 would be rounded down to 28.
        count = int(round(len(rows) * share, 6)) if domain == "source" else len(rows) - 1
        entropy = (seed, zlib.crc32(machine.encode()), section, ("source", "target").index(domain))
        order = np.random.default_rng(entropy).permutation(len(rows))
        count = max(1, min(count, len(rows) - 1))
        validates[rows[order[count:]]] = True
    return validates


def _audio_files(
    data_dir: str | os.PathLike, folders: tuple[str, ...], layout: str
) -> Iterator[Path]:
    """Yield every audio file of every machine in a fixed order, hidden ones left out."""
    root = Path(data_dir)
    try:
        if not os.fspath(data_dir) or not root.is_dir():
            what = "is not a directory" if os.fspath(data_dir) and root.exists() else "is not there"
            raise DataError(
                f"the data directory {printable(data_dir) or '(no name given)'} {what}; "
                f"it may be any directory that holds {layout}"
            )
        for parent in (root, root / "dev_data", root / "eval_data"):
            for machine in list_visible(parent):
                for folder in folders:
                    for path in list_visible(machine / folder):
                        if path.suffix.lower() in RECORDINGS or path.suffix.lower() in OTHER_AUDIO:
                            yield path
    except OSError as error:
        raise DataError(f"cannot list {printable(error.filename)}: {error.strerror}") from error


def _fault(path: Path, year: Year) -> str:
    """Return why a file is no clip of the year by its name and place, "" if it is one."""
    folder = path.parent.name
    clip = parse_stem(path.stem, year)
    if fault := find_name_fault(path):
        return fault
    if path.suffix.lower() not in RECORDINGS:
        return f"name: extension {path.suffix}, may be {' or '.join(RECORDINGS)}"
    if folder not in year.folders:
        return f"name: lies in {folder}/, may lie in {' or '.join(year.folders)}"
    if clip is None:
        return f"name: may be {year.grammar}"
    test_folder = year.test_folder.format(domain=clip["domain"])
    says = {"train": "train", "test": test_folder}.get(clip["split"], folder)
    if says != folder:
        return f"name: says {says}, but lies in {folder}/"
    if folder == "train" and clip["label"] == 1:
        return "name: says anomaly, but training recordings are normal"
    return ""


def _refuse_other_years(data_dir: str | os.PathLike, year: int) -> None:
    """Raise DataError if the names and folders of another year fit more of the recordings."""
    folders = tuple(dict.fromkeys(f for rules in YEARS.values() for f in rules.folders))
    fitting = Counter(
        other
        for path in _audio_files(data_dir, folders, YEARS[year].layout)
        for other, rules in YEARS.items()
        if not _fault(path, rules)
    )
    most = max(fitting.values(), default=0)
    if most > fitting[year]:
        best = [other for other in YEARS if fitting[other] == most]
        raise DataError(
            f"{printable(data_dir)} holds {fitting[year]} recordings named and placed as in DCASE "
            f"{year} Task 2, but {most} as in another year: give "
            f"--config.data.year={name_years(best)}"
        )
