"""The command line in processes of its own, as on several hosts, and a small run for it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

TESTS = Path(__file__).parent
ROOT = TESTS.parent
CONFIG = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import tiny
def get_config():
    config = tiny.make_config()
    config.machines = ("fan",)
    config.devices = 2
    config.checkpoint_seconds = 0.5
    config.validation_sections, config.evaluation_sections = (0,), (1,)
    config.autoencoder.update({{"epochs": 700, "depth": 1, "hidden": 8, "validate_every": 100}})
    config.serial_oe.update({{"epochs": 2, "validate_every": 1}})
    config.serial_oe.backbone.stages = ((1, 8, 1, 1, 3),)
    config.inlier.clusters = (1,)
    return config
"""


def write_small_run(root):
    """Write recordings of noise and a configuration; return the flags that use them."""
    rng = np.random.default_rng(0)
    names = [("pump", "train", f"section_00_source_train_normal_{i:04d}") for i in range(6)]
    for section in (0, 1):
        for domain in ("source", "target"):
            stem = f"section_{section:02d}_{domain}"
            names += [("fan", "train", f"{stem}_train_normal_{i:04d}") for i in range(4)]
            names += [
                ("fan", f"{domain}_test", f"{stem}_test_{label}_{i:04d}")
                for label in ("normal", "anomaly")
                for i in range(3)
            ]
    for machine, folder, stem in names:
        path = root / "data" / machine / folder / f"{stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.05, 4000), 4000, subtype="PCM_16")
    (root / "config.py").write_text(CONFIG)
    return f"--config={root / 'config.py'}", f"--config.data_dir={root / 'data'}"


class Processes:
    """`python -m dns_jax.main` once per host, on devices of its own."""

    def __init__(self, *argv, hosts=1, devices=1, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"host_{host}.log" for host in range(hosts)]
        self.running = []
        for host, log in enumerate(self.logs):
            cluster = {
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(hosts),
                "SLURM_PROCID": str(host),
                "SLURM_LOCALID": str(host),
                "JAX_COORDINATOR_PORT": str(port),
            }
            shared = {
                "JAX_NUM_CPU_DEVICES": str(devices),
                "PYTHONPATH": str(ROOT),
            }
            with open(log, "w") as file:
                self.running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dns_jax.main", *map(str, argv)]
                        + ["--distributed"] * (hosts > 1),
                        cwd=ROOT,
                        env=os.environ | shared | (cluster if hosts > 1 else {}),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, seconds=240):
        """Return the exit statuses, or fail and say what was printed."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(1, end - time.monotonic())) for process in self.running]
        except subprocess.TimeoutExpired:
            pytest.fail("\n".join(["a process hangs", *map(Path.read_text, self.logs)]))
        finally:
            for process in self.running:
                process.kill()

    def finish(self):
        assert self.wait() == [0] * len(self.running), "\n".join(map(Path.read_text, self.logs))
        return self.logs[0].read_text()

    def wait_for(self, path, seconds=120):
        """Wait until a file is there and all processes are still running."""
        end = time.monotonic() + seconds
        while not path.exists():
            done = [process.poll() for process in self.running]
            assert time.monotonic() < end, "\n".join(map(Path.read_text, self.logs))
            assert done == [None] * len(done), "\n".join(map(Path.read_text, self.logs))
            time.sleep(0.02)
