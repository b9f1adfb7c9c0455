"""Run records, results.csv and stored predictions: one JSON file per run, and the CSV derived from all of them.

`results.groups` reads such a CSV back.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.utils.files import lock, replacing, write_json, write_text
from cifar_keras.utils.text import csv_text

COLUMNS = {
    "run_id": "the run's name and when it started (UTC)",
    "utc": "when the record was written, ISO 8601, UTC",
    "experiment": "the experiment file's name",
    "variant": "which of the experiment's recipes",
    "budget": "full, or what was cut (quick, demo): see `config.BUDGETS`",
    "model": "row of `models.zoo.MODELS`",
    "backbone": "its network, see `models.backbones`; `--backbone` chooses it",
    "dataset": "the data's label; only `CIFAR-10` and `CIFAR-100` are the official archives",
    "fingerprint": "SHA-256 over the whole data, first 12 hex digits",
    "seed": "of weights, order, augmentation and dropout",
    "weights": "what the backbone started from: imagenet, none, or a saved model's name and first hex digits",
    "weights_called_for": "what row or recipe call for (source: any model trained here); else a row is no result",
    "overrides": "what the command line changed: `epochs=3, limit=500`; empty for the plain recipe",
    "pixels": "side of the images that the backbone sees",
    "epochs": "epochs run, all stages together",
    "best_epoch": "the epoch whose weights val selected",
    "train_accuracy": "selected weights, inference mode, no augmentation, on a fixed subset of train",
    "train_n": "images of that subset",
    "train_images": "images trained on",
    "val_accuracy": "what selected the epoch, hence slightly too high",
    "val_n": "images of val",
    "test_accuracy": "the saved model on test, read once, after training; audits besides select nothing",
    "test_n": "images of test",
    "test_loss": "mean cross-entropy on test, nats",
    "balanced_accuracy": "mean over classes of their accuracy on test, where classes there differ by more than a fifth",
    "majority_share": "what naming the largest class of test for every image would score, in the same case",
    "tta_accuracy": "test accuracy with test-time augmentation (six views), where the recipe asks for it",
    "coarse_accuracy": "on superclasses, by summed probabilities, where the data have them",
    "last_train_accuracy": "of the last epoch's weights, as `train_accuracy`, where the recipe asks for it",
    "last_test_accuracy": "of the last epoch's weights on test, the same",
    "parameters": "weights of the saved model",
    "parameters_trainable": "of these, trained in some stage",
    "training_seconds": "wall time in `fit`, first step and validation included, and of this run's feature extraction",
    "cpu_seconds": "processor time in the same, all threads: far below cores x time where others shared the machine",
    "cached_seconds": "what extracting the features had taken that came from the cache: not in training_seconds",
    "images_per_second": "images trained on per training second",
    "peak_memory_mb": "most memory the process held, MiB",
    "precision": "Keras precision policy",
    "deterministic": "whether kernels were forced to be reproducible",
    "batch_size": "images a step",
    "backend": "Keras backend",
    "device": "GPU, else CPU and cores",
    "cores": "CPU cores that the process could use; empty where a GPU trained",
    "keras": "version",
    "tensorflow": "version",
    "python": "version",
    "git_commit": "of the code; + where the checkout had changes",
    "published_train": "the reference study's accuracy",
    "published_val": "the same on validation",
    "published_test": "the same on test",
    "status": "finished or failed",
}


OWN_COLUMNS = ("backbone", "weights", "precision")  # of what the command line changes


def overrides(record):
    """What the command line changed besides what has a column of its own: 'epochs=3' or ''."""
    changed = (record.get("config") or {}).get("overrides") or {}
    return ", ".join(f"{key}={value}" for key, value in sorted(changed.items()) if key not in OWN_COLUMNS)


def title(record):
    """What figures and tables call a run: 'exp4_scratch best'."""
    return f"{record['experiment']} {record['variant']}"


def with_derived(record):
    """A record with the columns that follow from its configuration: the overrides, and in older ones the backbone."""
    row = (record.get("config") or {}).get("row") or {}
    return {**record, "overrides": overrides(record), "backbone": record.get("backbone") or row.get("backbone")}


def write(root, record, *, predictions=None):
    """Writes a run's record and predictions, then rebuilds the CSV.

    Args:
        root: folder that holds `results/`.
        record: values by the names in COLUMNS, and others that only the JSON file holds (`config`, `notes`).
        predictions: `(labels, probabilities)` on test, or None.
    """
    results = Path(root) / "results"
    if predictions is not None:
        labels, probabilities = predictions
        with replacing(results / "predictions" / f"{record['run_id']}.npz") as temporary:
            np.savez_compressed(temporary, labels=labels, probabilities=probabilities.astype("float16"))
    write_json(results / "runs" / f"{record['run_id']}.json", record)
    rebuild(root)


def read(root):
    """All records below `root`, oldest first.

    Raises: ConfigError naming a file that can't be read.
    """
    records = []
    for path in (Path(root) / "results" / "runs").glob("[!.]*.json"):  # pathlib's * would find what is being written
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            records.append((record["utc"], record["run_id"], record["status"], record))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a run record: {error!r}. Repair it or move it away.") from None
    return [record for *_, record in sorted(records, key=lambda entry: entry[:2])]


def finished(root):
    """The records of runs that finished below `root`, oldest first. Raises ConfigError as `read`."""
    return [record for record in read(root) if record["status"] == "finished"]


def rebuild(root):
    """Rewrites results.csv and results/README.md from the records, under a lock. Returns the records."""
    results = Path(root) / "results"
    with lock(results / "results.csv"):
        records = read(root)
        write_text(results / "results.csv", csv_text(map(with_derived, records), COLUMNS))
        write_text(results / "README.md", readme())
    return records


def read_predictions(folder, run_id):
    """The predictions on test that a run stored below `folder`, which holds results.csv.

    Returns: `(labels, probabilities)`, int32 `(images,)` and float16 `(images, classes)`; None where none are stored.
    Raises: ConfigError naming a file that can't be read.
    """
    path = Path(folder) / "predictions" / f"{run_id}.npz"
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as stored:
            labels, probabilities = stored["labels"], stored["probabilities"]
        if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
            raise ValueError(f"shapes {labels.shape} and {probabilities.shape}")
        return labels, probabilities
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} holds no predictions: {error!r}. Repair it or move it away.") from None


def readme():
    """The text of results/README.md, which explains every column."""
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in COLUMNS.items())
    return f"""# Results

`runs/<run id>.json` is the one record of a run; `results.csv` is rebuilt from all of them (`cifar-keras collate`), so
deleting it loses nothing. `predictions/<run id>.npz` holds `labels` (int32) and `probabilities` (float16) on test,
`figures/` the pictures of each run.

| column | meaning |
|---|---|
{rows}
"""
