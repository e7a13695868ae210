"""Time the decoding of a data set into our cache beside bare decoding by soundfile.

    python benchmarks/decoding.py --out=docs/decoding_speed
    python benchmarks/decoding.py --out=docs/decoding_speed --data=DIR
    python benchmarks/decoding.py --second-start=DIR

The recordings are noise in DCASE's format: 10 s, 16 kHz, 16 bit, as WAV and as FLAC, beside those
in DIR, all of them in the memory of the operating system. "soundfile" reads every recording as
int16 and drops it, in a pool of threads or of processes, whichever is faster; "copy" also writes
the samples into one file, up to the disk: the least that any cache costs. "dns_jax" opens the same
recordings with an empty cache: it also walks the headers, finds means, deviations, clipping and
digests, and writes. The methods alternate. Writes OUT.csv and prints a Markdown table of
milliseconds per recording. `--second-start` times what a run does before it trains when the cache
is there: read the names, check files, cache and digests; without imports.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.default import get_config
from dns_jax.config import check_config
from dns_jax.data.clips import read_clips
from dns_jax.data.waveforms import open_waveforms
from dns_jax.files import write_file, write_text
from dns_jax.recordings import choose_targets, digest_recordings, read_recordings
from dns_jax.workdir import check_recordings, open_workdir

OURS, COPY = "dns_jax", "copy"
RIVALS = ("threads", "processes")
SAMPLES, RATE = 160_000, 16_000


def write_noise(root: Path, kind: str, clips: int) -> Path:
    """Write recordings of coloured noise, which FLAC compresses about as well as a machine."""
    folder = root / kind / "fan" / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(clips):
        noise = np.convolve(rng.normal(0, 1500, SAMPLES + 3), (0.5, 0.3, 0.2, 0.1), "valid")
        path = folder / f"section_00_source_train_normal_{i:04d}.{kind}"
        soundfile.write(path, noise.astype(np.int16), RATE)
    return root / kind


def read(path: str) -> int:
    """Decode a recording and drop it."""
    return len(soundfile.read(path, dtype="int16")[0])


def decode(pool: Executor, paths: list[str]) -> None:
    """Decode all recordings; processes take sixteen at a time."""
    sum(pool.map(read, paths, chunksize=16))


def copy(pool: Executor, paths: list[str], folder: Path) -> None:
    """Decode all recordings into one file."""

    def write(file):
        for first in range(0, len(paths), 16):
            for samples, _ in pool.map(
                lambda path: soundfile.read(path, dtype="int16"), paths[first : first + 16]
            ):
                file.write(samples)

    write_file(folder / "copy", write)


def measure(root: Path, repeats: int) -> dict[str, float]:
    """Return the median milliseconds per recording of every method, side by side."""
    clips, refusals = read_clips(root)
    if refusals:
        raise SystemExit(f"decoding: {refusals[0].path}: {refusals[0].reason}")
    paths = list(clips["path"])
    cores = len(os.sched_getaffinity(0))
    times = {name: [] for name in (*RIVALS, COPY, OURS)}
    with (
        ThreadPoolExecutor(cores) as threads,
        ProcessPoolExecutor(cores, get_context("spawn")) as processes,
    ):
        for _ in range(1 + repeats):
            with tempfile.TemporaryDirectory() as folder:
                methods = {
                    "threads": lambda: decode(threads, paths),
                    "processes": lambda: decode(processes, paths),
                    COPY: lambda folder=folder: copy(threads, paths, Path(folder)),
                    OURS: lambda folder=folder: open_waveforms(clips, Path(folder) / "cache"),
                }
                for name, method in methods.items():
                    times[name].append(1000 * _time(method) / len(paths))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def _time(method: Callable) -> float:
    start = time.perf_counter()
    method()
    return time.perf_counter() - start


def tabulate(table: pd.DataFrame) -> str:
    """Return the Markdown table."""
    head = ["recordings", *(f"{name} [ms]" for name in (*RIVALS, COPY, OURS))]
    head += ["speed / soundfile", "speed / copy"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in table.to_dict("records"):
        values = " | ".join(f"{row[name]:.3f}" for name in (*RIVALS, COPY, OURS))
        lines.append(f"| {row['data']} | {values} | {row['speed']:.2f} | {row['speed_copy']:.2f} |")
    return "\n".join(lines)


def measure_second_start(data_dir: Path) -> str:
    """Return how long the stages before training take when the cache is there."""
    config = get_config()
    config.data_dir, config.progress = str(data_dir), False
    config = check_config(config)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        open_workdir(config, workdir)

        def start():
            clips, waveforms = read_recordings(config, workdir)
            choose_targets(config, clips)
            check_recordings(workdir, digest_recordings(clips, waveforms))
            return len(clips)

        count = start()
        seconds = float(np.median([_time(start) for _ in range(7)]))
    return (
        f"second start: {seconds:.3f} s for {count:,} recordings, "
        f"{1e6 * seconds / count:.0f} us each: {30_000 * seconds / count:.1f} s for 30,000"
    )


def main() -> None:
    """Measure both formats, and a directory if one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--second-start", type=Path)
    args = parser.parse_args()
    if args.second_start:
        return print(measure_second_start(args.second_start))
    if args.out is None:
        parser.error("--out names the table, without an ending; or give --second-start")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {kind: write_noise(Path(folder), kind, args.clips) for kind in ("wav", "flac")}
        sources |= {args.data.name: args.data} if args.data else {}
        for name, root in sources.items():
            times = measure(root, args.repeats)
            fastest = min(times[rival] for rival in RIVALS)
            speeds = {"speed": fastest / times[OURS], "speed_copy": times[COPY] / times[OURS]}
            records.append({"data": name, **times, **speeds})
    table = pd.DataFrame(records)
    write_text(args.out.with_suffix(".csv"), table.to_csv(index=False))
    print(tabulate(table))
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "soundfile"))
    cores = len(os.sched_getaffinity(0))
    print(f"{time.strftime('%F')}; {cores} cores; {soundfile.__libsndfile_version__}; {versions}")


if __name__ == "__main__":
    main()
