"""What every test shares: eight virtual CPU devices, and where the real recordings lie."""

import fcntl
import json
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Never the user's, and one for all workers and the processes of their tests.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="dns_jax_compiled_")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from pathlib import Path

import chromium
import pytest
from processes import Processes, write_small_run


def pytest_sessionfinish():
    """Discard what was compiled, after the last worker."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """`../shared/realdata`: real recordings and scores, which are never part of this project."""
    path = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    if not path.is_dir():
        pytest.skip(f"needs the real recordings at {path}")
    return path


@pytest.fixture(scope="session")
def small_call(tmp_path_factory):
    """The flags of a run on two devices whose autoencoder trains for some seconds."""
    return write_small_run(tmp_path_factory.mktemp("small_call"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The workdir of that run, which nothing has stopped; one for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_run"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "table2.csv").exists():
            call = write_small_run(folder)
            Processes(*call, f"--workdir={folder}/run", devices=2, folder=folder).finish()
    return folder / "run"


@pytest.fixture(scope="session")
def smoothing_run(finished_run, tmp_path_factory):
    """A copy of the workdir, in which the fan's K is 6 and Data is all."""
    workdir = shutil.copytree(finished_run, tmp_path_factory.mktemp("smoothing_run") / "run")
    file = workdir / "fan/seed_0/selection.json"
    choice = {"size": 6, "data": "all", "how": "validation"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"proposed": choice}))
    return workdir


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A page in headless Chromium."""
    if not chromium.BROWSER:
        pytest.skip("needs Debian's package chromium")
    page = chromium.Page(tmp_path_factory.mktemp("browser"))
    yield page
    page.close()
