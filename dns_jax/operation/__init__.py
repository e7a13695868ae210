"""The operating phase: F grows while recordings arrive, and every score is smoothed in it (eq. 7).

`neighbors` searches one F in memory, `store` keeps its recordings on disk, and `pool` is both for
all machines of a run.
"""
