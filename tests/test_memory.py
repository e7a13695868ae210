"""Freed memory is kept: what a second step asks for, it gets without the kernel."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from dns_jax.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # several blocks of 128 MB at once
    y = jax.lax.optimization_barrier(jnp.sin(x))
    return jax.lax.optimization_barrier(jnp.cos(y)) + y

x = jnp.ones((4096, 8192))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[2:]))
"""


def count_faults(how):
    """Return the pages that a repeated step gets from the kernel, 4 KiB or 2 MiB each."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_repeated_step_asks_the_kernel_for_no_memory():
    assert count_faults("kept") < 1000 < 20_000 < count_faults("as it was")


def test_without_glibc_nothing_is_done(monkeypatch):
    from dns_jax import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
