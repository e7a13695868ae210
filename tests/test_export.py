"""The exported file scores as the workdir does, wherever it is; its loader notices all damage."""

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from eq7 import oracle_queries
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dns_jax import smooth_queries
from dns_jax.operation import artifact as loader
from dns_jax.operation import export
from dns_jax.operation.artifact import ArtifactError, load_artifact
from dns_jax.operation.trained import load_trained

WHEN = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
K = 8  # of the exported run, whatever its validation section has chosen
MEMBERS = ["manifest.json", "program.bin", "weights.npz", "pool.npz"]


@pytest.fixture(scope="module")
def trained(finished_run):
    trained = load_trained(finished_run)
    return trained._replace(choice=trained.choice._replace(size=K, data="source"))


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "fan.zip"
    export.export_trained(trained, path, at=WHEN)
    return path


@pytest.fixture(scope="module")
def artifact(file):
    return load_artifact(file)


@pytest.fixture(scope="module")
def rows(trained, finished_run):
    """Every segment of the fan's test recordings, standardised by hand, and its row of the run."""
    data_dir = json.loads((finished_run / "config.json").read_text())["config"]["data_dir"]
    waveforms = {}
    for path in Path(data_dir).glob("fan/*_test/*.wav"):
        samples = soundfile.read(path)[0]
        waveforms[path.name] = (samples - samples.mean()) / samples.std()
    segments = trained.segments.select(trained.segments.split == "test")
    starts = np.round(segments.start * 4000).astype(int)
    cut = [waveforms[n][s : s + 2000] for n, s in zip(segments.clip, starts, strict=True)]
    return np.stack(cut).astype(np.float32), segments


# Scores


@pytest.mark.parametrize(("b", "p"), [(1, 7), (1, 9), (5, 60), (7, 61), (70, 64), (5, 1)])
def test_scores_are_the_workdirs_for_any_number_of_segments_and_any_pool(artifact, rows, b, p):
    if p == 1:
        p = len(rows[0])  # all
    segments, run = rows
    order = np.random.default_rng(b * p).permutation(len(segments))
    asked, pool = order[:b], order[-p:]
    scores = artifact.score(segments[asked], run.ae_score[pool], run.feature[pool])
    assert [x.dtype for x in scores] == [np.float32] * 3
    np.testing.assert_allclose(scores.a_g, run.ae_score[asked], rtol=1e-5)
    np.testing.assert_allclose(scores.f_d, run.feature[asked], rtol=1e-5, atol=1e-5)
    smoothed = run.ae_score[asked], run.feature[asked], run.ae_score[pool], run.feature[pool], K
    np.testing.assert_allclose(scores.a_prop, smooth_queries(*smoothed), rtol=1e-5)
    np.testing.assert_allclose(scores.a_prop, oracle_queries(*smoothed), rtol=1e-5)


def test_a_recording_scores_what_the_runs_score_file_says(finished_run, rows, tmp_path):
    """Each of its segments smoothed among all others, as in the paper; with the run's own K."""
    trained = load_trained(finished_run)
    export.export_trained(trained, tmp_path / "own.zip", at=WHEN)
    artifact = load_artifact(tmp_path / "own.zip")
    segments, run = rows
    pool = run.section == 1
    if trained.choice.data == "source":
        pool &= run.domain == "source"
    scores = finished_run / "fan/seed_0/scores/proposed"
    (line, *_) = (scores / "anomaly_score_fan_section_01_source_test.csv").read_text().splitlines()
    name, expected = line.split(",")
    smoothed = []
    for row in np.flatnonzero(run.clip == name):
        others = pool & (np.arange(len(pool)) != row)
        score = artifact.score(segments[[row]], run.ae_score[others], run.feature[others])
        smoothed.append(score.a_prop[0])
    assert len(smoothed) == 5
    assert np.mean(smoothed) == pytest.approx(float(expected), rel=1e-5)


def test_the_pool_in_the_file_is_the_runs_of_the_section_and_data(artifact, rows):
    _, run = rows
    for section in (0, 1):
        mine = (run.section == section) & (run.domain == "source")
        scores, features = artifact.pool(section)
        np.testing.assert_array_equal(scores, run.ae_score[mine])
        np.testing.assert_array_equal(features, run.feature[mine])
    with pytest.raises(ValueError, match="section must be one of 0, 1; it was 2"):
        artifact.pool(2)


def test_the_pool_is_of_both_domains_or_all_sections_where_the_run_smooths_so(
    trained, rows, tmp_path
):
    _, run = rows
    both = trained._replace(choice=trained.choice._replace(data="all"))
    export.export_trained(both, tmp_path / "both.zip", at=WHEN)
    scores, _ = load_artifact(tmp_path / "both.zip").pool(1)
    np.testing.assert_array_equal(scores, run.ae_score[run.section == 1])
    members = read_members(tmp_path / "both.zip")
    smoothing = read_manifest(tmp_path / "both.zip")["smoothing"] | {"scope": "machine"}
    path = write_zip(tmp_path / "machine.zip", describe(members, smoothing=smoothing))
    scores, _ = load_artifact(path).pool(1)
    np.testing.assert_array_equal(scores, run.ae_score)


def test_the_pool_of_a_run_without_test_recordings_is_empty(trained, tmp_path):
    training = trained.segments.select(trained.segments.split == "train")
    alone = trained._replace(segments=training, choice=trained.choice._replace(size=1))
    export.export_trained(alone, tmp_path / "alone.zip", at=WHEN)
    artifact = load_artifact(tmp_path / "alone.zip")
    scores, features = artifact.pool(0)
    assert (scores.shape, features.shape) == ((0,), (0, 8))
    score = artifact.score(np.ones((2, 2000)), scores, features)  # K = 1 asks for no neighbour
    np.testing.assert_array_equal(score.a_prop, score.a_g)


def test_a_growing_pool_is_compiled_once_for_each_doubling(artifact, rows):
    segments, run = rows
    before = artifact._program._cache_size()
    for p in (33, 40, 50, 64):
        artifact.score(segments[:3], run.ae_score[:p], run.feature[:p])
    assert artifact._program._cache_size() == before + 1


def test_what_fills_a_pool_up_is_no_neighbour(artifact, rows):
    segments, run = rows
    pool = run.ae_score[:9], run.feature[:9] + 100  # zeros would be nearer
    got = artifact.score(segments[-5:], *pool)
    expected = oracle_queries(got.a_g, got.f_d, *pool, K)
    np.testing.assert_allclose(got.a_prop, expected, rtol=1e-5)


def test_a_pool_row_that_is_not_finite_is_no_neighbour(artifact, rows):
    segments, run = rows
    features = run.feature[:20].copy()
    features[3, 0] = np.inf
    got = artifact.score(segments[-5:], run.ae_score[:20], features).a_prop
    others = np.arange(20) != 3
    expected = artifact.score(segments[-5:], run.ae_score[:20][others], features[others]).a_prop
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"segments": np.zeros((0, 2000))}, ValueError, r"segments must be \[b, 2000\] .*\(0, 20"),
        ({"segments": np.zeros((2, 1999))}, ValueError, r"segments must be .*\(2, 1999\)"),
        ({"segments": np.zeros(2000)}, ValueError, r"segments must be .*\(2000,\)"),
        ({"segments": np.zeros((2, 2000), np.int16)}, TypeError, "segments .* was int16"),
        ({"pool_features": np.zeros((9, 7))}, ValueError, r"pool_features .* 8\]; .*\(9, 7\)"),
        ({"pool_features": np.zeros((10, 8))}, ValueError, r"pool_scores .* p = 10 .*\(9,\)"),
        ({"pool_scores": np.zeros((9, 1))}, ValueError, r"pool_scores .* p = 9 rows .*\(9, 1\)"),
        ({"pool_scores": ["a"] * 9}, TypeError, "pool_scores must be of floating-point"),
        (
            {"pool_scores": np.zeros(6), "pool_features": np.zeros((6, 8))},
            ValueError,
            "p >= K - 1 = 7 rows; they had 6",
        ),
    ],
)
def test_wrong_shapes_are_refused_by_name_and_number(artifact, change, error, says):
    good = {
        "segments": np.zeros((2, 2000)),
        "pool_scores": np.zeros(9),
        "pool_features": np.zeros((9, 8)),
    }
    with pytest.raises(error, match=says):
        artifact.score(**good | change)


# The file


def read_members(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_manifest(file):
    return json.loads(read_members(file)["manifest.json"])


def test_the_manifest_says_what_goes_in_and_comes_out(file, artifact):
    manifest = read_manifest(file)
    assert manifest == artifact.manifest
    assert manifest["inputs"] == {
        "segments": {"shape": ["b", 2000], "dtype": "float32", "unit": "1, standardised"},
        "pool_scores": {"shape": ["p"], "dtype": "float32", "unit": "dB^2"},
        "pool_features": {"shape": ["p", 8], "dtype": "float32", "unit": "1"},
    }
    assert manifest["outputs"] == {
        "a_g": {"shape": ["b"], "dtype": "float32", "unit": "dB^2"},
        "f_d": {"shape": ["b", 8], "dtype": "float32", "unit": "1"},
        "a_prop": {"shape": ["b"], "dtype": "float32", "unit": "dB^2"},
    }
    assert (manifest["machine"], manifest["seed"], manifest["sections"]) == ("fan", 0, [0, 1])
    assert (manifest["rate_hz"], manifest["segment_s"], manifest["hop_s"]) == (4000, 0.5, 0.125)
    assert (manifest["smoothing"]["k"], manifest["smoothing"]["data"]) == (K, "source")
    assert manifest["standardisation"]["rule"] == "recording"
    assert manifest["exported_at"] == "2026-11-28T12:00:00+00:00"
    assert {*manifest["versions"]} == {"dns_jax", "jax", "flax", "numpy"}


def test_one_program_is_for_cpu_cuda_and_tpu_and_any_b_and_p(file):
    program = jax.export.deserialize(read_members(file)["program.bin"])
    assert program.platforms == ("cpu", "cuda", "tpu") == tuple(read_manifest(file)["platforms"])
    shapes = [tuple(map(str, x.shape)) for x in program.in_avals[-3:]]
    assert shapes == [("b", "2000"), ("p",), ("p", "8")]
    text = program.mlir_module()
    assert "top_k" in text  # the plain form of eq. 7, on every platform


def test_nothing_in_it_is_pickled_or_compressed(file):
    members = read_members(file)
    assert [*members] == MEMBERS
    assert b"pickle" not in file.read_bytes()
    for name in ("weights.npz", "pool.npz"):
        with np.load(io.BytesIO(members[name]), allow_pickle=False) as arrays:
            assert all(arrays[n].dtype.kind in "fiU" for n in arrays.files)
    with zipfile.ZipFile(file) as archive:
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}


def test_weights_are_stored_once(file, trained):
    members = read_members(file)
    with np.load(io.BytesIO(members["weights.npz"])) as arrays:
        stored = sum(arrays[name].nbytes for name in arrays.files)
        kernel = arrays["serial_oe.embed.kernel"]
    np.testing.assert_array_equal(kernel, trained.serial_oe.embed.kernel[...])
    assert stored > 5000
    assert kernel.tobytes() in members["weights.npz"]
    assert kernel.tobytes() not in members["program.bin"]


def test_the_same_run_gives_the_same_file(file, trained, tmp_path):
    export.export_trained(trained, tmp_path / "again.zip", at=WHEN)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    other = WHEN.replace(hour=13)
    export.export_trained(trained, tmp_path / "later.zip", at=other)
    mine, its = read_members(file), read_members(tmp_path / "later.zip")
    assert [name for name in mine if mine[name] != its[name]] == ["manifest.json"]


ALONE = """
import sys, numpy as np
sys.path.insert(0, {folder!r})
from artifact import load_artifact
artifact = load_artifact({file!r})
scores = artifact.score(np.load({segments!r}), *artifact.pool(0))
np.savez({out!r}, **scores._asdict())
ours = "dns_jax flax optax orbax pandas librosa soundfile sklearn chex ml_collections tqdm"
print([name for name in ours.split() if name in sys.modules])
"""


def test_the_loader_runs_alone_in_a_fresh_process(file, artifact, rows, tmp_path):
    shutil.copy(loader.__file__, tmp_path / "artifact.py")
    np.save(tmp_path / "segments.npy", rows[0][:4])
    names = {"folder": ".", "file": file.name, "segments": "segments.npy", "out": "scores.npz"}
    shutil.copy(file, tmp_path)
    command = [sys.executable, "-W", "error", "-c", ALONE.format(**names)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    expected = artifact.score(rows[0][:4], *artifact.pool(0))
    with np.load(tmp_path / "scores.npz") as scores:
        for name, values in expected._asdict().items():
            np.testing.assert_allclose(scores[name], values, rtol=1e-5, atol=1e-5)


def test_the_package_brings_the_loader_without_what_trains():
    heavy = "flax optax orbax pandas librosa soundfile sklearn chex ml_collections tqdm".split()
    code = (
        f"import sys, dns_jax.operation.artifact; print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Damage


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return path


def reseal(members, **changes):
    """The members with others in their place, and the checksums that fit."""
    members = members | {name.replace("_", "."): member for name, member in changes.items()}
    manifest = json.loads(members["manifest.json"])
    manifest["sha256"] = {
        name: hashlib.sha256(member).hexdigest()
        for name, member in members.items()
        if name != "manifest.json"
    }
    return members | {"manifest.json": json.dumps(manifest)}


def pack(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def claim_size(npz, name, shape):
    """An NPZ whose first array says that it is larger than it is."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    buffer = io.BytesIO()
    with np.load(io.BytesIO(npz)) as arrays, zipfile.ZipFile(buffer, "w") as archive:
        for other in arrays.files:
            if other == name:
                archive.writestr(f"{name}.npy", header.getvalue())
            else:
                array = io.BytesIO()
                np.save(array, arrays[other])
                archive.writestr(f"{other}.npy", array.getvalue())
    return buffer.getvalue()


def describe(members, **changes):
    manifest = json.loads(members["manifest.json"]) | changes
    return members | {"manifest.json": json.dumps(manifest)}


def without(members, name):
    return {n: member for n, member in members.items() if n != name}


HOSTILE = {  # what is done to the members, and what is said
    "no manifest": (lambda m: without(m, "manifest.json"), "KeyError"),
    "no program": (lambda m: without(m, "program.bin"), "checksums are not those"),
    "no program, and no checksum of one": (
        lambda m: reseal(without(m, "program.bin")),
        "checksums are not those",
    ),
    "one more": (lambda m: m | {"more.pkl": b"x"}, "checksums are not those"),
    "other weights": (lambda m: m | {"weights.npz": pack(a=np.ones(3))}, "checksums are not"),
    "a manifest of nothing": (lambda m: m | {"manifest.json": "{}"}, "KeyError"),
    "a manifest that is a list": (lambda m: m | {"manifest.json": "[]"}, "TypeError"),
    "a deep manifest": (lambda m: m | {"manifest.json": "[" * 10**5}, "RecursionError"),
    "a later format": (lambda m: describe(m, format=2), "of format 2, this loader reads up to 1"),
    "no K": (lambda m: describe(m, smoothing={}), "KeyError"),
    "a program of nothing": (lambda m: reseal(m, program_bin=b""), "damaged or no artifact"),
    "a program of noise": (
        lambda m: reseal(m, program_bin=bytes(range(256)) * 40),
        "damaged or no artifact",
    ),
    "another network's weights": (
        lambda m: reseal(m, weights_npz=pack(a=np.ones(3))),
        "its program takes other arguments",
    ),
    "weights of another shape": (
        lambda m: reseal(
            m,
            weights_npz=pack(
                **{n: np.ones(3) for n in np.load(io.BytesIO(m["weights.npz"])).files}
            ),
        ),
        "its weights are not those of the program",
    ),
    "pickled arrays": (
        lambda m: reseal(m, pool_npz=pack(feature=np.array([None, {}], object))),
        "Object arrays cannot be loaded",
    ),
    "a pool that lacks a column": (
        lambda m: reseal(m, pool_npz=pack(feature=np.ones((3, 8)))),
        "KeyError",
    ),
    "a pool of other features": (
        lambda m: reseal(m, pool_npz=pack(feature=np.ones((3, 5)))),
        "its pool has other features",
    ),
    "a pool of a terabyte in words": (
        lambda m: reseal(m, pool_npz=claim_size(m["pool.npz"], "feature", (2**35, 8))),
        "damaged or no artifact",
    ),
    "an NPZ that is none": (lambda m: reseal(m, pool_npz=b"PK\x05\x06"), "BadZipFile"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(file, tmp_path, what):
    change, says = HOSTILE[what]
    path = write_zip(tmp_path / "hostile.zip", change(read_members(file)))
    refuse(path, says)


def refuse(path, says):
    with pytest.raises(ArtifactError, match=says) as caught:
        load_artifact(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_compressed_member_is_not_unpacked(file, tmp_path):
    members = read_members(file) | {"pool.npz": bytes(50_000_000)}
    path = write_zip(tmp_path / "bomb.zip", reseal(members), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 500_000
    refuse(path, "a member is compressed")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("feature.npy", bytes(50_000_000))
    members = reseal(read_members(file), pool_npz=inner.getvalue())
    refuse(write_zip(tmp_path / "inner.zip", members), "a member is compressed")


def test_members_that_lie_over_each_other_are_refused(file, tmp_path):
    """The directory of the file names the same bytes again and again."""
    path = write_zip(tmp_path / "quine.zip", read_members(file))
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(3):
            twin = zipfile.ZipInfo(f"twin{i}")
            largest = archive.getinfo("program.bin")
            for name in ("header_offset", "CRC", "file_size", "compress_size"):
                setattr(twin, name, getattr(largest, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
            archive._didModify = True
    refuse(path, "its members are larger than the file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(file, tmp_path):
    path = write_zip(tmp_path / "twice.zip", read_members(file))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pool.npz", b"other")
    refuse(path, "a member is there twice")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip file at all" * 9])
def test_what_is_no_artifact_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    refuse(tmp_path / "x.zip", "is damaged or no artifact")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path):
    refuse(tmp_path / "none.zip", "there is no such file")
    refuse(tmp_path, "is damaged or no artifact")


FREELY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FREELY
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.9999)
def test_a_truncated_file_is_refused(file, tmp_path, share):
    content = file.read_bytes()
    (tmp_path / "part.zip").write_bytes(content[: int(share * len(content))])
    refuse(tmp_path / "part.zip", "is damaged or no artifact")


@FREELY
@given(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(file, tmp_path, share, bits):
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= bits
    path = tmp_path / "changed.zip"
    path.write_bytes(content)
    with contextlib.suppress(ArtifactError):
        # A date in the zip file, say.
        assert load_artifact(path).manifest == read_manifest(file)
        assert read_members(path) == read_members(file)


def test_a_platform_that_the_program_is_not_for_is_refused(monkeypatch, file):
    monkeypatch.setattr(loader.export, "default_export_platform", lambda: "rocm")
    refuse(file, "is a program for cpu, cuda, tpu; JAX computes on rocm here")


def test_without_flatbuffers_it_says_what_to_install(monkeypatch, file):
    def deserialize(_):
        raise ImportError("no flatbuffers")

    monkeypatch.setattr(loader.export, "deserialize", deserialize)
    refuse(file, "needs the package flatbuffers")


# The command


def stop(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        export.main(argv)
    said = capsys.readouterr().err
    assert said.startswith("dns_jax: ")
    assert said.count("\n") == 1
    return caught.value.code, said


def test_the_command_writes_the_file_and_says_what_it_is(finished_run, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "dns_jax.operation.export"]
    command += [f"--workdir={finished_run}", "--out=sub/fan.zip"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    k = load_trained(finished_run).choice.size
    assert done.stdout.startswith(f"sub/fan.zip: fan, seed 0, K = {k}, Data: ")
    assert done.stdout.endswith("MB, for cpu, cuda, tpu\n")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["fan.zip"]
    loaded = load_artifact(tmp_path / "sub" / "fan.zip")
    assert loaded.manifest["smoothing"]["k"] == k
    program = read_members(tmp_path / "sub" / "fan.zip")["program.bin"]
    assert root.encode() not in program


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--out is missing"),
        (["--workdir=x", "--out=."], "--out=. is there and not a file"),
        (["--workdir=no/where", "--out=x.zip"], "--workdir=no/where: there is no such folder"),
        (["--workdir=x", "--out=x.zip", "--seed=a"], "--seed"),
        (["--workdir=x", "--out=x.zip", "--more"], "--more"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(capsys, argv, says):
    status, said = stop(capsys, *argv)
    assert status == 2
    assert says in said


def test_an_unfinished_run_is_bad_input_and_leaves_no_file(capsys, finished_run, tmp_path):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    (workdir / "fan/seed_0/selection.json").unlink()
    status, said = stop(capsys, f"--workdir={workdir}", f"--out={tmp_path}/x.zip")
    assert status == 1
    assert "is not finished" in said
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("data.others", "none", "fan was trained without SerialOE"),
        ("smoothing.unit", "clip", "fan was smoothed by recordings"),
    ],
)
def test_what_has_no_segments_to_smooth_is_refused(
    capsys, finished_run, tmp_path, field, value, says
):
    workdir = shutil.copytree(finished_run, tmp_path / "run")
    run = json.loads((workdir / "config.json").read_text())
    part, name = field.split(".")
    run["config"][part][name] = value
    (workdir / "config.json").write_text(json.dumps(run))
    status, said = stop(capsys, f"--workdir={workdir}", f"--out={tmp_path}/x.zip")
    assert status == 1
    assert says in said
    assert not (tmp_path / "x.zip").exists()
