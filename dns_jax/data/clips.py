"""A data set as a table: one row per clip, read from folder and file names (Sec. IV-A).

The names are those of DCASE 2021 Task 2. What they do not say is not made up: a file whose name is
outside the grammar is refused, and a test clip without a label stays unlabelled.
"""

import csv
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

SKIP_BAD = "--config.data.skip_bad=True"
UNKNOWN = -1  # the label of a clip of which nobody says whether it is normal (0) or anomalous (1)

_COLUMNS = ("machine", "path", "clip", "split", "section", "domain", "label", "attributes")
_FOLDERS = ("train", "source_test", "target_test")
_LAYOUT = f"<machine>/{{{','.join(_FOLDERS)}}}/*.wav or *.flac"
_RECORDINGS = (".wav", ".flac")
_OTHER_AUDIO = frozenset(
    ".aac .aif .aifc .aiff .amr .ape .au .bwf .caf .m4a .mka .mp2 .mp3 .mp4 .oga .ogg .opus .pcm "
    ".ra .raw .snd .spx .tta .w64 .wave .weba .webm .wma .wv".split()
)
_SECTION = r"section_(?P<section>\d\d|[1-9]\d{2,})_(?P<domain>source|target)"
_CLIP = re.compile(
    _SECTION + r"_(?:(?P<split>train|test)_(?P<label>normal|anomaly)_\d{4,}(?:_.+)?|test_\d{4,})",
    re.ASCII,
)
_GRAMMAR = (
    "section_SS_{source|target}_{train|test}_{normal|anomaly}_NNNN[_<attribute>] "
    "or section_SS_{source|target}_test_NNNN"
)
_GROUND_TRUTH = re.compile(rf"ground_truth_(?P<machine>.+)_{_SECTION}_test\.csv", re.ASCII)


class DataError(ValueError):
    """The data cannot be used as they are; the message is what a user reads."""


class Refusal(NamedTuple):
    """One file that cannot be used: why, and the option that would accept it or leave it out."""

    path: str
    reason: str
    option: str = SKIP_BAD


def describe_refusals(refusals: Iterable[Refusal]) -> str:
    """Returns one message that lists every refused file with its reason and option."""
    lines = [f"  {printable(path)}: {reason} [{option}]" for path, reason, option in refusals]
    files = "1 file" if len(lines) == 1 else f"{len(lines)} files"
    head = (
        f"{files} cannot be used (in brackets: the option that accepts or leaves out such a file):"
    )
    return "\n".join([head, *lines])


def printable(path: str | os.PathLike) -> str:
    """Returns a path on one line and in valid Unicode, whatever bytes its name is made of."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path)
    )


def read_clips(
    data_dir: str | os.PathLike, labels: str | os.PathLike = ""
) -> tuple[pd.DataFrame, list[Refusal]]:
    """Reads the names in a data directory into a table of clips; opens no recording.

    Args:
      data_dir: holds `<machine>/{train,source_test,target_test}/*.wav` or `.flac`, with or without
        `dev_data/` and `eval_data/` above the machines; what they share is one machine.
      labels: where test clips without a label in their name get it from: a directory with the
        official evaluator's `ground_truth_<machine>_section_SS_<domain>_test.csv` or with an
        `eval_data_list*.csv`, or one such file. Its `ground_truth_data/`, `eval_data/` and
        `eval_data/ground_truth_data/` are searched too. Empty: `data_dir` itself.

    Returns:
      The clips, sorted by machine, split, section, domain and stem, so that a WAV tree and its FLAC
      twin agree: `machine`, `path`, `clip` (file name), `split` (train or test), `section` (int),
      `domain` (source or target), `label` (0 normal, 1 anomaly, -1 unknown) and `attributes` (the
      free text after the number). And the files that are not in it, each with its reason.

    Raises:
      DataError: no such directory, nothing in it, or labels that cannot be right.
    """
    rows, refusals, stems = [], [], {}
    for path in _audio_files(data_dir):
        machine, folder = path.parts[-3:-1]
        reason = _fault(path, folder)
        twin = not reason and stems.setdefault((machine, path.stem), path)
        if twin and twin is not path:
            reason = f"name: the clip is there twice, first as {printable(twin)}"
        if reason:
            refusals.append(Refusal(str(path), reason))
        else:
            row = {"machine": machine, "path": str(path), "clip": path.name}
            rows.append(row | _parse(path.stem))
    if not rows and not refusals:
        raise DataError(
            f"no recordings in {printable(data_dir)}: looked for {_LAYOUT}, "
            "there and in its dev_data/ and eval_data/"
        )
    rows.sort(key=lambda c: (c["machine"], c["split"], c["section"], c["domain"], _stem(c["clip"])))
    _label(rows, _read_truth(Path(labels or data_dir), named=bool(labels)))
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"section": int, "label": int}), refusals


def split_validation(clips: pd.DataFrame, seed: int) -> np.ndarray:
    """Chooses the training clips that validate.

    Per machine and section, 85 % of the source clips (rounded down) and all but one of the target
    clips train (Sec. IV-A). Of several clips at least one trains and one validates; a single one
    trains. The draw depends on the seed, the machine, the section, the domain and the stems there,
    and on nothing else in the table.

    Args:
      clips: the table of `read_clips`.
      seed: non-negative.

    Returns:
      bool[clips], True for the validation part of the training clips, False for test clips.
    """
    validates = np.zeros(len(clips), bool)
    train = np.flatnonzero(clips["split"] == "train")
    stems = np.array([_stem(clip) for clip in clips["clip"]])
    cells = clips.iloc[train].groupby(["machine", "section", "domain"]).indices
    for (machine, section, domain), members in cells.items():
        rows = train[members]
        rows = rows[np.argsort(stems[rows])]
        count = len(rows) * 85 // 100 if domain == "source" else len(rows) - 1
        entropy = (seed, zlib.crc32(machine.encode()), section, ("source", "target").index(domain))
        order = np.random.default_rng(entropy).permutation(len(rows))
        validates[rows[order[max(count, 1) :]]] = True
    return validates


def _audio_files(data_dir: str | os.PathLike) -> Iterator[Path]:
    """Yields every audio file of every machine in a fixed order, hidden ones left out."""
    root = Path(data_dir)
    try:
        if not os.fspath(data_dir) or not root.is_dir():
            what = "is not a directory" if os.fspath(data_dir) and root.exists() else "is not there"
            raise DataError(
                f"the data directory {printable(data_dir) or '(no name given)'} {what}; "
                f"it may be any directory that holds {_LAYOUT}"
            )
        for parent in (root, root / "dev_data", root / "eval_data"):
            for machine in _visible(parent):
                for folder in _FOLDERS:
                    for path in _visible(machine / folder):
                        if (
                            path.suffix.lower() in _RECORDINGS
                            or path.suffix.lower() in _OTHER_AUDIO
                        ):
                            yield path
    except OSError as error:
        raise DataError(f"cannot list {printable(error.filename)}: {error.strerror}") from error


def _visible(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def _stem(name: str) -> str:
    return Path(name).stem


def _parse(stem: str) -> dict | None:
    """Returns split, section, domain, label and attributes of a stem; None outside the grammar."""
    match = _CLIP.fullmatch(stem)
    return match and {
        "split": match["split"] or "test",
        "section": int(match["section"]),
        "domain": match["domain"],
        "label": UNKNOWN if match["label"] is None else int(match["label"] == "anomaly"),
        "attributes": "_".join(stem.split("_")[6:]),
    }


def _fault(path: Path, folder: str) -> str:
    """Returns why a file is no clip by its name and place, "" if it is one."""
    clip = _parse(path.stem)
    if any("\ud800" <= c <= "\udfff" for c in str(path)):
        return "name: not valid UTF-8"
    if path.suffix.lower() not in _RECORDINGS:
        return f"name: extension {path.suffix}, may be {' or '.join(_RECORDINGS)}"
    if clip is None:
        return f"name: may be {_GRAMMAR}"
    says = "train" if clip["split"] == "train" else f"{clip['domain']}_test"
    if says != folder:
        return f"name: says {says}, but lies in {folder}/"
    if folder == "train" and clip["label"] == 1:
        return "name: says anomaly, but training recordings are normal"
    return ""


def _without_label(stem: str) -> str:
    """The name that a test clip had before its label was written into it."""
    parts = stem.split("_")
    return stem if len(parts) < 6 else "_".join(parts[:4] + parts[5:6])


def _label(rows: list[dict], truth: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Fills in the labels that `truth` knows; a renamed clip is also found under its old name."""
    stems = {(row["machine"], _stem(row["clip"])) for row in rows}
    for row in rows:
        name = row["machine"], _stem(row["clip"])
        if name not in truth:
            old = row["machine"], _without_label(name[1])
            name = name if old in stems else old
        if name in truth:
            label, where = truth[name]
            if row["label"] not in (UNKNOWN, label):
                raise DataError(f"{where}: label {label} contradicts the name {row['clip']}")
            row["label"] = label


def _read_truth(place: Path, named: bool) -> dict[tuple[str, str], tuple[int, str]]:
    """Returns {(machine, stem): (label, "file, line n")} of every label file at a place.

    Args:
      place: a directory, or one label file.
      named: the user named it, so that finding nothing is a mistake.
    """
    files = [place]
    if not place.is_file():
        folders = (".", "ground_truth_data", "eval_data", "eval_data/ground_truth_data")
        files = [
            path
            for path in (path for folder in folders for path in _visible(place / folder))
            if _GROUND_TRUTH.fullmatch(path.name) or path.match("eval_data_list*.csv")
        ]
    if named and not files:
        what = "holds no" if place.is_dir() else "is not there; it may be or hold a"
        raise DataError(
            f"the labels {printable(place)}: {what} "
            "ground_truth_<machine>_section_SS_<domain>_test.csv or eval_data_list*.csv"
        )
    truth = {}
    for path in files:
        for where, machine, stem, label in _truth_rows(path):
            known, first = truth.setdefault((machine, stem), (label, where))
            if known != label:
                raise DataError(f"{where}: label {label} of {machine} {stem} contradicts {first}")
    return truth


def _truth_rows(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yields (file and line, machine, stem, label) of a ground-truth file or an evaluation list.

    The first holds `file.wav,0` or `file.wav,1` for the machine, section and domain in its name;
    the second, below the name of each machine, `old.wav,new_name_with_label.wav`.
    """
    truth = _GROUND_TRUTH.fullmatch(path.name)
    machine = truth and truth["machine"]
    clip = f"section_{truth['section']}_{truth['domain']}" if truth else "section_SS_<domain>"
    shape = f"{clip}_test_NNNN.wav," + (
        "0 (normal) or 1 (anomaly)" if truth else f"{clip}_test_{{normal|anomaly}}_NNNN.wav"
    )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                where = f"{printable(path)}, line {reader.line_num}"
                fields = [field.strip() for field in row]
                if not any(fields):
                    continue
                if not truth and len(fields) == 1 and not fields[0].endswith(_RECORDINGS):
                    machine = fields[0]
                    continue
                named = _truth_row(fields, truth)
                if named is None:
                    raise DataError(f"{where}: {','.join(row)!r} is malformed; may be {shape}")
                if machine is None:
                    raise DataError(f"{where}: no line with the name of a machine above this row")
                yield where, machine, *named
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the labels in {printable(path)}: {error}") from error


def _truth_row(fields: list[str], truth: re.Match | None) -> tuple[str, int] | None:
    """Returns (stem, label) of a row, None where it contradicts itself or its file's name."""
    stem = _stem(fields[0])
    clip = _parse(stem)
    if len(fields) != 2 or clip is None or clip["split"] != "test":
        return None
    if truth:
        here = clip["section"] == int(truth["section"]) and clip["domain"] == truth["domain"]
        label = int(fields[1]) if here and fields[1] in ("0", "1") else UNKNOWN
    else:
        new = _stem(fields[1])
        same = _parse(new) is not None and _without_label(stem) == _without_label(new)
        label = _parse(new)["label"] if same else UNKNOWN
    consistent = label != UNKNOWN and clip["label"] in (UNKNOWN, label)
    return (stem, label) if consistent else None
