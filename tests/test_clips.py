"""The table of clips: what names say, what is refused, where labels come from, who validates."""

import os

import numpy as np
import pandas as pd
import pytest

from dns_jax.data.clips import read_clips, split_validation
from dns_jax.data.refusals import SKIP_BAD, DataError, Refusal, describe_refusals

TEST_CLIP = "section_03_source_test_0000"
GROUND_TRUTH = "ground_truth_fan_section_03_source_test.csv"


def make(root, *names):
    """Makes empty files; the table is read from names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def one_row(tmp_path, folder, stem, suffix=".wav"):
    clips, refusals = read_clips(make(tmp_path, f"fan/{folder}/{stem}{suffix}"))
    assert not refusals
    return clips.iloc[0].to_dict()


# What a name says


@pytest.mark.parametrize(
    ("folder", "stem", "section", "domain", "label"),
    [
        ("train", "section_00_source_train_normal_0000", 0, "source", 0),
        ("train", "section_05_target_train_normal_12345", 5, "target", 0),
        ("source_test", "section_00_source_test_anomaly_0000", 0, "source", 1),
        ("target_test", "section_00_target_test_normal_0000", 0, "target", 0),
        ("source_test", "section_03_source_test_0199", 3, "source", -1),
        ("target_test", "section_123_target_test_0000", 123, "target", -1),
    ],
)
def test_a_name_says_section_domain_and_label(tmp_path, folder, stem, section, domain, label):
    assert one_row(tmp_path, folder, stem) == {
        "machine": "fan",
        "path": str(tmp_path / "fan" / folder / f"{stem}.wav"),
        "clip": f"{stem}.wav",
        "split": "train" if folder == "train" else "test",
        "section": section,
        "domain": domain,
        "label": label,
        "attributes": "",
    }


@pytest.mark.parametrize(
    "attributes",
    [
        "None",
        "strength_1_ambient",
        "strenght_1",
        "0.5_g_2.25_mm_none",
        "pattern_00_no_pump",
        "A1Spd28VMic1",
        "normal_anomaly__x",
        "Größe 3, 測試",
    ],
)
def test_whatever_follows_the_number_is_the_attributes(tmp_path, attributes):
    row = one_row(tmp_path, "train", f"section_02_source_train_normal_0999_{attributes}")
    assert (row["attributes"], row["section"], row["label"]) == (attributes, 2, 0)


@pytest.mark.parametrize("suffix", [".wav", ".WAV", ".flac", ".Flac"])
def test_extensions_count_in_any_case(tmp_path, suffix):
    assert one_row(tmp_path, "source_test", TEST_CLIP, suffix)["clip"] == TEST_CLIP + suffix


@pytest.mark.parametrize(
    "stem",
    [
        "fan_clip-7 (copy)",
        "section_aa_source_test_normal_0024",
        "section_0_source_test_normal_0000",
        "section_000_source_test_normal_0000",
        "section_٠٣_source_test_normal_0000",
        "section_-1_source_test_normal_0000",
        "section_00_other_test_normal_0000",
        "section_00_source_test_normál_0018",
        "section_00_source_test_Normal_0000",
        "section_00_source_valid_normal_0000",
        "section_00_source_test_normal_000",
        "section_00_source_test_normal_00x0",
        "section_00_source_test_normal",
        "section_00_source_test_normal_0000_",
        "section_00_source_test_normal_0000x",
        "section_00_source_test_0000_attribute",
        "section_00_source_test_000",
        " section_00_source_test_normal_0000",
        "section_00_source_test_normal_0000_a\nb",
        "normal_id_00_00000000",
    ],
)
def test_a_name_outside_the_grammar_is_refused_and_never_given_a_section(tmp_path, stem):
    clips, refusals = read_clips(make(tmp_path, f"fan/source_test/{stem}.wav"))
    assert clips.empty
    (refusal,) = refusals
    assert refusal.reason.startswith("name: may be section_SS_{source|target}_")
    assert refusal == (str(tmp_path / "fan/source_test" / f"{stem}.wav"), refusal.reason, SKIP_BAD)


def test_a_training_name_has_to_carry_its_label(tmp_path):
    _, refusals = read_clips(make(tmp_path, "fan/train/section_00_source_train_0000.wav"))
    assert refusals[0].reason.startswith("name: may be")


@pytest.mark.parametrize(
    ("folder", "stem", "says"),
    [
        ("train", "section_00_source_test_normal_0000", "source_test"),
        ("source_test", "section_00_source_train_normal_0000", "train"),
        ("source_test", "section_00_target_test_normal_0000", "target_test"),
        ("target_test", "section_00_source_test_0000", "source_test"),
    ],
)
def test_a_name_that_disagrees_with_its_folder_is_refused(tmp_path, folder, stem, says):
    clips, refusals = read_clips(make(tmp_path, f"fan/{folder}/{stem}.wav"))
    assert clips.empty
    assert refusals[0].reason == f"name: says {says}, but lies in {folder}/"


def test_an_anomaly_among_the_training_recordings_is_refused(tmp_path):
    clips, refusals = read_clips(
        make(tmp_path, "fan/train/section_00_source_train_anomaly_0000.wav")
    )
    assert clips.empty
    assert refusals[0].reason == "name: says anomaly, but training recordings are normal"


def test_a_name_that_is_not_utf8_is_refused_and_can_be_printed(tmp_path):
    make(tmp_path, f"fan/source_test/{TEST_CLIP}.wav")
    name = os.fsencode(tmp_path / "fan/source_test") + b"/section_00_source_test_norm\xe9l_0000.wav"
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes valid names only")
    clips, refusals = read_clips(tmp_path)
    assert list(clips["clip"]) == [f"{TEST_CLIP}.wav"]
    assert refusals[0].reason == "name: not valid UTF-8"
    assert r"norm\udce9l" in describe_refusals(refusals).encode().decode()


def test_a_machine_whose_name_is_not_utf8_is_refused_file_by_file(tmp_path):
    folder = os.fsencode(tmp_path) + b"/f\xe9n/source_test"
    try:
        os.makedirs(folder)
    except OSError:
        pytest.skip("this file system takes valid names only")
    open(folder + b"/" + f"{TEST_CLIP}.wav".encode(), "wb").close()
    clips, refusals = read_clips(tmp_path)
    assert clips.empty
    assert [refusal.reason for refusal in refusals] == ["name: not valid UTF-8"]


# What belongs to the data set


def test_other_audio_is_refused_and_what_is_not_audio_is_passed_over(tmp_path):
    make(
        tmp_path,
        f"fan/source_test/{TEST_CLIP}.wav",
        "fan/source_test/section_03_source_test_0001.mp3",
        "fan/source_test/section_03_source_test_0002.OGG",
        "fan/source_test/attributes.csv",
        "fan/source_test/notes.txt",
        "fan/source_test/README.md",
        "fan/source_test/facts.json",
        "fan/source_test/._section_03_source_test_0000.wav",
        "fan/source_test/.hidden.wav",
        f".trash/source_test/{TEST_CLIP}.wav",
        f"notes/pictures/{TEST_CLIP}.wav",
        "README.md",
    )
    clips, refusals = read_clips(tmp_path)
    assert list(clips["clip"]) == [f"{TEST_CLIP}.wav"]
    assert [refusal.reason for refusal in refusals] == [
        "name: extension .mp3, may be .wav or .flac",
        "name: extension .OGG, may be .wav or .flac",
    ]


def test_any_machine_name_is_a_machine_and_any_of_the_three_folders_makes_one(tmp_path):
    make(
        tmp_path,
        "Drehbank Nr. 3/train/section_00_source_train_normal_0000.wav",
        "a_b-c/source_test/section_00_source_test_0000.wav",
        "泵/target_test/section_00_target_test_0000.wav",
    )
    clips, refusals = read_clips(tmp_path)
    assert list(clips["machine"]) == ["Drehbank Nr. 3", "a_b-c", "泵"]
    assert not refusals


def test_dev_data_and_eval_data_are_merged_by_machine(tmp_path):
    make(
        tmp_path,
        "dev_data/fan/train/section_00_source_train_normal_0000.wav",
        "eval_data/fan/train/section_03_source_train_normal_0000.wav",
        "eval_data/fan/source_test/section_03_source_test_0000.wav",
        "eval_data/pump/train/section_03_source_train_normal_0000.wav",
        "valve/train/section_00_source_train_normal_0000.wav",
    )
    clips, refusals = read_clips(tmp_path)
    assert list(clips["machine"]) == ["fan", "fan", "fan", "pump", "valve"]
    assert list(clips["section"]) == [3, 0, 3, 3, 0]
    assert not refusals


def test_the_same_clip_twice_is_refused_the_second_time(tmp_path):
    make(
        tmp_path,
        f"fan/source_test/{TEST_CLIP}.flac",
        f"fan/source_test/{TEST_CLIP}.wav",
        "dev_data/pump/train/section_00_source_train_normal_0000.wav",
        "eval_data/pump/train/section_00_source_train_normal_0000.wav",
        f"pump/source_test/{TEST_CLIP}.wav",
    )
    clips, refusals = read_clips(tmp_path)
    assert len(clips) == 3
    assert [(r.path, r.reason) for r in refusals] == [
        (
            str(tmp_path / f"fan/source_test/{TEST_CLIP}.wav"),
            f"name: the clip is there twice, first as {tmp_path}/fan/source_test/{TEST_CLIP}.flac",
        ),
        (
            str(tmp_path / "eval_data/pump/train/section_00_source_train_normal_0000.wav"),
            f"name: the clip is there twice, first as {tmp_path}"
            "/dev_data/pump/train/section_00_source_train_normal_0000.wav",
        ),
    ]


def test_a_refused_file_does_not_push_out_a_good_one_of_its_name(tmp_path):
    make(tmp_path, f"fan/source_test/{TEST_CLIP}.mp3", f"fan/source_test/{TEST_CLIP}.wav")
    make(tmp_path, "fan/source_test/section_00_source_train_normal_0000.wav")
    make(tmp_path, "eval_data/fan/train/section_00_source_train_normal_0000.wav")
    clips, refusals = read_clips(tmp_path)
    assert len(clips) == 2
    assert len(refusals) == 2


def test_rows_are_sorted_by_stem_so_that_wav_and_flac_trees_agree(tmp_path):
    stems = [f"section_00_source_train_normal_0000_{a}" for a in ("1", "1-2", "1.5", "1_2", "1 2")]
    stems += ["section_10_target_train_normal_0000", "section_02_target_train_normal_0000"]
    trees = []
    for suffix in (".wav", ".flac"):
        names = [f"{machine}/train/{stem}{suffix}" for machine in "ba" for stem in stems]
        clips, _ = read_clips(make(tmp_path / suffix[1:], *names))
        assert list(clips.index) == list(range(len(clips)))
        trees.append([os.path.splitext(clip)[0] for clip in clips["clip"]])
    assert trees[0] == trees[1]
    assert trees[0][:7] == [*sorted(stems[:5]), stems[6], stems[5]]
    keys = ["machine", "split", "section", "domain"]
    assert clips[keys].equals(clips[keys].sort_values(keys))


@pytest.mark.parametrize("kind", ["absent", "file", "empty", "no audio", "unnamed"])
def test_a_directory_without_recordings_is_one_clear_line(tmp_path, kind, monkeypatch):
    path = tmp_path / "data"
    if kind == "file":
        write(path, "no directory")
    elif kind == "no audio":
        make(path, "fan/train/notes.txt", f"fan/test/{TEST_CLIP}.wav")
    elif kind == "empty":
        path.mkdir()
    if kind == "unnamed":  # not the working directory by chance
        monkeypatch.chdir(make(tmp_path, f"fan/source_test/{TEST_CLIP}.wav"))
        path = ""
    with pytest.raises(DataError) as error:
        read_clips(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "<machine>/{train,source_test,target_test}/*.wav or *.flac" in message


def test_nothing_but_refused_files_gives_an_empty_table_of_the_same_columns(tmp_path):
    full, _ = read_clips(make(tmp_path / "full", f"fan/source_test/{TEST_CLIP}.wav"))
    empty, refusals = read_clips(make(tmp_path / "empty", "fan/source_test/x.wav"))
    assert len(refusals) == 1
    assert list(empty.columns) == list(full.columns)
    assert (empty["section"].dtype, empty["label"].dtype) == (np.int64, np.int64)


def test_the_message_lists_every_refused_file_with_reason_and_option():
    refusals = [
        Refusal("a.wav", "empty (0 bytes)"),
        Refusal("測試.wav", "2 channels, mono expected", "--config.data.channel=0"),
        Refusal("b\n.wav", "no samples"),
    ]
    head, *lines = describe_refusals(refusals).split("\n")
    assert head.startswith("3 files cannot be used")
    assert lines == [
        "  a.wav: empty (0 bytes) [--config.data.skip_bad=True]",
        "  測試.wav: 2 channels, mono expected [--config.data.channel=0]",
        r"  b\n.wav: no samples [--config.data.skip_bad=True]",
    ]
    assert describe_refusals(refusals[:1]).startswith("1 file cannot")


# Labels


def fan_tree(root, suffix=".wav"):
    names = [f"fan/source_test/section_03_source_test_000{i}{suffix}" for i in range(3)]
    return make(root, *names, f"fan/train/section_03_source_train_normal_0000{suffix}")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize(
    "place", [".", "ground_truth_data", "eval_data", "eval_data/ground_truth_data"]
)
def test_ground_truth_is_found_in_the_data_directory_and_matched_by_stem(tmp_path, place, suffix):
    fan_tree(tmp_path, suffix)
    write(
        tmp_path / place / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\nsection_03_source_test_0001.wav,0\n"
    )
    clips, _ = read_clips(tmp_path)
    assert list(clips["label"]) == [1, 0, -1, 0]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_named_labels_are_read_from_there_and_only_there(tmp_path, form):
    data = fan_tree(tmp_path / "data")
    write(data / GROUND_TRUTH, f"{TEST_CLIP}.wav,0\n")
    file = write(tmp_path / "labels" / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\n")
    clips, _ = read_clips(data, file if form == "file" else file.parent)
    assert list(clips["label"]) == [1, -1, -1, 0]


def test_an_evaluation_list_labels_by_its_new_names_below_the_name_of_a_machine(tmp_path):
    fan_tree(tmp_path)
    make(tmp_path, f"pump/source_test/{TEST_CLIP}.wav")
    text = (
        "\ufeffpump\r\n"
        "section_03_source_test_0000.wav,section_03_source_test_normal_0000.wav\r\n"
        "fan\r\n"
        "section_03_source_test_0000.wav,section_03_source_test_anomaly_0000.wav\r\n"
        "section_03_source_test_0001.wav,section_03_source_test_normal_0001_speed_2.wav\r\n"
        "\r\n"
    )
    write(tmp_path / "eval_data_list_2021.csv", text)
    clips, _ = read_clips(tmp_path)
    assert list(clips["label"]) == [1, 0, -1, 0, 0]


def test_renamed_clips_keep_the_label_in_their_name_and_are_checked_under_the_old_one(tmp_path):
    make(
        tmp_path,
        "fan/source_test/section_03_source_test_anomaly_0000.wav",
        "fan/source_test/section_03_source_test_normal_0001.wav",
    )
    write(tmp_path / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\nsection_03_source_test_0001.wav,0\n")
    clips, _ = read_clips(tmp_path)
    assert list(clips["label"]) == [1, 0]
    write(tmp_path / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\nsection_03_source_test_0001.wav,1\n")
    with pytest.raises(
        DataError, match=r"section_03_source_test\.csv, line 2: label 1 contradicts"
    ):
        read_clips(tmp_path)


def test_a_labelled_clip_is_not_held_against_the_row_of_an_unlabelled_one(tmp_path):
    make(
        tmp_path,
        "fan/source_test/section_03_source_test_0000.wav",
        "fan/source_test/section_03_source_test_normal_0000.wav",
    )
    write(tmp_path / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\n")
    assert list(read_clips(tmp_path)[0]["label"]) == [1, 0]


def test_files_that_contradict_each_other_are_named_both(tmp_path):
    fan_tree(tmp_path)
    write(tmp_path / GROUND_TRUTH, f"{TEST_CLIP}.wav,1\n")
    write(
        tmp_path / "eval_data_list_2021.csv",
        "fan\nsection_03_source_test_0000.wav,section_03_source_test_normal_0000.wav\n",
    )
    with pytest.raises(DataError) as error:
        read_clips(tmp_path)
    assert "eval_data_list_2021.csv, line 2" in str(error.value)
    assert f"{GROUND_TRUTH}, line 1" in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        "section_03_source_test_0000.wav,2",
        "section_03_source_test_0000.wav,1.0",
        "section_03_source_test_0000.wav,",
        "section_03_source_test_0000.wav",
        "section_03_source_test_0000.wav,1,1",
        "section_04_source_test_0000.wav,1",
        "section_03_target_test_0000.wav,1",
        "section_03_source_train_normal_0000.wav,0",
        "section_03_source_test_normal_0000.wav,1",
        "file,label",
        ",1",
    ],
)
def test_a_malformed_row_of_ground_truth_is_named_with_file_and_line(tmp_path, row):
    fan_tree(tmp_path)
    write(tmp_path / GROUND_TRUTH, f"section_03_source_test_0002.wav,0\n{row}\n")
    with pytest.raises(DataError) as error:
        read_clips(tmp_path)
    assert f"{tmp_path / GROUND_TRUTH}, line 2" in str(error.value)
    assert row in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("section_03_source_test_0000.wav,section_03_source_test_normal_0000.wav", 1),
        ("fan\nsection_03_source_test_0000.wav,section_03_source_test_0000.wav", 2),
        ("fan\nsection_03_source_test_0000.wav,section_03_source_test_normal_0001.wav", 2),
        ("fan\nsection_03_source_test_0000.wav,section_04_source_test_normal_0000.wav", 2),
        ("fan\nsection_03_0000.wav,section_03_source_test_normal_0000.wav", 2),
        ("fan\nsection_03_source_test_0000.wav,1", 2),
        ("fan\nsection_03_source_test_0000.wav", 2),
    ],
)
def test_a_malformed_row_of_an_evaluation_list_is_named_with_file_and_line(tmp_path, text, line):
    fan_tree(tmp_path)
    write(tmp_path / "eval_data_list_2021.csv", text)
    with pytest.raises(DataError, match=f"eval_data_list_2021.csv, line {line}"):
        read_clips(tmp_path)


def test_labels_that_are_not_text_are_named(tmp_path):
    fan_tree(tmp_path)
    write(tmp_path / GROUND_TRUTH, b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read the labels in .*ground_truth_fan"):
        read_clips(tmp_path)


def test_named_labels_that_are_not_there_are_a_mistake(tmp_path):
    fan_tree(tmp_path)
    with pytest.raises(DataError, match=r"the labels .*nowhere: is not there"):
        read_clips(tmp_path, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no ground_truth_<machine>_section"):
        read_clips(tmp_path, tmp_path / "fan")


def test_the_official_ground_truth_labels_all_its_clips(tmp_path, realdata):
    official = realdata / "dcase2021_scores/official_evaluator_groundtruth"
    expected = {}
    for machine in ("gearbox", "slider", "ToyCar"):
        for path in (official / "ground_truth_data").glob(f"ground_truth_{machine}_*.csv"):
            domain = path.stem.split("_")[-2]
            for name, label in pd.read_csv(path, header=None).itertuples(index=False):
                make(tmp_path, f"eval_data/{machine}/{domain}_test/{name[:-4]}.flac")
                expected[machine, name[:-4]] = label
    assert set(read_clips(tmp_path)[0]["label"]) == {-1}
    clips, refusals = read_clips(tmp_path, official)
    stems = clips["clip"].str.removesuffix(".flac")
    assert not refusals
    assert (
        dict(zip(zip(clips["machine"], stems, strict=True), clips["label"], strict=True))
        == expected
    )
    cell = clips.query("machine == 'gearbox' and section == 3 and domain == 'source'")
    assert (len(cell), cell["label"].sum()) == (234, 104)


def test_genuine_development_names_are_all_read(tmp_path, realdata):
    scores = realdata / "dcase2021_scores/yokaji_ae_baseline"
    anomalies = 0
    for path in scores.glob("anomaly_score_gearbox_*.csv"):
        domain = path.stem.split("_")[-2]
        names = pd.read_csv(path, header=None)[0]
        anomalies += names.str.contains("anomaly").sum()
        make(tmp_path, *(f"gearbox/{domain}_test/{name}" for name in names))
    clips, refusals = read_clips(tmp_path)
    assert not refusals
    assert (clips["label"] == 1).sum() == anomalies == 351 + 336
    assert sorted(set(clips["section"])) == [0, 1, 2]


# The validation part


def training_table(counts):
    """Clips of {(machine, section, domain): count}, plus one test clip of every section."""
    rows = [
        (
            machine,
            f"section_{section:02}_{domain}_train_normal_{i:04}.wav",
            "train",
            section,
            domain,
        )
        for (machine, section, domain), count in counts.items()
        for i in range(count)
    ]
    rows += [(m, f"section_{s:02}_source_test_0000.wav", "test", s, "source") for m, s, _ in counts]
    columns = ["machine", "clip", "split", "section", "domain"]
    return pd.DataFrame(rows, columns=columns)


def chosen(clips, seed):
    part = clips[split_validation(clips, seed)]
    return set(zip(part["machine"], part["clip"], strict=True))


@pytest.mark.parametrize(
    ("domain", "count", "validate"),
    [
        ("source", 1000, 150),
        ("source", 1001, 151),
        ("source", 57, 9),
        ("source", 3, 1),
        ("source", 2, 1),
        ("source", 1, 0),
        ("target", 3, 1),
        ("target", 2, 1),
        ("target", 1, 0),
        ("target", 10, 1),
    ],
)
def test_85_percent_of_source_and_all_but_one_target_clip_train(domain, count, validate):
    clips = training_table({("fan", 0, domain): count, ("fan", 1, domain): count})
    validation = split_validation(clips, 0)
    assert validation.dtype == bool
    assert list(clips[validation].groupby("section").size()) == ([validate] * 2 if validate else [])


@pytest.mark.parametrize(
    ("share", "validate"), [(0.85, 15), (5 / 6, 17), (0.29, 71), (0.001, 99), (1 - 1e-9, 1)]
)
def test_another_share_of_source_clips_trains(share, validate):
    clips = training_table({("fan", 0, "source"): 100})
    assert split_validation(clips, 0, share).sum() == validate


def test_test_clips_never_validate():
    clips = training_table({("fan", 0, "source"): 20})
    assert not split_validation(clips, 0)[clips["split"] == "test"].any()


def test_the_split_depends_on_seed_machine_section_and_domain():
    cells = [
        ("fan", 0, "source"),
        ("fan", 1, "source"),
        ("fan", 0, "target"),
        ("pump", 0, "source"),
    ]
    clips = training_table(dict.fromkeys(cells, 200))
    parts = [
        tuple(np.flatnonzero(split_validation(clips, seed)[start : start + 200]))
        for seed in (0, 1)
        for start in (0, 200, 600)
    ]
    assert len(set(parts)) == len(parts)
    assert chosen(clips, 0) == chosen(clips, 0)


def test_clips_added_elsewhere_change_nothing_and_row_order_does_not_matter():
    few = training_table({("fan", 0, "source"): 40, ("fan", 0, "target"): 3})
    more = training_table(
        {
            ("crane", 0, "source"): 7,
            ("fan", 0, "source"): 40,
            ("fan", 0, "target"): 3,
            ("fan", 1, "source"): 9,
        }
    )
    section = more[(more["machine"] == "fan") & (more["section"] == 0)]
    assert chosen(few, 5) == chosen(more, 5) & set(
        zip(section.machine, section["clip"], strict=True)
    )
    assert chosen(few, 5) == chosen(few.sample(frac=1, random_state=0), 5)


def test_a_flac_tree_is_split_as_its_wav_twin():
    wav = training_table({("fan", 0, "source"): 40})
    flac = wav.assign(clip=wav["clip"].str.replace(".wav", ".flac"))
    assert np.array_equal(split_validation(wav, 3), split_validation(flac, 3))


def test_the_split_is_the_same_in_every_process():
    clips = training_table({("fan", 0, "source"): 20})
    expected = np.random.default_rng((0, 0x65F77839, 0, 0)).permutation(20)[17:]  # CRC-32 of "fan"
    assert sorted(np.flatnonzero(split_validation(clips, 0))) == sorted(expected)
