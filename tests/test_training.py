"""The training loop: OneCycle, AdamW, the best weights, and runs that are stopped and go on."""

import json
import math
import signal
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.experimental import multihost_utils

import dns_jax.programs
import dns_jax.training
from dns_jax import hosts
from dns_jax.data.batches import Plan
from dns_jax.feeding import Feed
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.one_cycle import one_cycle, one_cycle_adamw
from dns_jax.parallel import make_mesh, place
from dns_jax.programs import Task, make_program
from dns_jax.training import (
    Schedule,
    TrainingError,
    fit,
    init_state,
    make_train_step,
)

# OneCycle and AdamW


def one_cycle_lr(step, total, first, middle, last, share=0.3):
    """OneCycleLR with two cosine phases as PyTorch documents it, in float64."""
    phases = [(share * total - 1, first, middle), (total - 1, middle, last)]
    begin = 0.0
    for end, start_value, end_value in phases:
        if step <= end or end == total - 1:
            part = (step - begin) / (end - begin)
            return end_value + (start_value - end_value) / 2 * (1 + math.cos(math.pi * part))
        begin = end
    raise AssertionError


def evaluate(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)), np.float64)


@pytest.mark.parametrize("steps", [2, 3, 10, 1000, 12_000])
def test_the_learning_rate_is_that_of_one_cycle_lr_at_every_step(steps):
    got = evaluate(one_cycle(4e-5, 1e-3, 4e-9, steps), steps)
    expected = [one_cycle_lr(step, steps, 4e-5, 1e-3, 4e-9) for step in range(steps)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_rate_peaks_at_step_299_of_1000_and_ends_at_999():
    got = evaluate(one_cycle(4e-5, 1e-3, 4e-9, 1000), 1000)
    assert got.argmax() == 299
    np.testing.assert_array_equal(got[[0, 299, 999]], np.float32([4e-5, 1e-3, 4e-9]))
    assert (np.diff(got[:300]) > 0).all()
    assert (np.diff(got[299:]) < 0).all()


def test_a_single_step_has_the_last_rate():
    assert evaluate(one_cycle(4e-5, 1e-3, 4e-9, 1), 1) == np.float32(4e-9)


def adamw(gradients, peak, weight_decay):
    """AdamW under OneCycleLR with PyTorch's defaults, in float64: weights after every step."""
    total = len(gradients)
    weights, first, second = np.array([0.5, -2.0, 0.0]), np.zeros(3), np.zeros(3)
    rates, betas, path = [], [], []
    for step, gradient in enumerate(gradients):
        rate = one_cycle_lr(step, total, peak / 25, peak, peak / 25 / 1e4)
        beta1 = one_cycle_lr(step, total, 0.95, 0.85, 0.95)
        weights = weights * (1 - rate * weight_decay)
        first = beta1 * first + (1 - beta1) * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - beta1 ** (step + 1))
        deviation = np.sqrt(second) / np.sqrt(1 - 0.999 ** (step + 1)) + 1e-8
        weights = weights - rate * corrected / deviation
        rates.append(rate)
        betas.append(beta1)
        path.append(weights)
    return path, rates, betas


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_adamw_steps_and_beta1_against_the_rate(weight_decay):
    gradients = np.random.default_rng(0).standard_normal((10, 3)) * [1, 1e-3, 30]
    path, rates, betas = adamw(gradients, 0.1, weight_decay)
    assert rates[2] == 0.1  # at step 0.3 * 10 - 1
    assert betas[2] == 0.85

    optimizer = one_cycle_adamw(0.1, weight_decay, steps=10)
    update = jax.jit(optimizer.update)
    weights = jnp.array([0.5, -2.0, 0.0])
    state = optimizer.init(weights)
    for gradient, expected, rate, beta1 in zip(gradients, path, rates, betas, strict=True):
        updates, state = update(jnp.asarray(gradient, jnp.float32), state, weights)
        weights = optax.apply_updates(weights, updates)
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.hyperparams["learning_rate"], rate, rtol=1e-6)
        np.testing.assert_allclose(state.hyperparams["b1"], beta1, rtol=1e-6)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


# A network whose way is known: gradient descent adds 1 to `position` at every step


class Walker(nnx.Module):
    """Goes one further at every step and counts its steps as a statistic."""

    def __init__(self):
        self.position = nnx.Param(jnp.zeros(()))
        self.steps = nnx.BatchStat(jnp.zeros(()))

    def take_step(self):
        self.steps[...] += 1
        return -self.position[...]


class Run(NamedTuple):
    """What a run of `walk` leaves."""

    model: Walker
    metrics: list
    drawn: list


# Batches are the numbers of their rows, and what the labels say.
NUMBERS = Feed((), lambda rows, starts: np.float32(rows), lambda store, rows: rows)


def walk(
    directory,
    goal=None,
    *,
    epochs=5,
    steps_per_epoch=2,
    validate_every=1,
    loss=None,
    batches=None,
    model=None,
    looped=True,
):
    """Train a `Walker`; its validation loss is the squared distance to `goal`."""
    drawn = []

    def step_loss(model, batch, key, progress):
        return model.take_step() + batch[1][0]

    def validation_loss(model, batch):
        return (model.position[...] - goal) ** 2 + batch[1]

    def draw(first, count):
        steps = np.arange(first, first + count)
        drawn.extend(steps.tolist())
        values = np.zeros(count) if batches is None else np.array(batches)[steps]
        rows = np.repeat(steps[:, None], 3, axis=1)
        return Plan(rows, 0 * rows, (np.float32(values)[:, None].repeat(3, axis=1),))

    # The last row does not count.
    beside = np.array([[0, 0, 0], [0.5, 1.5, 1e6]], np.float32)[: 0 if goal is None else 2]
    rows = np.zeros(beside.shape, int)
    validation = Plan(rows, rows, (beside,))

    model = fit(
        model or Walker(),
        optax.sgd(1.0),
        Task(
            loss or step_loss,
            validation_loss,
            3,
            draw,
            validation,
            max(0, beside.size - 1),
            lambda mesh: (NUMBERS, NUMBERS),
            looped,
        ),
        Schedule(epochs, steps_per_epoch, validate_every, checkpoint_seconds=1e9),
        seed=0,
        directory=directory,
        name="fan seed 0 walker",
        progress=False,
        **tiny.on_one_device(parallel="mesh"),
    )
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return Run(model, [json.loads(line) for line in lines], drawn)


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path):
    run = walk(tmp_path, goal=6.4)  # positions 2, 4, 6, 8, 10 at the end of the epochs
    losses = [row["validation_loss"] for row in run.metrics]
    expected = [(position - 6.4) ** 2 + 0.4 for position in (2, 4, 6, 8, 10)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert run.model.position[...] == 6
    assert run.model.steps[...] == 6  # the statistics of the same moment


def test_validation_comes_every_few_epochs_and_after_the_last(tmp_path):
    run = walk(tmp_path, goal=20, validate_every=2)
    assert [row["epoch"] for row in run.metrics if "validation_loss" in row] == [2, 4, 5]
    assert run.model.position[...] == 10


def test_an_epoch_that_is_not_validated_cannot_be_the_best(tmp_path):
    assert walk(tmp_path, goal=6, validate_every=2).model.position[...] in (4, 8)


def test_without_validation_rows_the_last_weights_are_kept(tmp_path):
    run = walk(tmp_path)
    assert run.model.position[...] == 10
    assert run.model.steps[...] == 10
    assert run.metrics[-1]["validation_loss"] is None


def test_metrics_have_one_line_an_epoch_with_the_mean_loss_of_its_steps(tmp_path):
    run = walk(tmp_path, goal=0, epochs=3, batches=[1, 2, 10, 30, 5, 5])
    assert [(row["epoch"], row["step"]) for row in run.metrics] == [(1, 2), (2, 4), (3, 6)]
    # Less the position at which each step begins: 0 to 5.
    expected = [(1 + 2 - 1) / 2, (40 - 5) / 2, (10 - 9) / 2]
    np.testing.assert_allclose([row["loss"] for row in run.metrics], expected)


def test_batches_are_drawn_once_each_in_order(tmp_path):
    assert walk(tmp_path, goal=0).drawn == list(range(10))


def test_progress_runs_from_0_to_below_1(tmp_path):
    def loss(model, batch, key, progress):
        return -progress * model.position[...]

    run = walk(tmp_path, epochs=4, steps_per_epoch=1, loss=loss)
    np.testing.assert_allclose(run.model.position[...], 0 + 0.25 + 0.5 + 0.75)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_the_network_and_the_epoch(tmp_path, value):
    message = f"fan seed 0 walker: the loss is {value} in epoch 2.*learning_rate"
    with pytest.raises(TrainingError, match=message):
        walk(tmp_path, goal=0, batches=[0, 0, value, 0, 0, 0, 0, 0, 0, 0])


def test_the_callers_network_keeps_its_weights(tmp_path):
    model = Walker()
    trained = walk(tmp_path, model=model).model
    assert (model.position[...], model.steps[...]) == (0, 0)
    assert trained.position[...] == 10


@pytest.mark.parametrize("looped", [True, False])
def test_a_program_gives_up_the_state_it_gets_but_not_the_loss_it_returns(looped):
    model, optimizer, mesh = Walker(), optax.sgd(1.0), make_mesh(1)
    step = make_train_step(model, optimizer, lambda m, *_: m.take_step(), seed=0, steps=4)
    plan = Plan(np.zeros((1, 1), int), np.zeros((1, 1), int))
    task = Task(None, None, 1, lambda first, count: plan, plan, 1, None, looped)
    program = make_program(step, task, NUMBERS, 4, mesh, "mesh")
    state = init_state(model, optimizer)
    after, loss = program.run(state, program.prepare(0, 1), 0, 1)
    assert after.params["position"] == 1
    assert after.best_params["position"] == 0
    assert state.params["position"].is_deleted()
    assert model.position[...] == 0
    program.run(after, program.prepare(1, 1), 1, 1)
    assert after.loss_sum.is_deleted()
    assert loss == 0


# Stopped and started again


INITIAL = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32)


class Network(nnx.Module):
    """Something of everything that a checkpoint must hold."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.asarray(INITIAL))
        self.norm = BatchNorm(2)

    def __call__(self, x, train):
        return jnp.sum(self.norm(x @ self.kernel[...], train=train), axis=1)


class Stop(Exception):
    """A run that is stopped."""


EPOCHS, STEPS_PER_EPOCH = 3, 2
LAST = EPOCHS * STEPS_PER_EPOCH


DATA = np.random.default_rng(0).standard_normal((8 * (LAST + 2), 2)).astype(np.float32)


class Preempting(hosts.Preemption):
    """SIGTERM comes during the fourth program."""

    def reached(self):
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 4:
            signal.raise_signal(signal.SIGTERM)
        return super().reached()


def train(
    directory, stop_at=None, seed=0, devices=1, parallel="mesh", preemption=None, looped=True
):
    """Train a `Network`, with a checkpoint after every program, until `stop_at` steps are done.

    With `preemption` there is a checkpoint only when that comes.
    """
    counts = {"loss": 0, "validation_loss": 0, "draws": 0}

    def loss(model, batch, key, progress):
        counts["loss"] += 1
        (x,) = batch
        noise = jax.random.uniform(key)
        return jnp.mean((model(x, True) - 2 * x[:, 0] * (noise + progress)) ** 2)

    def validation_loss(model, batch):
        counts["validation_loss"] += 1
        (x,) = batch
        # Grows with the way from the initial weights: the first epoch is the best.
        way = jnp.sum((model.kernel[...] - INITIAL) ** 2)
        return way + 1e-4 * (model(x, False) - 2 * x[:, 0]) ** 2

    def plan(steps):
        rows = 8 * np.arange(steps.start, steps.stop)[:, None] + np.arange(8)
        return Plan(rows, 0 * rows)

    def draw(first, count):
        if stop_at in range(first, first + count):
            raise Stop
        counts["draws"] += count
        return plan(range(first, first + count))

    def open_feeds(mesh):
        held = place(mesh, DATA)
        feed = Feed(held, lambda rows, starts: np.int32(rows), lambda held, rows: held[rows])
        return feed, feed

    model = fit(
        Network(),
        one_cycle_adamw(0.1, 0.01, LAST),
        Task(
            loss,
            validation_loss,
            8,
            draw,
            plan(range(LAST, LAST + 2)),
            13,
            open_feeds,
            looped,
        ),
        Schedule(EPOCHS, STEPS_PER_EPOCH, 1, checkpoint_seconds=1e9 if preemption else 0.0),
        seed=seed,
        directory=directory,
        name="network",
        progress=False,
        mesh=make_mesh(devices),
        parallel=parallel,
        preemption=preemption or hosts.Preemption(),
    )
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model))), counts


def read_metrics(directory):
    return (directory / "metrics.jsonl").read_bytes()


@pytest.fixture(autouse=True)
def programs_of_one_step(monkeypatch):
    """However fast this machine is: a stop comes before the step that it names."""
    monkeypatch.setattr(dns_jax.programs, "choose_count", lambda *_: 1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Directory, weights and counts of a run that was never stopped."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    weights, counts = train(directory)
    losses = [json.loads(line)["validation_loss"] for line in read_metrics(directory).splitlines()]
    assert np.argmin(losses) == 0  # so the best weights lie before most stops
    return directory, weights, counts


def assert_same(directory, weights, uninterrupted):
    jax.tree.map(np.testing.assert_array_equal, weights, uninterrupted[1])
    assert read_metrics(directory) == read_metrics(uninterrupted[0])


def test_all_steps_share_one_trace(uninterrupted):
    assert uninterrupted[2] == {"loss": 1, "validation_loss": 1, "draws": LAST}


@pytest.mark.parametrize("stop_at", [1, 4], ids=["within_an_epoch", "after_an_epoch"])
def test_a_run_that_was_stopped_ends_at_the_same_weights(tmp_path, uninterrupted, stop_at, caplog):
    with pytest.raises(Stop):
        train(tmp_path, stop_at)
    with jax.log_compiles():
        weights, counts = train(tmp_path)
    assert counts == {"loss": 1, "validation_loss": 1, "draws": LAST - stop_at}
    assert_same(tmp_path, weights, uninterrupted)
    compiled = [r for r in caplog.messages if r.startswith("Compiling jit(take_steps)")]
    assert len(compiled) == 1


@pytest.mark.parametrize("looped", [True, False])
def test_however_steps_are_cut_into_programs_there_is_one_compilation_and_one_result(
    tmp_path, monkeypatch, caplog, looped
):
    runs, programs = {}, {}
    for most in (1, 2, 7):
        monkeypatch.setattr(
            dns_jax.programs, "choose_count", lambda *args, most=most: min(most, args[2])
        )
        programs[most] = []
        run = dns_jax.programs.Ahead.__next__

        def take(self, run=run, taken=programs[most]):
            program = run(self)
            taken.append(program[:2])
            return program

        caplog.clear()
        with monkeypatch.context() as patched, jax.log_compiles():
            patched.setattr(dns_jax.programs.Ahead, "__next__", take)
            runs[most] = walk(tmp_path / f"{most}", epochs=8, steps_per_epoch=5, looped=looped)
        compiled = [r for r in caplog.messages if r.startswith("Compiling jit(take_steps)")]
        assert len(compiled) == 1
    for taken in programs.values():
        assert [step for first, count in taken for step in range(first, first + count)] == [
            *range(40)
        ]
        assert all(first // 5 == (first + count - 1) // 5 for first, count in taken)
    longest = {most: max(count for _, count in programs[most]) for most in programs}
    assert longest == ({1: 1, 2: 2, 7: 5} if looped else {1: 1, 2: 1, 7: 1})
    for run in runs.values():
        assert run.model.position[...] == 40
        assert run.metrics == runs[1].metrics
        assert run.drawn == list(range(40))


@pytest.mark.parametrize("way", ["mesh", "pmap"])
@pytest.mark.parametrize(("first", "then"), [(8, 1), (1, 8)])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, uninterrupted, first, then, way):
    with pytest.raises(Stop):
        train(tmp_path, 3, devices=first, parallel=way)
    weights, counts = train(tmp_path, devices=then, parallel=way)
    assert counts["draws"] == LAST - 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), weights, uninterrupted[1]
    )


def test_checkpoints_do_not_ask_whether_to_stop(tmp_path, monkeypatch):
    """JAX keeps one count of the steps at which it was asked; `Preemption` is who asks."""
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: pytest.fail("asked")
    )
    train(tmp_path)


def test_a_run_that_is_asked_to_stop_saves_the_step_and_goes_on(tmp_path, uninterrupted):
    with Preempting().watch() as preemption, pytest.raises(hosts.Preempted):
        train(tmp_path, preemption=preemption)
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert kept == ["4"]
    assert len(read_metrics(tmp_path).splitlines()) == 2
    weights, counts = train(tmp_path)
    assert counts["draws"] == LAST - 4
    assert_same(tmp_path, weights, uninterrupted)


def test_a_run_may_be_stopped_after_every_step(tmp_path, uninterrupted):
    for stop_at in range(LAST):
        with pytest.raises(Stop):
            train(tmp_path, stop_at)
    weights, counts = train(tmp_path)
    assert counts["draws"] == 1
    assert_same(tmp_path, weights, uninterrupted)


def test_metrics_newer_than_the_checkpoint_are_written_anew(tmp_path, uninterrupted, monkeypatch):
    save = dns_jax.training.save

    def stop_at_the_end_of_epoch_2(checkpoints, step, state):
        if step == 2 * STEPS_PER_EPOCH:
            raise Stop
        save(checkpoints, step, state)

    with monkeypatch.context() as patched:
        patched.setattr(dns_jax.training, "save", stop_at_the_end_of_epoch_2)
        with pytest.raises(Stop):
            train(tmp_path)
    assert len(read_metrics(tmp_path).splitlines()) == 2
    weights, counts = train(tmp_path)
    assert counts["draws"] == LAST - 2 * STEPS_PER_EPOCH + 1
    assert_same(tmp_path, weights, uninterrupted)


def test_a_finished_run_trains_no_more(uninterrupted):
    weights, counts = train(uninterrupted[0])
    assert counts == {"loss": 0, "validation_loss": 0, "draws": 0}
    assert_same(uninterrupted[0], weights, uninterrupted)


def test_only_the_last_checkpoint_is_kept(uninterrupted):
    kept = [path.name for path in (uninterrupted[0] / "checkpoints").iterdir() if path.is_dir()]
    assert kept == [str(LAST)]


def test_the_random_key_depends_on_the_seed(tmp_path, uninterrupted):
    train(tmp_path, seed=1)
    assert read_metrics(tmp_path) != read_metrics(uninterrupted[0])
