"""What several test files share: small data, models, records and configurations."""

import dataclasses
import json
import runpy
from pathlib import Path

import keras
import numpy as np
from keras import layers

from cifar_keras import results
from cifar_keras.commands.study import Entry
from cifar_keras.config import (
    Experiment,
    Limits,
    RunConfig,
    Stage,
    Training,
)
from cifar_keras.data.base import Split
from cifar_keras.explain.gradcam import GradCam
from cifar_keras.metrics import coarse_accuracy
from cifar_keras.models.zoo import MODELS
from cifar_keras.saved import artifacts
from cifar_keras.utils.paths import PROJECT, Paths

TINY = ["--dataset", "shapes", "--budget", "demo", "--limit", "200", "--epochs", "1"]

EXPERIMENT_FILES = sorted(  # by number: exp12 stands behind exp9
    (PROJECT / "experiments").glob("exp*.py"), key=lambda path: int(path.stem.partition("_")[0].removeprefix("exp"))
)


def experiment_of(path):
    return runpy.run_path(str(path))["EXPERIMENT"]


def noise(count, *, size=32, classes=10, seed=0):
    """A split of random pixels with balanced labels."""
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (count, size, size, 3)).astype("uint8")
    return Split(images, (np.arange(count) % classes).astype("int32"))


def tiny_network(x, *, momentum):
    """A backbone with every kind of layer that matters."""
    x = layers.Conv2D(6, 3, strides=4, name="conv")(x)
    x = layers.BatchNormalization(momentum=momentum, name="bn")(x)
    return layers.Dropout(0.3, name="dropout")(layers.Activation("relu", name="relu")(x))


TWO = Training("m", stages=(Stage(2, 1e-3, freeze_backbone=True), Stage(18, 1e-4)))


def config(**changes):
    plain = dict(
        experiment="exp3_finetune", number=3, variant="best", budget="full", dataset="cifar10", fingerprint="f" * 64,
        seed=0, weights="imagenet", precision="float32", deterministic=False, limits=Limits(), training=TWO,
        row={"name": "m", "pixels": 32, "images_per_second": 75, "source": "s"}, overrides={},
    )  # fmt: skip
    return RunConfig(**(plain | changes))


def record(**changes):
    """A finished full run of experiment 4 as results.csv has it."""
    return {
        "run_id": "exp4_1", "utc": "2026-01-01T00:00:00+00:00", "experiment": "exp4_scratch", "variant": "best",
        "budget": "full", "model": "scratch_cnn", "dataset": "CIFAR-10 (JPEG)", "fingerprint": "abc", "seed": 0,
        "weights": "none", "weights_called_for": "none", "precision": "float32",
        "train_accuracy": 0.98, "train_n": 5000, "val_accuracy": 0.9, "val_n": 5000,
        "test_accuracy": 0.896, "test_n": 10000, "parameters": 1972792,
        "training_seconds": 2520.0, "device": "2-core CPU", "published_test": 0.72, "status": "finished",
    } | changes  # fmt: skip


def entry(key, *variants, test=None):
    recipes = dict.fromkeys(variants, Training("scratch_cnn", (Stage(1, 0.1),)))
    number, _, name = key.removeprefix("exp").partition("_")
    published = {"test": test} if test else {}
    return Entry(Path(f"{key}.py"), "A question?", Experiment(int(number), name, recipes, published))


def store(root, *records):
    for place, one in enumerate(records):
        path = root / "results" / "runs" / f"{place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one | {"run_id": str(place)}))


ONE_EPOCH = Training("scratch_cnn", (Stage(1, 1e-3),))


def model_for(data, *, spatial=True, seed=0, precision="float32"):
    """A tiny classifier of the form that runs save."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(data.image_shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(x)
    if spatial:
        x = layers.Conv2D(6, 5, strides=3, activation="relu", dtype=precision, name="conv")(x)
        x = layers.GlobalAveragePooling2D(dtype=precision, name="head_pool")(x)
    else:
        x = layers.Dense(6, activation="relu", dtype=precision)(layers.Flatten()(x))
    logits = layers.Dense(len(data.class_names), dtype="float32", name="logits")(x)
    return artifacts.for_inference(keras.Model(inputs, logits))


def finished_run(root, data, *, key="exp4_scratch", run_id="run-1", name=None, limits=None, variant="best", **model):
    """A finished run as the runner leaves it, without its training. Returns its record."""
    limits = limits or Limits(len(data.train), len(data.val), len(data.test))
    made = config(
        experiment=key, number=int(key[3]), variant=variant, dataset=name or data.slug, fingerprint=data.fingerprint,
        weights="none", limits=limits, training=ONE_EPOCH, row=dataclasses.asdict(MODELS["scratch_cnn"]),
    )  # fmt: skip
    paths = Paths.of(made, root)
    network = model_for(data, **model)
    artifacts.save(network, paths, provenance={"run_id": run_id}, history={"epoch": [1]})
    probabilities = network.predict(np.asarray(data.test.images[np.arange(len(data.test))]), verbose=0)
    record = {
        "run_id": run_id, "utc": f"2026-01-01T00:00:0{run_id[-1]}+00:00", "experiment": key, "variant": variant,
        "budget": "full", "model": "scratch_cnn", "dataset": data.label, "fingerprint": data.fingerprint, "seed": 0,
        "weights": "none", "weights_called_for": "none", "status": "finished", "config": json.loads(made.identity),
        "test_accuracy": float(np.mean(probabilities.argmax(axis=1) == data.test.labels)), "test_n": len(data.test),
        "class_names": list(data.class_names), "training_seconds": 9.0, "published_test": None, "epochs": 1,
        "train_images": len(data.train), "val_n": len(data.val), "images_per_second": 10.0, "parameters": 10,
        "parameters_trainable": 10, "peak_memory_mb": 100,
    }  # fmt: skip
    if data.superclass_names:
        record["superclass_of"] = [label // 5 for label in range(100)]
        record["coarse_accuracy"] = coarse_accuracy(data.test.labels, probabilities, np.arange(100) // 5)
    results.write(root, record, predictions=(data.test.labels, probabilities))
    return record


COLOUR_NAMES = ["red", "green", "blue"]


COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def colour_model(*, uint8=True, scale=1.0, softmax=True, outputs=1):
    """Says which channel is brightest; of pixels divided by `scale`."""
    x = inputs = keras.Input((8, 8, 3), dtype="uint8" if uint8 else "float32")
    x = layers.Rescaling(1.0, dtype="float32")(x) if uint8 else x
    x = layers.Conv2D(3, 1, name="conv")(x)
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    y = layers.Softmax()(x) if softmax else x
    model = keras.Model(inputs, [y] * outputs if outputs > 1 else y)
    model.get_layer("conv").set_weights([np.eye(3)[None, None], np.zeros(3)])
    model.get_layer("logits").set_weights([np.eye(3) * scale, np.zeros(3)])
    return model


def gradcam(model, images, classes, *, layer=None):
    """The maps of `GradCam` for a model that is needed once."""
    return GradCam(model, layer=layer, size=np.shape(images[0])[:2])(images, classes)
