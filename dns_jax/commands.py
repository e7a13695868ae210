"""How the smaller commands read their flags and say what is wrong: one line on stderr.

Exit status 2 for a mistake in the call, 1 for bad input.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from dns_jax.data.refusals import ConfigError, DataError, printable


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m module``; a mistake ends the process with one line."""
    parser = argparse.ArgumentParser(
        f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: stop(message, 2)
    return parser


def say(message: object) -> None:
    """Print a line on stderr, whatever names are in it."""
    print(f"dns_jax: {printable(str(message))}", file=sys.stderr, flush=True)


def stop(message: object, status: int) -> NoReturn:
    """Say why, and end the process."""
    say(message)
    sys.exit(status)


@contextmanager
def stopping() -> Iterator[None]:
    """Turn what a command may raise into its line and exit status."""
    try:
        yield
    except ConfigError as error:
        stop(error, 2)
    except (DataError, OSError) as error:
        stop(error, 1)
    except (MemoryError, RuntimeError) as error:  # also of JAX: the device may be lost
        said = " ".join(str(error).split())[:500]
        stop(f"{type(error).__name__}: {said}; nothing is lost, start again", 1)
    except KeyboardInterrupt:
        stop("stopped", 130)
