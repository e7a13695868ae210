"""The paper, stage by stage: recordings -> two networks -> segments -> systems -> Tables I and II.

Each stage writes named artifacts into the workdir and is passed over when they are there, so a run
that was stopped anywhere goes on by starting it again.
"""

import hashlib
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx

from dns_jax.config import ConfigError, check_config, check_recordings, open_workdir
from dns_jax.data.clips import read_clips, split_validation
from dns_jax.data.refusals import DataError, describe_refusals, printable
from dns_jax.data.synthetic import write_factory
from dns_jax.data.waveforms import Waveforms, open_waveforms, standardise
from dns_jax.evaluation import tables
from dns_jax.evaluation.protocol import score_systems
from dns_jax.evaluation.results import print_tables, tabulate
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.serial_oe import SerialOE
from dns_jax.models.weights import read_backbone
from dns_jax.scoring import Segments, load_segments, save_segments, score_segments
from dns_jax.tasks import make_autoencoder_task, make_serial_oe_task
from dns_jax.training import fit


def run(config, workdir: Path) -> None:
    """Run the experiment of the paper, or what is left of it, and print its tables.

    Args:
      config: as `configs/default.py` gives it.
      workdir: takes all artifacts.

    Raises:
      ConfigError, DataError, TrainingError: with a message for the user.
    """
    config = check_config(config)
    workdir.mkdir(parents=True, exist_ok=True)
    open_workdir(config, workdir)
    if not (workdir / "table2.csv").exists():
        weights = _digest_weights(config)
        clips, waveforms = read_recordings(config, workdir)
        machines = choose_targets(config, clips)
        check_recordings(workdir, weights | _digest(clips, waveforms))
        for machine in machines:
            for seed in config.seeds:
                directory = workdir / machine / f"seed_{seed}"
                if not (directory / "selection.json").exists():
                    segments = make_segments(config, clips, waveforms, machine, seed, directory)
                    ours = clips[clips["machine"] == machine]
                    score_systems(config, ours, segments, seed=seed, directory=directory, say=_say)
        tabulate(config, clips, machines, workdir)
    print_tables(workdir)


def read_recordings(config, workdir: Path) -> tuple[pd.DataFrame, Waveforms]:
    """Read the table of recordings and decode them, or say what is wrong with which file.

    Returns:
      The table of `read_clips` with a column `usable`, and the waveforms of its rows.
    """
    data_dir = config.data_dir
    if config.data.synthetic:
        data_dir = workdir / "factory"
        try:
            write_factory(data_dir)
        except ValueError as error:
            raise DataError(str(error)) from None
    if not data_dir:
        raise ConfigError(
            "--config.data_dir is missing: the folder that holds <machine>/train, "
            "<machine>/source_test and <machine>/target_test"
        )
    clips, refusals = read_clips(data_dir, config.data.labels)
    waveforms, usable, undecodable, warnings = open_waveforms(
        clips,
        config.data.cache_dir or workdir / "cache",
        rate=config.data.rate,
        segment_samples=round(config.data.rate * config.data.segment_seconds),
        resample=config.data.resample,
        channel=config.data.channel,
        progress=config.progress,
    )
    for warning in warnings:
        _say(f"warning: {warning}")
    refusals = [*refusals, *undecodable]
    if refusals and not config.data.skip_bad:
        raise DataError(describe_refusals(refusals))
    if refusals:
        skipped = [(printable(refusal.path), refusal.reason) for refusal in refusals]
        tables.write_csv(pd.DataFrame(skipped, columns=["path", "reason"]), workdir / "skipped.csv")
        _say(f"warning: {len(refusals)} files are skipped, see {workdir / 'skipped.csv'}")
    return clips.assign(usable=usable), waveforms


def choose_targets(config, clips: pd.DataFrame) -> list[str]:
    """Return the machines to evaluate, all of which can be trained.

    Raises:
      ConfigError, DataError: a machine that is not there, or lacks what training needs.
    """
    there = sorted(set(clips["machine"]))
    targets = config.machines or sorted(set(clips["machine"][clips["split"] == "test"]))
    training = clips[(clips["split"] == "train") & clips["usable"]]
    for machine in targets:
        if machine in (*tables.OTHER_COLUMNS, "all"):
            raise DataError(
                f"a machine named {machine}: the tables use that name otherwise; rename its folder"
            )
        if machine not in there:
            raise ConfigError(f"--config.machines: no {machine}; there are {', '.join(there)}")
        sections = set(training["section"][training["machine"] == machine])
        if not sections:
            raise DataError(f"{machine} has no training recordings")
        tested = clips[(clips["machine"] == machine) & (clips["split"] == "test")]
        if untrained := sorted(set(tested["section"]) - sections):
            raise DataError(
                f"{machine} has test recordings but no training recordings of sections {untrained}"
            )
        domains = set(training["domain"][training["machine"] == machine])
        if (quota := config.serial_oe.target_per_batch) >= 0:
            for domain in ("source", "target") if quota else ("source",):
                if domain not in domains:
                    raise ConfigError(
                        f"--config.serial_oe.target_per_batch={quota}: {machine} has no training "
                        f"recordings of the {domain} domain"
                    )
        if set(training["machine"]) == {machine}:
            raise DataError(
                f"{machine} has no other machine with training recordings beside it; SerialOE "
                "needs their sounds as pseudo-anomalous ones"
            )
    if not targets:
        raise DataError("no machine has test recordings; name one by --config.machines to train it")
    return list(targets)


def make_segments(
    config, clips: pd.DataFrame, waveforms: Waveforms, machine: str, seed: int, directory: Path
) -> Segments:
    """Train both networks and score all recordings of the machine: `segments.npz`."""
    file = directory / "segments.npz"
    if file.exists():
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
    options = {"seed": seed, "progress": config.progress}

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
    serial_oe = SerialOE(config.serial_oe, len(sections), rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
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
    )
    save_segments(file, segments)
    return segments


def _digest_weights(config):
    """{field: digest} of the file of initial weights, which is read to see that it fits."""
    path = config.serial_oe.init_from
    if not path:
        return {}
    backbone = config.serial_oe.backbone
    read_backbone(path, nnx.eval_shape(lambda: EfficientNet(backbone, rngs=nnx.Rngs(0))))
    with open(path, "rb") as file:
        return {"serial_oe.init_from": hashlib.file_digest(file, "sha256").hexdigest()[:16]}


def _digest(clips, waveforms):
    """{machine: digest of names, labels and samples}; the same for a WAV tree and its FLAC twin."""
    digests = {}
    for machine, rows in clips.groupby("machine").indices.items():
        lines = [
            f"{Path(clip).stem} {label} {waveforms.digests[row]}"
            for row, clip, label in zip(
                rows, clips["clip"].iloc[rows], clips["label"].iloc[rows], strict=True
            )
        ]
        digests[machine] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digests


def _say(line):
    print(line, file=sys.stderr, flush=True)
