"""Grad-CAM: which regions of an image speak for a class (Selvaraju et al., arXiv:1610.02391, section 3)."""

import keras
import matplotlib
import numpy as np
from PIL import Image

from cifar_keras.explain.base import NotApplicable, Section, spread
from cifar_keras.explain.flatten import Call, flattened, plain
from cifar_keras.plotting import drawn, short, titled

GALLERY_ROWS = 6  # of right predictions, and of wrong ones
OPACITY = 0.55  # of a map over its image
RESHAPING = (  # layers that leave scores as they are
    keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout, keras.layers.Identity, keras.layers.Activation,
)  # fmt: skip
TO_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)
PERMUTING = (keras.layers.Permute, keras.layers.Reshape)  # may move cells and still keep height and width
STRETCHED = "A layer before {} permutes spatial positions, so its map is stretched over the whole image."


def spatial_layers(model):
    """The names of layers from the first convolution on whose output has spatial positions, in order.

    Args:
        model: functional or sequential, possibly with nested models; names are those of `flattened(model)`.
    Raises: NotApplicable if there is none, or the channels come first.
    """
    names, sees = [], False
    for layer in flattened(model).layers:
        sees = sees or (has_kernel(layer) and not plain(layer).name.startswith("scaling_"))
        shape = layer.output.shape if hasattr(layer.output, "shape") else ()
        if sees and len(shape) == 4 and None not in shape[1:3] and shape[1] * shape[2] > 1:
            if getattr(plain(layer), "data_format", None) == "channels_first":
                raise NotApplicable(f"layer {layer.name} has its channels first; they must come last")
            names.append(layer.name)
    if not names:
        raise NotApplicable("the model has no layer with height and width")
    return names


def has_kernel(layer):
    """Whether a layer mixes channels or positions by weights: a convolution or a dense layer, but no normalisation."""
    return any(len(weight.shape) > 1 for weight in layer.weights)


def logits_of(model):
    """The scores before the softmax or sigmoid, `(batch, classes)`; a single output has two.

    If the activation is part of the last layer, the layer is called again without it. If probabilities come from
    anything else, such as the mean of several softmaxes, the score is their logarithm. Other models put out scores.

    Args:
        model: from `flattened`.
    """
    producers, (end,) = {id(layer.output): layer for layer in model.layers}, model.outputs
    after, tensor = [], end
    while isinstance(plain(layer := producers[id(tensor)]), RESHAPING) and _activation(layer) is None:
        after.append(layer)
        tensor = layer.input
    if _activation(layer) in TO_PROBABILITIES:
        scores = _without_activation(layer)
        for passed in reversed(after):
            scores = Call(plain(passed), f"{passed.name}.logits")(scores)
    else:
        scores = keras.ops.log(end + 1e-12) if _holds_probabilities(end, producers) else end
        if scores is not end and end.shape[-1] == 1:
            scores = scores - keras.ops.log(1 - end + 1e-12)
    return keras.ops.concatenate([-scores, scores], axis=-1) if end.shape[-1] == 1 else scores


def _activation(layer):
    """The activation function of a layer; None for none, or the identity."""
    layer = plain(layer)
    found = keras.activations.softmax if isinstance(layer, keras.layers.Softmax) else getattr(layer, "activation", None)
    return None if found is keras.activations.linear else found


def _without_activation(layer):
    """The input of a layer's activation: the output of the same layer, called again without it."""
    bare = plain(layer)
    if isinstance(bare, keras.layers.Softmax | keras.layers.Activation):
        return layer.input
    settings = {**bare.get_config(), "activation": "linear", "name": f"{layer.name}.logits"}
    scores = (copy := type(bare).from_config(settings))(layer.input)
    copy.set_weights(bare.get_weights())
    return scores


def _holds_probabilities(end, producers):
    """Whether there is a softmax or sigmoid between a tensor and the last weights before it."""
    waiting = [end]
    while waiting:
        layer = producers.get(id(waiting.pop()))
        if layer is None:
            continue
        if _activation(layer) in TO_PROBABILITIES:
            return True
        if not layer.weights and not isinstance(plain(layer), keras.layers.Multiply):  # by which gates work
            waiting += _inputs(layer)
    return False


def _inputs(layer):
    """The tensors that a layer of a flat model is called with; none for the input layer."""
    return [] if isinstance(layer, keras.layers.InputLayer) else keras.tree.flatten(layer.input)


class GradCam:
    """Maps of how much each position of an image speaks for a class: `GradCam(model)(images, classes)`.

    Args:
        model: a saved model (`artifacts.load`): functional or sequential, possibly with nested models.
        layer: name of the layer whose positions are weighed; None for the last of `spatial_layers`.
        size: `(height, width)` of the images, needed where the model leaves them open.

    Attributes:
        layer: the name of that layer.
        note: a sentence where the positions of its cells are not known; else empty.
    Raises: ValueError naming the spatial layers, if `layer` is none of them; NotApplicable for a model without any, and
        where Keras runs on another backend than TensorFlow, which computes the gradient.
    """

    def __init__(self, model, *, layer=None, size=None):
        model = flattened(model, size=size)
        spatial = spatial_layers(model)
        self.layer = layer or spatial[-1]
        if self.layer not in spatial:
            raise ValueError(f"`layer` must be one of {', '.join(spatial)}. Received: {layer!r}.")
        if keras.backend.backend() != "tensorflow":
            raise NotApplicable("its gradient comes from TensorFlow: KERAS_BACKEND=tensorflow")
        features = model.get_layer(self.layer).output
        self.positions = centres(model, self.layer)
        self.note = "" if id(features) in positions_of(model) else STRETCHED.format(self.layer)
        self._both = keras.Model(model.inputs[0], [features, logits_of(model)])

    def __call__(self, images, classes, *, batch_size=32):
        """Maps of images, each for one class.

        Args:
            images: `(n, height, width, 3)` as the model takes them: uint8, RGB in [0, 255], for one of this project.
            classes: int `(n,)`, the class of each map.
            batch_size: images at a time.
        Returns: float32 `(n, height, width)` in [0, 1], each divided by its maximum; all zero where nothing speaks for
            its class.
        """
        import tensorflow as tf

        maps = []
        for start in range(0, len(images), batch_size):
            block = np.asarray(images[start : start + batch_size])
            chosen = np.asarray(classes[start : start + batch_size], "int32")
            with tf.GradientTape() as tape:
                tape.watch([weight.value for weight in self._both.weights])  # frozen ones too, or nothing is recorded
                features, logits = self._both(block, training=False)
                score = tf.reduce_sum(tf.gather(logits, chosen, batch_dims=1))
            if (gradient := tape.gradient(score, features)) is None:
                raise NotApplicable(f"no gradient of its scores reaches layer {self.layer}")
            arrays = (np.asarray(values, "float32") for values in (features, gradient))
            maps.append(weighed(*arrays, block.shape[1:3], self.positions))
        return np.concatenate(maps)


def weighed(features, gradient, size, positions):
    """The rectified sum of channels, each weighed by its mean gradient, interpolated between the cells' positions.

    Args:
        features: float `(n, h, w, channels)`.
        gradient: of the class's logit by them, the same shape.
        size: `(height, width)` of the maps.
        positions: of the cells on the image, see `centres`.
    Returns: float32 `(n, height, width)` in [0, 1].
    """
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((features * weights).sum(axis=-1), 0)
    axes = zip(positions, maps.shape[1:], size, strict=True)
    rows, columns = (_between((np.arange(pixels) - start) / step, cells) for (start, step), cells, pixels in axes)
    maps = np.einsum("yi,nij,xj->nyx", rows, maps, columns).astype("float32")
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def _between(positions, cells):
    """Weights of linear interpolation at positions counted in cells, float `(positions, cells)`; constant outside."""
    return np.stack([np.interp(positions, np.arange(cells), one) for one in np.eye(cells)], axis=1)


def centres(model, name):
    """Where the cells of a layer's output lie on the image, by the windows, strides and paddings before it.

    Stretching the map over the whole image would shift it where a network drops an edge: five layers without padding
    reduce 32 pixels to 3 cells, at pixels 4, 12 and 20. It is the fallback where an earlier layer permutes positions.

    Args:
        model: from `flattened`.
        name: of a layer with height and width.
    Returns: `((start, step), (start, step))`, rows and columns, in pixels: cell i lies at start + i * step.
    """
    features, sides = model.get_layer(name).output, model.inputs[0].shape[1:3]
    even = (_resized(pixels, cells) for pixels, cells in zip(sides, features.shape[1:3], strict=True))
    return positions_of(model).get(id(features)) or tuple(even)


def positions_of(model):
    """Where the cells of every layer's output lie, in the form of `centres`, by the id of the output.

    Outputs whose cells have no known position are left out. Where branches meet, the first one of the output's height
    and width counts: the gates of a squeeze-and-excitation block have one cell, and branches of one size are aligned.
    """
    known = {id(model.inputs[0]): ((0.0, 1.0), (0.0, 1.0))}
    for layer in model.layers:
        candidates = [tensor for tensor in _inputs(layer) if id(tensor) in known and len(tensor.shape) == 4]
        if (shape := getattr(layer.output, "shape", ())) and len(shape) == 4 and None not in shape[1:3]:
            if len(_inputs(layer)) > 1:
                candidates = [tensor for tensor in candidates if tensor.shape[1:3] == shape[1:3]]
            sizes = [(one.shape[1:3], shape[1:3]) for one in candidates[:1]]
            windows = [_window(plain(layer), axis, *size) for size in sizes for axis in (0, 1)]
            if windows and None not in windows:
                known[id(layer.output)] = tuple(
                    (start + step * offset, step * stride)
                    for (start, step), (offset, stride) in zip(known[id(candidates[0])], windows, strict=True)
                )
    return known


def _window(layer, axis, before, after):
    """`(offset, stride)` of a layer along an axis: output cell j lies at offset + j * stride, in input cells.

    Args:
        layer: with one input that has positions, or several of one size.
        axis: 0 for rows, 1 for columns.
        before: `(height, width)` of that input.
        after: `(height, width)` of its output.
    Returns: None where it is not known.
    """
    cells, found = before[axis], after[axis]
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return -float(layer.padding[axis][0]), 1.0
    if isinstance(layer, keras.layers.Cropping2D):
        return float(layer.cropping[axis][0]), 1.0
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return _transposed(layer, axis)
    size = getattr(layer, "pool_size", None) or getattr(layer, "kernel_size", None)
    if size and hasattr(layer, "padding"):
        stride = layer.strides[axis]
        reach = (size[axis] - 1) * getattr(layer, "dilation_rate", (1, 1))[axis]
        missing = max((-(-cells // stride) - 1) * stride + reach + 1 - cells, 0) if layer.padding == "same" else 0
        return reach / 2 - missing // 2, stride
    if isinstance(layer, keras.layers.CenterCrop | keras.layers.RandomCrop) and before != after:
        covered = all(had >= has for had, has in zip(before, after, strict=True))
        return (float((cells - found) // 2), 1.0) if covered else None
    if isinstance(layer, keras.layers.UpSampling2D | keras.layers.Resizing):
        keeps = getattr(layer, "crop_to_aspect_ratio", False) or getattr(layer, "pad_to_aspect_ratio", False)
        return None if keeps and before[0] * after[1] != before[1] * after[0] else _resized(cells, found)
    return (0.0, 1.0) if cells == found and not isinstance(layer, PERMUTING) else None


def _transposed(layer, axis):
    """As `_window`, for a transposed convolution: the inverse of the convolution whose gradient it is."""
    stride, reach = layer.strides[axis], (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis]
    if layer.output_padding is not None:
        return None
    missing = max(reach + 1 - stride, 0) if layer.padding == "same" else 0
    return (missing // 2 - reach / 2) / stride, 1 / stride


def _resized(cells, found):
    """As `_window`, for cells spread evenly over the same area."""
    return (cells / found - 1) / 2, cells / found


def overlay(pixels, heat, *, side=224):
    """A picture of a map over its grey image.

    Args:
        pixels: uint8 `(height, width, 3)`, RGB in [0, 255].
        heat: float `(height, width)` in [0, 1], from `GradCam`.
        side: the least length of the picture's shorter side, in pixels.
    Returns: `PIL.Image.Image`, RGB.
    """
    grey = Image.fromarray(pixels).convert("L").convert("RGB")
    colours = Image.fromarray(matplotlib.colormaps["inferno"](heat, bytes=True)[..., :3])
    factor = max(1, -(-side // min(grey.size)))
    size = (grey.width * factor, grey.height * factor)
    return Image.blend(grey.resize(size, Image.Resampling.NEAREST), colours.resize(size), OPACITY)


@drawn
def looked_at(model, images, labels, predicted, class_names, *, layer=None) -> Section:
    """Overlays of right and of wrong predictions: what speaks for the predicted class.

    Args:
        model: a saved model.
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255], anything indexable.
        labels: int `(n,)`.
        predicted: int `(n,)`, the model's.
        class_names: one per class.
        layer: as for `GradCam`.
    """
    rows = {"right": np.flatnonzero(predicted == labels), "wrong": np.flatnonzero(predicted != labels)}
    rows = {name: spread(chosen, labels, GALLERY_ROWS) for name, chosen in rows.items() if len(chosen)}
    figure = titled("what speaks for the predicted class", size=(5.6, 0.5 + 1.75 * max(map(len, rows.values()))))
    panels = figure.subplots(max(map(len, rows.values())), 4, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    sides = {"right": panels[:, :2], "wrong": panels[:, 2:]}
    maps_of = GradCam(model, layer=layer)
    for name, chosen in rows.items():
        pictures = np.stack([np.asarray(images[int(i)]) for i in chosen])
        maps = maps_of(pictures, predicted[chosen])
        for (left, right), i, picture, heat in zip(sides[name], chosen, pictures, maps, strict=False):
            left.imshow(picture, interpolation="nearest")
            right.imshow(picture.mean(axis=-1), cmap="gray", interpolation="nearest")
            right.imshow(heat, cmap="inferno", alpha=OPACITY, vmin=0, vmax=1, interpolation="bilinear")
            left.set_title(f"{name}: {short(class_names[predicted[i]], 22)}", fontsize=8)
            right.set_title("" if name == "right" else f"is {short(class_names[labels[i]], 22)}", fontsize=8)
    sentence = f"Grad-CAM at layer {maps_of.layer}; bright regions speak for the predicted class."
    return Section(
        "gradcam", "What it looks at", {"overlays": figure},
        {"overlays": "Right predictions on the left and wrong ones on the right, each beside its Grad-CAM map."},
        {"layer": maps_of.layer, "images shown": {name: chosen.tolist() for name, chosen in rows.items()}},
        sentences=tuple(filter(None, (sentence, maps_of.note))),
    )  # fmt: skip
