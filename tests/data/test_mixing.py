"""MixUp and CutMix: pixels and labels are mixed in the same proportion, with the next image of the batch."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import noise

from cifar_keras.data.augment import augmented_and_mixed, mixes
from cifar_keras.data.mixing import MIXES, cutmix, mixup
from cifar_keras.data.pipeline import evaluation_pipeline, train_pipeline

LEVELS = np.array([0, 60, 120, 240], "uint8")
FLAT = np.tile(LEVELS[:, None, None, None], (1, 32, 32, 3))  # so that a pixel tells whose it is


def seeds(count, *, seed=0, epoch=0):
    return np.stack([np.full(count, seed), np.full(count, epoch), np.arange(count)], axis=-1).astype("int32")


def test_mixup_is_the_mean_of_an_image_and_the_next_one():
    images, share = (part.numpy() for part in mixup(FLAT, seeds(4)))
    expected = share * LEVELS + (1 - share) * np.roll(LEVELS, -1)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.round(expected))
    assert (images == images[:, :1, :1, :1]).all()


def test_mixup_draws_every_share_equally_often():
    _, share = mixup(np.zeros((4000, 1, 1, 3), "uint8"), seeds(4000))
    assert np.all(np.abs(np.histogram(share, 10, (0, 1))[0] / 4000 - 0.1) < 0.015)


def test_cutmix_puts_a_rectangle_of_the_next_image_into_half_of_the_images():
    count = 400
    ordinals = np.arange(count) % 251
    images, share = (
        part.numpy()
        for part in cutmix(np.tile(ordinals[:, None, None, None], (1, 32, 32, 3)).astype("uint8"), seeds(count))
    )
    foreign = images[..., 0] != ordinals[:, None, None]
    np.testing.assert_array_equal(
        images[foreign][:, 0], np.broadcast_to(np.roll(ordinals, -1)[:, None, None], foreign.shape)[foreign]
    )
    np.testing.assert_allclose(share, 1 - foreign.mean(axis=(1, 2)), atol=1e-6)
    assert 0.4 < np.mean(share < 1) < 0.6
    for patch in foreign[share < 1]:
        height, width = np.ptp(np.argwhere(patch), axis=0) + 1
        assert height * width == patch.sum()


@pytest.mark.parametrize("name", MIXES)
def test_the_share_depends_on_the_triple_alone(name):
    def share(**parts):
        return MIXES[name](FLAT, seeds(4, **parts))[1].numpy()

    np.testing.assert_array_equal(share(seed=3, epoch=2), share(seed=3, epoch=2))
    assert not np.array_equal(share(seed=3), share(seed=4)) and not np.array_equal(share(epoch=1), share(epoch=2))


@pytest.mark.parametrize("name", MIXES)
def test_training_sees_labels_mixed_as_the_images_are(name):
    data = noise(40, seed=1)
    (images, shares), *_ = train_pipeline(data, batch_size=8, seed=5, epochs=1, augmentation=("flip", name), classes=10)
    (plain, labels), *_ = train_pipeline(data, batch_size=8, seed=5, epochs=1, augmentation=("flip",))
    shares, labels = shares.numpy(), labels.numpy()
    assert shares.shape == (8, 10) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    for place in range(8):
        own, partner = labels[place], labels[(place + 1) % 8]
        assert set(np.flatnonzero(shares[place])) <= {own, partner}
        if own != partner:
            weight = shares[place, own]
            expected = (
                weight * plain[place].numpy().astype(float).mean()
                + (1 - weight) * plain[(place + 1) % 8].numpy().mean()
            )
            assert images[place].numpy().mean() == pytest.approx(expected, abs=8 if name == "cutmix" else 0.5)


def test_a_resumed_stream_goes_on_as_the_unbroken_one():
    def stream(first):
        options = dict(batch_size=8, seed=5, augmentation=("mixup",), classes=10)
        return list(train_pipeline(noise(16, seed=1), first_epoch=first, epochs=3, **options))

    for whole, resumed in zip(stream(0)[2:], stream(1), strict=True):
        for before, after in zip(whole, resumed, strict=True):
            np.testing.assert_array_equal(before, after)


def test_without_a_mix_labels_stay_numbers():
    _, share = augmented_and_mixed(FLAT, seeds(4), ("shift",))
    assert share is None
    (_, labels), *_ = train_pipeline(noise(16), batch_size=8, seed=0, epochs=1, classes=10)
    assert labels.dtype == tf.int32


def test_a_mix_comes_last_and_needs_the_classes():
    assert mixes(("shift", "mixup")) and not mixes(("shift", "flip"))
    for steps in (("mixup", "flip"), ("mixup", "cutmix")):
        with pytest.raises(ValueError, match=r"one may be the last step\. Received: \('mixup'"):
            mixes(steps)
    with pytest.raises(ValueError, match="`classes` must be given where images are mixed"):
        evaluation_pipeline(noise(8), batch_size=8, augmentation=("mixup",))
