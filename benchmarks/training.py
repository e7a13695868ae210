"""Time a training step of both networks beside PyTorch.

    python benchmarks/training.py --out=docs/training_speed
    python benchmarks/training.py --waits

The C library keeps freed memory (`dns_jax.memory`) for both sides, and both have all cores that the
process may run on. float32; a step is forward, backward and update, from the same random weights.
SerialOE learns from spectra without front end and mix-up, dropout 0.3: EfficientNet-B0 on 224 mels
x 251 frames, the network of configs/small.py on 64 x 126. The autoencoder learns from the vectors
of 16 segments, and from recordings in memory: cut, standardise, log-mel, network. PyTorch has
channels last and fused optimisers; "compiled" is `torch.compile` of the network and the loss, which
for B0 in batches of 32 takes minutes and needs `--compiled`. The losses of the first steps are
compared before anything is timed. "products" are the matrix products of the autoencoder's step in
XLA and nothing else: in brackets the part of their rate that our step reaches.

`--waits` trains from recordings on disk and prints for how long programs waited for their batches.
`benchmarks/profiles.py` divides the time of SerialOE's step by kinds of work.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dns_jax.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # before the threads of JAX and PyTorch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import torch
import torch._inductor.config
from flax import nnx
from rivals import AutoencoderScore, draw_weights, load_weights, make_serial_oe
from side_by_side import OURS, THREADS, check_equal, report, time_in_turn

from configs import default, small
from dns_jax.data.batches import Plan
from dns_jax.data.waveforms import Waveforms
from dns_jax.feeding import Feed
from dns_jax.models.autoencoder import Autoencoder, reconstruction_loss
from dns_jax.models.serial_oe import SerialOE, serial_oe_loss
from dns_jax.one_cycle import one_cycle_adamw
from dns_jax.parallel import make_mesh, replicate
from dns_jax.programs import Ahead, Program, Task, make_program
from dns_jax.tasks import make_autoencoder_task, make_serial_oe_task
from dns_jax.training import TrainState, init_state, make_train_step

PRODUCTS, SEED, STEPS = 6, 0, 10_000
NETWORKS = {"B0": default, "small": small}
BATCHES = {"B0": (8, 32), "small": (8, 32), "autoencoder": ("vectors", "recordings")}
AT_ONCE = 20  # steps of the autoencoder that are timed together
TORCH, COMPILED, BOUND = "torch", "torch, compiled", "products"


def make_ours(
    network: nnx.Module, optimizer: optax.GradientTransformation, task: Task, feed: Feed, mesh
) -> tuple[Program, TrainState]:
    """Return the program that `fit` runs, and its first state."""
    step = make_train_step(network, optimizer, task.loss, SEED, STEPS, mesh)
    program = make_program(step, task, feed, STEPS, mesh, "mesh")
    return program, replicate(mesh, init_state(network, optimizer))


def step_ours(program: Program, state: TrainState, count: int) -> Callable:
    """Return the call that takes `count` steps and gives the sum of all losses so far."""
    first = 0

    def call():
        nonlocal state, first
        state, loss = program.run(state, program.prepare(first, count), first, count)
        first += count
        return loss.block_until_ready()

    return call


def step_torch(loss: Callable, optimizer: torch.optim.Optimizer, draw: Callable) -> Callable:
    """Return the call ``count -> sum of losses`` that takes `count` steps on what `draw` gives."""
    first = 0

    def call(count):
        nonlocal first
        losses = []
        for step in range(first, first + count):
            optimizer.zero_grad()
            value = loss(*draw(step))
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        first += count
        return sum(losses)

    return call


def make_task(loss: Callable, batch: int, draw: Callable, looped: bool) -> Task:
    """Describe a training that is never validated."""
    nothing = Plan(np.zeros((0, batch), int), np.zeros((0, batch), int))
    return Task(loss, loss, batch, draw, nothing, 0, lambda mesh: None, looped)


def make_serial_oe_step(name: str, batch: int):
    """Return our network, its optimiser, its task, its feed, spectra and labels."""
    config = NETWORKS[name].get_config().serial_oe
    ours = draw_weights(lambda: SerialOE(config, PRODUCTS, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shape = batch, ours.front_end.mels, ours.front_end.count_frames(64000)
    spectra = rng.gamma(2.0, size=shape).astype(np.float32)
    product = np.eye(PRODUCTS, dtype=np.float32)[np.arange(batch) % PRODUCTS]
    machine = (np.arange(batch) < batch // 2).astype(np.float32)
    product *= machine[:, None]

    def loss(model, batch, key, progress):  # `SerialOE` behind its front end
        spectra, machine, product = batch
        pooled = jnp.mean(model.backbone(spectra, train=True), (1, 2))
        pooled = model.dropout(pooled, deterministic=False, rngs=key)
        hidden = model.neck_norm(model.neck(pooled), train=True)
        features = model.embed(jnp.where(hidden > 0, hidden, model.slope[...] * hidden))
        return jnp.mean(serial_oe_loss(model, features, machine, product, config.product_weight))

    def draw(first, count):
        places = np.zeros((count, batch), int)
        labels = tuple(np.broadcast_to(x, (count, *x.shape)) for x in (machine, product))
        return Plan(places, places, labels)

    store = replicate(make_mesh(1), spectra)
    feed = Feed(store, lambda rows, starts: rows, lambda store, rows: store)
    optimizer = one_cycle_adamw(config.learning_rate, config.weight_decay, STEPS)
    task = make_task(loss, batch, draw, looped=False)
    return ours, optimizer, task, feed, (spectra, machine, product)


def prepare_serial_oe(name: str, batch: int, compiled: bool) -> dict[str, Callable]:
    """Return the call of every method, after the losses have been compared."""
    config = NETWORKS[name].get_config().serial_oe
    ours, optimizer, task, feed, (spectra, *labels) = make_serial_oe_step(name, batch)
    program, state = make_ours(ours, optimizer, task, feed, make_mesh(1))
    layout = {"memory_format": torch.channels_last}
    inputs = torch.from_numpy(spectra[:, None]).contiguous(**layout), *map(torch.tensor, labels)
    methods = {OURS: step_ours(program, state, 1)}
    rivals = {}
    for method in (TORCH, COMPILED) if compiled else (TORCH,):
        rival = make_serial_oe(config, PRODUCTS).train()
        load_weights(rival, ours)
        loss = partial(_serial_oe_loss, rival, config.product_weight)
        if method == COMPILED:
            loss = torch.compile(loss, dynamic=False)
        rates = {"lr": config.learning_rate / 25, "betas": (0.95, 0.999), "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(rival.parameters(), fused=True, **rates)
        call = step_torch(loss, optimizer, lambda step: inputs)
        methods[method], rivals[method] = partial(call, 1), rival
    # Both sides drop what we drop, then PyTorch's two forms what PyTorch drops.
    expected = [methods[OURS]() for _ in range(2)]
    pooled = np.ones((batch, rivals[TORCH].neck.in_features), np.float32)
    masks = [
        np.asarray(ours.dropout(pooled, deterministic=False, rngs=key))
        for key in (jax.random.fold_in(jax.random.key(SEED), step) for step in range(2))
    ]
    got = 0.0
    for mask, value in zip(masks, expected, strict=True):
        hook = rivals[TORCH].dropout.register_forward_hook(
            lambda layer, x, y, mask=mask: x[0] * torch.tensor(mask)
        )
        got += methods[TORCH]()
        hook.remove()
        check_equal(f"{name}, {batch}: {TORCH}", got, value, 1e-3)
    if compiled:
        load_weights(rivals[TORCH], ours)
        torch.manual_seed(SEED)
        value = methods[TORCH]()
        torch.manual_seed(SEED)
        check_equal(f"{name}, {batch}: {COMPILED}", methods[COMPILED](), value, 1e-3)
    return methods


def _serial_oe_loss(rival, weight, spectra, machine, product):
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    features = rival(spectra)
    by_machine = bce(rival.classify_machine(features), machine)
    return by_machine + weight * bce(rival.classify_product(features), product)


def prepare_autoencoder(form: str) -> dict[str, Callable]:
    """Return the call of every method, after the losses have been compared."""
    config, mesh = default.get_config(), make_mesh(1)
    settings = config.autoencoder
    ours = draw_weights(lambda: Autoencoder(settings, rngs=nnx.Rngs(0)))
    waveforms = make_recordings(64)
    clips = np.arange(64)
    task, _, optimizer = make_autoencoder_task(config, waveforms, clips, clips[:0], SEED)
    feed, _ = task.open_feeds(mesh)
    score = AutoencoderScore(settings, ours.front_end)
    stored = torch.from_numpy(np.stack([np.asarray(x) for x in waveforms.samples]))
    means, scales = (torch.tensor(x).float() for x in (waveforms.means, waveforms.scales))

    @torch.no_grad()
    def cut(step):
        rows, starts = (torch.from_numpy(x[0]) for x in task.draw(step, 1)[:2])
        pieces = [stored[row, at : at + 64000] for row, at in zip(rows, starts, strict=True)]
        centred = torch.stack(pieces).float().sub_(means[rows, None])
        return (score.extract(centred.mul_(scales[rows, None])),)

    draw = cut
    if form == "vectors":
        four = [cut(step)[0] for step in range(4)]
        task, feed = _store_vectors(np.stack(four), settings.batch, mesh)
        draw = lambda step: (four[step % 4],)  # noqa: E731
    program, state = make_ours(ours, optimizer, task, feed, mesh)
    methods = {OURS: step_ours(program, state, AT_ONCE)}
    expected = methods[OURS]()
    for method in (TORCH, COMPILED):
        rival = AutoencoderScore(settings, ours.front_end).autoencoder.train()
        load_weights(rival, ours)

        def loss(vectors, rival=rival):
            return torch.nn.functional.mse_loss(rival(vectors), vectors)

        loss = torch.compile(loss, dynamic=False) if method == COMPILED else loss
        optimizer = torch.optim.Adam(rival.parameters(), settings.learning_rate, fused=True)
        methods[method] = partial(step_torch(loss, optimizer, draw), AT_ONCE)
        check_equal(f"{form}: {method}", methods[method](), expected, 1e-3)
    if form == "vectors":
        methods[BOUND] = multiply_only(ours, four[0].numpy())
    return methods


def _store_vectors(vectors, batch, mesh):
    """The training on stored vectors f32[batches, rows, D], in turn."""

    def loss(model, batch, key, progress):
        return reconstruction_loss(*batch, model(*batch, train=True))

    def draw(first, count):
        rows = (first + np.arange(count)) % len(vectors)
        places = np.repeat(rows[:, None], batch, 1).astype(np.int32)
        return Plan(places, places)

    feed = Feed(
        replicate(mesh, vectors), lambda rows, starts: rows, lambda store, rows: store[rows[0]]
    )
    return make_task(loss, batch, draw, looped=True), feed


def multiply_only(ours: Autoencoder, vectors: np.ndarray) -> Callable:
    """Return the call of all products of a step: forward, by the inputs, by the weights.

    The first layer has no gradient by its input. That the weights move a little keeps the products
    from being computed once for all steps.
    """
    weights = [layer.kernel[...] for layer in ours.layers]

    def step(_, weights):
        inputs = [vectors]
        for weight in weights:
            inputs.append(inputs[-1] @ weight)
        cotangent, moved = inputs.pop(), []
        for weight, x in zip(weights[::-1], inputs[::-1], strict=True):
            moved.append(weight - 1e-12 * (x.T @ cotangent))
            cotangent = cotangent @ weight.T
        return moved[::-1]

    vectors = jnp.asarray(vectors)
    run = jax.jit(lambda weights, count: jax.lax.fori_loop(0, count, step, weights))
    return lambda: jax.block_until_ready(run(weights, AT_ONCE))


def make_recordings(clips: int, folder: Path | None = None) -> Waveforms:
    """Generate recordings of noise, 10 s of 16 bit each, in memory or in a file of `folder`."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 2000, (clips, 160_000)).astype(np.int16)
    if folder is not None:
        samples.tofile(folder / "recordings")
        samples = np.memmap(folder / "recordings", np.int16, "r", shape=samples.shape)
    return Waveforms(
        lengths=np.full(clips, 160_000),
        digests=np.full(clips, ""),
        means=samples.mean(1, np.float64),
        scales=1 / samples.std(1, dtype=np.float64),
        machines=np.arange(clips),
        offsets=np.zeros(clips, int),
        samples=tuple(samples),
    )


def measure_waits(name: str, epochs: int, per_epoch: int) -> str:
    """Train from recordings on disk as `fit` does, and return for how long it waited."""
    config, mesh = small.get_config(), make_mesh(1)
    config.data.device_gigabytes = 0.0
    clips, nothing = np.arange(128), np.arange(0)
    with tempfile.TemporaryDirectory() as folder:
        waveforms = make_recordings(len(clips), Path(folder))
        if name == "autoencoder":
            network = draw_weights(lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)))
            task, _, optimizer = make_autoencoder_task(config, waveforms, clips, nothing, SEED)
        else:
            network = draw_weights(lambda: SerialOE(config.serial_oe, PRODUCTS, rngs=nnx.Rngs(0)))
            products = np.where(clips < 64, clips % PRODUCTS, -1)
            halves = clips[:64], clips[64:]
            task, _, optimizer = make_serial_oe_task(
                config, waveforms, products, clips < 0, halves, (nothing, nothing), SEED
            )
        feed, _ = task.open_feeds(mesh)
        step = make_train_step(network, optimizer, task.loss, SEED, STEPS, mesh)
        program = make_program(step, task, feed, per_epoch, mesh, "mesh")
        state = replicate(mesh, init_state(network, optimizer))
        state, _ = program.run(state, program.prepare(0, 1), 0, 1)  # compiled before
        jax.block_until_ready(state)
        return _follow(name, program, state, epochs * per_epoch, per_epoch)


def _follow(name, program, state, steps, per_epoch):
    before, programs = None, 0
    with Ahead(program, 0, steps, per_epoch) as ahead:
        began = time.monotonic()
        for first, count, batches in ahead:
            state, loss = program.run(state, batches, first, count)
            jax.block_until_ready(before)
            ahead.pace(first)
            before, programs = loss, programs + 1
        jax.block_until_ready(loss)
        total = time.monotonic() - began
    return (
        f"{name}: {steps} steps in {programs} programs, {1e3 * total / steps:.1f} ms a step; "
        f"waited {ahead.waited:.3f} s of {total:.2f} s: {ahead.waited / total:.1%}"
    )


def measure(network: str, batch: int | str, compiled: bool, turns: int) -> dict[str, float]:
    """Return the median seconds a step of every method."""
    if network == "autoencoder":
        seconds = time_in_turn(prepare_autoencoder(batch), turns)
        return {name: value / AT_ONCE for name, value in seconds.items()}
    methods = prepare_serial_oe(network, batch, compiled or (network, batch) != ("B0", 32))
    return time_in_turn(methods, turns, calls=1 if network == "B0" else 3)


def main() -> None:
    """Measure steps or waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of SerialOE's own")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--out", type=Path, help="table and figure, no ending")
    parser.add_argument("--waits", action="store_true")
    args = parser.parse_args()
    if args.waits:
        print(measure_waits("autoencoder", 10, 40))
        return print(measure_waits("SerialOE, small", 5, 8))
    if args.out is None:
        parser.error("--out names the table and the figure, without an ending; or give --waits")
    torch.set_num_threads(THREADS)
    torch._inductor.config.fallback_random = True  # the dropout of both forms is the same
    logging.getLogger("torch").setLevel(logging.ERROR)
    records = []
    for network in args.networks:
        own = BATCHES[network]
        for batch in own if network == "autoencoder" else args.batches or own:
            seconds = measure(network, batch, args.compiled, args.turns)
            records.append({"network": network, "batch": batch, **seconds})
    table = pd.DataFrame(records)
    report(table, ["network", "batch"], ("jax", "torch"), args.out, BOUND)


if __name__ == "__main__":
    main()
