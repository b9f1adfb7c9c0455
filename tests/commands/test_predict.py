"""Any saved model, any images: predicted, told, and where that can't be, said so in a sentence."""

import csv
import io
import json
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers import COLOUR_NAMES, COLOURS, colour_model
from keras import layers
from PIL import Image

from cifar_keras import cli
from cifar_keras.commands import predict
from cifar_keras.config import ConfigError
from cifar_keras.data.images import ImageError, decode
from cifar_keras.models.zoo import MODELS, build
from cifar_keras.saved import artifacts, find, inference
from cifar_keras.utils.paths import Paths
from cifar_keras.utils.system import peak_memory_mb


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A saved model of this project in all its forms."""
    paths = Paths(tmp_path_factory.mktemp("model"), "m", "model")
    artifacts.save(colour_model(scale=0.05), paths, provenance={"run_id": "r", "class_names": COLOUR_NAMES}, history={})
    return paths


@pytest.fixture
def folder(tmp_path):
    """`<class>/<image>` of three classes in several modes and sizes."""
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for mode, size, ending in (("RGB", (8, 8), "png"), ("RGBA", (20, 30), "png"), ("P", (9, 9), "gif")):
            Image.new("RGB", size, colour).convert(mode).save(tmp_path / "images" / name / f"{mode}.{ending}")
    return tmp_path / "images"


def run(*arguments):
    """The exit code of `cifar-keras predict`."""
    with pytest.raises(SystemExit) as ended:
        cli.command(["predict", *map(str, arguments)])
    return ended.value.code


def test_every_form_of_a_model_says_the_same(paths, folder):
    images = sorted(folder.rglob("*.*"))
    classifiers = [inference.load(path) for path in (paths.keras, paths.h5, paths.custom_h5)]
    first, *others = (classifier.predict(images) for classifier in classifiers)
    assert first.dtype == np.float32 and first.shape == (9, 3)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6)
    assert classifiers[0].class_names == tuple(COLOUR_NAMES) and classifiers[0].provenance["run_id"] == "r"
    assert [COLOUR_NAMES[i] for i in first.argmax(axis=1)] == [path.parent.name for path in images]


def test_paths_bytes_files_and_arrays_give_the_same(paths, folder):
    classifier, path = inference.load(paths.keras), folder / "red" / "RGB.png"
    pixels = np.asarray(Image.open(path))
    with open(path, "rb") as file:
        rows = classifier.predict([path, str(path), path.read_bytes(), file, pixels], batch_size=2)
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 5, axis=0))
    np.testing.assert_array_equal(classifier.predict(np.stack([pixels, pixels])), rows[:2])
    np.testing.assert_array_equal(classifier.predict(path), rows[:1])
    assert classifier.predict([]).shape == (0, 3)
    with pytest.raises(ImageError, match="uint8 \\(height, width, 3\\). Received: float64"):
        classifier.predict([pixels / 255])


def test_labels_from_folders_give_accuracy_and_confusion(paths, folder, capsys):
    assert run(paths.keras, folder, "--labels-from-folders", "--top", 1) == 0
    said = capsys.readouterr().out
    assert "accuracy 100.00%" in said and "of 9 images" in said
    assert [line.split() for line in said.splitlines()[-3:]] == [
        ["red", "3", "0", "0"], ["green", "0", "3", "0"], ["blue", "0", "0", "3"]
    ]  # fmt: skip
    assert said.splitlines()[0].split()[1] == "blue"


def test_a_bad_file_is_reported_and_the_others_go_on(paths, folder, capsys):
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "red" / "\x1b[2Jbad.png").write_bytes(b"no image")
    assert run(paths.keras, folder, folder / "missing.png", "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert sum("top" in line for line in lines) == 9 and sum("error" in line for line in lines) == 3
    assert "empty.png" in err and "missing.png" in err and "\\x1b[2Jbad.png" in err and "\x1b" not in out + err


def test_nothing_that_can_be_predicted_is_bad_input(paths, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(paths.keras, tmp_path / "empty") == 2
    assert "a folder without images" in capsys.readouterr().err


def test_only_files_of_a_folder_are_read_and_overlays_have_names_that_fit(paths, folder, tmp_path):
    os.mkfifo(folder / "pipe.png")  # reading it would never end
    (folder / "red" / "RGB.png").rename(folder / ("\u4e2d" * 80 + ".png"))
    assert run(paths.keras, folder, "--gradcam", tmp_path / "overlays") == 0
    assert len(list((tmp_path / "overlays").iterdir())) == 9


def test_a_line_s_end_in_a_name_stays_in_its_cell(paths, folder, capsys):
    name = folder / "red" / "new\nline.png"
    (folder / "red" / "RGB.png").rename(name)
    assert run(paths.keras, name, "missing.png", "--csv", "--top", 1) == 1
    header, first, second = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[0] == "image" and first[0] == str(name)
    assert second[0] == "missing.png" and "no such file" in second[-1]


def test_what_can_t_go_on_is_said_before_anything_is_predicted(paths, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for options, said in (
        ([folder, "--gradcam", tmp_path / "file"], "`--gradcam` must be a folder"),
        (["-", "-"], "Standard input must be named once"),
    ):
        assert run(paths.keras, *options) == 2
        out, err = capsys.readouterr()
        assert said in err and err.count("\n") == 1 and not out
    (folder / "red").rename(folder / "ruby")
    assert run(paths.keras, folder / "ruby", "--labels-from-folders") == 2
    assert "(red, green, blue). Received: ruby." in capsys.readouterr().err


def test_patterns_and_csv(paths, folder, capsys):
    assert run(paths.keras, f"{folder}/*/RGB.png", "--csv", "--top", 2, "--labels-from-folders") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "image,class_1,probability_1,class_2,probability_2,label,error"
    assert [row.split(",")[1] for row in rows] == [row.split(",")[5] for row in rows] == ["blue", "green", "red"]


def test_an_image_on_standard_input(paths, folder, capsys, monkeypatch):
    data = (folder / "green" / "RGB.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", type("In", (), {"buffer": io.BytesIO(data)}))
    assert run(paths.keras, "-") == 0
    assert capsys.readouterr().out.split()[1] == "green"


def test_overlays_are_pictures_of_every_image(paths, folder, tmp_path):
    assert run(paths.keras, folder / "red", "--gradcam", tmp_path / "cam") == 0
    pictures = sorted((tmp_path / "cam").iterdir())
    assert [path.name for path in pictures] == ["000001_P_red.png", "000002_RGB_red.png", "000003_RGBA_red.png"]
    assert decode(pictures[0]).shape == (224, 224, 3)


def test_a_model_from_elsewhere_puts_out_logits_and_names_no_classes(folder, tmp_path, capsys):
    colour_model(uint8=False, softmax=False).save(tmp_path / "other.h5")
    classifier = inference.load(tmp_path / "other.h5", scaling="unit")
    assert classifier.logits and classifier.provenance == {} and classifier.class_names[0] == "class 0"
    np.testing.assert_allclose(classifier.predict([folder / "red" / "RGB.png"]).sum(), 1, rtol=1e-6)
    assert run(tmp_path / "other.h5", folder) == 0
    assert "does not state how its pixels are scaled" in capsys.readouterr().err


def test_the_best_scaling_is_the_one_that_recognises(folder, tmp_path, capsys):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    # The folders in sorted order are blue, green, red; BGR pixels around zero are what 'caffe' gives.
    model.get_layer("logits").set_weights([np.eye(3), np.zeros(3)])
    model.save(tmp_path / "bgr.keras")
    assert run(tmp_path / "bgr.keras", folder, "--labels-from-folders") == 0
    out, err = capsys.readouterr()
    assert "raw 33.3%" in err and "caffe 100.0%" in err and "Used: caffe" in err and "accuracy 100.00%" in out


@pytest.mark.parametrize(("name", "constants"), [("unit", (0, 1)), ("half", (-1, 1))])
def test_scalings_are_those_of_the_zoo(name, constants, tmp_path):
    colour_model(uint8=False).save(tmp_path / "a.h5")
    classifier = inference.load(tmp_path / "a.h5", scaling=name)
    ends = np.stack([np.zeros((8, 8, 3), "uint8"), np.full((8, 8, 3), 255, "uint8")])
    scaled = np.asarray(classifier.scaled_pixels(ends))
    np.testing.assert_allclose((scaled.min(), scaled.max()), constants, atol=1e-6)
    assert {row.scaling for row in MODELS.values()} <= set(inference.SCALINGS)


def broken(path, tmp_path):
    """Files that are no whole models, with what is said of each."""
    whole = path.read_bytes()

    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 10**7)
    yield written("cut.keras", whole[: len(whole) // 2]), "whole saved model"
    yield written("empty.keras", b""), "whole saved model"
    yield written("text.h5", b"this is no HDF5"), "whole saved model"
    yield written("empty.h5", b""), "whole saved model"
    yield bomb, "must unpack to at most"
    yield tmp_path / "missing.keras", "which is not a file"
    yield written("model.pkl", whole), "ends in .keras"
    yield tmp_path, "ends in .keras"


def test_broken_models_are_named_in_a_sentence(paths, folder, tmp_path, capsys):
    for path, said in broken(paths.keras, tmp_path):
        assert run(path, folder) == 2
        out, err = capsys.readouterr()
        assert path.name in err and said in err and err.count("\n") == 1 and not out, err


def test_damage_that_shows_when_the_model_runs_is_named(folder, tmp_path, capsys):
    pooled = layers.MaxPooling2D(2)(inputs := keras.Input((8, 8, 3)))
    keras.Model(inputs, layers.GlobalAveragePooling2D()(pooled)).save(tmp_path / "strides.h5")
    with h5py.File(tmp_path / "strides.h5", "a") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"strides": [2, 2]', '"strides": [1e30, 2]')
    assert run(tmp_path / "strides.h5", folder) == 2
    out, err = capsys.readouterr()
    assert "strides.h5 must be a whole saved model" in err and err.count("\n") == 1 and not out, err


def test_a_truncated_h5_is_named(paths, folder, tmp_path, capsys):
    whole = paths.h5.read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
        assert run(tmp_path / "cut.h5", folder) == 2
        assert "cut.h5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: colour_model(outputs=2), "1 inputs and 2 outputs"),
        (lambda: keras.Sequential([keras.Input((8, 8, 4)), layers.Flatten(), layers.Dense(3)]), "\\(None, 8, 8, 4\\)"),
        (lambda: keras.Sequential([keras.Input((3, 8, 8)), layers.Flatten(), layers.Dense(3)]), "channels first"),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)]), "\\(None, 6, 6, 2\\)"),
    ],
)
def test_what_is_no_classifier_of_images_is_refused(make, said, tmp_path):
    make().save(tmp_path / "a.keras")
    with pytest.raises(ConfigError, match=f"a.keras can't be used.*{said}"):
        inference.load(tmp_path / "a.keras")


@pytest.mark.parametrize(
    "note", [5, [1], "x", {"class_names": 5}, {"class_names": "red"}, {"class_names": [1, 2, 3]}, {"contract": 5}]
)
def test_provenance_of_another_kind_is_named(note, tmp_path, capsys):
    colour_model().save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "a") as archive:
        archive.writestr(artifacts.MEMBER, json.dumps(note))
    with pytest.raises(SystemExit) as ended:
        cli.command(["inspect", str(tmp_path / "a.keras")])
    assert ended.value.code == 2 and "Its provenance must" in capsys.readouterr().err


def test_class_names_must_be_as_many_as_outputs(tmp_path):
    paths = Paths(tmp_path, "m", "model")
    artifacts.save(colour_model(), paths, provenance={"class_names": ["a", "b"]}, history={})
    with pytest.raises(ConfigError, match="must name its 3 classes. Received: 2 names"):
        inference.load(paths.keras)


def test_weights_alone_are_refused_without_their_architecture(paths, tmp_path):
    alone = tmp_path / "x_custom.h5"
    alone.write_bytes(paths.custom_h5.read_bytes())
    with pytest.raises(ConfigError, match="weights alone"):
        inference.load(alone)


def test_a_model_that_puts_out_nan_is_refused(tmp_path):
    model = colour_model(uint8=False)
    model.get_layer("conv").set_weights([np.full((1, 1, 3, 3), np.nan), np.zeros(3)])
    model.save(tmp_path / "a.h5")
    with pytest.raises(ConfigError, match="finite"):
        inference.load(tmp_path / "a.h5")


def test_scaling_and_size_are_refused_where_the_model_knows(paths, tmp_path):
    with pytest.raises(ConfigError, match="scales by itself"):
        inference.load(paths.keras, scaling="unit")
    with pytest.raises(ConfigError, match="8 x 8. Received: 9"):
        inference.load(paths.keras, image_size=9)
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(inputs))).save(tmp_path / "any.h5")
    with pytest.raises(ConfigError, match="--image-size"):
        inference.load(tmp_path / "any.h5")
    assert inference.load(tmp_path / "any.h5", image_size=16).size == (16, 16)
    with pytest.raises(ConfigError, match="one of raw, unit.*Received: 'x'"):
        inference.load(tmp_path / "any.h5", image_size=16, scaling="x")


def test_a_run_id_names_its_model(paths, monkeypatch):

    monkeypatch.setattr(find, "saved_model", lambda name, root: paths.keras if (name, root) == ("r1", "x") else None)
    assert find.find_model("r1", root="x") == paths.keras
    assert find.find_model("a.keras", root="x").name == "a.keras"


def test_memory_does_not_grow_with_the_images(paths, folder, monkeypatch):
    """What is held at once is one block, however many images there are."""
    monkeypatch.setattr(inference, "BATCH", 4)
    classifier, image, alive = inference.load(paths.keras), str(folder / "red" / "RGB.png"), []

    def counted():
        for number in range(100):
            alive.append(number)
            yield image

    stream = predict.predictions(classifier, counted())
    for told, _ in enumerate(stream, start=1):
        assert len(alive) - told < 4
    assert told == 100


def test_inspect_tells_what_a_model_is(paths, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.command(["inspect", str(paths.keras)])
    said = capsys.readouterr().out
    assert not ended.value.code
    for fact in (
        "model.keras",
        "Keras 3.",
        "uint8 (images, 8, 8, 3)",
        "red, green, blue",
        "logits",
        "run id",
        "24 weights",
    ):
        assert fact in said, fact


def test_inspect_says_what_a_file_from_elsewhere_leaves_open(tmp_path, capsys):
    colour_model(uint8=False).save(tmp_path / "a.h5")
    with pytest.raises(SystemExit):
        cli.command(["inspect", str(tmp_path / "a.h5")])
    said = capsys.readouterr().out
    assert "a file from elsewhere" in said and "--input-scaling" in said and "3, not named" in said


def test_escapes_in_a_model_reach_no_terminal(tmp_path, folder, capsys):
    paths = Paths(tmp_path, "m", "model")
    names = ["\x1b[31mred", "green", "blue"]
    artifacts.save(colour_model(), paths, provenance={"class_names": names}, history={})
    assert run(paths.keras, folder / "red") == 0
    with pytest.raises(SystemExit):
        cli.command(["inspect", str(paths.keras)])
    out, err = capsys.readouterr()
    assert "\\x1b[31mred" in out and "\x1b" not in out + err


def test_external_links_in_a_h5_are_refused(paths, tmp_path):
    """Or a file could show what another file on this machine holds."""
    (tmp_path / "a.h5").write_bytes(paths.h5.read_bytes())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["model_weights"]["conv"]
        file["model_weights"]["conv"] = h5py.ExternalLink(str(paths.h5), "/model_weights/conv")
    with pytest.raises(ConfigError, match="a.h5.*must be in the file itself"):
        artifacts.load(tmp_path / "a.h5")


def test_the_help_names_every_scaling_without_loading_tensorflow():
    code = (
        "import sys; from cifar_keras.cli import command\n"
        "try: command(['predict', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in inference.SCALINGS:
        assert name in done.stdout


def test_the_study_s_own_network_has_overlays(tmp_path):
    model = artifacts.for_inference(build(MODELS["scratch_cnn"], image_shape=(32, 32, 3), classes=3, steps=10, seed=0))
    paths = Paths(tmp_path, "m", "model")
    artifacts.save(model, paths, provenance={"class_names": COLOUR_NAMES}, history={})
    painter = predict.Painter(inference.load(paths.keras), tmp_path / "cam")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="uint8")
    painter.paint(predict.Prediction("a/b.png", probabilities=np.float32((0.2, 0.3, 0.5)), pixels=pixels))
    assert (tmp_path / "cam" / "000001_b_blue.png").is_file()


def test_an_image_that_claims_to_be_huge_is_reported_and_takes_no_memory(paths, folder, capsys):
    Image.new("1", (30_000, 30_000)).save(folder / "red" / "bomb.png")  # 110 KB, 2.7 GB once decoded
    before = peak_memory_mb()
    assert run(paths.keras, folder) == 1
    err = capsys.readouterr().err
    assert "bomb.png can't be decoded" in err and "900000000 pixels" in err
    assert peak_memory_mb() - before < 300


def test_files_that_are_no_images_and_folders_without_any_are_named(paths, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".a.png").write_bytes(b"x")
    assert run(paths.keras, tmp_path / "notes.txt", tmp_path / "hidden", f"{tmp_path}/*.webp") == 2
    err = capsys.readouterr().err
    assert "notes.txt can't be decoded" in err and "a folder without images" in err and "nothing matches" in err
