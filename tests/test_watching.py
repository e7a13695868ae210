"""Which recordings of a folder are handed out, and when."""

import errno
import os
import struct
import time
from contextlib import contextmanager

import pytest
from fake_detector import write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax.operation.watching import Watcher, identify, matches

SETTLE, PATIENCE = 2.0, 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Watched:
    """A folder, its watcher, and a clock that moves when it is told to."""

    def __init__(self, folder):
        self.folder, self.clock, self.known = folder, Clock(), set()
        self.watcher = Watcher(
            folder, self.known, settle=SETTLE, patience=PATIENCE, clock=self.clock
        )

    def scan(self, after=0.0, **how):
        self.clock.now += after
        return self.watcher.scan(**how)

    def take_all(self):
        """Deal with everything that is finished; return the names below the folder."""
        taken = []
        while found := self.watcher.take():
            taken.append(found)
            self.known.add(identify(*found[:3]))
            self.watcher.finish(found)
        return [os.path.relpath(found.path, self.folder) for found in taken]

    def settle(self):
        """List twice, long enough apart; return what is taken then."""
        self.scan()
        self.scan(SETTLE)
        return self.take_all()


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_sounds_of_both_kinds_and_any_case_are_found_by_name_and_hidden_ones_are_not(watched):
    names = ["b.wav", "a/2.FLAC", "a/1.WAV", "c/d/x.flac"]
    for number, name in enumerate([*names, ".x.wav", ".y/z.wav"]):
        write_sound(watched.folder / name, number)
    (watched.folder / "notes.txt").write_text("no sound")
    assert watched.settle() == ["b.wav", "a/1.WAV", "a/2.FLAC", "c/d/x.flac"]
    assert len(watched.watcher) == 0


def test_what_was_seen_first_is_taken_first(watched):
    write_sound(watched.folder / "z.wav", 0)
    watched.scan()
    write_sound(watched.folder / "a.wav", 1)
    assert watched.settle() == ["z.wav", "a.wav"]


def test_a_file_is_finished_when_it_has_not_changed_for_the_settling_time(watched):
    path = write_sound(watched.folder / "a.flac", 0)
    watched.scan()
    watched.scan(SETTLE - 0.01)
    assert watched.take_all() == []
    with open(path, "ab") as file:
        file.write(b"more")
    watched.scan(0.02)
    assert watched.take_all() == []
    watched.scan(SETTLE - 0.01)
    assert watched.take_all() == []
    watched.scan(0.01)
    assert watched.take_all() == ["a.flac"]


def test_a_change_between_listing_and_taking_is_seen(watched):
    path = write_sound(watched.folder / "a.flac", 0)
    watched.scan()
    watched.scan(SETTLE)
    write_sound(path, 0, seconds=0.3)
    assert watched.take_all() == []
    assert watched.settle() == ["a.flac"]


def write_part(path, content, size):
    path.write_bytes(content[:size])
    os.utime(path, ns=(size, size))  # whatever the resolution of the file system


def test_a_half_written_recording_is_waited_for_until_it_is_whole(watched):
    content = write_sound(watched.folder / "whole.wav", 0).read_bytes()
    assert watched.settle() == ["whole.wav"]
    path = watched.folder / "part.wav"
    for size in (0, 10, 44, len(content) - 2):
        write_part(path, content, size)
        watched.scan()
        for _ in range(3):
            watched.scan(PATIENCE / 4)
            assert watched.take_all() == []
    write_part(path, content, len(content))
    assert watched.settle() == ["part.wav"]


def test_a_length_that_is_filled_in_at_the_end_is_waited_for(watched):
    content = bytearray(write_sound(watched.folder / "a.wav", 0, seconds=3).read_bytes())
    length = content[40:44]
    content[40:44] = struct.pack("<I", 0)
    (watched.folder / "a.wav").write_bytes(content)
    assert watched.settle() == []
    content[40:44] = length
    (watched.folder / "a.wav").write_bytes(content)
    assert watched.settle() == ["a.wav"]


def test_a_header_that_stays_wrong_is_handed_out_with_its_fault(watched):
    content = write_sound(watched.folder / "a.wav", 0).read_bytes()
    (watched.folder / "a.wav").write_bytes(content[:-100])
    watched.scan()
    watched.scan(PATIENCE - 0.01)
    assert watched.watcher.take() is None
    watched.scan(0.01)
    found = watched.watcher.take()
    assert (
        found.fault == "truncated (the header promises 1600 bytes of samples, the file holds 1500)"
    )


def test_a_waiting_half_does_not_hold_up_the_others(watched):
    (watched.folder / "a.wav").write_bytes(b"RIFF")
    write_sound(watched.folder / "b.wav", 0)
    assert watched.settle() == ["b.wav"]
    assert len(watched.watcher) == 1


def test_what_was_dealt_with_is_not_handed_out_again_but_another_content_is(watched):
    path = write_sound(watched.folder / "a.wav", 0)
    assert watched.settle() == ["a.wav"]
    assert watched.settle() == []
    before = os.stat(path).st_mtime_ns
    write_sound(path, 1)
    os.utime(path, ns=(before + 1, before + 1))
    assert watched.settle() == ["a.wav"]
    again = Watched(watched.folder)  # as after a restart
    again.known |= watched.known
    assert again.settle() == []


def test_equal_names_in_two_folders_are_two_recordings(watched):
    for folder in "ab":
        write_sound(watched.folder / folder / "x.wav", 0)
    assert watched.settle() == ["a/x.wav", "b/x.wav"]


def test_a_file_that_vanishes_is_dropped_and_told_once(watched):
    path = write_sound(watched.folder / "a.wav", 0)
    watched.scan()
    watched.scan(SETTLE)
    path.unlink()
    assert watched.watcher.take() is None
    assert [(e.kind, e.path) for e in watched.scan()] == [("gone", str(path))]
    assert watched.scan() == []
    assert len(watched.watcher) == 0


def test_a_recording_that_cannot_be_looked_at_is_not_gone(watched, monkeypatch):
    path, real = str(write_sound(watched.folder / "x.wav", 0)), os.scandir
    watched.scan()

    class Entry:
        def __init__(self, entry):
            self._entry = entry

        def __getattr__(self, name):
            return getattr(self._entry, name)

        def stat(self, **how):
            raise OSError(errno.ESTALE, "Stale file handle", path)

    @contextmanager
    def scandir(folder):
        with real(folder) as entries:
            yield [Entry(entry) for entry in entries]

    monkeypatch.setattr(os, "scandir", scandir)
    (event,) = watched.scan(SETTLE)
    assert (event.kind, event.path) == ("notice", path)
    monkeypatch.undo()
    assert watched.settle() == ["x.wav"]


@pytest.mark.parametrize("name", ["a", ""])
def test_a_folder_that_cannot_be_listed_is_told_once_and_tried_again(watched, monkeypatch, name):
    path = write_sound(watched.folder / "a" / "x.wav", 0)
    write_sound(watched.folder / "b" / "y.wav", 1)
    watched.scan()
    closed, real = str(watched.folder / name).rstrip("/"), os.scandir

    def scandir(folder):
        if folder == closed:
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    events = watched.scan(SETTLE)
    assert [(e.kind, e.path) for e in events] == [("notice", closed)]
    assert "Permission denied" in events[0].message
    assert watched.scan() == []
    assert len(watched.watcher) == 2  # nothing is taken for gone
    assert str(path) in watched.watcher._waiting
    monkeypatch.undo()
    assert watched.settle() == ["a/x.wav", "b/y.wav"]


def test_links_are_told_once_and_not_followed(tmp_path):
    outside = write_sound(tmp_path / "outside" / "x.wav", 0).parent
    watched = Watched(tmp_path / "watched")
    write_sound(watched.folder / "a" / "y.wav", 1)
    (watched.folder / "b.wav").symlink_to(outside / "x.wav")
    (watched.folder / "c").symlink_to(outside)
    (watched.folder / "a" / "around").symlink_to(watched.folder)
    (watched.folder / "d.txt").symlink_to(outside / "x.wav")
    events = watched.scan()
    assert {os.path.basename(e.path) for e in events} == {"b.wav", "c", "around"}
    assert watched.scan() == []
    assert watched.settle() == ["a/y.wav"]


def test_a_watched_folder_may_itself_be_behind_a_link(tmp_path):
    write_sound(tmp_path / "real" / "x.wav", 0)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    watched = Watched(tmp_path / "link")
    watched.scan()
    watched.scan(SETTLE)
    assert watched.watcher.take().path == str(tmp_path / "real" / "x.wav")


def test_a_pipe_is_no_recording(watched):
    os.mkfifo(watched.folder / "a.wav")
    assert [e.message for e in watched.scan()] == ["is no regular file"]
    assert watched.settle() == []


def test_a_link_that_takes_the_place_of_a_recording_is_not_followed(tmp_path):
    watched = Watched(tmp_path / "watched")
    path = write_sound(watched.folder / "a.wav", 0)
    watched.scan()
    watched.scan(SETTLE)
    about = os.stat(path)
    path.rename(tmp_path / "a.wav")
    path.symlink_to(tmp_path / "a.wav")
    assert not matches(str(path), about.st_size, about.st_mtime_ns)
    assert watched.take_all() == []


def test_names_of_any_bytes_are_recordings(watched):
    names = [b"\xff\xfe.wav", "測試 ('\")\n.wav".encode(), b"<img src=x onerror=alert(1)>.wav"]
    for number, name in enumerate(names):
        write_sound(watched.folder / os.fsdecode(name), number)
    assert set(watched.settle()) == {os.fsdecode(name) for name in names}
    assert watched.settle() == []


def test_a_postponed_recording_comes_again_after_the_patience(watched):
    write_sound(watched.folder / "a.wav", 0)
    watched.scan()
    watched.scan(SETTLE)
    watched.watcher.postpone(watched.watcher.take())
    watched.scan(PATIENCE - 0.01)
    assert watched.take_all() == []
    watched.scan(0.01)
    assert watched.take_all() == ["a.wav"]


def test_the_clock_of_the_day_decides_nothing(watched, monkeypatch):
    for now, name in ((2e9, "a.wav"), (1e9, "b.wav"), (0.0, "c.wav")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        path = write_sound(watched.folder / name, int(now / 1e9))
        os.utime(path, (now, now))
        watched.scan()
    watched.scan(SETTLE)
    assert watched.take_all() == ["a.wav", "b.wav", "c.wav"]
    os.utime(watched.folder / "a.wav", (5.0, 5.0))  # an older time is a change, too
    assert watched.settle() == ["a.wav"]


def test_without_new_ones_only_what_was_there_is_taken(watched):
    write_sound(watched.folder / "a.wav", 0)
    watched.scan()
    write_sound(watched.folder / "b.wav", 1)
    watched.scan(SETTLE, new=False)
    watched.scan(SETTLE, new=False)
    assert watched.take_all() == ["a.wav"]


def test_ten_thousand_recordings_at_once_are_each_handed_out_once(watched):
    content = write_sound(watched.folder / "0" / "0.wav", 0).read_bytes()
    names = {f"{number % 7}/{number}.wav" for number in range(10_000)}
    for name in names:
        path = watched.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    watched.scan()
    assert len(watched.watcher) == 10_000
    watched.scan(SETTLE)
    taken = watched.take_all()
    assert len(taken) == 10_000
    assert set(taken) == names
    assert watched.settle() == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "extend", "delete", "wait", "scan", "take"]), st.integers(0, 3)
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_every_finished_state_is_handed_out_exactly_once(tmp_path_factory, steps):
    watched = Watched(tmp_path_factory.mktemp("steps"))
    taken, states, stamp = [], {}, 0
    for step, number in steps:
        path = watched.folder / f"{number}.flac"
        stamp += 1
        if step == "write" or (step == "extend" and path.exists()):
            with open(path, "wb" if step == "write" else "ab") as file:
                file.write(b"fLaC" + bytes([stamp]))
            os.utime(path, ns=(stamp, stamp))
            states[path.name] = stamp
        elif step == "delete" and path.exists():
            path.unlink()
            del states[path.name]
        elif step == "wait":
            watched.clock.now += number
        elif step == "scan":
            watched.scan()
        elif step == "take":
            while found := watched.watcher.take():
                taken.append((os.path.basename(found.path), found.mtime_ns))
                watched.known.add(identify(*found[:3]))
                watched.watcher.finish(found)
    while found := (watched.scan(), watched.scan(SETTLE), watched.watcher.take())[-1]:
        taken.append((os.path.basename(found.path), found.mtime_ns))
        watched.known.add(identify(*found[:3]))
        watched.watcher.finish(found)
    assert len(set(taken)) == len(taken)
    assert set(states.items()) <= set(taken)
    assert len(watched.watcher) == 0


def test_two_states_have_two_identities():
    assert len({identify("a", 1, 23), identify("a", 12, 3), identify("a/1", 2, 3)}) == 3
    assert len(identify("\udcff", 1, 2)) == 12
