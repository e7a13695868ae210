"""From segments to Table I's choices and the evaluator's files, without any training."""

import csv
import json

import machine
import numpy as np
import pytest
import tiny
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from dns_jax.config import check_config
from dns_jax.data.clips import split_validation
from dns_jax.data.refusals import DataError
from dns_jax.evaluation.label_free import list_variants, score_generatively, score_label_free
from dns_jax.evaluation.protocol import score_systems
from dns_jax.evaluation.score_files import fit_threshold
from dns_jax.evaluation.systems import (
    average_segments,
    fit_inliers,
    score_by_inliers,
    smooth_candidates,
    smooth_training,
)
from dns_jax.inlier import load_inliers, score_features
from dns_jax.parallel import make_mesh

SECTIONS = (0, 1, 2, 3)
TRAIN = {("train", s, d): (n, 0) for s in SECTIONS for d, n in (("source", 8), ("target", 3))}
TEST = {("test", s, d): (4, 4) for s in SECTIONS for d in ("source", "target")}
SYSTEMS = {"ae", "serial_oe", "proposed", "oracle"}


def make_machine(counts):
    """Two segments a recording: pools of equal size are compiled once."""
    return machine.make_machine(counts, windows=(2,), mels=5)


def make_config(**fields):
    config = tiny.make_config()
    config.validation_sections, config.evaluation_sections = (0, 1), (2, 3)
    config.inlier.clusters = (1, 2)
    config.update_from_flattened_dict(fields)
    return check_config(config)


class Scored:
    """What `score_systems` leaves behind."""

    def __init__(self, directory, clips, segments, config=None, seed=0):
        self.clips, self.segments, self.directory, self.said = clips, segments, directory, []
        self.config = config or make_config()
        score_systems(
            self.config,
            clips,
            segments,
            seed=seed,
            directory=directory,
            say=self.said.append,
            **tiny.on_one_device(),
        )
        self.selection = json.loads((directory / "selection.json").read_text())
        self.trained, self.tested = (
            segments.select(segments.split == split) for split in ("train", "test")
        )

    def systems(self):
        return {path.name for path in (self.directory / "scores").glob("*")}

    def read(self, kind, system, section, domain):
        name = f"{kind}_fan_section_{section:02d}_{domain}_test.csv"
        with open(self.directory / "scores" / system / name, newline="") as file:
            return list(csv.reader(file))

    def read_all(self, kind, system):
        """Return {recording: value} over all sections and domains."""
        files = (self.directory / "scores" / system).glob(f"{kind}_*.csv")
        rows = [line.split(",") for path in files for line in path.read_text().splitlines()]
        assert len({name for name, _ in rows}) == len(rows)
        return {name: float(value) for name, value in rows}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return Scored(tmp_path_factory.mktemp("scored"), *make_machine(TRAIN | TEST))


def measure(clips, scores, sections):
    """Harmonic mean of AUC and pAUC over sections, by scikit-learn."""
    values = []
    for section in sections:
        rows = (clips["section"] == section).to_numpy()
        for most in (None, 0.1):
            values.append(roc_auc_score(clips["label"][rows], scores[rows], max_fpr=most))
    return len(values) / np.sum(1 / np.array(values))


def select_tests(clips):
    return clips[clips["split"] == "test"]


# Choices


@pytest.mark.parametrize(
    ("system", "sections", "how"),
    [("proposed", (0, 1), "validation"), ("oracle", (2, 3), "oracle")],
)
def test_k_and_data_are_the_best_on_their_sections(scored, system, sections, how):
    test = select_tests(scored.clips)
    candidates = smooth_candidates(
        scored.tested, scored.config.smoothing, test["clip"], make_mesh(1)
    )
    values = {choice: measure(test, scores, sections) for choice, scores in candidates.items()}
    chosen = scored.selection[system]
    assert values[chosen["size"], chosen["data"]] == pytest.approx(max(values.values()))
    assert chosen["how"] == how
    assert max(values.values()) > min(values.values())


def test_clusters_and_data_are_the_best_on_the_validation_sections(scored):
    test, segments = select_tests(scored.clips), scored.segments
    values = {}
    for clusters in (1, 2):
        for data in ("source", "all"):
            scores = np.empty(len(segments.clip))
            for section in SECTIONS:
                here = segments.section == section
                fitted = here & (segments.split == "train")
                fitted &= (segments.domain == "source") | (data == "all")
                h = GaussianMixture(clusters, random_state=0).fit(
                    segments.feature[fitted].astype(np.float64)
                )
                scores[here] = -h.score_samples(segments.feature[here].astype(np.float64))
            means = average_segments(scores, segments.clip, test["clip"])
            values[clusters, data] = measure(test, means, (0, 1))
    chosen = scored.selection["serial_oe"]
    assert values[chosen["size"], chosen["data"]] == pytest.approx(max(values.values()))
    assert chosen["how"] == "validation"
    assert len({*values.values()}) > 1


def test_the_oracle_of_a_single_section_chooses_by_its_auc(scored):
    test = select_tests(scored.clips)
    candidates = smooth_candidates(
        scored.tested, scored.config.smoothing, test["clip"], make_mesh(1)
    )
    assert {*scored.selection["section_oracle"]} == {"2", "3"}
    for section, best in scored.selection["section_oracle"].items():
        rows = (test["section"] == int(section)).to_numpy()
        aucs = {c: roc_auc_score(test["label"][rows], s[rows]) for c, s in candidates.items()}
        assert best["auc"] == pytest.approx(max(aucs.values()))
        assert aucs[best["size"], best["data"]] == pytest.approx(best["auc"])


def test_only_sections_that_are_there_are_named(tmp_path):
    config = make_config(validation_sections=(7, 1), evaluation_sections=(3, 9))
    selection = Scored(tmp_path, *make_machine(TRAIN | TEST), config).selection
    assert selection["validation_sections"] == [1]
    assert selection["evaluation_sections"] == [3]
    assert (selection["machine"], selection["seed"]) == ("fan", 0)


@pytest.mark.parametrize(
    ("recordings", "default", "k"), [(45, 32, 32), (30, 32, 16), (2, 32, 1), (30, 5, 4), (30, 1, 1)]
)
def test_without_validation_sections_k_is_the_default_or_a_fifth_of_the_pool(
    tmp_path, recordings, default, k
):
    counts = TRAIN | {("test", 2, "source"): (recordings, recordings)}
    clips, segments = make_machine(counts)
    config = make_config(**{"smoothing.default_k": default, "inlier.clusters": (1,)})
    selection = Scored(tmp_path, clips, segments, config).selection
    assert selection["proposed"] == {"size": k, "data": "all", "how": "default"}
    assert selection["oracle"]["how"] == "oracle"


@pytest.mark.parametrize(("default", "clusters"), [(3, 2), (1, 1)])
def test_without_validation_sections_the_clusters_are_the_default(tmp_path, default, clusters):
    config = make_config(validation_sections=(), **{"inlier.default_clusters": default})
    chosen = Scored(tmp_path, *make_machine(TRAIN | TEST), config).selection["serial_oe"]
    assert chosen == {"size": clusters, "data": "all", "how": "default"}


def test_clusters_above_the_default_are_taken_where_no_smaller_ones_are_tried(tmp_path):
    config = make_config(validation_sections=(), **{"inlier.clusters": (3,)})
    chosen = Scored(tmp_path, *make_machine(TRAIN | TEST), config).selection["serial_oe"]
    assert chosen["size"] == 3


def test_validation_sections_without_labels_are_no_validation_sections(tmp_path):
    clips, segments = make_machine(TRAIN | TEST)
    clips.loc[(clips["split"] == "test") & clips["section"].isin((0, 1)), "label"] = -1
    selection = Scored(tmp_path, clips, segments).selection
    assert selection["validation_sections"] == [0, 1]
    assert selection["proposed"]["how"] == selection["serial_oe"]["how"] == "default"
    assert selection["oracle"]["how"] == "oracle"


def test_without_evaluation_sections_there_is_no_oracle(tmp_path):
    config = make_config(evaluation_sections=())
    scored = Scored(tmp_path, *make_machine(TRAIN | TEST), config)
    assert scored.selection["oracle"] is None
    assert scored.selection["section_oracle"] == {}
    assert scored.systems() == SYSTEMS - {"oracle"}


def test_without_test_recordings_there_is_a_selection_and_an_inlier_model_but_no_score(tmp_path):
    scored = Scored(tmp_path, *make_machine(TRAIN))
    assert scored.selection["serial_oe"] == {"size": 2, "data": "all", "how": "default"}
    assert scored.selection["proposed"] is None
    assert scored.selection["oracle"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"selection.json", "inlier.npz"}


def test_training_sections_without_test_recordings_are_no_obstacle(tmp_path):
    counts = {cell: count for cell, count in TEST.items() if cell[1] != 3}
    scored = Scored(tmp_path, *make_machine(TRAIN | counts))
    assert scored.systems() == SYSTEMS
    assert not list(tmp_path.glob("scores/*/*section_03*"))
    assert {*load_inliers(tmp_path / "inlier.npz")} == {*SECTIONS}


# The inlier model


@pytest.mark.parametrize("share", [0.85, 0.5])
@pytest.mark.parametrize("part", ["all", "train", "validation"])
def test_h_is_fitted_on_the_chosen_part_of_the_training_recordings(tmp_path, part, share):
    clips, segments = make_machine(TRAIN | TEST)
    fields = {"inlier.fit_split": part, "inlier.clusters": (1,), "data.train_share": share}
    config = make_config(**fields)
    chosen = Scored(tmp_path, clips, segments, config, seed=5).selection["serial_oe"]
    held_out = np.isin(segments.clip, clips["clip"][split_validation(clips, 5, share)].tolist())
    rows = (segments.split == "train") & (
        np.full(len(held_out), True) if part == "all" else held_out == (part == "validation")
    )
    rows &= (segments.domain == "source") | (chosen["data"] == "all")
    for section, h in load_inliers(tmp_path / "inlier.npz").items():
        mean = segments.feature[rows & (segments.section == section)].mean(0)
        np.testing.assert_allclose(h.means_[0], mean, rtol=1e-4)


def test_a_skipped_recording_takes_no_place_in_the_validation_part(tmp_path):
    clips, segments = make_machine(TRAIN | TEST)
    broken = clips["clip"][split_validation(clips, 0) & (clips["section"] == 0)].tolist()
    clips["usable"] = ~clips["clip"].isin(broken)
    config = make_config(**{"inlier.fit_split": "validation", "inlier.clusters": (1,)})
    kept = segments.select(~np.isin(segments.clip, broken))
    Scored(tmp_path, clips, kept, config)
    usable = clips[clips["usable"]]
    validates = usable["clip"][split_validation(usable, 0) & (usable["section"] == 0)].tolist()
    assert validates
    mean = load_inliers(tmp_path / "inlier.npz")[0].means_[0]
    means = [
        kept.feature[np.isin(kept.clip, validates) & domain].mean(0)
        for domain in (kept.domain == "source", kept.domain != "")
    ]
    assert any(np.allclose(mean, expected, rtol=1e-4) for expected in means)


def test_a_candidate_that_cannot_be_fitted_is_dropped_with_a_line(tmp_path):
    config = make_config(**{"inlier.clusters": (1, 5000)})
    scored = Scored(tmp_path, *make_machine(TRAIN | TEST), config)
    assert scored.selection["serial_oe"]["size"] == 1
    for data in ("source", "all"):
        (line,) = (line for line in scored.said if f"5000 clusters on {data} data" in line)
        assert "\n" not in line


def test_without_any_inlier_model_the_data_are_refused(tmp_path):
    config = make_config(**{"inlier.clusters": (5000,)})
    with pytest.raises(DataError, match="fan: no inlier model can be fitted on all data"):
        Scored(tmp_path, *make_machine(TRAIN | TEST), config)
    assert not (tmp_path / "selection.json").exists()


def test_the_inlier_model_that_is_kept_is_the_one_that_scored(scored):
    inliers = load_inliers(scored.directory / "inlier.npz")
    scores = np.empty(len(scored.segments.clip))
    for section, h in inliers.items():
        rows = scored.segments.section == section
        scores[rows] = score_features(h, scored.segments.feature[rows])
    written = scored.read_all("anomaly_score", "serial_oe")
    expected = average_segments(scores, scored.segments.clip, [*written])
    np.testing.assert_allclose([*written.values()], expected, rtol=1e-9)


# Scores and decisions


def expected_scores(scored, system):
    """f64 of test and training recordings, from the functions that test_systems.py holds."""
    test, train = (scored.clips[scored.clips["split"] == split] for split in ("test", "train"))
    if system == "ae":
        return tuple(
            average_segments(scored.segments.ae_score, scored.segments.clip, part["clip"])
            for part in (test, train)
        )
    choice = scored.selection[system]["size"], scored.selection[system]["data"]
    smoothing = scored.config.smoothing
    return (
        smooth_candidates(scored.tested, smoothing, test["clip"], make_mesh(1))[choice],
        smooth_training(
            scored.trained, scored.tested, choice, smoothing, train["clip"], make_mesh(1)
        ),
    )


def test_options_beyond_the_paper_have_files_of_their_own_and_change_no_others(scored, tmp_path):
    options = {
        "smoothing.generative": "ae+gmm+serial_oe",
        "smoothing.score_transform": "calibrated",
        "smoothing.domain_normalisation": "ranks",
        "smoothing.space": "f_d+residual",
        "smoothing.method": "diffusion",
    }
    ours = Scored(tmp_path, scored.clips, scored.segments, make_config(**options))
    variants = list_variants(ours.config.smoothing)
    assert ours.systems() == SYSTEMS | {*variants}
    assert len(variants) == 6
    for system in SYSTEMS:
        for kind in ("anomaly_score", "decision_result"):
            assert ours.read_all(kind, system) == scored.read_all(kind, system)
    # SerialOE as it would be without labels: the default number of Gaussians, on all data.
    segments = ours.segments
    fitted = fit_inliers(segments, segments.split == "train", (2,), 0, pytest.fail)
    serial_oe = score_by_inliers(segments, fitted[2, "all"])
    generative = score_generatively(segments, serial_oe, ours.config.smoothing, 0)
    for system, options in variants.items():
        how = segments, generative, options, ours.config.smoothing
        test = select_tests(ours.clips)
        expected = score_label_free(*how, test["clip"])
        got = ours.read_all("anomaly_score", system)
        np.testing.assert_allclose([got[clip] for clip in test["clip"]], expected, rtol=1e-5)
        decisions = ours.read_all("decision_result", system)
        of_ae = ours.read_all("decision_result", "ae")
        for section in SECTIONS:
            here = (test["section"] == section).to_numpy()
            of_section = expected[here]
            scale = ours.selection["scale"][system][str(section)]
            assert scale["mean"] == pytest.approx(of_section.mean(), rel=1e-5, abs=1e-6)
            assert scale["deviation"] == pytest.approx(of_section.std(ddof=1), rel=1e-5)
            # As many as by the autoencoder alone, the highest.
            count = sum(of_ae[clip] for clip in test["clip"][here])
            assert 0 < count < here.sum()
            order = np.argsort(-of_section)
            for place, clip in enumerate(test["clip"][here].iloc[order]):
                assert decisions[clip] == (place < count)


def test_what_normal_recordings_score_is_in_the_selection(scored):
    train = scored.clips[scored.clips["split"] == "train"]
    for system in ("ae", "proposed"):
        of_train = average_segments(scored.trained.ae_score, scored.trained.clip, train["clip"])
        if system == "proposed":
            _, of_train = expected_scores(scored, "proposed")
        assert {*scored.selection["scale"][system]} == {*map(str, SECTIONS)}
        for section in SECTIONS:
            scores = of_train[(train["section"] == section).to_numpy()]
            normal = scored.selection["scale"][system][str(section)]
            assert normal["mean"] == pytest.approx(scores.sum() / 11)
            squares = np.square(scores - scores.sum() / 11).sum()
            assert normal["deviation"] == pytest.approx(np.sqrt(squares / 10))


def test_recordings_without_a_score_say_nothing_of_normal_ones(tmp_path):
    clips, segments = make_machine(TRAIN | TEST)
    of_first = segments.clip == clips["clip"][0]
    of_second = (segments.split == "train") & (segments.section == 1)
    a_g = np.where(of_first, np.nan, segments.ae_score).astype(np.float32)
    a_g[of_second & (segments.clip != segments.clip[of_second][0])] = np.nan
    normal = Scored(tmp_path, clips, segments._replace(ae_score=a_g)).selection["scale"]["ae"]
    own = (segments.section == 0) & (segments.split == "train") & ~of_first
    assert normal["0"]["mean"] == pytest.approx(a_g[own].mean())  # all have two segments
    assert "1" not in normal  # one is left


def test_what_speaks_against_the_smoothed_scores_is_in_the_selection(scored):
    size = scored.selection["proposed"]["size"]
    said = any(
        text.startswith(f"K = {size} of eq. 7 is more") for text in scored.selection["warnings"]
    )
    assert said == (size > 32 // 5)  # two segments of 16 recordings


@pytest.mark.parametrize("system", ["ae", "proposed", "oracle"])
def test_every_test_recording_is_in_the_file_of_its_section_and_domain(scored, system):
    test = select_tests(scored.clips)
    expected = dict(zip(test["clip"], expected_scores(scored, system)[0], strict=True))
    for (section, domain), rows in test.groupby(["section", "domain"]):
        written = scored.read("anomaly_score", system, section, domain)
        assert [name for name, _ in written] == sorted(rows["clip"])
        for name, value in written:
            assert float(value) == expected[name]
    assert len(scored.read_all("anomaly_score", system)) == len(test)


@pytest.mark.parametrize("system", ["ae", "proposed", "oracle"])
def test_each_section_has_its_own_threshold_from_its_training_recordings(scored, system):
    of_test, of_train = expected_scores(scored, system)
    test, train = (scored.clips[scored.clips["split"] == split] for split in ("test", "train"))
    decided = scored.read_all("decision_result", system)
    thresholds = set()
    for section in SECTIONS:
        threshold, _ = fit_threshold(of_train[(train["section"] == section).to_numpy()])
        thresholds.add(threshold)
        rows = (test["section"] == section).to_numpy()
        for name, score in zip(test["clip"][rows], of_test[rows], strict=True):
            assert decided[name] == (score > threshold)
    assert len(thresholds) == len(SECTIONS)
    assert {*decided.values()} == {0, 1}


def test_the_threshold_is_the_configured_percentile(tmp_path):
    config = make_config(threshold_percentile=60.0)
    scored = Scored(tmp_path, *make_machine(TRAIN | TEST), config)
    of_test, of_train = expected_scores(scored, "ae")
    test, train = (scored.clips[scored.clips["split"] == split] for split in ("test", "train"))
    decided = scored.read_all("decision_result", "ae")
    differ = 0
    for section in SECTIONS:
        scores = of_train[(train["section"] == section).to_numpy()]
        threshold, default = fit_threshold(scores, 60.0)[0], fit_threshold(scores)[0]
        rows = (test["section"] == section).to_numpy()
        for name, score in zip(test["clip"][rows], of_test[rows], strict=True):
            assert decided[name] == (score > threshold)
            differ += (score > threshold) != (score > default)
    assert differ


def test_a_threshold_that_is_not_gammas_is_said(tmp_path):
    counts = TRAIN | TEST | {("train", 0, "source"): (2, 0), ("train", 0, "target"): (0, 0)}
    scored = Scored(tmp_path, *make_machine(counts))
    lines = [line for line in scored.said if "threshold" in line and "section 00" in line]
    assert {line.split(": ")[0] for line in lines} == {f"fan section 00, {s}" for s in SYSTEMS}
    assert all(line.endswith("empirical: fewer than 3 training scores") for line in lines)


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_official_evaluators_rules_give_our_figures(scored, system):
    # It sorts the rows of the ground truth and of a system's files by name, and compares lengths.
    test = select_tests(scored.clips)
    for (section, domain), rows in test.groupby(["section", "domain"]):
        truth = sorted(zip(rows["clip"], rows["label"], strict=True))
        scores = sorted(scored.read("anomaly_score", system, section, domain))
        decisions = sorted(scored.read("decision_result", system, section, domain))
        assert len(truth) == len(scores) == len(decisions)
        assert [name for name, _ in truth] == [name for name, _ in scores]
        assert [name for name, _ in truth] == [name for name, _ in decisions]
        auc = roc_auc_score([label for _, label in truth], [float(score) for _, score in scores])
        assert 0 <= auc <= 1
        assert {decision for _, decision in decisions} <= {"0", "1"}


# Recordings that were skipped


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    """A machine with two skipped test recordings, and a whole section of them."""
    clips, segments = make_machine(TRAIN | TEST)
    test = select_tests(clips)
    skipped = test["clip"][test["section"] == 1].tolist()
    skipped += test["clip"][test["section"] == 2].tolist()[:2]
    clips["usable"] = ~clips["clip"].isin(skipped)
    kept = segments.select(~np.isin(segments.clip, skipped))
    return Scored(tmp_path_factory.mktemp("skipping"), clips, kept), skipped


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_skipped_recordings_stay_as_rows_without_score_and_decision(skipping, system):
    scored, skipped = skipping
    for kind in ("anomaly_score", "decision_result"):
        written = scored.read_all(kind, system)
        assert {*written} == {*select_tests(scored.clips)["clip"]}
        assert {name for name, value in written.items() if np.isnan(value)} == {*skipped}
    unscored = scored.read("decision_result", system, 1, "source")
    assert [value for _, value in unscored] == ["nan"] * len(unscored)


def test_a_section_whose_recordings_are_all_skipped_chooses_nothing(skipping):
    scored, _ = skipping
    assert scored.selection["validation_sections"] == [0]
    assert scored.selection["evaluation_sections"] == [2, 3]
    assert sum("no test recording can be used" in line for line in scored.said) == len(SYSTEMS)
