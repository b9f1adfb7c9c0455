"""RandAugment and AugMix: several operations, drawn for each image from its seed.

Keras has layers of these names. Their draws depend on the whole batch, or on Python's generator while they are traced,
so a resumed run could not repeat them.
"""

import math

import numpy as np
import tensorflow as tf

from cifar_keras.data.draws import uniform

MOVING = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDING = ("brightness", "contrast", "colour", "sharpness")
COARSER, STRETCHING, EVENING = ("posterize", "solarize"), ("autocontrast",), ("equalize",)
OPERATIONS = ("identity", *MOVING, *BLENDING, *COARSER, *STRETCHING, *EVENING)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's
GREY = 128.0  # comes in where an image moves away


def rand_augment(images: tf.Tensor, seeds: tf.Tensor, *, count: int = 2, strength: float = 0.3) -> tf.Tensor:
    """`count` of 14 operations, drawn with equal probability, all of one strength (Cubuk et al., arXiv:1909.13719).

    The strength is a share of the largest one; 0.3 is magnitude 9 of 30. The ranges are torchvision's.

    Args:
        images: uint8 `(batch, height, width, 3)`, RGB in [0, 255].
        seeds: int32 `(batch, 3)`. Equal triples give equal results.
        count: of operations.
        strength: in [0, 1].
    Returns: uint8, the shape of `images`.
    """
    drawn = uniform(seeds, 2 * count, salt=9)
    for place in range(count):
        chosen = tf.cast(drawn[:, 2 * place] * len(OPERATIONS), tf.int32)
        sign = tf.where(drawn[:, 2 * place + 1] < 0.5, -1.0, 1.0)
        images = operated(images, chosen, tf.fill(tf.shape(sign), strength), sign)
    return images


CHAIN = (
    *MOVING,
    *COARSER,
    *STRETCHING,
    *EVENING,
)  # the operations of AugMix: those that its authors' test of robustness does not use
CHAINS, DEPTH, SEVERITY = 3, 3, 0.3


def aug_mix(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """A weighted mean of the image and three chains of one to three operations (Hendrycks et al., arXiv:1912.02781).

    Figure 1 of the paper, at its severity, 3 of 10, without the consistency loss of its section 3, which needs three
    views of each image in a step. Arguments and result as for `rand_augment`.
    """
    drawn = uniform(seeds, 2 * CHAINS + 1 + 3 * CHAINS * DEPTH, salt=10)
    weights, depths, own, each = tf.split(drawn, [CHAINS, CHAINS, 1, -1], axis=1)
    weights = -tf.math.log1p(-weights)  # Dirichlet(1, 1, 1): normalised exponentials
    weights = (1.0 - own) * weights / tf.reduce_sum(weights, axis=1, keepdims=True)
    each = tf.reshape(each, (-1, CHAINS, DEPTH, 3))
    known = tf.constant([OPERATIONS.index(name) for name in CHAIN])
    mean = own[:, :, None, None] * tf.cast(images, tf.float32)
    for chain in range(CHAINS):
        view = images
        for place in range(DEPTH):
            which, level, sign = (each[:, chain, place, part] for part in range(3))
            chosen = tf.gather(known, tf.cast(which * len(CHAIN), tf.int32))
            chosen = tf.where(depths[:, chain] * DEPTH >= place, chosen, 0)  # a chain of depth 1 to 3
            view = operated(view, chosen, SEVERITY * level, tf.where(sign < 0.5, -1.0, 1.0))
        mean += weights[:, chain, None, None, None] * tf.cast(view, tf.float32)
    return tf.cast(tf.clip_by_value(tf.round(mean), 0.0, 255.0), tf.uint8)


def operated(images: tf.Tensor, chosen: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """Applies one operation to each image.

    Args:
        images: uint8 `(batch, height, width, 3)`, RGB in [0, 255].
        chosen: int32 `(batch,)`, places in `OPERATIONS`.
        strength: float32 `(batch,)` in [0, 1]: of the largest shear (0.3), translation (0.45 of the side), angle (30
            degrees), blending factor (1 +- 0.9), number of bits lost (4) or of values inverted (256). 'autocontrast'
            and 'equalize' have none.
        sign: float32 `(batch,)`, -1 or 1, of what has a direction.
    Returns: uint8, the shape of `images`.
    """
    families = {MOVING: _moved, BLENDING: _blended, COARSER: _coarser, STRETCHING: _stretched, EVENING: _equalized}
    for names, function in families.items():  # each sees only the images that chose it
        first = OPERATIONS.index(names[0])
        places = tf.where((chosen >= first) & (chosen < first + len(names)))[:, 0]
        level = strength if names == COARSER else strength * sign
        own = (tf.gather(part, places) for part in (images, chosen, level))
        images = tf.tensor_scatter_nd_update(images, places[:, None], tf.cast(function(*own), tf.uint8))
    return images


def _only(name, chosen, values, otherwise=0.0):
    """The values of the images that chose this operation."""
    return tf.where(chosen == OPERATIONS.index(name), values, otherwise)


def _picture(values):
    """A number for each image, shaped to meet pixels."""
    return values[:, None, None, None]


def _moved(images, chosen, strength):
    """Shear, translation and rotation around the centre, bilinear, grey coming in."""
    height, width = images.shape[1], images.shape[2]
    angle = math.radians(30) * _only("rotate", chosen, strength)
    a, b = tf.cos(angle), tf.sin(angle) + 0.3 * _only("shear_x", chosen, strength)
    c, d = -tf.sin(angle) + 0.3 * _only("shear_y", chosen, strength), tf.cos(angle)
    x, y = (width - 1) / 2, (height - 1) / 2  # of the centre, which stays where it is unless the image is translated
    right = x - a * x - b * y + 0.45 * width * _only("translate_x", chosen, strength)
    down = y - c * x - d * y + 0.45 * height * _only("translate_y", chosen, strength)
    none = tf.zeros_like(angle)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.stack([a, b, right, c, d, down, none, none], axis=1),
        output_shape=[height, width],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=GREY,
    )
    return tf.round(moved)


def _blended(images, chosen, strength):
    """Away from black, from the mean grey, from the grey picture or from the blurred one, by a factor around 1."""
    images = tf.cast(images, tf.float32)
    grey = tf.round(tf.tensordot(images, tf.constant(LUMA), 1))[..., None]
    mean = tf.round(tf.reduce_mean(grey, axis=(1, 2), keepdims=True))
    others = {"contrast": mean, "colour": grey, "sharpness": _blurred(images)}
    other = tf.zeros_like(images)
    for name, picture in others.items():
        other = tf.where(_picture(chosen == OPERATIONS.index(name)), picture, other)
    return tf.clip_by_value(tf.round(other + _picture(1.0 + 0.9 * strength) * (images - other)), 0.0, 255.0)


def _blurred(images):
    """Each pixel beside its neighbours, 5 to 1; the border stays, as in Pillow's SMOOTH."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = tf.round((around + 4.0 * images[:, 1:-1, 1:-1]) / 13.0)
    inside = np.zeros((*images.shape[1:3], 1), bool)
    inside[1:-1, 1:-1] = True
    return tf.where(inside, tf.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0))), images)


def _coarser(images, chosen, strength):
    """Fewer bits, or lights inverted."""
    values = tf.cast(images, tf.int32)
    lost = _picture(tf.cast(_only("posterize", chosen, tf.round(4 * strength)), tf.int32))
    lights = _picture(256 - tf.cast(_only("solarize", chosen, 256 * strength), tf.int32))
    values = tf.bitwise.left_shift(tf.bitwise.right_shift(values, lost), lost)
    return tf.where(values >= lights, 255 - values, values)


def _stretched(images, *_):
    """Each channel from 0 to 255; one of a single value stays."""
    values = tf.cast(images, tf.int32)
    low, high = (reduce(values, axis=(1, 2), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.where(high > low, (values - low) * 255 // tf.maximum(high - low, 1), values)


def _equalized(images, *_):
    """Each channel with an even histogram, by Pillow's formula; one of a single value stays."""
    height, width = images.shape[1], images.shape[2]
    flat = tf.reshape(tf.transpose(tf.cast(images, tf.int32), (0, 3, 1, 2)), (-1, height * width))
    counts = tf.math.bincount(flat, minlength=256, maxlength=256, axis=-1)
    last = tf.gather(counts, tf.reduce_max(flat, axis=1), batch_dims=1)
    step = ((height * width - last) // 255)[:, None]
    table = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256)[None])
    found = tf.reshape(tf.gather(table, flat, batch_dims=1), (-1, 3, height, width))
    return tf.transpose(found, (0, 2, 3, 1))
