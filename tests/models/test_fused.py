"""The faster layers give what Keras' own layers give."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import noise
from keras import layers

from cifar_keras.models import fused
from cifar_keras.models.fused import fused_kernels

IMAGES = noise(24, size=9).images.astype("float32") / 64 - 1


def network(**options):
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((9, 9, 3))
    x = layers.BatchNormalization(momentum=0.7, epsilon=1e-5, name="norm", **options)(layers.Conv2D(6, 3)(x))
    x = layers.Activation("gelu", name="gelu")(x)
    x = layers.BatchNormalization(name="flat")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def trained(model):
    """Weights and losses after three steps."""
    model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [float(model.train_on_batch(IMAGES, np.arange(24) % 2)) for _ in range(3)]
    return model.get_weights(), losses


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"center": False, "scale": False}])
def test_losses_gradients_and_moving_statistics_are_those_of_keras(options):
    weights, losses = trained(network(**options))
    model = network(**options)
    with fused_kernels(model):
        assert type(model.get_layer("norm")) is fused.BatchNormalization
        assert type(model.get_layer("gelu")) is (fused.Activation if sys.platform == "linux" else layers.Activation)
        found, fused_losses = trained(model)
    np.testing.assert_allclose(fused_losses, losses, rtol=1e-5)
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_one_step_s_statistics_agree_to_the_last_digits():
    plain, model = network(), network()
    plain(IMAGES, training=True)
    with fused_kernels(model):
        model(IMAGES, training=True)
    for name in ("moving_mean", "moving_variance"):
        one, other = (np.asarray(getattr(each.get_layer("norm"), name)) for each in (model, plain))
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_the_layer_is_keras_own_again_also_after_an_error():
    model = network()
    with pytest.raises(KeyboardInterrupt), fused_kernels(model):
        raise KeyboardInterrupt
    assert type(model.get_layer("norm")) is layers.BatchNormalization
    assert type(model.get_layer("gelu")) is layers.Activation


def test_weights_saved_within_load_outside(tmp_path):
    model, other = network(), network()
    with fused_kernels(model):
        trained(model)
        model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    for one, loaded in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, loaded)


def test_a_frozen_layer_and_inference_keep_the_moving_statistics():
    model = network()
    model.get_layer("norm").trainable = model.get_layer("flat").trainable = False
    before = model.get_layer("norm").get_weights()
    expected = network().predict(IMAGES, verbose=0)  # of another model: Keras keeps what it compiled
    with fused_kernels(model):
        np.testing.assert_array_equal(np.asarray(model(IMAGES, training=False)), np.asarray(model(IMAGES)))
        model(IMAGES, training=True)
        np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected, atol=1e-6)
    for one, other in zip(model.get_layer("norm").get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_comes_out_as_it_went_in_and_keeps_statistics_in_float32(precision):
    layer = layers.BatchNormalization(dtype=precision)
    layer.build((None, 9, 9, 3))
    expected = np.asarray(layer(IMAGES, training=True), "float32")
    mean = np.asarray(layer.moving_mean)
    kernel = fused.BatchNormalization(dtype=precision)
    kernel.build((None, 9, 9, 3))
    found = kernel(IMAGES, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == precision.removeprefix("mixed_")
    np.testing.assert_allclose(np.asarray(found, "float32"), expected, atol=0.03)
    assert keras.backend.standardize_dtype(kernel.moving_mean.dtype) == "float32"
    np.testing.assert_allclose(np.asarray(kernel.moving_mean), mean, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere GELU stays Keras' own")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_gradient_are_those_of_keras(dtype):
    x = tf.constant(np.linspace(-12, 12, 2001, dtype="float32").reshape(-1, 3))

    def both(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x, output_gradients=tf.ones_like(y))

    layer = layers.Activation("gelu", dtype=dtype)
    layer.__class__ = fused.Activation
    expected, wanted = both(keras.activations.gelu, x)
    y, slope = both(layer, tf.cast(x, dtype))
    assert keras.backend.standardize_dtype(y.dtype) == keras.backend.standardize_dtype(slope.dtype) == dtype
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == "bfloat16" else {"rtol": 1e-5, "atol": 2e-6}
    np.testing.assert_allclose(tf.cast(y, "float32"), expected, **tolerance)
    np.testing.assert_allclose(tf.cast(slope, "float32"), wanted, **tolerance)
    assert np.isfinite(np.asarray(fused._gelu()(tf.constant([-np.float32(1e30), 1e30])))).all()


def test_only_gelu_changes():
    x = inputs = keras.Input((9, 9, 3))
    for name in ("relu", "silu", "gelu"):
        x = layers.Activation(name, name=name)(x)
    model = keras.Model(inputs, x)
    with fused_kernels(model):
        changed = [layer.name for layer in model.layers if type(layer) is fused.Activation]
    assert changed == (["gelu"] if sys.platform == "linux" else [])


@pytest.mark.parametrize("width", [3, 7, 8])
def test_images_side_by_side_give_the_gradients_of_a_convolution(width):
    random = np.random.default_rng(width)
    images, kernel, upstream = (
        tf.constant(random.normal(size=size).astype("float32"))
        for size in ((21, 5, width, 4), (3, 3, 4, 6), (21, 5, width, 6))  # no multiple of a row's images
    )

    def both(function):
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            output = function(images, kernel)
        return output, *tape.gradient(output, (images, kernel), output_gradients=upstream)

    expected = both(lambda images, kernel: tf.nn.conv2d(images, kernel, 1, "SAME"))
    for one, other in zip(both(fused._convolution()), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("flags", [{"amx_bf16"}, {"avx512_bf16"}])
def test_convolutions_change_where_the_processor_has_amx(monkeypatch, flags):
    monkeypatch.setattr(fused, "cpu_flags", lambda: flags)
    x = inputs = keras.Input((9, 9, 3))
    same = {"padding": "same", "dtype": "mixed_bfloat16"}
    x = layers.Conv2D(4, 3, name="changes", **same)(x)
    x = layers.Conv2D(4, 3, name="float32", padding="same")(x)
    x = layers.Conv2D(4, 1, name="no_neighbours", **same)(x)
    x = layers.Conv2D(4, 3, dilation_rate=2, name="dilated", **same)(x)
    x = layers.Conv2D(4, 3, strides=2, name="strided", **same)(x)
    model = keras.Model(inputs, layers.Conv2D(4, 3, name="valid", dtype="mixed_bfloat16")(x))
    with fused_kernels(model):
        changed = [layer.name for layer in model.layers if type(layer) is fused.Conv2D]
    assert changed == (["changes"] if "amx_bf16" in flags else [])


def test_a_network_in_bfloat16_learns_the_same_with_images_side_by_side(monkeypatch):
    """Two steps of a network with a bias, as `fit` takes them."""
    monkeypatch.setattr(fused, "cpu_flags", lambda: {"amx_bf16"})

    def network():
        keras.utils.set_random_seed(1)
        x = inputs = keras.Input((8, 8, 3), dtype="float32")
        x = layers.Conv2D(8, 3, padding="same", dtype="mixed_bfloat16", name="convolution")(x)
        x = layers.GlobalAveragePooling2D(dtype="float32")(layers.Activation("relu", dtype="float32")(x))
        model = keras.Model(inputs, layers.Dense(2)(x))
        model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    images, classes = IMAGES[:10, :8, :8], np.arange(10) % 2
    plain, model = network(), network()
    begun = plain.get_layer("convolution").kernel.numpy()
    for _ in range(2):
        plain.train_on_batch(images, classes)
    with fused_kernels(model):
        assert type(model.get_layer("convolution")) is fused.Conv2D
        for _ in range(2):
            model.train_on_batch(images, classes)
    assert type(model.get_layer("convolution")) is layers.Conv2D
    change, expected = (each.get_layer("convolution").kernel.numpy() - begun for each in (model, plain))
    assert np.linalg.norm(change - expected) < 0.1 * np.linalg.norm(expected)  # bfloat16 has 8 bits
