"""See where the time of SerialOE's compiled programs goes.

    python benchmarks/profiles.py training B0 8
    python benchmarks/profiles.py inference B0 8

Divides a training step, or f_D of spectra, by kinds of work: of `benchmarks/training.py` and
`benchmarks/scoring.py`, with the same weights and inputs.
"""

import argparse
import gzip
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dns_jax.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the threads of JAX

import jax
import jax.numpy as jnp
import numpy as np
from scoring import lower_ours, prepare_ours
from side_by_side import THREADS
from training import NETWORKS, SEED, STEPS, make_serial_oe_step

from dns_jax.training import init_state, make_train_step


def compile_training(name: str, batch: int) -> tuple[str, Callable]:
    """Return the text of the compiled training step, and the call that takes the next step."""
    ours, optimizer, task, _, inputs = make_serial_oe_step(name, batch)
    step = make_train_step(ours, optimizer, task.loss, SEED, STEPS)
    state, number = init_state(ours, optimizer), 0
    compiled = jax.jit(step, donate_argnums=0).lower(state, inputs, np.int32(0)).compile()
    inputs = jax.tree.map(jnp.asarray, inputs)

    def call():
        nonlocal state, number
        state = jax.block_until_ready(compiled(state, inputs, np.int32(number)))
        number += 1

    return compiled.as_text(), call


def compile_inference(name: str, batch: int) -> tuple[str, Callable]:
    """Return the text of the compiled network, and the call that applies it."""
    compiled, state, inputs = lower_ours(*prepare_ours(name, batch))
    return compiled.as_text(), lambda: jax.block_until_ready(compiled(state, inputs))


WHAT = {"training": compile_training, "inference": compile_inference}


def profile(text: str, call: Callable, times: int) -> list[str]:
    """Return the Markdown table of the kinds of work of a compiled program, in ms a call."""
    for _ in range(3):
        call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            for _ in range(times):
                call()
            wall = 1e3 * (time.perf_counter() - began) / times
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    kinds, spent = name_kinds(text), Counter()
    for event in events:
        if kind := kinds.get(event.get("args", {}).get("hlo_op")):
            spent[kind] += event["dur"] / 1e3 / times
    lines = ["| kind of work | ms | of all |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {ms:.1f} | {ms / wall:.1%} |" for kind, ms in spent.most_common()]
    total = sum(spent.values())
    return [
        *lines,
        f"| all of these | {total:.1f} | {total / wall:.1%} |",
        f"| by the clock | {wall:.1f} | |",
    ]


def name_kinds(text: str) -> dict[str, str]:
    """Name the kind of work of every operation of a compiled program, by where it was written.

    Args:
      text: of the compiled program: tables of the source first, then computations.

    Returns:
      The kind of each operation of the entry computation. A fusion counts as what takes longest in
      it: a depthwise filter before what is done with each number on the way.
    """
    rows = {
        table: dict(re.findall(r"^(\d+) (.*)$", body, re.MULTILINE))
        for table, body in re.findall(r"^(\w+)\n((?:\d+ .*\n)+)", text, re.MULTILINE)
    }

    def trace(frame):  # names of the functions, from the innermost; parents are counted from 1
        names = []
        while frame > 0:
            place, parent = map(int, re.findall(r"=(\d+)", rows["StackFrames"][str(frame)]))
            function = re.search(r"function_name_id=(\d+)", rows["FileLocations"][str(place)])
            names.append(rows["FunctionNames"][function[1]].strip('"'))
            frame = parent - 1
        return names

    def name(line):
        metadata = re.search(r'op_name="([^"]*)"(?: stack_frame_id=(\d+))?', line)
        if not metadata or not metadata[2]:
            return None
        return _name_kind(metadata[1], trace(int(metadata[2])))

    computations, entry = {}, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = computations[head[2]] = []
            entry = lines if head[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    kinds = {}
    for line in entry:
        inside = [
            found
            for called in re.findall(r"calls=%?([\w.-]+)", line)
            for part in computations[called]
            if re.search(r" (multiply|dot|convolution|reduce)\(", part) and (found := name(part))
        ]
        filters = Counter(kind for kind in inside if kind.startswith("depthwise"))
        kind = name(line) or (Counter(inside).most_common(1) or [("rest", 0)])[0][0]
        if filters and filters.most_common(1)[0][1] >= 9:  # the taps of a filter
            kind = filters.most_common(1)[0][0]
        if " convolution(" in line:
            kind = "stem"
        kinds[re.search(r"%?([\w.-]+) = ", line)[1]] = kind
    return kinds


def _name_kind(operation, functions):
    back = "transpose(" in operation
    if "train_step" in functions and not any("objective" in name for name in functions):
        return "optimiser"
    if "SqueezeExcite.__call__" in functions:
        return "squeeze-excite"
    if "BatchNorm.__call__" in functions:
        return "batch norm, activation"
    if "DepthwiseConv.__call__" in functions:
        if not back and "_pad" in functions:
            return "normalise, activate, pad"
        if not back:
            return "depthwise, forward"
        # The padding of `_correlate` is jnp.pad's, and only it sums.
        by_kernel = re.search(r"jit\(_pad\)|reduce|concatenate|reshape|stack$", operation)
        return "depthwise, gradient by the " + ("kernel" if by_kernel else "input")
    if "_multiply" in functions:
        return "1 x 1, gradients" if back else "1 x 1, forward"
    return "stem" if "Conv.__call__" in functions else "rest"


def main() -> None:
    """Profile what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    print("\n".join(profile(*WHAT[args.what](args.network, args.batch), args.times)))
    print(f"SerialOE, {args.network}, {args.what}, {args.batch} spectra, {THREADS} threads")


if __name__ == "__main__":
    main()
