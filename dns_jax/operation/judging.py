"""Judging a file: of which machine it is, what the detector says, or why it says nothing."""

import os
from collections.abc import Collection
from typing import Any

from dns_jax.data.headers import Unusable
from dns_jax.data.refusals import DataError
from dns_jax.operation.judgement import Judgement


def find_machine(path: str, folder: str, machines: Collection[str]) -> tuple[str, str]:
    """Return the machine of a recording, the first folder below `folder`, and why there is none."""
    *folders, _ = os.path.relpath(path, folder).split(os.sep)
    if folders and folders[0] in machines:
        return folders[0], ""
    lies = f"its first folder is {folders[0]!r}" if folders else "it lies in no folder"
    there = ", ".join(machines)
    return "", f"no machine: {lies}; the folder may be {there}, or --machine names one for all"


def judge(
    detector: Any,
    path: str,
    machine: str | None,
    section: int | None = None,
    domain: str | None = None,
) -> tuple[Judgement | None, str]:
    """Return the judgement of a recording, and why there is none; arguments as `Detector.score`.

    Raises:
      OSError: the file cannot be read.
      RuntimeError: of JAX; another recording might not have fared better.
    """
    try:
        return detector.score(path, machine=machine, section=section, domain=domain), ""
    except MemoryError:
        return None, "takes more memory than there is"
    except Unusable as error:
        return None, error.reason
    except DataError as error:
        return None, str(error)
    except (OSError, RuntimeError):
        raise
    except Exception as error:  # whatever a file may hold, the next one is not to suffer
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
