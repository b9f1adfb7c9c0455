"""Which name belongs to which output, and which folder to which class: nothing is assumed without a word."""

import codecs
import csv
import io
import json
import re
import shlex

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from cifar_keras import cli
from cifar_keras.config import ConfigError
from cifar_keras.saved import inference, labels, scaling

CLASSES = ("ants", "bees", "cows", "dogs", "eels")
LEVELS = np.array([20, 70, 120, 170, 220])  # of red, one an output


def level_model(outputs=CLASSES, *, scale=1.0, states_scaling=True):
    """Says which of some levels of red is nearest; of pixels divided by `scale`."""
    levels = LEVELS[: len(outputs)] / scale
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Rescaling(1.0)(x) if states_scaling else x
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(len(levels), activation="softmax", name="levels")(x))
    kernel = np.zeros((3, len(levels)))
    kernel[0] = 2 * levels
    sharp = scale**2 / 500
    model.get_layer("levels").set_weights([kernel * sharp, -(levels**2) * sharp])
    return model


def images_of(folder, outputs_by_class):
    """`<class>/<number>.png`, each of the level that makes the model choose an output."""
    for name, outputs in outputs_by_class.items():
        (folder / name).mkdir(parents=True)
        for number, output in enumerate(outputs):
            Image.new("RGB", (4, 4), (int(LEVELS[output]), 90, 30)).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """100 images of 5 classes: output i is class i for 20 of them, and class i + 1 for 72."""
    outputs = {}
    for place, name in enumerate(CLASSES):
        before, other = (place - 1) % 5, (place + 2) % 5
        many = 15 if place < 2 else 14
        outputs[name] = [place] * 4 + [before] * many + [other] * (16 - many)
    return images_of(tmp_path_factory.mktemp("shifted"), outputs)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    level_model().save(path := tmp_path_factory.mktemp("model") / "levels.h5")
    return path


def run(*arguments):
    """The exit code of `cifar-keras`."""
    with pytest.raises(SystemExit) as ended:
        cli.command([*map(str, arguments)])
    return ended.value.code or 0


def test_outputs_in_another_order_are_seen_and_named_ones_are_right(model, shifted, capsys):
    assert run("predict", model, shifted, "--labels-from-folders", "--json") == 0
    out, err = capsys.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 100
    assert "output 0 = ants, output 1 = bees, output 2 = cows" in err and "alphabetical order" in err
    assert "accuracy 20.00%" in err and "right on 72.00% of these images, not 20.00%" in err
    assert "chosen after the fact" in err
    (stated,) = re.findall("--class-names ([a-z,]+)$", err, re.MULTILINE)
    assert stated == "bees,cows,dogs,eels,ants"
    assert run("predict", model, shifted, "--labels-from-folders", "--csv", "--class-names", *shlex.split(stated)) == 0
    out, err = capsys.readouterr()
    assert "accuracy 72.00%" in err and "another order" not in err and "assumed" not in err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert np.mean([row["class_1"] == row["label"] for row in rows]) == 0.72


def test_right_names_give_no_hint_and_wrong_ones_of_a_file_do(shifted, model, tmp_path, capsys):
    (tmp_path / "names").write_text("\n".join(CLASSES))
    assert run("predict", model, shifted, "--labels-from-folders", "--class-names", tmp_path / "names") == 0
    out, err = capsys.readouterr()
    assert "accuracy 20.00%" in out and "72.00%" in err and "bees,cows,dogs,eels,ants" in err


def test_an_order_inside_the_noise_is_not_offered():
    random = np.random.default_rng(0)
    for classes, images in ((2, 20), (3, 60), (10, 200), (50, 500), (200, 2000)):
        for _ in range(20):
            confusion = np.zeros((classes, classes), int)
            np.add.at(confusion, tuple(random.integers(0, classes, (2, images))), 1)
            assert labels.better_order(confusion) is None


def test_an_order_that_is_better_beyond_doubt_is_found():
    for classes in (2, 10, 200):
        confusion = np.roll(np.eye(classes, dtype=int) * 60, 1, axis=0) + np.eye(classes, dtype=int) * 10
        np.testing.assert_array_equal(labels.better_order(confusion), np.roll(np.arange(classes), -1))
        assert labels.better_order(confusion.T[::-1, ::-1] + 500 * np.eye(classes, dtype=int)) is None
    three = np.array([[50, 0, 0], [0, 0, 0], [0, 0, 0]])  # classes without images stay where they are
    assert labels.better_order(three) is None and labels.better_order(np.zeros((3, 3), int)) is None
    np.testing.assert_array_equal(labels.better_order(three[:, [1, 0, 2]]), [1, 0, 2])


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog\n",
        b"0 cat\n1 dog",
        b"0 cat\r\n1 dog\r\n\r\n",
        codecs.BOM_UTF8 + b"cat\r\ndog\r\n",
        codecs.BOM_UTF8 + b"1 dog\n0 cat\n",
        "cat\r\ndog".encode("utf-16"),
    ],
)
def test_a_file_of_names_may_be_written_in_many_ways(content, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    assert labels.listed(str(tmp_path / "labels.txt")) == labels.listed("cat, dog") == ("cat", "dog")
    assert labels.listed(["cat", "dog"]) == ("cat", "dog")


def test_numbers_that_count_nothing_belong_to_the_names(tmp_path):
    (tmp_path / "names").write_text("101 dalmatians\n3 stooges\n")
    assert labels.listed(tmp_path / "names") == ("101 dalmatians", "3 stooges")
    (tmp_path / "names").write_text("7\n8\n9\n")
    assert labels.listed(tmp_path / "names") == ("7", "8", "9")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cat,,dog", "name every class. Received: '' as name 2"),
        ("cat,dog,cat", "differently. Received: 'cat' twice"),
        ("cat", "no comma and is no file"),
        (["cat", 5], "Received: 5 as name 2"),
        (b"cat\n\ndog", "Received: '' as name 2"),
        (b"\xff\xfe\xff", "text file in UTF-8"),
    ],
)
def test_names_that_can_not_be_are_refused(given, said, tmp_path):
    if isinstance(given, bytes):
        (tmp_path / "names").write_bytes(given)
        given = tmp_path / "names"
    with pytest.raises(ConfigError, match=said):
        labels.listed(given)


def test_names_must_be_as_many_as_outputs_and_win_over_those_in_the_file(model, tmp_path, shifted, capsys):
    assert run("predict", model, shifted, "--class-names", "a,b") == 2
    assert "must name the 5 classes of levels.h5" in capsys.readouterr().err
    assert run("inspect", model, "--class-names", "a,b,c,d,e") == 0
    assert "5: a, b, c, d, e (by --class-names)" in capsys.readouterr().out
    from cifar_keras.saved import artifacts
    from cifar_keras.utils.paths import Paths

    paths = Paths(tmp_path, "m", "model")
    artifacts.save(level_model(), paths, provenance={"class_names": list(CLASSES)}, history={})
    classifier = inference.load(paths.keras, class_names="bees,ants,cows,dogs,eels")
    assert classifier.class_names[:2] == ("bees", "ants") and classifier.provenance["class_names"][0] == "bees"
    assert "names its classes ants, bees" in classifier.assumptions[0]
    assert "--class-names calls them bees, ants" in classifier.assumptions[0]
    assert inference.load(paths.keras, class_names=CLASSES).assumptions == ()


def test_a_file_of_names_beside_the_model_is_mentioned_and_not_read(shifted, tmp_path, capsys):
    level_model().save(tmp_path / "m.h5")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    assert run("predict", tmp_path / "m.h5", shifted / "ants" / "00.png", "--top", 1) == 0
    out, err = capsys.readouterr()
    assert "class 0" in out and f"--class-names {tmp_path / 'labels.txt'}" in err


def test_names_of_a_placeholder_kind_are_no_names(tmp_path, shifted, capsys):
    """An export without names may carry them; the folders are then taken as they are for the `.h5` itself."""
    from cifar_keras.saved import artifacts
    from cifar_keras.utils.paths import Paths

    paths = Paths(tmp_path, "m", "model")
    artifacts.save(level_model(), paths, provenance={"class_names": [f"class {i}" for i in range(5)]}, history={})
    assert run("predict", paths.keras, shifted, "--labels-from-folders") == 0
    assert "output 0 = ants" in capsys.readouterr().err


def test_links_keep_the_class_of_their_own_folder(model, tmp_path, capsys):
    """A store of links as DVC and git-annex make it: hashed names in hashed folders, and a class folder that is one."""
    names = ",".join(CLASSES)
    (store := tmp_path / "store" / "bees").mkdir(parents=True)
    for place, name in enumerate(CLASSES[:4]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            target = store / f"{place}{number}f3a9.png"
            Image.new("RGB", (4, 4), (int(LEVELS[place]), 0, 0)).save(target)
            (tmp_path / "images" / name / f"{number}.png").symlink_to(target)
    images_of(tmp_path / "store", {"9c41": [4, 4]})
    (tmp_path / "images" / "eels").symlink_to(tmp_path / "store" / "9c41")
    (tmp_path / "images" / "eels" / "round").symlink_to(tmp_path / "images")  # never ends
    assert run("predict", model, tmp_path / "images", "--labels-from-folders", "--class-names", names) == 0
    assert "accuracy 100.00% " in (out := capsys.readouterr().out) and "of 14 images" in out
    assert run("predict", model, tmp_path / "images", "--labels-from-folders") == 0
    assert "accuracy 100.00% " in capsys.readouterr().out


def test_the_path_as_given_names_the_class(tmp_path, monkeypatch):
    (tmp_path / "store" / "f3").mkdir(parents=True)
    (tmp_path / "images" / "dog").mkdir(parents=True)
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "store" / "f3")
    names = ("cat", "dog", "f3", "store")
    assert labels.label_of(tmp_path / "images" / "cat" / "x.png", names) == "cat"
    assert labels.label_of(tmp_path / "images" / "." / "dog" / ".." / "cat" / "x.png", names) == "cat"
    assert labels.label_of(tmp_path / "images" / "dog" / "sub" / ".." / "x.png", names) == "dog"
    assert labels.label_of(tmp_path / "images" / "cat" / ".." / "x.png", names) == "store"  # as the system walks it
    monkeypatch.chdir(tmp_path / "images" / "cat")
    monkeypatch.setenv("PWD", str(tmp_path / "images" / "cat"))
    assert labels.label_of("x.png", names) == labels.label_of("./x.png", names) == "cat"
    monkeypatch.setenv("PWD", str(tmp_path))  # not where the process is
    assert labels.label_of("x.png", names) == "f3"


def test_folders_in_folders_are_the_classes_of_a_model_that_names_them_so(model, tmp_path, capsys):
    names = "animal/cat,animal/dog,cat,plant/cat,rock"
    folders = dict(zip(names.split(","), [[0, 0], [1, 1], [2], [3, 3, 3], [4]], strict=True))
    images_of(tmp_path / "images", folders)
    assert run("predict", model, tmp_path / "images", "--labels-from-folders", "--class-names", names) == 0
    assert "accuracy 100.00%" in (out := capsys.readouterr().out) and "of 9 images" in out
    lone = images_of(tmp_path / "other", {"dog": [1], "rock": [4]})
    assert run("predict", model, lone, "--labels-from-folders", "--class-names", names) == 1
    assert "Received: 'dog'" in capsys.readouterr().err


def test_a_scaling_inside_the_noise_is_not_chosen():
    random = np.random.default_rng(0)
    raw, unit, half = (random.permutation(np.arange(200) < count) for count in (22, 22, 23))
    best, said = scaling.chosen_scaling({"raw": raw, "unit": unit, "half": half}, 0.1)
    assert best == "raw" and "None beats guessing (10.0%" in said and "unit|half" in said
    good = np.arange(200) < 150
    alike = good ^ (np.arange(200) == 199)
    best, said = scaling.chosen_scaling({"raw": raw, "torch": good, "zscore": alike}, 0.1)
    assert best == "zscore" and "from which torch is not distinguishable" in said
    best, said = scaling.chosen_scaling({"raw": raw, "torch": good, "zscore": np.arange(200) < 90}, 0.1)
    assert (best, said) == ("torch", "Used: torch")
    commonest = np.arange(200) < 190  # what a model that always says the same gets right
    assert scaling.chosen_scaling({"raw": raw, "unit": commonest}, 0.95)[0] == "raw"


def test_a_model_that_no_scaling_fits_is_said_to_be_so(shifted, tmp_path, capsys):
    model = level_model(states_scaling=False)
    model.get_layer("levels").set_weights([np.zeros((3, 5)), np.arange(5.0)])
    model.save(tmp_path / "constant.h5")
    assert run("predict", tmp_path / "constant.h5", shifted, "--labels-from-folders") == 0
    out, err = capsys.readouterr()
    assert "None beats guessing (20.0%" in err and "Used: raw" in err and "accuracy 20.00%" in out


def test_the_right_scaling_is_found_though_the_outputs_are_in_another_order(shifted, tmp_path, capsys):
    level_model(scale=255, states_scaling=False).save(tmp_path / "unit.h5")
    assert run("predict", tmp_path / "unit.h5", shifted, "--labels-from-folders") == 0
    out, err = capsys.readouterr()
    assert "unit 72.0% with the outputs in another order" in err and "Used: unit" in err
    assert "accuracy 20.00%" in out and "72.00%" in err


def test_images_that_can_not_be_read_and_imbalance_are_named(model, tmp_path, capsys):
    levels = {"ants": [0] * 20, "bees": [1] * 3, "cows": [2], "dogs": [3], "eels": [0]}  # one of them is wrong
    folder = images_of(tmp_path / "uneven", levels)
    (folder / "ants" / "drawing.svg").write_text("<svg/>")
    assert run("predict", model, folder, "--labels-from-folders", "--class-names", ",".join(CLASSES)) == 0
    out, err = capsys.readouterr()
    assert "accuracy 96.15%" in out and "balanced accuracy 80.00%" in out and "largest class alone is 76.9%" in out
    assert "1 file left out: 1 .svg" in err
