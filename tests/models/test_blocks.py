"""Preprocessing inside the model, whitening, initialisation."""

import keras
import numpy as np
import pytest
from helpers import noise

from cifar_keras.models import blocks

IMAGES = noise(16).images


def scaled(scaling):
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    floats = keras.layers.Rescaling(1.0, dtype="float32")(inputs)
    return keras.Model(inputs, blocks.scale(floats, scaling)).predict(IMAGES, verbose=0)


def test_caffe_scaling_equals_what_the_imagenet_weights_were_trained_with():
    expected = keras.applications.resnet50.preprocess_input(IMAGES.astype("float32"))
    np.testing.assert_allclose(scaled("caffe"), expected, atol=1e-4)


def test_unit_and_zscore_scaling():
    np.testing.assert_allclose(scaled("unit"), IMAGES / np.float32(255), atol=1e-6)
    expected = (IMAGES - np.float32(blocks.CIFAR_MEAN)) / np.float32(blocks.CIFAR_STD)
    np.testing.assert_allclose(scaled("zscore"), expected, atol=1e-5)


def test_scaling_to_minus_one_to_one_and_by_torchvisions_statistics():
    np.testing.assert_allclose(scaled("half"), (IMAGES / np.float32(255) - 0.5) / 0.5, atol=1e-5)
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])  # torchvision's docs
    np.testing.assert_allclose(scaled("torch"), (IMAGES / np.float32(255) - mean) / deviation, atol=1e-5)


def test_efficientnet_lites_scaling():
    np.testing.assert_allclose(scaled("lite"), (IMAGES.astype("float32") - 127) / 128, atol=1e-6)


def test_an_unknown_scaling_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'unit', 'half', 'lite', 'zscore', 'torch' or 'caffe'"):
        scaled("none")


def test_whitened_patches_are_uncorrelated_with_unit_variance():
    random = np.random.RandomState(0)
    images = np.cumsum(random.randn(50, 32, 32, 3), axis=1).astype("float32")  # neighbours are correlated
    kernel = blocks.whitening_kernel([images[:20], images[20:]], epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    outputs = keras.ops.convert_to_numpy(keras.ops.conv(images, kernel)).reshape(-1, 24)[:, :12].astype("float64")
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(12), atol=1e-2)


def test_a_dirac_convolution_starts_by_passing_its_input_on():
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, blocks.dirac_convolution(inputs, 6, 4, name="c"))
    x = np.random.RandomState(0).randn(2, 8, 8, 4).astype("float32")
    y = model.predict(x, verbose=0)
    np.testing.assert_allclose(y[..., :4], x, atol=1e-6)
    assert np.abs(y[..., 4:]).max() > 0
