"""From a name to figures: what `explain` finds, computes, keeps, leaves out, and refuses."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import finished_run, gradcam, model_for, noise
from keras import layers
from PIL import Image

from cifar_keras import cli, results
from cifar_keras.commands import study
from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import load
from cifar_keras.data.images import decode, fitted
from cifar_keras.explain import analyse, elsewhere
from cifar_keras.saved import artifacts, find, inference
from cifar_keras.utils.paths import Paths

SECTIONS = ["errors", "calibration", "gradcam", "activations", "space", "versus"]


def index(folder):
    return json.loads((folder / "index.json").read_text())


def section(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """Two runs on the embedded images, one of them analysed."""
    root = tmp_path_factory.mktemp("root")
    data = load("shapes", limits=Limits(120, 40, 60))
    record = finished_run(root, data)
    finished_run(root, data, key="exp1_frozen", run_id="run-2", seed=1)
    return SimpleNamespace(root=root, data=data, record=record, folder=analyse.explain("exp4", root=root))


def test_every_section_is_made_of_the_images_of_the_run(explained):
    assert index(explained.folder) == {
        "run_id": "run-1", "sections": SECTIONS, "left out": {}, "others": ["run-2"],
    }  # fmt: skip
    assert section(explained.folder, "errors")["numbers"]["accuracy"] == explained.record["test_accuracy"]
    space = section(explained.folder, "space")["numbers"]
    assert (space["training embeddings"], space["test embeddings"], space["channels"]) == (120, 60, 6)
    assert set(section(explained.folder, "versus")["numbers"]["right alone"]) == {
        "exp4_scratch best",
        "exp1_frozen best",
    }


def test_a_run_is_found_by_its_id_its_number_and_its_files(explained):
    for name in ("run-1", "4", "exp4", "exp4_scratch", *explained.root.glob("model_cp/exp4*.keras")):
        assert analyse.find(name, root=explained.root).record["run_id"] == "run-1"
    (h5,) = (path for path in explained.root.glob("Models/*_4_*.h5") if "_custom" not in path.name)
    assert analyse.find(str(h5), root=explained.root).path == h5


def test_what_the_model_makes_of_the_images_is_computed_once(explained, monkeypatch):
    monkeypatch.setattr(analyse, "passed", lambda *_, **__: pytest.fail("computed again"))
    analyse.explain("run-1", root=explained.root, only=("errors",))
    assert index(explained.folder)["sections"] == SECTIONS


def test_a_new_run_renews_the_comparison_alone(explained, monkeypatch):
    made = []
    monkeypatch.setattr(analyse, "explain", lambda run_id, **options: made.append(options.get("only")))
    analyse.refresh("run-1", root=explained.root)
    assert made == []
    finished_run(explained.root, explained.data, key="exp3_finetune", run_id="run-3", seed=2)
    analyse.refresh("run-1", root=explained.root)
    analyse.refresh("run-3", root=explained.root)
    assert made == [("versus",), None]


def test_the_report_holds_the_analyses(explained, capsys):
    other = explained.root / "results" / "explain" / "mine-0123ab"  # as that of a model of no run
    other.mkdir()
    (other / "index.json").write_text(json.dumps({"model": "mine.h5", "sections": ["errors"], "left out": {}}))
    assert study.report(explained.root) == 0
    page = (explained.root / "results" / "report" / "index.html").read_text()
    assert page.count("Where it fails") >= 2 and "Not analysed" not in page and "macro F1" in page
    assert "mine" not in page


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("run-9", {}, "RUN must be a run id.*Received: 'run-9'. Runs: .*run-1"),
        ("nowhere.keras", {}, "must be a file. Received: 'nowhere.keras'"),
        ("run-1", {"layer": "typo"}, "`--layer` must be one of conv. Received: 'typo'"),
        ("run-1", {"dataset": "shapes100"}, "must be those of the run, shapes"),
    ],
)
def test_bad_input_is_refused(explained, name, options, said):
    with pytest.raises(ConfigError, match=said):
        analyse.explain(name, root=explained.root, **options)


def test_files_that_are_no_models_of_a_run_are_refused(explained, tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(ConfigError, match="must be a whole saved model"):
        analyse.find(str(tmp_path / "broken.keras"), root=explained.root)
    foreign = tmp_path / "foreign.keras"
    model_for(explained.data).save(foreign)
    with pytest.raises(ConfigError, match="`--dataset NAME.DIR` must name the images .*foreign.keras.*Runs: .*run-1"):
        analyse.find(str(foreign), root=explained.root)
    (weights,) = explained.root.glob("Models/*_4_*_custom.h5")
    with pytest.raises(ConfigError, match="weights alone"):
        analyse.find(str(weights), root=explained.root)


def test_an_experiment_stands_for_its_newest_run_whose_model_is_there(tmp_path):
    data = load("shapes", limits=Limits(40, 20, 20))
    finished_run(tmp_path, data, run_id="run-1")
    older = find.saved_model("exp4", root=tmp_path)
    finished_run(tmp_path, data, run_id="run-2", variant="wide")
    newer = find.saved_model("exp4", root=tmp_path)
    assert newer != older and newer == find.saved_model("run-2", root=tmp_path)
    for path in tmp_path.glob("M*/*wide*"):
        path.unlink()
    newer.unlink()
    assert find.saved_model("exp4", root=tmp_path) == older
    with pytest.raises(ConfigError, match="The model of run-2 must be"):
        find.saved_model("run-2", root=tmp_path)


def test_another_model_under_the_runs_name_is_refused(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    record = finished_run(tmp_path, data)
    results.write(tmp_path, record | {"test_accuracy": record["test_accuracy"] + 0.1})
    with pytest.raises(ConfigError, match="images or the model have changed"):
        analyse.explain("run-1", root=tmp_path)


def test_a_model_without_places_in_bfloat16_alone_leaves_out_what_it_can_not_have(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    finished_run(tmp_path, data, spatial=False, precision="mixed_bfloat16")
    found = index(analyse.explain("run-1", root=tmp_path))
    assert found["sections"] == ["errors", "calibration", "space"]
    assert "no layer with height and width" in found["left out"]["gradcam"]
    assert "no other run" in found["left out"]["versus"]


def test_mixed_precision_has_every_section_and_old_ones_are_swept(tmp_path):
    data = load("shapes", limits=Limits(60, 20, 40))
    finished_run(tmp_path, data, precision="mixed_bfloat16")
    (stale := tmp_path / "results" / "explain" / "run-1" / "versus_agreement.svg").parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    found = index(analyse.explain("run-1", root=tmp_path))
    assert found["sections"] == SECTIONS[:-1] and not stale.exists()


def test_a_hundred_classes_with_superclasses(tmp_path):
    data = load("shapes100", limits=Limits(200, 100, 200))
    record = finished_run(tmp_path, data)
    folder = analyse.explain("run-1", root=tmp_path)
    numbers = section(folder, "errors")["numbers"]
    assert numbers["superclass accuracy"] == pytest.approx(record["coarse_accuracy"])
    assert (folder / "errors_superclasses.svg").is_file()


def test_a_folder_of_another_size_with_awkward_names(tmp_path):
    names = ("$x_{$ and $", "犬", "<b>", "_hidden", "a very long name of a class that fits nowhere")
    for label, name in enumerate(names):
        (tmp_path / "images" / name).mkdir(parents=True)
        for place, image in enumerate(noise(12, size=64, seed=label).images):
            Image.fromarray(image).save(tmp_path / "images" / name / f"{place}.png")
    data = load(str(tmp_path / "images"))
    finished_run(tmp_path, data)
    with pytest.raises(ConfigError, match="`--dataset` must name the folder of images"):
        analyse.explain("run-1", root=tmp_path)
    folder = analyse.explain("run-1", root=tmp_path, dataset=str(tmp_path / "images"))
    assert index(folder)["sections"] == SECTIONS[:-1]
    assert "$x_{$ and $" in (folder / "errors_confusion.svg").read_text()


def test_classes_and_images_per_class_are_those_of_the_run(tmp_path):
    chosen = load("shapes", classes="ring,star,tee", limits=Limits(90, 30, 30))
    record = finished_run(tmp_path, chosen)
    found = analyse.find("run-1", root=tmp_path).dataset
    assert found.class_names == chosen.class_names and record["dataset"] == found.label
    record["config"]["training"]["per_class"] = 7
    results.write(tmp_path, record)
    drawn = analyse.find("run-1", root=tmp_path).dataset
    expected = chosen.with_per_class(7, seed=0)
    np.testing.assert_array_equal(np.asarray(drawn.train.images), np.asarray(expected.train.images))


def test_a_folder_whose_name_looks_like_a_choice_of_classes_is_taken_whole(tmp_path):
    """`imagenet-100classes` once made its own runs' analysis fail: its slug reads like that of a hundred classes."""
    data = load("shapes", limits=Limits(90, 30, 30))
    for number, image in enumerate(data.train.images[:60]):
        path = tmp_path / "imagenet-100classes" / data.class_names[data.train.labels[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    folder = load(str(tmp_path / "imagenet-100classes"))
    finished_run(tmp_path, folder, limits=Limits())
    found = analyse.find("run-1", root=tmp_path, dataset=str(tmp_path / "imagenet-100classes")).dataset
    assert (found.slug, found.class_names) == (folder.slug, folder.class_names)
    with pytest.raises(ConfigError, match="must name the folder of imagenet-100classes"):
        analyse.find("run-1", root=tmp_path)


# --- models of no run ---


def strangers(data, *, size, form="nested"):
    """A model from elsewhere that wants pixels in [0, 1]; `form` is nested, convolution or dense."""
    keras.utils.set_random_seed(3)
    classes, inputs = len(data.class_names), keras.Input((size, size, 3))
    if form == "dense":
        return keras.Sequential([inputs, layers.Flatten(), layers.Dense(classes, activation="softmax")])
    if form == "convolution":
        x = layers.Conv2D(classes, 5, name="conv")(inputs)
        return keras.Model(inputs, layers.Softmax()(layers.GlobalMaxPooling2D()(x)))
    base = keras.Sequential([inputs, layers.Conv2D(6, 5, strides=2, activation="relu", name="conv")], name="base")
    features = keras.Sequential([keras.Input((size, size, 3)), base, layers.GlobalAveragePooling2D()], name="features")
    head = keras.Sequential([keras.Input((6,)), layers.Dense(classes, activation="softmax")], name="head")
    return keras.Sequential([keras.Input((size, size, 3)), features, head])


@pytest.fixture
def few(monkeypatch):
    """The embedded images, and `load` cut to them."""
    data = load("shapes", limits=Limits(60, 30, 40))
    monkeypatch.setattr(elsewhere, "load", lambda name, **_: data)
    return data


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are saved empty, as drawing takes longest."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.touch())


def explained_by_command(*arguments):
    """The exit code of `cifar-keras explain`."""
    with pytest.raises(SystemExit) as ended:
        cli.command(["explain", *map(str, arguments)])
    return ended.value.code


def test_a_model_from_elsewhere_is_explained_on_a_dataset(few, undrawn, tmp_path, capsys):
    model = strangers(few, size=24)
    model.save(path := tmp_path / "net.h5")
    assert explained_by_command(path, "--dataset", "shapes", "--root", tmp_path, "--input-scaling", "unit") == 0
    (folder,) = (tmp_path / "results" / "explain").iterdir()
    assert folder.name.startswith("net-") and len(folder.name) == len("net-") + 6
    found = index(folder)
    assert found["sections"] == SECTIONS[:-1] and found["left out"] == {
        "versus": "the model belongs to no recorded run"
    }
    assert (found["input scaling"], found["image size"], found["others"]) == ("unit", [24, 24], [])
    out, err = capsys.readouterr()
    assert "names no classes; assumed: output 0 = " + few.class_names[0] in err and "40 test images" in out

    images = np.stack([fitted(np.asarray(image), 24) for image in few.test.images])
    probabilities = model.predict(images / 255.0, verbose=0)
    accuracy = float(np.mean(probabilities.argmax(axis=1) == few.test.labels))
    assert section(folder, "errors")["numbers"]["accuracy"] == accuracy
    nll = -np.mean(np.log(probabilities[np.arange(40), few.test.labels]))
    assert section(folder, "calibration")["numbers"]["before"]["NLL"] == pytest.approx(nll, rel=1e-4)
    assert section(folder, "gradcam")["numbers"]["layer"] == "conv"
    space = section(folder, "space")["numbers"]
    assert (space["training embeddings"], space["test embeddings"], space["channels"]) == (60, 40, 6)


@pytest.mark.parametrize("scaling", ["caffe", "raw"])
def test_the_whole_of_a_grey_classifier_takes_rgb_and_what_is_assumed_is_printed(scaling, few, tmp_path, capsys):
    x = inputs = keras.Input((32, 32, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x))
    keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x)).save(tmp_path / "grey.keras")
    if scaling == "caffe":
        with pytest.raises(ConfigError, match="--input-scaling"):
            elsewhere.opened(tmp_path / "grey.keras", dataset="shapes", scaling=scaling)
        return
    classifier, data = elsewhere.opened(tmp_path / "grey.keras", dataset="shapes")
    assert "takes grey images" in (err := capsys.readouterr().err) and "does not state how its pixels" in err
    pixels = np.asarray(data.test.images[np.arange(3)])
    whole = elsewhere.whole(classifier)
    np.testing.assert_allclose(whole.predict(pixels, verbose=0), classifier.probabilities(pixels), atol=1e-5)
    assert gradcam(whole, pixels, [0, 1, 2]).shape == (3, 32, 32)


def test_the_whole_of_a_classifier_takes_pixels_and_has_the_same_maps(few, tmp_path):
    model = strangers(few, size=24)
    model.save(tmp_path / "net.keras")
    classifier = inference.load(tmp_path / "net.keras", scaling="caffe")
    pixels = np.random.RandomState(0).randint(0, 256, (3, 24, 24, 3)).astype("uint8")
    whole = elsewhere.whole(classifier)
    np.testing.assert_allclose(whole.predict(pixels, verbose=0), classifier.probabilities(pixels), atol=1e-5)
    expected = gradcam(model, classifier.scaled_pixels(pixels), [0, 1, 2])
    np.testing.assert_allclose(gradcam(whole, pixels, [0, 1, 2]), expected, atol=1e-4)


def test_labels_follow_the_names_that_a_model_gives_to_its_outputs(few, tmp_path):
    names = sorted(few.class_names, reverse=True)
    paths = Paths(tmp_path, "m", "model")
    artifacts.save(model_for(few), paths, provenance={"class_names": names}, history={})
    classifier, data = elsewhere.opened(paths.h5, dataset="shapes")
    assert list(data.class_names) == list(classifier.class_names) == names
    assert [names[i] for i in data.test.labels] == [few.class_names[i] for i in few.test.labels]
    with pytest.raises(ConfigError, match="scales by itself"):
        elsewhere.opened(paths.h5, dataset="shapes", scaling="unit")


def test_other_classes_than_the_model_s_are_refused(few, tmp_path):
    paths = Paths(tmp_path, "m", "model")
    names = ["other", *few.class_names[1:]]
    artifacts.save(model_for(few), paths, provenance={"class_names": names}, history={})
    with pytest.raises(
        ConfigError, match="one output for each of the 10 classes .* Received: 10 outputs .other, .* not among them"
    ):
        elsewhere.opened(paths.keras, dataset="shapes")
    keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)]).save(tmp_path / "four.keras")
    with pytest.raises(ConfigError, match="one output for each of the 10 classes .* Received: 4 outputs without names"):
        elsewhere.opened(tmp_path / "four.keras", dataset="shapes")


def test_what_a_model_can_not_have_is_left_out_with_its_reason(few, undrawn, tmp_path, monkeypatch):
    strangers(few, size=32, form="dense").save(tmp_path / "dense.keras")
    folder = analyse.explain(tmp_path / "dense.keras", root=tmp_path, dataset="shapes")
    assert index(folder)["sections"] == ["errors", "calibration", "space"]
    assert index(folder)["left out"]["gradcam"] == "the model has no layer with height and width"
    strangers(few, size=32, form="convolution").save(tmp_path / "convolution.keras")
    with pytest.raises(ConfigError, match="`--layer` must be one of conv. Received: 'typo'"):
        analyse.explain(tmp_path / "convolution.keras", root=tmp_path, dataset="shapes", layer="typo")
    classifier, data = elsewhere.opened(tmp_path / "convolution.keras", dataset="shapes")
    whole = elsewhere.whole(classifier)
    assert elsewhere.without_embeddings(whole, data) == "the model does not end in a dense layer"
    assert elsewhere.computed_by(classifier, whole, data)["test"][2] is None
    assert ".keras and .h5" in elsewhere.without_embeddings(None, data)
    monkeypatch.setattr(elsewhere, "MAX_EMBEDDED", 100)
    classifier, _ = elsewhere.opened(tmp_path / "dense.keras", dataset="shapes")
    assert "100 embeddings of 3,072 channels" in elsewhere.without_embeddings(elsewhere.whole(classifier), data)


def test_options_for_models_of_no_run_are_refused_for_a_run(explained):
    with pytest.raises(ConfigError, match="`--input-scaling` is for models without a recorded run. .* run-1"):
        analyse.explain("run-1", root=explained.root, scaling="unit")


@pytest.mark.parametrize("form", ["nested", "convolution"])
def test_predict_paints_a_map_for_each_image_with_a_model_from_elsewhere(few, tmp_path, form):
    strangers(few, size=16, form=form).save(tmp_path / "net.h5")
    for place, image in enumerate(noise(3).images):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    images = sorted(tmp_path.glob("*.png"))
    with pytest.raises(SystemExit) as ended:
        cli.command(["predict", *map(str, [tmp_path / "net.h5", *images, "--gradcam", tmp_path / "cam"])])
    assert ended.value.code == 0
    painted = sorted((tmp_path / "cam").iterdir())
    assert [path.name[:8] for path in painted] == ["000001_0", "000002_1", "000003_2"]
    assert decode(painted[0]).shape == (224, 224, 3)


def test_predict_says_where_there_is_no_convolution(few, tmp_path, capsys):
    strangers(few, size=16, form="dense").save(tmp_path / "net.h5")
    Image.fromarray(noise(1).images[0]).save(tmp_path / "0.png")
    with pytest.raises(SystemExit) as ended:
        cli.command(["predict", *map(str, [tmp_path / "net.h5", tmp_path / "0.png", "--gradcam", tmp_path / "cam"])])
    assert ended.value.code == 2 and "no layer with height and width" in capsys.readouterr().err
