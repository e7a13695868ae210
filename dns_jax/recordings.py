"""What a run learns from and is tested on: the recordings, the machines, and their digests.

Of several hosts each decodes its share of the machines into the cache that they have in common.
"""

import hashlib
from functools import partial
from pathlib import Path

import jax
import pandas as pd

from dns_jax.config import ConfigError
from dns_jax.data.clips import read_clips
from dns_jax.data.refusals import DataError, describe_refusals, printable
from dns_jax.data.synthetic import write_factory
from dns_jax.data.waveforms import Waveforms, open_waveforms
from dns_jax.evaluation import tables
from dns_jax.hosts import is_first, say, wait_for_all


def read_recordings(config, workdir: Path) -> tuple[pd.DataFrame, Waveforms]:
    """Read the table of recordings and decode them, or say what is wrong with which file.

    Returns:
      The table of `read_clips` with a column `usable`, and the waveforms of its rows.
    """
    data_dir = config.data_dir
    if config.data.synthetic:
        data_dir = workdir / "factory"
        try:
            if is_first():
                write_factory(data_dir)
        except ValueError as error:
            raise DataError(str(error)) from None
        wait_for_all("factory")
    if not data_dir:
        raise ConfigError(
            "--config.data_dir is missing: the folder that holds <machine>/train, "
            "<machine>/source_test and <machine>/target_test"
        )
    clips, refusals = read_clips(data_dir, config.data.labels)
    decode = partial(
        open_waveforms,
        cache_dir=config.data.cache_dir or workdir / "cache",
        rate=config.data.rate,
        segment_samples=round(config.data.rate * config.data.segment_seconds),
        resample=config.data.resample,
        channel=config.data.channel,
        progress=config.progress and is_first(),
    )
    if jax.process_count() > 1:  # each host decodes its share of the machines into the cache
        machines = sorted(set(clips["machine"]))[jax.process_index() :: jax.process_count()]
        decode(clips[clips["machine"].isin(machines)])
        wait_for_all("decoded")
    waveforms, usable, undecodable, warnings = decode(clips)
    for warning in warnings:
        say(f"warning: {warning}")
    refusals = [*refusals, *undecodable]
    if refusals and not config.data.skip_bad:
        raise DataError(describe_refusals(refusals))
    if refusals and is_first():
        skipped = [(printable(refusal.path), refusal.reason) for refusal in refusals]
        tables.write_csv(pd.DataFrame(skipped, columns=["path", "reason"]), workdir / "skipped.csv")
        say(f"warning: {len(refusals)} files are skipped, see {workdir / 'skipped.csv'}")
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


def digest_recordings(clips: pd.DataFrame, waveforms: Waveforms) -> dict[str, str]:
    """Return {machine: digest of names, labels, samples}; for a FLAC tree that of its WAV twin."""
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
