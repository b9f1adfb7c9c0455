"""`keras.layers.Resizing` in operations that every converter knows.

Resizing from one fixed size to another is linear and separable: one matrix for rows and one for columns, whatever the
interpolation, antialiased or not. TensorFlow's own operation for it is in neither ONNX nor LiteRT.
"""

import keras
import numpy as np
from keras import layers, ops

SCOPE = "resize_by_matrices"  # part of the operations' names, so that quantisation can leave them out
MAX_PROBE_VALUES = 2**24  # of the images from which the matrices are read, at a time
NATIVE = ("bilinear", "nearest")  # interpolations that the formats have


class ResizingByMatrices(layers.Layer):
    """Does the same as a `layers.Resizing`; for a graph that is converted, not for saving.

    Args:
        layer: the `layers.Resizing`, channels last.
    """

    def __init__(self, layer):
        super().__init__(name=layer.name, dtype="float32", trainable=False)
        self.settings = layer.get_config()

    def compute_output_spec(self, images, **_):
        """As for the layer: integers stay integers."""
        shape = (images.shape[0], self.settings["height"], self.settings["width"], images.shape[3])
        return keras.KerasTensor(shape, images.dtype if keras.backend.is_int_dtype(images.dtype) else "float32")

    def call(self, images):
        """Images `(batch, height, width, channels)` of known height and width, at the layer's size."""
        if _is_native(self.settings, images.shape):
            return _layer(self.settings, antialias=False)(images)  # only shrinking needs it
        with keras.name_scope(SCOPE):
            resized = _resized(ops.cast(images, "float32"), *matrices(self.settings, *images.shape[1:3]))
            return _as_integers(resized, images.dtype) if keras.backend.is_int_dtype(images.dtype) else resized


def _is_native(settings, shape):
    """Whether the formats can do this: enlarging by whole numbers, where ONNX's factor is exact."""
    whole = settings["height"] % shape[1] == 0 and settings["width"] % shape[2] == 0
    fitted = settings["crop_to_aspect_ratio"] or settings["pad_to_aspect_ratio"]
    return settings["interpolation"] in NATIVE and whole and not fitted


def _resized(images, rows, columns, added):
    """Both matrices as 1x1 convolutions, with rows and then columns as the channels."""
    x = ops.conv(ops.transpose(images, (0, 2, 3, 1)), rows.T[None, None])  # batch, width, channels, new height
    x = ops.conv(ops.transpose(x, (0, 3, 2, 1)), columns.T[None, None])  # batch, new height, channels, new width
    x = ops.transpose(x, (0, 1, 3, 2))
    return x + added if added.any() else x


def matrices(settings, height, width):
    """The effect of a `layers.Resizing` on an image, as `rows @ image @ columns.T + added` for each channel.

    The layer with these settings is itself applied to images with one row or one column of ones.

    Returns: float32 arrays `(new height, height)`, `(new width, width)` and `(1, new height, new width, 1)`; the last
        is the padding.
    """
    import tensorflow as tf

    layer = _layer(settings, fill_value=0.0)
    rows = np.concatenate([part[:, :, part.shape[2] // 2] for part in _responses(layer, height, width, axis=1)]).T
    columns = np.concatenate([part[:, part.shape[1] // 2] for part in _responses(layer, height, width, axis=2)]).T
    with tf.init_scope():
        added = _layer(settings)(np.zeros((1, height, width, 1), "float32"))
    return rows / rows[len(rows) // 2].sum(), columns, np.asarray(added)


def _responses(layer, height, width, *, axis):
    """The layer's output for images with ones in one row (axis 1) or column (axis 2), `(n, new height, new width)`."""
    import tensorflow as tf

    size = (height, width)[axis - 1]
    for lines in np.array_split(np.arange(size), -(-size * height * width // MAX_PROBE_VALUES)):
        images = np.zeros((len(lines), height, width, 1), "float32")
        np.moveaxis(images, axis, 1)[np.arange(len(lines)), lines] = 1
        with tf.init_scope():  # also while a graph is traced
            yield np.asarray(layer(images))[..., 0]


def _layer(settings, **changes):
    return layers.Resizing.from_config({**settings, "dtype": "float32", **changes})


def _as_integers(images, dtype):
    limits = np.iinfo(keras.backend.standardize_dtype(dtype))
    return ops.cast(ops.clip(ops.round(images), limits.min, limits.max), dtype)
