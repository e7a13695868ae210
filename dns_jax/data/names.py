"""What the name of a clip says, by the grammar of its year, and nothing made up."""

import os
import re
from pathlib import Path

from dns_jax.data.years import Year

UNKNOWN = -1  # the label of a clip of which nobody says whether it is normal (0) or anomalous (1)
RECORDINGS = (".wav", ".flac")

_PREFIX = re.compile(r"section_(\d\d|[1-9]\d{2,})_(?:(source|target)_)?", re.ASCII)


def parse_stem(stem: str, year: Year) -> dict | None:
    """Return split, section, domain, label and attributes of a stem; None outside the grammar.

    The split is "" where the name fits both, as in 2020 that of a labelled clip.
    """
    match = year.clip.fullmatch(stem)
    if match is None:
        return None
    said = match.groupdict()
    label = said["label"]
    return {
        "split": said.get("split") or ("" if label else "test"),
        "section": int(said["section"]),
        "domain": said.get("domain") or year.domain,
        "label": UNKNOWN if label is None else int(label == "anomaly"),
        "attributes": said.get("attributes") or "",
    }


def parse_name(clip: str, year: Year) -> dict:
    """Return what the name of a new recording says, {} if nothing.

    A name of the year's grammar, or one that begins as those of 2021 do: section_00_source_...
    """
    if said := parse_stem(get_stem(clip), year):
        return said
    match = _PREFIX.match(clip)
    return {"section": int(match[1]), "domain": match[2]} if match else {}


def get_stem(name: str) -> str:
    """Return the name without its extension, which a WAV clip and its FLAC twin share."""
    return Path(name).stem


def find_name_fault(path: str | os.PathLike) -> str:
    """Return why nothing of ours can write a name down, "" if it is text."""
    return "name: not valid UTF-8" if any("\ud800" <= c <= "\udfff" for c in str(path)) else ""


def list_visible(directory: Path) -> list[Path]:
    """Return what lies in a directory, sorted, hidden names left out; nothing if it is none."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
