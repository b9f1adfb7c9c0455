"""Whatever byte of a saved model is wrong: a prediction or a sentence, no stack trace, no crash."""

import copy
import json
import random
import shutil
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from cifar_keras.saved import artifacts, export, inference
from cifar_keras.utils.paths import PROJECT, Paths

COPIES = 150
CHILD = """
import sys
import numpy as np
from cifar_keras import inference
from cifar_keras.config import ConfigError
for path in sys.argv[1:]:
    try:
        classifier = inference.load(path)
        outcome = classifier.predict(np.zeros((2, *classifier.size, 3), "uint8")).shape
    except ConfigError as error:
        outcome = "refused"
    print(path, outcome, flush=True)
"""
NONSENSE = (
    *(None, True, -1, 0, 10**9, 2**63, 1e30, float("nan"), "", "x", [], [[[]]], {}, ["a"]),
    *({"class_name": name, "config": config} for name in ("Dense", "Functional") for config in ({}, {"layers": []})),
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network in every format, by name."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3), dtype="uint8", name="image")
    x = shortcut = layers.Conv2D(8, 3, padding="same")(layers.Rescaling(1 / 255, dtype="float32")(x))
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(2)(layers.Add()([layers.Conv2D(8, 3, padding="same")(x), shortcut]))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    paths = Paths(tmp_path_factory.mktemp("model"), "m", "model")
    artifacts.save(artifacts.for_inference(model), paths, provenance={"class_names": list("abcd")}, history={})
    found, classifier = {"keras": paths.keras, "h5": paths.h5}, inference.load(paths.keras)
    calibration = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype="uint8")
    for to, form in export.FORMATS.items():
        found[to] = paths.keras.with_name(f"{to}{form.ending}")
        export.convert(classifier, to, found[to], calibration)
    return found


def outcomes(paths):
    """What becomes of files in a process of its own, by path."""
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-300:] + done.stderr[-2000:]
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert list(found) == list(map(str, paths)), done.stdout
    return list(found.values())


@pytest.mark.parametrize("name", ["keras", "h5", *export.FORMATS])
def test_wrong_bytes(name, files, tmp_path):
    source, draw, paths = files[name].read_bytes(), random.Random(name), []
    for number in range(COPIES):
        content = bytearray(source)
        for _ in range(draw.choice((1, 4, 16))):
            content[draw.randrange(len(content))] = draw.choice((0, 127, 128, 255, draw.randrange(256)))
        content = content[: draw.randrange(len(content))] if number % 3 == 0 else content
        paths.append(tmp_path / f"{number}{files[name].suffix}")
        paths[-1].write_bytes(content)
    *damaged, whole = outcomes([*paths, files[name]])
    assert "refused" in damaged and whole == "(2, 4)"


def test_nonsense_among_the_settings(files, tmp_path):
    with h5py.File(files["h5"]) as file:
        whole = json.loads(file.attrs["model_config"])
    draw, paths = random.Random(0), []
    for number in range(2 * COPIES):
        config = copy.deepcopy(whole)
        *way, last = draw.choice(list(places(config)))
        inner = config
        for key in way:
            inner = inner[key]
        inner[last] = draw.choice(NONSENSE)
        paths.append(shutil.copy(files["h5"], tmp_path / f"{number}.h5"))
        with h5py.File(paths[-1], "a") as file:
            file.attrs["model_config"] = json.dumps(config)
    assert set(outcomes(paths)) >= {"refused", "(2, 4)"}


def places(value, way=()):
    """The way to everything in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from places(inner, (*way, key))
