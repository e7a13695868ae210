"""The ledger: every whole line is kept, a torn one is not, and nothing is written twice."""

import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax.operation.ledger import Ledger, compose, format_entry, parse_entry
from dns_jax.operation.watching import identify


def about(number, event="scored", **more):
    return compose(
        event, path=f"/in/{number}.wav", size=number, mtime_ns=10 * number, arrived=1.5, **more
    )


def key(number):
    return identify(f"/in/{number}.wav", number, 10 * number)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "operation" / "ledger.jsonl"


def fill(path, *entries):
    ledger = Ledger(path)
    for entry in entries:
        ledger.write(entry)
    ledger.close()


def test_what_was_dealt_with_is_known_after_reopening(path):
    fill(
        path,
        about(1),
        about(2, "refused", reason="empty"),
        about(3, "duplicate"),
        about(4, "gone"),
        compose("notice", message="a folder cannot be listed", path="/in/5.wav"),
    )
    ledger = Ledger(path)
    assert ledger.known == {key(1), key(2), key(3)}
    assert ledger.notices == []
    ledger.close()
    lines = read(path)
    assert [line["event"] for line in lines] == "scored refused duplicate gone notice".split()
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_a_line_torn_anywhere_is_cut_off_and_the_whole_ones_stay(path):
    fill(path, about(1), about(2))
    first, second = path.read_bytes().splitlines(keepends=True)
    for size in range(1, len(second)):
        path.write_bytes(first + second[:size])
        ledger = Ledger(path)
        assert ledger.known == {key(1)}
        assert len(ledger.notices) == 1
        assert f"torn ({size} bytes)" in ledger.notices[0]
        ledger.write(about(2))
        ledger.close()
        assert [line["path"] for line in read(path)] == ["/in/1.wav", "/in/2.wav"]


def test_zeros_that_a_power_cut_leaves_at_the_end_are_cut_off(path):
    fill(path, about(1))
    with open(path, "ab") as file:
        file.write(bytes(4096))
    fill(path, about(2))
    assert [line["path"] for line in read(path)] == ["/in/1.wav", "/in/2.wav"]


def test_a_damaged_line_in_the_middle_is_told_and_left(path):
    fill(path, about(1), about(2), about(3))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff" + lines[1][1:]
    path.write_bytes(b"".join(lines))
    ledger = Ledger(path)
    assert ledger.known == {key(1), key(3)}
    assert len(ledger.notices) == 1
    assert "1 damaged line(s)" in ledger.notices[0]
    ledger.close()
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("line", ["", "1", "[]", "{}", '{"event": 1}', '{"event": "scored"}x', "{"])
def test_what_is_no_entry_is_none(line):
    assert parse_entry(line) is None


def test_a_line_about_no_file_makes_nothing_known(path):
    fill(path, compose("scored"), compose("refused", path=1, size=2, mtime_ns=3))
    ledger = Ledger(path)
    assert ledger.known == set()
    ledger.close()


@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize("also_truncate", [False, True])
def test_on_a_full_disk_the_ledger_is_as_it_was_and_the_line_can_be_written_later(
    path, monkeypatch, after, also_truncate
):
    fill(path, about(1))
    ledger, before = Ledger(path), path.read_bytes()
    real, left = os.write, [after]

    def write(file, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, data[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        if also_truncate:

            def truncate(*_):
                raise OSError(errno.EIO, "Input/output error")

            patch.setattr(os, "ftruncate", truncate)
        with pytest.raises(OSError, match=r"No space left on device: '.*ledger\.jsonl'"):
            ledger.write(about(2))
    if not also_truncate:
        assert path.read_bytes() == before
    assert ledger.known == {key(1)}
    ledger.write(about(2))
    assert ledger.known == {key(1), key(2)}
    ledger.close()
    assert [line["path"] for line in read(path)] == ["/in/1.wav", "/in/2.wav"]


def test_a_line_counts_when_it_is_on_the_disk(path, monkeypatch):
    ledger = Ledger(path)

    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output error"):
            ledger.write(about(1))
    assert ledger.known == set()
    assert path.read_bytes() == b""
    ledger.close()


def test_a_long_line_is_written_whole_though_the_system_takes_it_in_parts(path, monkeypatch):
    ledger, real = Ledger(path), os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:10]))
    ledger.write(about(1, note="x" * 100))
    ledger.close()
    assert read(path)[0]["note"] == "x" * 100


def test_what_is_missing_is_written_once(path):
    fill(path, about(1))
    ledger = Ledger(path)
    held = [parse_entry(format_entry(about(number))) for number in (1, 2)]
    assert [ledger.write_missing(entry | {"id": 7}) for entry in held] == [False, True]
    assert [ledger.write_missing(entry | {"id": 7}) for entry in held] == [False, False]
    assert not ledger.write_missing(compose("scored"))
    ledger.close()
    assert [(line["path"], line.get("id")) for line in read(path)] == [
        ("/in/1.wav", None),
        ("/in/2.wav", 7),
    ]


def test_a_ledger_that_someone_empties_goes_on_without_a_hole(path):
    ledger = Ledger(path)
    ledger.write(about(1))
    os.truncate(path, 0)
    ledger.write(about(2))
    ledger.close()
    assert [line["path"] for line in read(path)] == ["/in/2.wav"]


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
@settings(max_examples=50, deadline=None)
def test_a_name_of_any_bytes_is_one_line_and_comes_back(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("names") / "ledger.jsonl"
    entry = compose("scored", path=os.fsdecode(name), size=1, mtime_ns=2)
    fill(path, entry)
    assert path.read_bytes().count(b"\n") == 1
    assert parse_entry(path.read_bytes()) == entry
    ledger = Ledger(path)
    assert ledger.known == {identify(os.fsdecode(name), 1, 2)}
    ledger.close()


def test_a_number_that_json_does_not_know_is_refused(path):
    ledger = Ledger(path)
    with pytest.raises(ValueError, match="JSON"):
        ledger.write(compose("scored", score=float("nan")))
    ledger.write(about(1))
    ledger.close()
    assert len(read(path)) == 1
