"""The labels of test clips whose names do not say them, from the official lists.

Either the evaluator's ground-truth files or an evaluation data list; a list that contradicts itself
or the names is refused. From 2022 on names do not say the domain either, and the lists do.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from dns_jax.data.names import RECORDINGS, UNKNOWN, get_stem, list_visible, parse_stem
from dns_jax.data.refusals import DataError, printable
from dns_jax.data.years import DOMAINS, UNKNOWN_DOMAIN, Year

_LISTS = "eval_data_list*.csv"
_FOLDERS = {"label": "ground_truth_data", "domain": "ground_truth_domain"}  # of the evaluator
_NOTHING = {"label": UNKNOWN, "domain": UNKNOWN_DOMAIN}
_LACKS_TEST = re.compile(r"(?<=_source|_target)_(?=normal_|anomaly_)")  # RoboticArm in 2024's list

Truth = dict[tuple[str, str, str], tuple[object, str]]


def _without_label(stem: str) -> str:
    """The name that a test clip had before its label was written into it (2021)."""
    parts = stem.split("_")
    return stem if len(parts) < 6 else "_".join(parts[:4] + parts[5:6])


def add_labels(rows: list[dict], truth: Truth, year: Year) -> None:
    """Fill in what `truth` knows; in 2021 a renamed clip is also found under its old name.

    Raises:
      DataError: the truth contradicts a name, or knows a clip's label and not its domain.
    """
    stems = {(row["machine"], get_stem(row["clip"])) for row in rows}
    for row in rows:
        name = row["machine"], get_stem(row["clip"])
        if year.keeps_number and (*name, "label") not in truth:
            old = row["machine"], _without_label(name[1])
            name = name if old in stems else old
        for what, nothing in _NOTHING.items():
            if (*name, what) in truth:
                value, where = truth[*name, what]
                if row[what] not in (nothing, value):
                    raise DataError(f"{where}: {what} {value} contradicts the name {row['clip']}")
                row[what] = value
    odd = [r for r in rows if r["label"] != UNKNOWN and r["domain"] == UNKNOWN_DOMAIN]
    if odd:
        raise DataError(
            f"{len(odd)} test recordings, such as {odd[0]['machine']} {printable(odd[0]['clip'])}, "
            f"have a label but no domain: let --config.data.labels name a folder that holds both "
            f"{' and '.join(f'{folder}/' for folder in _FOLDERS.values())} of the evaluator"
        )


def read_truth(place: Path, year: Year, named: bool) -> Truth:
    """Return {(machine, stem, "label" or "domain"): (value, "file, line n")} of all label files.

    Args:
      place: a directory, or one label file.
      year: whose files they are.
      named: the user named it, so that finding nothing is a mistake.
    """
    files = [place]
    if not place.is_file():
        folders = ("", *(_FOLDERS[what] for what in year.truth))
        files = [
            path
            for folder in (parent + folder for parent in ("", "eval_data/") for folder in folders)
            for path in list_visible(place / folder)
            if _is_truth(path, year) or path.match(_LISTS)
        ]
    if named and not files:
        what = "holds no" if place.is_dir() else "is not there; it may be or hold a"
        raise DataError(f"the labels {printable(place)}: {what} {_expected(year)}")
    truth = {}
    for path in files:
        for where, machine, stem, what, value in _truth_rows(path, year):
            known, first = truth.setdefault((machine, stem, what), (value, where))
            if known != value:
                raise DataError(f"{where}: {what} {value} of {machine} {stem} contradicts {first}")
    return truth


def _is_truth(path: Path, year: Year) -> re.Match | None:
    return year.truth_names.fullmatch(path.name) if year.truth else None


def _expected(year: Year) -> str:
    """The names of the year's label files, for people."""
    cell = year.cell.format(machine="<machine>", section="SS", domain="<domain>")
    names = [f"ground_truth_{cell}.csv"] if year.truth else []
    return " or ".join(names if year.list_refused else [*names, _LISTS])


def _truth_rows(path: Path, year: Year) -> Iterator[tuple[str, str, str, str, object]]:
    """Yield (file and line, machine, stem, "label" or "domain", value) of a label file.

    A ground-truth file holds `file.wav,0` or `file.wav,1` for the machine and section (in 2021 and
    domain) in its name; its folder tells whether 1 is an anomaly or the target domain. A list
    holds, below the name of each machine, `old.wav,new_name_with_label.wav`, in 2020 with the label
    behind it.
    """
    truth = _is_truth(path, year)
    machine = truth and truth["machine"]
    domains = "domain" in year.truth and path.parent.name == _FOLDERS["domain"]
    what = "domain" if domains else "label"
    if not truth and year.list_refused:
        raise DataError(
            f"{printable(path)}: lists of this year are refused, {year.list_refused}; let "
            f"--config.data.labels name the evaluator, which has {_expected(year)}"
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
                facts = (
                    _read_truth_row(fields, truth, what, year)
                    if truth
                    else _read_list_row(fields, year)
                )
                if not facts:
                    shape = _describe_row(truth, what, year)
                    raise DataError(f"{where}: {','.join(row)!r} is malformed; may be {shape}")
                if machine is None:
                    raise DataError(f"{where}: no line with the name of a machine above this row")
                for fact in facts:
                    yield where, machine, *fact
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the labels in {printable(path)}: {error}") from error


def _describe_row(truth: re.Match | None, what: str, year: Year) -> str:
    """What a row may be, for people."""
    if not truth:
        new = f"{year.labelled}.wav" + ",0 or 1" * (year.list_columns - 2)
        return f"{year.unlabelled}.wav,{new}".replace("{source|target}", "<domain>")
    cell = truth.groupdict()
    clip = year.unlabelled.replace("SS", cell["section"])
    clip = clip.replace("{source|target}", cell.get("domain", ""))
    values = DOMAINS if what == "domain" else ("normal", "anomaly")
    return f"{clip}.wav,0 ({values[0]}) or 1 ({values[1]})"


def _read_truth_row(fields: list[str], truth: re.Match, what: str, year: Year) -> list[tuple]:
    """Return [(stem, what, value)]; nothing where the row contradicts itself or its file's name."""
    stem = get_stem(fields[0])
    clip = parse_stem(stem, year)
    if len(fields) != 2 or clip is None or clip["split"] == "train" or fields[1] not in ("0", "1"):
        return []
    cell = truth.groupdict()
    here = clip["section"] == int(cell["section"])
    here &= cell.get("domain") in (None, clip["domain"])
    value = DOMAINS[int(fields[1])] if what == "domain" else int(fields[1])
    return [(stem, what, value)] if here and clip[what] in (_NOTHING[what], value) else []


def _read_list_row(fields: list[str], year: Year) -> list[tuple]:
    """Return [(stem, what, value)]; nothing where the row contradicts itself."""
    if len(fields) != year.list_columns:
        return []
    old, new = map(get_stem, fields[:2])
    if not year.keeps_number:
        new = _LACKS_TEST.sub("_test_", new)
    before, after = parse_stem(old, year), parse_stem(new, year)
    if before is None or after is None or "train" in (before["split"], after["split"]):
        return []
    same = before["section"] == after["section"] and after["label"] != UNKNOWN
    same &= not year.keeps_number or _without_label(old) == _without_label(new)
    same &= all(before[what] in (nothing, after[what]) for what, nothing in _NOTHING.items())
    same &= fields[2:] in ([], [str(after["label"])])
    return [(old, what, after[what]) for what in year.truth or ("label",)] if same else []
