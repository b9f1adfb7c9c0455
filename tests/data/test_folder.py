"""Any image folder: what is taken, what is refused, and that it is decoded once."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from cifar_keras.config import ConfigError, Limits, RunFailedError
from cifar_keras.data import Rows, cifar, folder, load, reading


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
    fill(root / "other", ["cat", "dog"])


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
        (misnamed, "other/cat/000.png belongs to no class of a known split"),
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
    monkeypatch.setattr(folder, "_read", lambda *_: pytest.fail("read again"))
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
    monkeypatch.setattr(reading, "AT_ONCE", 7)
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "another"))
    blocks = load(root)
    assert blocks.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(blocks.train.images, whole.train.images)


def test_processes_read_the_same_and_end(tmp_path, monkeypatch):
    root = plain(tmp_path / "pets", {"cat": 30, "dog": 30})
    (root / "cat" / "000.ppm").write_bytes(b"junk")
    paths = [str(path) for path in sorted(root.rglob("*.ppm"))]
    here = list(reading.read_all(paths, 6))
    monkeypatch.setattr(reading, "MANY", 1)
    monkeypatch.setattr(reading, "cores", lambda: 2)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    (tmp_path / "queue.py").write_text("raise SystemExit(9)")  # processes import nothing from the current folder
    monkeypatch.chdir(tmp_path)
    assert list(reading.read_all(paths, 6)) == here and here[0][1:] == (b"", None)
    few = reading.read_all(paths, 6)
    assert next(few) == here[0]
    few.close()
    with pytest.raises(FileNotFoundError, match="gone.ppm"):
        list(reading.read_all([*paths, str(root / "gone.ppm")], 6))
    monkeypatch.setattr(reading, "COMMAND", "import os; os._exit(1)")
    with pytest.raises(RunFailedError, match="ended early"):
        list(reading.read_all(paths, 6))
    assert len(started) == 8 and all(process.poll() is not None for process in started)


def test_where_no_process_can_be_started_threads_read(tmp_path, monkeypatch):
    root = plain(tmp_path / "pets", {"cat": 3, "dog": 3})
    paths = [str(path) for path in sorted(root.rglob("*.ppm"))]
    here = list(reading.read_all(paths, 6))
    monkeypatch.setattr(reading, "MANY", 1)
    monkeypatch.setattr(reading, "cores", lambda: 2)
    monkeypatch.setattr(reading.sys, "executable", str(tmp_path / "none"))
    assert list(reading.read_all(paths, 6)) == here


def test_a_wrong_guess_of_the_size_is_put_right(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat", "dog"])
    monkeypatch.setattr(folder, "_likely_side", lambda *_: 5)
    assert load(root).image_shape == (8, 8, 3)
    np.testing.assert_array_equal(load(root).train.images.images[0], pixels(0))


def test_a_file_that_cannot_be_read_is_not_taken_for_the_cache(tmp_path, monkeypatch):
    root = fill(tmp_path / "pets", ["cat", "dog"])

    def read(path, size):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(reading, "read", read)
    with pytest.raises(ConfigError, match="Could not read .*cat/000.png: Permission denied"):
        load(root)


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
    monkeypatch.setitem(folder.KNOWN, load(root).fingerprint, folder.Known("cifar10-jpeg", "CIFAR-10 (JPEG)"))
    assert (load(root).slug, load(root).label) == ("cifar10-jpeg", "CIFAR-10 (JPEG)")
    assert load(root).superclass_names == () and load(root).test.coarse_labels is None


def test_a_folder_with_cifar100s_fingerprint_has_its_superclasses(tmp_path, monkeypatch):
    root = fill(tmp_path / "png", ["apple", "rose", "shark", "tulip"])
    png = folder.Known("cifar100-png", "CIFAR-100 (PNG)", cifar.SUPERCLASSES)
    monkeypatch.setitem(folder.KNOWN, load(root).fingerprint, png)
    dataset = load(root)
    assert dataset.label == "CIFAR-100 (PNG)" and len(dataset.superclass_names) == 20
    expected = {"apple": "fruit_and_vegetables", "rose": "flowers", "shark": "fish", "tulip": "flowers"}
    for split in (dataset.train, dataset.val, dataset.test):
        for label, coarse in zip(split.labels, split.coarse_labels, strict=True):
            assert dataset.superclass_names[coarse] == expected[dataset.class_names[label]]


def test_each_of_cifar100s_classes_has_one_superclass():
    names = [name for classes in cifar.SUPERCLASSES.values() for name in classes.split()]
    assert len(names) == len(set(names)) == 100
    assert {len(classes.split()) for classes in cifar.SUPERCLASSES.values()} == {5}
    assert list(cifar.SUPERCLASSES) == sorted(cifar.SUPERCLASSES)  # as the archive numbers them


def test_pixels_in_two_splits_are_counted_even_in_other_files(tmp_path):
    root = tmp_path / "pets"
    for seed, split in enumerate(("train", "val", "test")):
        fill(root / split, ["cat", "dog"], seed=100 * seed)
    Image.fromarray(pixels(0)).save(root / "test/dog/twin.bmp")
    Image.fromarray(pixels(100)).save(root / "test/cat/twin.png", compress_level=0)
    Image.fromarray(pixels(1)).save(root / "val/cat/twin.png")
    assert load(root).notes == ("identical pixels: train-val 1, train-test 1, val-test 1",)


def plain(root, counts, *, start=0):
    """Writes uncompressed images, whose bytes no library's version changes, `counts[name]` into each folder."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i:03}.ppm").write_bytes(b"P6 8 8 255\n" + pixels(start + 100 * number + i).tobytes())
    return root


def indices(dataset):
    return [split.images.indices.tolist() for split in (dataset.train, dataset.val, dataset.test)]


@pytest.mark.parametrize(  # computed by the code before other spellings, kinds and rare classes were known (eb5a2d4)
    ("counts", "slug", "classes", "val", "test"),
    [
        (
            {"cat": 20, "dog": 31, "eel": 14},
            "pets-fca79d",
            ("cat", "dog", "eel"),
            [2, 7, 40, 42, 46, 52],
            [1, 18, 45, 48, 49, 56],
        ),
        (
            {"train/cat": 20, "train/dog": 31, "test/cat": 4, "test/dog": 5},
            "pets-d4842a",
            ("cat", "dog"),
            [10, 27, 54, 57, 58],
            [*range(9)],
        ),
        (
            {"train/cat": 5, "train/dog": 6, "val/cat": 2, "val/dog": 2, "test/cat": 4, "test/dog": 5},
            "pets-7a280a",
            ("cat", "dog"),
            [20, 21, 22, 23],
            [*range(9)],
        ),
        (
            {"bus": 20, "car": 20, "train": 20},
            "pets-3e9429",
            ("bus", "car", "train"),
            [2, 7, 33, 34, 52, 59],
            [1, 18, 21, 31, 53, 55],
        ),
    ],
)
def test_folders_that_always_worked_keep_fingerprint_name_classes_and_splits(
    tmp_path, counts, slug, classes, val, test
):
    dataset = load(plain(tmp_path / "pets", counts))
    assert (dataset.slug, dataset.class_names, len(dataset.notes)) == (slug, classes, 1)
    train = sorted({*range(sum(counts.values()))} - {*val, *test})
    assert indices(dataset) == [train, val, test]


def test_the_whole_fingerprint_is_that_of_before(tmp_path):
    dataset = load(plain(tmp_path / "pets", {"cat": 20, "dog": 31, "eel": 14}))
    assert dataset.fingerprint == "fca79d8b166878f79d1e7db28d2a24f2db2b8d882d2f210b0a7bcf40a1f41b47"  # by eb5a2d4


@pytest.mark.parametrize(
    "names",
    [
        ("Train", None, "Test"),
        ("Training", "Validation", "Testing"),
        ("training_set", None, "test_set"),
        ("train", "valid", "test"),
        ("TRAIN", "Dev", "TEST"),
        ("seg_train", None, "seg_test"),
        ("Train Set", "Val-Set", "TestSet"),
        ("training", "validation", "evaluation"),
        ("train_images", "val_images", "test_images"),
        ("data_train", "data_val", "data_test"),
        ("Training", None, None),
    ],
)
def test_other_spellings_of_the_splits_are_the_splits_and_are_named(tmp_path, names):
    root, sizes_of = tmp_path / "pets", {"train": 20, "val": 3, "test": 4}
    here = {split: name for split, name in zip(sizes_of, names, strict=True) if name}
    for number, (split, name) in enumerate(here.items()):
        plain(root, {f"{name}/cat": sizes_of[split], f"{name}/dog": sizes_of[split]}, start=1000 * number)
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog")
    expected = [2 * sizes_of[split] if split in here else 4 for split in sizes_of]  # 4: a tenth of train
    expected[0] -= 4 * (3 - len(here))
    assert list(sizes(dataset)) == expected
    for number, (split, _) in enumerate(here.items()):
        if split != "train":
            np.testing.assert_array_equal(getattr(dataset, split).images[0], pixels(1000 * number))
    assumed = [f"{name} is {split}" for split, name in here.items()]
    assert dataset.notes[1:] == (f"folders: {', '.join(assumed)}",)


def test_plain_names_of_splits_need_no_note(tmp_path):
    dataset = load(plain(tmp_path / "pets", {"train/cat": 9, "train/dog": 9, "test/cat": 2, "test/dog": 2}))
    assert len(dataset.notes) == 1


def test_a_split_inside_of_its_own_name_and_images_to_predict_are_understood(tmp_path):
    root = plain(tmp_path / "intel", {f"seg_train/seg_train/{name}": 10 for name in ("sea", "street")})
    plain(root, {f"seg_test/seg_test/{name}": 3 for name in ("sea", "street")}, start=1000)
    plain(root, {"seg_pred/seg_pred": 4}, start=2000)
    dataset = load(root)
    assert dataset.class_names == ("sea", "street") and sizes(dataset) == (18, 2, 6)
    np.testing.assert_array_equal(dataset.test.images[3], pixels(1100))
    assert dataset.notes[1] == (
        "folders: seg_train/seg_train is train, seg_test/seg_test is test, "
        "seg_pred is left out, as its images have no class"
    )


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ("train/cat", "train/dog", "val/cat", "val/dog", "valid/cat", "valid/dog"),
            "for val. Received: val and valid",
        ),
        (("Train/cat", "Train/dog", "train/cat", "train/dog"), "for train. Received: Train and train"),
        (("first/cat", "first/dog", "second/cat", "second/dog"), "first, second in .* look like splits.*cat, dog"),
        (("a/cat", "a/dog", "a/eel", "b/Cat", "b/dog"), "look like splits.*Call the splits train, val and test"),
        (("a/cat", "a/dog", "b/cat", "b/dog", "c"), "look like splits"),
        ((*(f"fold{i}/{name}" for i in range(5) for name in ("cat", "dog")),), "look like splits"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "splits inside of its classes, as in cat/test"),
        (("val/cat", "val/dog", "test/cat", "test/dog"), "must hold a folder of training images, train"),
        (("Training", "Testing"), "at least two classes to train. Received: .*'Testing', 'Training'"),
        (("train", "test1", "more"), "names of splits and hold images directly"),
        (("Train/cat", "Train/dog", "Test"), "Test/000.ppm belongs to no class"),
        (("Train/cat", "Train/dog", "Test/cat", "Test/dog", "more/cat"), "more/cat/000.ppm belongs to no class"),
        (("archive/Train/cat", "archive/Train/dog"), "Give the path of that one: .*pets/archive"),
        (("a/b/train/cat", "a/b/train/dog"), "Give the path of that one: .*pets/a/b"),
    ],
)
def test_what_looks_like_splits_and_cannot_be_taken_for_them_is_refused(tmp_path, places, message):
    with pytest.raises(ConfigError, match=message):
        load(plain(tmp_path / "pets", dict.fromkeys(places, 10)))


@pytest.mark.parametrize(
    "places",
    [
        ("bus", "car", "train"),
        ("Bus", "Car", "Train"),
        ("Bus/city", "Car/suv", "Train/steam", "Train/electric"),  # vehicles, of several kinds
        ("valid", "invalid"),
        ("cat/images", "dog/images"),
        ("animal/cat", "animal/dog", "plant/oak"),
        ("pets/cat", "pets/dog"),
        ("husky/female", "husky/male", "pug/female", "pug/male", "mops/female", "mops/male", "akita/male"),
    ],
)
def test_classes_that_only_sound_like_splits_stay_classes(tmp_path, places):
    dataset = load(plain(tmp_path / "pets", dict.fromkeys(places, 10)))
    assert dataset.class_names == tuple(sorted(places)) and len(dataset.notes) == 1


def test_a_link_is_what_its_own_path_says_be_it_a_file_a_class_a_split_or_the_folder(tmp_path):
    """A store of links, as DVC and git-annex make them: the targets' names say nothing, or something else."""
    store = plain(tmp_path / "store", {"dog": 10, "x1": 10, "x2/cat": 5, "x2/dog": 5})
    root = tmp_path / "linked"
    (root / "train" / "cat").mkdir(parents=True)
    for i in range(10):
        (root / "train" / "cat" / f"{i}.ppm").symlink_to(store / "dog" / f"{i:03}.ppm")
    (root / "train" / "dog").symlink_to(store / "x1", target_is_directory=True)
    (root / "test").symlink_to(store / "x2", target_is_directory=True)
    (tmp_path / "pets").symlink_to(root, target_is_directory=True)
    dataset = load(tmp_path / "pets")
    assert dataset.class_names == ("cat", "dog") and sizes(dataset) == (18, 2, 10)
    assert dataset.label == "pets" and dataset.slug == f"pets-{dataset.fingerprint[:6]}"
    for image, label in zip(dataset.train.images, dataset.train.labels, strict=True):
        start = (0, 100)[label]  # what lies in the store's `dog` is a cat here
        assert any(np.array_equal(image, pixels(start + i)) for i in range(10))
    np.testing.assert_array_equal(dataset.test.images[0], pixels(200))


def test_the_folder_of_work_has_its_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(plain(tmp_path / "pets", {"cat": 10, "dog": 10}))
    assert load(".").label == load("../pets/cat/..").label == "pets"


def test_every_ending_that_pillow_opens_counts_and_the_others_are_named_in_one_line(tmp_path):
    root = plain(tmp_path / "pets", {"cat": 10, "dog": 10})
    jpeg = Image.fromarray(pixels(77))
    for ending, kind in (("jfif", "jpeg"), ("JPE", "jpeg"), ("dib", "dib"), ("pbm", "ppm"), ("apng", "png")):
        jpeg.save(root / "cat" / f"more.{ending}", kind)
    jpeg.save(root / "cat" / "00000123", "jpeg")
    jpeg.save(root / "cat" / "a.jpg_large", "jpeg")
    for name in ("a.cr2", "b.cr2", "c.CR2", "d.svg", "label.txt", "notes"):
        (root / "dog" / name).write_bytes(b"no image")
    (root / "eel").mkdir()
    (root / "eel" / "a.psd").touch()
    (root / "dog" / "none" / "deep").mkdir(parents=True)
    dataset = load(root)
    assert sum(sizes(dataset)) == 25 and dataset.class_names == ("cat", "dog")
    rename = "images by their content: rename them, as in .jpg"
    assert dataset.notes[1:] == (
        f"7 files left out: 3 .cr2, 1 without an ending ({rename}), 1 .jpg_large ({rename}), 1 .psd, 1 .svg",
        "folders without a usable image: dog/none, eel",
    )


def test_what_is_left_out_is_said_where_nothing_else_is_there(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "a.cr3").touch()
    with pytest.raises(ConfigError, match=r"holds no images .*\(2 files left out: 2 .cr3\)"):
        load(tmp_path / "pets")


def test_a_rare_class_is_in_every_split(tmp_path):
    dataset = load(plain(tmp_path / "pets", {"cat": 90, "dog": 3}))
    assert [np.bincount(split.labels).tolist() for split in (dataset.train, dataset.val, dataset.test)] == [
        [74, 1],
        [8, 1],
        [8, 1],
    ]
    plain(tmp_path / "two", {"train/cat": 90, "train/dog": 2, "test/cat": 5, "test/dog": 5})
    assert np.bincount(load(tmp_path / "two").val.labels).tolist() == [8, 1]


def test_a_class_too_small_for_three_splits_stays_in_train(tmp_path):
    dataset = load(plain(tmp_path / "pets", {"cat": 90, "dog": 2}))
    assert np.bincount(dataset.train.labels).tolist() == [72, 2]


def damaged(root):
    """Two images of each class are damaged, a third is a link to nowhere. Returns their paths."""
    for name in ("cat", "dog"):
        (root / name / "100.ppm").write_bytes(b"P6 8 8 255\nshort")
        (root / name / "101.png").write_bytes(b"")
        (root / name / "102.jpg").symlink_to(root / "nowhere")
    return [f"{name}/{file}" for name in ("cat", "dog") for file in ("100.ppm", "101.png", "102.jpg")]


def test_damaged_images_are_skipped_on_request_as_if_they_had_never_been_there(tmp_path, monkeypatch):
    root = plain(tmp_path / "pets", {"cat": 20, "dog": 31, "eel": 14})
    whole = load(root)
    paths = damaged(root)
    with pytest.raises(ConfigError, match="Could not read .*102.jpg.*`--skip-unreadable`"):
        load(root)
    dataset = load(root, skip_unreadable=True)
    assert list(dataset.skipped) == paths and whole.skipped == ()
    assert dataset.fingerprint == "fca79d8b166878f79d1e7db28d2a24f2db2b8d882d2f210b0a7bcf40a1f41b47"
    assert indices(dataset) == indices(whole)
    np.testing.assert_array_equal(dataset.train.images, whole.train.images)
    assert dataset.notes[1] == f"6 damaged images left out: {', '.join(paths[:5])}, ... (6)"
    assert load(root, classes="cat,dog", skip_unreadable=True).skipped == dataset.skipped
    monkeypatch.setattr(folder, "_read", lambda *_: pytest.fail("read again"))
    assert load(root, skip_unreadable=True).skipped == dataset.skipped
    assert load(root, image_size=None, limits=Limits(train=5), skip_unreadable=True).fingerprint == whole.fingerprint


def test_skipping_first_does_not_let_damaged_images_pass_later(tmp_path):
    root = plain(tmp_path / "pets", {"cat": 20, "dog": 20})
    (root / "cat" / "000.ppm").write_bytes(b"")
    assert load(root, skip_unreadable=True).skipped == ("cat/000.ppm",)
    with pytest.raises(ConfigError, match="1 image in .*cat/000.ppm.*`--skip-unreadable` leaves"):
        load(root)
    plain(root, {"cat": 1})
    assert load(root, skip_unreadable=True).skipped == () and sum(sizes(load(root))) == 40


def test_a_class_that_skipping_would_empty_is_refused(tmp_path):
    root = plain(tmp_path / "pets", {"cat": 20, "dog": 20, "eel": 1})
    (root / "eel" / "000.ppm").write_bytes(b"")
    with pytest.raises(ConfigError, match="Every image of eel in .* is damaged"):
        load(root, skip_unreadable=True)


def test_only_a_folder_has_images_to_skip():
    with pytest.raises(ConfigError, match="`--skip-unreadable` is for a folder of images. Received: shapes"):
        load("shapes", skip_unreadable=True)
