"""What every dataset shares, and the embedded one."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import Dataset, Rows, Split, load, shapes
from cifar_keras.data.base import carve, digests, identical_pixels, stratified, take

IMAGES = np.arange(6 * 2 * 2 * 3, dtype=np.uint8).reshape(6, 2, 2, 3)


@pytest.mark.parametrize("name", ["CIFAR10", "no/such/folder"])
def test_an_unknown_name_says_what_was_expected(name):
    with pytest.raises(ConfigError, match="must be 'cifar10', .* 'shapes100' or the path .* Received: "):
        load(name)
    assert ConfigError.exit_code == 2


@pytest.mark.parametrize("size", [0, -3, 7, 100_000])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=f"`image_size` must be 8 to 1024 pixels. Received: {size}"):
        load("shapes", image_size=size)


@pytest.mark.parametrize(
    "key", [2, -1, slice(1, 3), slice(None), np.array([2, 0, 0]), np.array([True, False, True, True])]
)
def test_rows_index_like_the_array_they_stand_for(key):
    order = np.array([5, 0, 3, 3])
    rows = Rows(IMAGES, order)
    np.testing.assert_array_equal(rows[key], IMAGES[order][key])
    assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == ((4, 2, 2, 3), np.uint8, 4, 4)


def test_rows_of_rows_and_conversion():
    rows = Rows(Rows(IMAGES, [4, 2, 0]), [2, 1])
    np.testing.assert_array_equal(np.asarray(rows), IMAGES[[0, 2]])
    assert np.asarray(rows, dtype=np.float32).dtype == np.float32
    assert [image.tolist() for image in rows] == IMAGES[[0, 2]].tolist()


def test_take_keeps_images_and_both_labels_together():
    split = Split(IMAGES, np.arange(6, dtype=np.int32), np.arange(6, dtype=np.int32) // 2)
    part = take(split, np.array([4, 1]))
    np.testing.assert_array_equal(part.images, IMAGES[[4, 1]])
    assert part.labels.tolist() == [4, 1] and part.coarse_labels.tolist() == [2, 0]


def test_carving_is_stratified_complete_and_always_the_same():
    labels = np.repeat(np.arange(3), [60, 30, 10])
    rest, taken = carve(labels, 10)
    assert np.bincount(labels[taken]).tolist() == [6, 3, 1]
    assert np.sort(np.concatenate([rest, taken])).tolist() == list(range(100))
    np.testing.assert_array_equal(taken, carve(labels, 10)[1])
    assert len(stratified(labels, 7, seed=1)) == 7


def test_a_class_without_a_share_gets_an_image_of_the_largest_class_and_nothing_else_changes():
    labels = np.repeat(np.arange(3), [60, 37, 3])
    before, after = stratified(labels, 10, seed=0), stratified(labels, 10, seed=0, each=[0, 1, 2])
    assert np.bincount(labels[before], minlength=3).tolist() == [6, 4, 0]
    assert np.bincount(labels[after]).tolist() == [5, 4, 1]
    assert set(before[labels[before] == 1]) == set(after[labels[after] == 1])
    np.testing.assert_array_equal(stratified(labels, 10, seed=0, each=[0, 1]), before)
    np.testing.assert_array_equal(stratified(labels, 50, seed=0, each=[0, 1, 2]), stratified(labels, 50, seed=0))
    assert len(stratified(labels, 1, seed=0, each=[0, 1, 2])) == 3  # none can spare one


def test_limits_lose_no_class_where_there_is_room(few):
    labels = np.repeat(np.arange(2, dtype=np.int32), [295, 5])
    split = Split(np.zeros((300, 1, 1, 3), np.uint8), labels)
    data = Dataset("x", "x", "0" * 64, ("cat", "dog"), split, split, split)
    limited = data.limited(Limits(20, 1, None))
    assert np.bincount(limited.train.labels).tolist() == [19, 1]
    assert limited.val.labels.tolist() == [0] and len(limited.test) == 300


def test_identical_pixels_are_counted_for_each_pair_of_splits():
    train, val, test = (digests(IMAGES[i]) for i in ([0, 1, 2], [2, 3], [3, 4, 0, 1]))
    assert identical_pixels(train, val, test) == "identical pixels: train-val 1, train-test 2, val-test 1"


@pytest.fixture(scope="module")
def few():
    return load("shapes", limits=Limits(train=3000, val=50, test=1000))


def test_shapes_is_a_dataset_with_balanced_prefixes(few):
    assert isinstance(few, Dataset)
    assert (few.slug, few.label, len(few.class_names)) == ("shapes", "shapes (synthetic)", 10)
    for split, count in ((few.train, 3000), (few.val, 50), (few.test, 1000)):
        assert split.images.shape == (count, 32, 32, 3) and split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32 and np.bincount(split.labels).tolist() == [count // 10] * 10
    assert few.notes == ("identical pixels: train-val 0, train-test 0, val-test 0",)


def test_shapes_has_20000_2000_and_5000_images():
    assert shapes.SIZES == {"train": 20_000, "val": 2_000, "test": 5_000}
    assert len(load("shapes", limits=Limits(train=10, val=None, test=9999)).test) == 5000


def test_an_image_depends_on_its_split_and_index_alone(few):
    np.testing.assert_array_equal(shapes.render("train", np.array([777, 3])), few.train.images[[777, 3]])
    assert not np.array_equal(shapes.render("val", np.arange(1)), shapes.render("train", np.arange(1)))


def test_the_pixels_are_the_same_on_every_machine():
    pixels = np.stack([shapes.render(split, np.arange(0, 2000, 53)) for split in shapes.SIZES])
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "88a93876fb9c70467bb406027278d7b561fc5a660e87713d06baf95ea4d19065"
    )


def test_the_fingerprint_follows_the_size_and_not_the_limits(few):
    assert load("shapes", limits=Limits(10, 10, 10)).fingerprint == few.fingerprint
    assert load("shapes", image_size=40, limits=Limits(10, 10, 10)).fingerprint != few.fingerprint


def test_the_fingerprint_follows_the_drawing(few, monkeypatch):
    monkeypatch.setattr(shapes, "NOISE", shapes.NOISE + 1)
    assert load("shapes", limits=Limits(10, 10, 10)).fingerprint != few.fingerprint


@pytest.mark.parametrize("size", [8, 33, 96])
def test_every_size_shows_the_same_picture(size):
    images = shapes.render("test", np.arange(40), size=size)
    assert images.shape == (40, size, size, 3)
    large, small = (shapes.render("test", np.arange(40), size=s).mean(axis=(1, 2)) for s in (size, 32))
    assert np.abs(large - small).max() < 12


def test_mean_brightness_tells_nothing_about_the_class(few):
    by_class = [few.train.images[few.train.labels == c].mean() for c in range(10)]
    assert np.ptp(by_class) < 8


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_linear_model_stays_under_45_percent(few):
    flat = {name: getattr(few, name).images.reshape(-1, 3072) / 127.5 - 1 for name in ("train", "test")}
    model = LogisticRegression(C=1e-2, max_iter=30).fit(flat["train"], few.train.labels)
    assert model.score(flat["train"], few.train.labels) > 0.3  # it did learn something
    assert model.score(flat["test"], few.test.labels) < 0.45


def test_a_folder_to_try_things_on_is_written_once(tmp_path):
    folder = shapes.write(tmp_path / "images", classes=3, per_class=4)
    data = load(str(folder))
    assert data.class_names == shapes.GENERATED["shapes"].class_names[:3] and data.image_shape == (32, 32, 3)
    assert len(data.train) + len(data.val) + len(data.test) == 12
    marker = folder / data.class_names[0] / "of the user.txt"
    marker.write_text("stays")
    assert shapes.write(folder) == folder and marker.is_file() and len(list(tmp_path.iterdir())) == 1
