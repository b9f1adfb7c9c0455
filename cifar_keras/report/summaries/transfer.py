"""Transfer: accuracy against the number of labelled images, beside a network trained from scratch."""

from statistics import mean

from cifar_keras.plotting import BLUE, GREEN, GREY, ORANGE, figure_of, shares, without_frame
from cifar_keras.report.summaries.base import (
    class_means,
    corrected,
    correction,
    difference,
    is_baseline,
    points,
    significance,
    verdict,
    with_intervals,
)
from cifar_keras.report.table import DASH, markdown_table


def points_of(family):
    """`(method, labelled images per class, whether from scratch, group)`; variants on the same images count once."""
    found = {}
    for variant, group in family.groups.items():
        asked = (group.config["training"] or {}).get("per_class")
        labelled = group.first["train_images"] // len(group.first["class_names"])
        method = variant.removesuffix(f"_{asked}")
        found.setdefault((method, labelled), (method, labelled, is_baseline(group), group))
    return sorted(found.values(), key=lambda point: point[1])


def text(family):
    """Paired differences to the network from scratch, and the classes that gain and lose most."""
    if family.source == "none":
        return ["Nothing was transferred: every network here starts at random."]
    found = points_of(family)
    bases = {labelled: group for _, labelled, baseline, group in found if baseline}
    pairs = [(m, n, bases[n], group) for m, n, baseline, group in found if not baseline and n in bases]
    if not pairs:
        return ["No variant has been run beside the network from scratch yet."]
    differences = [difference(base, group) for *_, base, group in pairs]
    p_values, count = corrected(differences)
    rows = [
        {"labelled a class": f"{n:,}", "method": method, **_against(base, group, *test)}
        for (method, n, base, group), *test in zip(pairs, differences, p_values, strict=True)
    ]
    note = (
        "Minus the network from random weights, on the same labelled images and for as many epochs, in points. The "
        "intervals cover the draw of labelled images and initial weights, of one source network and one test set. "
        + correction(count)
    )
    most = max(pairs, key=lambda pair: (pair[1], pair[3].estimate.value))
    return ["## What transfer adds", note, markdown_table(rows), *_gains(most[1], most[0], *most[2:])]


def _against(base, group, found, p):
    """Both accuracies and their difference, over the seeds that both have."""
    row = {"test": group.estimate.accuracy(), "from scratch": base.estimate.accuracy()}
    shown = found.shown() if found else DASH
    return row | {"difference [95%]": shown, "p": significance(p), "transfer": verdict(found, p)}


def _gains(count, method, base, group):
    """The classes that gain most and least."""
    ours, theirs = class_means(group), class_means(base)
    changes = sorted(((ours[name] - theirs[name], name) for name in ours), reverse=True)
    shown = changes if len(changes) <= 10 else [*changes[:5], *changes[-5:]]
    yield f"## Which classes gain: {method}, {count:,} labelled images a class"
    yield markdown_table([{"class": name, "gain, points": points(change)} for change, name in shown])


def draw(family, path):
    """Draws accuracy against labelled images per class, one line per method, with 95% intervals."""
    found = points_of(family)
    with figure_of(path, family.title, size=(7.5, 4.8)) as figure:
        panel = figure.add_subplot()
        methods = dict.fromkeys((method, baseline) for method, _, baseline, _ in found)
        for (method, baseline), colour, marker in zip(methods, (BLUE, GREEN, ORANGE), "osD", strict=False):
            shown = [(count, group) for name, count, _, group in found if name == method]
            with_intervals(panel, shown, colour, marker, method, line="--" if baseline else "-")
        counts = sorted({count for _, count, _, _ in found})
        panel.set_xscale("log")
        panel.set_xticks(counts, [f"{count:,}" for count in counts], minor=False)
        panel.set_xticks([], minor=True)
        seeds = mean(len(group.runs) for *_, group in found)
        panel.set(xlabel="labelled images a class", ylabel=f"test accuracy, n = {family.first['test_n']:,}")
        behind = (
            "one seed a point, 95% intervals over images" if seeds == 1 else f"{seeds:.2g} seeds a point, 95% intervals"
        )
        panel.set_title(behind, fontsize=9, color=GREY)
        shares(panel.yaxis)
        without_frame(panel, "both")
        panel.legend(frameon=False)
