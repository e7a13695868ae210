"""What is said about calls that are wrong and files that cannot be used."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SKIP_BAD = "--config.data.skip_bad=True"


class ConfigError(ValueError):
    """The call is wrong; the message is one line for the user."""


class DataError(ValueError):
    """The data cannot be used as they are; the message is what a user reads."""


class Refusal(NamedTuple):
    """One file that cannot be used: why, and the option that would accept it or leave it out."""

    path: str
    reason: str
    option: str = SKIP_BAD


def describe_refusals(refusals: Iterable[Refusal]) -> str:
    """Return one message that lists every refused file with its reason and option."""
    lines = [f"  {printable(path)}: {reason} [{option}]" for path, reason, option in refusals]
    files = "1 file" if len(lines) == 1 else f"{len(lines)} files"
    head = (
        f"{files} cannot be used (in brackets: the option that accepts or leaves out such a file):"
    )
    return "\n".join([head, *lines])


@contextmanager
def reading(artifact: str | os.PathLike) -> Iterator[None]:
    """Turn what goes wrong while an artifact of a run is read into a message for the user.

    Args:
      artifact: without it the run makes anew what is read here.

    Raises:
      DataError: naming the artifact, what was wrong and the way out.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        what = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{printable(artifact)} is damaged ({type(error).__name__}: {what}); "
            "delete it and start again, and it is made anew"
        ) from error


def printable(path: str | os.PathLike) -> str:
    """Return a path on one line and in valid Unicode, whatever bytes its name is made of."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path)
    )
