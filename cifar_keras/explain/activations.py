"""Feature maps stage by stage, and the first layer's kernels."""

import keras
import numpy as np

from cifar_keras.explain.base import Section
from cifar_keras.explain.flatten import flattened, plain
from cifar_keras.explain.gradcam import spatial_layers
from cifar_keras.plotting import drawn, titled

SHOWN_CHANNELS = 6  # of each stage: those that vary most over the image


def stages(model):
    """The last layer at each size that the model's features take, in order: `{(height, width): name}`.

    Raises: NotApplicable for a model without spatial layers.
    """
    found = {}
    for name in spatial_layers(model := flattened(model)):
        if not isinstance(plain(layer := model.get_layer(name)), keras.layers.ZeroPadding2D):
            found[tuple(layer.output.shape[1:3])] = name
    return found


def kernels(model):
    """The first convolution's kernels in RGB, float `(height, width, 3, filters)`; None where its input is no RGB."""
    within = [plain(layer) for layer in flattened(model).layers]
    swapped = any(layer.name == "scaling_caffe" for layer in within)  # whose output is BGR
    for layer in within:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and len(kernel.shape) == 4 and not layer.name.startswith("scaling"):
            seen = isinstance(layer, keras.layers.Conv2D) and kernel.shape[2] == 3
            weights = keras.ops.convert_to_numpy(kernel)
            return (weights[:, :, ::-1] if swapped else weights) if seen else None
    return None


@drawn
def activations(model, images, labels, class_names) -> Section:
    """The channels that vary most at every stage, for some images, and the first layer's kernels.

    Args:
        model: a saved model, functional or sequential.
        images: a few, uint8 `(n, height, width, 3)`, RGB in [0, 255]; each makes a figure.
        labels: int `(n,)`.
        class_names: one per class.
    """
    found = stages(model := flattened(model))
    outputs = keras.Model(model.input, [model.get_layer(name).output for name in found.values()])
    maps = outputs.predict_on_batch(np.asarray(images))
    maps = [np.asarray(stage, "float32") for stage in (maps if isinstance(maps, list) else [maps])]
    figures = {
        f"maps{place}": _maps_figure(picture, [stage[place] for stage in maps], found, class_names[labels[place]])
        for place, picture in enumerate(images)
    }
    descriptions = {
        name: f"Feature maps of an image of {class_names[label]}, one row per stage."
        for name, label in zip(figures, labels, strict=True)
    }
    if (weights := kernels(model)) is not None:
        figures["kernels"] = _kernels_figure(weights)
        descriptions["kernels"] = "Kernels of the first convolution, as colours."
    numbers = {"stages": {f"{height} x {width}": name for (height, width), name in found.items()}}
    sentence = f"Channels shown are the {SHOWN_CHANNELS} that vary most over the image, each scaled to its own range."
    return Section("activations", "What its layers see", figures, descriptions, numbers, sentences=(sentence,))


def _maps_figure(picture, stages_maps, found, name):
    figure = titled(f"feature maps: {name}", size=(1.0 * SHOWN_CHANNELS, 0.5 + 1.25 * (len(found) + 1)))
    panels = figure.subplots(len(found) + 1, SHOWN_CHANNELS, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    panels[0, 0].imshow(picture, interpolation="nearest")
    for row, stage, ((height, width), layer) in zip(panels[1:], stages_maps, found.items(), strict=True):
        row[0].set_title(f"{layer}, {height} x {width}", fontsize=8, loc="left")
        for panel, channel in zip(row, varying(stage), strict=False):
            panel.imshow(stage[..., channel], cmap="viridis", interpolation="nearest")
    return figure


def varying(stage):
    """The channels of a feature map `(height, width, channels)` that vary most over spatial positions."""
    return np.argsort(-stage.std(axis=(0, 1)), kind="stable")[:SHOWN_CHANNELS]


def _kernels_figure(weights):
    """At most 64 kernels, each stretched around grey so that zero stays grey."""
    count = min(64, weights.shape[-1])
    rows, columns = -(-count // min(8, count)), min(8, count)
    title = f"the first layer's kernels ({count} of {weights.shape[-1]})"
    figure = titled(title, size=(0.6 * columns, 0.6 + 0.6 * rows))
    for place, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        panel.axis("off")
        if place < count:
            kernel = weights[..., place]
            panel.imshow(0.5 + kernel / (2 * max(1e-12, np.abs(kernel).max())), interpolation="nearest")
    return figure
