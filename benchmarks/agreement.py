"""Do the saved forms of each finished run agree? `.keras`, `.h5`, and JSON + `_custom.h5`, in this new process.

Run: python benchmarks/agreement.py [--root DIR] [--dataset NAME|DIR] [--images 256]
For every finished run below the root whose data are at hand, it prints how many of the test images get the same class
from all forms, the largest difference of probabilities, and the largest difference from the stored float16 predictions.
"""

import argparse
from pathlib import Path

from cifar_keras import results, runtime
from cifar_keras.paths import PROJECT

runtime.setup()

import numpy as np  # noqa: E402

from cifar_keras import artifacts  # noqa: E402
from cifar_keras.config import Limits, RunConfig  # noqa: E402
from cifar_keras.datasets import load  # noqa: E402
from cifar_keras.inference import probabilities  # noqa: E402
from cifar_keras.paths import Paths  # noqa: E402


def agreement(record, dataset, root, *, count):
    """`(same class, images, largest difference between forms, largest difference from what is stored)` of one run."""
    paths = Paths.of(RunConfig.restored(record["config"]), root)
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


def main():
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PROJECT)
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    found = False
    fingerprint = load(options.dataset, limits=Limits(10, 10, 10)).fingerprint
    for record in results.read(options.root):
        path = Paths.of(RunConfig.restored(record["config"]), options.root).keras
        newest = path.is_file() and artifacts.provenance(path)["run_id"] == record["run_id"]
        if newest and record["config"]["fingerprint"] == fingerprint:
            found = True
            same, n, between, stored = agreement(record, options.dataset, options.root, count=options.images)
            print(
                f"{record['run_id']}: same class {same}/{n}, forms differ by {between:.1e}, stored by {stored:.1e}",
                flush=True,
            )
    if not found:
        print(f"no finished run on {options.dataset} below {options.root}; `make demo` leaves four below demo/")


if __name__ == "__main__":
    main()
