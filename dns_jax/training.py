"""The training loop of both networks: one jitted step, validation, the best weights, resumption.

Everything that a step uses follows from (seed, step), and everything that it leaves is in
`TrainState`, so a run that is stopped anywhere and started again ends at the same weights.
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
from tqdm import tqdm

from dns_jax.checkpoint import open_checkpoints, restore_latest, save
from dns_jax.data.refusals import reading
from dns_jax.files import write_text


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
    `validation_loss(model, batch)` gives f32[rows], without randomness; `draw_batch(step)` a batch;
    `validation_batches()` pairs (batch, number of its rows that count).
    """

    loss: Callable[..., jax.Array]
    validation_loss: Callable[..., jax.Array]
    draw_batch: Callable[[int], Any]
    validation_batches: Callable[[], Iterator[tuple[Any, int]]]


def one_cycle(low: float, peak: float, last: float, steps: int) -> optax.Schedule:
    """Build PyTorch's OneCycleLR (cosine, two phases): low -> peak -> last over `steps` steps [19].

    The peak lies at step ``0.3 * steps - 1`` and the end at ``steps - 1``; optax's own schedule
    peaks a step later.
    """
    top, end = 0.3 * steps - 1, steps - 1

    def value(step):
        rising = step <= top
        foot = jnp.where(rising, low, last)
        climbed = jnp.where(rising, step / top, (end - step) / (end - top))
        # Not (1 - cos) / 2, which float32 rounds to nothing near the foot.
        return foot + (peak - foot) * jnp.square(jnp.sin(jnp.pi / 2 * climbed))

    return value


def one_cycle_adamw(peak: float, weight_decay: float, steps: int) -> optax.GradientTransformation:
    """Build AdamW under OneCycleLR with PyTorch's defaults: beta1 cycles against the rate."""
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=one_cycle(peak / 25, peak, peak / 25 / 1e4, steps),
        b1=one_cycle(0.95, 0.85, 0.95, steps),
        weight_decay=weight_decay,
    )


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
) -> Callable[[TrainState, Any, jax.Array], TrainState]:
    """Compile one step of `loss`: ``(state, batch, step) -> state``; the old state is given up."""
    graph = nnx.graphdef(model)

    def train_step(state: TrainState, batch: Any, step: jax.Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), step)

        def objective(params):
            model = nnx.merge(graph, params, state.statistics)
            value = loss(model, batch, key, step / steps)
            chex.assert_rank(value, 0)
            return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        (value, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
        return state._replace(
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            optimizer=opt_state,
            loss_sum=state.loss_sum + value,
        )

    return jax.jit(train_step, donate_argnums=0)


def fit(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    task: Task,
    schedule: Schedule,
    *,
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
    """
    per_epoch, steps = schedule.steps_per_epoch, schedule.epochs * schedule.steps_per_epoch
    train_step = make_train_step(model, optimizer, task.loss, seed, steps)
    graph = nnx.graphdef(model)
    validate = jax.jit(lambda p, s, batch: task.validation_loss(nnx.merge(graph, p, s), batch))
    metrics_file = directory / "metrics.jsonl"
    with open_checkpoints(directory / "checkpoints") as checkpoints:
        start, state = restore_latest(checkpoints, init_state(model, optimizer))
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
            state = train_step(state, task.draw_batch(step), step)
            if (step + 1) % per_epoch == 0:
                epoch = (step + 1) // per_epoch
                row = {"epoch": epoch, "step": step + 1, "loss": float(state.loss_sum) / per_epoch}
                _check_finite(row["loss"], name, epoch)
                # Placed as it was, or a restored state would have the step compiled twice.
                state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
                if epoch % schedule.validate_every == 0 or epoch == schedule.epochs:
                    row["validation_loss"] = _mean_loss(validate, state, task)
                    _check_finite(row["validation_loss"], name, epoch)
                    state = _keep_best(state, row["validation_loss"])
                rows.append(row)
                bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
                bar.update()
            if step + 1 == steps or time.monotonic() - saved > schedule.checkpoint_seconds:
                write_text(metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
                save(checkpoints, step + 1, state)
                saved = time.monotonic()
        bar.close()
    return nnx.merge(graph, state.best_params, state.best_statistics)


def _mean_loss(validate, state, task):
    """Mean over the validation rows, or None where there are none."""
    losses = [
        np.asarray(validate(state.params, state.statistics, batch), np.float64)[:count]
        for batch, count in task.validation_batches()
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
