"""The file of F: nothing is lost, doubled or taken for what it is not, whatever happens to it."""

import inspect
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax.data.refusals import DataError
from dns_jax.operation import store as store_module
from dns_jax.operation.recording import DamageError, Recording, check_recording, pack, unpack
from dns_jax.operation.store import Store

ROOT = Path(__file__).resolve().parents[1]
D = 4


def make_recording(number, machine="fan", segments=3, **fields):
    rng = np.random.default_rng(number)
    defaults = {
        "machine": machine,
        "section": number % 3,
        "domain": ("source", "target")[number % 2],
        "clip": f"clip_{number:04d}.wav",
        "path": f"/in/clip_{number:04d}.wav",
        "digest": f"{number:032x}",
        "arrived": 1.7e9 + 10 * number,
        "seconds": 10.0,
        "scores": rng.normal(size=segments).astype(np.float32),
        "features": rng.normal(size=(segments, D)).astype(np.float32),
        "result": f'{{"a_prop": {number}.5}}',
    }
    return Recording(**defaults | fields)


def assert_same(got, expected):
    for field, value in expected._asdict().items():
        np.testing.assert_array_equal(getattr(got, field), value, err_msg=field)


def open_store(path, **options):
    return Store(path, "networks 1", D, **options)


def fill(path, count):
    store = open_store(path)
    recordings = {store.add(make_recording(i)).id: make_recording(i) for i in range(count)}
    store.close()
    return recordings


def check_holds(store, expected):
    held = list(store.read())
    assert [id_ for id_, _ in held] == list(expected)
    for id_, recording in held:
        assert_same(recording, expected[id_])


def test_what_was_added_is_read_after_reopening(tmp_path):
    expected = fill(tmp_path / "F.sqlite", 5)
    store = open_store(tmp_path / "F.sqlite")
    check_holds(store, expected)
    assert store.notice == ""
    store.remove([2, 4])
    store.close()
    store = open_store(tmp_path / "F.sqlite")
    check_holds(store, {id_: expected[id_] for id_ in (1, 3, 5)})
    assert store.add(make_recording(9)).id == 6  # no id is given twice
    store.close()


FLOATS = st.floats(width=32)


@given(
    scores=st.lists(FLOATS, min_size=1, max_size=3),
    feature=st.lists(FLOATS, min_size=D, max_size=D),
    arrived=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(),
    raw=st.binary(max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_any_number_and_any_name_comes_back(scores, feature, arrived, name, raw):
    recording = make_recording(
        0,
        scores=np.float32(scores),
        features=np.float32([feature] * len(scores)),
        arrived=arrived,
        clip=name,
        path=os.fsdecode(raw),
    )
    with sqlite3.connect(":memory:") as database:
        fields, segments = pack(check_recording(recording, D))
        marks = ", ".join("?" * len(fields))
        columns = ", ".join(f"a{i}" for i in range(len(fields)))
        kinds = "TEXT INTEGER TEXT TEXT TEXT TEXT REAL REAL TEXT INTEGER INTEGER".split()
        of_kind = ", ".join(f"a{i} {kind}" for i, kind in enumerate(kinds))
        database.execute(f"CREATE TABLE r ({of_kind})")
        database.execute("CREATE TABLE s (number INTEGER, score REAL, feature BLOB)")
        database.execute(f"INSERT INTO r VALUES ({marks})", fields)
        database.executemany("INSERT INTO s VALUES (?, ?, ?)", segments)
        row = database.execute(f"SELECT {columns} FROM r").fetchone()
        rows = database.execute("SELECT * FROM s ORDER BY number").fetchall()
    database.close()
    assert_same(unpack(row, rows, D), recording)
    with pytest.raises(DamageError):
        unpack(row, rows[:-1], D)


def test_the_same_samples_are_kept_once_a_machine(tmp_path):
    store = open_store(tmp_path / "F.sqlite")
    assert store.add(make_recording(1)) == (1, True)
    assert store.add(make_recording(1, clip="copy.wav")) == (1, False)
    assert store.add(make_recording(1, machine="pump")) == (2, True)
    assert store.add(make_recording(3, digest=None)) == (3, True)
    assert store.add(make_recording(4, digest=None)) == (4, True)
    assert [recording.clip for _, recording in store.read()][:2] == ["clip_0001.wav"] * 2
    store.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scores": np.zeros(2)}, r"clip_0001.wav: scores must be .*\(2,\) and \(3, 4\)"),
        ({"scores": np.zeros(0), "features": np.zeros((0, D))}, "at least one segment"),
        ({"features": np.zeros((3, D + 1))}, r"\(3, 5\)"),
        ({"scores": ["a", "b", "c"]}, "no numbers"),
        ({"arrived": np.nan}, "arrived must be a finite number of seconds; it was nan"),
        ({"section": "00"}, "section must be a whole number; it was '00'"),
        ({"result": {}}, "result must be text"),
        ({"digest": 5}, "digest must be text or None"),
    ],
)
def test_a_recording_that_cannot_be_kept_is_refused(tmp_path, fields, message):
    store = open_store(tmp_path / "F.sqlite")
    with pytest.raises(DataError, match=message) as refusal:
        store.add(make_recording(1, **fields))
    assert "\n" not in str(refusal.value)
    assert list(store.read()) == []
    store.close()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    first = open_store(tmp_path / "F.sqlite")
    with pytest.raises(DataError, match=f"is being written by process {os.getpid()}; "):
        open_store(tmp_path / "F.sqlite")
    first.add(make_recording(1))
    first.close()
    open_store(tmp_path / "F.sqlite").close()


def test_readers_see_what_is_committed_while_it_is_written(tmp_path):
    path = tmp_path / "F.sqlite"
    writer = open_store(path)
    first, second = (open_store(path, writable=False) for _ in range(2))
    expected = {}
    for number in range(4):
        check_holds(first, expected)
        expected[writer.add(make_recording(number)).id] = make_recording(number)
        check_holds(second, expected)
    running = first.read()
    next(running)
    writer.add(make_recording(9))
    writer.remove([1, 2])
    assert [id_ for id_, _ in running] == [2, 3, 4]  # of one moment
    for call in (lambda: first.add(make_recording(8)), lambda: first.remove([1])):
        with pytest.raises(DataError, match="open for reading only"):
            call()
    for store in (writer, first, second):
        store.close()


def test_a_reader_needs_a_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_store(tmp_path / "F.sqlite", writable=False)
    assert list(tmp_path.iterdir()) == []


def test_recordings_without_features_come_back(tmp_path):
    path, recording = tmp_path / "F.sqlite", make_recording(0, features=np.zeros((3, 0), "<f4"))
    for _ in range(2):  # the second time it is there
        with closing(Store(path, "networks 1", 0)) as store:
            store.add(recording)
            ((_, held),) = store.read()
            assert store.notice == ""
            assert held.features.shape == (3, 0)
            np.testing.assert_array_equal(held.scores, recording.scores)


def test_a_reader_may_know_a_part_of_the_networks(tmp_path):
    path = tmp_path / "F.sqlite"
    Store(path, "fan 1, pump 2, begun with test", D).close()
    Store(path, "pump 2", D, writable=False).close()
    for options in ({"identity": "pump 3", "writable": False}, {"identity": "pump 2"}):
        with pytest.raises(DataError, match="other networks"):
            Store(path, dimensions=D, **options)


@pytest.mark.parametrize("options", [{}, {"writable": False}])
def test_a_file_of_other_networks_is_refused(tmp_path, options):
    fill(tmp_path / "F.sqlite", 1)
    with pytest.raises(DataError, match="identity 'networks 1', here 'networks 2'"):
        Store(tmp_path / "F.sqlite", "networks 2", D, **options)
    with pytest.raises(DataError, match="dimensions '4', here '5'"):
        Store(tmp_path / "F.sqlite", "networks 1", 5, **options)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "F.sqlite") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = (tmp_path / "F.sqlite").read_bytes()
    with pytest.raises(DataError, match="another program"):
        open_store(tmp_path / "F.sqlite")
    assert (tmp_path / "F.sqlite").read_bytes() == before


def test_a_file_of_the_first_schema_is_brought_up_to_the_next(tmp_path, monkeypatch):
    path = tmp_path / "F.sqlite"
    expected = fill(path, 3)
    following = ("ALTER TABLE recordings ADD COLUMN note TEXT NOT NULL DEFAULT 'none'",)
    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, following))
    with pytest.raises(DataError, match="schema 1; a writer brings it up to date"):
        open_store(path, writable=False)
    store = open_store(path)
    check_holds(store, expected)
    store.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("SELECT DISTINCT note FROM recordings").fetchall() == [("none",)]
    database.close()
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"has schema 2, this version knows 1 to 1; .* newer"):
        open_store(path)


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "F.sqlite"
    expected = fill(path, 2)
    broken = ("ALTER TABLE recordings ADD COLUMN note TEXT", "ALTER TABLE missing ADD COLUMN x")
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, broken))
        with pytest.raises(DataError, match="no such table: missing"):
            open_store(path)
    store = open_store(path)
    check_holds(store, expected)
    store.close()


def flip(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))


def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path):
    whole = tmp_path / "whole.sqlite"
    expected = fill(whole, 30)
    size = whole.stat().st_size
    rng = np.random.default_rng(0)
    positions = [*range(0, 100, 7), *rng.integers(100, size, 90).tolist(), size - 1]
    outcomes = {"the same": 0, "set aside": 0, "refused": 0}
    for position in positions:
        folder = tmp_path / f"at_{position}"
        folder.mkdir()
        shutil.copy(whole, folder / "F.sqlite")
        flip(folder / "F.sqlite", position)
        damaged = (folder / "F.sqlite").read_bytes()
        try:
            store = open_store(folder / "F.sqlite")
        except DataError:
            assert (folder / "F.sqlite").read_bytes() == damaged
            outcomes["refused"] += 1
            continue
        if store.notice:
            (aside,) = folder.glob("F.sqlite.damaged-*Z")
            assert aside.name in store.notice
            assert "\n" not in store.notice
            assert aside.read_bytes() == damaged
            assert list(store.read()) == []
            assert store.add(make_recording(1)).new
            outcomes["set aside"] += 1
        else:
            check_holds(store, expected)
            outcomes["the same"] += 1
        store.close()
    assert min(outcomes["the same"], outcomes["set aside"]) > 20, outcomes  # pages are half empty


@pytest.mark.parametrize("content", ["feature", "score", "digest", "result"])
def test_a_changed_number_or_word_is_never_read(tmp_path, content):
    path, recording = tmp_path / "F.sqlite", make_recording(17)
    fill(path, 30)
    written = {
        "feature": recording.features[1].tobytes(),
        "score": struct.pack(">d", recording.scores[1]),
        "digest": recording.digest.encode(),
        "result": recording.result.encode(),
    }
    flip(path, path.read_bytes().index(written[content]) + 3)
    store = open_store(path)
    assert "it was moved to" in store.notice
    store.close()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_set_aside(tmp_path, share):
    path = tmp_path / "F.sqlite"
    fill(path, 30)
    os.truncate(path, int(share * path.stat().st_size))
    damaged = path.read_bytes()
    with pytest.raises(DataError, match=r"is damaged .*; a writer that opens it sets it aside"):
        open_store(path, writable=False)
    store = open_store(path)
    assert "it was moved to" in store.notice
    store.close()
    (aside,) = tmp_path.glob("F.sqlite.damaged-*Z")
    assert aside.read_bytes() == damaged


def test_nothing_that_was_set_aside_is_overwritten(tmp_path):
    path = tmp_path / "F.sqlite"
    for number in range(3):
        path.write_bytes(b"no database %d" % number * 100)
        store = open_store(path)
        assert "file is not a database" in store.notice
        store.close()
    asides = sorted(p.read_bytes()[:13] for p in tmp_path.glob("F.sqlite.damaged-*[Z12]"))
    assert asides == [b"no database 0", b"no database 1", b"no database 2"]


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "F.sqlite").touch()
    store = open_store(tmp_path / "F.sqlite")
    assert "is empty" in store.notice
    store.close()


def test_what_lies_beside_a_damaged_file_goes_with_it(tmp_path):
    path = tmp_path / "F.sqlite"
    fill(path, 30)
    store = open_store(path)
    store.add(make_recording(40))
    shutil.copytree(tmp_path, tmp_path / "killed")  # as kill -9 would leave it
    store.close()
    path = tmp_path / "killed" / "F.sqlite"
    log = path.with_name("F.sqlite-wal").read_bytes()
    assert log
    path.write_bytes(b"no database" * (path.stat().st_size // 11))
    store = open_store(path)
    (aside,) = path.parent.glob("F.sqlite.damaged-*Z")
    assert aside.read_bytes().startswith(b"no database")
    assert path.with_name(f"{aside.name}-wal").read_bytes() == log
    assert list(store.read()) == []
    store.close()


def test_a_full_disk_is_one_line_and_nothing_is_half_written(tmp_path):
    path = tmp_path / "F.sqlite"
    expected = fill(path, 3)
    store = open_store(path)
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    large = make_recording(7, segments=2000)
    with pytest.raises(DataError, match=r"clip_0007\.wav was not kept; try again") as refusal:
        store.add(large)
    assert "\n" not in str(refusal.value)
    check_holds(store, expected)
    store._database.execute("PRAGMA max_page_count = 100000")
    expected[store.add(large).id] = large
    store.close()
    store = open_store(path)
    check_holds(store, expected)
    store.close()


WRITER = f"""
import sys
import numpy as np
from dns_jax.operation.recording import Recording
from dns_jax.operation.store import Store
D = {D}
{inspect.getsource(make_recording)}
store = Store(sys.argv[1], "networks 1", D)
held = [id_ for id_, _ in store.read()]
for i in range(int(sys.argv[2]), 10**9):
    added = store.add(make_recording(i))
    print("added", i, flush=True)
    if i % 3 == 2:  # the oldest goes, so that evictions are interrupted too
        store.remove([added.id - 2])
        print("removed", i - 2, flush=True)
"""


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path, kills):
    path, rng = tmp_path / "F.sqlite", np.random.default_rng(kills)
    known, begun = set(), 0
    for _ in range(kills):
        with open(tmp_path / "said", "w+") as said:
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(begun)],
                cwd=ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            deadline = time.monotonic() + 60
            while not os.path.getsize(tmp_path / "said"):
                assert writer.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            said.seek(0)
            lines = [line.split() for line in said.read().split("\n")[:-1]]
        for word, number in lines:
            assert word in ("added", "removed"), lines
            (known.add if word == "added" else known.discard)(int(number))
        store = open_store(path)
        assert store.notice == ""
        held = [int(recording.digest, 16) for _, recording in store.read()]
        for _, recording in store.read():
            assert_same(recording, make_recording(int(recording.digest, 16)))
        store.close()
        assert len(held) == len(set(held))
        last = int(lines[-1][1]) + (2 if lines[-1][0] == "removed" else 0)
        # What was in flight is there or not; nothing else differs.
        missing, more = known - set(held), set(held) - known
        assert missing <= {last - 2}
        assert more <= {last + 1}
        known, begun = set(held), max(last + 1, *(h + 1 for h in held))
    assert begun > kills
