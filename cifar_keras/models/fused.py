"""BatchNormalization, GELU and Adam in one pass, while a model trains or predicts. Saved files hold Keras' own layers.

Keras 3 on TensorFlow composes them from arithmetic, in several passes. BatchNormalization and Adam have fused kernels
in TensorFlow; GELU and its gradient are compiled by XLA, each to one loop (`docs/speed.md`).
"""

import contextlib
import functools
import math

import keras
from keras import layers, ops

from cifar_keras.utils.system import XLA


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
    return None


def _has_xla():
    """Whether XLA can be relied on; for a GPU it needs parts of CUDA that may be missing."""
    import tensorflow as tf

    return XLA and not tf.config.list_logical_devices("GPU")


@contextlib.contextmanager
def fused_kernels(model: keras.Model):
    """Within it, a model's BatchNormalization and GELU layers take fewer passes, where the backend has the kernels.

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
