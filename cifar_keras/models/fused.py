"""BatchNormalization by the backend's fused kernel while a model trains. Outside of `fit` it is Keras' own layer.

Keras 3 on TensorFlow composes a training step of BatchNormalization from moments and arithmetic, in several passes over
the batch. TensorFlow's fused kernel does the same in one pass forward and one backward (`docs/speed.md`).
"""

import contextlib

import keras
from keras import layers, ops


class BatchNormalization(layers.BatchNormalization):
    """Keras' layer, whose training step on images `(batch, height, width, channels)` is one kernel.

    It has the name of Keras' class, which files of weights are keyed by: a run may continue on another backend.
    """

    def call(self, inputs, training=None, mask=None):
        """Takes and returns the same as `BatchNormalization`."""
        if not (training and self.trainable and len(inputs.shape) == 4 and mask is None):
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


@contextlib.contextmanager
def fused_norms(model: keras.Model):
    """Within it, the BatchNormalization layers of a model train by the fused kernel, where the backend has one.

    The two classes have the same attributes and differ only in `call`, so a layer can change its class and keep its
    weights, its name and its place in the graph. Afterwards it is Keras' own again, so files and summaries know no
    other.
    """
    norms = [layer for layer in model.layers if type(layer) is layers.BatchNormalization]
    fused = norms if keras.backend.backend() == "tensorflow" else []
    for layer in fused:
        layer.__class__ = BatchNormalization
    try:
        yield
    finally:
        for layer in fused:
            layer.__class__ = layers.BatchNormalization
