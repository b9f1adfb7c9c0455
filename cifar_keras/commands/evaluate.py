"""`cifar-keras evaluate`: saved models on the same labelled images, side by side.

Nothing here writes into results.csv: a record belongs to a run, with its training.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

from cifar_keras import metrics, plotting
from cifar_keras.commands import footprint
from cifar_keras.commands.predict import ALL_UNUSABLE, SOME_FAILED
from cifar_keras.config import ConfigError
from cifar_keras.explain.calibration import measures
from cifar_keras.saved import find, inference, scaling
from cifar_keras.saved.scoring import Asked as Asked
from cifar_keras.saved.scoring import Images, own_dataset, score
from cifar_keras.utils.files import replacing
from cifar_keras.utils.text import file_name, printable, shortened, to_stderr

WORST = 10


def run(models, asked, *, root, as_json=False, predictions=None, figure=None, costs=False):
    """Evaluates models one after the other and prints the results.

    Args:
        models: files, run ids or experiments; a `.json` is followed by its weights.
        asked: `Asked`.
        root: folder that holds `results/`; confusion pictures go to `results/evaluate/` below it.
        as_json: print one JSON document instead of tables.
        predictions: `.npz` that the probabilities go to; None for none.
        figure: the PNG of the confusion matrix of a single model; None for the default below `root`.
        costs: also measure size and speed, and draw accuracy against both.
    Returns: exit code: 0, 1 where some models can't be used, 2 where none can.
    Raises: ConfigError where the images can't be loaded or a file can't be written.
    """
    folder, pairs = Path(root) / "results" / "evaluate", find.paired(models)
    _check_outputs(pairs, predictions, figure, folder)
    scores, failed, data = _scores(pairs, asked, root, costs=costs)
    if not scores:
        if as_json:
            print(json.dumps({"models": [], "failed": failed}))
        return ALL_UNUSABLE
    report = document(scores, data, asked) | {"failed": failed}
    pictures = _draw(scores, report, data, folder, figure)
    for one, path in zip(report["models"], pictures, strict=True):
        one["figure"] = str(path)
    if costs:
        report["footprint_figure"] = str(_draw_costs(scores, report, data, folder))
    if predictions is not None:
        _write_predictions(scores, data, asked, predictions)
    print(json.dumps(report, allow_nan=False) if as_json else text(report, [one.name for one in scores]))
    return SOME_FAILED if failed else 0


def _scores(pairs, asked, root, *, costs):
    """The scores of the models that can be used, the errors of the others, and the dataset."""
    images = Images(asked.dataset, asked) if asked.dataset else None
    scores, failed = [], []

    def fail(model, error):
        to_stderr(f"error: {error}")
        failed.append({"model": model, "error": str(error)})

    for (model, weights), name in zip(pairs, short_names([model for model, _ in pairs]), strict=True):
        try:
            path = find.find_model(model, root=root)
            classifier = _loaded(path, weights, asked, images, alone=len(pairs) == 1)
        except ConfigError as error:
            fail(model, error)
            continue
        images = images or Images(own_dataset(classifier), asked)  # an error of the images ends everything
        try:
            found = score(model, name, classifier, images, asked)
            if costs:
                split = getattr(images.of(classifier), asked.split)
                cost = footprint.measured(classifier, inference.at_size(split.images, classifier))
                found = dataclasses.replace(found, footprint=cost)
            scores.append(found)  # last: a model that fails above is not also scored
        except ConfigError as error:
            fail(model, error)
    return scores, failed, images and images.data


def _loaded(path, weights, asked, images, *, alone):
    """The classifier; given class names are for a model that stands alone or names none itself."""
    options = {"weights": weights, "scaling": asked.scaling, "image_size": asked.image_size}
    options["default_size"] = images.side if images else None
    if asked.class_names is not None and not alone:
        classifier = inference.load(path, **options)
        if "class_names" in classifier.provenance:
            return classifier
    return inference.load(path, class_names=asked.class_names, **options)


def _check_outputs(pairs, predictions, figure, folder):
    """Raises: ConfigError for an output that can't be written, before any work is done."""
    if figure is not None and len(pairs) > 1:
        raise ConfigError(
            f"`--figure` names the picture of one model. Received: {len(pairs)} models. Leave it out: each has its "
            f"picture in {folder}."
        )
    wanted = (("--predictions", predictions, ".npz"), ("--figure", figure, ".png"))
    for option, path, ending in wanted:
        if path is not None and (Path(path).suffix != ending or Path(path).is_dir()):
            raise ConfigError(f"`{option}` must be a file that ends in {ending}. Received: {str(path)!r}.")
    for option, path, _ in wanted if figure else (*wanted, ("--root", folder / "_", None)):
        if path is not None:
            _check_writable(option, Path(path).parent)


def _check_writable(option, folder):
    try:
        with tempfile.TemporaryFile(dir=next(one for one in (folder, *folder.parents) if one.exists())):
            pass
    except OSError as error:
        raise ConfigError(
            f"`{option}` must lie in a folder that can be written. Received: {str(folder)!r} ({error.strerror})."
        ) from None


def short_names(models):
    """Names of models for a table: the file's name where no other model has it, else the whole argument."""
    plain = [Path(model).name for model in models]
    names = [name if plain.count(name) == 1 else model for model, name in zip(models, plain, strict=True)]
    return [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def document(scores, data, asked):
    """All figures of the models, ready for JSON."""
    labels = getattr(data, asked.split).labels
    models = [{"model": one.model, **_facts(one, labels, data.class_names)} for one in scores]
    differences = [_difference(scores[0], one, labels) for one in scores[1:]]
    for one, p in zip(differences, metrics.holm([one["p"] for one in differences]), strict=True):
        one["p_holm"] = p
    for one, difference in zip(models, [None, *differences], strict=True):
        one["difference"] = difference
    return {
        "dataset": data.slug, "label": data.label, "split": asked.split, "n": len(labels),
        "fingerprint": data.fingerprint, "models": models,
    }  # fmt: skip


def _facts(one, labels, class_names):
    probabilities, counts = one.probabilities, np.bincount(labels, minlength=len(class_names))
    matrix = _confusion(one, labels, len(class_names))
    accuracy = metrics.accuracy(labels, probabilities)
    low, high = metrics.wilson(accuracy, len(labels))
    by_class = metrics.class_accuracy(labels, probabilities, classes=len(class_names))
    calibration = measures(labels, probabilities.astype("float64"))
    augmented = {} if one.augmented is None else {"tta_accuracy": one.augmented}
    augmented |= {} if one.footprint is None else {"footprint": one.footprint}
    return {
        "accuracy": accuracy, "low": low, "high": high, "n": len(labels),
        "balanced_accuracy": metrics.balanced_accuracy(matrix), "majority_share": metrics.majority_share(counts),
        "nll": calibration["NLL"], "brier": calibration["Brier"], "ece": calibration["ECE"], **augmented,
        "classes": [
            {"name": name, "accuracy": float(share) if count else None, "n": int(count)}
            for name, share, count in zip(class_names, by_class, counts, strict=True)
        ],
        "confusion": matrix.tolist(),
        "path": str(one.path), "run_id": one.run_id, "input_scaling": one.scaling, "notes": list(one.notes),
    }  # fmt: skip


def _confusion(one, labels, classes):
    """Counts, true classes as rows; the model's other outputs form one more class, the last, without images."""
    matrix = metrics.confusion(labels, one.probabilities)
    if one.others:
        matrix[:, classes] = matrix[:, classes:].sum(axis=1)
    return matrix[: classes + 1, : classes + 1]


def _difference(first, second, labels):
    """The second model's accuracy minus the first's, paired."""
    right = [one.probabilities.argmax(axis=1) == labels for one in (first, second)]
    difference, test = metrics.difference_paired(*right), metrics.mcnemar(*right)
    return {
        "from": first.model, "value": difference.value, "low": difference.low, "high": difference.high,
        "only_first": test.only_a, "only_this": test.only_b, "p": test.p,
    }  # fmt: skip


def _draw(scores, report, data, folder, figure):
    """The pictures of the confusion matrices; returns their paths."""
    paths = []
    for one, facts in zip(scores, report["models"], strict=True):
        stem = file_name(one.name).replace(".", "_").lstrip("_")
        name = f"{stem[-100:]}_on_{data.slug[:80]}_{report['split']}_confusion"  # run ids differ at their end
        name += f"_{len(paths) + 1}.png" if folder / f"{name}.png" in paths else ".png"
        title = f"{one.name}: {facts['accuracy']:.1%} of {facts['n']:,} {report['split']} images of {data.label}"
        names = (*data.class_names, "(another class)") if one.others else data.class_names
        paths.append(Path(figure or folder / name))
        plotting.confusion_matrix(facts["confusion"], names, paths[-1], title=printable(title))
    return paths


def _draw_costs(scores, report, data, folder):
    """The picture of accuracy against size and speed; returns its path."""
    path = folder / f"footprint_on_{data.slug[:80]}_{report['split']}.png"
    title = f"{report['n']:,} {report['split']} images of {data.label}"
    footprint.draw(report["models"], [one.name for one in scores], path, title=printable(title))
    return path


def _write_predictions(scores, data, asked, path):
    """The probabilities of all models as one array `(models, n, classes)`, the dataset's classes first.

    Classes that only some model knows follow; where one does not know a class its probability is 0.
    """
    names = list(dict.fromkeys([*data.class_names, *(name for one in scores for name in one.others)]))
    labels = getattr(data, asked.split).labels
    stacked = np.zeros((len(scores), len(labels), len(names)), "float32")
    for place, one in enumerate(scores):
        stacked[place][:, [names.index(name) for name in (*data.class_names, *one.others)]] = one.probabilities
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary, labels=labels, probabilities=stacked,
            models=np.array([one.model for one in scores]), class_names=np.array(names),
        )  # fmt: skip
    to_stderr(f"probabilities: {path}")


def text(report, names):
    """The document as text for a terminal."""
    models, names = report["models"], [printable(name) for name in names]
    sizes = [one["n"] for one in models[0]["classes"]]
    parts = [
        printable(f"{report['label']}, {report['split']}: {report['n']:,} images of {len(sizes)} classes"),
        tabulate([_row(name, one, sizes) for name, one in zip(names, models, strict=True)], "keys", "plain",
                 disable_numparse=True),
    ]  # fmt: skip
    if metrics.imbalanced(sizes):
        parts.append(_on_balance(models[0]))
    if len(models) > 1:
        parts += [f"Differences from {names[0]}, on the same images", _differences(models[1:], names[1:])]
    if "footprint_figure" in report:
        parts.append("Size and speed on this machine; other work on it makes the times longer")
        parts.append(tabulate([*footprint.table(models, names)], "keys", "plain", disable_numparse=True))
        parts.append(f"figure: {printable(report['footprint_figure'])}")
    parts += [_by_class(models, names), "\n".join(f"confusion matrix: {printable(one['figure'])}" for one in models)]
    return "\n\n".join(parts)


def _row(name, one, sizes):
    estimate = metrics.Estimate(one["accuracy"], one["low"], one["high"], "Wilson")
    row = {"model": name, "accuracy [95% interval]": estimate.accuracy(2)}
    if metrics.imbalanced(sizes):
        row["balanced accuracy"] = f"{one['balanced_accuracy']:.2%}"
    if "tta_accuracy" in one:
        row["augmented at test time"] = f"{one['tta_accuracy']:.2%}"
    return row | {"ECE": f"{one['ece']:.3f}", "NLL": f"{one['nll']:.3f}", "Brier": f"{one['brier']:.3f}"}


def _on_balance(one):
    largest = max(one["classes"], key=lambda each: each["n"])
    absent = [each["name"] for each in one["classes"] if not each["n"]]
    return printable(
        f"Classes differ in size by more than a fifth: {largest['name']} alone is {one['majority_share']:.1%} of the "
        "images, the accuracy of a model that always answers it. Balanced accuracy is the mean over classes."
        + (f" Without images: {shortened(absent)}." if absent else "")
    )


def _differences(models, names):
    rows = []
    for name, one in zip(names, models, strict=True):
        d = one["difference"]
        estimate = metrics.Estimate(d["value"], d["low"], d["high"], "Newcombe, paired")
        row = {"model": name, "points [95% interval]": estimate.points(2)}
        row |= {"first alone right": f"{d['only_first']:,}", "this alone right": f"{d['only_this']:,}"}
        row["McNemar's exact p"] = f"{d['p']:.2g}"
        if len(models) > 1:
            row["p, Holm"] = f"{d['p_holm']:.2g}"
        rows.append(row | {"": "distinguishable" if d["p_holm"] < scaling.SIGNIFICANCE else "not distinguishable"})
    return tabulate(rows, "keys", "plain", disable_numparse=True)


def _by_class(models, names):
    """Accuracy of each class; of many classes those on which the first model is worst."""
    heading, classes = "Accuracy by class", list(zip(*(one["classes"] for one in models), strict=True))
    if len(classes) > plotting.FEW:
        worst = sorted((one for one in classes if one[0]["n"]), key=lambda one: one[0]["accuracy"])[:WORST]
        heading += f", the {len(worst)} worst of {len(classes)} (all: --json)"
        classes = worst
    rows = []
    for first, *others in classes:
        shares = ("-" if one["accuracy"] is None else f"{one['accuracy']:.1%}" for one in (first, *others))
        rows.append((printable(first["name"]), f"{first['n']:,}", *shares))
    return f"{heading}\n\n{tabulate(rows, ('class', 'n', *names), 'plain', disable_numparse=True)}"
