"""Rivals timed side by side: in one process, in turn, each with all the cores it may use.

XLA, PyTorch, ONNX Runtime and NumPy's libraries all take the cores that the process may run on:
`taskset -c 0-3 python benchmarks/...` gives each of them four.
"""

import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dns_jax.files import write_file, write_text

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the configurations lie

OURS = "dns_jax"
THREADS = len(os.sched_getaffinity(0))


def check_equal(name: str, got: np.ndarray, expected: np.ndarray, bound: float = 1e-4) -> None:
    """Stop the benchmark where a rival computes something else, by norms of the arrays."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    if not error <= bound:
        raise SystemExit(f"{name} gives another result than {OURS}: relative error {error:.1e}")


def time_in_turn(
    methods: Mapping[str, Callable], turns: int = 5, calls: int = 3
) -> dict[str, float]:
    """Return the median seconds of every method over `turns` x `calls` calls.

    Args:
      methods: calls that have been compiled, and wait for their own results.
      turns: how often every method comes.
      calls: how many calls are timed each time, after a fifth of a second of others, since the
        first ones after a pause are slower.
    """
    seconds = {name: [] for name in methods}
    for _ in range(turns):
        for name, method in methods.items():
            time.sleep(0.3)  # OpenMP's threads of the method before spin for 0.2 s
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                method()
            for _ in range(calls):
                start = time.perf_counter()
                method()
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def report(
    table: pd.DataFrame,
    rows: list[str],
    packages: tuple[str, ...],
    out: Path,
    bound: str | None = None,
) -> None:
    """Print a Markdown table, and write it as OUT.csv and OUT.png.

    Args:
      table: columns `rows`, then the seconds of every method, NaN where it has none.
      rows: names of the columns that say what is computed.
      packages: whose versions are printed.
      out: path without an ending.
      bound: the method, if there is one, that computes only a part and is no rival.
    """
    methods = [name for name in table if name not in rows]
    rivals = [name for name in methods if name not in (OURS, bound)]
    table = table.assign(speed=table[rivals].min(axis=1) / table[OURS])
    head = [*rows, *(f"{name} [ms]" for name in methods), "fastest rival / ours"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in table.to_dict("records"):
        cells = [str(row[name]) for name in rows]
        for name in methods:
            relative = "" if name == OURS else f" ({row[name] / row[OURS]:.2f})"
            cells.append("" if np.isnan(row[name]) else f"{1e3 * row[name]:.3g}{relative}")
        lines.append("| " + " | ".join([*cells, f"{row['speed']:.2f}"]) + " |")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    device = f"{jax.devices()[0].platform}, {THREADS} threads each"
    print("\n".join(lines))
    print(f"In brackets: times ours. {time.strftime('%F')}; {device}; {versions}")
    write_text(out.with_suffix(".csv"), table.to_csv(index=False))
    _draw(table, rows, methods, out.with_suffix(".png"))


def _draw(table, rows, methods, path):
    """Draw the time of every method relative to ours."""
    names = [", ".join(map(str, row)) for row in table[rows].itertuples(index=False)]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.7 * len(table)), layout="constrained")
    height = 0.8 / len(methods)
    for i, name in enumerate(methods):
        places = np.arange(len(table)) + (i - (len(methods) - 1) / 2) * height
        axes.barh(places, table[name] / table[OURS], height, label=name)
    axes.axvline(1, color="k", linewidth=0.8)
    axes.set_yticks(range(len(table)), names)
    axes.invert_yaxis()
    axes.set_xlabel("time / ours")
    figure.legend(loc="outside upper center", ncols=len(methods), fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    plt.close(figure)
    write_file(path, lambda file: file.write(image.getvalue()))
