"""Does the committed model still score what its record states, to the last image, on CIFAR-10's official test set?

Run: python benchmarks/official.py [--data-dir DIR]
It reads the `.h5` in Models/ that git tracks, the record of the run that left it and that run's stored predictions, and
classifies the official test images again, in this new process.
"""

import argparse
import subprocess

import numpy as np
from measure import row, table

from cifar_keras import results
from cifar_keras.config import ConfigError
from cifar_keras.data import load
from cifar_keras.explain.published import FINGERPRINT
from cifar_keras.utils.paths import PROJECT

TITLE = "the committed model, official test images"


def committed():
    """The complete `.h5` files in Models/ that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "Models/*.h5"], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [PROJECT / name for name in listed.stdout.splitlines() if not name.endswith("_custom.h5")]


def scored(path, data):
    """The row of one file: how many images get the class that its run stored."""
    from cifar_keras.saved import artifacts
    from cifar_keras.saved.inference import probabilities

    run_id = artifacts.provenance(path)["run_id"]
    (record,) = (one for one in results.read(PROJECT) if one["run_id"] == run_id)
    labels, stored = results.read_predictions(PROJECT / "results", run_id)
    found = probabilities(artifacts.load(path), data.test.images, batch_size=500).argmax(axis=1)
    accuracy, same = float(np.mean(found == data.test.labels)), int(np.sum(found == stored.argmax(axis=1)))
    note = f"{accuracy:.2%} of {len(found):,}; the record states {record['test_accuracy']:.2%}"
    met = same == len(found) and np.array_equal(labels, data.test.labels) and accuracy == record["test_accuracy"]
    return row(TITLE, path.name, same, "images as stored", target=f"{len(found)} of {len(found)}", met=met, note=note)


def rows(full, *, data_dir=None):
    """One row per committed model."""
    del full
    try:
        data = load("cifar10", data_dir=data_dir)
    except ConfigError as error:
        return [row(TITLE, "-", note=f"not measured: {error}")]
    if data.fingerprint != FINGERPRINT:
        return [row(TITLE, "-", note=f"not measured: {data.label} is not the official archive")]
    return [scored(path, data) for path in committed()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the first folder to search for the archive")
    print(table(rows(True, data_dir=parser.parse_args().data_dir), "plain"))
