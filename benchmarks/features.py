"""What do stored features of a frozen backbone save, and what do they cost? Experiments 1 and 2, each both ways.

Run: python benchmarks/features.py [--full] [--weights FILE] [--dataset NAME|DIR]
Each side is a process that trains an experiment's best recipe and starts with an empty cache: through the backbone in
every epoch, or on features, whose extraction counts. The short form takes less than four minutes on 2 cores, the full
one about an hour: all 45,000 images, memory at 500 and 2,000 of them, and accuracy against the number of views, for
which `--weights` must name a file with a trained backbone.

Measured on 2 AVX-512 cores for the extraction, and left out: XLA on the forward pass (180 images/s at 32 pixels in
place of 1,000), BatchNorm folded into the convolutions (1.1 times as fast at 32 and at 224 pixels, for other last
digits), a graph of constants (the same 1.1, TensorFlow alone). Blocks of 500 images at 32 pixels are 1.1 times as fast
as blocks of 128; at 224, blocks of 16 to 64 are alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from measure import row

from cifar_keras.paths import PROJECT
from cifar_keras.units import duration

FROZEN, AUGMENTED = "4 frozen, ten epochs", "5 augmented, 224 pixels"
TRAIN = 45_000  # images of the study
VIEWS = (1, 2, 4, 8)


def trained(job):
    """Trains as a job says and measures it, in this process.

    Args:
        job: {"experiment", "dataset", "weights", "train", "val", "epochs", "views"}; `views` as in `config.Training`.
    Returns: {"seconds", "extraction", "accuracy", "peak"}: of everything, of the extraction in it, on val, MiB.
    """
    from cifar_keras import runtime

    runtime.setup()
    import dataclasses
    import runpy

    from cifar_keras import config, features
    from cifar_keras.datasets import load
    from cifar_keras.train import Resume, fit
    from cifar_keras.weights import load_backbone
    from cifar_keras.zoo import build, row_of

    training = runpy.run_path(PROJECT / "experiments" / job["experiment"])["EXPERIMENT"].variants["best"]
    model_row, limits = row_of(training), config.Limits(job["train"], job["val"], 10)
    dataset = load(job["dataset"], limits=limits)
    training = config.cut(training, config.BUDGETS["full"], images=job["train"], images_per_second=0)
    training = config.with_views(config.with_epochs(training, job["epochs"]), job["views"])
    names = {"experiment": "", "variant": "", "budget": "", "weights": "", "precision": "float32", "overrides": {}}
    facts = {"dataset": dataset.slug, "fingerprint": dataset.fingerprint, "row": dataclasses.asdict(model_row)}
    run = config.RunConfig(**names, **facts, number=0, seed=0, deterministic=False, limits=limits, training=training)
    model = build(model_row, image_shape=dataset.image_shape, classes=len(dataset.class_names), steps=1000, seed=0)
    if job["weights"]:
        load_backbone(model, Path(job["weights"]))
    with tempfile.TemporaryDirectory() as folder:
        resume, parts, start = Resume(Path(folder)), (model, model_row, dataset), time.perf_counter()
        progress = resume.load(run.identity)
        if features.applicable(model, model_row, training):
            parts = features.extracted(*parts, run, resume=resume, progress=progress)
        fit(*parts, training, seed=0, resume=resume, progress=progress)
        seconds = time.perf_counter() - start
    extraction = progress.feature_seconds(cached=False)
    accuracy, peak = progress.best[0], runtime.peak_memory_mb()
    return {"seconds": seconds, "extraction": extraction, "accuracy": accuracy, "peak": peak}


def measured(cache, **job):
    """What `trained` returns, from a process whose cache is the folder `cache`."""
    environment = os.environ | {"CIFAR_KERAS_CACHE": cache}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(full, *, dataset="shapes", weights=None):
    """Both experiments.

    Args:
        full: whether to take all images, and to compare numbers of views.
        dataset: as `--dataset`.
        weights: path of a file with a trained backbone, or None for random weights.
    Returns: list of dicts.
    """
    job = {"dataset": dataset, "weights": weights}
    with tempfile.TemporaryDirectory() as cache:  # no two of them share features, but for those that add views
        lines = frozen(cache, job, count=TRAIN if full else 8000)
        lines += memory(cache, job, counts=(500, 2000) if full else (125, 500))
        if not full or not weights:
            return [*lines, row(AUGMENTED, "accuracy against views", note="not measured: --full --weights FILE")]
        return lines + accuracy(cache, job)


def frozen(cache, job, *, count):
    """Ten epochs of experiment 1 on that many images, through the backbone and on features."""
    job = job | {"experiment": "exp1_frozen.py", "train": count, "val": count // 9, "epochs": 10}
    direct = measured(cache, **job, views=0)
    stored = measured(cache, **job, views=None)
    ratio = direct["seconds"] / stored["seconds"]
    parts = f"{stored['extraction']:.1f} s of it extraction"
    return [
        row(FROZEN, f"through the backbone, {count:,} images", direct["seconds"], "s"),
        row(FROZEN, "features", stored["seconds"], "s", ratio=ratio, target="at least 8 x", met=ratio >= 8, note=parts),
        row(FROZEN, "through the backbone", direct["accuracy"], "val accuracy", note=f"{direct['peak']:,} MiB"),
        row(FROZEN, "features", stored["accuracy"], "val accuracy", note=f"{stored['peak']:,} MiB"),
    ]


def memory(cache, job, *, counts):
    """Time and memory of extracting one view at 224 pixels of fewer and of more images, and what all would take."""
    job = job | {"experiment": "exp2_augment_224.py", "val": 32, "epochs": 1, "views": 1}
    few, many = (measured(cache, **job, train=count) for count in counts)
    pace = (many["extraction"] - few["extraction"]) / (counts[1] - counts[0])  # without what both spend on starting
    met = many["peak"] < 3000 and many["peak"] < 1.05 * few["peak"]
    full = [
        row(AUGMENTED, f"extrapolated: {TRAIN:,} images, {views} views", pace * TRAIN * views / 3600, "h")
        for views in VIEWS
    ]
    return [
        row(AUGMENTED, "extraction", pace, "s/image", note=f"{1 / pace:.1f} images/s"),
        row(AUGMENTED, f"peak memory, {counts[0]:,} images", few["peak"], "MiB"),
        row(
            AUGMENTED,
            f"peak memory, {counts[1]:,} images",
            many["peak"],
            "MiB",
            ratio=many["peak"] / few["peak"],
            target="at most 1.05 x the other, below 3,000",
            met=met,
        ),
        *full,
    ]


def accuracy(cache, job):
    """Accuracy on val of 1,000 training images, against the number of views and with augmentation on the fly."""
    job = job | {"experiment": "exp2_augment_224.py", "train": 1000, "val": 1000, "epochs": 10}
    found = {f"{views} views": measured(cache, **job, views=views) for views in VIEWS}  # each adds some
    found["on the fly"] = measured(cache, **job, views=0)
    return [
        row(AUGMENTED, side, one["accuracy"], "val accuracy", note=f"1,000 images, {duration(one['seconds'])}")
        for side, one in found.items()
    ]


def main():
    """Prints the rows and the hardware."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all images, and accuracy against views")
    parser.add_argument("--dataset", default="shapes", help="default shapes")
    parser.add_argument("--weights", help="a file with a trained backbone; default random weights")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print("\n" + json.dumps(trained(json.loads(options.job))))
        return
    print(measure.hardware(), flush=True)
    print(measure.table(rows(options.full, dataset=options.dataset, weights=options.weights), "plain"))


if __name__ == "__main__":
    main()
