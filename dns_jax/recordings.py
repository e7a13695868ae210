"""What a run learns from and is tested on: the recordings, the machines, and their digests.

Of several hosts each decodes its share of the machines into the cache that they have in common.
"""

import hashlib
from functools import partial
from pathlib import Path

import jax
import pandas as pd

from dns_jax.data.clips import read_clips
from dns_jax.data.folders import read_folders, read_others
from dns_jax.data.refusals import ConfigError, DataError, describe_refusals, printable
from dns_jax.data.synthetic import write_factory
from dns_jax.data.waveforms import Waveforms, open_waveforms
from dns_jax.data.years import YEARS
from dns_jax.evaluation import tables
from dns_jax.hosts import is_first, say, wait_for_all


def read_recordings(config, workdir: Path) -> tuple[pd.DataFrame, Waveforms]:
    """Read the table of recordings and decode them, or say what is wrong with which file.

    Returns:
      The table of `read_clips` with a column `usable`, and the waveforms of its rows.
    """
    clips, refusals = _read_table(config, workdir)
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


def _read_table(config, workdir):
    """The table of recordings: of a data set or of two folders, and of other machines' sounds."""
    data = config.data
    if data.normal:
        machine = config.machines[0] if config.machines else "machine"
        if Path(machine).name != machine or machine == "..":
            raise ConfigError(f"--config.machines={machine}: it must be a plain name, not a path")
        clips, refusals = read_folders(data.normal, data.score, machine)
    elif not config.data_dir and not data.synthetic:
        raise ConfigError(
            "--config.data_dir is missing: the folder that holds <machine>/train, "
            "<machine>/source_test and <machine>/target_test; or give --config.data.normal and "
            f"--config.data.score, folders of recordings of any names{_say_how_to_get(config)}"
        )
    else:
        data_dir = _write_factory(workdir) if data.synthetic else config.data_dir
        try:
            clips, refusals = read_clips(data_dir, data.labels, data.year)
        except DataError as error:
            there = Path(data_dir).is_dir() and any(Path(data_dir).iterdir())
            raise DataError(f"{error}{'' if there else _say_how_to_get(config)}") from None
    if data.others in ("", "none"):
        return clips, refusals
    if data.others == "factory":
        others, refused = read_clips(_write_factory(workdir))
        others = others[others["split"] == "train"]
        others["machine"] = "factory-" + others["machine"]
    else:
        own = filter(None, (data.normal, data.score))
        others, refused = read_others(data.others, "others", tuple(own))
    if both := sorted({*clips["machine"]} & {*others["machine"]}):
        raise DataError(f"--config.data.others: a machine is named {both[0]}, too; rename it")
    return pd.concat([clips, others], ignore_index=True), refusals + refused


def _say_how_to_get(config):
    """Say where recordings that are missing are to be had; "" if they are not DCASE 2021's."""
    machines = {*config.machines}
    if config.data.year != 2021 or not machines or not machines <= {*YEARS[2021].machines}:
        return ""
    return (
        "; python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR downloads DCASE 2021's, of "
        "all seven machines: each serves the others as pseudo-anomalous sounds"
    )


def _write_factory(workdir):
    try:
        if is_first():
            write_factory(workdir / "factory")
    except ValueError as error:
        raise DataError(str(error)) from None
    wait_for_all("factory")
    return workdir / "factory"


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
            raise ConfigError(
                f"--config.machines: no {machine}; there are {', '.join(there)}"
                f"{_say_how_to_get(config)}"
            )
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
        if set(training["machine"]) == {machine} and config.data.others != "none":
            raise DataError(
                f"{machine} has no other machine with training recordings beside it; SerialOE "
                "needs their sounds as pseudo-anomalous ones. --config.data.others may be a folder "
                "of such sounds, factory (those of the embedded factory), or none (the autoencoder "
                "alone scores, nothing is smoothed)"
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
