"""What the name of a clip says, by the grammar of its year, and nothing made up."""

from pathlib import Path

from dns_jax.data.years import Year

UNKNOWN = -1  # the label of a clip of which nobody says whether it is normal (0) or anomalous (1)
RECORDINGS = (".wav", ".flac")


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


def get_stem(name: str) -> str:
    """Return the name without its extension, which a WAV clip and its FLAC twin share."""
    return Path(name).stem


def list_visible(directory: Path) -> list[Path]:
    """Return what lies in a directory, sorted, hidden names left out; nothing if it is none."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
