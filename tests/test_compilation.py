"""The cache of compiled programs: where it lies, whose word counts, and what comes out of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from processes import ROOT

from dns_jax import compilation

SCRIPT = """
import json, jax, jax.numpy as jnp, numpy as np
import dns_jax, dns_jax.main
from dns_jax.compilation import keep_programs
said = {"imported": jax.config.jax_compilation_cache_dir}
keep_programs()
said["kept"] = jax.config.jax_compilation_cache_dir
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.device_put(jnp.ones((64, 8, 16, 16)), jax.NamedSharding(mesh, jax.P("data")))

def loss(weights, rows):
    for _ in range(8):
        rows = jnp.tanh(jax.lax.conv(rows, weights, (1, 1), "SAME"))
    return jnp.mean(rows**2)

step = jax.jit(lambda w, rows: w - jax.grad(loss)(w, rows), donate_argnums=0)
weights = jax.device_put(
    np.linspace(-0.5, 0.5, 8 * 8 * 9, dtype=np.float32).reshape(8, 8, 3, 3),
    jax.NamedSharding(mesh, jax.P()),
)
for _ in range(3):
    weights = step(weights, rows)
said["weights"] = np.asarray(weights).tobytes().hex()
said["hits"] = events.count("cache_hits")
print(json.dumps(said))
"""


def start(cache, **env):
    """Train for three steps on two devices in a process of its own; return what it says."""
    here = {name: os.environ[name] for name in os.environ if not name.startswith("JAX_")}
    here |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    here |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    here |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | env
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache folder after one start, and what that start said."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, start(cache)


def entries(cache):
    return sorted((cache / "dns_jax" / "xla").glob("*-cache"))


def test_importing_the_library_keeps_nothing_and_a_run_does(filled):
    cache, said = filled
    assert said["imported"] is None
    assert said["kept"] == str(cache / "dns_jax" / "xla")
    assert said["hits"] == 0
    assert entries(cache)
    assert (cache / "dns_jax" / "xla").stat().st_mode & 0o077 == 0


def test_the_second_start_loads_what_the_first_compiled_and_computes_the_same_bits(filled):
    cache, first = filled
    before = entries(cache)
    second = start(cache)
    assert second["hits"] > 0
    assert second["weights"] == first["weights"]
    assert entries(cache) == before


def test_a_program_that_cannot_be_read_is_compiled_anew_without_a_word(filled):
    cache, first = filled
    for file in entries(cache):
        os.truncate(file, file.stat().st_size // 2)
    again = start(cache)
    assert again["hits"] == 0
    assert again["weights"] == first["weights"]


@pytest.fixture
def untouched(monkeypatch, tmp_path):
    """JAX without a cache folder, as at the start of a process; its configuration is put back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("folder", ["", "/elsewhere"])
def test_the_users_own_folder_stands(untouched, tmp_path, folder):
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == folder
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", ["JAX_COMPILATION_CACHE_DIR=", "JAX_ENABLE_COMPILATION_CACHE=0"])
def test_the_environment_switches_it_off(tmp_path, said):
    name, value = said.split("=")
    assert not start(tmp_path, **{name: value})["kept"]
    assert not list(tmp_path.iterdir())


def test_a_tenth_of_a_second_of_compilation_is_worth_keeping_unless_the_user_says_otherwise(
    untouched, monkeypatch
):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    compilation.keep_programs()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5.0")
    compilation.keep_programs()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 5.0


@pytest.mark.parametrize("named", ["", "relative"])
def test_without_an_absolute_folder_for_caches_it_lies_in_the_home(
    untouched, monkeypatch, tmp_path, named
):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    compilation.keep_programs()
    expected = str(tmp_path / ".cache" / "dns_jax" / "xla")
    assert jax.config.jax_compilation_cache_dir == expected


@pytest.mark.parametrize("fault", ["below a file", "closed", "no home"])
def test_where_nothing_can_be_written_nothing_is_kept_or_said(
    untouched, monkeypatch, tmp_path, capfd, fault
):
    if fault == "below a file":
        (tmp_path / "dns_jax").write_text("")
    elif fault == "closed":
        monkeypatch.setattr(os, "access", lambda *_: False)  # to root nothing is closed
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def fail():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", fail)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert capfd.readouterr() == ("", "")


def test_the_oldest_programs_make_room(untouched, monkeypatch, tmp_path):
    folder = tmp_path / "dns_jax" / "xla"
    folder.mkdir(parents=True)
    for age in range(5):
        (folder / f"jit_{age}-cache").write_bytes(bytes(100))
        os.utime(folder / f"jit_{age}-cache", (1e9 - age, 1e9 - age))
    monkeypatch.setattr(compilation, "_LIMIT", 350)
    compilation.keep_programs()
    assert {file.name for file in folder.iterdir()} == {f"jit_{age}-cache" for age in range(3)}
