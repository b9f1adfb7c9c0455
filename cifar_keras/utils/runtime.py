"""What must be set before TensorFlow loads, and what the machine turns out to be. Imports nothing heavy at the top."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import warnings

from cifar_keras.config import ConfigError
from cifar_keras.utils.paths import PROJECT


def setup(*, verbose=False):
    """Sets the environment that TensorFlow reads at import; call it before any module that imports keras.

    What the user has set stays. oneDNN trains several times faster on x86 CPUs where TensorFlow does not turn it on by
    itself.

    Args:
        verbose: leave TensorFlow's messages on.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if verbose:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", message=".*HDF5 file.*legacy.*")
    _load_tensorflow_quietly()


def _load_tensorflow_quietly():
    with silent():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")
    tf.get_logger().setLevel("ERROR")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)  # "HDF5 is legacy" on every .h5 that is part of this project


@contextlib.contextmanager
def silent():
    """Closes file descriptor 2 to lines of C++ libraries that no log level reaches."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def apply(*, precision, deterministic):
    """Sets the precision policy and determinism for this process.

    Args:
        precision: a Keras policy name, from `choose_precision`.
        deterministic: make every TensorFlow kernel reproducible, at some cost in speed.
    Raises: ConfigError if the backend can't.
    """
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(precision)
    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # tf.data would take memory from the backend that computes
    if deterministic:
        if keras.backend.backend() != "tensorflow":
            raise ConfigError(f"`--deterministic` needs the TensorFlow backend. Received: {keras.backend.backend()}.")
        tf.config.experimental.enable_op_determinism()


def choose_precision(asked):
    """Resolves 'auto': 16 bit on the GPUs that gain by it, float32 elsewhere.

    bfloat16 from compute capability 8.0 (Ampere: needs no loss scaling), float16 from 7.0 (Volta: tensor cores),
    float32 on CPUs, most of which only emulate 16 bit, and on older GPUs.
    """
    if asked != "auto":
        return asked
    _, capability = gpu() or (None, (0, 0))
    if capability < (7, 0):
        return "float32"
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"


def gpu():
    """The first GPU that the Keras backend computes on: `(name, (major, minor))` CUDA capability; None without one."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        found = [device for device in jax.devices() if device.platform == "gpu"]
        return (found[0].device_kind, _version(found[0].compute_capability)) if found else None
    if keras.backend.backend() == "torch":
        import torch

        available = torch.cuda.is_available()
        return (torch.cuda.get_device_name(), torch.cuda.get_device_capability()) if available else None
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    return (details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))) if gpus else None


def _version(text):
    return tuple(int(part) for part in text.split("."))


def environment():
    """Where a run takes place, as columns of its record."""
    import keras
    import tensorflow as tf

    return {
        "backend": keras.backend.backend(),
        "device": device(),
        "cores": None if gpu() else cores(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }


def device():
    """The first GPU's name, else the CPU's model and the number of cores this process may use."""
    if found := gpu():
        return found[0]
    return f"{cpu_name()}, {cores()} core{'s' if cores() > 1 else ''}"


def version(package):
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores():
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_name():
    """The processor's model, and whether it has AVX-512."""
    wide = " (AVX-512)" if "avx512f" in cpu_flags() else ""
    return f"{_cpu().get('model name') or platform.processor() or platform.machine()}{wide}"


def cpu_flags():
    """What an x86 processor can do, in Linux' words (`avx2`, `fma`); empty where nothing says so."""
    return frozenset(_cpu().get("flags", "").split())


def _cpu():
    """The last processor's fields in /proc/cpuinfo; none where there is no such file."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, value in lines.items()}


def git_commit():
    """The project's commit, with `+` where tracked files differ from it; None outside a checkout."""

    def git(*arguments):
        return subprocess.run(
            ("git", *arguments), cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb():
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
