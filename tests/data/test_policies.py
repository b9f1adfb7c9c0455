"""RandAugment and AugMix: each operation is Pillow's, and every draw depends on the image's seed alone."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from cifar_keras.data import policies
from cifar_keras.data.policies import OPERATIONS, aug_mix, operated, rand_augment

COARSE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (10, 10, 3)).astype("uint8"))
SMOOTH = np.asarray(COARSE.resize((32, 32), Image.Resampling.BICUBIC))  # shades and edges, the full range
DARK = (SMOOTH // 3 + 20).astype("uint8")  # not the full range
BLENDS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "colour": ImageEnhance.Color}


def by(name, image, *, strength=0.5, sign=1.0):
    chosen = tf.constant([OPERATIONS.index(name)])
    return operated(image[None], chosen, tf.constant([strength]), tf.constant([sign]))[0].numpy()


@pytest.mark.parametrize("image", [SMOOTH, DARK], ids=["full range", "dark"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", [*BLENDS, "sharpness"])
def test_blending_is_pillows(name, sign, image):
    enhance = (BLENDS | {"sharpness": ImageEnhance.Sharpness})[name](Image.fromarray(image))
    expected = np.asarray(enhance.enhance(1 + sign * 0.45)).astype(int)
    assert np.abs(by(name, image, sign=sign).astype(int) - expected).max() <= 1  # Pillow cuts off where we round
    assert np.abs(expected - image).max() > 2


@pytest.mark.parametrize("image", [SMOOTH, DARK, np.full((32, 32, 3), 77, "uint8")], ids=["full", "dark", "flat"])
def test_curves_are_pillows(image):
    picture = Image.fromarray(image)
    np.testing.assert_array_equal(by("equalize", image), np.asarray(ImageOps.equalize(picture)))
    np.testing.assert_array_equal(by("posterize", image), np.asarray(ImageOps.posterize(picture, 6)))
    np.testing.assert_array_equal(by("solarize", image), np.asarray(ImageOps.solarize(picture, 128)))
    stretched = by("autocontrast", image).astype(int) - np.asarray(ImageOps.autocontrast(picture))
    assert np.abs(stretched).max() <= 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_strength_changes_nothing_and_some_does(name):
    if name not in ("autocontrast", "equalize"):  # they have none
        np.testing.assert_array_equal(by(name, DARK, strength=0.0), DARK)
    if name != "identity":
        assert np.abs(by(name, DARK, strength=0.9).astype(int) - DARK).mean() > 1


def test_a_translation_moves_whole_pixels_and_lets_grey_in():
    moved = by("translate_x", SMOOTH, strength=5 / (0.45 * 32), sign=-1.0)  # five pixels to the right
    np.testing.assert_allclose(moved[:, 5:].astype(int), SMOOTH[:, :-5], atol=1)
    assert (moved[:, :4] == 128).all()
    np.testing.assert_array_equal(
        by("translate_y", SMOOTH.transpose(1, 0, 2), strength=5 / (0.45 * 32), sign=-1.0), moved.transpose(1, 0, 2)
    )


def test_a_rotation_turns_around_the_centre():
    there = by("rotate", SMOOTH, strength=0.5)
    back = by("rotate", there, strength=0.5, sign=-1.0)
    middle = slice(10, 22)
    assert np.abs(back[middle, middle].astype(int) - SMOOTH[middle, middle]).mean() < 12
    assert np.abs(there[middle, middle].astype(int) - SMOOTH[middle, middle]).mean() > 12
    expected = Image.fromarray(SMOOTH).rotate(-15, Image.Resampling.BILINEAR)  # clockwise
    assert np.abs(there[middle, middle].astype(int) - np.asarray(expected)[middle, middle]).mean() < 3


def test_operations_do_not_meet_the_other_images_of_a_batch():
    images = np.stack([SMOOTH, DARK] * len(OPERATIONS))
    chosen = np.repeat(np.arange(len(OPERATIONS)), 2)
    together = operated(images, tf.constant(chosen, tf.int32), tf.fill(len(chosen), 0.4), tf.fill(len(chosen), 1.0))
    for image, place, result in zip(images, chosen, together, strict=True):
        np.testing.assert_array_equal(by(OPERATIONS[place], image, strength=0.4), result)


@pytest.fixture
def drawn(monkeypatch):
    """The operations that were chosen, call by call."""
    found, real = [], policies.operated

    def noted(images, chosen, strength, sign):
        found.append((chosen.numpy(), strength.numpy(), sign.numpy()))
        return real(images, chosen, strength, sign)

    monkeypatch.setattr(policies, "operated", noted)
    return found


def seeds(count):
    return np.stack([np.zeros(count), np.zeros(count), np.arange(count)], axis=-1).astype("int32")


def test_rand_augment_draws_every_operation_equally_often_at_one_strength(drawn):
    rand_augment(np.repeat(SMOOTH[None], 2000, axis=0), seeds(2000))
    assert len(drawn) == 2
    for chosen, strength, sign in drawn:
        assert np.all(np.abs(np.bincount(chosen, minlength=14) / 2000 - 1 / 14) < 0.025)
        assert set(strength) == {np.float32(0.3)} and abs(sign.mean()) < 0.1
    (first, *_), (second, *_) = drawn
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_aug_mix_draws_chains_of_one_to_three_of_its_nine_operations(drawn):
    aug_mix(np.repeat(SMOOTH[None], 900, axis=0), seeds(900))
    assert len(drawn) == 9
    names = {OPERATIONS[place] for chosen, *_ in drawn for place in chosen}
    assert names == {"identity", *policies.CHAIN}
    for chain in range(3):
        depth = sum((drawn[3 * chain + place][0] > 0).astype(int) for place in range(3))
        assert np.all(np.abs(np.bincount(depth, minlength=4)[1:] / 900 - 1 / 3) < 0.07) and depth.min() == 1
    strengths = np.concatenate([strength for _, strength, _ in drawn])
    assert 0 <= strengths.min() < 0.01 and 0.29 < strengths.max() <= 0.3


def test_aug_mix_is_a_mean_that_keeps_a_flat_picture():
    flat = np.full((50, 32, 32, 3), 128, "uint8")  # no shade to change, no border to see
    result = aug_mix(flat, seeds(50)).numpy().astype(int)
    assert np.abs(result - 128).max() <= 16  # posterised by at most one bit, or its lights inverted
    mixed = aug_mix(np.repeat(SMOOTH[None], 50, axis=0), seeds(50)).numpy()
    assert len({image.tobytes() for image in mixed}) == 50
