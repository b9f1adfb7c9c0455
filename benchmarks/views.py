"""Experiment 2's stored views: is memory flat, and what does accuracy say of their number?

Run: python benchmarks/views.py [--full]
Memory: one view at 224 pixels of 500 and of 2,000 images, each in a process. Accuracy, with `--full`: 1,000 training
and 1,000 val images of the newest full run of experiment 3 below this project, on its weights, with V views and with
augmentation on the fly. Nothing here is a time, so that other work may run beside it.
"""

import tempfile

import measure
from features import AUGMENTED, VIEWS, measured
from measure import row

from cifar_keras import results
from cifar_keras.config import RunConfig
from cifar_keras.paths import PROJECT, Paths

JOB = {"experiment": "exp2_augment_224.py"}
LIMIT = 3000  # MiB


def rows(full):
    """Memory, and accuracy in the full form."""
    with tempfile.TemporaryDirectory() as cache:  # no two processes share features, but for those that add views
        return [*memory(cache, counts=(500, 2000)), *(accuracy(cache) if full else [unmeasured(measure.ONLY_FULL)])]


def unmeasured(why):
    return row(AUGMENTED, "accuracy against views", note=why)


def memory(cache, *, counts):
    """The most memory that extracting and training took, of fewer and of more images."""
    few, many = (measured(cache, **JOB, train=n, val=32, epochs=1, views=1)["peak"] for n in counts)
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
    weights, dataset = newest_backbone()
    if weights is None:
        return [unmeasured("not measured: no finished run of experiment 3 on an image folder with its model")]
    job = JOB | {"dataset": dataset, "weights": str(weights), "train": 1000, "val": 1000, "epochs": 10}
    found = {f"{views} view{'s' * (views > 1)}": measured(cache, **job, views=views) for views in VIEWS}
    found["on the fly"] = measured(cache, **job, views=0)
    return [row(AUGMENTED, side, one["accuracy"], "val accuracy", note=weights.name) for side, one in found.items()]


def newest_backbone(root=PROJECT):
    """The model of the newest finished full-budget run of experiment 3 below the root, and where its images are.

    Returns: `(path, dataset)`; `(None, None)` without a run, or without the images beside the project in `data/`.
    """
    data = root.parent / "data"
    for record in reversed(results.read(root)):
        path = Paths.of(RunConfig.restored(record["config"]), root).keras
        wanted = (record["experiment"], record["budget"], record["status"]) == ("exp3_finetune", "full", "finished")
        if wanted and path.is_file() and data.is_dir():
            return path, str(data)
    return None, None


if __name__ == "__main__":
    measure.main(__doc__, rows)
