"""The recordings of F on disk: one SQLite file that survives whatever stops its writer.

* A recording with its segments is one transaction, on the disk (WAL, synchronous=FULL) before `add`
  returns; after kill -9 it is there once or not at all. A recording never changes; the samples of
  one machine are there once (`digest`). The order is that of the ids, whatever the clock said.
* One writer holds a lock beside the file (`<name>.lock`) that ends with its process. Readers open
  the file at any time and see what is committed.
* The file names its schema (`PRAGMA user_version`; `MIGRATIONS`), the networks whose scores and
  features it holds, and D. A file of a newer schema, of other networks or programs is refused.
* A writer that finds the file damaged moves it and its `-wal` and `-shm` to
  `<name>.damaged-<UTC>`, says so (`notice`), and begins a new one. Every recording has a checksum,
  so that no changed number is ever read. What is lost with the end of a `-wal` is not noticed.
"""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from dns_jax.data.refusals import DataError, printable
from dns_jax.operation.recording import (
    FIELDS,
    DamageError,
    Recording,
    check_recording,
    pack,
    unpack,
)

APPLICATION = 0x444E5346  # "DNSF", in the header of the file
MIGRATIONS = (
    # From no schema to 1.
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE recordings (
            id INTEGER PRIMARY KEY AUTOINCREMENT, machine TEXT NOT NULL, section INTEGER NOT NULL,
            domain TEXT NOT NULL, clip TEXT NOT NULL, path TEXT NOT NULL, digest TEXT,
            arrived REAL NOT NULL, seconds REAL NOT NULL, result TEXT NOT NULL,
            segments INTEGER NOT NULL, checksum INTEGER NOT NULL, UNIQUE (machine, digest))""",
        """CREATE TABLE segments (
            recording INTEGER NOT NULL, number INTEGER NOT NULL, score REAL, feature BLOB NOT NULL,
            PRIMARY KEY (recording, number)) WITHOUT ROWID""",
    ),
)
_DAMAGE = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB


class Added(NamedTuple):
    """The id of a recording; `new` is false where its samples were there before."""

    id: int
    new: bool


class Store:
    """An open file of recordings.

    Args:
      path: of the file; a writer makes it where there is none.
      identity: of the networks, in the words that a user is told; of a reader some of the parts
        (with commas between them) that the writer had.
      dimensions: D.
      writable: whether to be the one writer.

    Attributes:
      notice: what a user must be told about the opening, or "".

    Raises:
      DataError: the file cannot be opened, and why; it is as it was.
    """

    def __init__(self, path: Path, identity: str, dimensions: int, *, writable: bool = True):
        self.path, self.identity, self.dimensions = Path(path), identity, dimensions
        self.writable, self.notice, self._lock = writable, "", None
        self._database = None
        try:
            if writable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _take_lock(self.path)
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | sqlite3.Error):
                raise DataError(f"{printable(self.path)}: {_explain(error)}") from error
            raise

    def add(self, recording: Recording) -> Added:
        """Write a recording, unless its samples are there.

        Raises:
          DataError: it cannot be written, and nothing of it was.
        """
        recording = check_recording(recording, self.dimensions)
        with self._writing(f"{printable(recording.clip)} was not kept") as database:
            row = database.execute(
                "SELECT id FROM recordings WHERE machine = ? AND digest = ?",
                (recording.machine, recording.digest),
            ).fetchone()
            if row:
                return Added(row[0], new=False)
            fields, segments = pack(recording)
            marks = ", ".join("?" * len(FIELDS))
            cursor = database.execute(
                f"INSERT INTO recordings ({', '.join(FIELDS)}) VALUES ({marks})", fields
            )
            database.executemany(
                f"INSERT INTO segments VALUES ({cursor.lastrowid}, ?, ?, ?)", segments
            )
        return Added(cursor.lastrowid, new=True)

    def remove(self, ids: Iterable[int]) -> None:
        """Delete recordings in one transaction.

        Raises:
          DataError: they cannot be deleted, and none was.
        """
        ids = [(int(id_),) for id_ in ids]
        with self._writing("nothing was evicted") as database:
            database.executemany("DELETE FROM segments WHERE recording = ?", ids)
            database.executemany("DELETE FROM recordings WHERE id = ?", ids)

    @property
    def last_id(self) -> int:
        """The highest id that was ever given; 0 if none was; raises as `read`."""
        try:
            row = self._database.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'recordings'"
            ).fetchone()
        except sqlite3.Error as error:
            raise DataError(f"{printable(self.path)}: {_explain(error)}") from error
        return row[0] if row else 0

    def read(self) -> Iterator[tuple[int, Recording]]:
        """Yield id and recording in the order of the ids, all of one moment.

        Raises:
          DataError: the file cannot be read, or is damaged.
        """
        try:
            yield from self._read()
        except (sqlite3.Error, UnicodeDecodeError, DamageError) as error:
            raise DataError(f"{printable(self.path)}: {_explain(error)}") from error

    def close(self) -> None:
        """Close the file and let another writer come."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):  # what is committed is on the disk
                self._database.close()
            self._database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self):
        name = printable(self.path)
        if self.path.exists():
            if self.writable and not self.path.stat().st_size:
                self.notice = f"{name} is empty; F begins anew"
            try:
                self._connect("ro")  # which leaves the file as it is, also when it is closed
                version = self._check()
            except (sqlite3.Error, UnicodeDecodeError, DamageError) as error:
                if not _is_damage(error):
                    raise
                if not self.writable:
                    raise DataError(
                        f"{name} is damaged ({_explain(error)}); "
                        "a writer that opens it sets it aside"
                    ) from error
                self._database.close()
                aside, version = printable(_set_aside(self.path)), 0
                self.notice = (
                    f"{name} is damaged ({_explain(error)}); it was moved to {aside}, and F "
                    "begins anew"
                )
        elif self.writable:
            version = 0
        else:
            raise DataError(f"{name}: there is no such file; the monitor makes it")
        if self.writable:
            self._connect("rwc")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._migrate(version)
        elif version < len(MIGRATIONS):
            raise DataError(f"{name} has schema {version}; a writer brings it up to date")

    def _connect(self, mode):
        if self._database is not None:
            self._database.close()
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        self._database = sqlite3.connect(address, uri=True, isolation_level=None)
        self._database.text_factory = lambda text: text.decode(errors="surrogateescape")

    def _check(self):
        """Read everything once; return the version of the schema."""
        name, database = printable(self.path), self._database
        for (fault,) in database.execute("PRAGMA integrity_check(1)"):
            if fault != "ok":
                raise DamageError(fault)
        application = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application != APPLICATION and (application or version or tables):
            raise DataError(f"{name} is an SQLite file of another program; give another name")
        if not 0 <= version <= len(MIGRATIONS):
            raise DataError(
                f"{name} has schema {version}, this version knows 1 to {len(MIGRATIONS)}; "
                "open it with the newer version that made it"
            )
        if version:
            try:
                self._check_meta(dict(database.execute("SELECT key, value FROM meta")))
                if version == len(MIGRATIONS):
                    for _ in self._read():
                        pass
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                    raise
                raise DamageError(str(error)) from error  # a table or a column has another name
        return version

    def _check_meta(self, meta):
        for key, ours in (("identity", self.identity), ("dimensions", str(self.dimensions))):
            theirs = meta.get(key, "")
            # A reader may know less than what is there.
            if ours != theirs and (
                self.writable or not {*ours.split(", ")} <= {*theirs.split(", ")}
            ):
                raise DataError(
                    f"{printable(self.path)} was filled by other networks ({key} {meta.get(key)!r},"
                    f" here {ours!r}); move it away or give another name, and F begins anew"
                )

    def _migrate(self, version):
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            with self._transaction() as database:
                for statement in statements:
                    database.execute(statement)
                if number == 1:
                    database.execute(f"PRAGMA application_id = {APPLICATION}")
                    meta = ("identity", self.identity), ("dimensions", str(self.dimensions))
                    database.executemany("INSERT INTO meta VALUES (?, ?)", meta)
                database.execute(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def _writing(self, otherwise) -> Iterator[sqlite3.Connection]:
        """A transaction that goes wrong in one line, which says what did not happen."""
        name = printable(self.path)
        if not self.writable:
            raise DataError(f"{name} is open for reading only; {otherwise}")
        try:
            with self._transaction() as database:
                yield database
        except (sqlite3.Error, OSError) as error:
            way = "start again, and it is set aside" if _is_damage(error) else "try again"
            raise DataError(f"{name}: {_explain(error)}; {otherwise}; {way}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # SQLite has done it, or does at opening
                    self._database.execute("ROLLBACK")
            raise

    def _read(self):
        rows = self._database.execute(
            f"SELECT id, {', '.join(FIELDS)}, number, score, feature FROM recordings "
            "LEFT JOIN segments ON recording = id ORDER BY id, number"
        )
        for id_, group in groupby(rows, itemgetter(0)):
            group = list(group)
            yield id_, unpack(group[0][1:-3], [row[-3:] for row in group], self.dimensions)
        alone = "SELECT count(*) FROM segments WHERE recording NOT IN (SELECT id FROM recordings)"
        if self._database.execute(alone).fetchone()[0]:
            raise DamageError("segments of no recording")


def _is_damage(error):
    code = getattr(error, "sqlite_errorcode", None) or 0  # Python's own errors have none
    # SQLite's messages, too, may quote what is no longer text.
    return isinstance(error, DamageError | UnicodeDecodeError) or code & 0xFF in _DAMAGE


def _explain(error):
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]


def _take_lock(path: Path) -> int:
    """Become the writer until the process ends, or name the one that is."""
    lock = path.with_name(f"{path.name}.lock")
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise DataError(
            f"{printable(path)} is being written by process {owner}; stop it first, or open the "
            "file for reading"
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file


def _set_aside(path: Path) -> Path:
    """Move a damaged file and what belongs to it to a name that nothing has."""
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    name, count = stem, 1
    while any(path.with_name(name + end).exists() for end in ("", "-wal", "-shm")):
        name, count = f"{stem}-{count}", count + 1
    for end in ("-shm", "-wal", ""):
        source = path.with_name(path.name + end)
        if source.exists():
            os.rename(source, path.with_name(name + end))
    return path.with_name(name)
