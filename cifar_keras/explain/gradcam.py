"""Grad-CAM: which places of an image speak for a class (Selvaraju et al., arXiv:1610.02391, section 3)."""

import keras
import matplotlib
import numpy as np
from PIL import Image

from cifar_keras.explain.base import NotApplicable, Section, drawn, figure_of, spread

SHOWN = 6  # right predictions, and wrong ones
OPACITY = 0.55  # of a map over its image


def spatial_layers(model):
    """The names of layers behind the first weights whose output has places, in order.

    Raises: NotApplicable if there is none.
    """
    names, weighted = [], False
    for layer in model.layers:
        weighted = weighted or (bool(layer.weights) and not layer.name.startswith("scaling_"))
        shape = () if isinstance(layer.output, list) else layer.output.shape
        if weighted and len(shape) == 4 and None not in shape[1:3] and shape[1] * shape[2] > 1:
            names.append(layer.name)
    if not names:
        raise NotApplicable("the model has no layer with height and width")
    return names


def logits_of(model):
    """The tensor in front of the softmax; the logarithm of the output where the softmax is part of a layer."""
    for layer in reversed(model.layers):
        if layer.name == "logits":
            return layer.output
    return keras.ops.log(model.output + 1e-12)


def gradcam(model, images, classes, *, layer=None, batch_size=32):
    """Maps of how much each place speaks for a class.

    Args:
        model: a saved model (`artifacts.load`), functional.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255].
        classes: int `(n,)`, the class that each map is about.
        layer: name of the layer whose places are weighed; None takes the last of `spatial_layers`.
        batch_size: images at a time.
    Returns: float32 `(n, height, width)` in [0, 1], each divided by its maximum; all zero where nothing speaks for it.
    Raises: ValueError naming the layers with places, if `layer` is none of them; NotApplicable for a model without any,
        and where Keras computes on another backend than TensorFlow, from which the gradient comes.
    """
    spatial = spatial_layers(model)
    name = layer or spatial[-1]
    if name not in spatial:
        raise ValueError(f"`layer` must be one of {', '.join(spatial)}. Received: {name!r}.")
    if keras.backend.backend() != "tensorflow":
        raise NotApplicable("its gradient comes from TensorFlow: KERAS_BACKEND=tensorflow")
    import tensorflow as tf

    both = keras.Model(model.input, [model.get_layer(name).output, logits_of(model)])
    places, maps = centres(model, name), []
    for start in range(0, len(images), batch_size):
        block = np.asarray(images[start : start + batch_size])
        chosen = np.asarray(classes[start : start + batch_size], "int32")
        with tf.GradientTape() as tape:
            tape.watch([weight.value for weight in both.weights])  # frozen ones too, or the tape records nothing
            features, logits = both(block, training=False)
            score = tf.reduce_sum(tf.gather(logits, chosen, batch_dims=1))
        gradient = tape.gradient(score, features)
        maps.append(weighed(*(np.asarray(x, "float32") for x in (features, gradient)), block.shape[1:3], places))
    return np.concatenate(maps)


def weighed(features, gradient, size, places):
    """The rectified sum of channels, each weighed by its mean gradient, interpolated between the cells' places.

    Args:
        features: float `(n, h, w, channels)`.
        gradient: of the class's logit by them, the same shape.
        size: `(height, width)` of the maps.
        places: of the cells on the image, see `centres`.
    Returns: float32 `(n, height, width)` in [0, 1].
    """
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((features * weights).sum(axis=-1), 0)
    axes = zip(places, maps.shape[1:], size, strict=True)
    rows, columns = (_between((np.arange(pixels) - start) / step, cells) for (start, step), cells, pixels in axes)
    maps = np.einsum("yi,nij,xj->nyx", rows, maps, columns).astype("float32")
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def _between(positions, cells):
    """Weights of linear interpolation at positions counted in cells, float `(positions, cells)`; constant outside."""
    return np.stack([np.interp(positions, np.arange(cells), one) for one in np.eye(cells)], axis=1)


def centres(model, name):
    """Where the cells of a layer's output lie on the image, by the windows, strides and paddings in front of it.

    Stretching the map over the whole image instead would shift it where a network leaves out an edge: five layers
    without padding take 32 pixels to 3 cells, which lie at pixels 4, 12 and 20.

    Args:
        model: functional.
        name: of a layer with height and width.
    Returns: `((start, step), (start, step))`, rows and columns, in pixels: cell i lies at start + i * step.
    """
    producers = {id(layer.output): layer for layer in model.layers}
    layer, path, entering = model.get_layer(name), [], None
    while entering is not model.inputs[0]:
        entering = layer.input[0] if isinstance(layer.input, list) else layer.input  # branches are aligned
        path.append((layer, entering.shape[1:3]))
        layer = producers.get(id(entering))
    axes = []
    for axis in (0, 1):
        start, step = 0.0, 1.0
        for layer, sizes in reversed(path):
            offset, stride = _window(layer, axis, sizes[axis])
            start, step = start + step * offset, step * stride
        axes.append((start, step))
    return tuple(axes)


def _window(layer, axis, cells):
    """`(offset, stride)` of a layer along an axis: output cell j lies at offset + j * stride, in input cells."""
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return -float(layer.padding[axis][0]), 1.0
    size = getattr(layer, "pool_size", None) or getattr(layer, "kernel_size", None)
    if size and hasattr(layer, "padding"):
        stride = layer.strides[axis]
        reach = (size[axis] - 1) * getattr(layer, "dilation_rate", (1, 1))[axis]
        missing = max((-(-cells // stride) - 1) * stride + reach + 1 - cells, 0) if layer.padding == "same" else 0
        return reach / 2 - missing // 2, stride
    ratio = cells / layer.output.shape[1 + axis]  # a resizing; 1 where the size stays
    return (ratio - 1) / 2, ratio


def overlay(pixels, heat, *, side=224):
    """A picture of a map over its image in grey.

    Args:
        pixels: uint8 `(height, width, 3)`, RGB in [0, 255].
        heat: float `(height, width)` in [0, 1], from `gradcam`.
        side: in pixels, that the picture's shorter side has at least.
    Returns: `PIL.Image.Image`, RGB.
    """
    grey = Image.fromarray(pixels).convert("L").convert("RGB")
    colours = Image.fromarray(matplotlib.colormaps["inferno"](heat, bytes=True)[..., :3])
    factor = max(1, -(-side // min(grey.size)))
    size = (grey.width * factor, grey.height * factor)
    return Image.blend(grey.resize(size, Image.Resampling.NEAREST), colours.resize(size), OPACITY)


@drawn
def looked_at(model, images, labels, predicted, class_names, *, layer=None):
    """Overlays of right and of wrong predictions: what speaks for the predicted class.

    Args:
        model: a saved model.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], anything indexable.
        labels: int `(n,)`.
        predicted: int `(n,)`, the model's.
        class_names: one a class.
        layer: as for `gradcam`.
    Returns: `Section`.
    """
    rows = {"right": np.flatnonzero(predicted == labels), "wrong": np.flatnonzero(predicted != labels)}
    rows = {name: spread(chosen, labels, SHOWN) for name, chosen in rows.items() if len(chosen)}
    figure = figure_of("what speaks for the class that is said", size=(5.6, 0.5 + 1.75 * max(map(len, rows.values()))))
    panels = figure.subplots(max(map(len, rows.values())), 4, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    sides = {"right": panels[:, :2], "wrong": panels[:, 2:]}
    for name, chosen in rows.items():
        pictures = np.stack([np.asarray(images[int(i)]) for i in chosen])
        maps = gradcam(model, pictures, predicted[chosen], layer=layer)
        for (left, right), i, picture, heat in zip(sides[name], chosen, pictures, maps, strict=False):
            left.imshow(picture, interpolation="nearest")
            right.imshow(picture.mean(axis=-1), cmap="gray", interpolation="nearest")
            right.imshow(heat, cmap="inferno", alpha=OPACITY, vmin=0, vmax=1, interpolation="bilinear")
            left.set_title(f"{name}: {class_names[predicted[i]]}", fontsize=8)
            right.set_title("" if name == "right" else f"is {class_names[labels[i]]}", fontsize=8)
    name = layer or spatial_layers(model)[-1]
    return Section(
        "gradcam", "What it looks at", {"overlays": figure},
        {"overlays": "Right predictions on the left and wrong ones on the right, each beside its Grad-CAM map."},
        {"layer": name, "images shown": {name: chosen.tolist() for name, chosen in rows.items()}},
        sentences=(f"Grad-CAM at layer {name}; bright places speak for the class that the model says.",),
    )  # fmt: skip
