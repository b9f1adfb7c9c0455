"""A wheel of the package works away from the checkout, and the lock fits pyproject.toml."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from cifar_keras.saved import inference
from cifar_keras.utils.paths import PROJECT

MODEL = PROJECT / "Models" / "cifar10_model_4_precision=mixed_bfloat16.h5"
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (PROJECT / "requirements.lock").read_text(encoding="utf-8")


def pip(*arguments):
    line = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy of the checkout: setuptools writes beside the sources."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(PROJECT / "cifar_keras", sources / "cifar_keras", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, sources)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", built, sources)
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel alone; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    names = {"base": str(folder), "platbase": str(folder)}
    site = sysconfig.get_path("purelib", "venv", vars=names)
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    with open(os.path.join(site, "dependencies.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join(dependencies))
    pip("--python", folder, "install", "--no-index", "--no-deps", wheel)
    return site, os.path.join(sysconfig.get_path("scripts", "venv", vars=names), "cifar-keras")


@pytest.fixture
def call(environment, tmp_path):
    """Runs the installed `cifar-keras` in an empty folder; afterwards its site-packages must be as before."""
    site, program = environment
    before = contents(site)
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    outside |= {"PYTHONDONTWRITEBYTECODE": "1"}
    folder = tmp_path / "empty"
    folder.mkdir()
    yield lambda *arguments: subprocess.run(
        [program, *map(str, arguments)], env=outside, capture_output=True, text=True, cwd=folder
    )
    assert contents(site) == before


def contents(folder):
    """Size and time of every file below a folder, and of what stands beside it."""
    top = os.path.dirname(folder)
    found = (os.path.join(parent, name) for parent, _, names in os.walk(top) for name in names)
    return {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in found}


def test_the_wheel_holds_every_module_the_page_template_and_the_published_answers(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cifar_keras/")}
    here = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "cifar_keras").rglob("*.py")}
    answers = {f"cifar_keras/explain/published_predictions.{kind}" for kind in ("npz", "txt")}
    assert held == here | answers | {"cifar_keras/report/page.html.j2"}


def test_help_works_away_from_the_checkout(call):
    done = call("--help")
    assert done.returncode == 0 and "predict" in done.stdout, done.stderr


def test_doctor_knows_the_dependencies_of_the_installed_package(call):
    done = call("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding["status"] for finding in json.loads(done.stdout)["findings"]}
    assert "missing" not in [found[name] for name in ("keras", "pillow", "jinja2", "safetensors")]


def test_predict_gives_what_the_checkout_gives(call, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 50, 3), "uint8")).save(image)
    done = call("predict", MODEL, image, "--csv")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    classifier = inference.load(MODEL)
    probabilities = classifier.predict([image])[0]
    assert row["class_1"] == classifier.class_names[probabilities.argmax()]
    assert float(row["probability_1"]) == pytest.approx(probabilities.max(), abs=1e-3)


@pytest.mark.parametrize("verb", ["list", "study"])
def test_what_needs_the_experiment_files_asks_for_them(call, verb):
    done = call(verb)
    assert done.returncode == 2 and "experiment files" in done.stderr and "Traceback" not in done.stderr


def locked():
    """The versions in the lock by package name; some differ by Python version."""
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE)
    return {name: [version for other, version in pins if other == name] for name, _ in pins}


@pytest.mark.parametrize("extra", ["", *sorted(METADATA["optional-dependencies"].keys() - {"gpu"})])
def test_the_lock_satisfies_the_ranges_of_pyproject(extra):
    versions = locked()
    for text in METADATA["optional-dependencies"][extra] if extra else METADATA["dependencies"]:
        wanted = Requirement(text)
        if wanted.name != METADATA["name"]:
            found = versions.get(canonicalize_name(wanted.name), ["none"])
            fits = found != ["none"] and all(wanted.specifier.contains(version) for version in found)
            assert fits, f"pyproject.toml needs {text}, requirements.lock has {found}: run `make lock`"


def test_the_lock_has_a_hash_for_every_package_and_names_no_host():
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 100 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK and "--index" not in LOCK and "--find-links" not in LOCK
