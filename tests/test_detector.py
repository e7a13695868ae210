"""The detector judges as the run that it comes from would, and F grows by what it has judged."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from dns_jax import smooth_queries
from dns_jax.data.headers import Unusable
from dns_jax.data.refusals import ConfigError, DataError
from dns_jax.evaluation.score_files import fit_threshold
from dns_jax.operation import machine
from dns_jax.operation.detector import Detector
from dns_jax.operation.pool import NeighborPool
from dns_jax.operation.trained import load_trained
from dns_jax.scoring import load_segments, save_segments

RATE = 4000  # Hz


@pytest.fixture(scope="module", params=["source", "all"])
def choice(request):
    return {"size": 6, "data": request.param, "how": "validation"}


@pytest.fixture(scope="module")
def workdir(smoothing_run, choice, tmp_path_factory):
    workdir = shutil.copytree(smoothing_run, tmp_path_factory.mktemp("detector") / "run")
    file = workdir / "fan/seed_0/selection.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"proposed": choice}))
    return workdir


@pytest.fixture(scope="module")
def detector(workdir):
    """One that F of none of these tests changes."""
    with Detector.load(workdir) as detector:
        yield detector


@pytest.fixture(scope="module")
def segments(workdir):
    return load_segments(workdir / "fan/seed_0/segments.npz")


@pytest.fixture(scope="module")
def recordings(workdir):
    """The paths of the fan's test recordings."""
    data_dir = json.loads((workdir / "config.json").read_text())["config"]["data_dir"]
    return sorted(Path(data_dir).glob("fan/*test/*.wav"))


def change(path, folder, seed, name=None):
    """Write the recording with a little noise: another one that sounds alike."""
    samples, rate = soundfile.read(path)
    samples = samples + np.random.default_rng(seed).normal(0, 0.01 * samples.std(), len(samples))
    file = folder / (name or f"{path.stem}{seed:04d}.wav")
    soundfile.write(file, samples, rate)
    return file


def smooth_by_hand(a_g, f_d, pool_scores, pool_features, usable, k):
    """f64[queries] and neighbours of each: eq. 7 by a stable sort in float64."""
    behind = min(k - 1, int(usable.sum()))
    distance = np.sum((f_d[:, None].astype(float) - pool_features) ** 2, axis=2)
    distance = np.where(usable, distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :behind]
    return (a_g + pool_scores[nearest].sum(1, dtype=float)) / (1 + behind), behind


def cap(k, usable):
    """At most a fifth of the pool."""
    return min(k, max(1, usable.sum() // 5))


def test_a_recording_is_smoothed_by_the_test_segments_of_its_section(
    detector, segments, recordings, choice, tmp_path
):
    for number, path in enumerate(recordings[::5]):
        new = f"{path.name.partition('_test_')[0]}_test_{number:04d}.wav"
        judgement = detector.score(change(path, tmp_path, number, new))
        pool = segments.select((segments.split == "test") & (segments.section == judgement.section))
        usable = (pool.domain == "source") | (choice["data"] == "all")
        k = cap(choice["size"], usable)
        expected, behind = smooth_by_hand(
            judgement.ae_scores, judgement.features, pool.ae_score, pool.feature, usable, k
        )
        np.testing.assert_allclose(judgement.scores, expected, rtol=1e-5)
        assert judgement.score == pytest.approx(expected.mean(), rel=1e-5)
        assert (judgement.k, judgement.behind) == (k, behind)
        own = np.mean(judgement.ae_scores)
        assert judgement.ae_score == pytest.approx(own, rel=1e-6)
        assert sum(share for _, share in judgement.neighbors) == pytest.approx(1 - 1 / k)


def test_a_test_recording_of_the_run_is_not_its_own_neighbour(
    detector, segments, recordings, choice
):
    path = recordings[3]
    judgement = detector.score(path)
    others = segments.select(
        (segments.split == "test")
        & (segments.section == judgement.section)
        & (segments.clip != path.name)
    )
    rows = segments.select(segments.clip == path.name)
    np.testing.assert_allclose(judgement.ae_scores, rows.ae_score, rtol=1e-5)
    np.testing.assert_allclose(judgement.features, rows.feature, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(judgement.starts, rows.start)
    expected = smooth_queries(
        rows.ae_score, rows.feature, others.ae_score, others.feature, judgement.k,
        candidates=(others.domain == "source") | (choice["data"] == "all"),
    )  # fmt: skip
    np.testing.assert_allclose(judgement.scores, expected, rtol=1e-5)
    assert path.name not in dict(judgement.neighbors)
    assert detector.append(judgement) is None


def test_a_test_recording_in_a_folder_of_its_own_is_not_its_own_neighbour(
    workdir, segments, recordings, tmp_path
):
    named = workdir.parent / "in_folders"
    shutil.copytree(workdir, named)
    tested = segments.split == "test"
    clip = np.where(tested, np.char.add("sub/", segments.clip), segments.clip)
    save_segments(named / "fan/seed_0/segments.npz", segments._replace(clip=clip))
    with Detector.load(named) as detector:
        judgement = detector.score(recordings[3])
        assert f"sub/{recordings[3].name}" not in dict(judgement.neighbors)
        assert detector.append(judgement) is None
        other = change(recordings[4], tmp_path, 1, recordings[3].name)
        assert detector.append(detector.score(other)) is not None
    shutil.rmtree(named)


def test_the_threshold_is_fitted_on_training_recordings_smoothed_by_f(
    detector, segments, recordings, choice
):
    judgement = detector.score(recordings[0])
    ours = segments.section == judgement.section
    pool = segments.select((segments.split == "test") & ours)
    training = segments.select((segments.split == "train") & ours)
    usable = (pool.domain == "source") | (choice["data"] == "all")
    smoothed, _ = smooth_by_hand(
        *(training.ae_score, training.feature, pool.ae_score, pool.feature, usable),
        cap(choice["size"], usable),
    )
    of_clips = [smoothed[training.clip == clip].mean() for clip in np.unique(training.clip)]
    assert judgement.threshold == pytest.approx(fit_threshold(of_clips, 90.0)[0], rel=1e-4)
    assert judgement.anomalous == (judgement.score > judgement.threshold)


def test_an_array_is_judged_as_the_file_that_holds_it(detector, recordings):
    path = recordings[2]
    expected = detector.score(path)
    whole, rate = soundfile.read(path, dtype="int16")
    for samples in (whole, whole / 2**15, whole.astype(np.float32) / 2**15):
        judgement = detector.score(
            samples, rate, section=expected.section, domain=expected.domain, machine="fan"
        )
        assert judgement.ae_scores == pytest.approx(expected.ae_scores, rel=1e-6)
        assert (judgement.clip, judgement.seconds) == ("", len(whole) / rate)


@pytest.mark.parametrize(
    ("samples", "rate", "error", "says"),
    [
        (np.zeros((2, RATE)), RATE, ValueError, r"\[samples\], mono; their shape was \(2, 4000\)"),
        (np.zeros(RATE, int), RATE, TypeError, "int16 or of a floating type; it was int64"),
        (np.zeros(RATE), None, TypeError, "sample_rate must be a whole number of Hz; it was None"),
        (np.zeros(RATE), 8000, Unusable, "8000 Hz, 4000 expected"),
        (np.zeros(100), RATE, Unusable, "shorter than a segment"),
        (np.zeros(0), RATE, Unusable, "no samples"),
        (np.full(RATE, np.nan), RATE, Unusable, "non-finite samples: 4000"),
    ],
)
def test_an_array_that_is_no_recording_is_refused(detector, samples, rate, error, says):
    with pytest.raises(error, match=says):
        detector.score(samples, rate, section=0)


def test_a_silent_recording_is_judged_and_noted(detector):
    judgement = detector.score(np.zeros(RATE), RATE, section=0)
    assert judgement.note == "silent (all samples are 0)"
    assert np.isfinite(judgement.score)


def test_section_and_domain_come_from_the_name_unless_they_are_given(
    detector, recordings, tmp_path
):
    path = next(p for p in recordings if p.name.startswith("section_01_target"))
    judgement = detector.score(path)
    assert (judgement.section, judgement.domain) == (1, "target")
    judgement = detector.score(path, section=0, domain="source")
    assert (judgement.section, judgement.domain) == (0, "source")
    plain = change(path, tmp_path, 0, "new.wav")
    assert detector.score(plain, section=1).domain == "source"
    with pytest.raises(DataError, match=r"new\.wav has no section in its name; fan has .*0, 1"):
        detector.score(plain)
    with pytest.raises(DataError, match="is of section 7; fan has learned"):
        detector.score(path, section=7)
    with pytest.raises(DataError, match="no machine pump; there are fan"):
        detector.score(path, machine="pump")


def test_a_longer_recording_has_all_its_segments(detector, segments, recordings):
    samples, rate = soundfile.read(recordings[0], dtype="int16")
    judgement = detector.score(np.tile(samples, 4), rate, section=0)
    np.testing.assert_allclose(judgement.starts, np.arange(0, 3.51, 0.125))
    assert len(judgement.features) == len(judgement.ae_scores) == 29


def test_what_is_appended_is_the_neighbour_of_what_comes(
    workdir, segments, recordings, choice, tmp_path
):
    with Detector.load(workdir, begin="empty", capped=False) as detector:
        came = []
        for seed, path in enumerate(recordings[:9]):
            judgement = detector.score(change(path, tmp_path, seed, path.name))
            if pool := [j for j in came if j.section == judgement.section]:
                usable = [choice["data"] == "all" or j.domain == "source" for j in pool]
                expected, behind = smooth_by_hand(
                    judgement.ae_scores,
                    judgement.features,
                    np.concatenate([j.ae_scores for j in pool]),
                    np.concatenate([j.features for j in pool]),
                    np.repeat(usable, len(judgement.scores)),
                    choice["size"],
                )
                np.testing.assert_allclose(judgement.scores, expected, rtol=1e-5)
                assert judgement.behind == behind
            assert detector.append(judgement, arrived=float(seed)) == len(came) + 1
            assert detector.append(judgement, arrived=float(seed)) is None
            came.append(judgement)
        before = time.time()
        held = detector.recordings("fan")
        assert [h.clip for h in held] == [j.clip for j in came]
        assert [h.arrived for h in held] == [float(seed) for seed in range(9)]
        detector.append(came[0]._replace(digest="another"))
        assert before <= detector.recordings("fan")[-1].arrived <= time.time()
        came.append(came[0])
        assert all(np.isfinite(h.score) for h in held)
        assert len(detector.evict(keep=1)) == len(came) - len({(j.section, j.domain) for j in came})


def test_with_an_empty_f_a_score_is_the_autoencoders_and_says_so(workdir, recordings):
    with Detector.load(workdir, begin="empty") as detector:
        judgement = detector.score(recordings[0])
    assert (judgement.k, judgement.behind, judgement.neighbors) == (1, 0, ())
    assert judgement.score == pytest.approx(judgement.ae_score)
    assert np.isfinite(judgement.threshold)


def test_what_it_says_is_json(detector, recordings):
    said = json.loads(json.dumps(detector.score(recordings[0]).to_json(), allow_nan=False))
    assert {"clip", "score", "threshold", "anomalous", "k", "behind", "neighbors"} <= {*said}
    assert "features" not in said
    assert len(said["scores"]) == len(said["starts"]) == 5


def test_a_run_on_folders_reads_nothing_in_names(workdir, recordings):
    trained = load_trained(workdir)
    config = ConfigDict(trained.config)
    config.data.normal = "somewhere"
    known = machine.Machine(trained._replace(config=config))
    name = recordings[0].name.replace("source", "target")
    assert known.tell(name, 1, None) == (1, "source")
    with pytest.raises(DataError, match="has no section in its name; fan has learned 0, 1"):
        known.tell(name, None, None)


# F on disk


def test_f_goes_on_from_its_file(workdir, recordings, tmp_path):
    file = tmp_path / "F.sqlite"
    with Detector.load(workdir, store=file) as detector:
        new = detector.score(change(recordings[0], tmp_path, 1, recordings[0].name))
        detector.append(new, path="somewhere.wav", arrived=5.0)
        expected = detector.score(recordings[1])
        begun = len(detector.pool)
    with Detector.load(workdir, store=file) as detector:
        assert len(detector.pool) == begun
        assert detector.score(recordings[1]).score == expected.score
        held = detector.recordings("fan")[-1]
        assert (held.path, held.arrived, held.clip) == ("somewhere.wav", 5.0, new.clip)
        with Detector.load(workdir, store=file, writable=False) as reader:
            assert reader.score(recordings[1]).score == expected.score
            with pytest.raises(DataError, match="open for reading only"):
                reader.append(reader.score(change(recordings[2], tmp_path, 2, recordings[2].name)))
        with pytest.raises(DataError, match=f"is being written by process {os.getpid()}"):
            Detector.load(workdir, store=file)


def test_a_beginning_that_was_interrupted_goes_on(workdir, recordings, tmp_path, monkeypatch):
    file, append, left = tmp_path / "F.sqlite", NeighborPool.append, [3]

    def stop(pool, recording):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return append(pool, recording)

    monkeypatch.setattr(NeighborPool, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        Detector.load(workdir, store=file)
    monkeypatch.undo()
    with Detector.load(workdir, store=file) as detector:
        clips = [entry.clip for entry in detector.pool.entries.values()]
    assert clips == [path.name for path in sorted(recordings, key=lambda p: clips.index(p.name))]
    assert len(clips) == len(recordings)


def test_recordings_of_the_run_that_were_evicted_do_not_come_back(workdir, tmp_path):
    file = tmp_path / "F.sqlite"
    with Detector.load(workdir, store=file) as detector:
        detector.evict(keep=1)
        left = [*detector.pool.entries]
    with Detector.load(workdir, store=file) as detector:
        assert [*detector.pool.entries] == left


def test_f_that_began_otherwise_is_refused(workdir, tmp_path):
    file = tmp_path / "F.sqlite"
    Detector.load(workdir, store=file, begin="empty").close()
    with pytest.raises(DataError, match=r"begun with empty.* begun with test"):
        Detector.load(workdir, store=file)
    with pytest.raises(ConfigError, match="F may begin with test or empty, not with 'full'"):
        Detector.load(workdir, begin="full")


# Bad files


def test_hostile_files_are_refused_with_a_reason(detector, realdata):
    says = {}
    for path in sorted((realdata / "hostile").rglob("*.*")):
        with suppress(Unusable, DataError):
            assert np.isfinite(detector.score(path, section=0).score)
            continue
        with pytest.raises((Unusable, DataError)) as refusal:
            detector.score(path, section=0)
        says[path.name] = str(refusal.value)
    assert len(says) > 20
    assert all(reason and "\n" not in reason for reason in says.values())


def test_what_is_no_file_is_refused_without_waiting(detector, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(Unusable, match="not a regular file"):
        detector.score(tmp_path / "pipe.wav", section=0)
    with pytest.raises(FileNotFoundError):
        detector.score(tmp_path / "gone.wav", section=0)


def test_what_is_too_long_for_the_memory_is_refused_before_it_is_read(
    detector, tmp_path, monkeypatch
):
    soundfile.write(tmp_path / "long.wav", np.zeros(RATE * 4), RATE)
    monkeypatch.setattr(machine, "LONGEST", 3)
    with pytest.raises(Unusable, match="4 s long; more than 3 s are not held in memory"):
        detector.score(tmp_path / "long.wav", section=0)
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.wav")
    shutil.copy(tmp_path / "long.wav", bad)
    with pytest.raises(Unusable, match="name: not valid UTF-8"):
        detector.score(bad, section=0)
