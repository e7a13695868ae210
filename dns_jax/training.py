"""The training loop of both networks: a step, validation, the best weights, resumption.

Everything that a step uses follows from (seed, step), and everything that it leaves is in
`TrainState`, so a run that is stopped anywhere and started again ends at the same weights, on
however many devices.
"""

import json
import time
from collections.abc import Callable
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
from dns_jax.parallel import AXIS, replicate
from dns_jax.programs import Ahead, Task, make_program, make_validation


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
      preemption: asked after every program of steps whether to stop.
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
      ConfigError: cached spectra do not fit into the memory that they may take.
      Preempted: the run was asked to stop; the last step is saved.
    """
    per_epoch, steps = schedule.steps_per_epoch, schedule.epochs * schedule.steps_per_epoch
    graph = nnx.graphdef(model)
    metrics_file = directory / "metrics.jsonl"
    with open_checkpoints(directory / "checkpoints") as checkpoints:
        start, state = restore_latest(checkpoints, replicate(mesh, init_state(model, optimizer)))
        rows = [row for row in _read_metrics(metrics_file) if row["step"] <= start]
        if start == steps:
            return nnx.merge(graph, state.best_params, state.best_statistics)
        feed, validation_feed = task.open_feeds(mesh)
        spread = AXIS if parallel == "pmap" else mesh
        train_step = make_train_step(model, optimizer, task.loss, seed, steps, spread)
        program = make_program(train_step, task, feed, per_epoch, mesh, parallel)
        validate = make_validation(task, validation_feed, graph, mesh)
        bar = tqdm(
            total=schedule.epochs,
            initial=start // per_epoch,
            desc=name,
            unit="epoch",
            disable=not progress,
        )
        with preemption.deferred(), bar, Ahead(program, start, steps, per_epoch) as ahead:

            def finish(row):  # once it has ended, and once only
                if row is None or isinstance(row["loss"], float):
                    return
                row["loss"] = float(row["loss"]) / per_epoch
                _check_finite(row["loss"], name, row["epoch"])
                if jax.process_count() > 1:
                    ahead.pace(row["step"])
                bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
                bar.update()

            saved = time.monotonic()
            before = ended = None  # the loss of the last program; the epoch that it has ended
            for first, count, batches in ahead:
                state, loss = program.run(state, batches, first, count)
                jax.block_until_ready(before)  # one program ahead, or a stop would come late
                if jax.process_count() == 1:  # of several, all do it at the end of an epoch
                    ahead.pace(first)
                finish(ended)
                before, step = loss, first + count
                if step % per_epoch == 0:
                    epoch = step // per_epoch
                    ended = {"epoch": epoch, "step": step, "loss": loss}
                    rows.append(ended)
                    validates = epoch % schedule.validate_every == 0 or epoch == schedule.epochs
                    if validates or jax.process_count() > 1:  # who agree here, which waits anyway
                        finish(ended)
                    if validates:
                        ended["validation_loss"] = validate(state.params, state.statistics)
                        _check_finite(ended["validation_loss"], name, epoch)
                        state = _keep_best(state, ended["validation_loss"])
                        ahead.mark(step)
                stops = preemption.reached()
                due = time.monotonic() - saved > schedule.checkpoint_seconds
                if jax.process_count() > 1:  # clocks differ, and to agree takes as long as a step
                    due = step % per_epoch == 0 and agree(due)
                if step == steps or stops or due:
                    finish(ended)
                    if is_first():
                        write_text(metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
                    save(checkpoints, step, state)
                    saved = time.monotonic()
                    ahead.mark(step)
                if stops:
                    raise Preempted
    return nnx.merge(graph, state.best_params, state.best_statistics)


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
