"""Time `diffuse` beside `smooth`, and its iteration beside its search.

    python benchmarks/diffusion.py

Features are random float32[N, 128], in one process; a row is the median of calls that take turns.
Prints a Markdown table of the seconds: `smooth` with K = 32, `diffuse` with 10 neighbours and
alpha 0.9, the same at alpha 0.99, and how long it takes alone to find the neighbours. 100,000 rows
are measured once, and the first two only.
"""

import argparse
import os
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from dns_jax import diffuse, smooth
from dns_jax.smoothing._arguments import Rows
from dns_jax.smoothing._nearest import find_nearest

ROWS = (1_400, 2_800, 7_000, 20_000, 100_000)
DIMENSIONS = 128
K, NEIGHBOURS, ALPHA, FARTHER = 32, 10, 0.9, 0.99


def measure(rows: int) -> list[float]:
    """Return the median seconds of every call."""
    rng = np.random.default_rng(rows)
    scores = jnp.asarray(rng.standard_normal(rows, np.float32))
    features = jnp.asarray(rng.standard_normal((rows, DIMENSIONS), np.float32))
    pool = Rows(None, features, None)
    calls = [
        lambda: smooth(scores, features, K),
        lambda: diffuse(scores, features, n_neighbors=NEIGHBOURS, alpha=ALPHA),
        lambda: diffuse(scores, features, n_neighbors=NEIGHBOURS, alpha=FARTHER),
        lambda: find_nearest(pool, pool, None, NEIGHBOURS, jnp.arange(rows)),
    ]
    if rows >= 100_000:
        return [*(_time(call) for call in calls[:2]), np.nan, np.nan]  # compiling counts little
    seconds = [[_time(call) for call in calls] for _ in range(4 if rows >= 20_000 else 12)]
    return np.median(seconds[1:], axis=0).tolist()


def _time(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    """Measure every N."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    args = parser.parse_args()
    head = f"smooth, K = {K} [s]", f"diffuse, alpha {ALPHA} [s]", f"alpha {FARTHER} [s]"
    head = ["N", *head, "search [s]", f"diffuse, alpha {ALPHA} / smooth"]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for rows in args.rows:
        seconds = measure(rows)
        numbers = " | ".join("" if np.isnan(x) else f"{x:.3g}" for x in seconds)
        print(f"| {rows:,} | {numbers} | {seconds[1] / seconds[0]:.1f} |", flush=True)
    device, cores = jax.devices()[0].platform, len(os.sched_getaffinity(0))
    print(f"\n{time.strftime('%F')}; {device}, {cores} cores; jax {version('jax')}")


if __name__ == "__main__":
    main()
