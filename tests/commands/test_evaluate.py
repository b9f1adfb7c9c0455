"""`cifar-keras evaluate`: the figures by hand, models beside each other, and nothing that is wrong without a word."""

import importlib
import json
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import COLOUR_NAMES, COLOURS, colour_model, finished_run, model_for
from keras import layers
from PIL import Image

from cifar_keras import cli, plotting, results, runner
from cifar_keras.commands import evaluate, footprint
from cifar_keras.config import Experiment, Limits, RunConfig, Stage, Training
from cifar_keras.data import load
from cifar_keras.metrics import accuracy
from cifar_keras.options import Options
from cifar_keras.saved import artifacts, export, inference, labels
from cifar_keras.utils.paths import Paths

TEST = {"blue": ("blue",) * 8 + ("red",) * 2, "green": ("green",) * 5, "red": ("red",) * 4 + ("green",)}


def saved(model, folder, name, names=COLOUR_NAMES):
    """A saved model of the form that runs leave; without `names`, one from elsewhere. Returns its path."""
    path = folder / f"{name}.keras"
    if names is None:
        model.save(path)
    else:
        paths = Paths(folder, name, name)
        artifacts.save(model, paths, provenance={"run_id": f"run of {name}", "class_names": names}, history={})
        path = paths.keras
    return path


def constant(number):
    """A classifier that always answers the class of this number."""
    x = inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(0.0, dtype="float32")(x))
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3, name="logits")(x)))
    model.get_layer("logits").set_weights([np.zeros((3, 3)), 5.0 * np.eye(3)[number]])
    return model


def only_in(folder, counts, *, size=8):
    """Images `<class>/<number>_<colour>.png`, uniform, of the colours that a class has."""
    for name, colours in counts.items():
        (folder / name).mkdir(parents=True)
        for place, colour in enumerate(colours):
            Image.new("RGB", (size, size), COLOURS[colour]).save(folder / name / f"{place}_{colour}.png")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of 20 test images, of which three have another class's colour, and models that know the colours."""
    root = tmp_path_factory.mktemp("colours")
    plain = {name: (name,) * 8 for name in COLOURS}
    for split, counts in (("train", plain), ("val", plain), ("test", TEST)):
        only_in(root / "images" / split, counts)
    network = colour_model(scale=0.05)
    return SimpleNamespace(
        root=root, folder=root / "images", network=network, good=saved(network, root, "good"),
        blue=saved(constant(2), root, "blue"), green=saved(constant(1), root, "green"),
    )  # fmt: skip


def run(*arguments):
    """The exit code of `cifar-keras evaluate`."""
    with pytest.raises(SystemExit) as ended:
        cli.command(["evaluate", *map(str, arguments)])
    return ended.value.code


@pytest.fixture
def told(colours, tmp_path, capsys, monkeypatch):
    """A function that evaluates with `--json` on the colours, without pictures: `(exit code, document, stderr)`."""
    monkeypatch.setattr(plotting, "confusion_matrix", lambda matrix, names, path, title: path)

    def tell(*arguments, dataset=colours.folder):
        code = run(*arguments, "--dataset", dataset, "--root", tmp_path, "--json")
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return tell


def test_the_figures_are_those_that_one_computes_by_hand_and_classes_are_matched_by_name(colours, told):
    code, document, err = told(colours.good)
    (one,) = document.pop("models")
    assert "another order; they are matched by name" in err and one["notes"][0] in err  # red, green, blue
    assert code == 0 and document.pop("failed") == []
    data = load(str(colours.folder))
    assert document == {
        "dataset": data.slug, "label": "images", "split": "test", "n": 20, "fingerprint": data.fingerprint,
    }  # fmt: skip
    assert (one["accuracy"], one["n"], one["majority_share"]) == (0.85, 20, 0.5)
    assert (one["low"], one["high"]) == pytest.approx((0.6396, 0.9476), abs=1e-4)  # Wilson's formula, 17 of 20
    assert one["balanced_accuracy"] == pytest.approx((0.8 + 1 + 0.8) / 3)
    assert one["classes"] == [
        {"name": "blue", "accuracy": 0.8, "n": 10}, {"name": "green", "accuracy": 1.0, "n": 5},
        {"name": "red", "accuracy": 0.8, "n": 5},
    ]  # fmt: skip
    assert one["confusion"] == [[8, 0, 2], [0, 5, 0], [0, 1, 4]]
    sure = 1 / (1 + 2 * np.exp(-0.05 * 240))  # of the colour that it sees: logits 12.5 and 0.5
    wrong = (1 - sure) / 2
    assert one["nll"] == pytest.approx(-(17 * np.log(sure) + 3 * np.log(wrong)) / 20, rel=1e-3)
    assert one["brier"] == pytest.approx((3 * (sure**2 + (1 - wrong) ** 2 + wrong**2)) / 20, rel=1e-3)
    assert one["ece"] == pytest.approx(sure - 0.85, abs=1e-5)
    assert one["run_id"] == "run of good" and one["difference"] is None and "tta_accuracy" not in one


def test_models_are_compared_with_the_first_on_the_same_images(colours, told):
    code, document, _ = told(colours.good, colours.blue, colours.green)
    differences = [one["difference"] for one in document["models"]]
    assert code == 0 and differences[0] is None
    blue, green = differences[1:]
    assert blue["from"] == str(colours.good) and blue["value"] == pytest.approx(0.5 - 0.85)
    assert (blue["only_first"], blue["only_this"]) == (9, 2) and blue["low"] < -0.35 < blue["high"]
    assert blue["p"] == pytest.approx(2 * (1 + 11 + 55) / 2**11)  # exact, of 11 images
    assert (green["only_first"], green["only_this"]) == (12, 0) and green["p"] == pytest.approx(2 / 2**12)
    assert green["p_holm"] == pytest.approx(2 * green["p"]) and blue["p_holm"] == pytest.approx(blue["p"])


def test_the_table_shows_models_side_by_side_and_what_imbalance_hides(colours, tmp_path, capsys):
    assert run(colours.good, colours.blue, "--dataset", colours.folder, "--root", tmp_path) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert "images, test: 20 images of 3 classes" in out
    assert "85.00% [63.96, 94.76]" in out and "86.67%" in out and "50.00% [29.93, 70.07]" in out and "33.33%" in out
    assert "blue alone is 50.0% of the images" in out
    assert "-35.00 [" in out and "not distinguishable" in out and "Holm" not in out  # one comparison
    assert rows["green"].split() == ["green", "5", "100.0%", "0.0%"]
    (picture, _) = sorted((tmp_path / "results" / "evaluate").iterdir())
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in out
    assert not (tmp_path / "results" / "results.csv").exists()


def test_an_unnamed_model_is_taken_in_the_datasets_order_and_a_far_better_one_is_named(colours, told, tmp_path):
    path = saved(colours.network, tmp_path, "unnamed", None)  # red, green, blue; the dataset: blue, green, red
    _, document, err = told(path, "--input-scaling", "raw", "--split", "train")
    assert document["models"][0]["accuracy"] == pytest.approx(1 / 3)  # green alone stands at its place
    assert "names no classes; assumed: output 0 = blue, output 1 = green, output 2 = red: the dataset's order" in err
    assert "right on 100.00% of these images, not 33.33%" in err and "--class-names red,green,blue" in err
    chance = np.random.RandomState(0).poisson(1, (10, 10))  # of 101 images the best of all orders gets many right
    assert labels.other_order(chance, tuple("abcdefghij")) == ""


def test_other_classes_are_refused_and_more_classes_count_as_wrong(colours, told, tmp_path):
    code, _, err = told(saved(colours.network, tmp_path, "other", ["red", "green", "violet"]))
    assert code == 2 and "Received: 3 outputs (red, green, violet); blue is not among them" in err
    code, document, err = told(colours.good, "--classes", "blue,green")
    (one,) = document["models"]
    assert one["accuracy"] == pytest.approx(13 / 15)  # two images of the class blue are taken for red
    assert one["confusion"] == [[8, 0, 2], [0, 5, 0], [0, 0, 0]] and "knows 1 more class (red)" in err


def test_a_model_of_fewer_classes_names_the_option_that_mends_it(colours, told, tmp_path):
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1.0, dtype="float32")(inputs))
    two = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    code, _, err = told(saved(two, tmp_path, "two", ["blue", "red"]))
    assert code == 2 and "green is not among them" in err and "--classes blue,red" in err
    code, _, err = told(saved(two, tmp_path, "nameless", None), "--input-scaling", "raw")
    assert code == 2 and "Received: 2 outputs without names" in err


def test_a_damaged_model_is_named_and_the_others_go_on(colours, told, tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"no model")
    code, document, err = told(tmp_path / "broken.h5", "no-such-run", colours.good)
    assert code == 1 and [one["model"] for one in document["models"]] == [str(colours.good)]
    assert [one["model"] for one in document["failed"]] == [str(tmp_path / "broken.h5"), "no-such-run"]
    assert "broken.h5 must be a whole saved model" in err and "Received: 'no-such-run'" in err
    code, document, _ = told(tmp_path / "broken.h5")
    assert code == 2 and document["models"] == [] and len(document["failed"]) == 1


def test_predictions_of_all_models_go_to_one_file(colours, told, tmp_path):
    path = tmp_path / "made" / "p.npz"
    assert told(colours.good, colours.blue, "--predictions", path)[0] == 0
    with np.load(path) as stored:
        assert stored["labels"].tolist() == [0] * 10 + [1] * 5 + [2] * 5 and stored["labels"].dtype == np.int32
        assert stored["class_names"].tolist() == ["blue", "green", "red"]
        assert stored["models"].tolist() == [str(colours.good), str(colours.blue)]
        assert stored["probabilities"].shape == (2, 20, 3) and stored["probabilities"].dtype == np.float32
        files = sorted(colours.folder.glob("test/*/*"))
        expected = inference.load(colours.good).predict(files)[:, [2, 1, 0]]
        np.testing.assert_allclose(stored["probabilities"][0], expected, atol=1e-6)
    assert told(colours.good, "--classes", "blue,green", "--predictions", path)[0] == 0
    with np.load(path) as stored:
        assert stored["class_names"].tolist() == ["blue", "green", "red"] and stored["probabilities"].shape[1:] == (
            15,
            3,
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--predictions", "FILE/p.npz"), "`--predictions` must lie in a folder that can be written"),
        (("--predictions", "p.csv"), "`--predictions` must be a file that ends in .npz"),
        (("--figure", "FILE/p.png"), "`--figure` must lie in a folder"),
        (("--root", "FILE"), "`--root` must lie in a folder"),
        (("--dataset", "cifar11"), "`dataset` must be 'cifar10'"),
        (("--figure", "a.png"), "`--figure` names the picture of one model. Received: 2 models"),
    ],
)
def test_what_can_t_be_written_or_read_is_said_before_any_work(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "load", None)  # not even a model is opened
    (tmp_path / "file").touch()
    options = [option.replace("FILE", str(tmp_path / "file")) for option in options]
    models = ["model.keras"] + ["more.h5"] * (options[1] == "a.png")
    assert run(*models, "--dataset", "shapes", "--root", tmp_path, *options) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_does_not_say_what_it_was_trained_on_needs_a_dataset(colours, tmp_path, capsys):
    assert run(colours.good, "--root", tmp_path) == 2
    assert "`--dataset` must name the images: cifar10, " in capsys.readouterr().err


def unit_model():
    """Right only of pixels between -1 and 2; it does not say so. Its classes are in the order of the dataset's."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(x)
    bright = layers.Add()([x, layers.Dense(3, use_bias=True, activation="relu", name="over")(x)])
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3, use_bias=False, name="logits")(bright)))
    model.get_layer("over").set_weights([np.eye(3), np.full(3, -2.0)])
    return model


def test_a_scaling_that_is_not_stated_is_chosen_on_val_and_ties_are_told(colours, told, tmp_path):
    model = unit_model()
    turned = np.eye(3)[:, ::-1]
    model.get_layer("logits").set_weights([turned])
    code, document, err = told(saved(model, tmp_path, "unit", None))
    (one,) = document["models"]
    assert code == 0 and one["accuracy"] == 0.85
    assert "on val images: input scaling not given; right of 24 images: raw" in err
    assert "not distinguishable on these images" in err and one["input_scaling"] in inference.SCALINGS
    model.get_layer("logits").set_weights([0 * turned])
    _, _, err = told(saved(model, tmp_path, "nothing", None))
    assert "None beats guessing" in err


def test_a_scaling_is_found_though_the_outputs_are_in_another_order(colours, told, tmp_path):
    model = unit_model()  # its outputs are red, green, blue; the dataset has them the other way round
    model.get_layer("logits").set_weights([np.eye(3)])
    _, _, err = told(saved(model, tmp_path, "permuted", None), "--split", "train")
    assert "100.0% with the outputs in another order" in err and "None beats guessing" not in err
    assert "right on 100.00% of these images" in err and "--class-names red,green,blue" in err


def test_val_may_be_evaluated_and_limited(colours, told):
    _, document, _ = told(colours.good, "--split", "val", "--limit", 6)
    (one,) = document["models"]
    assert (document["split"], document["n"], one["accuracy"]) == ("val", 6, 1.0)
    assert [each["n"] for each in one["classes"]] == [2, 2, 2]


def test_images_of_another_size_are_seen_as_predict_sees_them(colours, told, tmp_path):
    random = np.random.RandomState(0)
    for split in ("train", "val", "test"):
        for name in COLOUR_NAMES:
            (tmp_path / "large" / split / name).mkdir(parents=True)
            for place in range(3):
                pixels = random.randint(0, 256, (31, 24, 3)).astype("uint8")
                Image.fromarray(pixels).save(tmp_path / "large" / split / name / f"{place}.png")
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs)))
    saved(keras.Model(inputs, layers.Dense(3, activation="softmax")(x)), tmp_path, "any", None)
    models = colours.good, tmp_path / "any.keras"
    code, *_ = told(*models, "--predictions", tmp_path / "p.npz", dataset=tmp_path / "large")
    files = sorted((tmp_path / "large" / "test").glob("*/*"))
    fixed, free = (inference.load(path, default_size=24).predict(files) for path in models)
    with np.load(tmp_path / "p.npz") as stored:
        np.testing.assert_allclose(stored["probabilities"][0], fixed[:, [2, 1, 0]], atol=1e-6)
        np.testing.assert_allclose(stored["probabilities"][1], free, atol=1e-6)
    assert code == 0


def test_a_folders_files_are_decoded_at_the_size_that_a_model_wants(tmp_path):
    for name, column in (("left", 0), ("right", 39)):  # what tells them apart is lost in a square cut out of the middle
        (tmp_path / "wide" / "test" / name).mkdir(parents=True)
        (tmp_path / "wide" / "train" / name).mkdir(parents=True)
        pixels = np.zeros((20, 40, 3), "uint8")
        pixels[:, column] = 255
        for place in range(4):
            for split in ("train", "test"):
                Image.fromarray(pixels).save(tmp_path / "wide" / split / name / f"{place}.png")
    data = evaluate.Images(str(tmp_path / "wide"), evaluate.Asked())
    assert data.of(SimpleNamespace(size=(20, 20))).test.images[0].max() == 0
    wide = data.of(SimpleNamespace(size=(20, 40)))
    assert wide.test.images.shape == (8, 20, 40, 3) and wide.fingerprint == data.data.fingerprint
    assert wide.test.images[np.arange(8)][:, 0, [0, 39], 0].tolist() == [[255, 0]] * 4 + [[0, 255]] * 4
    shapes = evaluate.Images("shapes", evaluate.Asked(limit=4))
    assert shapes.of(SimpleNamespace(size=(64, 64))).image_shape == (64, 64, 3)
    assert shapes.of(SimpleNamespace(size=(64, 32))).image_shape == (32, 32, 3)  # the classifier resizes these


def test_damaged_images_can_be_left_out_and_odd_names_are_drawn(colours, tmp_path):
    odd = os.fsdecode(b"caf\xe9")  # a folder of a Latin-1 archive
    for name in (*COLOUR_NAMES[:2], odd):
        (tmp_path / "odd" / name).mkdir(parents=True)
        for place in range(12):
            Image.new("RGB", (8, 8), (10 * place, 90, 30)).save(tmp_path / "odd" / name / f"{place}.png")
    (tmp_path / "odd" / COLOUR_NAMES[0] / "broken.png").write_bytes(b"nothing")
    arguments = (saved(colours.network, tmp_path, "unnamed", None), "--dataset", tmp_path / "odd", "--root", tmp_path)
    assert run(*arguments) == 2
    assert run(*arguments, "--skip-unreadable", "--input-scaling", "raw") == 0
    assert len(list((tmp_path / "results" / "evaluate").glob("*.png"))) == 1


def test_a_table_calls_no_two_models_alike():
    assert evaluate.short_names(["a/m.h5", "b/m.h5", "c/n.h5", "c/n.h5", "run"]) == [
        "a/m.h5", "b/m.h5", "c/n.h5 (1)", "c/n.h5 (2)", "run"
    ]  # fmt: skip


# --- runs of this project ---


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A root with a run's record and predictions as the runner leaves them, of a tiny model."""
    root, data = tmp_path_factory.mktemp("recorded"), load("shapes", limits=Limits(60, 60, 60))
    record, network = finished_run(root, data), model_for(data)
    paths = Paths.of(RunConfig.restored(record["config"]), root)
    note = {"run_id": "run-1", "class_names": list(data.class_names), "config": record["config"]}
    artifacts.save(network, paths, provenance=note, history={})
    views = inference.augmented_probabilities(network, data.test.images, batch_size=64)
    record["tta_accuracy"] = accuracy(data.test.labels, views)
    return SimpleNamespace(root=root, record=record, limit=60, h5=paths.h5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same of a run that the runner trained."""
    root = tmp_path_factory.mktemp("trained")
    recipe = Training("scratch_cnn", (Stage(1, 1e-3),), batch_size=12, optimizer="adam", test_time_augmentation=True)
    experiment = Experiment(number=4, name="scratch", variants={"best": recipe}, published={})
    options = Options(variant="best", budget="demo", seed=0, root=str(root), limit=48)
    record = runner.run(experiment, options)
    (h5,) = root.glob("Models/*_limit=48.h5")
    return SimpleNamespace(root=root, record=record, limit=48, h5=h5)


def exported(made):
    """The run's model in the float32 formats whose packages are there."""
    for to, modules in (("onnx", ("onnx", "tf2onnx", "onnxruntime")), ("litert", ("ai_edge_litert",))):
        if all(importlib.util.find_spec(module) for module in modules):
            target = made.root / f"exported{export.FORMATS[to].ending}"
            export.convert(inference.load(made.h5), to, target, None)
            yield target


@pytest.mark.parametrize("which", ["recorded", pytest.param("trained", marks=pytest.mark.slow)])
def test_every_format_of_a_runs_model_gives_its_record_image_for_image(which, request, capsys):
    made = request.getfixturevalue(which)
    record, before = made.record, (made.root / "results" / "results.csv").read_bytes()
    models, stored = [record["run_id"], made.h5, *exported(made)], made.root / "p.npz"
    options = ("--limit", made.limit, "--test-time-augmentation", "--json", "--predictions", stored)
    capsys.readouterr()  # of the run itself
    assert run(*models, *options, "--root", made.root) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "dataset: shapes, which exp4" in err and document["n"] == record["test_n"]
    assert document["fingerprint"].startswith(record["fingerprint"])
    truth, probabilities = results.read_predictions(made.root / "results", record["run_id"])
    with np.load(stored) as found:
        assert found["labels"].tolist() == truth.tolist()
        for one, facts in zip(found["probabilities"], document["models"], strict=True):
            np.testing.assert_allclose(one, probabilities, atol=1e-3)  # stored in 16 bits
            np.testing.assert_array_equal(one.argmax(axis=1), found["probabilities"][0].argmax(axis=1))
            assert facts["accuracy"] == record["test_accuracy"] and facts["notes"] == []
            assert facts["tta_accuracy"] == record["tta_accuracy"]
    assert (made.root / "results" / "results.csv").read_bytes() == before
    assert run(made.h5, "--split", "val", "--limit", 20, "--json", "--root", made.root) == 0
    assert "its epoch was selected on this split" in json.loads(capsys.readouterr().out)["models"][0]["notes"][0]


def test_a_split_that_was_carved_from_train_is_said_to_be(colours, told, tmp_path):
    for name in COLOUR_NAMES:
        (tmp_path / "alone" / name).mkdir(parents=True)
        for place in range(10):
            Image.new("RGB", (8, 8), (10 * place, 90, 30)).save(tmp_path / "alone" / name / f"{place}.png")
    _, document, err = told(colours.good, dataset=tmp_path / "alone")
    assert document["n"] == 3 and "has no test split of its own: a tenth of its images" in err
    _, _, err = told(colours.good)
    assert "of its own" not in err


def test_footprint_shows_size_zeros_and_speed_and_who_is_on_the_front(colours, tmp_path, monkeypatch, capsys):
    seconds = iter([0.004, 0.1, 0.002, 0.2, 0.008, 0.3])  # one image and 64, of each model
    monkeypatch.setattr(footprint, "_seconds", lambda *_, **__: [next(seconds)] * 3)
    models = [colours.good, colours.blue, colours.green]
    assert run(*models, "--dataset", colours.folder, "--footprint", "--json", "--root", tmp_path) == 0
    document = json.loads(capsys.readouterr().out)
    with Image.open(document["footprint_figure"]) as picture:
        assert picture.size[0] > 600
    good, blue, green = (one["footprint"] for one in document["models"])
    assert (good["ms"], blue["ms"], green["ms"]) == (4, 2, 8) and blue["images_per_second"] == pytest.approx(320)
    assert good["mib"] == colours.good.stat().st_size / 2**20 and good["compressed_mib"] < good["mib"]
    assert blue["parameters"] == 12 and blue["zeros"] == 1.0 and good["zeros"] < 1.0
    assert footprint.front(document["models"], "ms") == [True, True, False]  # green is slower and worse than good


def test_footprint_in_a_table(colours, tmp_path, capsys):
    assert run(colours.good, "--dataset", colours.folder, "--footprint", "--root", tmp_path) == 0
    text = capsys.readouterr().out
    assert "Size and speed on this machine" in text and "size, time" in text and "footprint_on_" in text


def test_without_footprint_nothing_is_timed(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "measured", None)
    assert run(colours.good, "--dataset", colours.folder, "--root", tmp_path) == 0
    assert not list(tmp_path.rglob("footprint*"))


def test_equal_models_are_both_on_the_front_and_a_cheaper_one_as_good_alone():
    def one(cost, accuracy):
        return {"accuracy": accuracy, "footprint": {"ms": cost}}

    assert footprint.front([one(1, 0.9), one(1, 0.9)], "ms") == [True, True]
    assert footprint.front([one(1, 0.9), one(2, 0.9), one(3, 0.95), one(0.5, 0.1)], "ms") == [True, False, True, True]
