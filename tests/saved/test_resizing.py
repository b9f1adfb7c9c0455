"""Resizing written as matrices says what Keras' layer says, whatever its settings."""

import keras
import numpy as np
import pytest
from keras import layers

from cifar_keras.saved import resizing

SHRUNK, SMALL, MIXED = (56, 24), (10, 10), (9, 33)  # against 16 x 20
CASES = (
    *((size, {"antialias": True}) for size in (SHRUNK, SMALL, MIXED)),
    (SHRUNK, {"antialias": False}),
    (SHRUNK, {"antialias": True, "crop_to_aspect_ratio": True}),
    (MIXED, {"crop_to_aspect_ratio": True}),
    (MIXED, {"antialias": True, "pad_to_aspect_ratio": True, "fill_value": 77.0}),
    (SHRUNK, {"pad_to_aspect_ratio": True}),
)


def photos(size, *, channels=3, dtype="float32"):
    """Noise over a gradient: neither flat nor without low frequencies."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 120, (2, *size, channels)) + np.linspace(0, 135, size[1])[:, None]
    return images.astype(dtype)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3", "lanczos5", "nearest"])
def test_matrices_say_what_the_layer_says(interpolation):
    for size, settings in CASES:
        images = photos(size)
        layer = layers.Resizing(16, 20, interpolation=interpolation, **settings)
        rows, columns, added = resizing.matrices(layer.get_config(), *size)
        by_hand = np.einsum("ih,nhwc,jw->nijc", rows, images, columns) + added
        expected = np.asarray(layer(images))
        np.testing.assert_allclose(by_hand, expected, atol=2e-4)  # of 255
        np.testing.assert_allclose(resizing.ResizingByMatrices(layer)(images), expected, atol=2e-4)


def test_large_images_are_asked_for_in_parts(monkeypatch):
    settings = layers.Resizing(8, 6, antialias=True).get_config()
    whole = resizing.matrices(settings, 40, 30)
    monkeypatch.setattr(resizing, "MAX_PROBE_VALUES", 7 * 40 * 30)
    for part, expected in zip(resizing.matrices(settings, 40, 30), whole, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert [part.shape for part in whole] == [(8, 40), (6, 30), (1, 8, 6, 1)]


def test_integers_stay_integers():
    layer = layers.Resizing(16, 20, interpolation="bicubic", antialias=True)
    images = photos((56, 40), dtype="uint8")
    resized, expected = np.asarray(resizing.ResizingByMatrices(layer)(images)), np.asarray(layer(images))
    assert resized.dtype == expected.dtype == "uint8"
    assert np.abs(resized.astype(int) - expected).max() <= 1 and np.mean(resized != expected) < 0.01  # halves


def test_the_size_may_be_known_only_when_the_model_is_called():
    layer = layers.Resizing(16, 20, antialias=True)
    any_size = keras.Sequential([keras.Input((None, None, 3)), resizing.ResizingByMatrices(layer)])
    inputs = keras.Input((50, 41, 3))
    model = keras.Model(inputs, any_size(inputs))
    assert model.output_shape == (None, 16, 20, 3)
    np.testing.assert_allclose(model.predict_on_batch(photos((50, 41))), layer(photos((50, 41))), atol=2e-4)


def test_enlarging_by_whole_numbers_stays_a_native_operation():
    """Less arithmetic, and LiteRT's 8 bits are exact there; by other factors ONNX may miss the size by a pixel."""
    for settings, size, native in (
        ({"antialias": True}, (16, 20), True),
        ({"antialias": True}, (8, 5), True),
        ({"interpolation": "nearest"}, (2, 2), True),
        ({}, (12, 20), False),
        ({}, (32, 40), False),
        ({"interpolation": "bicubic"}, (8, 10), False),
        ({"crop_to_aspect_ratio": True}, (8, 5), False),
    ):
        assert resizing._is_native(layers.Resizing(16, 20, **settings).get_config(), (None, *size, 3)) is native
