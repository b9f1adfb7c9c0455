"""Some of a dataset's classes, some images of each, and the embedded stand-in for CIFAR-100."""

import numpy as np
import pytest
from helpers import config

from cifar_keras import metrics, outcome
from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import load, options_of
from cifar_keras.data.base import Dataset, Split
from cifar_keras.data.shapes import COLOURS


@pytest.fixture(scope="module")
def hundred():
    return load("shapes100", limits=Limits(400, 200, 200))


def test_some_classes_are_a_dataset_of_their_own(shapes):
    some = load("shapes", classes="star, cross,ring", limits=Limits(test=9))
    assert some.class_names == ("cross", "ring", "star")  # the dataset's own order
    assert some.slug == "shapes-cross+ring+star" and "3 classes" in some.label
    assert (len(some.train), len(some.val), len(some.test)) == (6000, 600, 9)
    whole = load("shapes")
    of_ring = some.train.images[some.train.labels == 1]
    np.testing.assert_array_equal(of_ring, whole.train.images[whole.train.labels == whole.class_names.index("ring")])
    assert some.fingerprint not in (whole.fingerprint, load("shapes", classes="star,cross").fingerprint)


def test_classes_that_do_not_exist_are_refused_with_the_choices():
    for classes in ("cat,ring", "ring", ""):
        with pytest.raises(ConfigError, match="two or more of circle, crescent"):
            load("shapes", classes=classes)


def test_names_that_are_no_file_names_become_a_digest():
    random = Split(np.zeros((4, 8, 8, 3), "uint8"), np.arange(4, dtype="int32"))
    names = ("a/b", "c d", "e", "f")
    whole = Dataset("odd", "odd", "0" * 64, names, random, random, random)
    assert whole.only(("a/b", "e")).slug.startswith("odd-2classes-")


@pytest.mark.parametrize(
    ("slug", "recorded", "names", "expected"),
    [
        ("cifar10", None, "ab", ("cifar10", None)),
        ("shapes-ring+star", ["ring", "star"], ["ring", "star"], ("shapes", ["ring", "star"])),
        ("pets-a1b2c3-ring+star", ["ring", "star"], ["ring", "star"], (None, ["ring", "star"])),
        ("shapes-ring+star", None, ["ring", "star"], ("shapes", ["ring", "star"])),  # as older versions recorded it
        ("cifar10-jpeg-ring+star", None, ["ring", "star"], (None, ["ring", "star"])),
        ("imagenet-100classes-a1b2c3", None, [f"c{i}" for i in range(100)], (None, None)),
    ],
)
def test_the_options_that_chose_a_runs_data_are_known_from_its_record(slug, recorded, names, expected):
    assert options_of(config(dataset=slug, classes=recorded), names) == expected


def test_labelled_images_are_drawn_by_the_seed_evenly_and_nested(shapes):
    few, more = (shapes.with_per_class(count, seed=3) for count in (2, 5))
    assert np.bincount(few.train.labels).tolist() == [2] * 10 and np.bincount(more.train.labels).tolist() == [5] * 10
    keys = [{image.tobytes() for image in split.images} for split in (few.train, more.train)]
    assert keys[0] < keys[1]
    other = shapes.with_per_class(2, seed=4)
    assert not np.array_equal(few.train.images, other.train.images)
    assert few.val is shapes.val and few.test is shapes.test
    assert len(shapes.with_per_class(10_000, seed=0).train) == len(shapes.train)


def test_a_number_of_labelled_images_must_be_that_of_some_class(shapes):
    shapes.check_per_class(shapes.largest_class)
    with pytest.raises(ConfigError, match=f"no class of .* has more than {shapes.largest_class:,} for training"):
        shapes.check_per_class(shapes.largest_class + 1)


def test_shapes100_has_cifar100s_form(hundred):
    assert len(hundred.class_names) == len(set(hundred.class_names)) == 100 and len(hundred.superclass_names) == 20
    assert np.bincount(hundred.train.labels, minlength=100).tolist() == [4] * 100
    for split in (hundred.train, hundred.val, hundred.test):
        np.testing.assert_array_equal(split.coarse_labels, split.labels // 5)
    for name, coarse in zip(hundred.class_names, np.arange(100) // 5, strict=True):
        assert name.split()[1] == hundred.superclass_names[coarse].split()[1]
    few = load("shapes100", classes="red circle,blue ring")
    assert set(few.train.coarse_labels) == {0, 9} and few.superclass_names == hundred.superclass_names


def test_in_shapes100_the_class_says_the_colour(hundred):
    """The pixels nearest to a class's colour are more than those of the others': what separates red from blue."""
    colours = np.asarray(tuple(COLOURS.values()))
    distance = np.abs(hundred.train.images[:, :, :, None, :].astype(int) - colours).max(axis=-1) < 60
    votes = distance.sum(axis=(1, 2))
    own = votes[np.arange(len(votes)), hundred.train.labels % 10].mean()
    assert own > 1.5 * votes.mean()


def test_coarse_accuracy_sums_the_probabilities_of_a_superclass():
    superclass = np.array([0, 0, 1])
    probabilities = np.array([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.6, 0.0, 0.4]])
    labels = np.array([0, 2, 2])
    assert metrics.accuracy(labels, probabilities) == pytest.approx(1 / 3)
    assert metrics.coarse_accuracy(labels, probabilities, superclass) == pytest.approx(2 / 3)


def test_the_superclass_of_every_class_is_read_from_the_data(hundred):
    np.testing.assert_array_equal(outcome.superclass_of(hundred), np.arange(100) // 5)
    few = load("shapes100", limits=Limits(30, 24, 40))  # val lacks classes that test has
    np.testing.assert_array_equal(outcome.superclass_of(few), np.where(np.arange(100) < 40, np.arange(100) // 5, -1))


def test_accuracy_by_class():
    probabilities = np.eye(3)[[0, 0, 1, 2]]
    found = metrics.class_accuracy(np.array([0, 1, 1, 1]), probabilities, classes=3)
    np.testing.assert_allclose(found, [1.0, 1 / 3, np.nan])
