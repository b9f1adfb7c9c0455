"""What do stored features of a frozen backbone save? Experiment 1 both ways, and the cost of experiment 2's.

Run: python benchmarks/features.py [--full]
Each process trains the best recipe of an experiment and starts with an empty cache. It either sends every epoch through
the backbone or trains on features, whose extraction counts. The short form takes 8,000 images and four minutes on 2
cores, the full one all 45,000. `views.py` measures what views do to accuracy and memory. docs/speed.md lists what was
tried for the extraction without success.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import row

from cifar_keras.utils.paths import PROJECT

FROZEN, AUGMENTED = "4 frozen, ten epochs", "5 augmented, 224 pixels"
TRAIN = 45_000  # images of the study
VIEWS = (1, 4, 10)


def trained(job):
    """Trains as a job says and measures it, in this process.

    Args:
        job: {"experiment", "dataset", "weights", "train", "val", "epochs", "views"}; `views` as in `config.Training`.
    Returns: {"seconds", "extraction", "accuracy", "peak"}: of everything, of the extraction in it, on val, MiB.
    """
    from cifar_keras.utils import runtime, system

    runtime.setup()
    import runpy

    from cifar_keras import config
    from cifar_keras.data import load
    from cifar_keras.models.weights import load_backbone
    from cifar_keras.models.zoo import build, row_of
    from cifar_keras.training import features
    from cifar_keras.training.train import Resume, fit

    training = runpy.run_path(PROJECT / "experiments" / job["experiment"])["EXPERIMENT"].variants["best"]
    model_row, limits = row_of(training), config.Limits(job["train"], job["val"], 10)
    dataset = load(job["dataset"], limits=limits)
    training = config.cut(training, config.BUDGETS["full"], images=job["train"], images_per_second=0)
    training = dataclasses.replace(config.with_epochs(training, job["epochs"]), views=job["views"])
    model = build(model_row, image_shape=dataset.image_shape, classes=len(dataset.class_names), steps=1000, seed=0)
    if job["weights"]:
        load_backbone(model, Path(job["weights"]))
    with tempfile.TemporaryDirectory() as folder:
        resume, parts, start = Resume(Path(folder)), (model, model_row, dataset), time.perf_counter()
        progress = resume.load("a benchmark")
        if features.applicable(model, model_row, training):
            parts = features.extracted(*parts, training, seed=0, deterministic=False, resume=resume, progress=progress)
        fit(*parts, training, seed=0, resume=resume, progress=progress)
        seconds = time.perf_counter() - start
    extraction = progress.feature_seconds(cached=False)
    accuracy, peak = progress.best[0], system.peak_memory_mb()
    return {"seconds": seconds, "extraction": extraction, "accuracy": accuracy, "peak": peak}


def outcome(cache, **job):
    """What `trained` returns, from a process with this cache; by default on shapes and from random weights."""
    environment = os.environ | {"CIFAR_KERAS_CACHE": cache}
    job = {"dataset": "shapes", "weights": None} | job
    os.sync()  # this process should not wait for what the one before has left to write
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(full):
    """Both experiments."""
    with tempfile.TemporaryDirectory() as cache:  # they share no features
        return [*frozen(cache, count=TRAIN if full else 8000), *extraction(cache, counts=(125, 500))]


def frozen(cache, *, count):
    """Ten epochs of experiment 1 on that many images, through the backbone and on features."""
    job = {"experiment": "exp1_frozen.py", "train": count, "val": count // 9, "epochs": 10}
    direct = outcome(cache, **job, views=0)
    stored = outcome(cache, **job, views=None)
    ratio = direct["seconds"] / stored["seconds"]
    parts = f"{stored['extraction']:.1f} s of it extraction"
    return [
        row(FROZEN, f"through the backbone, {count:,} images", direct["seconds"], "s"),
        row(FROZEN, "features", stored["seconds"], "s", ratio=ratio, target="at least 8 x", met=ratio >= 8, note=parts),
        row(FROZEN, "through the backbone", direct["accuracy"], "val accuracy", note=f"{direct['peak']:,} MiB"),
        row(FROZEN, "features", stored["accuracy"], "val accuracy", note=f"{stored['peak']:,} MiB"),
    ]


def extraction(cache, *, counts):
    """The speed at 224 pixels, from the difference between more images and fewer, and the time for all images."""
    job = {"experiment": "exp2_augment_224.py", "val": 32, "epochs": 1, "views": 1}
    few, many = (outcome(cache, **job, train=count)["extraction"] for count in counts)
    pace = (many - few) / (counts[1] - counts[0])  # without what both spend on starting
    return [
        row(AUGMENTED, "extraction", 1 / pace, "images/s"),
        *(
            row(AUGMENTED, f"extrapolated: {TRAIN:,} images, {views} views", pace * TRAIN * views / 3600, "h")
            for views in VIEWS
        ),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        print("\n" + json.dumps(trained(json.loads(sys.argv[2]))))
    else:
        measure.main(__doc__, rows)
