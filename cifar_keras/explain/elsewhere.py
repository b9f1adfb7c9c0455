"""A saved model of no recorded run, from elsewhere or ours, made ready for analysis on any dataset."""

import dataclasses
import sys

import keras
import numpy as np
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data import load
from cifar_keras.data.base import Rows, Split
from cifar_keras.data.pipeline import evaluation_pipeline
from cifar_keras.explain.base import NotApplicable
from cifar_keras.explain.flatten import flattened, plain
from cifar_keras.explain.gradcam import has_kernel
from cifar_keras.saved import inference

NO_LAYERS = "this format has no layers to look into; .keras and .h5 have"
MAX_EMBEDDED = 2**27  # values of all embeddings together: half a GiB


def opened(path, *, dataset, data_dir=None, skip_unreadable=None, **loading):
    """The model and the dataset for it: images at its size, labels by its outputs. What is assumed is printed.

    Args:
        path: of the model, in any format that `inference.load` takes.
        dataset: as `--dataset`.
        data_dir: as `--data-dir`.
        skip_unreadable: as `--skip-unreadable`.
        loading: options of `inference.load`; None leaves one out.
    Returns: `(inference.Classifier, Dataset)`.
    Raises: ConfigError as `inference.load` and `data.load` do, and where the classes are others.
    """
    given = {option: value for option, value in loading.items() if value is not None}
    classifier = inference.load(path, **given)
    inference.print_assumptions(classifier)
    if not classifier.states_scaling and "scaling" not in given:
        inference.print_unstated_scaling(classifier)
    size = {"decoded_at": classifier.size, "skip_unreadable": bool(skip_unreadable)}
    data = load(dataset, data_dir=data_dir, **size)
    return classifier, _for_classifier(data, classifier)


def _for_classifier(data, classifier):
    """The dataset with images at the model's size and labels by the model's outputs.

    Args:
        data: `Dataset`.
        classifier: `inference.Classifier`.
    Raises: ConfigError where the classes are not the dataset's.
    """
    names, wanted, named = data.class_names, classifier.class_names, "class_names" in classifier.provenance
    if len(names) != len(wanted) or (named and set(names) != set(wanted)):
        raise ConfigError(
            f"The dataset must have the model's {len(wanted)} classes, {', '.join(wanted[:20])}. Received: "
            f"{data.label} with {len(names)}, {', '.join(names[:20])}."
        )
    if not named:
        wanted = names
        listed = ", ".join(f"{place} {name}" for place, name in enumerate(names[:10])) + ", ..." * (len(names) > 10)
        print(f"{classifier.network.path.name} names no classes; assumed: {listed}", file=sys.stderr)
    number = np.array([wanted.index(name) for name in names], "int32")
    splits = {
        name: Split(_brought(split.images, classifier), number[split.labels])
        for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
    }
    return dataclasses.replace(data, class_names=tuple(wanted), superclass_names=(), **splits)


def _brought(images, classifier):
    """A split's images at the size that a model takes, made when they are read."""
    if tuple(images.shape[1:3]) == tuple(classifier.size):
        return images
    return Rows(Brought(images, classifier), np.arange(len(images)))


class Brought:
    """Images at a model's size, made when indexed: a whole split of them may not fit into memory.

    Args:
        images: uint8 `(n, height, width, 3)`; an array or `Rows`.
        classifier: `inference.Classifier`.
    """

    def __init__(self, images, classifier):
        self.images, self.classifier = images, classifier
        self.shape, self.ndim, self.dtype = (len(images), *classifier.size, 3), 4, images.dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        """`key` is an int or an array of indices."""
        found = np.asarray(self.images[key])
        if found.ndim == 3:
            return self.classifier.pixels(found)
        return np.stack([self.classifier.pixels(image) for image in found]) if len(found) else self._empty()

    def _empty(self):
        return np.empty((0, *self.shape[1:]), self.dtype)


def whole(classifier):
    """A classifier's network as a flat model of uint8 images at its size, the scaling of pixels within.

    Returns: functional `keras.Model`, whose output is the network's; None for a format without layers.
    """
    if classifier.network.model is None:
        return None
    inputs, x = inference.network_input(classifier)
    return flattened(keras.Model(inputs, classifier.network.model(x)))


def embedding_of(model):
    """What enters the layer of logits: the last dense layer's input, `(batch, channels)`, in a flat model.

    Raises: NotApplicable for a model that does not end in a dense layer.
    """
    ends = next((layer for layer in reversed(model.layers) if has_kernel(layer)), None)
    if ends is None or not isinstance(plain(ends), keras.layers.Dense) or len(ends.input.shape) != 2:
        raise NotApplicable("the model does not end in a dense layer")
    return ends.input


def without_embeddings(model, data):
    """Why there are none of a dataset's train and test images; None where there are."""
    if model is None:
        return NO_LAYERS
    try:
        channels = embedding_of(model).shape[-1]
    except NotApplicable as reason:
        return str(reason)
    if channels * (count := len(data.train) + len(data.test)) <= MAX_EMBEDDED:
        return None
    return f"{count:,} embeddings of {channels:,} channels would take too much memory"


def computed_by(classifier, model, data):
    """What a model makes of a dataset, as far as a section needs it.

    Args:
        classifier: `inference.Classifier`.
        model: its `whole`; None for a format without layers.
        data: from `opened`; of train, what is to be compared.
    Returns: `{split: (labels, probabilities, embeddings)}`: int `(n,)`, float32 `(n, classes)` or None for train, and
        float32 `(n, channels)` or None: for val, and for all where there are none or they are too many.
    """
    classify, embed = classifier.probabilities, None
    if without_embeddings(model, data) is None:
        embed = keras.Model(model.inputs[0], embedding_of(model)).predict_on_batch
    return {
        "train": (data.train.labels, None, _through(embed, data.train, what="train")),
        "val": (data.val.labels, _through(classify, data.val, what="val"), None),
        "test": (data.test.labels, *(_through(function, data.test, what="test") for function in (classify, embed))),
    }


def _through(function, data, *, what):
    """What a function makes of a split's images, float32, block after block with progress; None of no function."""
    if function is None:
        return None
    print(f"through the model: {len(data):,} {what} images", flush=True)
    parts = []
    with tqdm(total=len(data), unit=" images", desc=what, disable=None, leave=False) as bar:
        for images, _ in evaluation_pipeline(data, batch_size=inference.BATCH):
            parts.append(np.asarray(function(images.numpy()), "float32"))
            bar.update(len(images))
    return np.concatenate(parts)
