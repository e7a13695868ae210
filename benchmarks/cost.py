"""What the paper costs: work, memory traffic and memory of every step, hours, and growth.

    python benchmarks/cost.py counts
    python benchmarks/cost.py hours
    python benchmarks/cost.py growth

`counts` compiles the training step of both networks and the scoring of a batch for the CPU without
running them, and prints what XLA counts: work and traffic of the CPU's program, and of the form for
accelerators before XLA has optimised it, in float32 and bfloat16; then EfficientNet-B0 counted by
hand. `hours` multiplies by the steps of the whole paper and divides by the speed of `DEVICES`.
`growth` times what grows with the number of recordings, on synthetic noise. Only it measures.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import soundfile
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import default, small
from dns_jax import smooth, tasks, training
from dns_jax.data.batches import count_steps
from dns_jax.data.waveforms import Waveforms, open_waveforms
from dns_jax.hosts import Preemption
from dns_jax.models.autoencoder import Autoencoder, score_segments
from dns_jax.models.efficientnet import EfficientNet, Stage
from dns_jax.models.serial_oe import SerialOE
from dns_jax.parallel import make_mesh
from dns_jax.scoring import score_segments as score_recordings

PRODUCTS = 6
TARGETS = 3  # training recordings of a section from the changed factory
SOURCES = [[1000] * PRODUCTS] * 6 + [[1001, 1008, 1008, 1005, 1092, 1008]]  # the last is gearbox
TESTS = [2400] * 5 + [2421, 2835]  # recordings of all sections; slider and gearbox have more
WINDOWS = 7  # of a recording
PASSES = 14  # over the output of a convolution in a training step, see docs/cost.md
WORK = "fusion|dot|convolution|custom-call|reduce|fft|sort|call|gather|scatter|while"
CLIPS = (50, 100, 200, 400)
MEASURED = {"autoencoder": 0.020, "SerialOE": 4 * 1.48}  # s a step on 2 cores


class Device(NamedTuple):
    """What is assumed of an accelerator."""

    peak: float  # TFLOP/s
    share: float  # of it that is sustained
    bandwidth: float  # GB/s, peak
    reached: float  # share of it
    launch: float  # us between two kernels
    activation: int  # bytes


DEVICES = {
    "H100, TF32": Device(495, 0.2, 3350, 0.7, 4, 4),
    "H100, bfloat16": Device(989, 0.2, 3350, 0.7, 4, 2),
    "v5e, float32": Device(197, 0.2, 819, 0.7, 2, 4),
    "v5e, bfloat16": Device(197, 0.2, 819, 0.7, 2, 2),
}
CORES, KEPT = 16, 0.6  # cores of the CPU, share of their speed that is kept beside two cores


def describe(shape: tuple, dtype=np.float32) -> jax.ShapeDtypeStruct:
    """Describe an array that is never made."""
    return jax.ShapeDtypeStruct(shape, dtype)


def trace(what: str, precision: str) -> jax.stages.Traced:
    """Trace a program of the paper: "autoencoder", "SerialOE" (a step) or "scoring" (a batch)."""
    config = default.get_config()
    config.precision = precision
    samples = round(config.data.rate * config.data.segment_seconds)

    def build(name):
        rngs = nnx.Rngs(0)
        if name == "autoencoder":
            return Autoencoder(config.autoencoder, rngs=rngs)
        return SerialOE(config.serial_oe, PRODUCTS, rngs=rngs)

    if what == "scoring":
        networks = nnx.eval_shape(lambda: (build("autoencoder"), build("SerialOE")))
        graph, state = nnx.split(networks)

        def score(state, segments):
            autoencoder, serial_oe = nnx.merge(graph, state)
            return score_segments(autoencoder, segments), serial_oe(segments, train=False)

        return jax.jit(score).trace(state, describe((config.scoring_batch, samples)))
    some = np.arange(3)
    if what == "autoencoder":
        batch, labels = config.autoencoder.batch, ()
        task, _, optimizer = tasks.make_autoencoder_task(config, None, some, some, 0)
    else:
        batch = config.serial_oe.batch
        labels = describe((batch,)), describe((batch, PRODUCTS))
        rows = some, some
        task, _, optimizer = tasks.make_serial_oe_task(
            config, None, some % PRODUCTS, some < 0, rows, rows, 0
        )
    state = jax.eval_shape(lambda: training.init_state(build(what), optimizer))
    model = nnx.eval_shape(lambda: build(what))
    step = training.make_train_step(model, optimizer, task.loss, 0, 100)
    given = describe((batch, samples)), *labels
    return jax.jit(step, donate_argnums=0).trace(state, given, describe((), np.int32))


def count(what: str) -> dict[str, float]:
    """Count a program.

    Returns:
      flops, bytes (accessed), temporary (bytes), kernels: of the CPU's program in float32;
      "float32 flops", "float32 bytes", "bfloat16 flops", "bfloat16 bytes": of the form for
      accelerators, not optimised.
    """
    traced = trace(what, "float32")
    compiled = traced.lower().compile()
    cost = compiled.cost_analysis()
    entry = compiled.as_text().split("\nENTRY")[1]
    counts = {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": len(re.findall(rf" = .*? (?:{WORK})\(", entry)),
    }
    for precision in ("float32", "bfloat16"):
        traced = traced if precision == "float32" else trace(what, precision)
        cost = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
        counts |= {
            f"{precision} flops": cost["flops"],
            f"{precision} bytes": cost["bytes accessed"],
        }
    return counts


def count_by_hand(mels: int, frames: int, inputs: int) -> tuple[int, int, int]:
    """Count EfficientNet-B0 without its classifier.

    Args:
      mels: height of the input.
      frames: its width.
      inputs: its channels, 1 for a spectrum and 3 for an image.

    Returns:
      multiplications of one input, outputs of its convolutions, parameters.
    """
    backbone = default.get_config().serial_oe.backbone
    macs = outputs = parameters = 0

    def convolve(size, kernel, fan_in, channels):
        nonlocal macs, outputs, parameters
        weights = kernel * kernel * fan_in * channels
        macs += int(np.prod(size)) * weights
        outputs += int(np.prod(size)) * channels
        parameters += weights + 2 * channels  # scale and bias of the norm behind it

    size, channels = (-(-mels // 2), -(-frames // 2)), backbone.stem
    convolve(size, 3, inputs, channels)
    for stage in (Stage(*row) for row in backbone.stages):
        for i in range(stage.repeats):
            middle, reduced = stage.expand * channels, channels // 4
            if stage.expand > 1:
                convolve(size, 1, channels, middle)
            size = tuple(-(-n // stage.stride) for n in size) if i == 0 else size
            convolve(size, stage.kernel, 1, middle)
            macs += 2 * middle * reduced
            parameters += 2 * middle * reduced + middle + reduced
            channels = stage.channels
            convolve(size, 1, middle, channels)
    convolve(size, 1, channels, backbone.head)
    return macs, outputs, parameters


def count_run(config) -> dict[str, list[int]]:
    """Return how often each program runs for each of the seven machines."""
    runs = {"autoencoder": [], "SerialOE": [], "scoring": []}
    for sources, tests in zip(SOURCES, TESTS, strict=True):
        train = sum(int(round(n * config.data.train_share, 6)) + TARGETS - 1 for n in sources)
        recordings = sum(sources) + TARGETS * len(sources) + tests
        ae, oe = config.autoencoder, config.serial_oe
        runs["autoencoder"].append(ae.epochs * count_steps(train, ae.batch))
        runs["SerialOE"].append(oe.epochs * count_steps(train, oe.batch // 2))
        runs["scoring"].append(count_steps(WINDOWS * recordings, config.scoring_batch))
    return runs


def count_traffic() -> float:
    """Return the bytes of a step of SerialOE by hand, in float32."""
    config = default.get_config().serial_oe
    return PASSES * 4 * config.batch * count_by_hand(224, 251, 1)[1]


def print_counts() -> None:
    """Print what a step costs."""
    print("program      | GFLOP  | GB    | GB temporary | kernels | accelerators' form: GFLOP, GB "
          "| in bfloat16")  # fmt: skip
    for what in ("autoencoder", "SerialOE", "scoring"):
        c = count(what)
        forms = [
            f"{c[f'{precision} flops'] / 1e9:.2f}, {c[f'{precision} bytes'] / 1e9:.2f}"
            for precision in ("float32", "bfloat16")
        ]
        print(f"{what:12} | {c['flops'] / 1e9:.2f} | {c['bytes'] / 1e9:.2f} | "
              f"{c['temporary'] / 1e9:.2f} | {c['kernels']} | {' | '.join(forms)}")  # fmt: skip
    for mels, frames, inputs in ((224, 224, 3), (224, 251, 1)):
        macs, outputs, parameters = count_by_hand(mels, frames, inputs)
        print(f"by hand, {mels} x {frames} x {inputs}: {macs / 1e9:.3f} GMAC, {outputs / 1e6:.2f} "
              f"million outputs, {parameters:,} parameters")  # fmt: skip
    backbone = default.get_config().serial_oe.backbone
    built = nnx.eval_shape(lambda: EfficientNet(backbone, rngs=nnx.Rngs(0)))
    held = sum(x.size for x in jax.tree.leaves(nnx.state(built, nnx.Param)))
    print(f"the network holds {held:,} parameters")
    print(f"by hand a step moves {count_traffic() / 1e9:.1f} GB")


def time_step(counts: dict, device: Device, traffic: float) -> tuple[float, float, float]:
    """Return the seconds of work, of `traffic` in float32 bytes, and of starting the kernels."""
    work = counts["float32 flops"] / (device.peak * 1e12 * device.share)
    moved = traffic * device.activation / 4
    return (
        work,
        moved / (device.bandwidth * 1e9 * device.reached),
        counts["kernels"] * device.launch * 1e-6,
    )


def print_hours() -> None:
    """Print the steps of the paper and the hours they take on paper."""
    config = default.get_config()
    runs, counts = count_run(config), {}
    for what, times in runs.items():
        counts[what] = count(what)
        work = sum(times) * counts[what]["float32 flops"]
        print(f"{what}: {times[0]:,} a machine, {sum(times):,} in all, {work / 1e15:.2f} PFLOP")
    rows = TESTS[0] // PRODUCTS * WINDOWS
    smoothing = len(TESTS) * PRODUCTS * 2 * rows**2 * config.serial_oe.feature
    print(f"smoothing: {smoothing / 1e15:.6f} PFLOP, one product a section")
    most = {what: counts[what]["bytes"] for what in runs}
    for name, device in DEVICES.items():
        for bound, traffic in (("least", most | {"SerialOE": count_traffic()}), ("most", most)):
            hours = {}
            for what, times in runs.items():
                parts = time_step(counts[what], device, traffic[what])
                hours[what] = max(parts) * sum(times) / 3600
                shown = ", ".join(f"{1e3 * part:.2f}" for part in parts)
                print(f"{name}, {bound} traffic, {what}: {shown} ms of work, traffic, kernels")
            print_total(f"{name}, {bound} traffic", hours)
    share = counts["scoring"]["flops"] / counts["SerialOE"]["flops"]
    seconds = MEASURED | {"scoring": share * MEASURED["SerialOE"]}
    for cores, faster in ((2, 1), (CORES, CORES / 2 * KEPT)):
        hours = {what: sum(runs[what]) * seconds[what] / faster / 3600 for what in runs}
        print_total(f"CPU, {cores} cores", hours)


def print_total(name: str, hours: dict[str, float]) -> None:
    """Print the hours of seven machines one after another, and of one."""
    total, each = sum(hours.values()), ", ".join(f"{what} {h:.2f}" for what, h in hours.items())
    print(f"{name}: {total:.1f} h ({each}), {total / len(TESTS):.2f} h a machine")


class Clock(Preemption):
    """Notes when the first batch is under way: the program is compiled by then."""

    began = None

    def stop_if_reached(self) -> None:
        """Note the time, once."""
        self.began = self.began or time.perf_counter()


def time_decoding(clips: pd.DataFrame) -> tuple[float, Waveforms]:
    """Decode recordings into a cache of their own; return the seconds and the waveforms."""
    cache = tempfile.mkdtemp(dir=Path(clips["path"].iloc[0]).parent)
    began = time.perf_counter()
    waveforms = open_waveforms(clips, cache)[0]
    return time.perf_counter() - began, waveforms


def time_scoring(networks: tuple, clips: pd.DataFrame, waveforms, config) -> tuple:
    """Score all windows; return the seconds without compilation, and the segments."""
    clock = Clock()
    segments = score_recordings(
        *networks, clips, waveforms, config, mesh=make_mesh(1), preemption=clock, name="noise"
    )
    return time.perf_counter() - clock.began, segments


def time_smoothing(scores: np.ndarray, features: np.ndarray, k: int) -> float:
    """Return the median seconds of five smoothings."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        np.asarray(smooth(scores, features, k))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def measure_growth(turns: int = 3) -> None:
    """Print the least seconds of every stage of three turns, and the exponents of growth."""
    config = small.get_config()
    config.progress = False
    networks = (
        Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)),
        SerialOE(config.serial_oe, 1, rngs=nnx.Rngs(1)),
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.wav" for number in range(max(CLIPS))]
        for path in paths:
            noise = rng.standard_normal(160_000, np.float32)
            soundfile.write(path, 0.1 * noise, 16_000, subtype="PCM_16")
        clips = pd.DataFrame({"machine": "noise", "path": paths, "clip": paths, "split": "test"})
        clips = clips.assign(section=0, domain="source", label=0)
        rows = []
        for number in CLIPS:
            some, best = clips.iloc[:number], []
            for _ in range(turns):
                decoding, waveforms = time_decoding(some)
                scoring, segments = time_scoring(networks, some, waveforms, config)
                k = 2 ** int(np.log2(len(segments.start)))
                smoothing = time_smoothing(segments.ae_score, segments.feature, k)
                best.append((decoding, scoring, smoothing))
            seconds = np.min(best, axis=0)
            rows.append([*seconds, seconds.sum()])
            shown = "  ".join(f"{value:.4f}" for value in rows[-1])
            what = f"{number} recordings, {len(segments.start)} windows, K = {k}"
            print(f"{what}: {shown}", flush=True)
    stages = "decoding", "scoring", "smoothing", "sum"
    for stage, times in zip(stages, zip(*rows, strict=True), strict=True):
        exponent = np.polyfit(np.log(CLIPS), np.log(times), 1)[0]
        print(f"{stage}: N^{exponent:.2f}, {times[-1] / times[0]:.2f} times as long for 8 times N")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["counts", "hours", "growth"])
    args = parser.parse_args()
    {"counts": print_counts, "hours": print_hours, "growth": measure_growth}[args.what]()


if __name__ == "__main__":
    main()
