"""A saved model without a recorded run, made ready for analysis on any dataset."""

import dataclasses

import keras

from cifar_keras.data import load
from cifar_keras.data.base import Split
from cifar_keras.explain.base import NotApplicable
from cifar_keras.explain.flatten import flattened, plain
from cifar_keras.explain.gradcam import has_kernel
from cifar_keras.saved import inference, labels
from cifar_keras.utils.text import to_stderr

NO_LAYERS = "this format has no layers to look into; .keras and .h5 have"
MAX_EMBEDDED = 2**27  # values of all embeddings together: half a GiB


def opened(path, *, dataset, data_dir=None, skip_unreadable=None, **loading):
    """`(Classifier, Dataset)`, with images at the model's size and labels by its outputs. Prints what is assumed.

    `loading` are options of `inference.load`; those that are None are left out.

    Raises: ConfigError as `inference.load` and `data.load`, and where the classes differ.
    """
    given = {option: value for option, value in loading.items() if value is not None}
    classifier = inference.load(path, **given)
    inference.print_assumptions(classifier)
    if not classifier.states_scaling and "scaling" not in given:
        inference.print_unstated_scaling(classifier)
    data = load(dataset, data_dir=data_dir, decoded_at=classifier.size, skip_unreadable=bool(skip_unreadable))
    return classifier, _for_classifier(data, classifier)


def _for_classifier(data, classifier):
    """The dataset with images at the classifier's size and labels by its outputs.

    Raises: ConfigError where the classes are not the dataset's.
    """
    order = labels.order_of(classifier, data.class_names, exact=True)
    if order.note:
        to_stderr(f"{classifier.network.path.name} {order.note}")
    splits = {
        name: Split(inference.at_size(split.images, classifier), order.outputs[split.labels].astype("int32"))
        for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
    }
    names = data.class_names if order.assumed else classifier.class_names
    return dataclasses.replace(data, class_names=tuple(names), superclass_names=(), **splits)


def whole(classifier):
    """A classifier's network as a flat model that takes uint8 images at its size and scales them.

    Returns: functional `keras.Model` with the network's output; None for a format without layers.
    """
    if classifier.network.model is None:
        return None
    inputs, x = inference.network_input(classifier)
    return flattened(keras.Model(inputs, classifier.network.model(x)))


def embedding_of(model):
    """The input of the last dense layer of a flat model, `(batch, channels)`.

    Raises: NotApplicable for a model that does not end in a dense layer.
    """
    ends = next((layer for layer in reversed(model.layers) if has_kernel(layer)), None)
    if ends is None or not isinstance(plain(ends), keras.layers.Dense) or len(ends.input.shape) != 2:
        raise NotApplicable("the model does not end in a dense layer")
    return ends.input


def without_embeddings(model, data):
    """Why a dataset's train and test images have no embeddings; None where they have."""
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
    """What a classifier, and the model from `whole`, make of a dataset, as far as the sections need it.

    Returns: `{split: (labels, probabilities, embeddings)}`: int `(n,)`, float32 `(n, classes)`, None for train, and
        float32 `(n, channels)`, None for val and where there are none or too many.
    """
    classify, embed = classifier.probabilities, None
    if without_embeddings(model, data) is None:
        embed = keras.Model(model.inputs[0], embedding_of(model)).predict_on_batch
    return {
        "train": (data.train.labels, None, through(embed, data.train, what="train")),
        "val": (data.val.labels, through(classify, data.val, what="val"), None),
        "test": (data.test.labels, *(through(function, data.test, what="test") for function in (classify, embed))),
    }


def through(function, data, *, what, **options):
    """What a function makes of a split's images, see `inference.in_blocks`; None for no function."""
    if function is None:
        return None
    print(f"through the model: {len(data):,} {what} images", flush=True)
    return inference.in_blocks(function, data.images, what=what, **options)
