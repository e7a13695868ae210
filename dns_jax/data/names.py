"""The grammar of file names of DCASE 2021 Task 2: what a name says, and nothing made up."""

import re
from pathlib import Path

UNKNOWN = -1  # the label of a clip of which nobody says whether it is normal (0) or anomalous (1)
RECORDINGS = (".wav", ".flac")
SECTION = r"section_(?P<section>\d\d|[1-9]\d{2,})_(?P<domain>source|target)"
_CLIP = re.compile(
    SECTION + r"_(?:(?P<split>train|test)_(?P<label>normal|anomaly)_\d{4,}(?:_.+)?|test_\d{4,})",
    re.ASCII,
)
GRAMMAR = (
    "section_SS_{source|target}_{train|test}_{normal|anomaly}_NNNN[_<attribute>] "
    "or section_SS_{source|target}_test_NNNN"
)


def parse_stem(stem: str) -> dict | None:
    """Return split, section, domain, label and attributes of a stem; None outside the grammar."""
    match = _CLIP.fullmatch(stem)
    return match and {
        "split": match["split"] or "test",
        "section": int(match["section"]),
        "domain": match["domain"],
        "label": UNKNOWN if match["label"] is None else int(match["label"] == "anomaly"),
        "attributes": "_".join(stem.split("_")[6:]),
    }


def get_stem(name: str) -> str:
    """Return the name without its extension, which a WAV clip and its FLAC twin share."""
    return Path(name).stem


def list_visible(directory: Path) -> list[Path]:
    """Return what lies in a directory, sorted, hidden names left out; nothing if it is none."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
