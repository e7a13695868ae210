"""Every year of DCASE Task 2: a small tree of each, its labels, and what is refused by name."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import machine
import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny
from scipy.stats import hmean
from sklearn.metrics import roc_auc_score

from configs import dcase
from dns_jax import experiment
from dns_jax.config import check_config
from dns_jax.data.clips import read_clips, split_validation
from dns_jax.data.refusals import ConfigError, DataError
from dns_jax.data.years import YEARS, name_years
from dns_jax.evaluation.protocol import score_systems
from dns_jax.evaluation.results import _is_dcase2021
from dns_jax.evaluation.score_files import read_scores

MIXED = (2022, 2023, 2024, 2025)  # years whose test folders are merged
ROWS = ["machine", "split", "section", "domain", "label", "attributes"]

# Names as the official baselines and lists have them, and what they say, after the folder.
DEVELOPMENT = {
    2020: {
        "ToyCar/train/normal_id_01_00000999": (1, "source", 0, ""),
        "ToyCar/test/normal_id_01_00000000": (1, "source", 0, ""),
        "ToyCar/test/anomaly_id_04_00000264": (4, "source", 1, ""),
    },
    2021: {
        "fan/train/section_00_source_train_normal_0000_strength_1_ambient": (
            *(0, "source", 0, "strength_1_ambient"),
        ),
        "fan/source_test/section_00_source_test_normal_0000": (0, "source", 0, ""),
        "fan/target_test/section_02_target_test_anomaly_0099": (2, "target", 1, ""),
    },
    2022: {
        "fan/train/section_00_source_train_normal_0989_m-n_W": (0, "source", 0, "m-n_W"),
        "fan/test/section_00_source_test_normal_0000_m-n_X": (0, "source", 0, "m-n_X"),
        "fan/test/section_02_target_test_anomaly_0049_m-n_Y": (2, "target", 1, "m-n_Y"),
    },
    2023: {
        "ToyCar/train/section_00_source_train_normal_0001_car_B1_spd_31V_mic_1": (
            *(0, "source", 0, "car_B1_spd_31V_mic_1"),
        ),
        "ToyCar/test/section_00_target_test_anomaly_0001_car_A1_spd_28V_mic_2": (
            *(0, "target", 1, "car_A1_spd_28V_mic_2"),
        ),
    },
    2024: {
        "gearbox/train/section_00_target_train_normal_0009_noAttribute": (
            *(0, "target", 0, "noAttribute"),
        ),
        "gearbox/test/section_00_source_test_normal_0001_noAttribute": (
            *(0, "source", 0, "noAttribute"),
        ),
    },
    2025: {
        "bearing/train/section_00_source_train_normal_0000_noAttribute": (
            *(0, "source", 0, "noAttribute"),
        ),
        "bearing/test/section_00_target_test_anomaly_0049_noAttribute": (
            *(0, "target", 1, "noAttribute"),
        ),
    },
}
EVALUATION = {
    2020: {
        "ToyCar/train/normal_id_05_00000000": (5, "source", 0, ""),
        "ToyCar/test/id_05_00000514": (5, "source", -1, ""),
    },
    2021: {
        "fan/train/section_03_target_train_normal_0002_x": (3, "target", 0, "x"),
        "fan/source_test/section_03_source_test_0199": (3, "source", -1, ""),
    },
    2022: {
        "fan/train/section_03_target_train_normal_0009_m-n_Z": (3, "target", 0, "m-n_Z"),
        "fan/test/section_03_0000": (3, "unknown", -1, ""),
    },
    2023: {
        "bandsaw/train/section_00_source_train_normal_0000_vel_15": (0, "source", 0, "vel_15"),
        "bandsaw/test/section_00_0199": (0, "unknown", -1, ""),
    },
    2024: {
        "3DPrinter/train/section_00_source_train_normal_0001_mdl_A_spd_2": (
            *(0, "source", 0, "mdl_A_spd_2"),
        ),
        "3DPrinter/test/section_00_0200": (0, "unknown", -1, ""),
        "ToothBrush/train/section_00_source_train_normal_0000_noAttribute": (
            *(0, "source", 0, "noAttribute"),
        ),
    },
    2025: {
        "AutoTrash/train/section_00_source_train_normal_0000_noAttribute": (
            *(0, "source", 0, "noAttribute"),
        ),
        "AutoTrash/test/section_00_0000": (0, "unknown", -1, ""),
    },
}
NEVER_READ = (
    "dev_data/fan/attributes_00.csv",
    "eval_data/fan/test_rename/section_00_source_test_normal_0000_x.wav",
    "eval_data/fan/supplemental/section_00_machine_0001_.wav",
)


def make(root, *names):
    """Empty files; the table is read from names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def plant(root, year):
    """The tree of a year."""
    parts = {"dev_data": DEVELOPMENT[year], "eval_data": EVALUATION[year]}
    names = [f"{part}/{name}.wav" for part, tree in parts.items() for name in tree]
    return make(root, *names, *NEVER_READ)


# Names


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_the_tree_of_a_year_says_what_its_names_say(tmp_path, year, suffix):
    plant(tmp_path, year)
    for path in tmp_path.rglob("*.wav"):
        path.rename(path.with_suffix(suffix))
    clips, refusals = read_clips(tmp_path, year=year)
    assert not refusals
    said = {}
    for path, *row in clips[["path", *ROWS]].itertuples(index=False):
        *_, machine, folder, name = path.split("/")
        assert (row[0], row[1]) == (machine, "train" if folder == "train" else "test")
        said[f"{machine}/{folder}/{name.removesuffix(suffix)}"] = tuple(row[2:])
    assert said == DEVELOPMENT[year] | EVALUATION[year]
    assert clips.equals(clips.sort_values(["machine", "split", "section", "domain"], kind="stable"))


def test_no_year_given_is_2021(tmp_path):
    plant(tmp_path, 2021)
    pd.testing.assert_frame_equal(read_clips(tmp_path)[0], read_clips(tmp_path, year=2021)[0])


@pytest.mark.parametrize(
    ("year", "name"),
    [
        (2020, "fan/train/id_01_00000000"),
        (2020, "fan/test/normal_id_1_00000000"),
        (2020, "fan/test/normal_id_01_0000000"),
        (2020, "fan/test/normal_id_01_00000000_x"),
        (2020, "fan/test/normal_id_٠١_00000000"),
        (2023, "fan/train/section_00_0000"),
        (2023, "fan/train/section_00_source_train_0000"),
        (2023, "fan/test/section_00_000"),
        (2023, "fan/test/section_00_0000_x"),
        (2023, "fan/test/section_00_test_0000"),
        (2023, "fan/test/section_00_other_test_normal_0000"),
        (2023, "fan/test/section_00_source_train_normal_0000"),
        (2023, "fan/train/section_00_target_test_normal_0000"),
    ],
)
def test_a_name_or_place_outside_the_grammar_is_refused(tmp_path, year, name):
    clips, refusals = read_clips(make(tmp_path, f"{name}.wav"), year=year)
    assert clips.empty
    assert len(refusals) == 1
    assert refusals[0].reason.startswith(("name: may be ", "name: says "))
    assert "data.year" not in refusals[0].reason


@pytest.mark.parametrize(
    ("year", "stem"),
    [(2020, "anomaly_id_01_00000000"), (2025, "section_00_source_train_anomaly_0000")],
)
def test_an_anomaly_among_training_recordings_is_refused(tmp_path, year, stem):
    clips, refusals = read_clips(make(tmp_path, f"fan/train/{stem}.wav"), year=year)
    assert clips.empty
    assert refusals[0].reason == "name: says anomaly, but training recordings are normal"


def test_training_and_test_clips_of_2020_with_the_same_name_are_two_clips(tmp_path):
    name = "normal_id_01_00000000.wav"
    make(tmp_path, f"fan/train/{name}", f"fan/test/{name}", f"pump/train/{name}")
    clips, refusals = read_clips(tmp_path, year=2020)
    assert not refusals
    rows = clips[["machine", "split", "clip"]].itertuples(index=False, name=None)
    assert [*rows] == [
        ("fan", "test", name),
        ("fan", "train", f"train/{name}"),
        ("pump", "train", f"train/{name}"),
    ]
    make(tmp_path, f"eval_data/fan/test/{name}")
    _, refusals = read_clips(tmp_path, year=2020)
    assert [r.reason.partition(", ")[0] for r in refusals] == ["name: the clip is there twice"]


def test_85_percent_of_the_clips_of_an_id_of_2020_train(tmp_path):
    make(tmp_path, *(f"fan/train/normal_id_{i:02}_{n:08}.wav" for i in (0, 2) for n in range(20)))
    clips, _ = read_clips(tmp_path, year=2020)
    assert clips[split_validation(clips, 0)].groupby("section").size().tolist() == [3, 3]


# The wrong year


def alike(year):
    return MIXED if year in MIXED else (year,)


@pytest.mark.parametrize("asked", YEARS)
@pytest.mark.parametrize("there", YEARS)
def test_a_tree_of_another_year_is_refused_with_its_year(tmp_path, there, asked):
    plant(tmp_path, there)
    if asked in alike(there):
        assert not read_clips(tmp_path, year=asked)[1]
        return
    with pytest.raises(DataError) as error:
        read_clips(tmp_path, year=asked)
    message = str(error.value)
    assert message.endswith(f"give --config.data.year={name_years(alike(there))}")
    assert f"DCASE {asked} Task 2" in message
    assert "\n" not in message


def test_single_names_of_another_year_are_refused_with_their_year(tmp_path):
    make(
        tmp_path,
        "fan/train/normal_id_00_00000000.wav",
        "fan/source_test/section_00_source_test_normal_0000.wav",
        "fan/train/noise.wav",
    )
    clips, refusals = read_clips(tmp_path)
    assert len(clips) == 1
    hints = [refusal.reason.partition("; ")[2] for refusal in refusals]
    assert hints == ["", "--config.data.year=2020 has such names"]


def test_training_recordings_alone_say_no_year(tmp_path):
    make(tmp_path, "fan/train/section_00_source_train_normal_0000.wav")
    for year in (2021, *MIXED):
        clips, refusals = read_clips(tmp_path, year=year)
        assert (len(clips), refusals) == (1, [])
    with pytest.raises(DataError, match=r"year=2021, 2022, 2023, 2024 or 2025$"):
        read_clips(tmp_path, year=2020)


def test_the_merged_copy_beside_the_test_folders_of_2021_is_passed_over(tmp_path):
    make(
        tmp_path,
        "fan/source_test/section_00_source_test_normal_0000.wav",
        "fan/test/section_00_source_test_normal_0000.wav",
        "fan/test/section_00_source_test_normal_0001.wav",
    )
    clips, refusals = read_clips(tmp_path)
    assert (len(clips), refusals) == (1, [])


@pytest.mark.parametrize("year", YEARS)
def test_a_directory_without_recordings_is_told_the_folders_of_the_year(tmp_path, year):
    with pytest.raises(DataError, match="no recordings in") as error:
        read_clips(tmp_path, year=year)
    folders = {2021: "train,source_test,target_test"}.get(year, "train,test")
    assert f"<machine>/{{{folders}}}/*.wav or *.flac" in str(error.value)


# Labels and domains


@pytest.mark.parametrize("form", ["found", "folder", "file"])
def test_the_list_of_2020_labels_its_clips(tmp_path, form):
    data = make(
        tmp_path / "data",
        "eval_data/fan/test/id_01_00000000.wav",
        "eval_data/fan/test/id_01_00000001.wav",
        "eval_data/fan/test/id_01_00000002.wav",
        "eval_data/pump/test/anomaly_id_01_00000049.wav",
        "eval_data/pump/train/normal_id_01_00000007.wav",
    )
    text = (
        "fan\n"
        "id_01_00000000.wav,normal_id_01_00000098.wav,0\n"
        "id_01_00000001.wav,anomaly_id_01_00000064.wav,1\n"
        "pump\n"
        "id_01_00000000.wav,anomaly_id_01_00000049.wav,1\n"
    )
    place = data if form == "found" else tmp_path / "labels"
    file = write(place, {"eval_data_list.csv": text}) / "eval_data_list.csv"
    labels = {"found": "", "folder": place, "file": file}[form]
    clips, _ = read_clips(data, labels, year=2020)
    assert clips["label"].tolist() == [0, 1, -1, 1, 0]
    assert set(clips["domain"]) == {"source"}


@pytest.mark.parametrize(
    "row",
    [
        "id_01_00000000.wav,normal_id_01_00000098.wav",
        "id_01_00000000.wav,normal_id_01_00000098.wav,1",
        "id_01_00000000.wav,anomaly_id_01_00000098.wav,",
        "id_01_00000000.wav,anomaly_id_03_00000098.wav,1",
        "id_01_00000000.wav,id_01_00000098.wav,1",
        "anomaly_id_01_00000000.wav,normal_id_01_00000098.wav,0",
        "section_01_0000.wav,section_01_source_test_normal_0000.wav",
    ],
)
def test_a_malformed_row_of_the_list_of_2020_is_named(tmp_path, row):
    make(tmp_path, "fan/test/id_01_00000000.wav")
    write(tmp_path, {"eval_data_list.csv": f"fan\n{row}\n"})
    with pytest.raises(DataError, match=r"eval_data_list\.csv, line 2: ") as error:
        read_clips(tmp_path, year=2020)
    assert "id_SS_NNNNNNNN.wav,{normal|anomaly}_id_SS_NNNNNNNN.wav,0 or 1" in str(error.value)


TRUTH = "ground_truth_bandsaw_section_00_test.csv"


def make_bandsaw(root, truth=None):
    """Three unlabelled test clips, and the evaluator's files for the first two."""
    names = [f"eval_data/bandsaw/test/section_00_000{i}.wav" for i in range(3)]
    make(root / "data", *names, "eval_data/bandsaw/train/section_00_source_train_normal_0000.wav")
    files = {
        f"ground_truth_data/{TRUTH}": "section_00_0000.wav,1\nsection_00_0001.wav,0\n",
        f"ground_truth_domain/{TRUTH}": "section_00_0000.wav,0\nsection_00_0001.wav,1\n",
        f"ground_truth_attributes/{TRUTH}": "section_00_0000.wav,section_00_x\n",
    }
    write(root / "evaluator", files if truth is None else truth)
    return root / "data", root / "evaluator"


@pytest.mark.parametrize("year", MIXED)
@pytest.mark.parametrize("place", ["named", ".", "eval_data"])
def test_the_evaluators_two_folders_tell_label_and_domain(tmp_path, year, place):
    data, evaluator = make_bandsaw(tmp_path)
    if place != "named":
        for folder in evaluator.iterdir():
            folder.rename(data / place / folder.name)
    clips, _ = read_clips(data, evaluator if place == "named" else "", year=year)
    assert clips[["clip", "domain", "label"]].to_numpy().tolist() == [
        ["section_00_0000.wav", "source", 1],
        ["section_00_0001.wav", "target", 0],
        ["section_00_0002.wav", "unknown", -1],
        ["section_00_source_train_normal_0000.wav", "source", 0],
    ]


@pytest.mark.parametrize("year", [2023, 2024, 2025])
def test_a_list_tells_label_and_domain(tmp_path, year):
    data, evaluator = make_bandsaw(tmp_path, {})
    make(data, "eval_data/bandsaw/test/section_00_source_test_normal_0031_vel_1.wav")
    text = (
        "bandsaw\n"
        "section_00_0000.wav,section_00_target_test_anomaly_0012_vel_2.wav\n"
        "section_00_0001.wav,section_00_source_test_normal_0031_vel_1.wav\n"
    )
    write(evaluator, {f"eval_data_list_{year}.csv": text})
    clips, _ = read_clips(data, evaluator, year=year)
    said = clips.set_index("clip")[["domain", "label"]].apply(tuple, axis=1).to_dict()
    assert said["section_00_0000.wav"] == ("target", 1)
    assert said["section_00_0001.wav"] == ("source", 0)
    assert said["section_00_0002.wav"] == ("unknown", -1)
    assert said["section_00_source_test_normal_0031_vel_1.wav"] == ("source", 0)


def test_new_names_of_2024_may_lack_the_word_test(tmp_path):
    make(tmp_path, "RoboticArm/test/section_00_0001.wav")
    row = "section_00_0001.wav,section_00_target_anomaly_0091_weight35_BckgE.wav"
    write(tmp_path, {"eval_data_list_2024.csv": f"RoboticArm\n{row}\n"})
    clips, _ = read_clips(tmp_path, year=2024)
    assert clips[["domain", "label"]].to_numpy().tolist() == [["target", 1]]


def test_the_lists_of_2022_are_refused_by_name(tmp_path):
    make(tmp_path, "ToyCar/test/section_03_0000.wav")
    row = "section_03_0000.wav,section_03_target_test_anomaly_0011_car_G2.wav"
    write(tmp_path, {"eval_data_list_2022.csv": f"ToyCar\n{row}\n"})
    with pytest.raises(DataError, match=r"eval_data_list_2022\.csv: lists of this year are"):
        read_clips(tmp_path, year=2022)


def test_a_label_without_a_domain_is_refused_with_the_way_out(tmp_path):
    data, evaluator = make_bandsaw(tmp_path)
    with pytest.raises(DataError) as error:
        read_clips(data, evaluator / "ground_truth_data", year=2023)
    message = str(error.value)
    assert message.startswith("2 test recordings, such as bandsaw section_00_0000.wav, have a")
    assert "both ground_truth_data/ and ground_truth_domain/ of the evaluator" in message


@pytest.mark.parametrize("what", ["label", "domain"])
def test_truth_that_contradicts_a_name_is_refused(tmp_path, what):
    name = "section_00_target_test_anomaly_0000_vel_1"
    data = make(tmp_path / "data", f"bandsaw/test/{name}.wav")
    rows = {"label": f"{name}.wav,0\n", "domain": f"{name}.wav,0\n"}
    folder = {"label": "ground_truth_data", "domain": "ground_truth_domain"}[what]
    write(tmp_path / "evaluator", {f"{folder}/{TRUTH}": rows[what]})
    shown = {"label": r"0 \(normal\) or 1 \(anomaly\)", "domain": r"0 \(source\) or 1 \(target\)"}
    with pytest.raises(DataError, match=rf"{TRUTH}, line 1: .*section_00_NNNN.wav,{shown[what]}$"):
        read_clips(data, tmp_path / "evaluator", year=2023)
    text = f"bandsaw\nsection_00_0000.wav,{name}.wav\n"
    files = {f"{folder}/{TRUTH}": "section_00_0000.wav,0\n", "eval_data_list.csv": text}
    with pytest.raises(DataError, match=f"{what} .* of bandsaw section_00_0000 contradicts"):
        read_clips(data, write(tmp_path / "both", files), year=2023)


@pytest.mark.parametrize("row", ["section_01_0000.wav,1", "section_00_0000.wav,2", "x.wav,1"])
def test_a_malformed_row_of_ground_truth_is_named(tmp_path, row):
    data, evaluator = make_bandsaw(tmp_path, {f"ground_truth_domain/{TRUTH}": f"{row}\n"})
    with pytest.raises(DataError, match=f"ground_truth_domain/{TRUTH}, line 1: "):
        read_clips(data, evaluator, year=2023)


@pytest.mark.parametrize("year", YEARS)
def test_named_labels_that_are_not_there_are_told_the_files_of_the_year(tmp_path, year):
    plant(tmp_path / "data", year)
    with pytest.raises(DataError) as error:
        read_clips(tmp_path / "data", tmp_path / "nowhere", year=year)
    files = {
        2020: "eval_data_list*.csv",
        2021: "ground_truth_<machine>_section_SS_<domain>_test.csv or eval_data_list*.csv",
        2022: "ground_truth_<machine>_section_SS_test.csv",
    }.get(year, "ground_truth_<machine>_section_SS_test.csv or eval_data_list*.csv")
    assert str(error.value).endswith(f"nowhere: is not there; it may be or hold a {files}")


# The table


def test_machine_types_and_sections_are_the_published_ones():
    counts = {year: len(rules.machines) for year, rules in YEARS.items()}
    assert counts == {2020: 6, 2021: 7, 2022: 7, 2023: 14, 2024: 16, 2025: 15}
    assert YEARS[2020].machines["ToyConveyor"] == ((1, 2, 3), (4, 5, 6))
    assert YEARS[2020].machines["valve"] == ((0, 2, 4, 6), (1, 3, 5))
    for year in (2023, 2024, 2025):
        assert {"fan", "gearbox", "bearing", "slider", "valve", "ToyCar", "ToyTrain"} == {
            *YEARS[year].development_machines
        }
    assert not any(YEARS[year].development_machines for year in (2020, 2021, 2022))


# Of the autoencoder with MSE, from the READMEs of the evaluators: AUC of source and of target and
# pAUC of every machine type; then their official score.
PUBLISHED = {
    2023: (
        "0.6667348190554078 0.706837186424004 0.69428983714698 0.7968 0.77 0.7212 0.8816",
        "0.48287671232876717 0.5516569200779727 0.5604118104118104 0.561 0.4716 0.6468 0.4532",
        "0.5091087658743451 0.5846166760294185 0.5491654428600755 0.5368421052631579 "
        "0.5178947368421053 0.5826315789473684 0.5947368421052631",
        "0.5925469043549957",
    ),
    2024: (
        "0.7912 0.65 0.6916 0.7658 0.8602 0.6224 0.7504 0.6596 0.707",
        "0.4796 0.4824 0.5374 0.5266 0.4388 0.4598 0.6948 0.4152 0.6352",
        "0.4942105263157895 0.5547368421052632 0.5010526315789474 0.5 0.5021052631578947 "
        "0.5163157894736842 0.5273684210526316 0.511578947368421 0.5557894736842105",
        "0.5650830191796572",
    ),
    2025: (
        "0.8102 0.814 0.677 0.5284 0.7198 0.7304 0.6686 0.6486",
        "0.3436 0.4976 0.367 0.6272 0.3956 0.4436 0.443 0.6592",
        "0.5421052631578948 0.5284210526315789 0.55 0.5552631578947368 0.5205263157894737 "
        "0.5342105263157895 0.5231578947368422 0.6210526315789474",
        "0.5442827820713174",
    ),
}


@pytest.mark.parametrize("year", PUBLISHED)
def test_published_official_scores_are_means_over_the_machine_types_for_evaluation(year):
    *measures, score = (np.array(numbers.split(), float) for numbers in PUBLISHED[year])
    evaluated = [m for m, sections in YEARS[year].machines.items() if sections.evaluation]
    assert [len(values) for values in measures] == [len(evaluated)] * 3
    assert hmean(np.concatenate(measures)) == pytest.approx(score[0], rel=1e-12)
    assert YEARS[year].official.mixed
    assert not YEARS[year].official.missing


# The configuration


@pytest.mark.parametrize("year", [2019, 2026, 2023.0, "2023"])
def test_a_year_that_is_not_in_the_table_is_refused(year):
    config = tiny.make_config()
    with config.data.ignore_type():
        config.data.year = year
    with pytest.raises(ConfigError) as error:
        check_config(config)
    years = "2020, 2021, 2022, 2023, 2024 or 2025"
    assert str(error.value) == f"--config.data.year={year}: it must be {years}"


FIRST_SHOT = ((), (), (0,))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("2020", (("fan", "pump", "slider", "valve"), (0, 2, 4, 6), (1, 3, 5))),
        ("2020:ToyCar", (("ToyCar",), (1, 2, 3, 4), (5, 6, 7))),
        ("2020:ToyConveyor", (("ToyConveyor",), (1, 2, 3), (4, 5, 6))),
        ("2021", ((), (0, 1, 2), (3, 4, 5))),
        ("2022", ((), (0, 1, 2), (3, 4, 5))),
        *((str(year), FIRST_SHOT) for year in (2023, 2024, 2025)),
        ("2023:bandsaw", (("bandsaw",), (), (0,))),
        ("2024:fan", (("fan",), (), (0,))),
    ],
)
def test_the_configuration_of_a_year_chooses_and_reports_its_sections(choice, expected):
    config = check_config(dcase.get_config(choice))
    assert config.data.year == int(choice[:4])
    assert (config.machines, config.validation_sections, config.evaluation_sections) == expected


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("2019", "configs/dcase.py:2019: the year may be 2020, 2021, 2022, 2023, 2024 or 2025"),
        ("", "configs/dcase.py:: the year may be 2020, "),
        ("2022:pump", "configs/dcase.py:2022:pump: the machine types of 2022 are bearing, fan, "),
    ],
)
def test_no_such_year_or_machine_type_is_one_clear_line(choice, says):
    with pytest.raises(LookupError) as error:
        dcase.get_config(choice)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("2023", "--config.data_dir is missing: "),
        ("1999", "the configuration cannot be read: configs/dcase.py:1999: the year may be 2020, "),
    ],
)
def test_the_command_line_takes_a_year_in_any_directory(tmp_path, choice, says):
    root = Path(__file__).parents[1]
    config = f"--config={root}/configs/dcase.py:{choice}"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('the wrong configs')")
    done = subprocess.run(
        [sys.executable, "-m", "dns_jax.main", config, "--workdir=w"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"dns_jax: {says}")
    assert done.stderr.count("\n") == 1


# A run

TRAIN = {("train", 0, "source"): (8, 0), ("train", 0, "target"): (3, 0)}
SCORES = {
    2020: "fan_id_00.csv",
    **dict.fromkeys(MIXED, "fan_section_00_test.csv"),
}


def score(folder, year, clips, segments):
    """Write the score files of a machine as a run does; return the files of the system Proposed."""
    config = tiny.make_config()
    config.data.year = year
    config.validation_sections, config.evaluation_sections = (), (0,)
    config.inlier.clusters = (1,)
    options = {"seed": 0, "directory": folder, "say": lambda line: None}
    score_systems(check_config(config), clips, segments, **options, **tiny.on_one_device())
    return {path.name: path for path in (folder / "scores" / "proposed").iterdir()}


@pytest.mark.parametrize("year", SCORES)
def test_a_run_writes_one_score_file_a_section(tmp_path, year):
    domains = ("source",) if year == 2020 else ("source", "target")
    tests = {("test", 0, domain): (3, 3) for domain in domains}
    clips, segments = machine.make_machine(TRAIN | tests, windows=(2,))
    files = score(tmp_path, year, clips, segments)
    assert files.keys() == {f"anomaly_score_{SCORES[year]}", f"decision_result_{SCORES[year]}"}
    names, _ = read_scores(files[f"anomaly_score_{SCORES[year]}"])
    assert names == sorted(clips["clip"][clips["split"] == "test"])


def test_recordings_whose_domain_nobody_tells_are_scored_by_a_pool_of_all(tmp_path):
    tests = {("test", 0, domain): (3, 3) for domain in ("source", "target")}
    clips, segments = machine.make_machine(TRAIN | tests, windows=(2,))
    tested = (clips["split"] == "test").to_numpy()
    clips["domain"], clips["label"] = (
        clips["domain"].mask(tested, "unknown"),
        clips["label"].mask(tested, -1),
    )
    domain = np.where(segments.split == "test", "unknown", segments.domain)
    label = np.where(segments.split == "test", -1, segments.label).astype(np.int32)
    segments = segments._replace(domain=domain, label=label)
    files = score(tmp_path, 2025, clips, segments)
    names, scores = read_scores(files["anomaly_score_fan_section_00_test.csv"])
    assert len(names) == 12
    assert np.isfinite(scores).all()
    chosen = json.loads((tmp_path / "selection.json").read_text())["proposed"]
    assert (chosen["data"], chosen["how"]) == ("all", "default")


PARTS = {  # of a small data set: machine, section, whether its test clips are labelled
    2020: (("fan", 0, True), ("fan", 1, False), ("pump", 0, None)),
    2022: (("fan", 0, True), ("fan", 3, False), ("bearing", 0, None)),
    2023: (("fan", 0, True), ("bandsaw", 0, False)),
    2024: (("fan", 0, True), ("3DPrinter", 0, False)),
    2025: (("fan", 0, True), ("AutoTrash", 0, False)),
}


@pytest.mark.parametrize("year", YEARS)
def test_the_papers_rows_stand_beside_results_of_2021_alone(year):
    domains = ["source"] * 1000 + ["target"] * 3
    clips = pd.DataFrame({"domain": domains}).assign(machine="fan", split="train", section=0)
    assert _is_dcase2021(clips, ["fan"], year) is (year == 2021)


def name_recordings(year):
    """Yield the names of a small data set."""
    for name, section, labelled in PARTS[year]:
        domains = ("",) if year == 2020 else ("source", "target")
        for domain, number in product(domains, range(4)):
            if year == 2020:
                train = f"normal_id_{section:02}_{number:08}"
                tests = [f"{label}_id_{section:02}_{number:08}" for label in ("normal", "anomaly")]
            else:
                start = f"section_{section:02}_{domain}"
                train = f"{start}_train_normal_{number:04}_noAttribute"
                tests = [f"{start}_test_{label}_{number:04}_x" for label in ("normal", "anomaly")]
            yield f"{name}/train/{train}"
            yield from (f"{name}/test/{stem}" for stem in tests if labelled)
        if labelled is False:
            start = f"id_{section:02}_0000" if year == 2020 else f"section_{section:02}_"
            yield from (f"{name}/test/{start}{number:04}" for number in range(8))


def write_truth(root, year):
    """Every second evaluation clip is an anomaly, and the second half is of the target domain."""
    ((name, section),) = [part[:2] for part in PARTS[year] if part[2] is False]
    labels, domains = [n % 2 for n in range(8)], [n // 4 for n in range(8)]
    if year == 2020:
        rows = [
            f"id_01_{n:08}.wav,{('normal', 'anomaly')[label]}_id_01_{n:08}.wav,{label}\n"
            for n, label in enumerate(labels)
        ]
        return write(root, {"eval_data_list.csv": "".join([f"{name}\n", *rows])})
    files = {}
    for what, values in (("data", labels), ("domain", domains)):
        rows = [f"section_{section:02}_{n:04}.wav,{value}\n" for n, value in enumerate(values)]
        file = f"ground_truth_{what}/ground_truth_{name}_section_{section:02}_test.csv"
        files[file] = "".join(rows)
    return write(root, files)


@pytest.mark.soak
@pytest.mark.parametrize("year", [2020, *MIXED])
def test_a_year_from_recordings_to_official_results(tmp_path, year, capsys):
    rng = np.random.default_rng(0)
    for name in name_recordings(year):
        path = tmp_path / "data" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.05, 4000), 4000, subtype="PCM_16")
    config, chosen = tiny.make_config(), dcase.get_config(str(year))
    for field in ("validation_sections", "evaluation_sections"):
        config[field] = chosen[field]
    config.machines = () if year > 2022 else ("fan",)
    config.data.year, config.data_dir = year, str(tmp_path / "data")
    config.data.labels = str(write_truth(tmp_path / "truth", year))
    config.inlier.clusters = (1,)
    experiment.run(config, tmp_path / "run")
    official = pd.read_csv(tmp_path / "run" / "official.csv")
    parts = {"evaluation", "development" if year > 2022 else "validation"}
    assert set(official["sections"]) == parts
    scores = official[(official["kind"] == "official score") & (official["system"] == "proposed")]
    assert len(scores) == 2
    said = capsys.readouterr()
    assert ("no official score of 2020 is known" in said.out + said.err) == (year == 2020)
    if year == 2020:
        assert scores["auc"].isna().all()
        return
    ((name, section),) = [part[:2] for part in PARTS[year] if part[2] is False]
    folder = tmp_path / "run" / name / "seed_0" / "scores" / "proposed"
    names, values = read_scores(folder / f"anomaly_score_{name}_section_{section:02}_test.csv")
    numbers = np.array([int(clip[11:15]) for clip in names])
    labels, shifted = numbers % 2, numbers >= 4
    source, target = (
        roc_auc_score(labels[r], values[r])
        for r in ((shifted == domain) | (labels == 1) for domain in (False, True))
    )
    counted = [source, target, roc_auc_score(labels, values, max_fpr=0.1)]
    score = scores["auc"][scores["sections"] == "evaluation"].item()
    assert score == pytest.approx(hmean(np.maximum(counted, 2.0**-52)))


# Genuine recordings


def test_genuine_clips_of_2020_are_read(tmp_path, realdata):
    source = realdata / "dcase2020_clips"
    expected = {}
    for path in source.rglob("*.flac"):
        machine, folder = path.parts[-2], "test"
        if machine in ("train", "test"):
            machine, folder = "slider", machine
        target = tmp_path / "dev_data" / machine / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # one clip is there twice
            target.symlink_to(path)
        expected[machine, folder, path.name] = int(path.stem.split("_")[2]), "anomaly" in path.stem
    clips, refusals = read_clips(tmp_path, year=2020)
    assert not refusals
    assert len(clips) == len(expected) == 111
    for row in clips.itertuples():
        section, anomalous = expected[row.machine, row.split, row.path.split("/")[-1]]
        assert (row.section, row.label, row.domain) == (section, anomalous, "source")
    assert clips.groupby("split").size().to_dict() == {"test": 36, "train": 75}
    with pytest.raises(DataError, match=r"give --config\.data\.year=2020$"):
        read_clips(tmp_path)
