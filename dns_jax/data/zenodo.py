"""`python -m dns_jax.data.zenodo --machines=fan,pump --out=DIR`: DCASE 2021 Task 2 from Zenodo.

Downloads the archives of the machines (without --machines of all seven: 14 GB, 18 GB unpacked),
checks them against the size and MD5 that Zenodo states, unpacks them to
`DIR/{dev_data,eval_data}/<machine>/`, deletes them, and puts the evaluator's labels into
`DIR/ground_truth_data/`. DIR is then the `--config.data_dir` of a run. The same command goes on
where it was stopped, and does not ask for what is there. Exit status 2 for a mistake in the call,
1 for anything else that goes wrong. The recordings are under CC BY-NC-SA 4.0.
"""

import contextlib
import fcntl
import functools
import json
import os
import re
import signal
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from dns_jax.commands import make_parser, stop
from dns_jax.data.archives import open_archive, unpack
from dns_jax.data.clips import read_clips
from dns_jax.data.downloads import GO_ON, check_space, count_missing, download, read_url, say
from dns_jax.data.names import UNKNOWN, list_visible
from dns_jax.data.refusals import DataError, printable
from dns_jax.files import write_file, write_text

API = "https://zenodo.org/api/records"


class Dataset(NamedTuple):
    """Its machines, (record, archive of a machine, folder) of its parts, the record of labels."""

    machines: tuple[str, ...]
    archives: tuple[tuple[int, str, str], ...]
    labels: int


DATASETS = {
    "dcase2021": Dataset(
        machines=("fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve"),
        archives=(
            (4562016, "dev_data_{}.zip", "dev_data"),
            (4660992, "eval_data_{}_train.zip", "eval_data"),
            (4884786, "eval_data_{}_test.zip", "eval_data"),
        ),
        labels=5257674,
    )
}
_LABELS = "ground_truth_*_test.csv", "eval_data_list*.csv"


class File(NamedTuple):
    """A file of a record: where it is, its size in bytes, and its MD5."""

    url: str
    size: int
    md5: str


def read_record(number: int, api: str = API) -> dict[str, File]:
    """Return the files of a Zenodo record by name.

    Args:
      number: of the record.
      api: where Zenodo describes records.

    Raises:
      DataError: the record is not to be had, or is malformed.
    """
    url, files = f"{api}/{number}", {}
    text = read_url(url)
    try:
        for entry in json.loads(text)["files"]:
            file = File(entry["links"]["self"], entry["size"], entry["checksum"])
            md5 = re.fullmatch(r"md5:([0-9a-f]{32})", file.md5)
            web = re.fullmatch(r"https?://[!-~]+", file.url)
            name = PurePosixPath(entry["key"]).name
            if not (
                md5 and web and type(file.size) is int and file.size >= 0 and name.isprintable()
            ):
                raise ValueError(f"its file {name!r}: {file}")
            files[name] = file._replace(md5=md5[1])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{url}: the answer is not a record of files ({what})") from error
    return files


def fetch_dataset(name: str, machines: tuple[str, ...], out: Path, api: str = API) -> pd.DataFrame:
    """Download, check, unpack and label what is not there yet of a data set.

    Args:
      name: one of `DATASETS`.
      machines: some of its machines.
      out: the data directory.
      api: where Zenodo describes records.

    Returns:
      The table of `read_clips` for these machines; every clip has a label.

    Raises:
      DataError, OSError: something is not to be had, or not what it should be, or does not fit on
        the disk. What has come so far is kept, and the next call goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _fetch_archives(DATASETS[name].archives, machines, out, api)
        clips, refusals = read_clips(out)
        unlabelled = (clips["label"] == UNKNOWN) & clips["machine"].isin(machines)
        if unlabelled.any():
            _fetch_labels(DATASETS[name].labels, out, api)
            clips, refusals = read_clips(out)
        with contextlib.suppress(OSError):  # not empty: parts of machines that are not asked for
            (out / ".zenodo").rmdir()
    if refusals:
        path, reason, _ = refusals[0]
        say(f"{len(refusals)} files there are no clips, the first {printable(path)}: {reason}")
    clips = clips[clips["machine"].isin(machines)].reset_index(drop=True)
    unlabelled = clips[clips["label"] == UNKNOWN]
    if len(unlabelled):
        raise DataError(
            f"{len(unlabelled):,} of {len(clips):,} clips have no label in "
            f"{printable(out / 'ground_truth_data')}, the first {unlabelled['path'].iloc[0]}"
        )
    return clips


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second process from writing the same files at the same time."""
    directory = os.open(out, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no directories
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"another process is downloading to {printable(out)}; wait for it"
                ) from None
        yield
    finally:
        os.close(directory)


def _fetch_archives(archives, machines, out, api):
    """Download and unpack what is not there yet, one archive after the other."""
    records = functools.cache(lambda number: read_record(number, api))
    missing = []
    for machine in machines:
        for number, pattern, folder in archives:
            path = out / ".zenodo" / pattern.format(machine)
            marker = out / folder / machine / f".{path.name}.json"
            if not _is_unpacked(marker):
                if path.name not in records(number):
                    there = _join(records(number))
                    raise DataError(f"{api}/{number}: no {path.name} among its files ({there})")
                missing.append((path, records(number)[path.name], marker))
    check_space(out, sum(count_missing(path, file.size, file.md5) for path, file, _ in missing))
    for path, file, marker in missing:
        say(f"{path.name}: {file.size:,} bytes")
        download(file.url, path, file.size, file.md5)
        counts = unpack(path, marker.parent)
        write_text(marker, json.dumps({"archive": path.name, "md5": file.md5, "clips": counts}))
        path.unlink()
        say(f"{path.name}: {sum(counts.values()):,} clips in {marker.parent}; archive deleted")


def _is_unpacked(marker: Path) -> bool:
    """Tell whether an archive was unpacked and no fewer clips are there now (renamed, or FLAC)."""
    try:
        counts = json.loads(marker.read_text())["clips"]
        folders = {folder: len(list_visible(marker.parent / folder)) for folder in counts}
        return all(folders[folder] >= count for folder, count in counts.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _fetch_labels(number: int, out: Path, api: str) -> None:
    """Put every file of labels of a record, also those in its archives, where runs look for them.

    Raises:
      DataError: there is none, or another one of that name is there.
    """
    folder, files, found = out / "ground_truth_data", read_record(number, api), 0
    for name, file in files.items():
        if not name.lower().endswith(".zip") and not _holds_labels(name):
            continue
        path = out / ".zenodo" / name
        download(file.url, path, file.size, file.md5)
        for label_file, content in _read_labels(path):
            place = folder / label_file
            if place.exists() and place.read_bytes() != content:
                raise DataError(
                    f"{printable(place)} is not the one of {api}/{number}, yet clips lack a label; "
                    "move it away"
                )
            write_file(place, lambda opened, content=content: opened.write(content))
            found += 1
        path.unlink()
    if not found:
        raise DataError(
            f"{api}/{number}: no {' or '.join(_LABELS)} in its files ({_join(files)}); the "
            f"recordings are complete, put their labels into {printable(folder)} by hand"
        )
    say(f"labels: {found} files in {folder}")


def _join(names) -> str:
    return ", ".join(names) or "none"


def _holds_labels(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LABELS)


def _read_labels(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of labels in a zip file, or of the one itself."""
    if path.suffix.lower() != ".zip":
        yield path.name, path.read_bytes()
        return
    with open_archive(path) as (zipped, members):
        for member in members:
            name = PurePosixPath(member.filename).name
            if _holds_labels(name):
                yield name, zipped.read(member)


def main(argv: list[str] | None = None, api: str = API) -> None:
    """Run the command; SIGTERM is then taken like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = make_parser("dns_jax.data.zenodo", __doc__)
    parser.add_argument("--dataset", default="dcase2021", choices=DATASETS)
    parser.add_argument("--machines", help="names with commas between them; default: all")
    parser.add_argument("--out", required=True, help="the data directory")
    args = parser.parse_args(argv)
    there = DATASETS[args.dataset].machines
    machines = there if args.machines is None else tuple(dict.fromkeys(args.machines.split(",")))
    for machine in machines:
        if machine not in there:
            stop(f"--machines={args.machines}: no {machine!r}; there are {', '.join(there)}", 2)
    try:
        clips = fetch_dataset(args.dataset, machines, Path(args.out), api)
    except DataError as error:
        stop(error, 1)
    except OSError as error:
        where = printable(error.filename or args.out)
        stop(f"{where}: {error.strerror or error}; what has come so far is kept, {GO_ON}", 1)
    except KeyboardInterrupt:
        stop(f"stopped; {GO_ON}", 1)
    for machine, rows in clips.groupby("machine"):
        test = rows[rows["split"] == "test"]
        print(
            f"{machine}: {len(rows) - len(test):,} training and {len(test):,} test clips, "
            f"sections {', '.join(map(str, sorted(set(rows['section']))))}, "
            f"all labelled ({sum(test['label']):,} anomalous)"
        )


if __name__ == "__main__":
    main()
