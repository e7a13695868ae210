"""Eq. 7 on score files, as a user calls it, held against float64 loops in NumPy."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from eq7 import oracle
from machine import make_machine

from dns_jax.evaluation import feature_files, smooth_scores
from dns_jax.evaluation.score_files import read_scores, write_scores
from dns_jax.evaluation.systems import smooth_candidates
from dns_jax.parallel import make_mesh
from dns_jax.scoring import save_segments

ROOT = Path(__file__).parents[1]
NAMES = [f"section_00_source_test_normal_{i:04d}.wav" for i in range(12)]
SCORES = np.random.default_rng(0).gamma(4.0, size=12)
FEATURES = np.random.default_rng(1).normal(size=(12, 3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 12 scored clips and their features, which the calls of a test name briefly."""
    monkeypatch.chdir(tmp_path)
    write_scores("scores.csv", NAMES, SCORES)
    np.savez("features.npz", clip=NAMES, feature=FEATURES)
    return tmp_path


@pytest.fixture
def call(folder, capfd):
    """Run the command in this process: return exit status and what it says."""

    def call(*argv, **flags):
        flags = {
            "scores": "scores.csv",
            "features": "features.npz",
            "k": 4,
            "out": "out.csv",
        } | flags
        for name, values in flags.items():
            values = values if isinstance(values, list) else [values]
            argv += tuple(f"--{name}={value}" for value in values if value is not None)
        status = 0
        try:
            smooth_scores.main(argv)
        except SystemExit as stop:
            status = stop.code
        printed, said = capfd.readouterr()
        assert printed == ""
        return status, said

    return call


@pytest.fixture
def refused(call, folder):
    """Run the command, which must say one line, write nothing and leave every file alone."""

    def refused(status, *argv, **flags):
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        got, said = call(*argv, **flags)
        assert got == status, said
        assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert said.startswith("dns_jax: ")
        assert said.endswith("\n")
        assert said.count("\n") == 1
        return said[len("dns_jax: ") : -1]

    return refused


def assert_smoothed(path, names, expected):
    got_names, got = read_scores(path)
    assert got_names == list(names)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def average(rows, clip, names):
    return [np.mean(rows[clip == name]) for name in names]


# Eq. 7


@pytest.mark.parametrize("k", [2, 5, 12])
def test_scores_are_smoothed_by_eq_7_in_the_order_of_the_csv(call, k):
    assert call(k=k) == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, k))


def test_k_1_leaves_every_number_as_it_was(call, folder):
    assert call(k=1) == (0, "")
    assert (folder / "out.csv").read_bytes() == (folder / "scores.csv").read_bytes()


def test_the_order_of_the_features_does_not_matter(call):
    order = np.random.default_rng(2).permutation(12)
    np.savez("features.npz", clip=np.array(NAMES)[order], feature=FEATURES[order])
    assert call() == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, 4))


def test_ties_go_to_the_earlier_row_of_the_features(call):
    features = np.random.default_rng(3).integers(-1, 2, (12, 2))  # nine points, so most are tied
    results = []
    for order in (np.arange(12), np.arange(12)[::-1]):
        np.savez("features.npz", clip=np.array(NAMES)[order], feature=features[order])
        assert call() == (0, "")
        expected = oracle(SCORES[order], features[order], 4)[np.argsort(order)]
        assert_smoothed("out.csv", NAMES, expected)
        results.append(read_scores("out.csv")[1])
    assert not np.allclose(*results)


def test_differences_that_float32_does_not_hold_remain(call):
    scores = 1e6 + 1e-6 * np.arange(12)
    write_scores("scores.csv", NAMES, scores)
    assert call() == (0, "")
    expected = oracle(scores, FEATURES, 4)
    assert len(np.unique(expected.astype(np.float32))) == 1
    np.testing.assert_allclose(read_scores("out.csv")[1] - 1e6, expected - 1e6, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i1", "u8", "?"])
def test_features_are_any_real_numbers(call, dtype):
    features = (3 * FEATURES).round()
    features = (features if dtype != "u8" else abs(features)).astype(dtype)
    np.savez("features.npz", clip=NAMES, feature=features)
    assert call() == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, features, 4))


def test_a_pool_as_large_as_a_machine_of_segments_is_smoothed(call):
    rng = np.random.default_rng(4)
    features = rng.integers(-9, 10, (2800, 16))
    scores = rng.gamma(4.0, size=400)
    names = [f"{i}.wav" for i in range(400)]
    write_scores("scores.csv", names, scores)
    np.savez("features.npz", clip=np.repeat(names, 7), feature=features)
    assert call(k=64) == (0, "")
    rows = oracle(np.repeat(scores, 7), features, 64)
    assert_smoothed("out.csv", names, rows.reshape(400, 7).mean(1))


# Segments


@pytest.fixture
def machine(folder):
    """`segments.npz` of a machine with training clips and two sections; scores of section 0."""
    counts = {
        ("train", 0, "source"): (9, 0),
        ("test", 0, "source"): (6, 5),
        ("test", 0, "target"): (4, 3),
        ("test", 1, "source"): (5, 5),
    }
    _, segments = make_machine(counts)
    save_segments(folder / "segments.npz", segments)
    tested = segments.select((segments.split == "test") & (segments.section == 0))
    names = sorted(set(tested.clip.tolist()))
    scores = np.random.default_rng(5).gamma(4.0, size=len(names))
    of_domain = [[name for name in names if domain in name] for domain in ("source", "target")]
    score = dict(zip(names, scores, strict=True))
    for domain, part in zip(("source", "target"), of_domain, strict=True):
        write_scores(f"{domain}.csv", part, [score[name] for name in part])
    return segments, tested, score, of_domain


def test_segments_are_smoothed_among_all_scored_segments_and_then_averaged(call, machine):
    segments, tested, score, (names, _) = machine
    pool = tested.select(tested.domain == "source")
    status, said = call(scores="source.csv", features="segments.npz", k=12)
    assert status == 0
    left = np.sum(segments.split == "test") - len(pool.clip)
    assert said == (
        f"dns_jax: {left} rows of segments.npz have no score and are left out: "
        "section_00_target_test_normal_0000.wav, section_00_target_test_normal_0001.wav, "
        "section_00_target_test_normal_0002.wav and 14 more\n"
    )
    rows = oracle([score[name] for name in pool.clip], pool.feature, 12)
    assert_smoothed("out.csv", names, average(rows, pool.clip, names))


def test_training_rows_are_not_in_the_pool_even_where_clips_have_the_same_names(call):
    np.savez(
        "segments.npz",
        clip=[*(f"train/{name}" for name in NAMES), *NAMES],
        split=np.repeat(["train", "test"], 12),
        feature=np.concatenate([FEATURES + 0.1, FEATURES]),
    )
    scored = [f"fan/test/{name}" for name in NAMES]
    write_scores("scores.csv", scored, SCORES)
    assert call(features="segments.npz") == (0, "")
    assert_smoothed("out.csv", scored, oracle(SCORES, FEATURES, 4))


@pytest.mark.parametrize("split", [np.arange(12), "train", ["train"] * 5])
def test_another_kind_of_split_means_nothing(call, split):
    np.savez("features.npz", clip=NAMES, feature=FEATURES, split=split)
    assert call() == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, 4))


def test_several_score_files_are_one_pool_and_go_into_as_many_files(call, machine):
    _, tested, score, of_domain = machine
    outs = ["smoothed/b.csv", "smoothed/a.csv"]
    status, _ = call(scores=["source.csv", "target.csv"], features="segments.npz", k=20, out=outs)
    assert status == 0
    rows = oracle([score[name] for name in tested.clip], tested.feature, 20)
    for out, names in zip(outs, of_domain, strict=True):
        assert_smoothed(out, names, average(rows, tested.clip, names))


def test_segments_are_smoothed_as_in_our_own_experiments(call, machine):
    _, tested, score, of_domain = machine
    outs = ["source_out.csv", "target_out.csv"]
    assert (
        call(scores=["source.csv", "target.csv"], features="segments.npz", k=16, out=outs)[0] == 0
    )
    pool = tested._replace(ae_score=np.array([score[name] for name in tested.clip], np.float32))
    config = SimpleNamespace(unit="segment", scope="section")
    clips = [*of_domain[0], *of_domain[1]]
    expected = smooth_candidates(pool, config, clips, make_mesh(1))[16, "all"]
    got = np.concatenate([read_scores(out)[1] for out in outs])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_k_that_may_count_one_clip_only_is_pointed_out(call):
    np.savez("features.npz", clip=NAMES + NAMES[:2], feature=FEATURES[[*range(12), 0, 1]])
    note = (
        "dns_jax: K = 2 rows may all be of one clip, which has up to 2; they have one score, and "
        "only a larger K smooths\n"
    )
    assert call(k=2) == (0, note)
    np.testing.assert_allclose(read_scores("out.csv")[1][:2], SCORES[:2])
    assert call(k=3) == (0, "")
    assert call(k=1) == (0, "")


# Other systems


def test_asdkits_file_is_read_by_the_names_at_the_end_of_its_paths(call):
    paths = [f"../data/formatted/dcase2021/raw/fan/test/{name}" for name in NAMES[::-1]]
    np.savez(
        "test_extract.npz",
        path=np.concatenate([np.asarray(paths[:7]), np.asarray(paths[7:])]),
        section=np.zeros(12, int),
        is_normal=np.ones(12, int),
        is_target=np.zeros(12, int),
        embed=FEATURES[::-1].astype(np.float32),
    )
    assert call(features="test_extract.npz") == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES.astype(np.float32), 4))


@pytest.mark.parametrize("form", ["{}.wav", "{}", "{}.flac", "C:\\clips\\{}.WAV", "a/b.c/{}"])
def test_names_may_differ_in_folder_and_ending_on_either_side(call, form):
    stems = [f"{name.removesuffix('.wav')}_vel_{i}.0" for i, name in enumerate(NAMES)]
    theirs, ours = [form.format(stem) for stem in stems], [f"{stem}.wav" for stem in stems]
    for scored, named in ((ours, theirs), (theirs, ours)):
        write_scores("scores.csv", scored, SCORES)
        np.savez("features.npz", clip=named, feature=FEATURES)
        assert call() == (0, "")
        assert_smoothed("out.csv", scored, oracle(SCORES, FEATURES, 4))


def test_an_exact_name_is_matched_before_a_similar_one(call):
    np.savez(
        "features.npz",
        clip=[*(f"pump/{name}" for name in NAMES), *NAMES],
        feature=np.concatenate([100 + FEATURES, FEATURES]),
    )
    status, said = call()
    assert status == 0
    assert said == (
        "dns_jax: 12 rows of features.npz have no score and are left out: "
        f"pump/{NAMES[0]}, pump/{NAMES[1]}, pump/{NAMES[2]} and 9 more\n"
    )
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, 4))


def test_the_rows_of_an_npy_are_those_of_the_score_files(call):
    np.save("features.npy", FEATURES)
    assert call(features="features.npy") == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, 4))
    write_scores("first.csv", NAMES[:5], SCORES[:5])
    write_scores("last.csv", NAMES[5:], SCORES[5:])
    files = {"scores": ["first.csv", "last.csv"], "out": ["out_first.csv", "out_last.csv"]}
    assert call(features="features.npy", **files) == (0, "")
    both = Path("out_first.csv").read_bytes() + Path("out_last.csv").read_bytes()
    assert both == Path("out.csv").read_bytes()


def test_published_scores_are_smoothed_by_made_up_features(call, realdata):
    folder = realdata / "dcase2021_scores" / "yokaji_ae_baseline"
    files = [
        folder / f"anomaly_score_fan_section_02_{domain}_test.csv"
        for domain in ("source", "target")
    ]
    if not files[0].is_file():
        pytest.skip(f"needs {folder}")
    names, scores = zip(*map(read_scores, files), strict=True)
    features = np.random.default_rng(6).normal(size=(400, 8)).astype(np.float32)
    np.savez("features.npz", clip=names[0] + names[1], feature=features)
    assert call(scores=files, out=["source.csv", "target.csv"], k=32) == (0, "")
    expected = np.split(oracle(np.concatenate(scores), features, 32), 2)
    for out, part, of_part in zip(("source.csv", "target.csv"), names, expected, strict=True):
        assert_smoothed(out, part, of_part)


def test_published_scores_are_smoothed_by_those_of_another_system(call, realdata):
    name = "anomaly_score_valve_section_01_target_test.csv"
    generative, discriminative = (
        realdata / "dcase2021_scores" / system / name
        for system in ("yokaji_ae_baseline", "benlin131020_mnv2_lof")
    )
    if not (generative.is_file() and discriminative.is_file()):
        pytest.skip(f"needs {generative} and {discriminative}")
    names, scores = read_scores(generative)
    others, features = read_scores(discriminative)
    assert sorted(names) == sorted(others)
    np.savez("features.npz", clip=others, feature=features[:, None])
    assert call(scores=generative, k=16) == (0, "")
    order = [names.index(other) for other in others]
    expected = np.empty(len(names))
    expected[order] = oracle(scores[order], features[:, None], 16)
    assert_smoothed("out.csv", names, expected)


# What is not finite


def test_a_row_without_finite_features_scores_nan_and_is_nobodys_neighbour(call):
    features = FEATURES.copy()
    features[3, 1], features[7] = np.nan, np.inf
    np.savez("features.npz", clip=NAMES, feature=features)
    assert call() == (
        0,
        "dns_jax: 2 of the 12 smoothed scores are not finite, because of 0 scores and 2 rows of "
        "features that are not; take those clips out of --scores to have the others finite\n",
    )
    assert_smoothed("out.csv", NAMES, oracle(SCORES, features, 4))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_reaches_what_counts_it_and_is_counted(call, odd):
    scores = SCORES.copy()
    scores[5] = odd
    write_scores("scores.csv", NAMES, scores)
    status, said = call()
    expected = oracle(scores, FEATURES, 4)
    lost = np.sum(~np.isfinite(expected))
    assert 1 < lost < 12
    assert status == 0
    assert said == (
        f"dns_jax: {lost} of the 12 smoothed scores are not finite, because of 1 scores and 0 rows "
        "of features that are not; take those clips out of --scores to have the others finite\n"
    )
    assert_smoothed("out.csv", NAMES, expected)


# Mistakes in the call


@pytest.mark.parametrize("name", ["scores", "features", "k", "out"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_flag_that_is_missing_is_named_with_an_example(refused, name, value):
    if (name, value) == ("k", ""):
        assert refused(2, k="") == "argument --k: invalid int value: ''"
    else:
        said = refused(2, **{name: value})
        assert said == f"--{name} is missing, as in --{name}={smooth_scores._EXAMPLES[name]}"


@pytest.mark.parametrize("k", [-1, 0, 13, 10**30])
def test_k_counts_rows_of_the_pool(refused, k):
    assert refused(2, k=k) == f"--k must be in 1..12, the rows of the pool; it was {k}"


def test_k_is_limited_by_the_rows_that_are_left(refused):
    write_scores("scores.csv", NAMES[:5], SCORES[:5])
    assert refused(2, k=6) == "--k must be in 1..5, the rows of the pool; it was 6"


@pytest.mark.parametrize("k", ["3.5", "many"])
def test_k_is_a_whole_number(refused, k):
    assert refused(2, k=k) == f"argument --k: invalid int value: '{k}'"


@pytest.mark.parametrize("word", ["--neighbours=3", "--feature=embed", "more"])
def test_what_is_no_flag_is_named(refused, word):
    assert refused(2, word) == f"unrecognized arguments: {word}"


@pytest.mark.parametrize("out", ["scores.csv", "features.npz", "./scores.csv", "link.csv"])
def test_an_input_is_never_written_over(refused, folder, out):
    (folder / "link.csv").symlink_to("scores.csv")
    assert refused(2, out=out) == (
        f"--out={out} is read too and would be lost; choose another name"
    )


def test_the_output_is_a_file(refused, folder):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    for out in ("folder", "pipe"):
        assert refused(2, out=out) == f"--out={out} is there and not a file; choose another name"
    assert (folder / "pipe").is_fifo()


def test_every_score_file_has_an_output_of_its_own(refused):
    files = ["scores.csv", "scores.csv"]
    assert refused(2, scores=files) == (
        "every --scores needs its --out, in the same order; there were 2 --scores and 1 --out"
    )
    assert refused(2, scores=files, out=["out.csv", "./out.csv"]) == (
        "every --out must be another file; one was given twice"
    )


# Bad scores and names


@pytest.mark.parametrize("flag", ["scores", "features"])
def test_a_file_that_is_not_there_is_named(refused, flag):
    assert refused(1, **{flag: "none"}) == "[Errno 2] No such file or directory: 'none'"


def test_an_output_that_cannot_be_written_is_named(refused):
    assert refused(1, out="scores.csv/out.csv") == "[Errno 17] File exists: 'scores.csv'"


def test_a_malformed_row_of_scores_is_named(refused, folder):
    (folder / "scores.csv").write_text("file,score\na.wav,1\n")
    assert refused(1) == (
        "scores.csv, line 1: expected 'file,score' (no header), found 'file,score'"
    )


def test_a_name_with_a_line_break_is_shown_on_one_line(refused, folder):
    (folder / "scores\n.csv").write_text("")
    assert refused(1, scores="scores\n.csv") == (
        r"scores\n.csv holds no scores; expected rows 'file,score' (no header)"
    )


def test_a_clip_is_scored_once_also_in_several_files(refused):
    write_scores("scores.csv", [*NAMES, NAMES[3]], [*SCORES, 0])
    rule = "; a pool has every clip once, and clips of one machine only"
    assert refused(1) == f"scored more than once: {NAMES[3]}{rule}"
    write_scores("scores.csv", NAMES, SCORES)
    said = refused(1, scores=["scores.csv", "scores.csv"], out=["a.csv", "b.csv"])
    assert said == f"scored more than once: {NAMES[0]}, {NAMES[1]}, {NAMES[2]} and 9 more{rule}"


def test_a_scored_clip_without_features_is_refused(refused):
    np.savez("features.npz", clip=NAMES[1:], feature=FEATURES[1:])
    assert refused(1) == (
        f"1 of the 12 scored clips have no features: {NAMES[0]}; "
        f"the names there: {NAMES[1]}, {NAMES[2]}, {NAMES[3]} and 8 more"
    )


def test_training_clips_alone_are_no_features(refused):
    np.savez("features.npz", clip=NAMES, feature=FEATURES, split=["train"] * 12)
    assert refused(1) == (
        f"12 of the 12 scored clips have no features: {NAMES[0]}, {NAMES[1]}, {NAMES[2]} and 9 "
        "more; the names there: none"
    )


def test_a_clip_of_several_names_in_the_features_is_refused(refused):
    both = [*NAMES[1:], f"fan/{NAMES[0]}", f"pump/{NAMES[0]}"]
    np.savez("features.npz", clip=both, feature=FEATURES[[*range(12), 0]])
    assert refused(1) == (
        f"it is unclear which features belong to {NAMES[0]}: "
        f"the names there are fan/{NAMES[0]}, pump/{NAMES[0]}; write all of them alike"
    )


def test_two_clips_of_one_name_in_the_features_are_refused(refused):
    scored = [*NAMES, f"pump/{NAMES[0]}"]
    write_scores("scores.csv", scored, [*SCORES, 1.0])
    assert refused(1) == (
        f"it is unclear which features belong to {NAMES[0]}, pump/{NAMES[0]}: "
        f"the names there are {NAMES[0]}; write all of them alike"
    )


# Bad features


CONVERT = "numpy.savez(FILE, clip=numpy.array(names, 'U'), feature=numpy.array(features, 'f4'))"


def test_the_way_to_convert_features_works(call):
    exec(  # as a user would type it
        "import numpy\n" + CONVERT,
        {"FILE": "features.npz", "names": NAMES, "features": FEATURES.tolist()},
    )
    assert feature_files.CONVERT == CONVERT
    assert call() == (0, "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES.astype("f4"), 4))


def test_an_npz_without_the_keys_is_refused_with_those_it_has(refused):
    np.savez("features.npz", clip=NAMES, embed=FEATURES)
    rule = "features.npz must hold 'clip' and 'feature', or 'path' and 'embed' as ASDKit's do; "
    assert refused(1) == rule + "it holds 'clip', 'embed'"
    np.savez("features.npz")
    assert refused(1) == rule + "it holds nothing"


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (FEATURES[:, 0], "float64[12]"),
        (FEATURES[None], "float64[1, 12, 3]"),
        (np.float32(1), "float32[]"),
        (FEATURES[:0], "float64[0, 3]"),
        (FEATURES[:, :0], "float64[12, 0]"),
        (FEATURES.astype(complex), "complex128[12, 3]"),
        (FEATURES.astype(str), "<U32[12, 3]"),
        (FEATURES.astype("datetime64[s]"), "datetime64[s][12, 3]"),
        (np.zeros((12, 3), "V2"), "|V2[12, 3]"),
    ],
)
def test_features_are_real_numbers_by_rows_and_dimensions(refused, features, found):
    rule = "features must be real numbers [rows, dimensions]; they are "
    np.savez("features.npz", clip=NAMES, feature=features)
    assert refused(1) == f"features.npz: {rule}{found}"
    np.save("features.npy", features)
    assert refused(1, features="features.npy") == f"features.npy: {rule}{found}"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (NAMES[:11], "<U38[11]"),
        ([[name] for name in NAMES], "<U38[12, 1]"),
        (np.array(NAMES, "S"), "|S38[12]"),
        (np.arange(12.0), "float64[12]"),
    ],
)
def test_every_row_of_features_has_a_name(refused, names, found):
    np.savez("features.npz", path=names, embed=FEATURES)
    assert refused(1) == (
        "features.npz: 'path' must be text[12], a name for every row of 'embed'; it is " + found
    )


@pytest.mark.parametrize("rows", [11, 13])
def test_an_npy_has_the_rows_of_the_scores(refused, rows):
    np.save("features.npy", np.resize(FEATURES, (rows, 3)))
    assert refused(1, features="features.npy") == (
        f"features.npy has {rows} rows, but --scores has 12; they are matched row by row. "
        f"Features with names: {CONVERT}"
    )


class Pickled:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("key", ["clip", "feature", None])
def test_no_pickle_is_loaded(refused, folder, key):
    arrays = {"clip": np.array(NAMES), "feature": FEATURES}
    if key:
        np.savez("features.npz", **arrays | {key: np.array([Pickled()] * 12)})
    else:
        np.save("features.npz", np.array([Pickled()] * 12))
        Path("features.npz.npy").rename("features.npz")
    assert refused(1) == (
        "features.npz holds Python objects (dtype object), which are not loaded because they may "
        f"run code. Without them: {CONVERT}"
    )
    assert not (folder / "unpickled").exists()


def test_an_array_that_is_not_needed_may_be_anything(call):
    odd = np.array([Pickled()])
    np.savez("features.npz", clip=NAMES, feature=FEATURES, note=odd)
    assert call() == (0, "")


@pytest.mark.parametrize("content", [b"", b"a.wav,1\n", b"\x80\x04K\x01.", b"\x89HDF\r\n"])
def test_a_file_of_another_kind_is_refused(refused, folder, content):
    (folder / "features.npz").write_bytes(content)
    assert refused(1) == (f"features.npz is neither an NPZ nor an NPY file. To make one: {CONVERT}")


def write_npy(path, header):
    header = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def damage(path, name):
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif name == "flipped":
        data = bytearray(path.read_bytes())
        data[data.index(FEATURES.tobytes()) + 5] ^= 1
        path.write_bytes(data)
    elif name == "no zip":
        path.write_bytes(b"PK\x03\x04 and no more")
    elif name == "another compression":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("clip.npy", bytes(1000))
            file.writestr("feature.npy", bytes(1000))
        path.write_bytes(path.read_bytes().replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"))
    elif name == "no array":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("clip.npy", b"\x93NUMPY")
            file.writestr("feature.npy", b"\x93NUMPY\x01")
    elif name == "lying":
        write_npy(path, "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 16)}")
    elif name == "absurd":
        write_npy(path, "{'descr': '<f8', 'fortran_order': False, 'shape': (1" + "0" * 15 + ", 9)}")
    elif name == "no header":
        write_npy(path, "(" * 100)


@pytest.mark.parametrize(
    "name",
    [
        "cut",
        "flipped",
        "no zip",
        "another compression",
        "no array",
        "lying",
        "absurd",
        "no header",
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(refused, folder, name):
    damage(folder / "features.npz", name)
    said = refused(1)
    assert said.startswith("features.npz is damaged (")
    assert said.endswith(")")


# In a process of its own


def run_command(*argv, **options):
    return subprocess.run(
        [sys.executable, "-m", "dns_jax.evaluation.smooth_scores", *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        **options,
    )


def test_the_command_smooths_says_one_line_and_gives_exit_statuses(folder):
    argv = ["--scores=scores.csv", "--features=features.npz", "--k=4", "--out=out.csv"]
    done = run_command(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_smoothed("out.csv", NAMES, oracle(SCORES, FEATURES, 4))
    done = run_command(*argv[:2], "--k=13", "--out=none.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dns_jax: --k must be in 1..12, the rows of the pool; it was 13\n"
    (folder / "features.npz").write_bytes(b"PK\x03\x04")
    done = run_command(*argv[:3], "--out=none.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "dns_jax: features.npz is damaged (BadZipFile: File is not a zip file)\n"
    )
    assert not (folder / "none.csv").exists()


def test_ctrl_c_is_one_line(call, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smooth_scores, "read_features", interrupt)
    assert call() == (130, "dns_jax: stopped\n")
    assert not (folder / "out.csv").exists()


def test_help_is_the_documentation(capfd):
    with pytest.raises(SystemExit, match="0"):
        smooth_scores.main(["--help"])
    assert smooth_scores.__doc__.strip() in capfd.readouterr().out


def test_the_call_and_the_files_are_checked_before_jax_is_needed(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert refused(2, k=13).startswith("--k must be in 1..12")
