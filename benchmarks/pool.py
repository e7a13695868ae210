"""Time F of the operating phase at its size limit.

    python benchmarks/pool.py
    python benchmarks/pool.py --rows=20000 --k=32 --day

One section of ROWS random rows float32[D = 128] in recordings of 7 segments, in a file in a
temporary folder. "score" smooths a new recording; "append" commits it to the disk and puts it into
F, before and after the lists of neighbours are there; "append, evict" also drops the oldest;
"refresh" smooths all recordings again after that. The first refresh searches all rows. Prints a
Markdown table. `--day` adds 24 hours of recordings at a 10-s cadence (8,640 recordings, as fast as
they go) at the size limit, and the memory of the process along the way.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dns_jax.operation.pool import NeighborPool, Recording, Setting

DIMENSIONS, SEGMENTS = 128, 7
RNG = np.random.default_rng(0)


def make_recording(number: int) -> Recording:
    """Return a recording of random scores and features."""
    return Recording(
        machine="fan",
        section=0,
        domain="source",
        clip=f"clip_{number:06d}.wav",
        path=f"/in/clip_{number:06d}.wav",
        digest=f"{number:032x}",
        arrived=1.7e9 + 10.0 * number,
        seconds=10.0,
        scores=RNG.normal(size=SEGMENTS).astype(np.float32),
        features=RNG.normal(size=(SEGMENTS, DIMENSIONS)).astype(np.float32),
    )


def measure(call: Callable, repeats: int) -> str:
    """Return the median, the 95th percentile and the longest time of calls in ms."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    median, late = np.percentile(times, (50, 95))
    return f"{median:.1f} | {late:.1f} | {max(times):.1f}"


def get_resident() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_pool(path: Path, k: int) -> NeighborPool:
    """Open the pool of one machine."""
    return NeighborPool(path, {"fan": Setting(k)}, DIMENSIONS, identity="benchmark")


def main() -> None:
    """Fill a pool, and time what is done with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--day", action="store_true")
    args = parser.parse_args()
    limit, number = args.rows // SEGMENTS, 0

    def ask():
        new = make_recording(10**6)
        pool.score("fan", 0, new.scores, new.features)

    def append():
        nonlocal number
        pool.append(make_recording(number))
        number += 1

    def replace():
        append()
        pool.evict(keep=limit)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "F.sqlite"
        print("| what | median [ms] | p95 [ms] | longest [ms] |\n| --- | --- | --- | --- |")
        with open_pool(path, args.k) as pool:
            print(f"| append while F fills | {measure(append, limit)} |", flush=True)
        before = get_resident()
        start = time.perf_counter()
        with open_pool(path, args.k) as pool:
            opening = time.perf_counter() - start
            ask()
            print(f"| score | {measure(ask, args.repeats)} |", flush=True)
            print(f"| append, evict, no lists yet | {measure(replace, args.repeats)} |", flush=True)
            start = time.perf_counter()
            pool.refresh("fan")
            searching = time.perf_counter() - start
            append()
            print(f"| append | {measure(append, args.repeats)} |", flush=True)
            replace()
            print(f"| append, evict | {measure(replace, args.repeats)} |", flush=True)
            refresh = measure(lambda: (replace(), pool.refresh("fan")), args.repeats)
            print(f"| append, evict, refresh | {refresh} |", flush=True)
            print(f"| score | {measure(ask, args.repeats)} |")
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
            print(
                f"\n{args.rows:,} rows of {DIMENSIONS}, K = {args.k}, "
                f"{len(os.sched_getaffinity(0))} cores: opened in {opening:.1f} s, all rows "
                f"searched in {searching:.0f} s; F takes {pool.bytes / 2**20:.0f} MiB, the "
                f"process {get_resident():.0f} MiB ({before:.0f} before), the file {size:.0f} MiB"
            )
            for hour in range(24 if args.day else 0):
                times = measure(lambda: (ask(), replace(), pool.refresh("fan")), 360)
                held = f"{pool.bytes / 2**20:.0f} MiB, process {get_resident():.0f} MiB"
                print(f"hour {hour + 1}: {times} ms a recording; F {held}", flush=True)


if __name__ == "__main__":
    main()
