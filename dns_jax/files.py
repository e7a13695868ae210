"""Writing without ever leaving half a file under its final name."""

import os
from collections.abc import Callable
from pathlib import Path


def write_file(path: Path, write: Callable) -> None:
    """Let `write` fill a binary file under a temporary name, then rename it.

    Args:
      path: the final name; missing folders are made.
      write: called with the open file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `write_file`."""
    write_file(path, lambda file: file.write(text.encode()))
