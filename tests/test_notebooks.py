"""The notebooks run from top to bottom on the embedded images, and show what they promise."""

import os
import sys

import nbformat
import pytest
from helpers import TINY
from nbclient import NotebookClient

from cifar_keras.commands.study import run
from cifar_keras.data.shapes import GENERATED
from cifar_keras.utils.paths import PROJECT


def outputs(name, tmp_path, **parameters):
    """Executes a notebook with these parameters in place of its own; returns what its cells put out, as text."""
    notebook = nbformat.read(PROJECT / "notebooks" / name, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert {line.partition(" = ")[0] for line in cell.source.splitlines()} == set(parameters)
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def pictures(found, kind):
    return sum(kind in output.get("data", {}) for output in found)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """The kernel is this Python, whatever kernels the user has installed, and its settings go nowhere else."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("PATH", os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])))


def test_the_study_is_loaded_compared_and_looked_at(tmp_path):
    for name in ("exp1", "exp4"):
        assert run(name, [*TINY, "--root", str(tmp_path)]) == 0
    found = outputs("01_the_study.ipynb", tmp_path, root=str(tmp_path), dataset=None)
    assert pictures(found, "image/svg+xml") == 1 and pictures(found, "image/png") == 5
    text = "".join(output.get("text", "") for output in found)
    assert "The most accurate model on these data is" in text
    tables = [output["data"]["text/html"] for output in found if "text/html" in output.get("data", {})]
    assert "exp4_scratch" in tables[0] and "published" in tables[1] and "recall" in tables[2]


def test_a_folder_of_images_is_trained_on_explained_and_predicted(tmp_path):
    options = ["--budget", "demo", "--epochs", "1"]
    found = outputs("02_your_own_images.ipynb", tmp_path, images=None, root=str(tmp_path / "own"), options=options)
    text = "".join(output.get("text", "") for output in found)
    assert "256 train, 32 val, 32 test images" in text and pictures(found, "image/png") == 4
    (table,) = (output["data"]["text/html"] for output in found if "text/html" in output.get("data", {}))
    assert all(name in table for name in GENERATED["shapes"].class_names[:4])
    assert (tmp_path / "own" / "model_cp").is_dir()
