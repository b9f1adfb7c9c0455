"""Runs as rows: a results.csv read back with its types, and runs grouped by all but the seed."""

import csv
import json
import math
import re
from pathlib import Path
from statistics import mean

from cifar_keras.config import ConfigError
from cifar_keras.results import COLUMNS, overrides

KEY = ("experiment", "variant", "dataset", "budget", "weights")  # what a row is about, before any detail
CONFIGURATION = (  # the columns that describe it, where a record with the whole of it is missing
    *("model", "pixels", "epochs", "train_images", "precision", "deterministic", "batch_size", "overrides"),
)
NEEDED = (  # of a CSV from elsewhere; older versions lack some of the others
    *("run_id", "utc", "experiment", "variant", "budget", "dataset", "fingerprint", "seed", "weights"),
    *("test_accuracy", "test_n", "status"),
)


OWN = 0.9  # share of its cores that a run needs for its minutes to mean something


def _whole(text):
    return int(text.removesuffix(".0"))  # other programs write 10000.0 where a column has gaps


KINDS = {  # column: (cast, check, words); the others are text, among them versions and digits that look like numbers
    **dict.fromkeys(
        ("seed", "pixels", "epochs", "best_epoch", "train_n", "train_images", "val_n", "parameters",
         "parameters_trainable", "batch_size", "cores"),
        (_whole, lambda number: number >= 0, "a whole number"),
    ),
    **dict.fromkeys(
        ("train_accuracy", "val_accuracy", "test_accuracy", "tta_accuracy", "coarse_accuracy", "last_train_accuracy",
         "last_test_accuracy", "published_train", "published_val", "published_test"),
        (float, lambda number: 0 <= number <= 1, "a share, between 0 and 1"),
    ),
    **dict.fromkeys(
        ("test_loss", "training_seconds", "cpu_seconds", "cached_seconds", "images_per_second", "peak_memory_mb"),
        (float, math.isfinite, "a number"),
    ),
    "test_n": (_whole, lambda number: number > 0, "a whole number above 0"),
    "deterministic": (  # spreadsheets write TRUE
        lambda text: {"true": True, "false": False}.get(text.lower()), lambda value: value is not None, "True or False"
    ),
}  # fmt: skip


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
    cast, check, words = KINDS.get(column, (str, bool, "text"))
    try:
        if check(value := cast(text)):
            return value
    except ValueError:
        pass  # no such value either
    raise ConfigError(f"{where}: `{column}` must be {words}. Received: {text!r}.")


def _config(path):
    """The configuration in a run's record; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("config")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a run record: {error!r}. Mend it or move it away.") from None


def from_record(record):
    """A run's record as a row, which has its overrides in a column."""
    return {**record, "overrides": overrides(record)}


def grouped(rows):
    """Finished rows that differ in nothing but the seed: other data, another recipe is another group.

    Args:
        rows: from `read_csv` or `from_record`.
    Returns: list of lists, in each the newest row of every seed, by seed; by experiment and key, older recipes first.
    """
    found = {}
    for row in sorted((row for row in rows if row["status"] == "finished"), key=age):
        found.setdefault((key_of(row), recipe(row)), {})[row["seed"]] = row  # the newest stays
    groups = [[row for _, row in sorted(seeds.items())] for seeds in found.values()]
    return sorted(
        groups, key=lambda group: (natural(group[0]["experiment"]), key_of(group[0]), age(max(group, key=age)))
    )


def key_of(row):
    """What rows are matched by."""
    return tuple(row[column] for column in KEY)


def age(row):
    """A key that puts older runs first."""
    return row["utc"], row["run_id"]


def natural(name):
    """A key that puts exp2 before exp10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def recipe(row):
    """All that may not differ within a group besides the seed, as text."""
    config = row.get("config") or {column: row.get(column) for column in CONFIGURATION}
    data = (row["fingerprint"], row.get("test_n"), row["overrides"])
    stated = dict.fromkeys(("seed", "overrides", "classes"))  # `data` has the last two; older runs lack `classes`
    return json.dumps([*data, config | stated], sort_keys=True)


def minutes(group):
    """Mean minutes of training, as text; empty where they are unknown or other work shared the cores of some run."""
    seconds = average(group, "training_seconds")
    if seconds is None or any(map(_shared_cores, group)):
        return ""
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"


def _shared_cores(row):
    """Whether a run had less than `OWN` of its cores, as far as that is known: its time then says little."""
    used, wall, cores = (row.get(column) for column in ("cpu_seconds", "training_seconds", "cores"))
    return None not in (used, wall, cores) and used < OWN * cores * wall


def average(group, column):
    """The mean of a column over the rows that know it; None where none does."""
    known = [row[column] for row in group if row.get(column) is not None]
    return mean(known) if known else None
