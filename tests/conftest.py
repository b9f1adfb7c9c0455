"""Sets TensorFlow up once, before any test module imports keras, and holds what several test modules share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Each worker and its child processes get their own cores: two TensorFlow processes that share cores are far slower.
    workers, cores = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: workers] or cores)

from cifar_keras.utils import runtime

runtime.setup()

import keras  # noqa: E402
import pytest  # noqa: E402
from helpers import noise  # noqa: E402

from cifar_keras.config import Limits  # noqa: E402
from cifar_keras.data import load  # noqa: E402
from cifar_keras.data.base import Dataset  # noqa: E402

LONGEST = (  # files that take minutes start first, so that neither process waits long for the other at the end
    *("test_experiments.py", "test_analyse.py", "test_kill.py", "test_export.py", "test_notebooks.py"),
    *("test_features.py", "test_zoo.py", "test_study.py", "test_loading.py"),
)


def pytest_collection_modifyitems(items):
    """Sorts files by `LONGEST`; within a file tests keep their order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test begins in float32: a run that an earlier one made chooses bfloat16 on a processor with AMX."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test, and no process that one starts, touches the user's cache."""
    os.environ["CIFAR_KERAS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shapes():
    """The embedded set, small."""
    return load("shapes", limits=Limits(120, 40, 60))


@pytest.fixture
def noise_data():
    """A dataset of random pixels: nothing to learn, everything to count."""
    names = tuple("abcdefghij")
    return Dataset("noise", "noise", "0" * 64, names, noise(48), noise(20, seed=1), noise(20, seed=2))
