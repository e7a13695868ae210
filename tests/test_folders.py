"""Two folders of recordings of any names as a table; only names and places are looked at."""

import os
from pathlib import Path

import pytest

from dns_jax.data.clips import COLUMNS
from dns_jax.data.folders import read_folders, read_others
from dns_jax.data.refusals import DataError


@pytest.fixture
def make(tmp_path):
    """Make empty files, and the folders they lie in."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def name_clips(table, split):
    return table["clip"][table["split"] == split].tolist()


# The table


def test_normal_recordings_train_and_nothing_is_known_of_those_to_be_scored(make):
    root = make("good/a.wav", "new/b.flac")
    table, refusals = read_folders(root / "good", str(root / "new"), "press")
    assert refusals == []
    assert tuple(table) == COLUMNS
    assert table.to_dict("records") == [
        {
            "machine": "press",
            "path": str(root / place),
            "clip": clip,
            "split": split,
            "section": 0,
            "domain": "source",
            "label": label,
            "attributes": "",
        }
        for place, clip, split, label in (
            ("good/a.wav", "train/a.wav", "train", 0),
            ("new/b.flac", "b.flac", "test", -1),
        )
    ]


def test_recordings_in_folders_of_folders_are_named_by_their_path(make):
    root = make("good/1.wav", "good/2025/may/1.wav", "new/x/1.wav", "new/y/1.wav", "new/1.wav")
    table, _ = read_folders(root / "good", root / "new", "press")
    assert name_clips(table, "train") == ["train/1.wav", "train/2025/may/1.wav"]
    assert sorted(name_clips(table, "test")) == ["1.wav", "x/1.wav", "y/1.wav"]
    assert all(Path(path).is_file() for path in table["path"])


@pytest.mark.parametrize("name", ["two\nlines.wav", "a\rb.wav", "\x1b[31m.wav", "\ufeffa.wav"])
def test_names_that_no_table_can_hold_are_refused(make, name):
    root = make("good/a.wav", "new/b.wav", f"new/{name}")
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert name_clips(table, "test") == ["b.wav"]
    assert [refusal.reason for refusal in refusals] == ["name: holds a control character"]


def test_names_may_be_anything_and_endings_of_either_case(make):
    names = ["a b.WAV", "ü#?%&,;'\".Wav", "\u2028 \xa0.flac", "a.wav.flac", "a.FLAC", "-.wav"]
    root = make("good/a.wav", *(f"new/{name}" for name in names))
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert sorted(name_clips(table, "test")) == sorted(names)
    assert refusals == []


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_is_that_of_the_names_and_not_of_the_disk(make, monkeypatch, turned):
    names = ["b.wav", "a.wav", "c/b.wav", "c/a.wav", "B.wav", "a/z.wav"]
    root = make("good/a.wav", *(f"new/{name}" for name in names))
    walk = os.walk

    def walk_as_the_disk_likes(top, **more):
        for place, inner, files in walk(top, **more):
            inner.sort(reverse=turned)
            yield place, inner, sorted(files, reverse=turned)

    monkeypatch.setattr(os, "walk", walk_as_the_disk_likes)
    table, _ = read_folders(root / "good", root / "new", "press")
    assert name_clips(table, "test") == [
        *("B.wav", "a.wav", "b.wav", "a/z.wav", "c/a.wav", "c/b.wav")
    ]


def test_what_is_hidden_or_no_sound_is_passed_over(make):
    root = make(
        *("good/a.wav", "good/._a.wav", "good/.cache/b.wav", "good/readme.txt", "good/wav"),
        *("new/b.wav", "new/.b.wav", "new/.x/y/c.wav", "new/notes.csv"),
    )
    (root / "new/folder.wav").mkdir()
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert table["clip"].tolist() == ["train/a.wav", "b.wav"]
    assert refusals == []


def test_folders_that_are_hidden_themselves_are_read(make):
    root = make(".good/a.wav", ".data/new/b.wav")
    table, _ = read_folders(root / ".good", root / ".data/new", "press")
    assert table["clip"].tolist() == ["train/a.wav", "b.wav"]


def test_a_folder_is_the_same_by_any_way_to_it(make, monkeypatch):
    root = make("good/a.wav", "new/b.wav")
    (root / "way").symlink_to(root / "good")
    monkeypatch.chdir(root / "new")
    for normal, score in (
        ("../good", "."),
        (root / "way", root / "good/../new"),
        (f"{root}/good/", f"{root}/new//"),
    ):
        table, _ = read_folders(normal, score, "press")
        assert table["clip"].tolist() == ["train/a.wav", "b.wav"]
        assert all(Path(path).is_file() for path in table["path"])


def test_a_folder_behind_a_link_is_not_passed_over_in_silence(make):
    root = make("good/a.wav", "new/b.wav", "elsewhere/day/c.wav")
    (root / "new/link").symlink_to(root / "elsewhere")
    table, refusals = read_folders(root / "good", root / "new", "press")
    refused = {refusal.path for refusal in refusals}
    assert "link/day/c.wav" in set(table["clip"]) or str(root / "new/link") in refused


def test_links_in_a_circle_come_to_an_end_and_no_recording_is_read_twice(make):
    root = make("good/a.wav", "new/b.wav", "new/x/c.wav", "elsewhere/d.wav")
    (root / "new/x/up").symlink_to(root / "new")
    (root / "elsewhere/round").symlink_to(root / "elsewhere")
    for link in ("new/1", "new/2"):
        (root / link).symlink_to(root / "elsewhere")
    table, _ = read_folders(root / "good", root / "new", "press")
    names = [Path(path).resolve().name for path in table["path"]]
    assert sorted(names) == ["a.wav", "b.wav", "c.wav", "d.wav"]


# Both folders in one another


def test_normal_recordings_in_the_folder_to_be_scored_are_not_scored(make):
    root = make("all/good/a.wav", "all/good/b/c.wav", "all/new.wav", "all/good too/d.wav")
    (root / "all/again.wav").symlink_to(root / "all/good/a.wav")
    (root / "way").symlink_to(root / "all")
    for score in (root / "all", root / "way"):
        table, _ = read_folders(root / "all/good", score, "press")
        assert name_clips(table, "train") == ["train/a.wav", "train/b/c.wav"]
        assert name_clips(table, "test") == ["new.wav", "good too/d.wav"]


@pytest.mark.parametrize("score", ["all", "all/new"])
def test_a_folder_to_be_scored_with_normal_recordings_only_is_refused(make, score):
    root = make("all/a.wav", "all/new/b.wav")
    with pytest.raises(DataError, match=r"--config\.data\.score=.* but those of") as raised:
        read_folders(root / "all", root / score, "press")
    assert str(root / score) in str(raised.value)


def test_a_name_that_stands_for_two_recordings_is_refused(make):
    root = make("good/x/a.wav", "good/b.wav", "new/train/x/a.wav")
    with pytest.raises(DataError, match=r"^train/x/a\.wav names two recordings; rename"):
        read_folders(root / "good", root / "new", "press")


def test_a_folder_named_train_is_no_trouble_by_itself(make):
    root = make("good/a.wav", "new/train/b.wav", "new/a.wav")
    table, _ = read_folders(root / "good", root / "new", "press")
    assert table["clip"].tolist() == ["train/a.wav", "a.wav", "train/b.wav"]


# Refusals


def test_other_kinds_of_sound_are_refused_each_with_its_reason(make):
    names = ["good/b.mp3", "new/x/c.OGG", "new/d.m4a"]
    root = make("good/a.wav", "new/a.wav", *names)
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert len(table) == 2
    assert sorted(refusal.path for refusal in refusals) == sorted(str(root / n) for n in names)
    for path, reason, option in refusals:
        assert reason == f"name: extension {Path(path).suffix}, may be .wav or .flac"
        assert option == "--config.data.skip_bad=True"


def test_a_name_that_is_no_text_is_refused(make):
    root = make("good/a.wav", "new/b.wav")
    for name in (b"new/\xff.wav", b"good/\xe4.flac"):
        with open(os.fsencode(root) + b"/" + name, "wb"):
            pass
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert table["clip"].tolist() == ["train/a.wav", "b.wav"]
    assert [refusal.reason for refusal in refusals] == ["name: not valid UTF-8"] * 2


@pytest.mark.parametrize(
    "name", ["two\nlines", "carriage\rreturn", "tab\t", "\x1b[31m", "\ufeffbom"]
)
def test_a_name_that_a_line_of_a_table_cannot_hold_is_refused(make, name):
    root = make("good/a.wav", "new/b.wav", f"new/{name}.wav", f"good/{name}/c.wav")
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert table["clip"].tolist() == ["train/a.wav", "b.wav"]
    assert [refusal.reason for refusal in refusals] == ["name: holds a control character"] * 2


def test_a_folder_of_refused_files_only_is_not_called_empty(make):
    root = make("good/a.wav", "new/b.mp3")
    table, refusals = read_folders(root / "good", root / "new", "press")
    assert len(table) == len(refusals) == 1


@pytest.mark.parametrize("field", ["normal", "score", "others"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone\nno error", "there is no such folder"),
        ("file.wav", "there is no such folder"),
        ("empty", "there are no WAV or FLAC files in it"),
        ("text", "there are no WAV or FLAC files in it"),
    ],
)
def test_a_folder_without_recordings_is_one_line_naming_the_field(make, field, name, said):
    root = make("good/a.wav", "new/b.wav", "file.wav", "text/readme.txt")
    (root / "empty").mkdir()
    places = {"normal": root / "good", "score": root / "new"} | {field: root / name}
    others = places.pop("others", None)
    with pytest.raises(DataError) as raised:
        read_others(others, "others") if others else read_folders(*places.values(), "press")
    message = str(raised.value)
    assert message.startswith(f"--config.data.{field}={root}/{name.partition(chr(10))[0]}")
    assert said in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_listed_is_one_line(make, monkeypatch):
    root = make("good/a.wav", "new/b.wav", "new/inner/c.wav")
    listed = os.scandir

    def scandir(place):
        if str(place).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"^cannot list .*/new/inner: Permission denied$"):
        read_folders(root / "good", root / "new", "press")


# Sounds of other machines


def test_sounds_of_other_machines_are_training_recordings_of_a_machine_of_their_own(make):
    root = make("others/a.wav", "others/lathe/b.flac", "others/c.mp3")
    table, refusals = read_others(root / "others", "others")
    assert set(table["machine"]) == {"others"}
    assert set(table["split"]) == {"train"}
    assert set(table["label"]) == {0}
    assert table["clip"].tolist() == ["train/a.wav", "train/lathe/b.flac"]
    assert [refusal.path for refusal in refusals] == [str(root / "others/c.mp3")]


def test_the_machine_itself_is_no_other_machine(make):
    root = make("all/good/a.wav", "all/new/b.wav", "all/lathe/c.wav", "all/d.wav")
    machine = (root / "all/good", str(root / "all/new"))
    table, _ = read_others(root / "all", "others", machine)
    assert table["clip"].tolist() == ["train/d.wav", "train/lathe/c.wav"]
    with pytest.raises(DataError, match=r"--config\.data\.others=.* but those of the machine"):
        read_others(root / "all/new", "others", machine)
