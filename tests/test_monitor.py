"""The monitor: every recording is scored once and has one line, whatever happens."""

import csv
import errno
import gc
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path

import fake_detector
import pytest
from fake_detector import FakeDetector, write_sound

from dns_jax.data.headers import Unusable, Wanted
from dns_jax.data.names import parse_name
from dns_jax.data.refusals import DataError
from dns_jax.data.years import YEARS
from dns_jax.operation import loop as loop_module
from dns_jax.operation import monitor, showing
from dns_jax.operation.board import Board
from dns_jax.operation.ledger import Ledger
from dns_jax.operation.loop import SLICE, Loop
from dns_jax.operation.watching import Watcher

ROOT = Path(__file__).resolve().parents[1]
NAME = "section_00_source_{}.wav"


class Time:
    """A clock that only sleep moves; `after` is called with every sleep and may stop the loop."""

    def __init__(self, sleeps=12):
        self.now, self.left, self.after, self.loop = 1000.0, sleeps, lambda: None, None

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.after()
        self.left -= 1
        if self.left <= 0:
            self.loop.stopping = True


class Place:
    """A watched folder and what a monitor of it leaves, over several starts."""

    def __init__(self, root):
        self.root, self.watch, self.out = root, root / "watch", root / "out"
        self.watch.mkdir()
        self.said = []

    def put(self, name, number, **how):
        return write_sound(self.watch / name, number, **how)

    def run(self, clock=None, change=lambda loop: None, patience=10.0, **how):
        """Start, work until the clock says so, and end; return the loop."""
        clock = clock or Time()
        detector = FakeDetector.load("", store=self.out / "pool.sqlite")
        with closing(detector), closing(Ledger(self.out / "ledger.jsonl")) as ledger:
            loop = clock.loop = Loop(
                detector,
                Watcher(self.watch, ledger.known, settle=1.0, patience=patience, clock=clock),
                ledger,
                Board(list(detector.machines), clock),
                self.out / "ranking.csv",
                self.said.append,
                clock=clock,
                sleep=clock.sleep,
                **how,
            )
            change(loop)
            loop.catch_up()
            loop.run()
        return loop

    def lines(self, event):
        lines = (self.out / "ledger.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]

    def names(self, event):
        return [os.path.relpath(line["path"], self.watch) for line in self.lines(event)]

    def held(self):
        """{id: path below the folder} of what is in F."""
        with closing(sqlite3.connect(self.out / "pool.sqlite")) as database:
            rows = database.execute("SELECT id, path FROM recordings ORDER BY id")
            return {id_: os.path.relpath(path, self.watch) for id_, path in rows}

    def check(self, scored, refused=(), duplicate=()):
        """Each is in F, in the ledger, or in neither, and once."""
        assert sorted(self.held().values()) == sorted(scored)
        assert sorted(self.names("scored")) == sorted(scored)
        assert {
            line["id"]: os.path.relpath(line["path"], self.watch) for line in self.lines("scored")
        } == self.held()
        assert sorted(self.names("refused")) == sorted(refused)
        assert sorted(self.names("duplicate")) == sorted(duplicate)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def put_some(place, count=3):
    names = [f"fan/{NAME.format(number)}" for number in range(count)]
    for number, name in enumerate(names):
        place.put(name, number, loudness=0.05 + 0.05 * number)
    return names


def test_every_recording_is_scored_written_down_and_ranked(place):
    names = put_some(place)
    place.put("pump/section_00_target_x.flac", 9)
    loop = place.run()
    place.check([*names, "pump/section_00_target_x.flac"])
    line = place.lines("scored")[0]
    assert line["machine"] == "fan"
    assert (line["section"], line["domain"], line["threshold"]) == (0, "source", 0.1)
    assert line["score"] == pytest.approx(0.05, rel=0.1)
    assert line["size"] == os.path.getsize(place.watch / names[0])
    table = (place.out / "ranking.csv").read_text().splitlines()
    assert [row.split(",")[3] for row in table[1:3]] == [NAME.format(2), NAME.format(1)]
    page = json.loads(loop.board.to_json())
    assert (page["scored"], page["anomalous"], page["waiting"], page["refused"]) == (4, 1, 0, 0)
    assert [(m["name"], m["held"]) for m in page["machines"]] == [("fan", 3), ("pump", 1)]


def test_a_second_start_scores_and_says_nothing_again(place):
    names = put_some(place)
    place.put("fan/section_05_x.wav", 7)
    place.run()
    before = (place.out / "ledger.jsonl").read_bytes()
    said = len(place.said)
    loop = place.run()
    assert (place.out / "ledger.jsonl").read_bytes() == before
    assert len(place.said) == said
    place.check(names, refused=["fan/section_05_x.wav"])
    # What was scored before is shown, and is ranked.
    assert len(loop.board.rows) == 3
    assert len((place.out / "ranking.csv").read_text().splitlines()) == 4
    place.put("fan/section_00_new.wav", 8)
    place.run()
    place.check([*names, "fan/section_00_new.wav"], refused=["fan/section_05_x.wav"])


def test_what_cannot_be_told_or_used_is_refused_with_its_reason_once(place):
    place.put(NAME.format("a"), 0)
    place.put(f"car/{NAME.format('b')}", 1)
    place.put("fan/whatever.wav", 2)
    place.put(f"fan/{NAME.format('short')}", 3, seconds=0.05)
    (place.watch / "fan" / NAME.format("text")).write_text("this is no sound")
    place.put(os.fsdecode(b"fan/section_00_\xff.wav"), 5)
    good = place.put("fan/section_01_z.wav", 4)
    loop = place.run(Time(40))
    reasons = {os.path.basename(line["path"]): line["reason"] for line in place.lines("refused")}
    assert len(reasons) == len(place.lines("refused")) == 6
    assert reasons["section_00_\udcff.wav"] == "name: not valid UTF-8"
    assert reasons[NAME.format("a")].startswith(
        "no machine: it lies in no folder; the folder may be"
    )
    assert "its first folder is 'car'; the folder may be fan, pump" in reasons[NAME.format("b")]
    assert reasons["whatever.wav"] == "whatever.wav is of section None"
    assert reasons[NAME.format("short")].startswith("shorter than a segment")
    assert reasons[NAME.format("text")].startswith("not audio")
    assert place.names("scored") == [f"fan/{good.name}"]
    assert len(place.said) == 6
    assert json.loads(loop.board.to_json())["refused"] == 6


def test_one_machine_may_be_said_for_all(place):
    place.put(NAME.format("a"), 0)
    place.put(f"monday/{NAME.format('b')}", 1)
    place.run(machine="pump")
    assert {line["machine"] for line in place.lines("scored")} == {"pump"}
    place.check([NAME.format("a"), f"monday/{NAME.format('b')}"])


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ("section_03_target_train_normal_0001.wav", (3, "target")),
        ("section_00_source_x.flac", (0, "source")),
        ("section_123_0000.wav", (123, None)),
        ("section_0_source_x.wav", (None, None)),
        ("section_٠٠_source_x.wav", (None, None)),
        ("my_section_00_source_x.wav", (None, None)),
        ("section_00.wav", (None, None)),
    ],
)
def test_section_and_domain_are_what_the_name_says(clip, expected):
    said = parse_name(clip, YEARS[2021])
    assert (said.get("section"), said.get("domain")) == expected


def test_what_was_refused_for_want_of_a_machine_is_scored_by_a_call_that_names_it(place):
    place.put(NAME.format("a"), 0)
    place.run()
    assert place.names("refused") == [NAME.format("a")]
    place.run(machine="fan")
    assert place.names("scored") == [NAME.format("a")]


def test_a_stop_ends_a_long_search_of_F(place):
    put_some(place)
    place.run()

    def search(machine, pause):
        place.searches += 1
        loop.stopping = True  # a signal comes meanwhile
        pause()
        raise AssertionError("the search went on")

    def change(changed):
        nonlocal loop
        loop, place.searches = changed, 0
        loop.detector.recordings = search

    loop = None
    place.run(change=change)
    assert place.searches == 2  # one when it began, one that did not begin at the end


def test_recordings_come_before_a_long_search_of_F_and_its_ranking_stands_till_then(place):
    names = put_some(place)
    place.run()
    before = (place.out / "ranking.csv").read_bytes()
    clock, late = Time(30), [f"fan/section_00_late_{number}.wav" for number in range(3)]
    done, scored = set(), []

    def search(loop):
        recordings, score = loop.detector.recordings, loop.detector.score

        def compare(machine, pause):
            for block in {*range(60)} - done:  # half a second each, and never twice
                pause()
                assert (place.out / "ranking.csv").read_bytes() == before
                clock.now += 0.5
                done.add(block)
                if block in (4, 9, 14):
                    place.put(late[block // 5], 50 + block)
            return recordings(machine)

        def note(path, **how):
            scored.append((os.path.relpath(path, place.watch), len(done)))
            return score(path, **how)

        loop.detector.recordings, loop.detector.score = compare, note

    loop = place.run(clock, search)
    assert len(done) == 60
    # Each was scored while the search went on, with what was left of it.
    assert [name for name, _ in scored] == late
    assert all(after < 60 for _, after in scored[:2])
    place.check([*names, *late])
    assert len(loop.board.rows) == 6
    assert len((place.out / "ranking.csv").read_text().splitlines()) == 7
    assert sum("F is compared with itself" in line for line in place.said) == 1


def test_a_search_gets_on_however_long_it_takes_to_come_to_it(place):
    put_some(place)
    clock, done, calls = Time(30), [], []

    def search(loop):
        recordings = loop.detector.recordings

        def compare(machine, pause):
            calls.append(machine)
            clock.now += 1.1 * loop._slice  # longer than it may take, always
            while len(done) < 3:
                pause()
                clock.now += 10 * SLICE
                done.append(machine)
            return recordings(machine)

        loop.detector.recordings = compare

    loop = place.run(clock, search)
    assert len(done) == 3
    assert len(calls) < 9  # a block each, and what is asked for when there is nothing to search
    assert len(loop.board.rows) == 3


def test_with_once_a_folder_that_takes_long_to_list_is_dealt_with(place):
    names = put_some(place)
    clock = Time(1000)

    def slow_down(loop):
        scan = loop.watcher.scan

        def list_slowly(**how):
            clock.now += 5.0
            return scan(**how)

        loop.watcher.scan = list_slowly

    place.run(clock, slow_down, once=True)
    place.check(names)


def test_with_once_a_table_that_cannot_be_written_is_an_error(place, monkeypatch):
    names = put_some(place)

    def fail(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(showing, "write_ranking", fail)
    with pytest.raises(OSError, match="Permission denied"):
        place.run(Time(1000), once=True)
    place.check(names)


def test_what_no_call_knows_the_machine_of_is_refused_once_until_one_does(place):
    name = NAME.format("a")
    place.put(name, 0)
    for _ in range(3):
        place.run()
    place.check([], refused=[name])
    assert sum("is refused" in line for line in place.said) == 1
    place.run(machine="fan")
    place.check([name], refused=[name])


def test_the_same_samples_count_once(place):
    name = f"fan/{NAME.format('a')}"
    path = place.put(name, 0)
    shutil.copy(path, place.watch / "fan" / NAME.format("b"))
    place.put(f"fan/sub/{path.name}", 0)
    place.put("fan/section_00_source_c.flac", 0)
    place.put(f"pump/{path.name}", 0)
    loop = place.run()
    copies = [f"fan/{NAME.format('b')}", f"fan/sub/{path.name}", "fan/section_00_source_c.flac"]
    place.check([name, f"pump/{path.name}"], duplicate=copies)
    assert json.loads(loop.board.to_json())["duplicate"] == 3


def test_a_name_that_is_used_again_is_another_recording(place):
    path = place.put(f"fan/{NAME.format('a')}", 0)
    place.run()
    write_sound(path, 1, seconds=0.3)
    place.run()
    assert place.names("scored") == [f"fan/{path.name}"] * 2
    assert len(place.held()) == 2


def test_a_recording_that_is_deleted_before_it_is_read_is_told_gone(place):
    names = put_some(place)

    def change(loop):
        score = loop.detector.score

        def delete_and_score(path, **how):
            if path.endswith(names[1]):
                os.unlink(path)
            return score(path, **how)

        loop.detector.score = delete_and_score

    place.run(change=change)
    place.check([names[0], names[2]])
    assert place.names("gone") == [names[1]]


def test_a_recording_that_is_deleted_while_it_is_read_counts(place):
    names = put_some(place)

    def change(loop):
        score = loop.detector.score

        def score_and_delete(path, **how):
            judgement = score(path, **how)
            os.unlink(path)
            return judgement

        loop.detector.score = score_and_delete

    place.run(change=change)
    place.check(names)
    assert place.names("gone") == []


def test_what_is_said_of_a_file_that_is_gone_or_changed_by_then_does_not_count(place):
    names = put_some(place)
    done = []

    def change(loop):
        score = loop.detector.score

        def meddle(path, **how):
            if path.endswith(names[0]) and not done:
                done.append(path)
                os.unlink(path)
                raise Unusable("cannot decode (System error.)")
            if path.endswith(names[1]) and len(done) == 1:
                done.append(path)
                judgement = score(path, **how)
                write_sound(path, 100, seconds=0.3)
                return judgement
            return score(path, **how)

        loop.detector.score = meddle

    place.run(Time(20), change)
    place.check(names[1:])
    assert place.names("gone") == [names[0]]
    scored = {line["path"]: line["seconds"] for line in place.lines("scored")}
    assert scored[str(place.watch / names[1])] == 0.3


def test_a_file_that_cannot_be_read_is_told_once_and_tried_again(place):
    names = put_some(place)
    tries = []

    def change(loop):
        score = loop.detector.score

        def refuse(path, **how):
            if path.endswith(names[0]):
                tries.append(path)
                if len(tries) < 4:
                    raise PermissionError(errno.EACCES, "Permission denied", path)
            return score(path, **how)

        loop.detector.score = refuse

    place.run(Time(100), change, patience=5.0)
    assert len(tries) == 4
    place.check(names)
    assert place.names("scored")[-1] == names[0]  # the others did not wait for it
    assert sum("Permission denied" in line for line in place.said) == 1


def test_with_once_what_cannot_be_read_is_left_for_the_next_call(place):
    names = put_some(place)

    def change(loop):
        score = loop.detector.score

        def refuse(path, **how):
            if path.endswith(names[0]):
                raise OSError(errno.EIO, "Input/output error", path)
            return score(path, **how)

        loop.detector.score = refuse

    clock = Time(1000)
    place.run(clock, change, once=True)
    assert clock.left > 900
    assert place.said[-1] == "1 recording(s) are left for the next call"
    place.check(names[1:])
    place.run(once=True)
    place.check(names)


def test_with_once_what_comes_later_is_left_for_the_next_call(place):
    names = put_some(place)
    clock = Time(1000)
    later = iter(range(100, 1000))

    def after():
        number = next(later)
        place.put(f"fan/{NAME.format(number)}", number)

    clock.after = after
    place.run(clock, once=True)
    assert clock.left > 900
    place.check(names)


def test_what_nobody_expected_of_one_file_does_not_stop_the_others(place):
    names = put_some(place)

    def change(loop):
        score = loop.detector.score

        def fail(path, **how):
            if path.endswith(names[0]):
                raise TypeError("of\nno type")
            return score(path, **how)

        loop.detector.score = fail

    place.run(change=change)
    place.check(names[1:], refused=[names[0]])
    assert place.lines("refused")[0]["reason"] == "TypeError: of no type"


def test_a_lost_device_ends_the_monitor_and_loses_nothing(place):
    names = put_some(place)

    def change(loop):
        score, calls = loop.detector.score, []

        def fail(path, **how):
            calls.append(path)
            if len(calls) == 2:
                raise RuntimeError("RESOURCE_EXHAUSTED")
            return score(path, **how)

        loop.detector.score = fail

    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        place.run(change=change)
    place.check(names[:1])
    place.run()
    place.check(names)


# --- disk full


def fill_store(loop):
    """Let the file of F have no more pages, as on a full disk; return what makes room again."""
    database = loop.detector._store._database
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    return lambda: database.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_under_F_is_told_waited_for_and_nothing_is_lost(place):
    names = put_some(place, 40)
    clock, seen = Time(60), []

    def change(loop):
        relieve = fill_store(loop)

        def after():
            page = json.loads(loop.board.to_json())
            seen.append(page["trouble"])
            if clock.left == 40:
                relieve()

        clock.after = after

    loop = place.run(clock, change)
    assert any("full" in trouble for trouble in seen)
    assert sum("disk is full" in line for line in place.said) == 1
    assert "it can be written again" in place.said
    assert json.loads(loop.board.to_json())["trouble"] == ""
    place.check(names)


class FullDisk:
    """`os.write` that finds room for half a line of the ledger while the disk is `full`."""

    def __init__(self, monkeypatch):
        self.full, self._real = True, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file, data):
        if self.full and not data.startswith(b'{"event"'):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real(file, data[: len(data) // 2] if self.full else data)


@pytest.mark.parametrize("recovers", [True, False])
def test_a_full_disk_under_the_ledger_is_told_waited_for_and_nothing_is_lost(
    place, monkeypatch, recovers
):
    names = put_some(place)
    place.put("fan/section_09_x.wav", 9)
    disk, clock = FullDisk(monkeypatch), Time(30)

    def after():
        disk.full = disk.full and not (recovers and clock.left == 15)

    clock.after = after
    place.run(clock)
    assert sum("No space left on device: " in line for line in place.said) == 1
    if not recovers:  # it was stopped while the disk was full: F has one that the ledger lacks
        assert list(place.held().values()) == names[:1]
        assert place.names("scored") == []
        disk.full = False
        place.run()
        assert place.lines("notice")[0]["message"].startswith("1 line(s) that the ledger lacked")
    place.check(names, refused=["fan/section_09_x.wav"])


def test_with_once_a_full_disk_ends_the_call_and_the_next_goes_on(place, monkeypatch):
    names = put_some(place)
    disk = FullDisk(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        place.run(Time(100), once=True)
    disk.full = False
    place.run(Time(100), once=True)
    place.check(names)


def test_a_full_disk_under_the_table_is_told_once_and_the_table_comes_later(place, monkeypatch):
    names = put_some(place)
    clock = Time(40)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(showing, "write_ranking", fail)
    troubles = []

    def after():
        troubles.append(json.loads(clock.loop.board.to_json())["trouble"])
        if clock.left == 5:
            monkeypatch.undo()

    clock.after = after
    loop = place.run(clock)
    place.check(names)
    assert any("ranking.csv cannot be written: No space left" in t for t in troubles)
    assert json.loads(loop.board.to_json())["trouble"] == ""
    assert sum("ranking.csv" in line for line in place.said) == 1
    assert len((place.out / "ranking.csv").read_text().splitlines()) == 4


def test_a_damaged_F_ends_the_monitor(place):
    put_some(place)

    def change(loop):
        def append(*_, **__):
            raise DataError("pool.sqlite: malformed; start again") from sqlite3.DatabaseError("x")

        loop.detector.append = append

    with pytest.raises(DataError, match="malformed"):
        place.run(change=change)
    assert place.names("scored") == place.names("refused") == []


def test_a_recording_that_F_does_not_take_is_refused_and_the_others_go_on(place):
    names = put_some(place)

    def change(loop):
        append = loop.detector.append

        def refuse(judgement, **how):
            if judgement.clip in names[1]:
                raise DataError("a feature is missing")
            return append(judgement, **how)

        loop.detector.append = refuse

    place.run(change=change)
    place.check([names[0], names[2]], refused=[names[1]])


# --- time, crowds and memory


def test_a_clock_that_is_set_back_changes_nothing(place, monkeypatch):
    names, day = [], [2e9]
    monkeypatch.setattr(time, "time", lambda: day[0])
    clock = Time(40)

    def after():
        number = len(names)
        if number < 10:
            day[0] -= 86400.0
            names.append(f"fan/{NAME.format(number)}")
            path = place.put(names[-1], number)
            os.utime(path, (day[0], day[0]))

    clock.after = after
    place.run(clock)
    place.check(names)
    assert place.names("scored") == names
    arrived = [line["arrived"] for line in place.lines("scored")]
    assert arrived == sorted(arrived, reverse=True)


def test_what_comes_faster_than_it_can_be_scored_waits_on_the_disk_and_is_told(place):
    clock, count, most = Time(10**6), [0], [0]

    def arrive(seconds):
        """Two recordings a second, for 150 s."""
        for _ in range(round(2 * seconds)):
            if count[0] < 300:
                place.put(f"fan/{NAME.format(f'{count[0]:04d}')}", count[0])
                count[0] += 1

    def change(loop):
        score, sleep = loop.detector.score, clock.sleep

        def slowly(path, **how):
            clock.now += 1.0  # a second each
            arrive(1.0)
            most[0] = max(most[0], len(loop.watcher))
            return score(path, **how)

        def idle(seconds):
            sleep(seconds)
            arrive(seconds)
            if count[0] == 300 and not len(loop.watcher):
                loop.stopping = True

        loop.detector.score, loop._sleep = slowly, idle

    place.run(clock, change)
    place.check([f"fan/{NAME.format(f'{number:04d}')}" for number in range(300)])
    assert most[0] > loop_module.CROWD
    told = [line for line in place.said if "recordings wait" in line]
    assert len(told) == 1  # once, not with every listing
    assert told[0].endswith("about 60 a minute can be dealt with")


def test_ten_thousand_files_at_once_are_counted_and_taken_one_after_another(place):
    content = place.put("fan/section_00_x.wav", 0).read_bytes()
    for number in range(9_999):
        (place.watch / "fan" / f"section_00_{number:04d}.wav").write_bytes(content)
    clock, waiting = Time(10**6), []

    def change(loop):
        score = loop.detector.score

        def count(path, **how):
            waiting.append(len(loop.watcher))
            loop.stopping = len(waiting) == 20
            return score(path, **how)

        loop.detector.score = count

    place.run(clock, change)
    assert waiting == list(range(10_000, 9_980, -1))
    assert len(place.lines("scored")) == 1
    assert len(place.lines("duplicate")) == 19


def simulate(place, clips, keep):
    """Let a clip come every 10 s; the recorder deletes them after an hour. Return RSS in bytes."""
    clock, rss, came = Time(10**9), [], [0]
    paths = []

    def after():
        number = came[0]
        if number == clips:
            clock.loop.stopping = not len(clock.loop.watcher)
            return
        clock.now += 10
        paths.append(place.put(f"fan/section_0{number % 2}_source_{number:05d}.wav", number))
        came[0] += 1
        if len(paths) > 360:
            paths.pop(0).unlink()
        if number % (clips // 10) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rss.append(pages * os.sysconf("SC_PAGE_SIZE"))

    clock.after = after
    place.run(clock, limits={"keep": keep})
    return rss


def check_simulation(place, clips, keep):
    rss = simulate(place, clips, keep)
    lines = place.lines("scored")
    names = [f"fan/section_0{number % 2}_source_{number:05d}.wav" for number in range(clips)]
    assert place.names("scored") == names  # not one lost or doubled, and in order
    assert len({line["id"] for line in lines}) == clips
    assert list(place.held().values()) == names[-keep:]
    assert max(rss[1:]) < 1.05 * rss[1]
    return rss


def test_hours_of_recordings_leave_memory_flat_and_lose_and_double_none(place):
    check_simulation(place, 400, 100)


@pytest.mark.soak
def test_a_day_of_recordings_leaves_memory_flat_and_loses_and_doubles_none(place):
    rss = check_simulation(place, 8640, 1000)
    print("\nMB:", *(round(x / 1e6, 1) for x in rss))


# --- kill -9


def run_killed(place, kills, seed):
    script = [sys.executable, str(ROOT / "tests" / "fake_detector.py"), "kill_often"]
    done = subprocess.run(
        [*script, str(kills), str(place.watch), str(place.out), str(seed)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    scored, refused, copies = [], [], {}
    for number in range(kills + 1):
        stem = f"fan/section_0{number % 2}_source_{number:04d}"
        scored += [f"{stem}.wav", f"{stem}_half.wav"]
        copies[f"{stem}_a.flac"] = f"{stem}_b.flac"
        refused.append(f"fan/section_07_{number:04d}.wav")
    first = [a if a in place.names("scored") else b for a, b in copies.items()]
    second = {*copies, *copies.values()} - {*first}
    place.check(scored + first, refused, second)
    lacked = [line["message"] for line in place.lines("notice") if "lacked" in line["message"]]
    torn = [line["message"] for line in place.lines("notice") if "torn" in line["message"]]
    return len(lacked), len(torn)


def test_kill_9_at_ten_moments_loses_and_doubles_nothing(place):
    run_killed(place, 10, seed=0)


@pytest.mark.soak
def test_kill_9_at_two_hundred_moments_loses_and_doubles_nothing(place):
    lacked, torn = run_killed(place, 200, seed=1)
    print(f"\nkilled between F and the ledger: {lacked}, within a line: {torn}")
    assert lacked > 0  # otherwise the moments were the wrong ones


# --- hostile recordings


def test_the_hostile_recordings_are_each_dealt_with_once(place, realdata, monkeypatch):
    monkeypatch.setattr(fake_detector, "WANTED", Wanted(16_000, 64_000, False, -1))
    monkeypatch.setattr(fake_detector, "RATE", 16_000)
    (place.watch / "fan").mkdir()
    for path in sorted((realdata / "hostile").iterdir()):
        if path.name != "README.md":
            shutil.copyfile(path, place.watch / "fan" / path.name)
    loop = place.run(Time(60))
    stem = "fan/section_00_source_test_normal_"
    scored = [f"{stem}{number}.wav" for number in ("0008", "0010", "0011", "0012")]
    lines = Counter(
        name for event in ("scored", "duplicate", "refused") for name in place.names(event)
    )
    assert set(lines.values()) == {1}
    assert {*lines} == {os.path.relpath(p, place.watch) for p in (place.watch / "fan").iterdir()}
    assert {*scored} <= {*place.names("scored")}
    assert len(place.held()) == len(place.names("scored"))
    reasons = {os.path.relpath(x["path"], place.watch): x["reason"] for x in place.lines("refused")}
    for number, reason in {
        "0000": "empty",
        "0001": "truncated header",
        "0002": "truncated",
        "0003": "not audio",
        "0004": "8 channels",
        "0009": "non-finite samples: 3",
        "0015": "truncated",
        "0022": "bad sample rate",
    }.items():
        assert reasons[f"{stem}{number}.wav"].startswith(reason)
    assert reasons[f"{stem}0025.flac"].startswith("cannot decode")
    assert f"{stem}0023.WAV" in reasons
    assert json.loads(loop.board.to_json())["waiting"] == 0


# --- the command line


def call(*argv):
    monitor.main([str(word) for word in argv])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "--workdir is missing, as in --workdir=runs/fan"),
        (["--workdir=x"], "--watch is missing, as in --watch=incoming"),
        (["--workdir=x", "--watch=nowhere"], "--watch=nowhere: there is no such folder"),
        (["--keep=0"], "--keep must be at least 1; it was 0"),
        (["--keep=many"], "argument --keep: invalid int value: 'many'"),
        (["--older-than=nan"], "--older-than must be above 0 hours; it was nan"),
        (["--older-than=0"], "--older-than must be above 0 hours; it was 0.0"),
        (["--settle=-1"], "--settle must be at least 0 s; it was -1.0"),
        (["--port=70000"], "--port must be in 0..65535; it was 70000"),
        (["--watch"], "argument --watch: expected one argument"),
        (["--what=1"], "unrecognized arguments: --what=1"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(tmp_path, monkeypatch, capsys, argv, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    if argv and not argv[0].startswith("--work"):
        argv = ["--workdir=x", "--watch=in", *argv]
    with pytest.raises(SystemExit) as exit_:
        call(*argv)
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", f"dns_jax: {line}\n")


@pytest.fixture
def signals():
    """What signals do is as it was, afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fake(monkeypatch, signals):
    monkeypatch.setitem(sys.modules, "dns_jax.operation.detector", None)  # put back afterwards
    fake_detector.install()


def test_once_deals_with_what_is_there_and_ends(place, fake, capsys):
    names = put_some(place)
    out = place.out / "operation"
    out.mkdir(parents=True)
    (out / ".ranking.csv.1.part").write_text("half of a table")  # of one that was killed
    call(f"--workdir={place.out}", f"--watch={place.watch}", "--once", "--settle=0.1")
    place.out = out
    files = {"pool.sqlite", "pool.sqlite.lock", "ledger.jsonl", "ranking.csv"}
    assert {file.name for file in out.iterdir()} == files
    place.check(names)
    first, *alarms = capsys.readouterr().err.splitlines()
    assert first == f"dns_jax: watching {place.watch} for fan, pump"
    loud = [entry for entry in place.lines("scored") if entry["anomalous"]]
    assert len(loud) == len(alarms) > 0
    for entry, alarm in zip(loud, alarms, strict=True):
        score = f"{entry['score']:.4g}, the threshold is {entry['threshold']:.4g}"
        assert alarm == f"dns_jax: {entry['path']} sounds anomalous: {score}"


def test_a_second_monitor_of_the_same_run_is_refused(place, fake, capsys):
    place.run()
    with closing(FakeDetector.load("", store=place.out / "pool.sqlite")):
        with pytest.raises(SystemExit) as exit_:
            call("--workdir=x", f"--watch={place.watch}", f"--out={place.out}", "--once")
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert f"is being written by process {os.getpid()}" in said
    assert said.count("\n") == 1


def test_a_port_that_is_taken_is_one_line_that_names_it(place, fake, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as exit_:
            call("--workdir=x", f"--watch={place.watch}", f"--out={place.out}", f"--port={port}")
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert f"--bind=127.0.0.1 --port={port}: the page cannot be served there (Address" in said
    assert "--port=0" in said
    assert said.count("\n") == 1


def test_a_log_that_cannot_be_written_stops_nothing(place, fake, monkeypatch):
    names = put_some(place)
    place.put("fan/section_09_x.wav", 9)

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = write

    monkeypatch.setattr(sys, "stderr", Full())
    call("--workdir=x", f"--watch={place.watch}", f"--out={place.out}", "--once", "--settle=0.1")
    place.check(names, refused=["fan/section_09_x.wav"])


def start(place, *argv, **environment):
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "tests" / "fake_detector.py"), f"--workdir={place.out}"),
            *(f"--watch={place.watch}", f"--out={place.out}", "--settle=0", *argv),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_ends_it_after_the_recording_at_hand_and_it_serves_its_page_until_then(place):
    names = put_some(place, 30)
    process = start(place, "--port=0", DELAY="0.2")
    try:
        address = process.stderr.readline().split()[-1]
        ledger = place.out / "ledger.jsonl"
        wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") >= 2, process)
        with urllib.request.urlopen(f"{address}metrics", timeout=20) as answer:
            assert b'dns_jax_monitor_scored_total{machine="fan"}' in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        scored = place.names("scored")
        assert 2 <= len(scored) < 30
        assert scored == sorted(names)[: len(scored)]
        place.check(scored)
        assert len((place.out / "ranking.csv").read_text().splitlines()) == len(scored) + 1
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
    place.run(Time(60))
    place.check(names)


def test_a_second_signal_ends_it_at_once(place):
    put_some(place, 2)
    process = start(place, "--no-page", DELAY="60")
    try:
        assert process.stderr.readline().startswith("dns_jax: watching")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None  # it is at a recording
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.stderr.close()
    place.run()
    assert len(place.lines("scored")) == 2


# --- with networks


def test_with_the_networks_of_a_run_the_lines_are_what_its_detector_says(
    place, finished_run, signals, capsys
):
    from dns_jax.operation.detector import Detector

    names = [f"fan/section_0{number % 2}_target_{number}.wav" for number in range(5)]
    for number, name in enumerate(names):
        place.put(name, number, seconds=1.0, loudness=0.05 * (1 + number))
    copy, strange = "fan/section_01_target_x.wav", "fan/section_07_source_y.wav"
    shutil.copyfile(place.watch / names[1], place.watch / copy)
    place.put(strange, 9, seconds=1.0)
    argv = [f"--workdir={finished_run}", f"--watch={place.watch}", f"--out={place.out}"]
    call(*argv, "--once", "--settle=0.1")
    assert sorted(place.names("scored")) == sorted(names)
    assert (place.names("duplicate"), place.names("refused")) == ([copy], [strange])
    said = capsys.readouterr().err.splitlines()
    alarms = [line for line in said if "sounds anomalous" in line]
    assert len(said) - len(alarms) == 2  # what is watched, and what is refused

    with Detector.load(finished_run) as detector:  # F in memory, by hand
        for line in place.lines("scored"):
            section = int(line["clip"][9])
            expected = detector.score(line["path"], section=section, domain="target")
            assert {name: line[name] for name in expected.to_json()} == expected.to_json()
            detector.append(expected, path=line["path"], arrived=line["arrived"])
        now = {held.path: held for held in detector.recordings("fan") if held.path}
    with open(place.out / "ranking.csv") as table:
        rows = list(csv.DictReader(table))
    assert [float(row["ratio"]) for row in rows] == sorted(
        (held.score / held.threshold for held in now.values()), reverse=True
    )
    assert {row["path"]: float(row["score"]) for row in rows} == {
        path: held.score for path, held in now.items()
    }

    ledger = place.out / "ledger.jsonl"
    before = ledger.read_text().splitlines(keepends=True)
    last = next(n for n, line in enumerate(before) if f"{names[4]}" in line)
    ledger.write_text("".join(before[:last]))  # as after a kill between F and the line
    call(*argv, "--once", "--settle=0.1")
    assert sorted(place.names("scored")) == sorted(names)
    assert [line["id"] for line in place.lines("scored")] == sorted(
        json.loads(line)["id"] for line in before if '"scored"' in line
    )
