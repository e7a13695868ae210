"""`python -m dns_jax.operation.score`: a line or an object a recording, and what goes wrong."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dns_jax.operation.detector import Detector
from dns_jax.operation.score import COLUMNS, main


@pytest.fixture(scope="module")
def recordings(smoothing_run):
    data_dir = json.loads((smoothing_run / "config.json").read_text())["config"]["data_dir"]
    return [str(path) for path in sorted(Path(data_dir).glob("fan/*test/*.wav"))[:3]]


@pytest.fixture(scope="module")
def judgements(smoothing_run, recordings):
    with Detector.load(smoothing_run) as detector:
        return [detector.score(path) for path in recordings]


@pytest.fixture
def run(smoothing_run, capsys):
    """Call the command; returns exit status, stdout and stderr."""

    def run(*arguments, workdir=smoothing_run):
        with pytest.raises(SystemExit) as end:
            main([f"--workdir={workdir}", *map(str, arguments)])
        return end.value.code, *capsys.readouterr()

    return run


def test_the_text_has_a_line_a_recording(run, recordings, judgements):
    status, out, err = run(*recordings)
    assert (status, err) == (0, "")
    for line, path, judgement in zip(out.splitlines(), recordings, judgements, strict=True):
        assert line.startswith("ANOMALOUS" if judgement.anomalous else "normal")
        assert f" {judgement.score:.4g} (threshold {judgement.threshold:.4g}; " in line
        assert f"{path}: K = {judgement.k}, {judgement.behind} neighbours" in line
        assert judgement.neighbors[0][0] in line


def test_a_lost_device_is_told_in_one_line(run, recordings, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("INTERNAL: the device\nis gone")

    monkeypatch.setattr(Detector, "score", fail)
    assert run(recordings[0]) == (
        1,
        "",
        "dns_jax: RuntimeError: INTERNAL: the device is gone; nothing is lost, start again\n",
    )


def test_csv_has_a_header_and_all_columns(run, recordings, judgements):
    status, out, _ = run("--format=csv", *recordings)
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert status == 0
    assert "\r" not in out  # as everywhere
    for row, path, judgement in zip(rows, recordings, judgements, strict=True):
        assert tuple(row) == tuple(COLUMNS)
        assert (row["file"], row["machine"]) == (path, "fan")
        assert float(row["score"]) == pytest.approx(judgement.score, rel=1e-6)
        assert row["anomalous"] == str(int(judgement.anomalous))


def test_json_has_an_object_a_line(run, recordings, judgements):
    status, out, _ = run("--format=json", *recordings)
    objects = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    for said, path, judgement in zip(objects, recordings, judgements, strict=True):
        assert said["file"] == path
        np.testing.assert_allclose(said["scores"], judgement.scores, rtol=1e-6)
        assert [clip for clip, _ in said["neighbors"]] == [clip for clip, _ in judgement.neighbors]


def test_names_with_line_breaks_and_commas_stay_in_their_row(run, recordings, tmp_path):
    odd = tmp_path / 'new,"1"\n.wav'
    odd.write_bytes(Path(recordings[0]).read_bytes())
    _, out, _ = run("--format=csv", "--section=0", odd)
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert row["file"] == str(odd)
    _, out, _ = run("--section=0", odd)
    assert len(out.splitlines()) == 1


def test_what_cannot_be_scored_is_said_and_the_rest_is_scored(run, recordings, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "plain.wav").write_bytes(Path(recordings[0]).read_bytes())
    bad = [tmp_path / name for name in ("empty.wav", "gone.wav", "plain.wav")]
    status, out, err = run(bad[0], recordings[0], bad[1], bad[2], recordings[1])
    assert status == 1
    assert len(out.splitlines()) == 2
    empty, gone, plain = err.splitlines()
    assert empty == f"dns_jax: {bad[0]}: empty (0 bytes)"
    assert gone == f"dns_jax: {bad[1]}: No such file or directory"
    assert plain.startswith(f"dns_jax: {bad[2]}: plain.wav has no section in its name")


def test_neighbours_may_come_from_what_a_monitor_has_seen(run, smoothing_run, recordings, tmp_path):
    file = tmp_path / "F.sqlite"
    with Detector.load(smoothing_run, store=file, begin="empty") as detector:
        detector.append(detector.score(recordings[0])._replace(digest="other"))
        status, out, _ = run(f"--pool={file}", "--begin=empty", "--format=json", recordings[1])
    assert status == 0
    assert json.loads(out)["behind"] == 0  # K is at most a fifth of five segments
    assert run("--begin=empty", "--format=json", recordings[1])[1] == out


def test_one_machine_is_asked_about_in_the_file_of_a_monitor_of_several(
    run, smoothing_run, recordings, judgements, tmp_path
):
    file = tmp_path / "F.sqlite"
    with Detector.load(smoothing_run, store=file) as detector:
        pump = next(detector.pool._store.read())[1]._replace(machine="pump", clip="pump.wav")
        detector.pool._store.add(pump)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE meta SET value = 'pump 0123, ' || value WHERE key = 'identity'")
    status, out, err = run(f"--pool={file}", "--format=json", *recordings)
    assert (status, err) == (0, "")
    for line, judgement in zip(out.splitlines(), judgements, strict=True):
        assert json.loads(line)["score"] == pytest.approx(judgement.score, rel=1e-6)
        assert "pump.wav" not in line
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE meta SET value = 'fan 0123, pump 0123' WHERE key = 'identity'")
    status, _, err = run(f"--pool={file}", recordings[0])
    assert status == 1
    assert "was filled by other networks" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no recordings are named, as in"),
        (["--format=xml", "a.wav"], "argument --format: invalid choice: 'xml'"),
        (["--machine=pump", "a.wav"], "--machine=pump: there is none"),
        (["--seed=5", "a.wav"], "--seed=5: there is none"),
        (["--domain=moon", "a.wav"], "invalid choice: 'moon'"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(run, arguments, says):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("dns_jax: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_workdir_that_is_none_is_one_line(run, tmp_path):
    status, _, err = run("a.wav", workdir=tmp_path / "none")
    assert status == 2
    assert err == f"dns_jax: --workdir={tmp_path / 'none'}: there is no such folder\n"
    with pytest.raises(SystemExit) as end:
        main(["a.wav"])
    assert end.value.code == 2
