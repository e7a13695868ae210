"""The training loop: OneCycle, AdamW, the best weights, and runs that are stopped and go on."""

import json
import math
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.experimental import multihost_utils

import dns_jax.training
from dns_jax import hosts
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.one_cycle import one_cycle, one_cycle_adamw
from dns_jax.parallel import compile_step, make_mesh
from dns_jax.training import (
    Schedule,
    Task,
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
):
    """Train a `Walker`; its validation loss is the squared distance to `goal`."""
    drawn = []

    def step_loss(model, batch, key, progress):
        return model.take_step() + batch[0]

    def validation_loss(model, rows):
        return (model.position[...] - goal) ** 2 + rows

    def draw_batch(step, part):
        drawn.append(step)
        return np.float32([batches[step] if batches is not None else 0])

    def validation_batches(part):
        if goal is not None:  # the third row of the second batch does not count
            yield np.zeros(3, np.float32), 3
            yield np.array([0.5, 1.5, 1e6], np.float32), 2

    model = fit(
        model or Walker(),
        optax.sgd(1.0),
        Task(loss or step_loss, validation_loss, 1, draw_batch, validation_batches),
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


def test_a_step_gives_up_the_state_it_gets():
    model = Walker()
    optimizer = optax.sgd(1.0)
    step = make_train_step(model, optimizer, lambda m, *_: m.take_step(), seed=0, steps=2)
    state = init_state(model, optimizer)
    after = compile_step(step, make_mesh(1), "mesh")(state, None, 0)
    assert after.params["position"] == 1
    assert after.best_params["position"] == 0
    assert state.params["position"].is_deleted()
    assert model.position[...] == 0


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


def train(directory, stop_at=None, seed=0, devices=1, parallel="mesh", preemption=None):
    """Train a `Network`, with a checkpoint after every step, until `stop_at` steps are done.

    With `preemption` SIGTERM comes during the fourth step, and only then there is a checkpoint.
    """
    counts = {"loss": 0, "validation_loss": 0, "draws": 0}

    def loss(model, batch, key, progress):
        counts["loss"] += 1
        x, y = batch
        noise = jax.random.uniform(key)
        return jnp.mean((model(x, True) - y * (noise + progress)) ** 2)

    def validation_loss(model, batch):
        counts["validation_loss"] += 1
        # Grows with the way from the initial weights: the first epoch is the best.
        way = jnp.sum((model.kernel[...] - INITIAL) ** 2)
        return way + 1e-4 * (model(batch[0], False) - batch[1]) ** 2

    def draw(step):
        x = np.random.default_rng(step).standard_normal((8, 2)).astype(np.float32)
        return x, 2 * x[:, 0]

    def draw_batch(step, part):
        if step == stop_at:
            raise Stop
        if preemption and step == 3:
            signal.raise_signal(signal.SIGTERM)
        counts["draws"] += 1
        return draw(step)

    def validation_batches(part):
        yield draw(1000), 8
        yield draw(1001), 5

    model = fit(
        Network(),
        one_cycle_adamw(0.1, 0.01, LAST),
        Task(loss, validation_loss, 8, draw_batch, validation_batches),
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
    compiled = [r for r in caplog.messages if r.startswith("Compiling jit(train_step)")]
    assert len(compiled) == 1


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
    with hosts.Preemption().watch() as preemption, pytest.raises(hosts.Preempted):
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
