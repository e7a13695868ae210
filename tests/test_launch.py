"""The scripts of launch/, as far as they can be run without a cluster."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TABLE = "Table II: harmonic mean of AUC and pAUC, in %"
# Stands for SLURM's srun: two tasks on this machine, with the variables that it sets.
SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 && $2 == --label ]] || exit 9
for task in 0 1; do
  SLURM_JOB_ID=4711 SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$task \\
    SLURM_LOCALID=$task "${@:3}" 2>&1 | sed "s/^/$task: /" &
done
wait
"""


def run_script(name, *argv, path=None, **variables):
    """Run a script where there is no `.venv`: its `python3` is the Python of the tests."""
    folders = [str(path)] if path else []
    search = os.pathsep.join([*folders, str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(LAUNCH / name), *argv],
        env=os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)} | variables,
        cwd=path,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean_and_begins_with_its_use(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    use = script.read_text().splitlines()[1:4]
    assert all(line.startswith("# ") for line in use)
    assert f"launch/{script.name}" in " ".join(use)


def test_local_uses_all_devices_of_the_machine(small_call, finished_run):
    done = run_script(
        "local.sh", *small_call, f"--workdir={finished_run}", path=finished_run.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dns_jax: 8 x cpu (cpu)\n")
    assert TABLE in done.stdout


def test_local_passes_mistakes_on():
    done = run_script("local.sh", "--config=configs/fan.py", path=ROOT)
    assert done.returncode == 2
    assert done.stderr == "dns_jax: --workdir is missing, as in --workdir=runs/fan\n"


def test_slurm_starts_a_run_of_several_processes(small_call, finished_run, tmp_path):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    done = run_script(
        "slurm.sh",
        *small_call,
        f"--workdir={finished_run}",
        path=tmp_path,
        JAX_NUM_CPU_DEVICES="1",
        https_proxy="http://nowhere:1",
    )
    assert done.returncode == 0, done.stderr
    assert f"0: {TABLE}" in done.stdout  # both have joined: there are two devices
    assert "1: Table" not in done.stdout
    assert "proxy" not in done.stdout


def run_dry(*argv, **variables):
    done = run_script("tpu_vm.sh", *argv, DRY="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_tpu_vm_is_created_set_up_used_and_deleted(tmp_path):
    create, archive, copy, install, mount, run = run_dry(
        *("create", "install", "run", "--config=configs/fan.py", "--config.seeds=(0,1)"),
        NAME="mine",
        TYPE="v5litepod-16",
        SHARE="10.0.0.2:/share",
    )
    gcloud = "gcloud compute tpus tpu-vm"
    assert create.startswith(f"{gcloud} create mine --accelerator-type=v5litepod-16 --version=")
    assert "archive --format=tar.gz" in archive
    assert re.match(rf"{gcloud} scp \S+/dns_jax.tar.gz mine:dns_jax.tar.gz --worker=all", copy)
    assert install.startswith(f"{gcloud} ssh mine --worker=all")
    assert "[tpu]" in install
    assert "mount 10.0.0.2:/share /mnt/share" in mount
    # What a worker's shell is given, after this machine's shell has read the line.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {run}"], capture_output=True, text=True
    ).stdout.splitlines()
    assert words[4:7] == ["ssh", "mine", "--worker=all"]
    assert words[7] == (
        "--command=cd dns_jax && .venv/bin/python -u -m dns_jax.main --distributed "
        r"--config=configs/fan.py --config.seeds=\(0\,1\)"
    )
    folder, fetch, delete = run_dry("fetch", "delete", NAME="mine", WORKDIR="/mnt/share/fan")
    assert folder.endswith("/runs ")
    assert fetch.startswith(f"{gcloud} scp --recurse mine:/mnt/share/fan ")
    assert delete.startswith(f"{gcloud} delete mine --quiet")


def test_tpu_vm_without_a_known_action_says_what_there_is():
    assert run_script("tpu_vm.sh").returncode == 2
    done = run_script("tpu_vm.sh", "destroy")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("tpu_vm.sh: destroy: it may be create, install, run, fetch or delete\n")


# Kubernetes


@pytest.fixture(scope="module")
def objects():
    text = (LAUNCH / "kubernetes.yaml").read_text()
    assert "kubectl apply -f" in " ".join(text.splitlines()[:4])
    return {entry["kind"]: entry for entry in yaml.safe_load_all(text)}


def test_the_objects_are_valid(objects):
    validate = pytest.importorskip("kubernetes_validate")
    for entry in objects.values():
        validate.validate(entry, validate.latest_version(), strict=True)


def test_the_pods_of_the_job_find_each_other(objects):
    job = objects["Job"]["spec"]
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == 2
    assert objects["Service"]["spec"]["clusterIP"] == "None"
    assert objects["Service"]["spec"]["selector"]["job-name"] == objects["Job"]["metadata"]["name"]
    assert pod["subdomain"] == objects["Service"]["metadata"]["name"]
    assert pod["serviceAccountName"] == objects["RoleBinding"]["subjects"][0]["name"]


@pytest.mark.parametrize(
    ("program", "tables", "status"),
    [("exit 0", True, 0), ("exit 0", False, 1), ("exit 2", False, 2), ("exit 1", True, 1)],
)
def test_a_pod_succeeds_when_the_tables_are_there(objects, tmp_path, program, tables, status):
    process = start_pod(objects, tmp_path, program, tables)
    assert process.wait(10) == status


def test_a_pod_that_is_evicted_lets_the_run_save_and_is_not_done(objects, tmp_path):
    program = f"trap 'sleep 1; touch {tmp_path}/saved; exit 0' TERM\ntouch {tmp_path}/up\n"
    program += "while :; do sleep 0.05; done"
    process = start_pod(objects, tmp_path, program, tables=False)
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 1
    assert (tmp_path / "saved").exists()


def start_pod(objects, folder, program, tables):
    """Start the command of the pod with a program in the place of Python."""
    (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    assert script.startswith("python -u -m dns_jax.main --distributed ")
    if tables:
        (folder / "table2.csv").touch()
    (folder / "python").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "python").chmod(0o755)
    script = script.replace("/share/runs/fan", str(folder))
    shell = shutil.which("dash") or "sh"
    assert container["command"] == ["sh", "-c"]
    return subprocess.Popen(
        [shell, "-c", script], env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    )
