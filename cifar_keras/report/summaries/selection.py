"""Which epoch is reported: the last one, or the one that val or test selects."""

import numpy as np
import seaborn
from matplotlib.ticker import MaxNLocator

from cifar_keras.plotting import GREY, figure_of, shares, without_frame
from cifar_keras.report.summaries.base import points
from cifar_keras.report.table import DASH, markdown_table, percent


def text(family):
    """Test accuracy of the last epoch, of the one that val selects, and of the one that test would select."""
    rows = []
    for variant, group in family.groups.items():
        for run in group.runs:
            followed = run["history"].get("test_accuracy")
            rows.append(
                {
                    "variant": variant,
                    "seed": str(run["seed"]),
                    "last epoch": percent(run.get("last_test_accuracy")),
                    "val-selected": percent(run["test_accuracy"]),
                    "test-selected (audit)": percent(max(followed)) if followed else DASH,
                    "selecting on test adds": points(max(followed) - run["test_accuracy"]) if followed else DASH,
                }
            )
    note = (
        "Accuracy on test. `test-selected` is an audit that follows test after every epoch, as the source did, and "
        "takes its maximum: it shows what that adds, and is no result."
    )
    return ["## Which epoch is reported", note, markdown_table(rows)]


def draw(family, path):
    """Draws val accuracy by epoch of every variant, and test accuracy of those whose test set was followed."""
    with figure_of(path, family.title, size=(9, 4.6)) as figure:
        panel = figure.add_subplot()
        colours = seaborn.color_palette("colorblind", max(3, len(family.groups)))
        for (variant, group), colour in zip(family.groups.items(), colours, strict=False):
            run = group.first
            history = run["history"]
            panel.plot(history["epoch"], history["val_accuracy"], color=colour, label=f"{variant}: val", marker=".")
            panel.plot(history["epoch"], history["accuracy"], "--", color=colour, linewidth=1, alpha=0.6)
            if followed := history.get("test_accuracy"):
                panel.plot(history["epoch"], followed, ":", color=colour, label=f"{variant}: test, audit")
                best = int(np.argmax(followed))
                panel.plot(history["epoch"][best], followed[best], "v", color=colour, markersize=9)
            star = {"color": colour, "markersize": 15, "markeredgecolor": "white"}
            panel.plot(run["best_epoch"], run["test_accuracy"], "*", **star)
        panel.set(xlabel="epoch", ylabel="accuracy")
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        shares(panel.yaxis)
        without_frame(panel, "both")
        panel.legend(frameon=False, fontsize=8)
        figure.supxlabel(
            "Dashed: running train accuracy. Star: test accuracy of the epoch that val selected. Triangle: the best "
            "epoch by test (audit).", fontsize=7.5, color=GREY,
        )  # fmt: skip
