"""A recording of the watched folder for the page: opened where no link leads out, sent in parts."""

import io
import os
import re
import stat

from dns_jax.operation.ranking import Row


def open_sound(folder: str, row: Row) -> io.BufferedReader | None:
    """Open a recording, if what it was still lies below a folder on a way without links.

    Args:
      folder: absolute, without links.
      row: the recording.

    Raises:
      OSError: something on the way is not there, or is a link.
    """
    if not os.path.isabs(row.path) or os.path.commonpath([folder, row.path]) != folder:
        return None
    *way, name = os.path.relpath(row.path, folder).split(os.sep)
    if ".." in way or name in ("..", "."):
        return None
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in way:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = below
        # Without O_NONBLOCK a pipe in its place would hold the thread.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
    about = os.fstat(file)
    same = (about.st_size, about.st_mtime_ns) == (row.size, row.mtime_ns)
    if not stat.S_ISREG(about.st_mode) or not same:
        os.close(file)
        return None
    return os.fdopen(file, "rb")


def find_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end (bytes) of the part that a Range header asks for.

    None where there is no such header, or one that may be passed over (RFC 9110, 14.2).

    Raises:
      ValueError: the part does not overlap with what there is.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip(), re.ASCII)
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return None
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise ValueError(f"there are {size} bytes")
    return start, end
