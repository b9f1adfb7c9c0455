"""A model beside thirty published ones, by what each of them answered for the official test images of CIFAR-10."""

from pathlib import Path

import numpy as np

from cifar_keras import metrics
from cifar_keras.config import ConfigError
from cifar_keras.explain.base import NotApplicable, Section, checked, gallery, spread
from cifar_keras.plotting import BLUE, ORANGE, drawn, shares, titled, without_frame

ANSWERS = Path(__file__).with_name("published_predictions.npz")  # its source and licence are in the .txt beside it
FINGERPRINT = "c462096a029d37f77b5e4f8d875233fd7b2c8d5fb8eeba8e17493ad53965ec30"  # of the official CIFAR-10
IMAGES = 10_000
SHOWN = 16  # pictures
LEVEL = 0.05


def comparable(fingerprint, images):
    """Whether a test set is the official one, all of it.

    Args:
        fingerprint: of the dataset.
        images: of the test set.
    """
    return (fingerprint, images) == (FINGERPRINT, IMAGES)


def required(record):
    """Raises ConfigError unless a run was scored on the official test set."""
    if not comparable(record["config"]["fingerprint"], record["test_n"]):
        raise ConfigError(
            f"`--published` needs a run on CIFAR-10's official {IMAGES:,} test images (fingerprint "
            f"{FINGERPRINT[:12]}), which the published models classified. Received: {record['run_id']}, on "
            f"{record['test_n']:,} images of {record['dataset']} ({record['fingerprint'][:12]}). Run the experiment on "
            "`--dataset cifar10`."
        )


def answers():
    """What each published model answered: `{name: uint8 (10,000,)}`, in official order."""
    with np.load(ANSWERS) as stored:
        return dict(zip(stored["names"].tolist(), stored["predictions"], strict=True))


@drawn
def published(labels, probabilities, *, own, images=None, class_names=()) -> Section:
    """Accuracies with intervals, paired differences, the model's rank, and who else makes its errors.

    Args:
        labels: int `(10,000,)`, of the official test images in official order.
        probabilities: float `(10,000, 10)`, the model's.
        own: its name, for tables and figures.
        images: uint8 `(10,000, 32, 32, 3)`; None leaves out the gallery.
        class_names: one per class, for the gallery.
    Raises: NotApplicable for another number of images.
    """
    labels, probabilities = checked(labels, probabilities, None)
    if len(labels) != IMAGES:
        raise NotApplicable(f"the published models classified all {IMAGES:,} test images, not {len(labels):,}")
    predicted, theirs = probabilities.argmax(axis=1), answers()
    right = {name: found == labels for name, found in theirs.items()}
    ours = predicted == labels
    rows = ranked(own, ours, right)
    numbers = {"rank": next(row["rank"] for row in rows if row["model"] == own), "models": len(rows)}
    numbers |= {"errors": int(np.sum(~ours)), "errors shared by": shared(ours, right)}
    alone = np.flatnonzero(~ours & np.logical_and.reduce(list(right.values())))
    numbers |= {"wrong where all published are right": alone.tolist()}
    figures = {"accuracies": _accuracies(rows, own)}
    descriptions = {"accuracies": f"Test accuracy of {len(rows)} models with 95% intervals; {own} is marked."}
    if images is not None and len(alone):
        chosen = spread(alone, labels, SHOWN)
        captions = [(class_names[labels[i]], f"here {class_names[predicted[i]]}") for i in chosen]
        pictures = np.stack([np.asarray(images[i]) for i in chosen])
        figures["alone"] = gallery(pictures, captions, "right by all published models, wrong here")
        descriptions["alone"] = f"Images that all published models classify correctly and {own} does not."
    tables = {"Beside published models": rows}
    return Section(
        "published", "Beside published models", figures, descriptions, numbers, tables, _sentences(own, numbers, rows)
    )


def ranked(own, ours, right):
    """One row per model, the most accurate first.

    Args:
        own: the model's name.
        ours: bool `(n,)`, which images it gets right.
        right: the same of the published ones, by name.
    Returns: dicts. Differences are a published model's accuracy minus ours; p is McNemar's after Holm's correction.
    """
    tests = {name: metrics.mcnemar(ours, theirs) for name, theirs in right.items()}
    corrected = dict(zip(tests, metrics.holm([test.p for test in tests.values()]), strict=True))
    rows = [{"model": own, **_accuracy(ours)}]
    for name, theirs in right.items():
        difference = metrics.difference_paired(ours, theirs)
        rows.append(
            {
                "model": name, **_accuracy(theirs), "difference": difference.value, "difference low": difference.low,
                "difference high": difference.high, "p (McNemar, Holm)": corrected[name],
            }
        )  # fmt: skip
    rows.sort(key=lambda row: -row["accuracy"])
    return [{"rank": 1 + sum(other["accuracy"] > row["accuracy"] for other in rows), **row} for row in rows]


def _accuracy(right):
    accuracy = float(np.mean(right))
    low, high = metrics.wilson(accuracy, len(right))
    return {"accuracy": accuracy, "low": low, "high": high}


def shared(ours, right):
    """How many of our errors all, most (more than half), some or none of the published models make too."""
    count = np.sum([~theirs for theirs in right.values()], axis=0)[~ours]
    most = count > len(right) / 2
    return {
        "all": int(np.sum(count == len(right))),
        "most": int(np.sum(most & (count < len(right)))),
        "some": int(np.sum(~most & (count > 0))),
        "none": int(np.sum(count == 0)),
    }


def _accuracies(rows, own):
    figure = titled("test accuracy with 95% intervals", size=(7.5, 1.2 + 0.24 * len(rows)))
    panel = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        mine = row["model"] == own
        reach = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
        panel.errorbar(
            row["accuracy"], place, xerr=reach, marker="D" if mine else "o", color=ORANGE if mine else BLUE, capsize=2
        )
    panel.margins(y=0.02)
    panel.set_yticks(range(len(rows)), [row["model"] for row in reversed(rows)])
    for label, row in zip(panel.get_yticklabels(), reversed(rows), strict=True):
        label.set_fontweight("bold" if row["model"] == own else "normal")
    shares(panel.xaxis)
    without_frame(panel, "x")
    return figure


def _sentences(own, numbers, rows):
    p = "p (McNemar, Holm)"
    better, worse, level = (
        sum(test(row) for row in rows if p in row)
        for test in (
            lambda row: row[p] < LEVEL and row["difference"] > 0,
            lambda row: row[p] < LEVEL and row["difference"] < 0,
            lambda row: row[p] >= LEVEL,
        )
    )
    errors, by = numbers["errors"], numbers["errors shared by"]
    parts = ", ".join(f"{who} {count / max(errors, 1):.0%} ({count})" for who, count in by.items())
    return (
        f"{own} ranks {numbers['rank']} of {numbers['models']}. After Holm's correction for {len(rows) - 1} "
        f"comparisons {better} published models are more accurate, {worse} are less accurate, and {level} can't be "
        "distinguished from it on these images.",
        f"Of its {errors:,} errors, the published models also make: {parts}. 'Most' is more than half of them.",
    )
