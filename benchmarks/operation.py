"""Time the operating phase: how long a recording takes, and a day of recordings.

    python benchmarks/operation.py latency
    python benchmarks/operation.py day --workdir=runs/mine --recordings=DIR

`latency` judges recordings of 10 s by EfficientNet-B0 and the autoencoder of the paper (random
weights) beside an F of 100,000 rows, and appends each: the parts of a judgement, and all of it, in
ms. `day` lets the monitor of a finished run judge 8,640 recordings, 24 hours at a 10-s cadence, as
fast as it can: recordings of DIR with noise of their own, none like another; F keeps `--keep` of
each machine, section and domain. It prints the memory of the monitor after each tenth, and whether
the ledger has every recording once.
"""

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the configurations lie

RATE, SECONDS = 16000, 10
SETTLED = 0.1  # s, the monitor's --settle


def build_detector(rows: int, train: int = 200):
    """Return a detector of random networks whose F has so many rows."""
    from flax import nnx

    from configs import default
    from dns_jax.config import check_config
    from dns_jax.evaluation.selection import Choice
    from dns_jax.models.autoencoder import Autoencoder
    from dns_jax.models.serial_oe import SerialOE
    from dns_jax.operation.detector import Detector
    from dns_jax.operation.pool import Recording
    from dns_jax.operation.trained import Standardisation, Trained
    from dns_jax.scoring import Segments

    config, rng, windows = check_config(default.get_config()), np.random.default_rng(0), 7
    segments = Segments(
        clip=np.repeat([f"normal_{i:04d}.wav" for i in range(train)], windows),
        split=np.full(train * windows, "train"),
        section=np.zeros(train * windows, np.int32),
        domain=np.full(train * windows, "source"),
        label=np.zeros(train * windows, np.int32),
        start=np.tile(np.arange(windows, dtype=np.float32), train),
        ae_score=rng.gamma(9.0, size=train * windows).astype(np.float32),
        feature=rng.normal(size=(train * windows, 128)).astype(np.float32),
        spectrum=np.empty((train * windows, 0)),
        residual=np.empty((train * windows, 0)),
    )
    trained = Trained(
        config=config,
        machine="fan",
        seed=0,
        autoencoder=Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)),
        serial_oe=SerialOE(config.serial_oe, 1, rngs=nnx.Rngs(1)),
        segments=segments,
        choice=Choice(32, "all", "default"),
        standardisation=Standardisation("recording", 0.0, 1.0),
    )
    folder = Path(tempfile.mkdtemp())
    detector = Detector([trained], None, True, "empty", True)
    for number in range(rows // windows):
        detector.pool.append(
            Recording(
                machine="fan",
                section=0,
                domain="source",
                clip=f"clip_{number}.wav",
                path="",
                digest=f"{number}",
                arrived=float(number),
                seconds=10.0,
                scores=rng.gamma(9.0, size=windows).astype(np.float32),
                features=rng.normal(size=(windows, 128)).astype(np.float32),
            )
        )
    return detector, folder


def measure_latency(rows: int, recordings: int) -> None:
    """Print the percentiles of every part."""
    detector, folder = build_detector(rows)
    (known,) = detector._machines.values()
    rng, times, memory = np.random.default_rng(1), collections.defaultdict(list), []
    for number in range(recordings + 2):
        path = folder / f"section_00_source_test_{number:04d}.wav"
        soundfile.write(path, rng.normal(0, 0.1, RATE * SECONDS), RATE, "PCM_16")
        marks = [time.perf_counter()]
        recording = known.read(path)
        marks.append(time.perf_counter())
        _, a_g, f_d = known.compute(recording)
        marks.append(time.perf_counter())
        detector.pool.score("fan", 0, a_g, f_d, recording.digest)
        marks.append(time.perf_counter())
        judgement = detector.score(path)
        marks.append(time.perf_counter())
        detector.append(judgement, path=str(path), arrived=float(number))
        marks.append(time.perf_counter())
        path.unlink()
        memory.append(read_memory(os.getpid()))
        parts = ("read and check", "networks", "smooth", "all of `score`", "append")
        if number >= 2:  # after compiling
            for part, seconds in zip(parts, np.diff(marks), strict=True):
                times[part].append(1e3 * seconds)
    print("| part | median [ms] | 95 % [ms] | 99 % [ms] | longest [ms] |")
    print("| --- | --- | --- | --- | --- |")
    for part, values in times.items():
        numbers = [*np.percentile(values, (50, 95, 99)), max(values)]
        print(f"| {part} | " + " | ".join(f"{x:.1f}" for x in numbers) + " |")
    begun = memory[len(memory) // 10]
    print(
        f"B0, {recordings} recordings, F of {rows:,} rows, K = 32, {os.cpu_count()} CPUs; "
        f"{begun:.0f} MiB after the first tenth, {memory[-1]:.0f} at the end"
    )


def read_memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure_day(workdir: Path, source: Path, machine: str, count: int, keep: int) -> None:
    """Let recordings land before the monitor, as many as it manages, and follow it."""
    rng = np.random.default_rng(0)
    sounds = [soundfile.read(path, dtype="int16")[0] for path in sorted(source.rglob("*.wav"))[:40]]
    with tempfile.TemporaryDirectory() as folder:
        watch, out = Path(folder) / "watch", Path(folder) / "out"
        watch.mkdir()
        command = [sys.executable, "-m", "dns_jax.operation.monitor", f"--workdir={workdir}"]
        command += [f"--watch={watch}", f"--out={out}", f"--machine={machine}", "--no-page"]
        command += [f"--keep={keep}", f"--settle={SETTLED}"]
        monitor = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        began, written, memory, files = time.monotonic(), 0, {}, collections.deque()

        def count_lines():
            ledger = out / "ledger.jsonl"
            return ledger.read_bytes().count(b'"event": "scored"') if ledger.exists() else 0

        done = 0
        while done < count:
            while written < count and written - done < 60:
                sound = sounds[written % len(sounds)]
                noisy = sound + rng.normal(0, 0.02 * sound.std(), len(sound))
                path = watch / f"section_00_source_test_{written:06d}.wav"
                part = path.with_suffix(".part")
                with open(part, "wb") as file:
                    soundfile.write(file, noisy.astype(np.int16), RATE, "PCM_16", format="WAV")
                part.rename(path)
                files.append(path)
                written += 1
            time.sleep(1.0)
            if monitor.poll() is not None:
                raise SystemExit(f"the monitor ended with status {monitor.returncode}")
            done = count_lines()
            while len(files) > written - done + 5:  # those that were scored for certain
                files.popleft().unlink()
            tenth = 10 * done // count
            if tenth and tenth not in memory:
                memory[tenth] = read_memory(monitor.pid)
                print(f"{done:6d} recordings, {memory[tenth]:.0f} MiB", flush=True)
        seconds = time.monotonic() - began
        monitor.send_signal(signal.SIGTERM)
        status = monitor.wait(60)
        lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    names = collections.Counter(
        Path(line["path"]).name for line in lines if line["event"] == "scored"
    )
    lost = sum(f"section_00_source_test_{i:06d}.wav" not in names for i in range(count))
    doubled = sum(n > 1 for n in names.values())
    events = collections.Counter(line["event"] for line in lines)
    growth = memory[max(memory)] / memory[min(memory)] - 1
    print(
        f"{count} recordings in {seconds:.0f} s ({1e3 * seconds / count:.0f} ms each): {lost} "
        f"lost, {doubled} doubled, {dict(events)}; memory {growth:+.1%} after the first tenth; "
        f"status {status}"
    )


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("latency", "day"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--count", type=int, help="recordings; default: 100 or 8,640")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--machine", default="uav")
    parser.add_argument("--keep", type=int, default=500)
    args = parser.parse_args()
    if args.what == "latency":
        return measure_latency(args.rows, args.count or 100)
    if not args.workdir or not args.recordings:
        parser.error(
            "day needs --workdir=DIR of a finished run and --recordings=DIR of its machine"
        )
    measure_day(args.workdir, args.recordings, args.machine, args.count or 8640, args.keep)


if __name__ == "__main__":
    main()
