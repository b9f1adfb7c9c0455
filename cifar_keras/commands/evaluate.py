"""`cifar-keras evaluate`: saved models on the labelled images of a dataset, side by side on the same ones.

Nothing here writes into results.csv: a record belongs to a run, with its training.
"""

import functools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from cifar_keras import metrics, plotting
from cifar_keras.commands import predict
from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import NAMES
from cifar_keras.data import load as load_dataset
from cifar_keras.data.base import at_most, take
from cifar_keras.data.shapes import KINDS
from cifar_keras.explain.calibration import measures
from cifar_keras.saved import find, inference, labels, scaling
from cifar_keras.utils.files import replacing
from cifar_keras.utils.text import file_name, printable

SPLITS = ("train", "val", "test")
FEW = 20  # classes; of more, text shows the worst ones
WORST = 10
LEVEL = 0.05  # of tests


@dataclass(frozen=True)
class Asked:
    """What models are evaluated on, as the command line has it.

    Attributes:
        dataset: a name or a folder; None takes what the first model was trained on.
        data_dir: as for `data.load`.
        classes: the same.
        split: 'test', 'val' or 'train'.
        limit: most images of the split; every class keeps its share.
        image_size: side for models that take any; None takes the dataset's.
        scaling: as for `inference.load`, of models that do not state theirs.
        class_names: the same; where several models are evaluated, of those that name none.
        augmented: whether accuracy under test-time augmentation is wanted too.
        skip_unreadable: as for `data.load`.
    """

    dataset: str | None = None
    data_dir: str | None = None
    classes: str | None = None
    split: str = "test"
    limit: int | None = None
    image_size: int | None = None
    scaling: str | None = None
    class_names: str | None = None
    augmented: bool = False
    skip_unreadable: bool = False


class Images:
    """A dataset, read at the sizes that models want; each size once.

    Attributes:
        name: as `--dataset`.
        data: `Dataset` at the size that it has by itself.

    Raises: ConfigError as `data.load`, and for a split without images.
    """

    def __init__(self, name, asked):
        limits = Limits(asked.limit, asked.limit, asked.limit)
        shared = {"data_dir": asked.data_dir, "classes": asked.classes, "limits": limits}
        shared |= {"skip_unreadable": True} if asked.skip_unreadable else {}
        self.name = name
        self._read = functools.cache(lambda **size: load_dataset(name, **shared, **size))
        self.data = self._read()
        if not len(getattr(self.data, asked.split)):
            raise ConfigError(f"The {asked.split} split of {self.data.label} must hold images. Received: none.")
        for note in self.data.notes:
            _say(f"{self.data.label}: {note}")
        if asked.split in self.data.carved:
            _say(
                f"{self.data.label} has no {asked.split} split of its own: a tenth of its images, the same ones every "
                "time, stand for it. `predict --labels-from-folders` takes all of them"
            )

    @property
    def side(self):
        """The shorter side of the images, in pixels."""
        return min(self.data.image_shape[:2])

    def of(self, classifier):
        """The dataset for a classifier. CIFAR's images keep their size, and are resized one by one.

        The embedded images are made at the model's size, and a folder's files are decoded at it, as `predict` does.
        """
        height, width = classifier.size
        if self.name in KINDS and height == width and 8 <= height <= 1024:
            return self._read(image_size=height)
        return self.data if self.name in NAMES else self._read(decoded_at=(height, width))


def _trained_on(classifier):
    """The fingerprint of the images that a model was trained on; None where it does not say."""
    return classifier.provenance.get("config", {}).get("fingerprint")


@dataclass(frozen=True)
class Order:
    """Which output of a model stands for which class.

    Attributes:
        outputs: int `(outputs,)`, numbers of outputs: first those of the dataset's classes in their order, then others.
        others: the names of the others.
        assumed: whether nothing but the number of outputs speaks for it.
        note: what the user must know of it; empty where the model has the dataset's classes in their order.
    """

    outputs: np.ndarray
    others: tuple[str, ...] = ()
    assumed: bool = False
    note: str = ""


@dataclass(frozen=True)
class Score:
    """What a model makes of the images.

    Attributes:
        model: as it was asked for.
        name: what it is called in tables, unlike any other's.
        path: of its file.
        run_id: of the run that it came from; None for a model from elsewhere.
        scaling: of its pixels.
        probabilities: float32 `(n, classes + others)`: the dataset's classes in their order, then the model's others.
        others: the names of these.
        notes: what was assumed.
        augmented: accuracy under test-time augmentation; None where it was not asked for.
    """

    model: str
    name: str
    path: Path
    run_id: str | None
    scaling: str
    probabilities: np.ndarray
    others: tuple[str, ...]
    notes: tuple[str, ...]
    augmented: float | None = None


def run(models, asked, *, root, as_json=False, predictions=None, figure=None):
    """Evaluates models one after the other and prints what they do.

    Args:
        models: files, run ids or experiments; a `.json` is followed by its weights.
        asked: `Asked`.
        root: folder that holds `results/`; confusion pictures go to `results/evaluate/` below it.
        as_json: print one JSON document instead of tables.
        predictions: `.npz` that the probabilities go to; None for none.
        figure: the PNG of the confusion matrix of a single model; None for the place below `root`.
    Returns: exit code: 0, 1 where some models can't be used, 2 where none can.
    Raises: ConfigError where the images can't be had or a file can't be written.
    """
    folder, pairs = Path(root) / "results" / "evaluate", find.paired(models)
    models = [model for model, _ in pairs]
    _check_outputs(models, predictions, figure, folder)
    images = Images(asked.dataset, asked) if asked.dataset else None
    scores, failed = [], []
    for (model, weights), name in zip(pairs, short_names(models), strict=True):
        try:
            loading = _loading(asked, images) | {"weights": weights}
            classifier = _loaded(find.find_model(model, root=root), asked.class_names, len(pairs) == 1, **loading)
        except ConfigError as error:
            failed.append(_failed(model, error))
            continue
        images = images or Images(_own_dataset(classifier), asked)  # what is wrong with the images ends everything
        try:
            scores.append(score(model, name, classifier, images, asked))
        except ConfigError as error:
            failed.append(_failed(model, error))
    if not scores:
        if as_json:
            print(json.dumps({"models": [], "failed": failed}))
        return predict.ALL_FAILED
    report = document(scores, images.data, asked) | {"failed": failed}
    pictures = _draw(scores, report, images.data, folder, figure)
    for one, path in zip(report["models"], pictures, strict=True):
        one["figure"] = str(path)
    if predictions is not None:
        _write_predictions(scores, images.data, asked, predictions)
    print(json.dumps(report, allow_nan=False) if as_json else text(report, [one.name for one in scores]))
    return predict.SOME_FAILED if failed else 0


def _say(text):
    print(printable(text), file=sys.stderr, flush=True)
    return text


def _failed(model, error):
    _say(f"error: {error}")
    return {"model": model, "error": str(error)}


def _check_outputs(models, predictions, figure, folder):
    """Raises: ConfigError where a file that is to be written can't be, before any work is done."""
    if figure is not None and len(models) > 1:
        raise ConfigError(
            f"`--figure` names the picture of one model. Received: {len(models)} models. Leave it out: each has its "
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
    """What models are called in a table: the file's name where no other is called so, else all that was given."""
    plain = [Path(model).name for model in models]
    names = [name if plain.count(name) == 1 else model for model, name in zip(models, plain, strict=True)]
    return [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _loading(asked, images):
    """The arguments of `inference.load`."""
    side = {"image_size": asked.image_size} if asked.image_size else {}
    return side | {"scaling": asked.scaling, "default_size": images.side if images else None}


def _loaded(path, class_names, alone, **loading):
    """The classifier; given class names are those of a model that stands alone or names none itself."""
    if class_names is None or alone:
        return inference.load(path, class_names=class_names, **loading)
    classifier = inference.load(path, **loading)
    unnamed = "class_names" not in classifier.provenance
    return inference.load(path, class_names=class_names, **loading) if unnamed else classifier


def _own_dataset(classifier):
    """The dataset that a model was trained on, where it has a name.

    Raises: ConfigError where it has none.
    """
    name = classifier.provenance.get("config", {}).get("dataset")
    if name not in NAMES:
        trained = f"{classifier.network.path.name} was trained on {name}, which is no dataset's name"
        known = trained if name else f"{classifier.network.path.name} does not say what it was trained on"
        raise ConfigError(
            f"`--dataset` must name the images: {', '.join(NAMES)}, or a folder of them. Received: none; {known}."
        )
    _say(f"dataset: {name}, which {classifier.network.path.name} was trained on")
    return name


# --- one model ---


def score(model, name, classifier, images, asked):
    """The `Score` of a classifier on `Images`.

    Raises: ConfigError where its outputs can't be the dataset's classes, or it turns out to be damaged.
    """
    data, path = images.of(classifier), classifier.network.path
    order = order_of(classifier, data.class_names)
    notes = [_say(f"{name}: {note}") for note in (*classifier.assumptions, order.note) if note]
    if asked.split != "test" and _trained_on(classifier) == data.fingerprint:
        use = {"train": "it was trained on this split", "val": "its epoch was selected on this split"}[asked.split]
        notes.append(_say(f"{name}: {use}, so the accuracy is too high for new images"))
    if not classifier.states_scaling and asked.scaling is None:
        classifier, note = _with_best_scaling(classifier, data, order, asked.split)
        notes.append(_say(f"{name}: {note}"))
    split = getattr(data, asked.split)
    found = probabilities(classifier, split.images, what=name)[:, order.outputs]
    if order.assumed and (note := _better_order(metrics.confusion(split.labels, found), data.class_names)):
        notes.append(_say(f"{name}: {note}"))
    augmented = None
    if asked.augmented:
        views = augmented_probabilities(classifier, split.images, what=name)[:, order.outputs]
        augmented = metrics.accuracy(split.labels, views)
    run_id = classifier.provenance.get("run_id")
    return Score(model, name, path, run_id, classifier.scaling, found, order.others, tuple(notes), augmented)


def probabilities(classifier, images, *, what):
    """Class probabilities of a split's images, in batches.

    Args:
        classifier: `inference.Classifier`.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], of any size; an array, `Rows` or `inference.Moved`.
        what: is evaluated, for the progress bar.
    Returns: float32 `(n, outputs)`.
    """
    parts, resized = [], tuple(images.shape[1:3]) != tuple(classifier.size)
    with tqdm(total=len(images), unit=" images", desc=what, disable=None, leave=False) as bar:
        for start in range(0, len(images), inference.BATCH):
            block = images[np.arange(start, min(start + inference.BATCH, len(images)))]
            block = np.stack([classifier.pixels(one) for one in block]) if resized else np.ascontiguousarray(block)
            parts.append(classifier.probabilities(block))
            bar.update(len(block))
    return np.concatenate(parts)


def augmented_probabilities(classifier, images, *, what):
    """The weighted mean over the six views of `inference.VIEWS`; arguments and result as `probabilities`."""
    return sum(
        weight * probabilities(classifier, inference.Moved(images, move, mirrored), what=f"{what}, view {place}")
        for place, (move, mirrored, weight) in enumerate(inference.VIEWS, start=1)
    )


def order_of(classifier, class_names):
    """The `Order` of a classifier's outputs for a dataset's classes.

    Raises: ConfigError where they can't be these classes.
    """
    outputs = len(classifier.class_names)
    names = list(classifier.class_names) if "class_names" in classifier.provenance else None
    if names is None and outputs == len(class_names):
        note = "it names no classes; output i is taken for the dataset's i-th class " + (
            f"({_some(class_names)}), an assumption"
        )
        return Order(np.arange(outputs), assumed=True, note=note)
    if names is None or not {*class_names} <= {*names}:
        raise _other_classes(classifier, names, class_names)
    places = [names.index(name) for name in class_names]
    rest = [place for place in range(outputs) if place not in places]
    others = tuple(names[place] for place in rest)
    note = "" if places == sorted(places) else "it has the classes in another order; they are matched by name. "
    if others:
        note += f"It knows {len(others)} more classes ({_some(others)}): an image that it takes for one counts as wrong"
    return Order(np.array(places + rest), others, note=note.strip(" ."))


def _other_classes(classifier, names, class_names):
    received = f"{len(classifier.class_names)} outputs"
    if names is None:
        received += " without names"
    else:
        missing = [name for name in class_names if name not in names]
        received += f" ({_some(names)}); {_some(missing)} {'is' if len(missing) == 1 else 'are'} not among them"
    advice = ""
    if names and {*names} < {*class_names}:
        advice = f" To evaluate on its own classes alone: --classes {','.join(names)}."
    return ConfigError(
        f"{classifier.network.path} must have an output for each of the dataset's {len(class_names)} classes "
        f"({_some(class_names)}). Received: {received}.{advice}"
    )


def _some(names, most=10):
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _better_order(confusion, class_names):
    """A note where another order of the outputs fits far better than the assumed one; empty where none does."""
    if (order := labels.better_order(confusion)) is None:
        return ""
    assumed = np.trace(confusion) / confusion.sum()
    fits = confusion[order, np.arange(len(order))].sum() / confusion.sum()
    return (
        f"the outputs seem to stand for the classes in another order: {assumed:.1%} are right in the assumed one, "
        f"{fits:.1%} in this one, which was chosen to fit: {','.join(class_names[place] for place in order)}"
    )


def _with_best_scaling(classifier, data, order, split):
    """The classifier with the scaling that fits best, on a split that is not evaluated, and the sentence on it."""
    name = "train" if split == "val" else "val"
    some = take(getattr(data, name), at_most(getattr(data, name), predict.TRIED))

    def outcomes(one):
        found = probabilities(one, some.images, what=one.scaling)[:, order.outputs]
        return np.asarray(some.labels), found.argmax(axis=1)

    classifier, sentence = scaling.best(classifier, outcomes, classes=len(data.class_names))
    return classifier, f"on {name} images: {sentence}"


# --- figures of all of them ---


def document(scores, data, asked):
    """All that is known of the models, ready for JSON."""
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
    """Counts, true classes as rows; the model's other outputs are one more class, the last, which no image has."""
    matrix = metrics.confusion(labels, one.probabilities)
    if not one.others:
        return matrix
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


# --- what is written and printed ---


def _draw(scores, report, data, folder, figure):
    """The pictures of the confusion matrices; returns their paths."""
    paths = []
    for one, facts in zip(scores, report["models"], strict=True):
        stem = file_name(one.name).replace(".", "_").lstrip("_")
        name = f"{stem[-100:]}_on_{data.slug[:80]}_{report['split']}_confusion"  # run ids differ at their end
        name += f"_{len(paths) + 1}.png" if folder / f"{name}.png" in paths else ".png"
        title = f"{one.name}: {facts['accuracy']:.1%} of {facts['n']:,} {report['split']} images of {data.label}"
        names = (*data.class_names, "(another class)") if one.others else data.class_names
        paths.append(
            plotting.confusion_matrix(facts["confusion"], names, Path(figure or folder / name), title=printable(title))
        )
    return paths


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
    _say(f"probabilities: {path}")


def text(report, names):
    """The document for people."""
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
    parts += [_by_class(models, names), "\n".join(f"confusion matrix: {printable(one['figure'])}" for one in models)]
    return "\n\n".join(parts)


def _row(name, one, sizes):
    row = {"model": name, "accuracy [95% interval]": _percent(one["accuracy"], one["low"], one["high"])}
    if metrics.imbalanced(sizes):
        row["balanced accuracy"] = f"{one['balanced_accuracy']:.2%}"
    if "tta_accuracy" in one:
        row["augmented at test time"] = f"{one['tta_accuracy']:.2%}"
    return row | {"ECE": f"{one['ece']:.3f}", "NLL": f"{one['nll']:.3f}", "Brier": f"{one['brier']:.3f}"}


def _percent(value, low, high):
    return f"{100 * value:.2f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _on_balance(one):
    largest = max(one["classes"], key=lambda each: each["n"])
    absent = [each["name"] for each in one["classes"] if not each["n"]]
    said = (
        f"Classes differ in size by more than a fifth: {largest['name']} alone is {one['majority_share']:.1%} of the "
        "images, the accuracy of a model that always answers it. Balanced accuracy is the mean over classes."
    )
    return printable(said + (f" Without images: {_some(absent)}." if absent else ""))


def _differences(models, names):
    several = len(models) > 1
    rows = []
    for name, one in zip(names, models, strict=True):
        d = one["difference"]
        points = "{:+.2f} [{:+.1f}, {:+.1f}]".format(*(100 * d[bound] for bound in ("value", "low", "high")))
        row = {"model": name, "points [95% interval]": points}
        row |= {"first alone right": f"{d['only_first']:,}", "this alone right": f"{d['only_this']:,}"}
        row["McNemar's exact p"] = f"{d['p']:.2g}"
        if several:
            row["p, Holm"] = f"{d['p_holm']:.2g}"
        rows.append(row | {"": "distinguishable" if d["p_holm"] < LEVEL else "not distinguishable"})
    return tabulate(rows, "keys", "plain", disable_numparse=True)


def _by_class(models, names):
    """Accuracy of each class; of many classes those that the first model knows worst."""
    classes = [
        {"class": printable(one["name"]), "n": f"{one['n']:,}", **{name: _share(model["classes"][place]) for name, model
         in zip(names, models, strict=True)}}
        for place, one in enumerate(models[0]["classes"])
    ]  # fmt: skip
    heading = "Accuracy by class"
    if len(classes) > FEW:
        known = [place for place, one in enumerate(models[0]["classes"]) if one["n"]]
        worst = sorted(known, key=lambda place: models[0]["classes"][place]["accuracy"])[:WORST]
        classes = [classes[place] for place in worst]
        heading = f"Accuracy by class, the {len(worst)} worst of {len(models[0]['classes'])} (all: --json)"
    return f"{heading}\n\n{tabulate(classes, 'keys', 'plain', disable_numparse=True)}"


def _share(one):
    return "-" if one["accuracy"] is None else f"{one['accuracy']:.1%}"
