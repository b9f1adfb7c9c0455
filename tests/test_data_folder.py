"""Any image folder: what is taken, what is refused, and that it is decoded once."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cifar_keras import images
from cifar_keras.config import ConfigError, Limits
from cifar_keras.datasets import Rows, folder, load


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed, width=8, height=8):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def fill(root, classes, *, count=10, seed=0, **shape):
    """Writes `count` different images into each class folder."""
    for number, name in enumerate(classes):
        place = root / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(pixels(seed + 1000 * number + i, **shape)).save(place / f"{i:03}.png")
    return root


def sizes(dataset):
    return len(dataset.train), len(dataset.val), len(dataset.test)


def test_classes_alone_are_split_80_10_10_stratified(tmp_path):
    dataset = load(fill(tmp_path / "pets", ["dog", "cat"], count=20))
    assert sizes(dataset) == (32, 4, 4) and dataset.class_names == ("cat", "dog")
    for split in (dataset.train, dataset.val, dataset.test):
        assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2


def test_no_image_is_in_two_splits_and_none_is_lost(tmp_path):
    dataset = load(fill(tmp_path / "pets", ["cat", "dog", "eel"], count=13))
    parts = [split.images.indices for split in (dataset.train, dataset.val, dataset.test)]
    assert np.sort(np.concatenate(parts)).tolist() == list(range(39))


def test_missing_val_is_a_tenth_of_train_and_test_is_kept(tmp_path):
    fill(tmp_path / "pets/train", ["cat", "dog"], count=50)
    dataset = load(fill(tmp_path / "pets/test", ["cat", "dog"], count=7, seed=500).parent)
    assert sizes(dataset) == (90, 10, 14)
    np.testing.assert_array_equal(dataset.test.images[0], pixels(500))
    np.testing.assert_array_equal(dataset.test.images[7], pixels(1500))


def test_three_splits_are_taken_as_they_are(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        fill(tmp_path / "pets" / split, ["cat", "dog"], count=3 + seed, seed=100 * seed)
    assert sizes(load(tmp_path / "pets")) == (6, 8, 10)


def test_each_label_belongs_to_its_image(tmp_path):
    dataset = load(fill(tmp_path / "pets", ["cat", "dog"], count=20))
    for split in (dataset.train, dataset.val, dataset.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert any(np.array_equal(image, pixels(1000 * label + i)) for i in range(20))


def test_nested_folders_are_classes_by_their_path(tmp_path):
    root = fill(tmp_path / "zoo/train", ["animal/dog", "animal/cat", "plant/oak"]).parent
    assert load(root).class_names == ("animal/cat", "animal/dog", "plant/oak")


def test_train_may_be_a_class_among_vehicles(tmp_path):
    assert load(fill(tmp_path / "vehicles", ["bus", "car", "train"])).class_names == ("bus", "car", "train")


def test_hidden_and_other_files_are_passed_over(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    fingerprint = load(root).fingerprint
    for name in ("cat/.hidden.png", "cat/notes.txt", "Thumbs.db", ".git/cat.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    assert load(root).fingerprint == fingerprint


def test_a_link_to_a_folder_above_ends(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    (root / "eel").symlink_to(fill(tmp_path / "elsewhere", ["eel"], seed=5000) / "eel", target_is_directory=True)
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog", "eel") and sum(sizes(dataset)) == 30


def test_files_of_every_kind_become_rgb_of_one_size(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"], count=4)
    image = Image.fromarray(pixels(77, 30, 20))
    for name, odd in {
        "grey.png": image.convert("L"),
        "palette.gif": image.convert("P"),
        "alpha.webp": image.convert("RGBA"),
        "cmyk.jpg": image.convert("CMYK"),
        "deep.tif": Image.fromarray(np.full((9, 9), 40000, np.uint16)),
    }.items():
        odd.save(root / "cat" / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "dog" / "turned.jpg", exif=exif)
    dataset = load(root, image_size=16)
    assert dataset.image_shape == (16, 16, 3) and dataset.train.images.dtype == np.uint8
    assert sum(sizes(dataset)) == 14


def test_the_default_size_is_the_commonest_shorter_side_of_train(tmp_path):
    root = tmp_path / "pets"
    fill(root / "train", ["cat", "dog"], count=3, width=12, height=20)
    fill(root / "train", ["bird"], count=5, width=9, height=9, seed=50)
    fill(root / "test", ["bird", "cat", "dog"], count=9, width=40, height=40, seed=90)
    assert load(root).image_shape == (12, 12, 3)
    assert load(fill(tmp_path / "photos", ["a", "b"], count=5, width=300, height=300)).image_shape == (224, 224, 3)


def test_damaged_images_are_all_counted_five_named_and_nothing_is_kept(tmp_path, cache):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    for i in range(7):
        (root / "cat" / f"{i:03}.png").write_bytes(b"" if i % 2 else b"junk")
    with pytest.raises(ConfigError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith("7 images in") and "Replace or remove them" in message
    assert all(f"cat/00{i}.png" in message for i in range(5)) and "cat/005.png" not in message
    assert not list(cache.glob("*.npy"))
    fill(root, ["cat"], count=7, seed=300)
    assert sum(sizes(load(root))) == 20


def empty(root):
    root.mkdir()


def one_class(root):
    fill(root, ["cat"])


def unsorted(root):
    fill(root, ["train", "test"])


def loose(root):
    shutil.copy(fill(root, ["cat", "dog"]) / "cat/000.png", root / "loose.png")


def misnamed(root):
    fill(root / "train", ["cat", "dog"])
    fill(root / "validation", ["cat", "dog"])


def unknown_class(root):
    fill(root / "train", ["cat", "dog"])
    fill(root / "test", ["cat", "dog", "wolf"])


def lacking_class(root):
    fill(root / "train", ["cat", "dog", "wolf"])
    fill(root / "val", ["cat", "dog"])


def scarce(root):
    fill(root, ["cat", "dog"], count=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "holds no images"),
        (one_class, r"at least two classes .* \['cat'\]"),
        (unsorted, r"at least two classes to train. Received: \['test', 'train'\]"),
        (loose, "loose.png belongs to no class"),
        (misnamed, "validation/cat/000.png belongs to no class of a known split"),
        (unknown_class, "'wolf' is in only one of train and test"),
        (lacking_class, "'wolf' is in only one of train and val"),
        (scarce, "too few images of"),
    ],
)
def test_other_layouts_are_refused_with_what_was_expected(tmp_path, make, message):
    make(tmp_path / "pets")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "pets")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ConfigError, match="Could not read .*gone.png"):
        load(root)


def test_the_fingerprint_depends_on_content_and_not_on_place_or_time(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    first = load(root)
    copy = load(shutil.copytree(root, tmp_path / "elsewhere" / "pets", copy_function=shutil.copyfile))
    assert (copy.fingerprint, copy.slug) == (first.fingerprint, first.slug)
    os.rename(root / "cat" / "000.png", root / "cat" / "moved.png")
    assert load(root).fingerprint != first.fingerprint
    os.rename(root / "cat" / "moved.png", root / "cat" / "000.png")
    assert load(root).fingerprint == first.fingerprint
    Image.fromarray(pixels(99)).save(root / "cat" / "000.png")
    assert load(root).fingerprint != first.fingerprint


def test_a_change_that_keeps_size_and_time_is_still_seen(tmp_path):
    root = tmp_path / "pets"
    for i, name in enumerate(["cat", "dog"]):
        fill(root, [name], seed=100 * i)
        Image.fromarray(pixels(i)).save(root / name / "000.bmp")
    first, path = load(root), root / "cat" / "000.bmp"
    before = path.stat()
    Image.fromarray(pixels(5)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load(root).fingerprint != first.fingerprint


def test_the_second_start_reads_and_decodes_nothing(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    first = load(root)
    monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.setattr(folder, "_inspect", lambda *_: pytest.fail("read again"))
    second = load(root)
    assert second.notes == first.notes and second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.images, first.train.images)


def test_splits_and_their_subsets_stay_views_of_one_memory_map(tmp_path):
    root = fill(tmp_path / "pets", ["cat", "dog"], count=50)
    dataset, limited = load(root), load(root, limits=Limits(train=10, val=4))
    for split in (dataset.train, dataset.val, dataset.test, limited.test):
        assert isinstance(split.images, Rows) and isinstance(split.images.images, np.memmap)
        assert not split.images.images.flags.writeable
    assert isinstance(limited.train.images, Rows) and isinstance(limited.train.images.images, Rows)
    assert sizes(limited) == (10, 4, 10) and np.bincount(limited.train.labels).tolist() == [5, 5]


def test_each_size_is_cached_apart(tmp_path, cache):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    assert load(root).image_shape == (8, 8, 3) and load(root, image_size=10).image_shape == (10, 10, 3)
    assert len(list(cache.glob("*-8.npy"))) == len(list(cache.glob("*-10.npy"))) == 1


def test_blocks_keep_the_order(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    whole = load(root)
    monkeypatch.setattr(folder, "BLOCK", 7)
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "another"))
    blocks = load(root)
    assert blocks.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(blocks.train.images, whole.train.images)


def test_a_cache_that_cannot_be_written_says_which_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="Set CIFAR_KERAS_CACHE"):
        load(fill(tmp_path / "pets", ["cat", "dog"]))


def test_the_slug_is_a_safe_name_with_six_digits_of_the_fingerprint(tmp_path):
    dataset = load(fill(tmp_path / "My Pets (2)", ["cat", "dog"]))
    assert dataset.slug == f"my-pets-2-{dataset.fingerprint[:6]}" and dataset.label == "My Pets (2)"


def test_a_known_fingerprint_brings_its_own_name(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    monkeypatch.setitem(folder.KNOWN, load(root).fingerprint, ("cifar10-jpeg", "CIFAR-10 (JPEG)"))
    assert (load(root).slug, load(root).label) == ("cifar10-jpeg", "CIFAR-10 (JPEG)")


def test_pixels_in_two_splits_are_counted_even_in_other_files(tmp_path):
    root = tmp_path / "pets"
    for seed, split in enumerate(("train", "val", "test")):
        fill(root / split, ["cat", "dog"], seed=100 * seed)
    Image.fromarray(pixels(0)).save(root / "test/dog/twin.bmp")
    Image.fromarray(pixels(100)).save(root / "test/cat/twin.png", compress_level=0)
    Image.fromarray(pixels(1)).save(root / "val/cat/twin.png")
    assert load(root).notes == ("identical pixels: train-val 1, train-test 1, val-test 1",)
