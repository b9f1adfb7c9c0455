"""Settings that TensorFlow needs before it loads, and where a run takes place. Imports TensorFlow only in functions."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import warnings

from cifar_keras.config import ConfigError
from cifar_keras.utils.paths import CHECKOUT
from cifar_keras.utils.system import cores, cpu_flags, cpu_name


def setup(*, verbose=False):
    """Sets the environment that TensorFlow reads at import; call it before any module that imports keras.

    It keeps what the user has set. oneDNN makes training several times faster; by default, TensorFlow uses it only on
    some x86 CPUs.

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
    """Discards stderr, for messages of C++ libraries that no log level turns off."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def apply(*, precision, deterministic):
    """Sets the precision policy and determinism for this process.

    Args:
        precision: a Keras policy name, see `choose_precision`.
        deterministic: make every TensorFlow kernel reproducible, at some cost in speed.
    Raises: ConfigError if the backend has no deterministic mode.
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


def choose_precision(asked, *, gains_on_amx=False, deterministic=False):
    """The precision policy of a run, and why `auto` chose it.

    On GPUs, bfloat16 from compute capability 8.0 (Ampere: needs no loss scaling), float16 from 7.0 (Volta: tensor
    cores). On CPUs, bfloat16 where the processor multiplies matrices in it (AMX) and the model was measured to gain.
    Other flags are no proof: of two processors with AVX512-BF16, one gained 1.3 and one lost half (`docs/speed.md`).

    Args:
        asked: 'auto' or a policy's name.
        gains_on_amx: the model's column in `zoo.MODELS`.
        deterministic: whether runs must repeat bit for bit; `auto` then is float32.
    Returns: `(policy, reason)`.
    """
    if asked != "auto":
        return asked, "`--precision` names it"
    if deterministic:
        return "float32", "`--deterministic` keeps it unless `--precision` names another"
    if found := gpu():
        if found[1] < (7, 0):
            return "float32", "the GPU is too old to gain from 16 bit"
        if found[1] < (8, 0):
            return "mixed_float16", "the GPU has tensor cores"
        return "mixed_bfloat16", "the GPU has tensor cores for bfloat16, which needs no loss scaling"
    return _choose_for_cpu(gains_on_amx=gains_on_amx)


def _choose_for_cpu(*, gains_on_amx):
    import keras

    if "amx_bf16" not in cpu_flags():
        return "float32", "there is no GPU, and this processor has no AMX, without which bfloat16 may be slower"
    if keras.backend.backend() != "tensorflow":
        return "float32", f"bfloat16 with AMX was not measured with {keras.backend.backend()} on a CPU"
    if not gains_on_amx:
        return "float32", "this model was not measured to gain from bfloat16 with AMX"
    return "mixed_bfloat16", "this processor has AMX, and bfloat16 was measured to gain"


def gpu():
    """The first GPU that the Keras backend computes on: `(name, (major, minor))` CUDA capability; None without one."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        found = [device for device in jax.devices() if device.platform == "gpu"]
        return (found[0].device_kind, tuple(map(int, found[0].compute_capability.split(".")))) if found else None
    if keras.backend.backend() == "torch":
        import torch

        available = torch.cuda.is_available()
        return (torch.cuda.get_device_name(), torch.cuda.get_device_capability()) if available else None
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    return (details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))) if gpus else None


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
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit():
    """The checkout's commit, with `+` if tracked files differ from it; None outside a checkout."""
    if CHECKOUT is None:
        return None

    def git(*arguments):
        return subprocess.run(
            ("git", *arguments), cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
