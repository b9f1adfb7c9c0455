import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cifar_keras import plotting
from cifar_keras.config import RunFailedError
from cifar_keras.data.base import Rows

TEN = "airplane automobile bird cat deer dog frog horse ship truck".split()
AWKWARD = [f"animals/dogs/poodle_miniature_{i}" if i % 3 else f"$x_{i}$ 犬" for i in range(100)]
HISTORY = {
    "epoch": [1, 2, 3, 4],
    "loss": [2.0, 1.5, 1.0, 0.8],
    "accuracy": [0.3, 0.5, 0.6, 0.7],
    "val_loss": [2.1, 1.6, None, 1.0],
    "val_accuracy": [0.2, 0.4, 0.6, 0.5],
    "stage": [0, 0, 1, 1],
}


def images_of(labels, *, size=(32, 32)):
    return np.random.RandomState(0).randint(0, 256, (len(labels), *size, 3)).astype("uint8")


def drawn(kind, class_names, path):
    """Draws one picture of this kind with plausible data."""
    labels = np.arange(2 * len(class_names)) % len(class_names)
    if kind == "sample_grid":
        plotting.sample_grid(images_of(labels), labels, class_names, path, title="shapes, exp4, n = 9")
    elif kind == "label_distribution":
        plotting.label_distribution({"train": labels, "test": labels}, class_names, path, title="shapes")
    else:
        plotting.confusion_matrix(np.eye(len(class_names), dtype=int), class_names, path, title="shapes, exp4")


@pytest.fixture
def texts(monkeypatch):
    """The words of every figure that is drawn."""
    seen = []
    original = matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **kwargs):
        seen.extend(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text())
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return seen


@pytest.mark.parametrize("class_names", [TEN, AWKWARD], ids=["ten", "hundred awkward"])
@pytest.mark.parametrize("kind", ["sample_grid", "label_distribution", "confusion_matrix"])
def test_each_picture_is_a_png_with_its_title_and_draws_without_a_warning(kind, class_names, tmp_path, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a class name that is half a formula, or has no glyph, is no reason to fail
        drawn(kind, class_names, path := tmp_path / "new folder" / f"{kind}.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert max(picture.size) < 2500
    assert any(text.startswith("shapes") for text in texts)
    assert [file.name for file in path.parent.iterdir()] == [f"{kind}.png"]


def test_a_picture_that_can_not_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full_disk)
    with pytest.raises(RunFailedError, match="No space left"):
        drawn("confusion_matrix", TEN, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_drawing_leaves_no_global_state(tmp_path):
    before = dict(matplotlib.rcParams)
    drawn("confusion_matrix", TEN, tmp_path / "confusion.png")
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []


def test_samples_stand_in_the_column_of_their_class():
    labels = np.array([1, 0, 1, 1, 0])
    np.testing.assert_array_equal(plotting._first_of_each_class(labels, 2, rows=2), [[1, 0], [4, 2]])
    np.testing.assert_array_equal(plotting._first_of_each_class(labels, 2, rows=6), [[1, 0], [4, 2], [-1, 3]])


def test_a_plain_grid_shows_sixty_different_classes_of_a_hundred():
    labels = np.repeat(np.arange(100), 3)
    shown = labels[plotting._spread(labels, rows=6, columns=10)]
    assert shown.shape == (6, 10) and len(set(shown.flat)) == 60


def test_only_the_images_shown_are_read(tmp_path):
    class Counting(Rows):
        read = 0

        def __getitem__(self, key):
            Counting.read += 1
            return super().__getitem__(key)

    labels = np.arange(1000) % 10
    rows = Counting(images_of(labels, size=(12, 16)), np.arange(1000))
    plotting.sample_grid(rows, labels, TEN, tmp_path / "grid.png", title="a folder")
    assert Counting.read == 60


def test_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        plotting.sample_grid(np.zeros((0, 8, 8, 3), "uint8"), [], TEN, tmp_path / "grid.png", title="nothing")


def test_label_distribution_counts_every_split(tmp_path, texts):
    splits = {"train": [0] * 30 + [1] * 10, "val": [1] * 7}
    plotting.label_distribution(splits, ["cat", "dog"], tmp_path / "labels.png", title="pets")
    assert "train, n = 40, 10 to 30 a class" in texts
    assert "val, n = 7, 0 to 7 a class" in texts
    assert {"cat", "dog", "30", "10", "7"} <= set(texts)


def test_curves_mark_the_kept_epoch_and_where_a_stage_begins(tmp_path, texts):
    plotting.training_curves(HISTORY, tmp_path / "curves.png", title="shapes, exp3", best_epoch=4)
    assert texts.count("stage 2") == 2 and "stage 1" not in texts
    assert "kept: epoch 4, val 50.0%" in texts and "kept: epoch 4, val 1" in texts
    assert any("running metric" in text for text in texts)


def test_curves_of_a_single_epoch_are_drawn(tmp_path, texts):
    first = {key: values[:1] for key, values in HISTORY.items()}
    plotting.training_curves(first, tmp_path / "curves.png", title="shapes, exp3", best_epoch=None)
    assert not any(text.startswith(("stage", "kept")) for text in texts)


def test_counts_are_written_into_the_matrix_up_to_twenty_classes(tmp_path, texts):
    matrix = np.array([[90, 10], [0, 0]])  # the second class has no images: no division by zero
    plotting.confusion_matrix(matrix, ["cat", "dog"], tmp_path / "few.png", title="pets")
    assert {"90", "10"} <= set(texts)
    texts.clear()
    plotting.confusion_matrix(np.full((21, 21), 777), list(map(str, range(21))), tmp_path / "many.png", title="pets")
    assert "777" not in texts


def test_long_names_keep_both_ends():
    assert plotting.short("animals/dogs/poodle_miniature_2019", 11) == "anima…_2019"
    assert plotting.lines("aquarium_fish", 13) == "aquarium_fish"
    assert plotting.lines("lawn_mower_machine", 13) == "lawn_mower_\nmachine"
    assert all(len(line) <= 13 for name in AWKWARD for line in plotting.lines(name, 13).split("\n"))
