"""Several hosts, as processes that SLURM's variables join; SIGTERM; hosts that are lost."""

import json
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tiny
from processes import ROOT, Processes

from dns_jax import hosts, programs
from dns_jax.data.synthetic import write_factory
from dns_jax.parallel import make_mesh, own_rows
from dns_jax.programs import make_program, make_validation
from dns_jax.tasks import make_serial_oe_task


def read_losses(workdir, network):
    (file,) = workdir.glob(f"*/seed_0/{network}/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same_run(workdir, other):
    """The same losses, scores and tables, to the last bit."""
    for network in ("ae", "serial_oe"):
        assert read_losses(workdir, network) == read_losses(other, network)
    segments = [np.load(next(w.glob("*/seed_0/segments.npz"))) for w in (workdir, other)]
    for name in segments[0].files:
        np.testing.assert_array_equal(segments[0][name], segments[1][name])
    for name in ("results.csv", "official.csv", "table1.csv", "table2.csv"):
        assert (workdir / name).read_bytes() == (other / name).read_bytes()


# Two hosts with the networks of the demo


@pytest.mark.soak
def test_two_processes_compute_what_one_does(tmp_path):
    write_factory(tmp_path / "factory")
    flags = (
        "--config=configs/demo.py",
        "--config.data.synthetic=False",
        f"--config.data_dir={tmp_path}/factory",
        "--config.autoencoder.epochs=2",
        "--config.serial_oe.epochs=1",
        "--config.inlier.clusters=(1,)",
        "--config.report.write=False",
    )
    two = Processes(*flags, f"--workdir={tmp_path}/two", hosts=2, folder=tmp_path)
    printed = two.finish()
    print(printed)
    assert "Table II: harmonic mean" in printed
    assert "Table" not in two.logs[1].read_text()
    Processes(*flags, f"--workdir={tmp_path}/one", devices=2, folder=tmp_path).finish()
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.soak
@pytest.mark.parametrize("gigabytes", [8, 0])
def test_two_processes_train_by_pmap_as_one_does(small_call, tmp_path, gigabytes):
    flags = *small_call, "--config.parallel=pmap", "--config.autoencoder.epochs=5"
    flags = *flags, f"--config.data.device_gigabytes={gigabytes}"
    flags = *flags, "--config.report.write=True"
    for count, name in ((2, "two"), (1, "one")):
        options = {"hosts": count, "devices": 2 // count, "folder": tmp_path}
        Processes(*flags, f"--workdir={tmp_path}/{name}", **options).finish()
    assert (tmp_path / "two" / "report.html").exists()
    for network in ("ae", "serial_oe"):
        two, one = (read_losses(tmp_path / name, network) for name in ("two", "one"))
        np.testing.assert_allclose(
            [row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-5
        )


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_reads_its_own_rows_of_every_batch(monkeypatch, host):
    config = tiny.make_config()
    recordings = tiny.Recordings(np.full(30, 2100))
    products = np.r_[np.arange(20) % 3, np.full(10, -1)]
    rows = np.arange(20), np.arange(20, 30)
    task, _, _ = make_serial_oe_task(
        config, recordings, products, np.zeros(30, bool), rows, (rows[0][:9], rows[1]), 0
    )
    mesh = make_mesh(1)
    feed, validation_feed = task.open_feeds(mesh)
    whole = feed.fetch(*task.draw(3, 2)[:2]), task.draw(3, 2).labels
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: host)
    own = slice(4 * host, 4 * host + 4)
    assert own_rows(None, task.batch) == own
    sent = []
    monkeypatch.setattr(programs, "spread_batches", lambda mesh, batches, way: sent.append(batches))
    task = task._replace(looped=True)
    make_program(None, task, feed, 2, mesh, "mesh").prepare(3, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, own]), sent[0], whole)
    validated = []
    monkeypatch.setattr(
        programs, "compile_rows", lambda *_: lambda *a: validated.append(a[-1]) or np.zeros(8)
    )
    make_validation(task, validation_feed, None, None)(None, None)
    plan = task.validation
    whole = validation_feed.fetch(plan.rows, plan.starts), plan.labels
    assert len(validated) == len(plan.rows)
    for number, rows in enumerate(validated):
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_array_equal(a, b[n, own]), rows, whole
        )


# Runs that are stopped


def find_metrics(workdir):
    return workdir / "fan" / "seed_0" / "ae" / "metrics.jsonl"


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_sigterm_saves_and_exits_0_and_the_next_start_goes_on(
    small_call, finished_run, tmp_path, count
):
    flags = *small_call, f"--workdir={tmp_path}/run"
    run = Processes(*flags, hosts=count, devices=2 // count, folder=tmp_path)
    run.wait_for(find_metrics(tmp_path / "run"))
    asked = time.monotonic()
    run.running[-1].send_signal(signal.SIGTERM)  # of two hosts the one that does not write
    assert run.wait(30) == [0] * count
    print(f"{time.monotonic() - asked:.1f} s from SIGTERM to the end")
    for log in run.logs:
        assert "dns_jax: stopped by SIGTERM; the same command goes on" in log.read_text()
    (saved,) = (tmp_path / "run/fan/seed_0/ae/checkpoints").glob("[0-9]*")
    assert 0 < int(saved.name) < 2800
    Processes(*flags, devices=2, folder=tmp_path).finish()
    assert_same_run(tmp_path / "run", finished_run)


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_when_a_host_is_killed_the_other_says_so_and_the_next_start_goes_on(
    small_call, finished_run, tmp_path, lost
):
    flags = *small_call, f"--workdir={tmp_path}/run"
    run = Processes(*flags, hosts=2, folder=tmp_path)
    run.wait_for(find_metrics(tmp_path / "run"))
    run.running[lost].kill()
    statuses = run.wait(60)
    assert statuses[lost] == -signal.SIGKILL
    assert statuses[1 - lost] != 0
    said = run.logs[1 - lost].read_text()
    print(said[-2000:])
    # The second is JAX's own, where the host that is gone led the others.
    ended = said.splitlines()[-1].startswith("dns_jax: another of the 2 hosts is gone")
    assert ended or "another task died" in said
    assert "dns_jax/main.py" not in said  # no traceback of ours; a thread of Orbax may print one
    # On one host, with as many devices.
    Processes(*flags, devices=2, folder=tmp_path).finish()
    assert_same_run(tmp_path / "run", finished_run)


# Mistakes


def test_without_a_cluster_distributed_is_one_clear_line(small_call, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dns_jax.main",
            *small_call,
            f"--workdir={tmp_path}",
            "--distributed",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("dns_jax: --distributed: this process finds no others")
    assert "launch/" in line


def test_a_workdir_that_is_not_shared_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "wait_for_all", lambda place: None)
    monkeypatch.setattr(hosts, "_FORGETTING", 0)
    with pytest.raises(
        hosts.HostsError, match=r"host 1 of 2 does not see .*config.json.*--workdir"
    ):
        hosts.check_shared(tmp_path / "config.json")
    monkeypatch.setattr(hosts, "_FORGETTING", 60)  # as a network file system may take
    threading.Timer(0.2, (tmp_path / "config.json").touch).start()
    hosts.check_shared(tmp_path / "config.json")


def test_sigterm_outside_training_stops_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with hosts.Preemption().watch(), pytest.raises(hosts.Preempted):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_training_waits_to_be_asked_for():
    answers = []

    def train():
        with preemption.deferred():
            answers.append(preemption.reached())
            signal.raise_signal(signal.SIGTERM)
            answers.append(preemption.reached())

    with hosts.Preemption().watch() as preemption, pytest.raises(hosts.Preempted):
        train()
    assert answers == [False, True]


def test_a_thread_cannot_watch_and_goes_on_without():
    seen = []

    def watch():
        with hosts.Preemption().watch() as preemption:
            seen.append(preemption.reached())

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [False]
