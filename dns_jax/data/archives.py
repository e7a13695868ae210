"""Unpack zip files from elsewhere: all of one or nothing, and nothing outside its own folder."""

import contextlib
import os
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from dns_jax.data.downloads import check_space
from dns_jax.data.refusals import DataError, printable

_RATIO = 100  # of unpacked to packed bytes: about 1.3 for recordings, 20 for lists of labels


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Unpack an archive into a folder: all of it, or nothing.

    Args:
      archive: a zip file that holds nothing outside `<name of the folder>/`.
      folder: files that it holds already stay, or are replaced one by one.

    Returns:
      How many files now lie in each folder below (hidden ones are not counted).

    Raises:
      DataError: the archive is damaged, holds what it should not, or does not fit on the disk.
      OSError: it cannot be written.
    """
    temporary = folder.parent / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    counts = Counter()
    try:
        with open_archive(archive, folder.name) as (zipped, members):
            check_space(temporary, sum(member.file_size for member in members))
            for member in tqdm(members, f"unpacking {archive.name}", unit="file", disable=None):
                zipped.extract(member, temporary)
        os.sync()  # all files at once, before they get their names
        for member in members:
            path = folder.parent / member.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / member.filename, path)
            if not path.name.startswith("."):
                counts[str(path.parent.relative_to(folder))] += 1
    finally:
        shutil.rmtree(temporary)
    return counts


@contextlib.contextmanager
def open_archive(
    path: Path, top: str = ""
) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open a zip file of which every member has been checked.

    Args:
      path: of the zip file.
      top: the folder outside of which nothing may lie; empty: anywhere, but no way up.

    Yields:
      The zip file, and those of its members that are files.

    Raises:
      DataError: it is damaged or holds what it should not; also while it is being read.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            members = zipped.infolist()
            names = Counter(member.filename for member in members)
            for member in members:
                fault = _find_fault(member, top) or "is there twice" * (names[member.filename] > 1)
                if fault:
                    raise zipfile.BadZipFile(f"{printable(member.orig_filename)} {fault}")
            packed, unpacked = path.stat().st_size, sum(member.file_size for member in members)
            if unpacked > _RATIO * packed:
                raise zipfile.BadZipFile(f"its {packed:,} bytes would become {unpacked:,}")
            yield zipped, [member for member in members if not member.is_dir()]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
        raise DataError(
            f"{printable(path)}: {error}; nothing of it is unpacked, and the archive is kept"
        ) from error


def _find_fault(member: zipfile.ZipInfo, top: str) -> str:
    """Return why a member of an archive may not be unpacked, "" if it may."""
    name = member.orig_filename
    parts = name.removesuffix("/").split("/")
    if {"", ".", ".."} & set(parts) or set("\\:\0") & set(name):
        return "is no plain relative path"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if top and name != f"{top}/" and (parts[0] != top or len(parts) == 1):
        return f"lies outside {top}/"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {member.compress_type}, may be 0 (stored) or 8 (deflated)"
    return ""
