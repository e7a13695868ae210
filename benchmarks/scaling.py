r"""Several devices: the same losses as one, and what scaling costs on paper.

python benchmarks/scaling.py curves --out=docs/scaling.png
python benchmarks/scaling.py costs

`curves` runs the demo on 1, 2 and 8 virtual devices of the CPU and by two processes, and draws the
losses of both networks. `costs` compiles a training step of the paper's SerialOE (EfficientNet-B0,
4-s segments) for 8, 64 and 512 devices without running it, and prints what XLA's cost analysis
counts on each device beside the bytes that its collective operations move.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORKS = {"ae": "autoencoder", "serial_oe": "SerialOE"}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "c64": 8, "pred": 1}


def run_demo(workdir: Path, devices: int, processes: int) -> None:
    """Run the demo on `devices` virtual devices, equally many in each process."""
    command = [sys.executable, "-m", "dns_jax.main", "--config=configs/demo.py"]
    command += [f"--workdir={workdir}"] + ["--distributed"] * (processes > 1)
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    cluster = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost"}
    running = []
    for process in range(processes):
        place = {"SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)}
        more = cluster | place | {"SLURM_NTASKS": str(processes)} if processes > 1 else {}
        running.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | own | more))
    if any([process.wait() for process in running]):
        raise SystemExit(f"{workdir.name} failed")


def draw_curves(out: Path) -> None:
    """Run the demo four times and draw the losses of every epoch on each other."""
    import matplotlib.pyplot as plt

    runs = {"1 device": (1, 1), "2 devices": (2, 1), "8 devices": (8, 1), "2 processes": (2, 2)}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for width, (name, (devices, processes)) in zip((9, 6, 3.5, 1.2), runs.items(), strict=True):
            workdir = Path(folder) / name.replace(" ", "_")
            run_demo(workdir, devices, processes)
            for axis, (network, title) in zip(axes, NETWORKS.items(), strict=True):
                lines = (workdir / f"blower/seed_0/{network}/metrics.jsonl").read_text()
                rows = [json.loads(line) for line in lines.splitlines()]
                for kind, colours in (("loss", plt.cm.Blues), ("validation_loss", plt.cm.Oranges)):
                    found = [(row["epoch"], row[kind]) for row in rows if kind in row]
                    shade = colours(0.25 + 0.2 * list(runs).index(name))
                    label = f"{name}, {kind.replace('_', ' ')}"
                    axis.plot(*zip(*found, strict=True), linewidth=width, color=shade, label=label)
                    print(f"{title}, {label}: {found[0][1]:.8g} ... {found[-1][1]:.8g}", flush=True)
                axis.set(title=title, xlabel="epoch", ylabel="loss", yscale="log")
            print((workdir / "table2.csv").read_text(), flush=True)
    axes[1].legend(fontsize=8)
    figure.savefig(out, dpi=110)


def count_costs(devices: int, rows: int) -> dict:
    """Compile a step for `devices` devices with `rows` of the batch on each.

    Returns:
      flops: of one device; sent: {kind of collective: (how many, bytes of their results)}.
    """
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from configs import default
    from dns_jax import tasks, training
    from dns_jax.models.serial_oe import SerialOE
    from dns_jax.parallel import AXIS, make_mesh

    config, mesh = default.get_config(), make_mesh()
    assert mesh.size == devices
    config.serial_oe.batch = batch = devices * rows
    some = np.arange(3)
    task, _, optimizer = tasks.make_serial_oe_task(
        config, None, some % 3, some < 0, (some, some), (some, some), 0
    )

    def build():
        return SerialOE(config.serial_oe, 3, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(build)
    step = training.make_train_step(model, optimizer, task.loss, 0, 100, mesh)

    def describe(spec):
        sharding = NamedSharding(mesh, spec)
        return lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(lambda: training.init_state(build(), optimizer))
    segments = round(config.data.rate * config.data.segment_seconds)
    shapes = [(batch, segments), (batch,), (batch, 3)]
    given = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    state, given = jax.tree.map(describe(P()), state), jax.tree.map(describe(P(AXIS)), tuple(given))
    step = jax.jit(step, donate_argnums=0, out_shardings=NamedSharding(mesh, P()))
    compiled = step.lower(state, given, np.int32(0)).compile()
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    number, size = Counter(), Counter()
    for shapes, kind in re.findall(rf"= (\S.*?) ({kinds})(?:-start)?\(", compiled.as_text()):
        number[kind] += 1
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size[kind] += BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
    return {
        "flops": compiled.cost_analysis()["flops"],
        "sent": {kind: (number[kind], size[kind]) for kind in number},
    }


def print_costs() -> None:
    """Print the costs for 8, 64 and 512 devices, each from a process that has so many."""
    print("devices  rows/device  batch  GFLOP/device  all-reduces  MB reduced  MB gathered")
    for devices, rows in ((8, 16), (64, 2), (64, 16), (512, 16)):
        found = subprocess.run(
            [sys.executable, __file__, "cost", f"--devices={devices}", f"--rows={rows}"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        cost = json.loads(found.stdout)
        (number, reduced), (_, gathered) = cost["sent"]["all-reduce"], cost["sent"]["all-gather"]
        print(
            f"{devices:7}  {rows:11}  {devices * rows:5}  {cost['flops'] / 1e9:12.1f}  "
            f"{number:11}  {reduced / 1e6:10.1f}  {gathered / 1e6:11.1f}",
            flush=True,
        )


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["curves", "costs", "cost"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rows", type=int)
    args = parser.parse_args()
    if args.what == "curves":
        draw_curves(args.out)
    elif args.what == "costs":
        print_costs()
    else:
        print(json.dumps(count_costs(args.devices, args.rows)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
