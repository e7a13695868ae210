"""What a finished run has learned: its networks, K and Data, and the pool of its test segments."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from dns_jax.data.refusals import ConfigError, DataError, printable, reading
from dns_jax.data.waveforms import standardise
from dns_jax.evaluation.selection import Choice
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.serial_oe import SerialOE
from dns_jax.recordings import digest_recordings, read_recordings
from dns_jax.scoring import Segments, load_segments
from dns_jax.workdir import read_config


class Standardisation(NamedTuple):
    """What a recording goes through before it is cut into segments; full scale is 1.

    Attributes:
      rule: "recording" (by its own mean and deviation), "machine" (by those below) or "none".
      mean: of all training samples of the machine; 0 for the other rules.
      scale: 1 / their standard deviation, 0 where they are constant; 1 for the other rules.
    """

    rule: str
    mean: float
    scale: float

    def apply(self, waveform: np.ndarray) -> np.ndarray:
        """Standardise a whole recording: ``real[samples]``, full scale 1, to ``f32[samples]``."""
        mean, scale = self.mean, self.scale
        if self.rule == "recording":
            mean, deviation = waveform.mean(dtype=np.float64), waveform.std(dtype=np.float64)
            scale = 1 / deviation if np.ptp(waveform) else 0.0
        return ((waveform - np.float64(mean)) * scale).astype(np.float32)


class Trained(NamedTuple):
    """One machine and seed of a finished run.

    Attributes:
      config: of the run, as it was checked.
      machine: its name.
      seed: of the training.
      autoencoder: f_G with the weights of the lowest validation loss.
      serial_oe: f_D, likewise; None where the run has trained the autoencoder alone.
      segments: a_G and f_D of all training and test segments.
      choice: K and Data of eq. 7; None where there is no f_D.
      standardisation: of the waveforms.
    """

    config: ml_collections.FrozenConfigDict
    machine: str
    seed: int
    autoencoder: Autoencoder
    serial_oe: SerialOE | None
    segments: Segments
    choice: Choice | None
    standardisation: Standardisation


def list_machines(workdir: Path) -> list[str]:
    """Return the names of the machines that a run has trained.

    Raises:
      ConfigError: no such run.
      DataError: it has trained none yet.
    """
    read_config(workdir)
    machines = sorted({folder.parent.name for folder in workdir.glob("*/seed_*")})
    if not machines:
        raise DataError(
            f"{printable(workdir)} has no trained machine yet; start the run again, and it goes on"
        )
    return machines


def load_trained(workdir: Path, machine: str | None = None, seed: int | None = None) -> Trained:
    """Load what a finished run has learned about one machine.

    Where waveforms are standardised by machine, the training recordings are looked at again, which
    have to be where they were (`data_dir` of the run's config.json).

    Args:
      workdir: of the run.
      machine: its name; None: the only one.
      seed: None: the first of the run.

    Raises:
      ConfigError: no such run, machine or seed; says which there are.
      DataError: the run is not finished, or what it left is damaged.
    """
    workdir = Path(workdir)
    config, recordings = read_config(workdir)
    machines = list_machines(workdir)
    machine = machines[0] if machine is None and len(machines) == 1 else machine
    if machine not in machines:
        asked = " is missing" if machine is None else f"={printable(machine)}: there is none"
        there = ", ".join(map(printable, machines))
        raise ConfigError(f"--machine{asked}; {printable(workdir)} has {there}")
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        there = ", ".join(map(str, config.seeds))
        raise ConfigError(f"--seed={seed}: there is none; {printable(workdir)} has {there}")
    directory = workdir / machine / f"seed_{seed}"
    if not (directory / "selection.json").exists():
        raise DataError(
            f"{printable(directory)} is not finished, it has no selection.json; "
            "start the run again, and it goes on"
        )
    segments = load_segments(directory / "segments.npz")
    autoencoder = nnx.eval_shape(lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)))
    serial_oe = None
    if config.data.others != "none":
        products = len(np.unique(segments.section[segments.split == "train"]))
        serial_oe = nnx.eval_shape(lambda: SerialOE(config.serial_oe, products, rngs=nnx.Rngs(0)))
        serial_oe = _restore(serial_oe, workdir, directory, "serial_oe")
    return Trained(
        config=config,
        machine=machine,
        seed=seed,
        autoencoder=_restore(autoencoder, workdir, directory, "ae"),
        serial_oe=serial_oe,
        segments=segments,
        choice=serial_oe and _read_choice(directory / "selection.json", config),
        standardisation=_find_standardisation(config, workdir, machine, recordings),
    )


def _restore(model, workdir, directory, network):
    """Give a network of shapes the weights that `dns_jax.training.fit` has returned."""
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    like = {"best_params": params, "best_statistics": statistics}  # of `TrainState`
    like = jax.tree.map(nnx.to_pure_dict, like, is_leaf=lambda x: isinstance(x, nnx.State))
    checkpoints = directory / network / "checkpoints"
    try:
        steps = [int(step.name) for step in checkpoints.iterdir() if step.name.isdigit()]
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                (checkpoints / str(max(steps)) / "default").absolute(),
                args=ocp.args.PyTreeRestore(
                    item=like,
                    # As NumPy arrays, whatever devices the run was on.
                    restore_args=jax.tree.map(
                        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like
                    ),
                    partial_restore=True,
                ),
            )
        jax.tree.map(_check_shape, restored, like)
    except Exception as error:  # Orbax raises what its storage raises
        what = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{printable(checkpoints)} is damaged or of another network ({type(error).__name__}: "
            f"{what}); copy it back, or delete {printable(directory)} and "
            f"{printable(workdir / 'table2.csv')} and start the run again, which trains anew"
        ) from error
    return nnx.merge(graph, *jax.device_put(restored).values())


def _check_shape(array, like):
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{array.dtype}{array.shape} in place of {like.dtype}{like.shape}")


def _read_choice(file, config):
    with reading(file):
        proposed = json.loads(file.read_text())["proposed"]
        if proposed is None:  # a machine without test recordings
            return Choice(config.smoothing.default_k, "all", "default")
        choice = Choice(**proposed)
        if type(choice.size) is not int or choice.size < 1 or choice.data not in ("source", "all"):
            raise ValueError(f"K = {choice.size} on {choice.data} data")
        return choice


def _find_standardisation(config, workdir, machine, recordings):
    rule = config.data.standardise
    if rule != "machine":
        return Standardisation(rule, 0.0, 1.0)
    try:
        clips, waveforms = read_recordings(config, workdir)
        if digest_recordings(clips, waveforms).get(machine) != recordings.get(machine):
            raise DataError("they have changed since")
    except (ConfigError, DataError) as error:
        what = str(error).splitlines()[0]
        raise DataError(
            f"{printable(workdir)} standardises by the mean and deviation of {machine}'s training "
            f"recordings (--config.data.standardise=machine), which cannot be read: {what}; put "
            "them back where the run's config.json says"
        ) from None
    trains = (clips["machine"] == machine) & (clips["split"] == "train") & clips["usable"]
    rows = np.flatnonzero(trains)
    row = rows[0]
    kind = waveforms.samples[waveforms.machines[row]].dtype
    whole = 32768.0 if kind == np.int16 else 1.0
    applied = standardise(waveforms, rule, rows)
    return Standardisation(rule, applied.means[row] / whole, applied.scales[row] * whole)
