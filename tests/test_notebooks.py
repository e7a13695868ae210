"""The notebooks of launch/ run from the first cell to the last and show what they promise."""

import os

import nbformat
import pytest
from nbclient import NotebookClient
from processes import ROOT

# Kernels are closed without being asked for everything they hold.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def execute(name, folder, monkeypatch, **parameters):
    """Execute a notebook in a folder of its own; return what its cells have put out."""
    notebook = nbformat.read(ROOT / "launch" / name, 4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)  # one device, as on most machines
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute()  # raises at the first cell that fails
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    return printed, [output.data for output in outputs if "data" in output]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_is_committed_without_output(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


def check_colab(printed, shown):
    assert "This runs on 1 x cpu (CPU)." in printed
    tables = [data["text/plain"] for data in shown if "text/html" in data]
    assert any("Proposed (Oracle)" in table for table in tables)
    assert sum("image/png" in data for data in shown) == 1
    assert sum("<audio" in data.get("text/html", "") for data in shown) == 1
    assert "anomaly" in printed or "normal" in printed
    assert "standard deviation" in printed


@pytest.mark.soak
def test_the_colab_notebook_runs_with_little_training(tmp_path, monkeypatch):
    fields = {"autoencoder.epochs": 2, "serial_oe.epochs": 1, "inlier.clusters": (1,)}
    check_colab(*execute("colab.ipynb", tmp_path, monkeypatch, FIELDS=fields))


@pytest.mark.soak
def test_the_colab_notebook_runs_as_it_is(tmp_path, monkeypatch):
    check_colab(*execute("colab.ipynb", tmp_path, monkeypatch))


def test_the_notebook_of_many_devices_has_eight_where_there_is_one(tmp_path, monkeypatch):
    printed, shown = execute("multi_device.ipynb", tmp_path, monkeypatch)
    assert "8 x cpu (CPU)" in printed
    assert "8 devices, pmap: at most" in printed
    assert "8 devices and one differ by 0e+00 at most" in printed
    assert sum("image/png" in data for data in shown) == 1
