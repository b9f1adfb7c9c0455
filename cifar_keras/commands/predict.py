"""`cifar-keras predict`: classifies images block after block, in memory that does not grow with them."""

import csv
import glob
import io
import itertools
import json
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data.images import ImageError, files_in, left_out
from cifar_keras.metrics import accuracy_interval, beside_accuracy
from cifar_keras.saved import inference, labels, scaling
from cifar_keras.saved.find import find_model, paired
from cifar_keras.utils.files import replacing
from cifar_keras.utils.system import cores
from cifar_keras.utils.text import file_name, printable, to_stderr

SOME_FAILED, ALL_UNUSABLE = 1, 2
STANDARD_INPUT, MAX_PIPED_BYTES = "-", 2**28  # the latter of an image on standard input


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    Attributes:
        image: its path, '-' for standard input.
        label: its class by its folder; None where labels are not asked for.
        probabilities: float32 `(classes,)`; None where the image can't be used.
        pixels: uint8 `(height, width, 3)` as the model saw them.
        error: why it can't be used; None where it can.
    """

    image: str
    label: str | None = None
    probabilities: np.ndarray | None = None
    pixels: np.ndarray | None = None
    error: str | None = None


def run(model, images, *, root, form="table", top=3, labelled=False, gradcam_folder=None, **loading):
    """Predicts images and prints one line for each.

    Args:
        model: a file, a run id or an experiment; of a `.json`, the first of `images` is the weights.
        images: files, folders, patterns, and '-' for standard input.
        root: folder that holds `results/`.
        form: 'table', 'json' (one object per line) or 'csv'.
        top: classes to name for each image.
        labelled: whether an image's folder is its class, for accuracy and confusion matrix.
        gradcam_folder: where a Grad-CAM overlay of each image goes; None for none.
        **loading: `scaling`, `image_size` and `class_names` as for `inference.load`.
    Returns: exit code: 0, 1 where some images can't be used, 2 where none can.
    Raises: ConfigError where the model can't be used, or not in this way.
    """
    warnings.filterwarnings("ignore", module="PIL")  # damaged files are reported by name
    model, weights, images = _model_and_images(model, images)
    if images.count(STANDARD_INPUT) > 1:
        raise ConfigError("Standard input must be named once, as it holds one image. Received: `-` twice.")
    if gradcam_folder is not None:
        _make_folder(gradcam_folder)
    classifier = inference.load(find_model(model, root=root), weights=weights, **loading)
    inference.print_assumptions(classifier)
    _hint_at_names(classifier)
    found = list(sources(images))
    names = _labels(classifier, found) if labelled else None
    if not classifier.states_scaling and loading.get("scaling") is None:
        classifier = _with_best_scaling(classifier, found, names)
    painter = None if gradcam_folder is None else Painter(classifier, Path(gradcam_folder))
    count = "1 image" if len(found) == 1 else f"{len(found):,} images"
    to_stderr(f"{count}, {classifier.network.path.name}")
    tally = _predicted(classifier, found, names, form=form, top=top, painter=painter)
    if labelled and tally.counted:
        print(tally.text(), file=sys.stdout if form == "table" else sys.stderr)
        if sentence := labels.other_order(tally.confusion, tally.names):
            to_stderr(f"{classifier.network.path.name}: {sentence}")
    return tally.exit_code


def _predicted(classifier, found, names, *, form, top, painter):
    """Prints the prediction of every source, and paints it where there is a painter. Returns the `Tally`."""
    tally = Tally(names or classifier.class_names)
    with tqdm(total=len(found), unit=" images", disable=None, leave=False) as bar:
        write = PredictionWriter(form, tally.names, min(top, len(tally.names)), labelled=names is not None)
        for prediction in predictions(classifier, found, names):
            write(prediction)
            tally.add(prediction)
            if painter and prediction.error is None:
                painter.paint(prediction)
            bar.update()
    return tally


def _model_and_images(model, images):
    """`(model, weights, images)` of the command line."""
    if Path(model).suffix != ".json":
        return model, None, images
    ((model, weights),) = paired([model, *images[:1]])
    if len(images) < 2:
        raise ConfigError(f"IMAGE must be named after {model} and {weights}. Received: none.")
    return model, weights, images[1:]


def _missing(argument, received):
    """The `Prediction` for an argument that names no image."""
    error = f"IMAGE must be an image, a folder of images or a pattern. Received: {argument!r}, {received}."
    return Prediction(argument, error=error)


def _make_folder(folder):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"`--gradcam` must be a folder, or the name of one to make. Received: {folder!r} ({error.strerror})."
        ) from None


def sources(arguments):
    """Every image that the arguments name, in order: a path, '-', or a `Prediction` with an error for none."""
    for argument in arguments:
        path = Path(argument)
        if argument == STANDARD_INPUT:
            yield argument
        elif path.is_dir():
            yield from _inside(argument)
        elif path.is_file():
            yield argument
        elif glob.has_magic(argument) and not path.exists():
            matches = sorted(glob.glob(argument, recursive=True))
            yield from sources(matches) if matches else [_missing(argument, "a pattern that nothing matches")]
        else:
            yield _missing(argument, "no file" if path.exists() else "no such file")


def _inside(folder):
    """The image files in a folder and below it, in order; one error where there are none."""
    found, _, kinds = files_in(folder, strict=False)
    if kinds:
        to_stderr(f"{folder}: {left_out(kinds)}")
    return [entry.path for entry in found if entry.is_file()] or [_missing(folder, "a folder without images")]


def predictions(classifier, found, names=None):
    """Yields a `Prediction` for every image of `sources`, in blocks; `names` are the classes if folders are labels."""
    with ThreadPoolExecutor(cores()) as pool:
        for block in inference.batched(found, inference.BATCH):
            read = list(pool.map(lambda source: _read(classifier, source, names), block))
            whole = [prediction.pixels for prediction in read if prediction.error is None]
            rows = iter(classifier.probabilities(np.stack(whole)) if whole else ())
            for one in read:
                yield one if one.error else Prediction(one.image, one.label, next(rows), one.pixels)


def _read(classifier, source, names):
    """The `Prediction` of one source, with its pixels or an error."""
    if isinstance(source, Prediction):
        return source
    label = None if names is None else labels.label_of(source, names)
    if label is not None and label not in names:
        error = f"{source} must lie in a folder named after one of the model's classes. Received: {label!r}."
        return Prediction(source, error=error)
    try:
        return Prediction(source, label, pixels=classifier.pixels(_piped() if source == STANDARD_INPUT else source))
    except ImageError as error:
        return Prediction(source, label, error=str(error))


def _piped():
    """The image on standard input. Raises ImageError for more than `MAX_PIPED_BYTES`."""
    data = sys.stdin.buffer.read(MAX_PIPED_BYTES + 1)
    if len(data) > MAX_PIPED_BYTES:
        raise ImageError(f"An image on standard input must have at most {MAX_PIPED_BYTES:,} bytes. Received: more.")
    image = io.BytesIO(data)
    image.name = "standard input"
    return image


def _labels(classifier, found):
    """The names of the classes; for a model that names none, those of the folders, sorted, if their number is right.

    Raises: ConfigError where the folders can't be the classes.
    """
    paths = [source for source in found if isinstance(source, str) and source != STANDARD_INPUT]
    if "class_names" in classifier.provenance:
        folders = sorted({labels.label_of(path, classifier.class_names) for path in paths})
        if folders and not {*folders} & {*classifier.class_names}:
            raise ConfigError(
                "`--labels-from-folders` needs folders named after the model's classes "
                f"({', '.join(classifier.class_names[:10])}). Received: {', '.join(folders[:10])}."
            )
        return classifier.class_names
    folders = Counter(folder.name for folder in {labels.folder_of(path) for path in paths})
    counted = [name + (f" ({count} folders)" if count > 1 else "") for name, count in sorted(folders.items())]
    order = labels.order_of(classifier, counted, order="the folders' alphabetical order")
    to_stderr(f"{classifier.network.path.name} {order.note}")
    return tuple(sorted(folders))


def _hint_at_names(classifier):
    """Prints that a file of names lies beside a model that names none; it may be another model's."""
    network = classifier.network
    there = [path for name in labels.BESIDE if (path := network.path.with_name(name)).is_file()]
    if there and "class_names" not in classifier.provenance:
        to_stderr(f"{network.path.name} names no classes. If {there[0]} lists them: --class-names {there[0]}")


def _with_best_scaling(classifier, found, names):
    """The classifier with the scaling that gets most of some labelled images right, where they show it."""
    sentence = None
    if names is not None:
        count = min(scaling.TRIED, len(found))
        some = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, count).astype(int))]
        classifier, sentence = scaling.best(classifier, lambda one: _outcomes(one, some, names), classes=len(names))
    if sentence is None:
        inference.print_unstated_scaling(classifier, or_else=", or labelled images and --labels-from-folders")
    else:
        to_stderr(sentence)
    return classifier


def _outcomes(classifier, found, names):
    """True and predicted classes of the labelled images that can be used, int arrays."""
    usable = [one for one in predictions(classifier, found, names) if one.error is None]
    truth = [names.index(one.label) for one in usable]
    return np.array(truth, int), np.array([one.probabilities.argmax() for one in usable], int)


class Tally:
    """Counts of predictions, in memory that does not grow with the images."""

    def __init__(self, names):
        self.names, self.counted, self.failed = names, 0, 0
        self.confusion = np.zeros((len(names), len(names)), int)

    def add(self, prediction):
        self.failed += prediction.error is not None
        self.counted += prediction.error is None
        if prediction.error is None and prediction.label is not None:
            self.confusion[self.names.index(prediction.label), prediction.probabilities.argmax()] += 1

    @property
    def accuracy(self):
        """The share of labelled images whose most probable class is the label, in [0, 1]."""
        return float(np.trace(self.confusion) / max(self.confusion.sum(), 1))

    @property
    def exit_code(self):
        if not self.counted:
            return ALL_UNUSABLE
        return SOME_FAILED if self.failed else 0

    def text(self):
        """Accuracy with its interval and the confusion matrix, true classes as rows."""
        count = int(self.confusion.sum())
        names = [printable(name) for name in self.names]
        rows = [[name, *row] for name, row in zip(names, self.confusion.tolist(), strict=True)]
        line = f"accuracy {accuracy_interval([self.accuracy], count).accuracy(2)} of {count:,} images"
        if beside := beside_accuracy(self.confusion):
            balanced, share = beside["balanced_accuracy"], beside["majority_share"]
            line += f"; balanced accuracy {balanced:.2%}, as the largest class alone is {share:.1%} of them"
        return f"\n{line}\n{tabulate(rows, ['true, predicted', *names], 'plain')}"


class PredictionWriter:
    """Prints one line for each prediction: its `top` classes, and in a CSV file the label of `labelled` images."""

    def __init__(self, form, names, top, *, labelled):
        self.names, self.top, self.labelled = names, top, labelled
        self.line = {"table": self._table, "json": self._json, "csv": self._csv}[form]
        self.width = max(len(printable(name)) for name in names)
        if form == "csv":
            numbered = [(f"class_{place}", f"probability_{place}") for place in range(1, top + 1)]
            self._print(_csv_line(["image", *itertools.chain(*numbered), *["label"] * labelled, "error"]))

    def __call__(self, prediction):
        if prediction.error:
            tqdm.write(f"error: {printable(prediction.error)}", file=sys.stderr)
        if line := self.line(prediction):
            self._print(line)

    @staticmethod
    def _print(line):
        tqdm.write(line, file=sys.stdout)

    def _best(self, prediction):
        """`(name, probability)` of the most probable classes."""
        if prediction.error:
            return []
        order = np.argsort(-prediction.probabilities, kind="stable")[: self.top]
        return [(self.names[i], round(float(prediction.probabilities[i]), 6)) for i in order]

    def _table(self, prediction):
        best = [f"{probability:6.1%} {printable(name):{self.width}}" for name, probability in self._best(prediction)]
        return best and "  ".join([*best, printable(prediction.image)])

    def _json(self, prediction):
        best = [{"class": name, "probability": probability} for name, probability in self._best(prediction)]
        facts = {"image": prediction.image, "top": best, "label": prediction.label, "error": prediction.error}
        return json.dumps({name: value for name, value in facts.items() if value})

    def _csv(self, prediction):
        best = list(itertools.chain(*self._best(prediction))) or [""] * (2 * self.top)
        return _csv_line([prediction.image, *best, *[prediction.label] * self.labelled, prediction.error])


def _csv_line(values):
    buffer = io.StringIO()  # the writer quotes a line's end within a value only where its own lines end so
    csv.writer(buffer, lineterminator="\n").writerow("" if value is None else printable(value) for value in values)
    return buffer.getvalue().removesuffix("\n")


class Painter:
    """Writes the Grad-CAM overlay of each image for its most probable class, `<number>_<name>_<class>.png`.

    Raises: ConfigError where the model has no gradient, or no layer with height and width.
    """

    def __init__(self, classifier, folder):
        from cifar_keras.explain.base import NotApplicable  # seaborn comes with it
        from cifar_keras.explain.gradcam import GradCam

        self.classifier, self.folder, self.count = classifier, folder, 0
        if classifier.network.model is None:
            raise ConfigError(
                f"`--gradcam` needs the model as .keras or .h5. Received: {classifier.network.path}, without gradients."
            )
        try:
            self.maps = GradCam(classifier.network.model, size=classifier.size)
            self._map(np.zeros((*classifier.size, 3), "uint8"), 0)
        except (NotApplicable, ValueError, KeyError) as error:
            message = f"`--gradcam` can't look into this model ({error}). It must have a convolution."
            raise ConfigError(message) from None
        if self.maps.note:
            to_stderr(self.maps.note)

    def _map(self, pixels, chosen):
        (heat,) = self.maps(self.classifier.scaled_pixels(pixels[None]), [chosen])
        return heat

    def paint(self, prediction):
        from cifar_keras.explain.gradcam import overlay

        self.count += 1
        chosen = prediction.probabilities.argmax()
        names = (Path(prediction.image).stem, self.classifier.class_names[chosen])
        short = (os.fsencode(file_name(name))[:80].decode(errors="ignore") for name in names)
        heat = self._map(prediction.pixels, chosen)
        with replacing(self.folder / f"{self.count:06d}_{'_'.join(short)}.png") as temporary:
            overlay(prediction.pixels, heat).save(temporary, format="png")
