"""Checkpoints of a training run, by Orbax: written beside, then renamed, the last one kept."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dns_jax.data.refusals import reading


class _Checkpoints(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Leave the question to `hosts.Preemption`: JAX keeps one count of who asks, not two."""
        return False


def open_checkpoints(directory: Path) -> ocp.CheckpointManager:
    """Open (or create) the checkpoints of one network; close them by ``with`` or ``close()``."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return _Checkpoints(Path(directory).absolute(), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Save the pytree `state` after `step` steps; returns when it lies safely on the disk."""
    checkpoints.save(step, args=ocp.args.StandardSave(state), force=True)


def restore_latest(checkpoints: ocp.CheckpointManager, like: Any) -> tuple[int, Any]:
    """Return (step, state) of the last checkpoint, or (0, `like`) where there is none.

    Args:
      checkpoints: from `open_checkpoints`.
      like: a pytree of arrays with the structure, shapes, dtypes and placement that are expected.

    Raises:
      DataError: the checkpoint is damaged, or one of another state.
    """
    step = checkpoints.latest_step()
    if step is None:
        return 0, like
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with reading(checkpoints.directory):
        return step, checkpoints.restore(step, args=ocp.args.StandardRestore(target))
