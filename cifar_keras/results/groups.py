"""Runs that differ only by their seed, from records or from a results.csv, which is read back with its types."""

import csv
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from cifar_keras import metrics
from cifar_keras.config import ConfigError
from cifar_keras.results import COLUMNS, with_derived

# What a run is about, before any detail.
KEY = ("experiment", "variant", "backbone", "dataset", "budget", "weights", "precision")
# The columns that describe a configuration, where there is no record with all of it.
CONFIGURATION = ("model", "pixels", "epochs", "train_images", "precision", "deterministic", "batch_size", "overrides")
NEEDED_COLUMNS = (  # in a CSV from elsewhere; older versions lack some of the others
    *("run_id", "utc", "experiment", "variant", "budget", "dataset", "fingerprint", "seed", "weights"),
    *("test_accuracy", "test_n", "status"),
)
UNKNOWN = "unknown"
OWN = 0.9  # share of its cores that a run needs for its minutes to mean something


def _whole(text):
    return int(text.removesuffix(".0"))  # other programs write 10000.0 where a column has gaps


TYPES = {  # column: (cast, check, its name); all others are text, such as versions and fingerprints
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
    """The runs in a results.csv of this or another version, with their configurations from `runs/` beside it.

    Args:
        path: the file.
    Returns: list of dicts by column. Numbers and booleans are parsed; empty values and missing columns are None, except
        that an empty `overrides` stays '', the plain recipe. `config` is that of `runs/<run_id>.json`, else None.
    Raises: ConfigError if the file can't be read, is empty, lacks columns or holds an impossible value.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark in front
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, values) for values in reader if values]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"Expected a results.csv (`cifar-keras collate` makes one). Received: {path}: {why}."
        ) from None
    if not lines:
        raise ConfigError(f"Expected a results.csv with a line of column names. Received: {path}, which is empty.")
    (_, names), *lines = lines
    if missing := [name for name in NEEDED_COLUMNS if name not in names]:
        raise ConfigError(
            f"A results.csv needs the columns {', '.join(NEEDED_COLUMNS)}, separated by commas. Received: {path} "
            f"without {', '.join(missing)}. Its first line should be that of results/results.csv."
        )
    return [_run(path, number, names, values) for number, values in lines]


def _run(path, number, names, values):
    where = f"{path}, line {number}"
    if len(values) != len(names):
        raise ConfigError(f"{where}: expected {len(names)} values, as in the first line. Received: {len(values)}.")
    run = dict.fromkeys(COLUMNS) | {name: _value(name, text, where) for name, text in zip(names, values, strict=True)}
    if run["status"] == "finished" and (unknown := [name for name in NEEDED_COLUMNS if run[name] is None]):
        raise ConfigError(f"{where}: a finished run needs values for {', '.join(unknown)}. Received: nothing there.")
    run["config"] = _config(path.parent / "runs" / f"{run['run_id']}.json")
    if run["config"] is None:
        return run
    derived = with_derived(run)  # for a CSV from before these columns
    return run | {name: derived[name] for name in ("overrides", "backbone") if run[name] is None}


def _value(column, text, where):
    """A CSV value, parsed as the type of its column."""
    if not text:
        return "" if column == "overrides" else None
    cast, check, name = TYPES.get(column, (str, bool, "text"))
    try:
        if check(value := cast(text)):
            return value
    except ValueError:
        pass  # no such value either
    raise ConfigError(f"{where}: `{column}` must be {name}. Received: {text!r}.")


def _config(path):
    """The configuration in a run's record; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("config")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a run record: {error!r}. Repair it or move it away.") from None


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs that differ only by their seed.

    Attributes:
        runs: dicts from `read_csv` or `with_derived`: the newest run of each seed, by seed.
        folder: the one with their results.csv and predictions; None if these are not needed.
    """

    runs: tuple
    folder: Path | None = None

    @property
    def first(self):
        """The run of the first seed, for what all of them share."""
        return self.runs[0]

    @property
    def key(self):
        """The values by which groups are matched."""
        return key_of(self.first)

    def key_without(self, *names):
        """The same without some columns, such as the precision, which may depend on the machine."""
        return tuple(value for name, value in zip(KEY, self.key, strict=True) if name not in names)

    @property
    def overrides(self):
        """What the command line changed: '' for the plain recipe, None if unknown."""
        return self.first["overrides"]

    @property
    def backbone_note(self):
        """The backbone if `--backbone` chose it, for tables that have no column for it; else ''."""
        return ((self.config or {}).get("overrides") or {}).get("backbone", "")

    @property
    def precision_note(self):
        """The precision if it is not float32, for tables that have no column for it; else ''."""
        return "" if self.first.get("precision") in (None, "float32") else self.first["precision"]

    @property
    def config(self):
        """The configuration of the first seed; None without a record."""
        return self.first.get("config")

    @property
    def name(self):
        """The experiment's name without its number, with the backbone if `--backbone` chose it."""
        name = self.first["experiment"].partition("_")[2].replace("_", " ") or self.first["experiment"]
        return ", ".join(filter(None, (name, self.backbone_note)))

    @property
    def newest(self):
        """When the newest run was recorded."""
        return max(run["utc"] for run in self.runs)

    @property
    def accuracies(self):
        """Test accuracy of each seed."""
        return [run["test_accuracy"] for run in self.runs]

    @property
    def test_n(self):
        """Number of test images."""
        return self.first["test_n"]

    @cached_property
    def estimate(self):
        """The mean test accuracy with its interval, see `metrics.accuracy_interval`."""
        return metrics.accuracy_interval(self.accuracies, self.test_n)

    @property
    def spread(self):
        """Standard deviation of the accuracy over seeds; None for one seed."""
        return stdev(self.accuracies) if len(self.runs) > 1 else None

    @property
    def minutes(self):
        """Mean minutes of training, as text; empty if unknown, or if other work shared the cores of some run."""
        seconds = self.average("training_seconds")
        if seconds is None or any(map(_shared_cores, self.runs)):
            return ""
        return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"

    @property
    def seconds(self):
        """Mean training time. Features from the cache count with the time that they had taken."""
        return self.average("training_seconds") + (self.average("cached_seconds") or 0.0)

    def average(self, column):
        """The mean of a column over the runs that have it; None if none has."""
        known = [run[column] for run in self.runs if run.get(column) is not None]
        return mean(known) if known else None

    def seen(self, column, unknown=UNKNOWN):
        """The values of a column as text, each once; missing ones as `unknown`, or left out if that is ''."""
        values = (run.get(column) for run in self.runs)
        found = {unknown if value is None else as_text(value) or "none" for value in values} - {""}
        return ", ".join(sorted(found, key=natural))


def as_text(value):
    """A value of a column or configuration as text; other values than text are written as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def grouped(runs, folder=None):
    """Groups the finished runs that differ only by their seed: other data or another recipe make another group.

    Args:
        runs: from `read_csv` or `with_derived`.
        folder: see `Group`.
    Returns: list of `Group`, by experiment and key, older recipes first.
    """
    found = {}
    for run in sorted((run for run in runs if run["status"] == "finished"), key=age):
        found.setdefault((key_of(run), recipe(run)), {})[run["seed"]] = run  # the newest stays
    groups = [Group(tuple(run for _, run in sorted(seeds.items())), folder) for seeds in found.values()]
    return sorted(groups, key=lambda g: (natural(g.first["experiment"]), g.key, max(map(age, g.runs))))


def newest_recipes(records, folder=None):
    """Groups of records, with older recipes of the same run left out: a mean over two recipes means nothing."""
    groups = grouped(map(with_derived, records), folder)  # older recipes first
    return list({(group.key, group.first["fingerprint"], group.overrides): group for group in groups}.values())


def key_of(run):
    """The values by which runs are matched."""
    return tuple(run.get(column) for column in KEY)  # a CSV from elsewhere may lack the precision


def age(run):
    """A key that puts older runs first."""
    return run["utc"], run["run_id"]


def natural(name):
    """A key that puts exp2 before exp10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def recipe(run):
    """Everything that must be equal within a group, apart from the seed, as text."""
    config = run.get("config") or {column: run.get(column) for column in CONFIGURATION}
    data = (run["fingerprint"], run.get("test_n"), run["overrides"])
    stated = dict.fromkeys(("seed", "overrides", "classes"))  # `data` has the last two; older runs lack `classes`
    return json.dumps([*data, config | stated], sort_keys=True)


def _shared_cores(run):
    """Whether a run is known to have had less than `OWN` of its cores, so that its time says little."""
    used, wall, cores = (run.get(column) for column in ("cpu_seconds", "training_seconds", "cores"))
    return None not in (used, wall, cores) and used < OWN * cores * wall
