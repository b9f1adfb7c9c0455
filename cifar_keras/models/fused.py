"""Layers and Adam with faster kernels, while a model trains or predicts. Saved files hold Keras' own layers.

Keras 3 on TensorFlow composes BatchNormalization, GELU and Adam from arithmetic, in several passes. BatchNormalization
and Adam have fused kernels in TensorFlow; GELU and its gradient are compiled by XLA, each to one loop. Of convolutions,
the gradient of the kernel is computed with the images side by side (`docs/speed.md`).
"""

import contextlib
import functools
import math

import keras
from keras import layers, ops

from cifar_keras.utils.system import XLA, cpu_flags


class BatchNormalization(layers.BatchNormalization):
    """Keras' layer, whose training step on images `(batch, height, width, channels)` is one kernel.

    It has the name of Keras' class, which files of weights are keyed by: a run may continue on another backend.
    """

    def call(self, inputs, training=None, mask=None):
        """Takes and returns the same as `BatchNormalization`."""
        if not (training and self.trainable and len(inputs.shape) == 4 and self.axis in (-1, 3) and mask is None):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32") if self.scale else ops.ones(channels, "float32"),
            offset=ops.cast(self.beta, "float32") if self.center else ops.zeros(channels, "float32"),
            mean=ops.zeros(0, "float32"),
            variance=ops.zeros(0, "float32"),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = ops.cast(ops.size(inputs) // channels, "float32")
        variance = variance * ((count - 1.0) / count)  # the kernel's is unbiased, the one that Keras averages is not
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


class Activation(layers.Activation):
    """Keras' layer with GELU, compiled. It has the name of Keras' class, like the one above."""

    def call(self, inputs):
        """Takes and returns the same as `Activation`."""
        return _gelu()(inputs)


class Conv2D(layers.Conv2D):
    """Keras' layer for 3x3 kernels in bfloat16, whose kernel's gradient fills the tiles of AMX.

    For this gradient oneDNN multiplies matrices along the rows of the maps, 32 places at a time: a map of 7 x 7 leaves
    three quarters of each tile empty. So images are put side by side, with a column of zeros between them.
    """

    def convolution_op(self, inputs, kernel):
        """Takes and returns the same as `Conv2D`."""
        if inputs.shape[2] is None or inputs.shape[2] > WIDEST:
            return super().convolution_op(inputs, kernel)
        return _convolution()(inputs, kernel)


WIDEST = 8  # pixels: at 15 the copies cost as much as they save
ROW = 64  # pixels of a row of images side by side


@functools.cache
def _convolution():
    """A 3x3 convolution of images and kernel, stride 1, padding 'same', with its gradient, see `Conv2D`."""
    import tensorflow as tf

    same = {"strides": [1, 1, 1, 1], "padding": "SAME"}

    def side_by_side(images):
        number, (_, height, width, channels) = tf.shape(images)[0], images.shape
        count = ROW // (width + 1)
        images = tf.pad(images, [[0, -number % count], [0, 0], [0, 1], [0, 0]])
        images = tf.reshape(images, (-1, count, height, width + 1, channels))
        return tf.reshape(tf.transpose(images, (0, 2, 1, 3, 4)), (-1, height, count * (width + 1), channels))

    @tf.custom_gradient
    def convolution(images, kernel):
        def gradient(upstream):
            by_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **same
            )
            by_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=side_by_side(images), filter_sizes=kernel.shape, out_backprop=side_by_side(upstream), **same
            )
            return by_images, by_kernel

        return tf.nn.conv2d(images, kernel, 1, "SAME"), gradient

    return convolution


@functools.cache
def _gelu():
    """GELU, x times the normal distribution at x, and its gradient; float32 inside, the dtype of x outside."""
    import tensorflow as tf

    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)

    def normal(x):
        return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))

    @compiled
    def forward(x):
        wide = tf.cast(x, tf.float32)
        return tf.cast(wide * normal(wide), x.dtype)

    @compiled
    def backward(x, upstream):
        wide = tf.cast(x, tf.float32)
        slope = normal(wide) + wide * tf.exp(-0.5 * tf.square(wide)) * math.sqrt(0.5 / math.pi)
        return tf.cast(tf.cast(upstream, tf.float32) * slope, x.dtype)

    @tf.custom_gradient
    def gelu(x):
        return forward(x), lambda upstream: backward(x, upstream)

    return gelu


def apply_adam(variable, momentum, velocity, gradient, *, rate, betas, epsilon, step):
    """One step of Adam (Kingma and Ba, arXiv:1412.6980, end of section 2) in place, by one kernel.

    Args:
        variable: `tf.Variable`, which changes.
        momentum: the same, of that shape.
        velocity: the same, of that shape.
        gradient: a tensor of that shape and dtype.
        rate: the learning rate, a scalar tensor.
        betas: the decay rates of momentum and velocity, two numbers.
        epsilon: added to the root of the velocity.
        step: which step it is, counted from 1, a scalar tensor.
    """
    import tensorflow as tf

    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.handle,
        v=velocity.handle,
        beta1_power=betas[0] ** step,
        beta2_power=betas[1] ** step,
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=epsilon,
        grad=gradient,
    )


def _fused_class(layer):
    """The class that computes what this layer does in fewer passes; None if there is none."""
    if layer.compute_dtype not in ("float32", "bfloat16", "float16"):
        return None
    if type(layer) is layers.BatchNormalization:
        return BatchNormalization
    if type(layer) is layers.Activation and layer.activation is keras.activations.gelu and _has_xla():
        return Activation
    if type(layer) is layers.Conv2D and _fills_no_tiles(layer):
        return Conv2D
    return None


def _fills_no_tiles(layer):
    """Whether the gradient of this convolution's kernel leaves AMX tiles empty where the map is small."""
    geometry = (layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate, layer.groups, layer.data_format)
    plain = ((3, 3), (1, 1), "same", (1, 1), 1, "channels_last")
    return geometry == plain and layer.compute_dtype == "bfloat16" and "amx_bf16" in cpu_flags()


def _has_xla():
    """Whether XLA can be relied on; for a GPU it needs parts of CUDA that may be missing."""
    import tensorflow as tf

    return XLA and not tf.config.list_logical_devices("GPU")


@contextlib.contextmanager
def fused_kernels(model: keras.Model):
    """Within it, a model's layers take fewer passes and fill the tiles of AMX, where the backend has the kernels.

    The two classes of a pair have the same attributes and differ only in `call`, so a layer can change its class and
    keep its weights, its name and its place in the graph. Afterwards it is Keras' own again, so files and summaries
    know no other.
    """
    tensorflow = keras.backend.backend() == "tensorflow"
    classes = [(layer, type(layer), _fused_class(layer)) for layer in model.layers] if tensorflow else []
    changed = [(layer, own, fused) for layer, own, fused in classes if fused]
    for layer, _, fused in changed:
        layer.__class__ = fused
    try:
        yield
    finally:
        for layer, own, _ in changed:
            layer.__class__ = own
