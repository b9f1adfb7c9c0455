"""Augmentation and order are pure functions of (seed, epoch, index)."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import noise

from cifar_keras.data import draws
from cifar_keras.data.augment import MOVES, VALUES, augmented
from cifar_keras.data.pipeline import epoch_order, evaluation_pipeline, train_pipeline

IMAGE = noise(1).images[0]
ALONE = MOVES | VALUES  # what an image goes through without the others of its batch
PIXELS = {  # digests of what the first runs saw: augmentation may become faster, not different
    "shift": "0145fc5b4a7e8f58",
    "crop": "fb81482fd0420d8b",
    "flip": "e270942c244e252c",
    "alternating_flip": "b1e33c58739a96c2",
    "colour_jitter": "b7b18064c05f137e",
    "cutout": "9f5543104a4fa7e2",
    "shift+crop+flip+alternating_flip+colour_jitter+cutout": "fe94d822a93622b1",
    "flip+crop": "fff0b11ff9a3f525",
    "crop+flip": "1fec549d91b2eb34",
    "crop+shift": "ce931b2d617936ae",
    "shift+alternating_flip": "cbf11574e8f1a273",
    "shift+alternating_flip+cutout": "5b872b5b538be02c",
    "flip+shift+colour_jitter": "64e0d1843c590ae8",
    "cutout+shift": "a9badb3365ca4cb1",
    "alternating_flip+colour_jitter+crop": "46195da3e216585e",
}


def apply(name, *, seed=0, epoch=0, index=0, image=IMAGE):
    return augmented(image[None], np.array([[seed, epoch, index]], "int32"), (name,))[0].numpy()


def batches(dataset):
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


@pytest.mark.parametrize("name", ALONE)
def test_equal_triples_give_equal_images_and_each_part_of_the_triple_counts(name):
    np.testing.assert_array_equal(apply(name, seed=3, epoch=1, index=7), apply(name, seed=3, epoch=1, index=7))
    for part in ("seed", "epoch", "index"):
        assert len({apply(name, **{part: value}).tobytes() for value in range(8)}) > 1, part


@pytest.mark.parametrize("name", ALONE)
def test_shape_and_dtype_stay(name):
    result = apply(name, image=noise(1, size=20).images[0])
    assert result.shape == (20, 20, 3)
    assert result.dtype == np.uint8


def test_the_numbers_behind_it_are_even_and_neighbours_unrelated():
    indices = tf.range(4000)
    for part in range(3):
        seeds = tf.stack([indices if place == part else 5 + 0 * indices for place in range(3)], axis=-1)
        drawn = draws.uniform(seeds, 2, salt=1).numpy()
        assert drawn.min() >= 0.0 and drawn.max() < 1.0
        assert np.all(np.abs(np.histogram(drawn, 10, (0, 1))[0] / drawn.size - 0.1) < 0.015)
        assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.06  # four standard errors
        assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.06


def test_augmentation_is_vectorised():
    function = tf.function(lambda images, seeds: augmented(images, seeds, tuple(ALONE)))
    graph = function.get_concrete_function(
        tf.TensorSpec((None, 32, 32, 3), tf.uint8), tf.TensorSpec((None, 3), tf.int32)
    ).graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    assert "GatherV2" in {node.op for node in nodes}
    assert not [node.op for node in nodes if "While" in node.op]


def test_a_shift_is_a_crop_of_the_reflected_image():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), "reflect")
    crops = {padded[y : y + 32, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    seen = {apply("shift", index=index).tobytes() for index in range(200)}
    assert seen == crops


def test_a_crop_is_one_of_the_image_in_a_black_frame():
    padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)))
    crops = {padded[y : y + 32, x : x + 32].tobytes() for y in range(9) for x in range(9)}
    seen = {apply("crop", index=index).tobytes() for index in range(1000)}
    assert seen == crops


def test_half_of_the_images_are_mirrored():
    mirrored = [np.array_equal(apply("flip", index=index), IMAGE[:, ::-1]) for index in range(200)]
    assert 70 < sum(mirrored) < 130


def test_alternating_flip_shows_each_image_both_ways_in_successive_epochs():
    for index in range(10):
        epochs = [apply("alternating_flip", epoch=epoch, index=index) for epoch in range(4)]
        np.testing.assert_array_equal(epochs[0], epochs[2])
        np.testing.assert_array_equal(epochs[1], epochs[3])
        np.testing.assert_array_equal(epochs[0], epochs[1][:, ::-1])


def test_jitter_scales_brightness_within_its_strength():
    grey = np.full((8, 8, 3), 100, "uint8")
    values = [apply("colour_jitter", index=index, image=grey)[0, 0, 0] for index in range(100)]
    assert min(values) >= 80 and max(values) <= 120 and max(values) - min(values) > 20


def test_cutout_greys_at_most_a_square_and_leaves_the_rest():
    for index in range(20):
        image = np.zeros((32, 32, 3), "uint8")
        changed = np.argwhere((apply("cutout", index=index, image=image) == 128).all(axis=-1))
        assert 36 <= len(changed) <= 144
        height, width = np.ptp(changed, axis=0) + 1
        assert height * width == len(changed)


def test_a_batch_is_augmented_image_by_image_and_step_by_step():
    images, seeds = noise(5).images, np.array([[1, 2, index] for index in range(5)], "int32")
    together = augmented(images, seeds, tuple(ALONE))
    for image, seed, result in zip(images, seeds, together, strict=True):
        for name in ALONE:
            image = augmented(image[None], seed[None], (name,))[0].numpy()
        np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(("steps", "digest"), PIXELS.items())
def test_pixels_are_those_of_the_runs_in_the_tables(steps, digest):
    found = hashlib.sha256()
    for height, width in ((32, 32), (20, 28)):
        images = np.random.RandomState(width).randint(0, 256, (64, height, width, 3)).astype("uint8")
        index = np.arange(64)
        seeds = np.stack([np.full(64, 3), index % 5, index * 7], axis=-1).astype("int32")
        found.update(augmented(images, seeds, tuple(steps.split("+"))).numpy().tobytes())
    assert found.hexdigest()[:16] == digest


def test_augmentation_differs_per_epoch_and_repeats_per_seed():
    one_image = noise(1)  # order can't hide anything
    run = dict(batch_size=1, seed=7, epochs=2, augmentation=("shift", "colour_jitter"))  # no two alike by chance
    (first, _), (second, _) = batches(train_pipeline(one_image, **run))
    (again, _), _ = batches(train_pipeline(one_image, **run))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    split = noise(20)
    labels = np.arange(20, dtype="int32")  # each its own, to be told apart
    split = type(split)(split.images, labels)
    seen = np.array([y for _, y in batches(train_pipeline(split, batch_size=5, seed=0, epochs=2))]).reshape(2, 20)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(20))
    assert list(seen[0]) != list(seen[1])
    np.testing.assert_array_equal(seen[1], epoch_order(20, seed=0, epoch=1))


def test_resuming_at_an_epoch_equals_never_having_stopped():
    split = noise(23)
    run = dict(batch_size=5, seed=1, epochs=3, augmentation=("shift", "alternating_flip"))
    whole = batches(train_pipeline(split, **run))
    resumed = batches(train_pipeline(split, **run, first_epoch=2))
    assert len(whole) == 12  # the incomplete fifth batch is left out, three times
    for (images, labels), (images_again, labels_again) in zip(whole[8:], resumed, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_evaluation_keeps_order_and_tail():
    split = noise(7)
    parts = batches(evaluation_pipeline(split, batch_size=4))
    np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), split.images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in parts]), split.labels)


def test_no_stream_is_autotuned():
    """Else its end waits for a thread that sleeps for seconds."""
    split = noise(20)
    streams = (train_pipeline(split, batch_size=5, seed=0, epochs=2), evaluation_pipeline(split, batch_size=5))
    assert [stream.options().autotune.enabled for stream in streams] == [False, False]
