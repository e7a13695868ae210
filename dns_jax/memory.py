"""Memory of the CPU: what a training step gives back is kept for the next one.

A compiled program asks for its temporary memory anew each time it runs, gigabytes for the paper's
networks, and glibc gets such blocks from the kernel and gives them back, page by page of zeros: a
third of the time of a step. JAX has no setting for it on CPUs; glibc has.
"""

import ctypes
import mmap
import os
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, in large pages where the kernel gives them.

    To be called before JAX starts its threads. Does nothing where the C library is not glibc.

    Returns:
      Whether the C library did as it was told.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    import resource  # not everywhere

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    limited = any(limit != resource.RLIM_INFINITY for limit in limits)
    libc.malloc.restype = ctypes.c_void_p
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    done = all(libc.mallopt(name, value) for name, value in settings.items())
    # Addresses at the end of the heap, not memory: asked for in large pages, given back untouched.
    size = os.sysconf("SC_PHYS_PAGES") // 2 * mmap.PAGESIZE
    if done and not limited and (block := libc.malloc(ctypes.c_size_t(size))):
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        length = ctypes.c_size_t(size - mmap.PAGESIZE)
        libc.madvise(ctypes.c_void_p(start), length, mmap.MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(block))
    return done
