"""Run records, results.csv and stored predictions: one JSON a run, the CSV derived from all of them."""

import csv
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.files import lock, replacing, write_json, write_text

COLUMNS = {
    "run_id": "the run's name and when it started (UTC)",
    "utc": "when the record was written, ISO 8601, UTC",
    "experiment": "the experiment file's name",
    "variant": "which of the experiment's recipes",
    "budget": "full, or what was cut (quick, demo): see `config.BUDGETS`",
    "model": "row of `zoo.MODELS`",
    "dataset": "the data's label; only `CIFAR-10` and `CIFAR-100` are the official archives",
    "fingerprint": "SHA-256 over the whole data, first 12 hex digits",
    "seed": "of weights, order, augmentation and dropout",
    "weights": "what the backbone started from: imagenet, none, or a saved model's name and first hex digits",
    "weights_called_for": "what the model's row calls for; a row counts as a result where both are equal",
    "overrides": "what the command line changed: `epochs=3, limit=500`; empty for the plain recipe",
    "pixels": "side of the images that the backbone sees",
    "epochs": "epochs run, all stages together",
    "best_epoch": "the epoch whose weights val selected",
    "train_accuracy": "selected weights, inference mode, no augmentation, on a fixed subset of train",
    "train_n": "images of that subset",
    "train_images": "images trained on",
    "val_accuracy": "what selected the epoch, hence slightly too high",
    "val_n": "images of val",
    "test_accuracy": "the saved model on test, read once, after training",
    "test_n": "images of test",
    "test_loss": "mean cross-entropy on test, nats",
    "tta_accuracy": "the same with test-time augmentation (six views), where the recipe asks for it",
    "parameters": "weights of the saved model",
    "parameters_trainable": "of these, trained in some stage",
    "training_seconds": "wall time in `fit`, first step and validation included, and of this run's feature extraction",
    "cached_seconds": "what extracting the features had taken that came from the cache: not in training_seconds",
    "images_per_second": "images trained on per training second",
    "peak_memory_mb": "most memory the process held, MiB",
    "precision": "Keras precision policy",
    "deterministic": "whether kernels were forced to be reproducible",
    "batch_size": "images a step",
    "backend": "Keras backend",
    "device": "GPU, else CPU and cores",
    "keras": "version",
    "tensorflow": "version",
    "python": "version",
    "git_commit": "of the code; + where the checkout had changes",
    "published_train": "the reference study's accuracy",
    "published_val": "the same on validation",
    "published_test": "the same on test",
    "status": "finished or failed",
}
NEEDED = (  # of a CSV from elsewhere; older versions lack some of the others
    *("run_id", "utc", "experiment", "variant", "budget", "dataset", "fingerprint", "seed", "weights"),
    *("test_accuracy", "test_n", "status"),
)


def overrides(record):
    """What the command line changed besides the weights, which have their own column: 'epochs=3', mostly ''."""
    changed = (record.get("config") or {}).get("overrides") or {}
    return ", ".join(f"{key}={value}" for key, value in sorted(changed.items()) if key != "weights")


def write(root, record, *, predictions=None):
    """Writes a run's record and predictions, then rebuilds the CSV.

    Args:
        root: folder that holds `results/`.
        record: values by the names in COLUMNS, besides whatever else the run wants kept (`config`, `notes`).
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
            raise ConfigError(f"{path} is not a run record: {error!r}. Mend it or move it away.") from None
    return [record for *_, record in sorted(records, key=lambda entry: entry[:2])]


def rebuild(root):
    """Rewrites results.csv and results/README.md from the records, under a lock. Returns the records."""
    results = Path(root) / "results"
    with lock(results / "results.csv"):
        records = read(root)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**record, "overrides": overrides(record)} for record in records)
        write_text(results / "results.csv", buffer.getvalue())
        write_text(results / "README.md", readme())
    return records


def read_csv(path):
    """The rows of a results.csv, of this version or another, with what `runs/` beside it knows of them.

    Args:
        path: the file.
    Returns: list of dicts by column. Numbers and booleans are such; empty cells and unknown columns of ours are None,
        but for `overrides`, where '' is the plain recipe. `config` is that of `runs/<run_id>.json`, None without it.
    Raises: ConfigError where the file can't be read, is empty, lacks columns or holds a value that can't be.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark in front
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Expected a results.csv (`cifar-keras collate` makes one). Received: {path}: {why}."
        ) from None
    if not lines:
        raise ConfigError(f"Expected a results.csv with a line of column names. Received: {path}, which is empty.")
    (_, names), *lines = lines
    if missing := [name for name in NEEDED if name not in names]:
        raise ConfigError(
            f"A results.csv needs the columns {', '.join(NEEDED)}, separated by commas. Received: {path} without "
            f"{', '.join(missing)}. Its first line should be that of results/results.csv."
        )
    return [_row(path, number, names, cells) for number, cells in lines]


def _row(path, number, names, cells):
    where = f"{path}, line {number}"
    if len(cells) != len(names):
        raise ConfigError(f"{where}: expected {len(names)} values, as in the first line. Received: {len(cells)}.")
    row = dict.fromkeys(COLUMNS) | {name: _value(name, cell, where) for name, cell in zip(names, cells, strict=True)}
    if row["status"] == "finished" and (unknown := [name for name in NEEDED if row[name] is None]):
        raise ConfigError(f"{where}: a finished run needs values for {', '.join(unknown)}. Received: nothing there.")
    row["config"] = _config(path.parent / "runs" / f"{row['run_id']}.json")
    if row["overrides"] is None and row["config"] is not None:  # a CSV from before there was that column
        row["overrides"] = overrides(row)
    return row


def _value(column, text, where):
    """One cell as what its column holds."""
    if not text:
        return "" if column == "overrides" else None
    kind, expected = KINDS.get(column, (str, "text"))
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: `{column}` must be {expected}. Received: {text!r}.") from None


def _number(text):
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _share(text):
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError
    return number


def _whole(text):
    if (number := float(text)) < 0 or number != int(number):  # other programs write 10000.0 where a column has gaps
        raise ValueError
    return int(number)


def _count(text):
    if (number := _whole(text)) == 0:
        raise ValueError
    return number


def _boolean(text):
    return ("false", "true").index(text.lower()) == 1  # spreadsheets write TRUE


KINDS = {  # the others are text, among them versions and hexadecimal digits that look like numbers
    **dict.fromkeys(
        ("seed", "pixels", "epochs", "best_epoch", "train_n", "train_images", "val_n", "parameters",
         "parameters_trainable", "batch_size"),
        (_whole, "a whole number"),
    ),
    **dict.fromkeys(
        ("train_accuracy", "val_accuracy", "test_accuracy", "tta_accuracy", "published_train", "published_val",
         "published_test"),
        (_share, "a share, between 0 and 1"),
    ),
    **dict.fromkeys(
        ("test_loss", "training_seconds", "cached_seconds", "images_per_second", "peak_memory_mb"),
        (_number, "a number"),
    ),
    "test_n": (_count, "a whole number above 0"),
    "deterministic": (_boolean, "True or False"),
}  # fmt: skip


def _config(path):
    """The configuration in a run's record; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("config")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a run record: {error!r}. Mend it or move it away.") from None


def read_predictions(folder, run_id):
    """What a run stored of its test images.

    Args:
        folder: where results.csv stands.
        run_id: the run's.
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
        raise ConfigError(f"{path} holds no predictions: {error!r}. Mend it or move it away.") from None


def readme():
    """What results/README.md says: every column explained."""
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in COLUMNS.items())
    return f"""# Results

`runs/<run id>.json` is the one record of a run; `results.csv` is rebuilt from all of them (`cifar-keras collate`), so
deleting it loses nothing. `predictions/<run id>.npz` holds `labels` (int32) and `probabilities` (float16) on test,
`figures/` the pictures of each run.

| column | meaning |
|---|---|
{rows}
"""
