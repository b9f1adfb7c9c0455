"""Do the saved forms of each finished run agree? `.keras`, `.h5`, and JSON + `_custom.h5`, in this new process.

Run: python benchmarks/agreement.py [--root DIR] [--dataset NAME|DIR] [--images 256]
For every finished run below the root whose data are at hand, it prints how many of the test images get the same class
from all forms, the largest difference of probabilities, and the largest difference from the stored float16 predictions.
"""

import argparse
from pathlib import Path

import numpy as np
from measure import row, runs_on, table

from cifar_keras.config import Limits
from cifar_keras.datasets import load
from cifar_keras.paths import PROJECT

TITLE = "same class from every saved form"


def agreement(record, paths, dataset, *, count):
    """`(same class, images, largest difference between forms, largest difference from what is stored)` of one run."""
    from cifar_keras import artifacts
    from cifar_keras.inference import probabilities

    models = (
        artifacts.load(paths.keras),
        artifacts.load(paths.h5),
        artifacts.rebuild(paths.architecture, paths.custom_h5),
    )
    images = load(dataset).limited(Limits(test=count)).test.images
    outputs = np.stack([probabilities(model, images, batch_size=32) for model in models])
    classes = outputs.argmax(axis=2)
    same = int((classes == classes[0]).all(axis=0).sum())
    own = load(dataset, limits=Limits(**record["config"]["limits"])).test.images[:count]
    with np.load(paths.predictions / f"{record['run_id']}.npz") as file:
        stored = file["probabilities"][:count].astype("float32")
    again = probabilities(models[0], own, batch_size=32)
    return same, len(images), float(np.ptp(outputs, axis=0).max()), float(np.abs(again - stored).max())


def runs_agreeing(root, dataset, *, count):
    """A row for every finished run on the dataset whose model is still there."""
    lines = []
    for record, paths in runs_on(dataset, root):
        same, n, between, stored = agreement(record, paths, dataset, count=count)
        note = f"probabilities differ by {between:.1e} between forms, by {stored:.1e} from the stored ones"
        judged = {"target": f"{n} of {n}", "met": same == n, "note": note}
        lines.append(row(TITLE, record["run_id"], same, "images", **judged))
    missing = f"not measured: no finished run on {dataset} there; `make demo` leaves four below demo/"
    return lines or [row(TITLE, root.name, note=missing)]


def rows(full):
    """The runs that `make demo` leaves."""
    return runs_agreeing(PROJECT / "demo", "shapes", count=256 if full else 64)


def main():
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PROJECT)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    print(table(runs_agreeing(options.root, options.dataset, count=options.images), "plain"))


if __name__ == "__main__":
    main()
