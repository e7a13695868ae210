"""Several hosts: how they find each other, agree, and stop together; and how SIGTERM stops a run.

One process a host (or a GPU, as the cluster starts them); JAX's coordination service joins them.
All do the same steps in the same order. The first one writes what a run leaves, all of them the
checkpoints, so the workdir lies on storage that all share.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_HEARTBEAT = 30  # s of silence after which a host counts as lost
_FORGETTING = 60  # s that a network file system may take a file for absent that was so before
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "heartbeat")  # collectives of CPU and GPU, coordination


class HostsError(RuntimeError):
    """The hosts of a run do not find each other; the message is one line for the user."""


class HostLost(RuntimeError):
    """Another host has died or does not answer; all it takes is to start the run again."""


class Preempted(BaseException):
    """The run was asked to stop (SIGTERM), and has lost nothing. Like KeyboardInterrupt."""


def join_hosts() -> None:
    """Join the other processes of the run; before anything else of JAX.

    Where the others do not come within five minutes, JAX ends the process with its own message.

    Raises:
      HostsError: no cluster is found around this process.
      HostLost: the cluster's first host cannot be found.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except (ValueError, KeyError) as error:
        raise HostsError(
            f"--distributed: this process finds no others ({_join_lines(error)}); start it by one "
            "of launch/, under SLURM's srun, on the workers of a TPU VM or in a Kubernetes Job"
        ) from None
    except RuntimeError as error:
        raise HostLost(f"the other hosts do not answer ({_join_lines(error)})") from None


def _join_lines(error):
    return " ".join(str(error).split())


def is_first() -> bool:
    """Tell whether this host is the one that writes what a run leaves."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Print a line on stderr, once for all hosts."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def wait_for_all(place: str) -> None:
    """Wait until every host has come to the same place in the program."""
    multihost_utils.sync_global_devices(place)


def check_shared(file: Path) -> None:
    """Wait for a file that the first host writes, and check that every host sees it.

    Raises:
      HostsError: this host does not.
    """
    wait_for_all(file.name)
    end = time.monotonic() + _FORGETTING
    while file.name not in os.listdir(file.parent):
        if time.monotonic() < end:
            time.sleep(0.5)
            continue
        raise HostsError(
            f"host {jax.process_index()} of {jax.process_count()} does not see {file}, which the "
            "first host has written; --workdir must lie on storage that all hosts share"
        )


def agree(answer: bool | int) -> bool | int:
    """Return the first host's answer, so that all hosts go the same way."""
    return type(answer)(multihost_utils.broadcast_one_to_all(np.array(answer)))


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Say what has happened when a collective operation fails since a host has died.

    Raises:
      HostLost: with what the operation said.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # JAX's own, and what libraries make of it
        if jax.process_count() == 1 or not any(word in str(error) for word in _LOST):
            raise
        said = str(error).partition("\n")[0]
        raise HostLost(f"another of the {jax.process_count()} hosts is gone ({said})") from error


class Preemption:
    """SIGTERM ends a run where it loses nothing: at once, or in training after the present program.

    Of several hosts all stop at the same place, whichever of them got the signal: after a program
    of training steps, a batch of scoring or a candidate of the evaluation.
    """

    def __init__(self):
        self._noticed = False
        self._deferred = False
        self._calls = itertools.count()  # of `reached`, the same on every host

    @contextlib.contextmanager
    def watch(self) -> Iterator["Preemption"]:
        """Notice the signal within this context.

        Raises:
          Preempted: in the middle of the context, when the signal comes and is not deferred.
        """
        # Several hosts have JAX's coordination service watch it; a thread cannot.
        if (
            jax.distributed.is_initialized()
            or threading.current_thread() is not threading.main_thread()
        ):
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _notice(self, *_):
        self._noticed = True
        if not self._deferred:
            raise Preempted

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the signal wait within this context, which asks by `reached` whether it has come."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._noticed:
            raise Preempted

    def stop_if_reached(self) -> None:
        """Raise Preempted where `reached`."""
        if self.reached():
            raise Preempted

    def reached(self) -> bool:
        """Tell whether to save and stop now; every host asks at the same places."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(next(self._calls))
        return self._noticed
