"""Compiled programs kept from run to run: JAX's persistent compilation cache, on without asking.

JAX's key of a program holds the program, the versions of JAX and its backend, the compiler's flags
and the devices, of a CPU also its instruction set; so machines may share a home. An entry carries a
checksum, and one that cannot be read is compiled anew. What is loaded computes what was compiled,
bit for bit. Not for runs of several hosts: theirs need not share a home, and hosts of which some
compile and some do not may wait for each other (autotuning on GPUs is divided among them).
"""

import contextlib
import os
import warnings
from pathlib import Path

import jax

_LIMIT = 2**30  # bytes; JAX's own limit stops all writing after a kill at the wrong moment
_WORTH = 0.1  # s of compilation; JAX's own second leaves out most programs of a small run
_WORTH_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_programs() -> None:
    """Keep compiled programs in `$XDG_CACHE_HOME/dns_jax/xla`, by default below `~/.cache`.

    What the user has said otherwise stands: JAX_COMPILATION_CACHE_DIR (empty: nowhere) or
    JAX_ENABLE_COMPILATION_CACHE=false. Where the folder cannot be written, nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    if not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = _find_cache() / "dns_jax" / "xla"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who writes there, runs code here
        _make_room(folder)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _WORTH_VARIABLE not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH)


def _find_cache() -> Path:
    """The folder of all caches of the user, by the XDG Base Directory Specification."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def _make_room(folder: Path) -> None:
    """Remove the oldest programs beyond the limit."""
    kept = 0
    with contextlib.suppress(FileNotFoundError):  # another process is at it, too
        for file in sorted(folder.glob("*-cache"), key=os.path.getmtime, reverse=True):
            kept += file.stat().st_size
            if kept > _LIMIT:
                file.unlink()
