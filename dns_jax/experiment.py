"""The paper, stage by stage: recordings -> two networks -> segments -> systems -> tables -> report.

Each stage writes named artifacts into the workdir and is passed over when they are there, so a run
that was stopped anywhere goes on by starting it again. Of several hosts all take part in each
stage, and the first one writes.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx
from jax.sharding import Mesh

from dns_jax import __version__
from dns_jax.config import check_config
from dns_jax.data.clips import split_validation
from dns_jax.data.refusals import reading
from dns_jax.data.waveforms import Waveforms, standardise
from dns_jax.evaluation.label_free import needs_spectra
from dns_jax.evaluation.protocol import score_systems
from dns_jax.evaluation.results import print_tables, tabulate
from dns_jax.hosts import (
    Preemption,
    agree,
    check_shared,
    is_first,
    noticing_losses,
    say,
    wait_for_all,
)
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.serial_oe import SerialOE
from dns_jax.models.weights import read_backbone
from dns_jax.parallel import check_batches, make_mesh
from dns_jax.recordings import choose_targets, digest_recordings, read_recordings
from dns_jax.scoring import Segments, load_segments, save_segments, score_segments
from dns_jax.tasks import make_autoencoder_task, make_serial_oe_task
from dns_jax.training import fit
from dns_jax.workdir import check_recordings, open_workdir


def run(config, workdir: Path) -> None:
    """Run the experiment of the paper, or what is left of it, and print its tables.

    Args:
      config: as `configs/default.py` gives it.
      workdir: takes all artifacts.

    Raises:
      ConfigError, DataError, TrainingError, HostsError, HostLost: with a message for the user.
      Preempted: stopped by SIGTERM; the same call goes on.
    """
    config = check_config(config)
    mesh = make_mesh(config.devices)
    check_batches(config, mesh)
    with noticing_losses(), Preemption().watch() as preemption:
        begun_by = open_workdir(config, workdir)
        check_shared(workdir / "config.json")
        if not agree(_is_finished(config, workdir)):
            if begun_by != __version__:
                say(
                    f"warning: {workdir} was begun by dns_jax {begun_by}, this is {__version__}: "
                    "what is left may draw other batches than it would have"
                )
            weights = _digest_weights(config)
            clips, waveforms = read_recordings(config, workdir)
            machines = choose_targets(config, clips)
            check_recordings(workdir, weights | digest_recordings(clips, waveforms))
            for machine in machines:
                ours = clips[clips["machine"] == machine]
                for seed in config.seeds:
                    directory = workdir / machine / f"seed_{seed}"
                    if agree(_is_scored(directory)):
                        continue
                    where = {"directory": directory, "mesh": mesh, "preemption": preemption}
                    segments = make_segments(config, clips, waveforms, machine, seed, **where)
                    score_systems(config, ours, segments, seed=seed, say=say, **where)
            if is_first():
                tabulate(config, clips, machines, workdir)
                if config.report.write:
                    say("writing the report")
                    from dns_jax.evaluation.report import write_report  # with it, plotting

                    write_report(config, clips, waveforms, machines, workdir)
            wait_for_all("tables")
    if is_first():
        print_tables(workdir)


def make_segments(
    config,
    clips: pd.DataFrame,
    waveforms: Waveforms,
    machine: str,
    seed: int,
    *,
    directory: Path,
    mesh: Mesh,
    preemption: Preemption,
) -> Segments:
    """Train both networks, or f_G alone, and score the machine's recordings: `segments.npz`."""
    file = directory / "segments.npz"
    if agree(file.exists()):
        return load_segments(file)
    usable = clips["usable"].to_numpy()
    validates = np.zeros(len(clips), bool)
    validates[usable] = split_validation(clips[usable], seed, config.data.train_share)
    trains = (clips["split"] == "train").to_numpy() & usable
    target = (clips["machine"] == machine).to_numpy()
    waveforms = standardise(waveforms, config.data.standardise, np.flatnonzero(trains & target))

    def rows(mask):
        return np.flatnonzero(trains & mask)

    name = f"{machine} seed {seed}"
    key = jax.random.key(seed)
    devices = {"mesh": mesh, "preemption": preemption}
    options = {"seed": seed, "progress": config.progress and is_first()}
    options |= {"parallel": config.parallel} | devices

    task, schedule, optimizer = make_autoencoder_task(
        config, waveforms, rows(target & ~validates), rows(target & validates), seed
    )
    autoencoder = fit(
        Autoencoder(config.autoencoder, rngs=nnx.Rngs(jax.random.fold_in(key, 0))),
        optimizer,
        task,
        schedule,
        directory=directory / "ae",
        name=f"{name} autoencoder",
        **options,
    )

    serial_oe = None
    if config.data.others != "none":
        sections = sorted(set(clips["section"][trains & target]))
        products = np.where(trains & target, np.searchsorted(sections, clips["section"]), -1)
        task, schedule, optimizer = make_serial_oe_task(
            config,
            waveforms,
            products,
            (clips["domain"] == "target").to_numpy(),
            (rows(target & ~validates), rows(~target & ~validates)),
            (rows(target & validates), rows(~target & validates)),
            seed,
        )
        rngs = nnx.Rngs(jax.random.fold_in(key, 1))
        serial_oe = SerialOE(config.serial_oe, len(sections), rngs=rngs)
        if weights := config.serial_oe.init_from:
            serial_oe.backbone = read_backbone(weights, serial_oe.backbone)
        serial_oe = fit(
            serial_oe,
            optimizer,
            task,
            schedule,
            directory=directory / "serial_oe",
            name=f"{name} SerialOE",
            **options,
        )
    segments = score_segments(
        autoencoder,
        serial_oe,
        clips[target & usable],
        waveforms,
        config,
        name=f"{name} scores",
        spectra=needs_spectra(config.smoothing),
        **devices,
    )
    if is_first():
        save_segments(file, segments)
    return segments


def _is_scored(directory):
    """Whether a machine's scores are there, with all that a ranking of this version takes."""
    file = directory / "selection.json"
    if not ((directory / "segments.npz").exists() and file.exists()):
        return False
    with reading(file):
        return "scale" in json.loads(file.read_text())


def _is_finished(config, workdir):
    """Whether nothing that a run leaves is lacking."""
    files = [workdir / "table2.csv"] + [workdir / "report.html"] * config.report.write
    for directory in workdir.glob("*/seed_*"):
        files += directory / "segments.npz", directory / "selection.json"
    return all(file.exists() for file in files)


def _digest_weights(config):
    """{field: digest} of the file of initial weights, which is read to see that it fits."""
    path = config.serial_oe.init_from
    if not path:
        return {}
    backbone = config.serial_oe.backbone
    read_backbone(path, nnx.eval_shape(lambda: EfficientNet(backbone, rngs=nnx.Rngs(0))))
    with open(path, "rb") as file:
        return {"serial_oe.init_from": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
