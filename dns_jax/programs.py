"""Many steps in one compiled program, and the next programs' batches prepared by a thread.

A step of the autoencoder takes less time than a host needs to ask for it. So a program takes up to
an epoch of them, in a loop whose length is no part of what is compiled, over the plan that the host
gives it. How the steps are cut into programs changes nothing that they compute.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dns_jax.data.batches import Plan
from dns_jax.feeding import Feed
from dns_jax.hosts import agree
from dns_jax.parallel import (
    compile_program,
    compile_rows,
    each_device,
    own_rows,
    spread_batches,
)

_SECONDS = 1.0  # that a program may take
_AHEAD = 2  # programs that are prepared beside the one that is taken


class Task(NamedTuple):
    """What a network learns, and from which batches.

    `loss(model, batch, key, progress)` is the scalar to minimise, with progress in [0, 1) and the
    batch as a tuple of segments and labels; `validation_loss(model, batch)` gives f32[rows],
    without randomness; `draw(first, count)` the plan of some steps; `open_feeds(mesh)` the ways to
    the batches of training and validation.
    """

    loss: Callable[..., jax.Array]
    validation_loss: Callable[..., jax.Array]
    batch: int
    draw: Callable[[int, int], Plan]
    validation: Plan
    validated: int  # how many rows of it count; the others fill up the last batch
    open_feeds: Callable[[Mesh], tuple[Feed, Feed]]
    looped: bool = True  # whether steps are as fast in a loop of the compiled program


class Program(NamedTuple):
    """Steps of a training, compiled.

    `prepare(first, count)` fetches the batches of some steps and puts them on the devices;
    ``run(state, batches, first, count)`` takes these steps, gives up the state, and returns the
    next one and the sum of the losses since the epoch began.
    """

    prepare: Callable[[int, int], Any]
    run: Callable[..., tuple[Any, jax.Array]]
    capacity: int  # steps


def make_program(
    train_step: Callable, task: Task, feed: Feed, per_epoch: int, mesh: Mesh, way: str
) -> Program:
    """Make the program of a training; it is compiled once, when it first runs.

    Args:
      train_step: ``(state, batch, step) -> state``, of `training.make_train_step`.
      task: draws the plans.
      feed: the way to the batches.
      per_epoch: steps; no program may cross the end of an epoch.
      mesh: the devices.
      way: how they share the work, "mesh" or "pmap".
    """
    capacity = min(per_epoch, feed.most_steps) if task.looped else 1
    cut = each_device(feed.cut, mesh) if way == "mesh" else feed.cut
    part = own_rows(mesh, task.batch)

    def take_steps(state, store, batches, first, count):
        state = state._replace(loss_sum=jnp.where(first % per_epoch == 0, 0, state.loss_sum))

        def take_step(i, state):
            fetched, labels = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches
            )
            return train_step(state, (cut(store, fetched), *labels), first + i)

        # Convolutions inside a loop are slow on the CPU.
        state = (
            take_step(0, state) if capacity == 1 else jax.lax.fori_loop(0, count, take_step, state)
        )
        return state, state.loss_sum

    run = compile_program(take_steps, mesh, way)

    def prepare(first, count):
        plan = jax.tree.map(lambda x: x[:, part], task.draw(first, count))
        batches = feed.fetch(plan.rows, plan.starts), plan.labels
        return spread_batches(mesh, jax.tree.map(pad, batches), way)

    def pad(x):
        if len(x) == capacity:
            return x
        return np.concatenate([x, np.zeros((capacity - len(x), *x.shape[1:]), x.dtype)])

    return Program(
        prepare, lambda state, batches, *steps: run(state, feed.store, batches, *steps), capacity
    )


def choose_count(steps: int, seconds: float, capacity: int) -> int:
    """Choose how many steps the next programs have, after `steps` have taken `seconds`."""
    return max(1, min(capacity, int(_SECONDS * steps / max(seconds, 1e-9))))


class Ahead:
    """The programs of a training, in order, as (first step, number of steps, batches).

    A thread prepares the next ones while one is computed. As a context it leaves none behind.
    """

    def __init__(self, program: Program, first: int, end: int, per_epoch: int):
        """Begin with programs of one step.

        Args:
          program: prepares batches; what it raises is raised where the program is taken.
          first: step.
          end: the step after the last.
          per_epoch: steps; no program crosses the end of an epoch.
        """
        self.waited = 0.0  # seconds that programs were waited for
        self._program, self._next, self._end, self._per_epoch = program, first, end, per_epoch
        self._count = 1
        self._asked = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self.mark(first)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self):
        return self

    def __next__(self) -> tuple[int, int, Any]:
        while len(self._asked) <= _AHEAD and self._next < self._end:
            count = min(self._count, self._per_epoch - self._next % self._per_epoch)
            prepared = self._thread.submit(self._program.prepare, self._next, count)
            self._asked.append((self._next, count, prepared))
            self._next += count
        if not self._asked:
            raise StopIteration
        first, count, prepared = self._asked.popleft()
        began = time.monotonic()
        batches = prepared.result()
        self.waited += time.monotonic() - began
        return first, count, batches

    def mark(self, step: int) -> None:
        """Measure from now on, when all steps before `step` are done."""
        self._marked = step, time.monotonic()

    def pace(self, step: int) -> None:
        """Choose how long further programs are, now that all steps before `step` are done."""
        before, then = self._marked
        if step == before:  # nothing was measured
            return
        self.mark(step)
        seconds = self._marked[1] - then
        self._count = agree(choose_count(step - before, seconds, self._program.capacity))


def make_validation(
    task: Task, feed: Feed, graph: nnx.GraphDef, mesh: Mesh
) -> Callable[[Any, Any], float | None]:
    """Make ``(params, statistics) -> mean loss`` of the validation rows, None where there are none.

    Args:
      task: what is validated on which rows.
      feed: the way to their segments.
      graph: of the network.
      mesh: the devices.
    """
    part = own_rows(mesh, task.batch)

    def measure(params, statistics, store, rows):
        fetched, labels = rows
        batch = feed.cut(store, fetched), *labels
        return task.validation_loss(nnx.merge(graph, params, statistics), batch)

    measure = compile_rows(measure, mesh)

    def validate(params, statistics):
        losses = []
        for number in range(len(task.validation.rows)):
            plan = jax.tree.map(lambda x: x[number, part], task.validation)  # noqa: B023
            rows = feed.fetch(plan.rows, plan.starts), plan.labels
            losses.append(measure(params, statistics, feed.store, rows))
        counted = np.ravel(np.float64(jax.device_get(losses)))[: task.validated]
        return float(np.mean(counted)) if len(counted) else None

    return validate
