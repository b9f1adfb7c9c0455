"""`cifar-keras compare RUN --published`: a run beside thirty published models, on the same test images."""

from pathlib import Path

from cifar_keras import results
from cifar_keras.config import ConfigError
from cifar_keras.data import cifar, load
from cifar_keras.explain.published import comparable, published, required
from cifar_keras.metrics import Estimate
from cifar_keras.report.table import markdown_table
from cifar_keras.saved.find import matching, record_of
from cifar_keras.utils.text import csv_text


def run(names, *, root, data_dir=None, fmt="text"):
    """Prints the comparison of each run in the form 'text', 'csv' or 'markdown', and writes its figures.

    Args:
        names: run ids, saved models' files, or experiments; of an experiment the newest run on the official test set.
        root: folder that holds `results/`.
        data_dir: as `--data-dir`, for the gallery, which is left out where CIFAR-10's archive is not found.
        fmt: of the table.
    Returns: exit code 0.
    Raises: ConfigError for a name that stands for no such run, and for a run without stored predictions.
    """
    for record in [official(name, results.finished(root)) for name in names]:
        section = compared(record, root=Path(root), data_dir=data_dir)
        folder = Path(root) / "results" / "explain" / record["run_id"]
        rows = section.tables[section.title]
        if fmt == "csv":
            print(csv_text(rows, max(rows, key=len)).rstrip("\n"))
            continue
        print(markdown_table([_texts(row) for row in rows]))
        section.save(folder)
        print("", *section.sentences, *_missing(section), f"figures: {folder}/{section.name}_*.png", sep="\n")
    return 0


def official(name, records):
    """The newest record of a name on the official test set; raises ConfigError where there is none."""
    found = (one for one in matching(name, records) if comparable(one["config"]["fingerprint"], one["test_n"]))
    if (record := next(found, None)) is None:
        required(record := record_of(name, records))
    return record


def compared(record, *, root, data_dir):
    """The section of `explain.published` on a run's stored predictions."""
    stored = results.read_predictions(root / "results", record["run_id"])
    if stored is None:
        path = root / "results" / "predictions" / f"{record['run_id']}.npz"
        raise ConfigError(
            f"`--published` needs the run's stored predictions, {path}. Received: no such file. Run it again."
        )
    images = {}
    if cifar.find(cifar.ARCHIVES["cifar10"], data_dir) is not None:
        data = load("cifar10", data_dir=data_dir)
        images = {"images": data.test.images, "class_names": data.class_names}
    return published(*stored, own=results.title(record), **images)


def _missing(section):
    if "alone" not in section.figures and section.numbers["wrong where all published are right"]:
        yield "No pictures: CIFAR-10's archive was not found (`--data-dir DIR`)."


def _texts(row):
    """A row for people: shares in percent, differences in points."""
    shown = {"rank": str(row["rank"]), "model": row["model"]}
    shown["accuracy [95% interval]"] = Estimate(row["accuracy"], row["low"], row["high"], "Wilson").accuracy()
    if "difference" in row:
        difference = (row[name] for name in ("difference", "difference low", "difference high"))
        shown["its difference, points"] = Estimate(*difference, "Newcombe, paired").points()
        shown["p (McNemar, Holm)"] = f"{row['p (McNemar, Holm)']:.2g}"
    return shown
