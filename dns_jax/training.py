"""The training loop of both networks: one jitted step, validation, the best weights, resumption.

Everything that a step uses follows from (seed, step), and everything that it leaves is in
`TrainState`, so a run that is stopped anywhere and started again ends at the same weights, on
however many devices.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from dns_jax.checkpoint import open_checkpoints, restore_latest, save
from dns_jax.data.refusals import reading
from dns_jax.files import write_text
from dns_jax.hosts import Preempted, Preemption, agree, is_first
from dns_jax.models.spread import average
from dns_jax.parallel import AXIS, compile_step, map_rows, own_rows, replicate


class TrainingError(ValueError):
    """Training cannot go on; the message says why."""


class TrainState(NamedTuple):
    """All that a checkpoint holds; dictionaries of arrays under the names of the modules."""

    params: Any
    statistics: Any  # running means and variances of the batch norms
    optimizer: optax.OptState
    best_params: Any  # at the lowest validation loss so far
    best_statistics: Any
    best_loss: jax.Array
    loss_sum: jax.Array  # of the steps since the epoch began


class Schedule(NamedTuple):
    """How long a network is trained and how often it is looked at."""

    epochs: int
    steps_per_epoch: int
    validate_every: int  # epochs
    checkpoint_seconds: float


class Task(NamedTuple):
    """What a network learns.

    `loss(model, batch, key, progress)` is the scalar to minimise, with progress in [0, 1);
    `validation_loss(model, batch)` gives f32[rows], without randomness; `draw_batch(step, part)`
    the rows `part` (a slice) of a batch of `batch` rows; `validation_batches(part)` pairs (those
    rows of a batch, number of the whole batch's rows that count).
    """

    loss: Callable[..., jax.Array]
    validation_loss: Callable[..., jax.Array]
    batch: int
    draw_batch: Callable[[int, slice], Any]
    validation_batches: Callable[[slice], Iterator[tuple[Any, int]]]


def init_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    # Copies: a step gives up the state it gets, and the caller keeps the model.
    params, best_params, statistics, best_statistics = (
        jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, kind)))
        for kind in (nnx.Param, nnx.Param, nnx.BatchStat, nnx.BatchStat)
    )
    return TrainState(
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        best_params=best_params,
        best_statistics=best_statistics,
        best_loss=jnp.full((), jnp.inf, jnp.float32),
        loss_sum=jnp.zeros(()),
    )


def make_train_step(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    loss: Callable[..., jax.Array],
    seed: int,
    steps: int,
    spread: Mesh | str | None = None,
) -> Callable[[TrainState, Any, jax.Array], TrainState]:
    """Return one step of `loss`: ``(state, batch, step) -> state``, to be compiled.

    Args:
      model: the network.
      optimizer: an optax transformation.
      loss: of a `Task`.
      seed: of dropout and augmentation.
      steps: of the whole training.
      spread: how the rows of the batch lie on devices, as in `dns_jax.models.spread`.
    """
    model = nnx.merge(*nnx.split(model))
    model.set_attributes(spread=spread, raise_if_not_found=False)
    graph = nnx.graphdef(model)

    def train_step(state: TrainState, batch: Any, step: jax.Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), step)

        def objective(params):
            model = nnx.merge(graph, params, state.statistics)
            value = loss(model, batch, key, step / steps)
            chex.assert_rank(value, 0)
            return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (value, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        value, gradients = jax.tree.map(lambda x: average(x, spread), (value, gradients))
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
        return state._replace(
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            optimizer=opt_state,
            loss_sum=state.loss_sum + value,
        )

    return train_step


def fit(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    task: Task,
    schedule: Schedule,
    *,
    mesh: Mesh,
    parallel: str,
    preemption: Preemption,
    seed: int,
    directory: Path,
    name: str,
    progress: bool,
) -> nnx.Module:
    """Train a network, or go on where its last checkpoint stands.

    Args:
      model: the network with its initial weights.
      optimizer: an optax transformation.
      task: losses and batches.
      schedule: how long.
      mesh: the devices.
      parallel: how they share the work, "mesh" or "pmap".
      preemption: asked after every step whether to stop.
      seed: of dropout and augmentation.
      directory: takes the checkpoints and `metrics.jsonl` (one line an epoch).
      name: for the progress bar and errors.
      progress: whether to draw the bar.

    Returns:
      The network with the weights of its lowest validation loss (the last weights where there is
      nothing to validate on).

    Raises:
      TrainingError: the loss is not finite any more.
      DataError: a checkpoint or `metrics.jsonl` is damaged.
      Preempted: the run was asked to stop; the last step is saved.
    """
    per_epoch, steps = schedule.steps_per_epoch, schedule.epochs * schedule.steps_per_epoch
    spread = AXIS if parallel == "pmap" else mesh
    train_step = make_train_step(model, optimizer, task.loss, seed, steps, spread)
    train_step = compile_step(train_step, mesh, parallel)
    graph = nnx.graphdef(model)
    validate = map_rows(
        lambda p, s, batch: task.validation_loss(nnx.merge(graph, p, s), batch), mesh
    )
    part = own_rows(mesh, task.batch)
    metrics_file = directory / "metrics.jsonl"
    with preemption.deferred(), open_checkpoints(directory / "checkpoints") as checkpoints:
        initial = replicate(mesh, init_state(model, optimizer))
        start, state = restore_latest(checkpoints, initial)
        rows = [row for row in _read_metrics(metrics_file) if row["step"] <= start]
        saved = time.monotonic()
        bar = tqdm(
            total=schedule.epochs,
            initial=start // per_epoch,
            desc=name,
            unit="epoch",
            disable=not progress,
        )
        for step in range(start, steps):
            batch = task.draw_batch(step, part)
            jax.block_until_ready(state.loss_sum)  # one step ahead, or a stop would come late
            state = train_step(state, batch, step)
            if (step + 1) % per_epoch == 0:
                epoch = (step + 1) // per_epoch
                row = {"epoch": epoch, "step": step + 1, "loss": float(state.loss_sum) / per_epoch}
                _check_finite(row["loss"], name, epoch)
                # Placed as it was, or a restored state would have the step compiled twice.
                state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
                if epoch % schedule.validate_every == 0 or epoch == schedule.epochs:
                    row["validation_loss"] = _mean_loss(validate, state, task, part)
                    _check_finite(row["validation_loss"], name, epoch)
                    state = _keep_best(state, row["validation_loss"])
                rows.append(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
                bar.update()
            stops = preemption.reached()
            due = time.monotonic() - saved > schedule.checkpoint_seconds
            if jax.process_count() > 1:  # clocks differ, and to agree takes as long as a step
                due = (step + 1) % per_epoch == 0 and agree(due)
            if step + 1 == steps or stops or due:
                if is_first():
                    write_text(metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
                save(checkpoints, step + 1, state)
                saved = time.monotonic()
            if stops:
                raise Preempted
        bar.close()
    return nnx.merge(graph, state.best_params, state.best_statistics)


def _mean_loss(validate, state, task, part):
    """Mean over the validation rows, or None where there are none."""
    losses = [
        np.float64(validate(state.params, state.statistics, batch))[:count]
        for batch, count in task.validation_batches(part)
    ]
    return float(np.mean(np.concatenate(losses))) if losses else None


def _check_finite(loss, name, epoch):
    if loss is not None and not np.isfinite(loss):
        raise TrainingError(
            f"{name}: the loss is {loss} in epoch {epoch}; a lower learning_rate may help"
        )


def _keep_best(state, loss):
    # In float32, as it is kept, or a tie could win by rounding.
    if loss is not None and not np.float32(loss) < float(state.best_loss):
        return state
    return state._replace(
        best_params=jax.tree.map(jnp.copy, state.params),
        best_statistics=jax.tree.map(jnp.copy, state.statistics),
        best_loss=jnp.full_like(state.best_loss, jnp.inf if loss is None else loss),
    )


def _read_metrics(path):
    if not path.exists():
        return []
    with reading(path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(rows, key=lambda row: row["step"])
