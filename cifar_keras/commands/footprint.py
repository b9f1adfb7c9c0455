"""`cifar-keras evaluate --footprint`: what a saved model costs, beside what it achieves."""

import time
import zlib
from statistics import median

import numpy as np

from cifar_keras.plotting import BLUE, GREY, ORANGE, figure_of, logarithmic, shares, without_frame
from cifar_keras.utils.text import printable

CALLS, WARM, MANY = 50, 10, 64
COSTS = {"compressed_mib": "MiB of the compressed file", "ms": "milliseconds for one image"}


def measured(classifier, images):
    """Size and speed of a saved model.

    Args:
        classifier: `saved.inference.Classifier`.
        images: uint8 `(n, height, width, 3)` at its size; one is enough.
    Returns: dict: `mib` of the file, `compressed_mib` after zlib, `parameters` and `zeros` (their share in kernels;
        both None for other formats than Keras'), `ms` for one image (median of 50 calls), `images_per_second` in
        batches of 64 (median of 5). Times are those of this machine, and other work disturbs them.
    """
    content = classifier.network.path.read_bytes()
    many = np.ascontiguousarray(images[np.arange(MANY) % len(images)])
    one = median(_seconds(classifier, many[:1], calls=CALLS, warm=WARM))
    return {
        "mib": len(content) / 2**20,
        "compressed_mib": len(zlib.compress(content, 6)) / 2**20,
        **_weights(classifier.network.model),
        "ms": 1000 * one,
        "images_per_second": MANY / median(_seconds(classifier, many, calls=5, warm=1)),
    }


def _seconds(classifier, images, *, calls, warm):
    """How long each of some calls takes, after some that don't count."""
    found = []
    for _ in range(warm + calls):
        start = time.perf_counter()
        classifier.probabilities(images)
        found.append(time.perf_counter() - start)
    return found[warm:]


def _weights(model):
    """The number of weights, and which share of those in kernels is zero."""
    if model is None:
        return {"parameters": None, "zeros": None}
    kernels = [np.asarray(w) for layer in model.layers for w in layer.get_weights() if w.ndim > 1]
    zeros = sum(np.sum(kernel == 0) for kernel in kernels) / max(1, sum(kernel.size for kernel in kernels))
    return {"parameters": model.count_params(), "zeros": float(zeros)}


def table(models, names):
    """Rows for a table.

    Args:
        models: the documents of `evaluate`, with their `footprint`.
        names: of the models.
    """
    fronts = {cost: front(models, cost) for cost in COSTS}
    for place, (name, one) in enumerate(zip(names, models, strict=True)):
        found = one["footprint"]
        best = [word for cost, word in (("compressed_mib", "size"), ("ms", "time")) if fronts[cost][place]]
        yield {
            "model": name,
            "parameters": "-" if found["parameters"] is None else f"{found['parameters']:,}",
            "zeros": "-" if found["zeros"] is None else f"{found['zeros']:.0%}",
            "MiB": f"{found['mib']:.2f}",
            "compressed": f"{found['compressed_mib']:.2f}",
            "ms an image": f"{found['ms']:.2f}",
            "images/s of 64": f"{found['images_per_second']:,.0f}",
            "on the front of": ", ".join(best) or "-",
        }


def front(models, cost):
    """Which models no other one beats: none is at most as costly and at least as accurate, and better in one of both.

    Args:
        models: as for `table`.
        cost: a key of `COSTS`.
    Returns: list of booleans.
    """
    points = [(one["footprint"][cost], -one["accuracy"]) for one in models]
    return [not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]


def draw(models, names, path, *, title):
    """Accuracy with its interval against each cost, the Pareto front as a line. Arguments as for `table`."""
    with figure_of(path, title, size=(11, 4.8)) as figure:
        panels = figure.subplots(1, len(COSTS), sharey=True)
        for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
            best = front(models, cost)
            _points(panel, models, names, cost, best)
            line = sorted((one["footprint"][cost], one["accuracy"]) for one, on in zip(models, best, strict=True) if on)
            panel.plot(*zip(*line, strict=True), color=ORANGE, linewidth=1, zorder=0, label="Pareto front")
            costs = [one["footprint"][cost] for one in models]
            logarithmic(panel, min(costs) / 1.3, max(costs) * 2)  # room for the last name
            panel.set(xlabel=label)
            panel.margins(y=0.12)
            without_frame(panel, "both")
        shares(panels[0].yaxis)
        panels[0].set_ylabel("accuracy, with 95% intervals")
        panels[-1].legend(frameon=False)


def _points(panel, models, names, cost, best):
    """The models with their names, at three heights in turn, since files of one size lie on top of each other."""
    order = sorted(range(len(models)), key=lambda place: models[place]["footprint"][cost])
    for turn, place in enumerate(order):
        one, colour = models[place], ORANGE if best[place] else BLUE
        x, y = one["footprint"][cost], one["accuracy"]
        reach = [[y - one["low"]], [one["high"] - y]]
        panel.errorbar(x, y, yerr=reach, color=colour, marker="o", capsize=2, linewidth=0.8)
        at = {"xytext": (6, (3, -11, 15)[turn % 3]), "textcoords": "offset points", "fontsize": 7, "color": GREY}
        panel.annotate(printable(names[place])[-40:], (x, y), **at)
