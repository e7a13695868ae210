"""The official evaluator's numbers: two published results, and a reader of files as it reads them.

`evaluate_as_dcase` is written after a description of that evaluator: ground truth, scores and
decisions are header-less CSV files, found by machine, section and domain; their rows are sorted,
and then the first belongs to the first, whatever their names.
"""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from dns_jax.evaluation.official import FLOOR, MEASURES, evaluate_officially, read_results
from dns_jax.evaluation.score_files import file_name, write_decisions, write_scores

SYSTEMS = ("yokaji_ae_baseline", "benlin131020_mnv2_lof")
EVALUATED = re.compile(r"ground_truth_(.+)_section_(\d\d)_(source|target)_test\.csv")
EPS = 2.0**-52


@pytest.fixture
def published(realdata):
    """`dcase2021_scores`, whole."""
    folder = realdata / "dcase2021_scores"
    for name in (*SYSTEMS, "official_evaluator_groundtruth"):
        if not (folder / name).is_dir():
            pytest.skip(f"needs {folder / name}")
    return folder


@pytest.fixture
def clips():
    """Two machines of two sections, in both domains, shuffled; the first machine is `pump`."""
    rng = np.random.default_rng(0)
    frame = pd.MultiIndex.from_product(
        [["pump", "fan"], [4, 1], ["target", "source"], range(30)],
        names=["machine", "section", "domain", "clip"],
    ).to_frame(index=False)
    frame["label"] = frame.pop("clip") % 2
    frame["clip"] = [f"{i:04d}.wav" for i in rng.permutation(len(frame))]
    order = np.append(0, 1 + rng.permutation(len(frame) - 1))
    return frame.iloc[order]


def read_rows(path):
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if row]


def hmean(values):
    return len(values) / np.sum(1 / np.maximum(values, EPS), axis=0)


def evaluate_as_dcase(team, truth):
    """{(kind, machine, section, domain): AUC, pAUC, precision, recall, F1} of a team's files."""
    cells = sorted(EVALUATED.fullmatch(path.name).groups() for path in truth.iterdir())
    results = {}
    for machine, section, domain in cells:
        name = f"{machine}_section_{section}_{domain}_test.csv"
        y, scores, decisions = (
            np.array([float(row[1]) for row in sorted(read_rows(path))])
            for path in (
                truth / f"ground_truth_{name}",
                team / f"anomaly_score_{name}",
                team / f"decision_result_{name}",
            )
        )
        assert len(y) == len(scores) == len(decisions)
        true_positives = np.sum(y * decisions)
        precision = true_positives / max(np.sum(decisions), EPS)
        recall = true_positives / np.sum(y)
        f1 = 2 * precision * recall / max(precision + recall, EPS)
        results["section", machine, int(section), domain] = (
            roc_auc_score(y, scores),
            roc_auc_score(y, scores, max_fpr=0.1),
            precision,
            recall,
            f1,
        )
    sections = dict(results)
    for machine in ["all", *{machine for machine, _, _ in cells}]:
        both = [v for k, v in sections.items() if machine in ("all", k[1])]
        results["arithmetic mean", machine, None, "both"] = np.mean(both, axis=0)
        results["harmonic mean", machine, None, "both"] = hmean(both)
        for domain in ("source", "target"):
            one = [v for k, v in sections.items() if machine in ("all", k[1]) and k[3] == domain]
            results["harmonic mean", machine, None, domain] = hmean(one)
    aucs = [value for values in sections.values() for value in values[:2]]
    results["official score", "all", None, "both"] = [hmean(aucs), *[np.nan] * 4]
    return results


def read_published(path):
    """Return what a published result.csv holds, as `evaluate_as_dcase` does."""
    results, machine = {}, None
    for row in read_rows(path):
        if len(row) == 1:
            machine = row[0]
        elif row[2] == "AUC":
            assert row[2:] == ["AUC", "pAUC", "precision", "recall", "F1 score"]
        elif row[0].isdigit():
            results["section", machine, int(row[0]), row[1]] = [float(cell) for cell in row[2:]]
        else:
            mean, everything = re.fullmatch(r"(\w+ mean)( over all .*)?", row[0]).groups()
            where = "all" if everything else machine
            results[mean, where, None, "both"] = [float(cell) for cell in row[2:]]
    return results


def read_published_clips(folder):
    """Return the table of clips that a published folder's names tell."""
    rows = []
    for path in sorted(folder.glob("anomaly_score_*.csv")):
        machine = path.name.split("_")[2]
        for name, _ in read_rows(path):
            _, section, domain, _, label, _ = name.split("_", 5)
            rows.append((machine, name, int(section), domain, int(label == "anomaly")))
    columns = ["machine", "clip", "section", "domain", "label"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)


def as_dict(table):
    sections = [None if pd.isna(section) else section for section in table["section"]]
    keys = zip(table["kind"], table["machine"], sections, table["domain"], strict=True)
    return dict(zip(keys, table[[*MEASURES]].to_numpy(), strict=True))


def write_team(clips, scores, decisions, team, truth):
    """Write the files of all cells with our writers, rows in no order, and the ground truth."""
    truth.mkdir()
    for cell, rows in clips.groupby(["machine", "section", "domain"]).indices.items():
        names, labels = clips["clip"].to_numpy()[rows], clips["label"].to_numpy()[rows]
        write_scores(team / file_name("anomaly_score", *cell), names, scores[rows])
        rows, names = rows[::-1], names[::-1]
        write_decisions(team / file_name("decision_result", *cell), names, decisions[rows])
        machine, section, domain = cell
        path = truth / f"ground_truth_{machine}_section_{section:02d}_{domain}_test.csv"
        lines = [f"{n},{label}\n" for n, label in zip(names, labels[::-1], strict=True)]
        path.write_text("".join(sorted(lines)))


def assert_same(measured, expected, atol):
    for key, values in expected.items():
        np.testing.assert_allclose(measured[key], values, rtol=0, atol=atol, err_msg=str(key))


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_results_follow_from_published_files(published, system):
    folder = published / system
    clips = read_published_clips(folder)
    assert len(clips) == 8621
    assert clips["label"].sum() == 4291
    scores, decisions = read_results(clips, dict.fromkeys(clips["machine"], folder))
    measured = as_dict(evaluate_officially(clips, scores, decisions))

    expected = read_published(folder / "result.csv")
    assert len(expected) == 7 * 8 + 2
    assert_same(measured, expected, atol=1e-9)
    aucs = [v for key, values in expected.items() if key[0] == "section" for v in values[:2]]
    assert len(aucs) == 84
    score = measured["official score", "all", None, "both"]
    np.testing.assert_allclose(score, [84 / sum(1 / v for v in aucs), *[np.nan] * 4], rtol=1e-12)
    for domain in ("source", "target"):
        cells = [v for key, v in expected.items() if key[0] == "section" and key[3] == domain]
        assert len(cells) == 21
        mean = measured["harmonic mean", "all", None, domain]
        np.testing.assert_allclose(mean, hmean(cells), rtol=1e-12)


@pytest.mark.parametrize(
    ("system", "names"), [(SYSTEMS[0], "with labels"), (SYSTEMS[1], "without labels")]
)
def test_the_evaluator_reads_our_files_and_finds_the_published_results(
    published, tmp_path, system, names
):
    folder = published / system
    clips = read_published_clips(folder)
    scores, decisions = read_results(clips, dict.fromkeys(clips["machine"], folder))
    if names == "without labels":
        numbers = clips.groupby(["machine", "section", "domain"]).cumcount()
        clips["clip"] = [
            f"section_{section:02d}_{domain}_test_{number:04d}.wav"
            for section, domain, number in zip(
                clips["section"], clips["domain"], numbers, strict=True
            )
        ]
        order = np.random.default_rng(1).permutation(len(clips))
        clips, scores, decisions = clips.iloc[order], scores[order], decisions[order]
    write_team(clips, scores, decisions, tmp_path / "team", tmp_path / "truth")
    theirs = evaluate_as_dcase(tmp_path / "team", tmp_path / "truth")
    assert_same(theirs, read_published(folder / "result.csv"), atol=1e-9)
    ours = as_dict(evaluate_officially(clips, scores, decisions))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 7 * (6 + 4) + 5
    assert_same(ours, theirs, atol=1e-12)


def test_the_evaluators_own_ground_truth_goes_with_our_files(published, tmp_path):
    truth = published / "official_evaluator_groundtruth" / "ground_truth_data"
    rows = []
    for path in truth.iterdir():
        machine, section, domain = EVALUATED.fullmatch(path.name).groups()
        rows += [(machine, int(section), domain, n, int(label)) for n, label in read_rows(path)]
    columns = ["machine", "section", "domain", "clip", "label"]
    clips = pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)
    scores = np.random.default_rng(1).normal(clips["label"].to_numpy())
    scores[(clips["machine"] == "fan") & (clips["section"] == 3)] -= 9  # none found there
    decisions = (scores > 1).astype(float)
    write_team(clips, scores, decisions, tmp_path / "team", tmp_path / "truth")
    for path in truth.iterdir():
        assert sorted(read_rows(path)) == read_rows(tmp_path / "truth" / path.name)
    theirs = evaluate_as_dcase(tmp_path / "team", truth)
    assert theirs["section", "fan", 3, "source"][2:] == (0, 0, 0)
    assert len(theirs) == 7 * (6 + 4) + 5
    folders = dict.fromkeys(clips["machine"], tmp_path / "team")
    ours = as_dict(evaluate_officially(clips, *read_results(clips, folders)))
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-12, err_msg=str(key))


def test_rows_stand_in_the_order_of_the_evaluators_file(clips):
    table = evaluate_officially(clips, np.zeros(len(clips)), np.zeros(len(clips)))
    assert list(table.columns) == ["kind", "machine", "section", "domain", *MEASURES]
    assert table["section"].dtype == "Int64"
    cells = table[table["kind"] == "section"]
    assert list(zip(cells["machine"], cells["domain"], cells["section"], strict=True)) == [
        (machine, domain, section)
        for machine in ("pump", "fan")
        for domain in ("source", "target")
        for section in (1, 4)
    ]
    means = table[table["kind"] != "section"]
    assert means["section"].isna().all()
    assert list(zip(means["machine"], means["kind"], means["domain"], strict=True)) == [
        *[
            (machine, kind, domain)
            for machine in ("pump", "fan", "all")
            for kind, domain in (
                ("arithmetic mean", "both"),
                ("harmonic mean", "both"),
                ("harmonic mean", "source"),
                ("harmonic mean", "target"),
            )
        ],
        ("all", "official score", "both"),
    ]


def test_nothing_called_anomalous_is_zero_and_barely_more_in_a_harmonic_mean(clips):
    scores = np.random.default_rng(1).normal(clips["label"].to_numpy())
    decisions = clips["label"].to_numpy() * (clips["section"] == 1).to_numpy()
    results = as_dict(evaluate_officially(clips, scores, decisions))
    assert results["section", "fan", 1, "source"][2:].tolist() == [1, 1, 1]
    assert results["section", "fan", 4, "source"][2:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(results["arithmetic mean", "fan", None, "both"][2:], 0.5)
    mean = results["harmonic mean", "fan", None, "both"][2:]
    np.testing.assert_allclose(mean, 4 / (2 + 2 / EPS), rtol=1e-12)
    assert FLOOR == EPS


@pytest.mark.parametrize("missing", ["label", "score"])
def test_clips_without_a_label_or_a_score_are_left_out(clips, missing):
    rng = np.random.default_rng(2)
    scores = rng.normal(clips["label"].to_numpy())
    decisions = (scores > 0.5).astype(float)
    there = rng.random(len(clips)) < 0.7
    expected = evaluate_officially(clips[there], scores[there], decisions[there])
    if missing == "label":
        clips = clips.assign(label=clips["label"].where(there, -1))
    else:
        scores[~there] = decisions[~there] = np.nan
    pd.testing.assert_frame_equal(evaluate_officially(clips, scores, decisions), expected)


def test_a_cell_of_one_class_is_not_evaluable_and_left_out_of_the_means(clips):
    scores = np.random.default_rng(3).normal(clips["label"].to_numpy())
    decisions = (scores > 0.5).astype(float)
    cell = (clips["machine"] == "fan") & (clips["section"] == 4) & (clips["domain"] == "source")
    outside = evaluate_officially(clips[~cell], scores[~cell], decisions[~cell])
    for label in (0, 1, -1):
        one_class = clips.assign(label=clips["label"].mask(cell, label))
        table = evaluate_officially(one_class, scores, decisions)
        place = ["section", "fan", 4, "source"]
        odd = (table[["kind", "machine", "section", "domain"]] == place).all(axis=1)
        assert odd.sum() == 1
        assert table.loc[odd, [*MEASURES]].isna().all(axis=None)
        pd.testing.assert_frame_equal(table[~odd].reset_index(drop=True), outside)
    nothing = evaluate_officially(clips.assign(label=-1), scores, decisions)
    assert nothing[[*MEASURES]].isna().all(axis=None)


def test_other_shapes_and_decisions_are_refused(clips):
    zeros = np.zeros(len(clips))
    with pytest.raises(ValueError, match=r"one per clip, \[240\], but are \(240,\) and \(239,\)"):
        evaluate_officially(clips, zeros, zeros[1:])
    with pytest.raises(ValueError, match=r"one per clip, \[240\], but are \(1, 240\)"):
        evaluate_officially(clips, zeros[None], zeros[None])
    with pytest.raises(ValueError, match=r"a decision must be 0, 1 or NaN, not .*0\.5"):
        evaluate_officially(clips, zeros, zeros + 0.5)


@pytest.fixture
def folders(clips, tmp_path):
    """One folder per machine, as a run leaves them; the score of a clip is its number."""
    values = clips["clip"].str[:4].astype(float).to_numpy(copy=True)
    values[values == 7] = np.nan
    parts = {machine: tmp_path / machine / "scores" for machine in ("pump", "fan")}
    for machine, folder in parts.items():
        rows = (clips["machine"] == machine).to_numpy()
        decisions = np.where(np.isnan(values), np.nan, values > 99)[rows]
        write_team(clips[rows], values[rows], decisions, folder, tmp_path / f"truth {machine}")
    return parts


def test_results_come_back_in_the_order_of_the_clips(clips, folders):
    scores, decisions = read_results(clips, folders)
    numbers = clips["clip"].str[:4].astype(float).to_numpy(copy=True)
    numbers[numbers == 7] = np.nan
    np.testing.assert_array_equal(scores, numbers)
    np.testing.assert_array_equal(decisions, np.where(np.isnan(numbers), np.nan, numbers > 99))


@pytest.mark.parametrize("fault", ["missing", "more", "twice", "other"])
@pytest.mark.parametrize("kind", ["anomaly_score", "decision_result"])
def test_a_file_that_does_not_hold_its_clips_is_named(clips, folders, kind, fault):
    path = folders["fan"] / file_name(kind, "fan", 4, "source")
    rows = path.read_text().splitlines()
    name = rows[3].split(",")[0]
    seen = {"missing": name, "more": "x.wav", "twice": name, "other": "0.wav"}[fault]
    rows = {
        "missing": rows[:3] + rows[4:],
        "more": [*rows, "x.wav,1"],
        "twice": [*rows, rows[3]],
        "other": [*rows[:3], "0.wav,1", *rows[4:]],
    }[fault]
    path.write_text("\n".join(rows))
    with pytest.raises(ValueError, match=f"{path.name}: .* {len(rows)} rows") as error:
        read_results(clips, folders)
    assert str(error.value).endswith(f"see {seen}")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        read_results(clips, folders)


# Other years

MIXED = (2022, 2023, 2024, 2025)


@pytest.fixture
def scored(clips):
    """Scores and decisions of `clips`; anomalies of the target domain are harder to find."""
    hard = (clips["domain"] == "target").to_numpy()
    rng = np.random.default_rng(5)
    scores = rng.normal(clips["label"].to_numpy() * np.where(hard, 0.5, 1.5) + 0.8 * hard)
    return scores, (scores > 1).astype(float)


def count_pairs(normal, anomalous):
    """The AUC as the share of pairs in the right order."""
    higher = anomalous[:, None] > normal
    return np.mean(higher + (anomalous[:, None] == normal) / 2)


def evaluate_mixed(clips, scores, decisions):
    """The rule since 2022, cell by cell: {(machine, section, domain): five measures}."""
    cells = {}
    for machine, section in {*zip(clips["machine"], clips["section"], strict=True)}:
        here = ((clips["machine"] == machine) & (clips["section"] == section)).to_numpy()
        labels = clips["label"].to_numpy()
        pauc = roc_auc_score(labels[here], scores[here], max_fpr=0.1)
        for domain in ("source", "target"):
            own = here & (clips["domain"] == domain).to_numpy()
            auc = count_pairs(scores[own & (labels == 0)], scores[here & (labels == 1)])
            called, true = np.sum(decisions[own]), np.sum(decisions[own] * labels[own])
            precision, recall = true / called, true / np.sum(labels[own])
            f1 = 2 * precision * recall / (precision + recall)
            cells[machine, section, domain] = (auc, pauc, precision, recall, f1)
    return cells


@pytest.mark.parametrize("year", MIXED)
def test_since_2022_a_domain_has_its_normal_clips_and_all_anomalies(clips, scored, year):
    expected = evaluate_mixed(clips, *scored)
    results = as_dict(evaluate_officially(clips, *scored, year))
    assert results.keys() == as_dict(evaluate_officially(clips, *scored)).keys()
    for (machine, section, domain), values in expected.items():
        np.testing.assert_allclose(results["section", machine, section, domain], values, rtol=1e-12)
    for machine in ("fan", "pump", "all"):
        of_machine = {k: v for k, v in expected.items() if machine in ("all", k[0])}
        both = list(of_machine.values())
        mean = results["arithmetic mean", machine, None, "both"]
        np.testing.assert_allclose(mean, np.mean(both, axis=0), rtol=1e-12)
        for domain in ("both", "source", "target"):
            part = [v for k, v in of_machine.items() if domain in ("both", k[2])]
            mean = results["harmonic mean", machine, None, domain]
            np.testing.assert_allclose(mean, hmean(part), rtol=1e-12)
    counted = [values[0] for values in expected.values()]
    counted += [values[1] for (_, _, domain), values in expected.items() if domain == "source"]
    assert len(counted) == 4 * 3
    score = results["official score", "all", None, "both"]
    np.testing.assert_allclose(score, [hmean(counted), *[np.nan] * 4], rtol=1e-12)
    assert score[0] != pytest.approx(hmean([v for values in expected.values() for v in values[:2]]))


def test_clips_of_unknown_domain_count_nowhere(clips, scored):
    scores, decisions = scored
    unknown = (np.arange(len(clips)) % 5 == 0) | (clips["machine"] == "pump").to_numpy()
    clips["domain"] = clips["domain"].mask(unknown, "unknown")
    clips["label"] = clips["label"].mask(unknown, -1)
    table = evaluate_officially(clips, scores, decisions, 2023)
    assert set(table["domain"]) == {"source", "target", "both"}
    known = evaluate_officially(clips[~unknown], scores[~unknown], decisions[~unknown], 2023)
    here = table["machine"] != "pump"
    pd.testing.assert_frame_equal(table[here].reset_index(drop=True), known)
    assert table.loc[~here, [*MEASURES]].isna().all(axis=None)
    nothing = evaluate_officially(clips[unknown], scores[unknown], decisions[unknown], 2023)
    assert nothing[[*MEASURES]].isna().all(axis=None)
    assert nothing["kind"].iloc[-1] == "official score"


def test_a_domain_without_normal_clips_has_no_auc_and_leaves_the_pauc(clips, scored):
    gone = (clips["domain"] == "target") & (clips["label"] == 0) & (clips["section"] == 1)
    clips["label"] = clips["label"].mask(gone, -1)
    results = as_dict(evaluate_officially(clips, *scored, 2024))
    source, target = (results["section", "fan", 1, domain] for domain in ("source", "target"))
    assert np.isnan(target[0])
    assert target[1] == source[1]
    assert np.isfinite(source).all()
    assert np.isfinite(results["official score", "all", None, "both"][0])


def test_2020_has_the_averages_of_each_machine_and_no_official_score(clips, scored):
    clips["domain"] = "source"
    table = evaluate_officially(clips, *scored, 2020)
    cells = [(m, s) for m in ("pump", "fan") for s in (1, 4)]
    assert list(zip(table["kind"], table["machine"], strict=True)) == [
        *[("section", machine) for machine, _ in cells],
        ("arithmetic mean", "pump"),
        ("arithmetic mean", "fan"),
        ("official score", "all"),
    ]
    results = as_dict(table)
    expected = {}
    for machine, section in cells:
        rows = ((clips["machine"] == machine) & (clips["section"] == section)).to_numpy()
        labels, scores = clips["label"].to_numpy()[rows], scored[0][rows]
        auc = count_pairs(scores[labels == 0], scores[labels == 1])
        expected[machine, section] = (auc, roc_auc_score(labels, scores, max_fpr=0.1))
        measured = results["section", machine, section, "source"]
        np.testing.assert_allclose(measured[:2], expected[machine, section], rtol=1e-12)
    for machine in ("pump", "fan"):
        mean = np.mean([expected[machine, section] for section in (1, 4)], axis=0)
        measured = results["arithmetic mean", machine, None, "both"]
        np.testing.assert_allclose(measured[:2], mean, rtol=1e-12)
    assert table[["precision", "recall", "f1"]].isna().all(axis=None)
    assert np.isnan(results["official score", "all", None, "both"]).all()


@pytest.mark.parametrize("year", [2020, *MIXED])
def test_files_of_other_years_hold_both_domains(clips, tmp_path, year):
    values = clips["clip"].str[:4].astype(float).to_numpy()
    decisions = (values > 99).astype(float)
    keys = ["machine", "section"]
    for (machine, section), rows in clips.groupby(keys).indices.items():
        names = clips["clip"].to_numpy()[rows]
        end = f"id_{section:02d}" if year == 2020 else f"section_{section:02d}_test"
        folder = tmp_path / machine
        write_scores(folder / f"anomaly_score_{machine}_{end}.csv", names, values[rows])
        write_decisions(folder / f"decision_result_{machine}_{end}.csv", names, decisions[rows])
    folders = {machine: tmp_path / machine for machine in ("pump", "fan")}
    read = read_results(clips, folders, year)
    np.testing.assert_array_equal(read, (values, decisions))
    with pytest.raises(OSError, match="_source_test"):
        read_results(clips, folders)
