"""`cifar-keras doctor`: what this machine has, what is missing, how to fix it. Downloads nothing.

Modules that need an installed package are imported where they are used: a broken package costs only its own lines.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import textwrap
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cifar_keras.config import ConfigError
from cifar_keras.utils import runtime, system
from cifar_keras.utils.cache import cache_folder
from cifar_keras.utils.paths import CHECKOUT, keras_cache, search_paths

WIDTH = 100  # columns
LOW = 3 * 2**30  # bytes of memory and of disk: a run of the study needed up to 2.5 GiB and writes up to 0.5
MEASURED, STEP_IMAGES = "scratch_cnn", 100  # the model that `--measure` trains, and the images of a step
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# With one of these, TensorFlow 2.21 turns oneDNN on by itself (DefaultOneDnnPolicy in tensorflow/core/util/port.cc).
ONEDNN_FLAGS = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
BACKENDS = {  # backend -> how to make it find an NVIDIA GPU
    "tensorflow": "`pip install 'tensorflow[and-cuda]'` adds the CUDA libraries that TensorFlow looks for.",
    "jax": "`pip install 'jax[cuda12]'` adds the CUDA libraries that JAX looks for.",
    "torch": "Install the CUDA build of PyTorch, see https://pytorch.org/get-started/locally.",
}
REINSTALL = (
    "Reinstall it: remove .venv and run `make setup`; in another environment, repeat your `pip install` command with "
    "`--force-reinstall`."
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: the heading under which it is shown.
        name: of the thing that was checked.
        value: what was found, as text.
        status: 'ok'; 'missing': it is absent or unusable; 'warning': it is there, but runs suffer from it; 'info'.
        advice: how to fix it, in one sentence; empty if there is nothing to fix.
    """

    area: str
    name: str
    value: str
    status: str = "ok"
    advice: str = ""


def run(*, root, data_dir=None, measure=False, as_json=False):
    """Checks everything and prints the findings. Call it before `runtime.setup`, which changes the line on oneDNN.

    `measure` also times training in float32 and bfloat16, which takes a minute or two.

    Returns: exit code 0, whatever is missing.
    """
    findings = examine(root=root, data_dir=data_dir, measure=measure)
    print(to_json(findings) if as_json else to_text(findings))
    return 0


def examine(*, root, data_dir=None, measure=False):
    """All findings, in the order in which they are shown."""
    given = dict(os.environ)  # `runtime.setup` adds to it
    root = Path(root).absolute()
    checks = (
        ("tensorflow", tensorflow),
        ("machine", lambda: machine(given)),
        ("backend", lambda: backends(given)),
        ("backend", lambda: precision(backend_of(given)[0])),
        ("backend", lambda: measured_precisions() if measure else ()),
        ("packages", packages),
        ("project", project),
        ("data", lambda: datasets(data_dir)),
        ("data", lambda: imagenet(data_dir)),
        ("disk", lambda: disks(root)),
    )
    return [finding for area, check in checks for finding in _checked(area, check)]


def _checked(area, check):
    """The findings of `check`. If it fails (a broken package, say), that is a finding too, and the others still run."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001
        advice = "Fix the problems above first; if there are none, reinstall the package that is named here."
        yield Finding(area, f"{area}, the rest", f"could not be checked: {_sentence(error)}", "warning", advice)


def _sentence(error):
    first = next(iter(str(error).splitlines()), "")
    return textwrap.shorten(f"{type(error).__name__}: {first}", 300)


def tensorflow():
    """TensorFlow's version and build, after `runtime.setup`. However its import fails, that is a finding."""
    try:
        runtime.setup()
        import tensorflow as tf
    except Exception as error:  # noqa: BLE001
        return [Finding("tensorflow", "version", f"can't be imported: {_sentence(error)}", "missing", REINSTALL)]
    version = package("tensorflow", tf.__version__, _requirements()["tensorflow"])
    build = tf.sysconfig.get_build_info()
    made_for = "CPU"
    if build.get("is_cuda_build"):
        made_for = f"CUDA {build.get('cuda_version', '?')}, cuDNN {build.get('cudnn_version', '?')}"
    elif build.get("is_rocm_build"):
        made_for = "ROCm"
    return [
        dataclasses.replace(version, area="tensorflow", name="version"),
        Finding("tensorflow", "build", made_for, "info"),
    ]


def machine(environment):
    """Processor, oneDNN and memory."""
    flags = system.cpu_flags()
    available, lacking = ([flag for flag in FLAGS if (flag in flags) == has] for has in (True, False))
    yield Finding("machine", "cpu", system.cpu_name(), "info")
    yield Finding("machine", "cores", f"{system.cores()} of {os.cpu_count()} for this process", "info")
    yield Finding(
        "machine", "flags", f"{' '.join(available) or 'none'}; not available: {' '.join(lacking) or 'none'}", "info"
    )
    yield onednn(flags, environment)
    yield from _memory()


def onednn(flags, environment):
    """Whether TensorFlow uses oneDNN, and why, by `system.cpu_flags()` and the environment before `runtime.setup`."""
    given = environment.get(ONEDNN)
    by_default = f"TensorFlow's own default for this CPU is {'on' if flags & ONEDNN_FLAGS else 'off'}"
    if not flags:
        by_default = "TensorFlow's own default for this CPU is not known"
    slow = f"Unset {ONEDNN}, unless you need identical digits: without it, training on a CPU is several times slower."
    on, off = (f"on: {ONEDNN}={given} is set", ""), (f"off: {ONEDNN}={given} is set", slow)
    known = {None: (f"on: we set {ONEDNN}=1", ""), "1": on, "true": on, "0": off, "false": off}
    neither = (f"{ONEDNN}={given} is neither 0 nor 1 and is ignored", f"Set {ONEDNN} to 1, or unset it.")
    value, advice = known.get(given and given.lower(), neither)
    return Finding("machine", "oneDNN", f"{value}; {by_default}", "warning" if advice else "ok", advice)


def _memory():
    """The machine's memory, and how much of it is available, if the system reports them."""
    if found := system.memory():
        total, available = found
        value = f"{_size(available)} available of {_size(total)}"
        yield _enough("machine", "memory", available, value, "Close programs")


def _enough(area, name, amount, value, remedy):
    """A finding on an amount of bytes; it is a warning with the remedy if there are fewer than `LOW`."""
    if amount >= LOW:
        return Finding(area, name, value)
    return Finding(area, name, value, "warning", f"{remedy}: a run may need up to {_size(LOW)}.")


def _size(amount):
    """Bytes in a readable unit: `12.0 MiB`, `1.5 GiB`."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"


def backend_of(environment):
    """The backend that Keras uses, and the source of that setting, for example `('jax', 'KERAS_BACKEND')`.

    Asking Keras itself would load the backend.
    """
    file = keras_cache("keras.json")
    if name := environment.get("KERAS_BACKEND"):
        return name, "KERAS_BACKEND"
    try:
        return json.loads(file.read_text(encoding="utf-8"))["backend"], str(file)
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow", "Keras' default"


def backends(environment):
    """The backend in use, and the others that are installed. Imports none of them."""
    name, source = backend_of(environment)
    installed = importlib.util.find_spec(name) is not None
    advice = f"`pip install {name}`, or choose another: KERAS_BACKEND=tensorflow."
    if installed:
        yield Finding("backend", "in use", f"{name} (from {source})")
    else:
        yield Finding("backend", "in use", f"{name} (from {source}), which is not installed", "missing", advice)
    for other in BACKENDS:
        if other != name:
            version = runtime.version(other) or ("installed" if importlib.util.find_spec(other) else "not installed")
            yield Finding("backend", other, version, "info")


def precision(backend):
    """The GPU that the backend uses, and the precision that `--precision auto` chooses here."""
    yield gpu(runtime.gpu(), backend, driver=system.has_nvidia_driver())
    choices = {gains: runtime.choose_precision("auto", gains_on_amx=gains) for gains in (True, False)}
    text = ": ".join(choices[False])
    if choices[True] != choices[False]:
        from cifar_keras.models.zoo import MODELS

        gaining = ", ".join(name for name, row in MODELS.items() if row.gains_on_amx)
        text = f"{choices[True][0]} for {gaining}: {choices[True][1]}; {choices[False][0]} for other models"
    yield Finding("backend", "--precision auto", text, "info")


def measured_precisions(policies=("float32", "mixed_bfloat16")):
    """How fast this machine trains the small CNN in either precision: bare steps of 100 images, taking turns."""
    runtime.setup()
    import keras

    usual, steps = keras.config.dtype_policy(), {}
    try:
        for policy in policies:
            keras.config.set_dtype_policy(policy)
            steps[policy] = _training_step()
    finally:
        keras.config.set_dtype_policy(usual)
    seconds = {policy: [] for policy in policies}
    for _ in range(5):
        for policy, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[policy].append(time.perf_counter() - start)
    speeds = [STEP_IMAGES / statistics.median(seconds[policy]) for policy in policies]
    ratio = f" ({speeds[1] / speeds[0]:.2f} x)"
    for policy, speed, note in zip(policies, speeds, ("", ratio), strict=True):
        yield Finding("backend", f"{MEASURED}, {policy}", f"{speed:.1f} images/s{note}", "info")


def _training_step():
    """A function that trains the small CNN for one step, on noise; it has run once, so that it is compiled."""
    import numpy as np

    from cifar_keras.models import zoo
    from cifar_keras.models.fused import fused_kernels
    from cifar_keras.training.optim import CrossEntropy, Muon

    row = zoo.MODELS[MEASURED]
    images = np.random.default_rng(0).integers(0, 256, (STEP_IMAGES, 32, 32, 3), "uint8")
    labels = np.arange(STEP_IMAGES) % 10
    model = zoo.build(row, image_shape=images.shape[1:], classes=10, steps=100, seed=0)
    zoo.set_trainable(model, row, freeze_backbone=False)
    model.compile(Muon(0.1), CrossEntropy(0.2))
    with fused_kernels(model):
        model.train_on_batch(images, labels)
    return lambda: model.train_on_batch(images, labels)


def gpu(found, backend, *, driver):
    """The finding on the GPU `found` by `runtime.gpu`; `driver` is whether an NVIDIA driver is loaded."""
    if found:
        name, capability = found
        return Finding("backend", "gpu", f"{name}, compute capability {'.'.join(map(str, capability))}")
    if driver:
        value = f"none that {backend} can use, although an NVIDIA driver is loaded"
        return Finding("backend", "gpu", value, "warning", BACKENDS.get(backend, BACKENDS["tensorflow"]))
    return Finding("backend", "gpu", "none", "info")


def packages():
    """Python and the required packages, compared with the versions that were tested together."""
    yield Finding("packages", "python", platform.python_version(), "info")
    for name, requirement in _requirements().items():
        if name != "tensorflow":  # it has lines of its own, and its distribution may have another name
            yield package(name, runtime.version(name), requirement)
    from cifar_keras.training.tensorboard import REQUIREMENT  # loads Keras, which may fail: last

    board = runtime.version("tensorboard")
    advice = "" if board else f"`pip install '{REQUIREMENT}'` makes `--track tensorboard` work."
    yield Finding("packages", "tensorboard", board or "not installed (optional)", "info", advice)


def package(name, version, requirement):
    """The finding on one required package, whose installed version is None where it is absent."""
    if version is None:
        return Finding("packages", name, "not installed", "missing", f"`pip install '{requirement}'`.")
    if requirement.specifier.contains(version, prereleases=True):
        return Finding("packages", name, version)
    value = f"{version}, tested with {requirement.specifier}"
    return Finding("packages", name, value, "warning", f"`pip install '{requirement}'` installs a tested version.")


def _requirements():
    """The package's requirements without extras, `packaging.Requirement` by name."""
    from packaging.requirements import Requirement

    if CHECKOUT:
        stated = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        stated = importlib.metadata.requires("cifar-keras")
    found = (Requirement(text) for text in stated or ())
    return {one.name: one for one in found if not (one.marker and "extra" in str(one.marker))}


def project():
    """The code's commit."""
    commit = runtime.git_commit()
    yield Finding("project", "commit", commit or "none: the code is not in a git checkout", "info")


def datasets(data_dir):
    """Where the published archives are, and whether their content is the published one."""
    from cifar_keras.data import cifar

    if data_dir is not None and not Path(data_dir).is_dir():
        advice = "Give a folder that exists, or leave the option out."
        yield Finding("data", "--data-dir", f"{data_dir} is not a folder", "missing", advice)
    for archive in cifar.ARCHIVES.values():
        file = f"{archive.file} ({archive.url}, SHA-256 {archive.sha256})"
        yield _published(
            archive.label, file, cifar.find(archive, data_dir), search_paths(data_dir, "datasets"),
            check=lambda source, archive=archive: cifar.check(archive, source),
        )  # fmt: skip


def imagenet(data_dir):
    """Where the ImageNet weights are. Importing `weights` loads Keras, which may fail."""
    from cifar_keras.models import weights

    for backbone, published in weights.published().items():
        file = f"{published.name} ({published.url}, {published.algorithm.upper()} {published.checksum})"
        yield _published(
            f"{backbone}, ImageNet", file, weights.find_imagenet(backbone, data_dir=data_dir),
            search_paths(data_dir, "models"),
            check=lambda source, published=published: weights.checked(source, published), install=published.install,
        )  # fmt: skip


def _published(name, file, source, searched, *, check, install=None):
    """The finding on a published file, described by `file`, in the folders that were searched.

    `source` is the path where it was found, or None; `check` raises ConfigError unless it has the published checksum.
    `install` is the command that brings the file; without one it is downloaded.
    """
    if source is None:
        where = "; ".join(f"{place}{'' if place.is_dir() else ' (no such folder)'}" for place in searched)
        comes = f"`{install}` brings it" if install else "A run that needs it downloads it; without a network"
        advice = f"{comes}, {'or ' if install else ''}put {file} into one of these folders."
        return Finding("data", name, f"not in {where}", "missing", advice)
    try:
        check(source)
    except ConfigError as error:
        return Finding("data", name, f"{source} differs from the published file", "warning", str(error))
    return Finding("data", name, f"{source}, {_size(_total(source))}, checksum as published")


def _total(path):
    """The bytes of a file, or of all files in a folder and below."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def disks(root):
    """The folders for runs, downloads and decoded images: their free space, and whether they can be written."""
    decoded = cache_folder()
    held = f"{_size(_total(decoded))} used" if decoded.is_dir() else "not created yet"
    yield _place("root", root, "Choose a folder that can be written to: `--root DIR`.")
    yield _place("Keras cache", keras_cache(""), "Set KERAS_HOME to a folder that can be written, or use `--data-dir`.")
    yield _place("cache", decoded, "Set CIFAR_KERAS_CACHE to a folder that can be written.", note=f", {held}")


def _place(name, folder, advice, *, note=""):
    """The finding on a folder that runs write to; tries a nameless file in its nearest existing parent."""
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Finding("disk", name, f"{folder} can't be written: {error.strerror}", "missing", advice)
    return _enough("disk", name, free, f"{folder} can be written, {_size(free)} free{note}", "Free some space there")


def summary(findings):
    """The closing line: `2 items missing, 1 warning`."""
    missing, warnings = (_count(findings, status) for status in ("missing", "warning"))
    things = f"{missing} item{'s' * (missing > 1)}" if missing else "nothing"
    return f"{things} missing, {warnings or 'no'} warning{'s' * (warnings != 1)}"


def _count(findings, status):
    return sum(finding.status == status for finding in findings)


def to_text(findings):
    """Aligned lines of at most 100 columns (a long word is not broken), arrows before advice, and the closing line."""
    column = max(len(finding.name) for finding in findings)
    lines = []
    for area, group in itertools.groupby(findings, key=lambda finding: finding.area):
        lines.append(area)
        for finding in group:
            start = f"  {finding.status:7}  {finding.name:{column}}  "
            lines += _wrapped(finding.value, start, len(start))
            if finding.advice:
                lines += _wrapped(finding.advice, f"{' ' * len(start)}-> ", len(start) + 3)
        lines.append("")
    return "\n".join([*lines, summary(findings)])


def _wrapped(text, start, indent):
    indents = {"initial_indent": start, "subsequent_indent": " " * indent}
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False, **indents)


def to_json(findings):
    """The findings, and the numbers of missing items and warnings, as indented JSON."""
    listed = [dataclasses.asdict(finding) for finding in findings]
    counts = {"missing": _count(findings, "missing"), "warnings": _count(findings, "warning")}
    return json.dumps({"findings": listed, **counts}, indent=1)
