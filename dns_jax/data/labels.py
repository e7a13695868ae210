"""The labels of test clips whose names do not say them, from the official lists.

Either the evaluator's ground-truth files or an evaluation data list; a list that contradicts itself
or the names is refused.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from dns_jax.data.names import RECORDINGS, SECTION, UNKNOWN, get_stem, list_visible, parse_stem
from dns_jax.data.refusals import DataError, printable

_GROUND_TRUTH = re.compile(rf"ground_truth_(?P<machine>.+)_{SECTION}_test\.csv", re.ASCII)


def _without_label(stem: str) -> str:
    """The name that a test clip had before its label was written into it."""
    parts = stem.split("_")
    return stem if len(parts) < 6 else "_".join(parts[:4] + parts[5:6])


def add_labels(rows: list[dict], truth: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Fill in the labels that `truth` knows; a renamed clip is also found under its old name."""
    stems = {(row["machine"], get_stem(row["clip"])) for row in rows}
    for row in rows:
        name = row["machine"], get_stem(row["clip"])
        if name not in truth:
            old = row["machine"], _without_label(name[1])
            name = name if old in stems else old
        if name in truth:
            label, where = truth[name]
            if row["label"] not in (UNKNOWN, label):
                raise DataError(f"{where}: label {label} contradicts the name {row['clip']}")
            row["label"] = label


def read_truth(place: Path, named: bool) -> dict[tuple[str, str], tuple[int, str]]:
    """Return {(machine, stem): (label, "file, line n")} of every label file at a place.

    Args:
      place: a directory, or one label file.
      named: the user named it, so that finding nothing is a mistake.
    """
    files = [place]
    if not place.is_file():
        folders = (".", "ground_truth_data", "eval_data", "eval_data/ground_truth_data")
        files = [
            path
            for path in (path for folder in folders for path in list_visible(place / folder))
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
    """Yield (file and line, machine, stem, label) of a ground-truth file or an evaluation list.

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
                if not truth and len(fields) == 1 and not fields[0].endswith(RECORDINGS):
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
    """Return (stem, label) of a row, None where it contradicts itself or its file's name."""
    stem = get_stem(fields[0])
    clip = parse_stem(stem)
    if len(fields) != 2 or clip is None or clip["split"] != "test":
        return None
    if truth:
        here = clip["section"] == int(truth["section"]) and clip["domain"] == truth["domain"]
        label = int(fields[1]) if here and fields[1] in ("0", "1") else UNKNOWN
    else:
        new = get_stem(fields[1])
        same = parse_stem(new) is not None and _without_label(stem) == _without_label(new)
        label = parse_stem(new)["label"] if same else UNKNOWN
    consistent = label != UNKNOWN and clip["label"] in (UNKNOWN, label)
    return (stem, label) if consistent else None
