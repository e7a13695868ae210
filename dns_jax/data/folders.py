"""Recordings of any names: a folder of normal ones to learn from, and one to score.

The table is that of `clips.read_clips`, with one machine, one section and one domain; nothing is
known of the recordings to be scored.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from dns_jax.data.clips import COLUMNS, OTHER_AUDIO
from dns_jax.data.names import RECORDINGS, UNKNOWN, find_name_fault
from dns_jax.data.refusals import DataError, Refusal, printable


def read_folders(
    normal: str | os.PathLike, score: str | os.PathLike, machine: str
) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read two folders, and the folders in them, into a table of clips; opens no recording.

    Args:
      normal: recordings of the machine in good order.
      score: recordings to be scored; those that lie in `normal` are not.
      machine: its name in the table.

    Returns:
      The table: clip is the path below the folder, of a training clip with `train/` before it. And
      the files that are not in it, each with its reason.

    Raises:
      DataError: a folder is not there, or holds no recordings; naming the field that says it.
    """
    training, refused = _read_folder(normal, "normal", machine, "train")
    tested, refused_too = _read_folder(score, "score", machine, "test", without=(normal,))
    clips = pd.concat([training, tested], ignore_index=True)
    if (twice := clips["clip"].duplicated()).any():
        name = clips["clip"][twice].iloc[0]
        raise DataError(f"{printable(name)} names two recordings; rename the folder train/")
    return clips, refused + refused_too


def read_others(
    folder: str | os.PathLike, machine: str, without: Sequence[str | os.PathLike] = ()
) -> tuple[pd.DataFrame, list[Refusal]]:
    """Read a folder of sounds of other machines as training clips of one machine.

    Args:
      folder: any recordings, also in folders in it.
      machine: their name in the table.
      without: folders whose recordings are left out, since they are of the machine in question.

    Returns:
      As `read_folders`.

    Raises:
      DataError: as `read_folders`.
    """
    return _read_folder(folder, "others", machine, "train", without)


def _read_folder(folder, field, machine, split, without=()):
    rows, refusals = [], []
    without = [Path(other).resolve() for other in without]
    for path in _list_audio(Path(folder), field):
        if any(path.resolve().is_relative_to(other) for other in without):
            continue
        if reason := _find_fault(path):
            refusals.append(Refusal(str(path), reason))
            continue
        clip = ("train/" if split == "train" else "") + path.relative_to(folder).as_posix()
        label = 0 if split == "train" else UNKNOWN
        rows.append((machine, str(path), clip, split, 0, "source", label, ""))
    if not rows and not refusals:
        but = " but those of the machine itself" if without else ""
        raise DataError(
            f"--config.data.{field}={printable(folder)}: there are no WAV or FLAC files in it{but}"
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"section": int, "label": int}), refusals


def _list_audio(folder: Path, field: str) -> Iterator[Path]:
    """Yield all audio files below a folder in a fixed order, hidden ones left out."""

    def fail(error):
        raise DataError(f"cannot list {printable(error.filename)}: {error.strerror}") from error

    if not folder.is_dir():
        raise DataError(f"--config.data.{field}={printable(folder)}: there is no such folder")
    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        behind = {(Path(place) / name).resolve(): name for name in reversed(visible)}
        folders[:] = sorted(behind[path] for path in behind.keys() - seen)
        seen |= {*behind}  # links may lead in a circle
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and (suffix in RECORDINGS or suffix in OTHER_AUDIO):
                yield Path(place) / name


def _find_fault(path):
    if fault := find_name_fault(path):
        return fault
    if any(c == "\ufeff" or unicodedata.category(c) == "Cc" for c in str(path)):
        return "name: holds a control character"
    if path.suffix.lower() not in RECORDINGS:
        return f"name: extension {path.suffix}, may be {' or '.join(RECORDINGS)}"
    return ""
