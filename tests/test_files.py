"""Files appear under their final name only when they are whole."""

import os

import pytest

from dns_jax.files import write_file, write_text


def test_bytes_are_written_as_they_are_and_missing_folders_made(tmp_path):
    path = tmp_path / "a" / "b" / "data.bin"
    write_file(path, lambda file: file.write(b"\x00\r\n\xff"))
    assert path.read_bytes() == b"\x00\r\n\xff"


def test_text_is_utf_8_with_its_line_ends(tmp_path):
    write_text(tmp_path / "text", "Größe\n測試\r\n")
    assert (tmp_path / "text").read_bytes() == "Größe\n測試\r\n".encode()


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    write_text(path, "a long first version")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["file"]


def fail_half_way(file):
    file.write(b"half")
    file.flush()
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, "first"])
def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, before):
    path = tmp_path / "file"
    if before:
        write_text(path, before)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, fail_half_way)
    assert os.listdir(tmp_path) == (["file"] if before else [])
    if before:
        assert path.read_text() == before


def test_the_final_name_holds_the_old_file_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "file"
    write_text(path, "first")
    seen = []

    def write(file):
        file.write(b"second")
        file.flush()
        seen.append(path.read_text())

    write_file(path, write)
    assert seen == ["first"]
    assert path.read_text() == "second"


def test_the_bytes_are_on_the_disk_before_the_file_gets_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), events.append("fsync")))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_text(tmp_path / "file", "text")
    assert events == ["fsync", "replace"]
