"""Time `smooth` beside exact nearest-neighbour searches that take the mean of K scores.

    python benchmarks/smoothing.py --out=docs/smoothing_speed
    python benchmarks/smoothing.py --growth

Needs `pip install -e .[bench]`. Features are random float32[N, 128]; every rival gets all
cores and the form in which it is fastest here, in one process: faiss's flat index, scikit-learn's
brute force, PyTorch's matrix product and unsorted top-k in blocks. "product" is the bare float32
matrix product of all rows with all rows, in blocks that are reduced and dropped: no exact search
can be faster. Every result is compared with ours. Writes OUT.csv and OUT.png and prints a Markdown
table of the seconds, the speed relative to the fastest rival and the time relative to the product;
then what a sweep over eight K and eight columns of scores cost. `--growth` times N up to 200,000
and gives the exponent and the peak of memory, which needs a process of its own.
"""

import argparse
import io
import os
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import faiss
import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

from dns_jax import smooth, smooth_sweep
from dns_jax.files import write_file, write_text

ROWS = (1_400, 2_800, 8_400, 40_000)
NEIGHBOURS = (16, 128, 1_024, 2_048)
DIMENSIONS = 128
OURS, PRODUCT = "dns_jax", "product"


def smooth_by_faiss(scores: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Search with a flat L2 index, the row itself among the K."""
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    _, neighbours = index.search(features, k)
    return scores[neighbours].mean(axis=1)


def smooth_by_scikit_learn(scores: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Search by brute force."""
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features)
    return scores[search.kneighbors(features, return_distance=False)].mean(axis=1)


def smooth_by_torch(scores: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Take the unsorted top K of |y|^2 / 2 - x.y in blocks."""
    x, s = torch.from_numpy(features), torch.from_numpy(scores)
    half_norms = (x * x).sum(1) / 2
    block = max(64, 2**22 // len(x))
    means = [
        s[torch.addmm(half_norms, rows, x.T, alpha=-1).topk(k, largest=False, sorted=False).indices]
        .mean(1)
        for rows in x.split(block)
    ]  # fmt: skip
    return torch.cat(means).numpy()


def multiply(scores: np.ndarray, features: np.ndarray, k: int) -> None:
    """Compute all products of two rows, and the largest of every row."""
    x = torch.from_numpy(features)
    for rows in x.split(max(64, 2**22 // len(x))):
        (rows @ x.T).amax(1)


def smooth_by_us(scores: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    """Call the function that is measured."""
    return np.asarray(smooth(scores, features, k))


METHODS = {
    OURS: smooth_by_us,
    "faiss": smooth_by_faiss,
    "scikit-learn": smooth_by_scikit_learn,
    "torch": smooth_by_torch,
    PRODUCT: multiply,
}


def measure(rows: int, k: int) -> dict[str, float]:
    """Return the median seconds of every method, side by side."""
    rng = np.random.default_rng(rows)
    scores = rng.standard_normal(rows, np.float32)
    features = rng.standard_normal((rows, DIMENSIONS), np.float32)
    expected = smooth_by_us(scores, features, k)
    for name in ("faiss", "scikit-learn", "torch"):
        # Rounding may exchange the last neighbour of a few rows.
        differ = np.abs(METHODS[name](scores, features, k) - expected) > 1e-5
        if differ.mean() > 0.01:
            raise SystemExit(f"smoothing: {name} gives another result for {differ.mean():.0%}")
    repeats = 2 if rows >= 40_000 else 9
    seconds = {}
    for name, method in METHODS.items():
        time.sleep(0.3)  # OpenMP's threads of the method before spin for 0.2 s
        times = [_time(method, scores, features, k) for _ in range(1 + repeats)]
        seconds[name] = times[1:]
    return {name: float(np.median(times)) for name, times in seconds.items()}


def _time(method: Callable, *args) -> float:
    start = time.perf_counter()
    method(*args)
    return time.perf_counter() - start


def compare_with_one(rows: int) -> str:
    """Return what eight K and eight columns of scores cost beside the slowest one of them."""
    rng = np.random.default_rng(rows)
    scores = rng.standard_normal((rows, 8), np.float32)
    features = rng.standard_normal((rows, DIMENSIONS), np.float32)
    ks = [2**i for i in range(1, 12) if 2**i < rows][-8:]
    calls = {k: lambda k=k: smooth(scores[:, 0], features, k) for k in ks}
    calls["sweep"] = lambda: smooth_sweep(scores[:, 0], features, ks)
    calls["columns"] = lambda: smooth(scores, features, ks[-1])
    time.sleep(0.3)
    seconds = {
        name: float(np.median([_time(lambda: np.asarray(call())) for _ in range(6)][1:]))  # noqa: B023
        for name, call in calls.items()
    }
    slowest = max(seconds[k] for k in ks)
    return (
        f"N = {rows:,}: the slowest of K = {ks} takes {slowest:.4f} s, the sweep over them "
        f"{seconds['sweep'] / slowest:.2f} times that; eight columns of scores take "
        f"{seconds['columns'] / seconds[ks[-1]]:.2f} times one"
    )


def measure_growth() -> None:
    """Print seconds and peak memory for growing N, and the exponent of the time."""
    sizes, times = (10_000, 20_000, 40_000, 80_000, 200_000), []
    for rows in sizes:
        rng = np.random.default_rng(rows)
        scores = rng.standard_normal(rows, np.float32)
        features = rng.standard_normal((rows, DIMENSIONS), np.float32)
        smooth_by_us(scores, features, 128) if rows <= 40_000 else None  # compiled before
        times.append(_time(smooth_by_us, scores, features, 128))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"N = {rows:,}: {times[-1]:.2f} s, peak memory {peak:.2f} GiB", flush=True)
    slope = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    print(f"time grows as N^{slope:.2f}")


def tabulate(table: pd.DataFrame) -> str:
    """Return the Markdown table, with the geometric mean of the speeds below it."""
    head = ["N, K", *(f"{name} [s]" for name in METHODS), "speed / fastest rival", "time / product"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in table.to_dict("records"):
        seconds = " | ".join(f"{row[name]:.3g}" for name in METHODS)
        lines.append(
            f"| {row['rows']:,}, {row['k']:,} | {seconds} | {row['speed']:.2f} "
            f"| {row[OURS] / row[PRODUCT]:.1f} |"
        )
    mean = np.exp(np.log(table["speed"]).mean())
    return "\n".join([*lines, "", f"Geometric mean of the speeds: {mean:.2f}"])


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the seconds of every method over K, a panel for each N."""
    groups = table.groupby("rows")
    figure, axes = plt.subplots(1, len(groups), figsize=(3 * len(groups), 3), squeeze=False)
    for axis, (rows, part) in zip(axes[0], groups, strict=True):
        for name in METHODS:
            style = "k:" if name == PRODUCT else "o-" if name == OURS else ".--"
            axis.loglog(part["k"], part[name], style, label=name)
        axis.set(title=f"N = {rows:,}", xlabel="K")
    axes[0, 0].set_ylabel("seconds")
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    write_file(path, lambda file: file.write(image.getvalue()))


def main() -> None:
    """Measure the grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--neighbours", nargs="+", type=int, default=NEIGHBOURS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--growth", action="store_true")
    args = parser.parse_args()
    if args.growth:
        return measure_growth()
    if args.out is None:
        parser.error("--out names the table and the figure, without an ending; or give --growth")
    records = []
    for rows in args.rows:
        for k in (k for k in args.neighbours if k < rows):
            seconds = measure(rows, k)
            fastest = min(seconds[name] for name in ("faiss", "scikit-learn", "torch"))
            records.append({"rows": rows, "k": k, **seconds, "speed": fastest / seconds[OURS]})
    table = pd.DataFrame(records)
    write_text(args.out.with_suffix(".csv"), table.to_csv(index=False))
    draw(table, args.out.with_suffix(".png"))
    packages = ("jax", "numpy", "faiss-cpu", "scikit-learn", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    device, cores = jax.devices()[0].platform, len(os.sched_getaffinity(0))
    threads = f"{torch.get_num_threads()} threads in torch, {faiss.omp_get_max_threads()} in faiss"
    print(tabulate(table))
    print(f"{time.strftime('%F')}; {device}, {cores} cores; {threads}; {versions}")
    for rows in (rows for rows in args.rows if rows < 40_000):
        print(compare_with_one(rows))


if __name__ == "__main__":
    main()
