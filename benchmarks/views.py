"""Experiment 2's stored views: does memory stay flat, and how does their number affect accuracy?

Run: python benchmarks/views.py [--full]
Memory: one view at 224 pixels of 500 and of 2,000 images, each in a process. Accuracy, with `--full`: 1,000 training
and 1,000 val images from the folder that CIFAR_KERAS_IMAGES names, with the weights of this project's newest full run
of experiment 3 on those images, for several numbers of views and for augmentation on the fly. One seed and 1,000 images
show differences of three points at best. No times are measured, so other work may run on the machine.
"""

import os
import tempfile
from pathlib import Path

import measure
from features import AUGMENTED, VIEWS, outcome
from measure import row, runs_on

from cifar_keras.utils.paths import PROJECT

JOB = {"experiment": "exp2_augment_224.py"}
LIMIT = 3000  # MiB


def rows(full):
    """Memory, and accuracy in the full form."""
    with tempfile.TemporaryDirectory() as cache:  # no two processes share features, but for those that add views
        return [*memory(cache, counts=(500, 2000)), *(accuracy(cache) if full else [unmeasured(measure.ONLY_FULL)])]


def unmeasured(why):
    return row(AUGMENTED, "accuracy against views", note=why)


def memory(cache, *, counts):
    """The peak memory of extraction and training, for fewer and for more images."""
    few, many = (outcome(cache, **JOB, train=n, val=32, epochs=1, views=1)["peak"] for n in counts)
    judged = {
        "ratio": many / few,
        "target": f"at most 1.05 x the other, below {LIMIT:,}",
        "met": many < LIMIT and many < 1.05 * few,
    }
    return [
        row(AUGMENTED, f"peak memory, {counts[0]:,} images", few, "MiB"),
        row(AUGMENTED, f"peak memory, {counts[1]:,} images", many, "MiB", **judged),
    ]


def accuracy(cache):
    """Accuracy on val against the number of views, ten epochs each, and with augmentation on the fly."""
    dataset = os.environ.get("CIFAR_KERAS_IMAGES", "")
    weights = newest_backbone(dataset) if Path(dataset).is_dir() else None
    if weights is None:
        return [unmeasured("not measured: CIFAR_KERAS_IMAGES must name the images of a full run of experiment 3")]
    job = JOB | {"dataset": dataset, "weights": str(weights), "train": 1000, "val": 1000, "epochs": 10}
    found = {f"{views} view{'s' * (views > 1)}": outcome(cache, **job, views=views) for views in VIEWS}
    found["on the fly"] = outcome(cache, **job, views=0)
    return [row(AUGMENTED, name, one["accuracy"], "val accuracy", note=weights.name) for name, one in found.items()]


def newest_backbone(dataset, root=PROJECT):
    """The model of the newest finished full-budget run of experiment 3 below the root on this dataset, or None."""
    wanted = ("exp3_finetune", "full", "finished")
    found = [
        paths.keras
        for record, paths in runs_on(dataset, root)
        if (record["experiment"], record["budget"], record["status"]) == wanted
    ]
    return found[-1] if found else None


if __name__ == "__main__":
    measure.main(__doc__, rows)
