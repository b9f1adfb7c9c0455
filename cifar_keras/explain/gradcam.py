"""Grad-CAM: which places of an image speak for a class (Selvaraju et al., arXiv:1610.02391, section 3)."""

import keras
import numpy as np

from cifar_keras.explain.base import Section, figure_of

SHOWN = 8  # images a row of the figure


def last_spatial(model):
    """The name of the last layer whose output has places: where Grad-CAM looks if nothing else is said.

    Raises: ValueError if there is none.
    """
    for layer in reversed(model.layers):
        shape = getattr(layer, "output", None) is not None and layer.output.shape
        if shape and len(shape) == 4 and shape[1] is not None and shape[1] * shape[2] > 1:
            return layer.name
    raise ValueError("`model` must have a layer with height and width. Received: one without.")


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
        layer: name of the layer whose places are weighed; None takes the last with any.
        batch_size: images at a time.
    Returns: float32 `(n, height, width)` in [0, 1], each divided by its maximum; all zero where nothing speaks for it.
    Raises: ValueError naming the layers with places, if `layer` is none of them.
    """
    import tensorflow as tf  # the gradient

    name = layer or last_spatial(model)
    spatial = [one.name for one in model.layers if len(one.output.shape) == 4]
    if name not in spatial:
        raise ValueError(f"`layer` must be one of {', '.join(spatial)}. Received: {name!r}.")
    both = keras.Model(model.input, [model.get_layer(name).output, logits_of(model)])
    maps = []
    for start in range(0, len(images), batch_size):
        block = np.asarray(images[start : start + batch_size])
        chosen = np.asarray(classes[start : start + batch_size], "int32")
        with tf.GradientTape() as tape:
            tape.watch([weight.value for weight in both.weights])  # frozen ones too, or the tape records nothing
            features, logits = both(block, training=False)
            score = tf.reduce_sum(tf.gather(logits, chosen, batch_dims=1))
        gradient = tape.gradient(score, features)
        maps.append(weighed(features.numpy(), gradient.numpy(), block.shape[1:3]))
    return np.concatenate(maps)


def weighed(features, gradient, size):
    """The rectified sum of channels, each weighed by its mean gradient, enlarged bilinearly.

    Args:
        features: float `(n, h, w, channels)`.
        gradient: of the class's logit by them, the same shape.
        size: `(height, width)` of the maps.
    Returns: float32 `(n, height, width)` in [0, 1].
    """
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((features * weights).sum(axis=-1, keepdims=True), 0).astype("float32")
    maps = keras.ops.convert_to_numpy(keras.ops.image.resize(maps, size, interpolation="bilinear"))[..., 0]
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


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
    rows = {"right": np.flatnonzero(predicted == labels)[:SHOWN], "wrong": np.flatnonzero(predicted != labels)[:SHOWN]}
    rows = {name: chosen for name, chosen in rows.items() if len(chosen)}
    figure = figure_of("what speaks for the class that is said", size=(1.35 * SHOWN, 0.6 + 3.2 * len(rows)))
    panels = figure.subplots(2 * len(rows), SHOWN, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for place, (name, chosen) in enumerate(rows.items()):
        pictures = np.stack([np.asarray(images[int(i)]) for i in chosen])
        maps = gradcam(model, pictures, predicted[chosen], layer=layer)
        for column, (i, picture, heat) in enumerate(zip(chosen, pictures, maps, strict=True)):
            above, below = panels[2 * place, column], panels[2 * place + 1, column]
            above.imshow(picture, interpolation="nearest")
            below.imshow(picture.mean(axis=-1), cmap="gray", interpolation="nearest")
            below.imshow(heat, cmap="inferno", alpha=0.55, vmin=0, vmax=1, interpolation="bilinear")
            said, true = class_names[predicted[i]], class_names[labels[i]]
            above.set_title(said if name == "right" else f"{said}\n(is {true})", fontsize=8)
    name = layer or last_spatial(model)
    return Section(
        "gradcam", "What it looks at", {"overlays": figure},
        {"overlays": "Images, right predictions above and wrong ones below, each with its Grad-CAM map."},
        {"layer": name, "right shown": len(rows.get("right", ())), "wrong shown": len(rows.get("wrong", ()))},
        sentences=(f"Grad-CAM at layer {name}; bright places speak for the class that the model says.",),
    )  # fmt: skip
