"""Every section's numbers against scikit-learn, SciPy or a case by hand; maps point where they must."""

import json

import keras
import numpy as np
import pytest
from helpers import gradcam
from keras import layers
from sklearn import metrics

from cifar_keras.explain import calibration, errors, feature_space, model_comparison
from cifar_keras.explain.activations import activations, kernels, stages, varying
from cifar_keras.explain.base import NotApplicable, Section, spread
from cifar_keras.explain.calibration import bins, ece, measures, temperature, with_temperature
from cifar_keras.explain.embeddings import neighbours, unit
from cifar_keras.explain.errors import confused_pairs, most_confident_mistakes, top_k
from cifar_keras.explain.flatten import flattened, plain
from cifar_keras.explain.gradcam import GradCam, centres, logits_of, looked_at, spatial_layers, weighed
from cifar_keras.explain.model_comparison import bootstrap, only_right

NAMES = tuple("abcdefghij")


def predictions(n=400, classes=10, *, seed=0, strength=1.5):
    """Labels and probabilities of a classifier that is right more often than not."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, n)
    logits = random.normal(size=(n, classes)) + strength * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def pictures(n, size=32, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, size, size, 3)).astype("uint8")


def written(section, tmp_path):
    """Saves a section and returns what its JSON says."""
    assert isinstance(section, Section) and set(section.figures) == set(section.descriptions)
    path = section.save(tmp_path)
    for figure in section.figures:
        assert (tmp_path / f"{section.name}_{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{section.name}_{figure}.svg").read_text().lstrip().startswith("<?xml")
    return json.loads(path.read_text())


def test_metrics_by_class_are_scikit_learns(tmp_path):
    labels, probabilities = predictions()
    section = errors(labels, probabilities, NAMES, images=pictures(400))
    predicted = probabilities.argmax(axis=1)
    found = written(section, tmp_path)
    rows = found["tables"]["Metrics by class"]
    report = metrics.classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for row in rows:
        expected = report[row["class"]]
        assert row["precision"] == pytest.approx(expected["precision"])
        assert row["recall"] == pytest.approx(expected["recall"]) and row["F1"] == pytest.approx(expected["f1-score"])
        assert row["support"] == expected["support"]
    assert found["numbers"]["macro F1"] == pytest.approx(report["macro avg"]["f1-score"])
    area = metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found["numbers"]["macro AUC"] == pytest.approx(area)
    top = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(10))
    assert found["numbers"]["top-5 accuracy"] == pytest.approx(top)
    assert {"confusion", "counts", "roc", "mistakes"} == set(section.figures)


def test_best_and_worst_classes_by_hand():
    """Class c is right in c of ten images, and the others are taken for class 0."""
    labels = np.repeat(np.arange(7), 10)
    predicted = np.where(np.tile(np.arange(10), 7) < labels, labels, 0)
    tables = errors(labels, np.eye(7)[predicted], "abcdefg").tables
    assert [row["class"] for row in tables["Five best classes"]] == list("gfeda")
    assert [row["class"] for row in tables["Five worst classes"]] == list("bcade")


def test_one_class_alone_is_neither_easiest_nor_hardest():
    (said,) = errors(np.zeros(4, int), np.eye(3)[[0, 0, 1, 2]], "abc").sentences
    assert said.startswith("50.0% of 4 images are right. The pair confused most is")


def test_predictions_that_do_not_go_with_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"must be \(images, classes\) .* here \(3, 2\). Received: \(4, 2\)"):
        errors([0, 1, 1], np.full((4, 2), 0.5), "ab")
    with pytest.raises(ValueError, match="`labels` must be 0 to 1. Received: 0 to 2"):
        calibration([0, 2], np.full((2, 2), 0.5), [0], np.full((1, 2), 0.5))
    with pytest.raises(ValueError, match="two models or more"):
        model_comparison([0], {"a": np.ones((1, 1))})


def test_confused_pairs_by_hand():
    matrix = np.array([[5, 3, 0], [1, 6, 0], [0, 2, 0]])
    assert [row["pair"] for row in confused_pairs(matrix, "abc")] == ["a / b", "b / c"]
    first, _ = confused_pairs(matrix, "abc")
    assert (first["images"], first["first taken for second"], first["second taken for first"]) == (4, 3, 1)


def test_a_class_without_images_has_no_figures_and_breaks_nothing(tmp_path):
    labels, probabilities = predictions(60, classes=3)
    labels[labels == 2] = 1
    section = errors(labels, probabilities, "abc")
    (row,) = (row for row in written(section, tmp_path)["tables"]["Metrics by class"] if row["class"] == "c")
    assert row["support"] == 0 and row["AUC"] is None and row["recall"] is None


def test_the_most_confident_mistakes_come_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    assert most_confident_mistakes(np.array([1, 0, 1, 1]), probabilities).tolist() == [0, 1, 2]
    assert top_k(np.array([1, 0]), np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), 2) == 0.5
    stored = np.zeros((1, 100))  # 16 bit leave a sure prediction with zeros alone behind it
    stored[0, 0] = 1.0
    assert top_k(np.array([50]), stored, 5) == 0.0 and top_k(np.array([4]), stored, 5) == 1.0


def test_a_hundred_classes_with_superclasses_are_drawn_without_special_cases(tmp_path):
    labels, probabilities = predictions(2000, classes=100, strength=4)
    superclass = np.arange(100) // 5
    names = tuple(f"class number {i}" for i in range(100))
    coarse = tuple(f"group {i}" for i in range(20))
    section = errors(labels, probabilities, names, superclass=superclass, superclass_names=coarse)
    found = written(section, tmp_path)
    sums = probabilities.reshape(-1, 20, 5).sum(axis=2).argmax(axis=1)
    assert found["numbers"]["superclass accuracy"] == pytest.approx(np.mean(sums == labels // 5))
    assert found["tables"]["Metrics by class"][7]["superclass"] == "group 1"


# --- calibration ---


def test_calibration_error_by_hand():
    """Ten images at 0.95 of which eight are right, ten at 0.55 of which six are: (0.15 + 0.05) / 2."""
    confidence = np.r_[np.full(10, 0.95), np.full(10, 0.55)]
    right = np.r_[np.ones(8), np.zeros(2), np.ones(6), np.zeros(4)].astype(bool)
    assert ece(confidence, right) == pytest.approx(0.1)
    counts, *_ = bins(np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 1.0]), np.ones(4))
    assert counts[0] == 2 and counts[1] == 1 and counts[-1] == 1


def test_nll_and_brier_are_scikit_learns():
    labels, probabilities = predictions()
    found = measures(labels, probabilities)
    assert found["NLL"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(10)))
    one_hot = np.eye(10)[labels]
    assert found["Brier"] == pytest.approx(np.mean(np.sum((probabilities - one_hot) ** 2, axis=1)))
    binary = measures(labels[:50] % 2, np.stack([1 - probabilities[:50, 0], probabilities[:50, 0]], 1))
    assert binary["Brier"] / 2 == pytest.approx(metrics.brier_score_loss(labels[:50] % 2, probabilities[:50, 0]))


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoilt_probabilities_is_found(factor):
    """Labels drawn from the probabilities are calibrated; sharpened by a factor, the best temperature is the factor."""
    random = np.random.RandomState(0)
    logits = random.normal(size=(20_000, 5)) * 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > random.uniform(size=(20_000, 1))).argmax(axis=1)
    spoilt = with_temperature(probabilities, 1 / factor)
    assert temperature(labels, spoilt) == pytest.approx(factor, rel=0.05)


def test_a_temperature_changes_no_decision_and_is_fitted_on_val_alone(tmp_path):
    labels, probabilities = predictions(2000, strength=2)
    sharp = with_temperature(probabilities, 0.3)
    section = calibration(labels, sharp, *map(np.copy, (labels[:1000], sharp[:1000])))
    numbers = written(section, tmp_path)["numbers"]
    assert numbers["before"]["accuracy"] == numbers["after"]["accuracy"] and numbers["temperature"] > 1
    assert numbers["after"]["ECE"] < numbers["before"]["ECE"] and "overconfident" in section.sentences[0]
    timid = calibration(labels, with_temperature(probabilities, 4), labels, with_temperature(probabilities, 4))
    assert "underconfident" in timid.sentences[0]
    other = calibration(labels, sharp, labels[:1000], probabilities[:1000])
    assert other.numbers["temperature"] != numbers["temperature"]


# --- feature space ---


def clouds(n, *, apart, seed=0):
    """Embeddings in three directions, more or less `apart`."""
    random = np.random.RandomState(seed)
    labels = np.arange(n) % 3
    return (apart * np.eye(3, 8)[labels] + random.normal(size=(n, 8))).astype("float32"), labels


def test_neighbours_are_those_of_a_full_sort():
    (x, labels), (z, _) = clouds(60, apart=2), clouds(15, apart=2, seed=1)
    near, _ = neighbours(unit(x), labels, unit(z))
    expected = np.argsort(-(unit(z) @ unit(x).T), axis=1)[:, :20]
    assert [set(row) for row in near] == [set(row) for row in expected]
    np.testing.assert_array_equal(near[:, 0], expected[:, 0])


@pytest.mark.parametrize(("apart", "least", "most"), [(8, 0.95, 1.0), (0, -0.1, 0.25)])
def test_separate_clouds_are_found_and_mixed_ones_are_not(apart, least, most, tmp_path):
    (x, labels), (z, truth) = clouds(300, apart=apart), clouds(150, apart=apart, seed=1)
    predicted = truth.copy()
    predicted[:15] = (truth[:15] + 1) % 3
    section = feature_space(
        (x, labels, pictures(300)), (z, truth, pictures(150)), predicted, ("one", "two", "three"), accuracy=0.9
    )
    numbers = written(section, tmp_path)["numbers"]
    assert least <= numbers["k-means adjusted mutual information"] <= most
    assert numbers["KNN accuracy"] > 0.95 if apart else numbers["KNN accuracy"] < 0.6
    shown = numbers["neighbours"]
    assert len(shown) == 6
    for row in shown:
        distances = 1 - unit(x) @ unit(z)[row["image"]]
        assert [one["image"] for one in row["nearest"]] == np.argsort(distances)[:4].tolist()
        assert [one["cosine distance"] for one in row["nearest"]] == pytest.approx(np.sort(distances)[:4], abs=1e-5)
    assert sum(row["label"] != row["predicted"] for row in shown) == 3
    rows = section.tables["Separability by class"]
    expected = metrics.silhouette_samples(unit(z), truth, metric="cosine")
    assert [row["silhouette"] for row in rows] == pytest.approx(
        [expected[truth == c].mean() for c in range(3)], abs=1e-5
    )
    assert [row["recall"] for row in rows] == [0.9, 0.9, 0.9]
    assert all(row["silhouette"] > 0.5 for row in rows) == bool(apart)


# --- models against each other ---


def test_agreement_and_who_alone_is_right_by_hand(tmp_path):
    labels = np.array([0, 0, 1, 1])
    made = {"a": [0, 0, 0, 1], "b": [0, 1, 0, 1], "c": [1, 1, 1, 1]}
    probabilities = {name: np.eye(2)[classes] for name, classes in made.items()}
    section = model_comparison(labels, probabilities, images=pictures(4), class_names=("x", "y"))
    numbers = written(section, tmp_path)["numbers"]
    assert numbers["agreement"]["a"] == {"a": 1.0, "b": 0.75, "c": 0.25}
    assert numbers["right alone"] == {"a": 1, "b": 0, "c": 1}
    assert numbers["right by all"] == 1 and numbers["right by none"] == 0
    pair = section.tables["Pairs of models"][0]
    assert (pair["first alone right"], pair["second alone right"], pair["McNemar p"]) == (1, 0, 1.0)
    assert pair["second minus first"] == -0.25


def test_the_bootstrap_is_scipys():
    from scipy import stats

    random = np.random.RandomState(0)
    a, b = random.uniform(size=2000) < 0.8, random.uniform(size=2000) < 0.83
    difference = (b.astype(int) - a.astype(int),)
    expected = stats.bootstrap(difference, np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert bootstrap(a, b, repetitions=4000) == pytest.approx((expected.low, expected.high), abs=2e-3)
    assert only_right({"a": a, "b": b}, "b").sum() == np.sum(b & ~a)


# --- Grad-CAM and feature maps ---


def linear(size=8, classes=3, seed=0):
    """Convolution, mean over places, linear: Grad-CAM's map is known in closed form (arXiv:1610.02391, section 3.1)."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(inputs)
    x = layers.Conv2D(5, 3, padding="same", name="conv")(x)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    x = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, layers.Softmax()(x))


@pytest.mark.parametrize("trainable", [True, False])
def test_the_map_of_a_linear_model_is_the_one_in_closed_form(trainable):
    model, images = linear(), pictures(4, size=8)
    model.trainable = trainable  # a frozen backbone has maps as well
    features = keras.Model(model.input, model.get_layer("conv").output).predict(images, verbose=0)
    classes = np.array([0, 1, 2, 0])
    weights = model.get_layer("logits").get_weights()[0][:, classes].T[:, None, None, :]
    expected = np.maximum((features * weights).sum(axis=-1), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(gradcam(model, images, classes), expected, atol=1e-4)


def planted(n, size=16, seed=0):
    """Noise with a bright square in a random place where the class is 1. Returns images, labels, squares' corners."""
    random = np.random.RandomState(seed)
    images, labels = random.randint(0, 60, (n, size, size, 3)).astype("uint8"), np.arange(n) % 2
    corners = random.randint(0, size - 5, (n, 2))
    for image, label, (y, x) in zip(images, labels, corners, strict=True):
        if label:
            image[y : y + 5, x : x + 5] = 255
    return images, labels, corners


@pytest.fixture(scope="module")
def trained():
    """A small network that has learned to see the planted square."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32", name="scaling_unit")(inputs)
    for name in ("first", "second"):
        x = layers.Conv2D(12, 3, padding="same", activation="relu", name=name)(x)
    x = layers.Dense(2, name="logits")(layers.GlobalMaxPooling2D(name="head_pool")(x))
    logits = keras.Model(inputs, x)
    logits.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels, _ = planted(256)
    logits.fit(images, labels, epochs=15, batch_size=32, verbose=0)
    return keras.Model(inputs, layers.Softmax()(logits.output))


def test_the_map_points_at_the_planted_object(trained):
    images, labels, corners = planted(40, seed=1)
    assert np.mean(trained.predict(images, verbose=0).argmax(axis=1) == labels) > 0.95
    maps = gradcam(trained, images[labels == 1], np.ones(20, int))
    inside = 0
    for heat, (y, x) in zip(maps, corners[labels == 1], strict=True):
        place = np.unravel_index(heat.argmax(), heat.shape)
        inside += y - 1 <= place[0] <= y + 5 and x - 1 <= place[1] <= x + 5
    assert inside >= 18


def test_the_map_depends_on_the_weights(trained):
    """Weight randomisation (Adebayo et al., arXiv:1810.03292): a map that stays says nothing about the model."""
    images, _, _ = planted(10, seed=2)
    before = gradcam(trained, images[1::2], np.ones(5, int))
    other = keras.models.clone_model(trained)
    after = gradcam(other, images[1::2], np.ones(5, int))
    assert before.any() and np.abs(before - after).mean() > 0.05
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(before, after, strict=True) if b.std() > 0]
    assert all(value < 0.8 for value in correlation)
    np.testing.assert_allclose(gradcam(trained, images[1::2], np.ones(5, int)), before, atol=1e-6)


def test_a_layer_is_named_or_the_last_with_places(trained):
    assert spatial_layers(trained) == ["first", "second"]
    images, _, _ = planted(2)
    assert gradcam(trained, images, [0, 1], layer="first").shape == (2, 16, 16)
    with pytest.raises(ValueError, match="one of .*first, second.*Received: 'third'"):
        gradcam(trained, images, [0, 1], layer="third")
    flat = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(NotApplicable, match="height and width"):
        spatial_layers(flat)
    with pytest.raises(ValueError, match="Received: 'scaling_unit'"):
        gradcam(trained, images, [0, 1], layer="scaling_unit")


def test_a_map_without_support_is_empty_not_nan():
    maps = weighed(np.ones((1, 2, 2, 3)), -np.ones((1, 2, 2, 3)), (4, 4), ((0.5, 2), (0.5, 2)))
    assert maps.shape == (1, 4, 4) and not maps.any()


def windows(name, size):
    """A network of windows of equal weights: the pixels that a cell sees lie around its centre."""
    x = inputs = keras.Input((size, size, 3))
    if name == "valid":  # as the scratch CNN's: 32 pixels, 31, 15, 7 and 3 cells
        x = layers.Conv2D(2, 2)(x)
        for _ in range(3):
            x = layers.AveragePooling2D(2)(layers.Conv2D(2, 3, padding="same")(x))
    elif name == "same":
        x = layers.Conv2D(2, 3, 2, padding="same")(x)
        x = layers.AveragePooling2D(3, 2, padding="same")(layers.Conv2D(2, 3, padding="same", dilation_rate=2)(x))
    elif name == "separable":
        x = layers.SeparableConv2D(2, 3, strides=2, padding="same")(layers.DepthwiseConv2D(3)(x))
    elif name == "transposed":
        x = layers.Conv2DTranspose(2, 3, 2, padding="same")(layers.Conv2D(2, 3, 2, padding="same")(x))
    elif name == "decoder":
        x = layers.UpSampling2D(2)(layers.Conv2DTranspose(2, 4, 2)(layers.Conv2D(2, 3, 2)(x)))
    elif name == "cut":
        x = layers.CenterCrop(20, 20)(layers.Cropping2D(((1, 3), (1, 3)))(x))
        x = layers.Conv2D(2, 3, 2)(x)
    elif name == "gated":  # squeeze and excitation; the branch with one cell comes first
        x = layers.Conv2D(2, 3, 2)(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Multiply()([layers.Conv2D(2, 1, activation="sigmoid")(0 * gate), x])
        x = layers.Concatenate()([layers.Conv2D(2, 3, padding="same")(x), x])
    elif name == "padded":  # as torchvision's ResNets, with a branch
        x = layers.Conv2D(2, 7, 2)(layers.ZeroPadding2D(3)(x))
        branch = layers.Conv2D(2, 1, 2)(x)
        x = layers.Add()([layers.Conv2D(2, 3, 2)(layers.ZeroPadding2D(1)(x)), branch])
    else:
        x = layers.Conv2D(2, 3, 2)(layers.Resizing(2 * size, 2 * size)(x))
    model = keras.Model(inputs, layers.Activation("linear", name="last")(x))
    for layer in model.layers:
        layer.set_weights([np.full(weight.shape, 0.1) for weight in layer.get_weights()])
    return model


FORMS = ("valid", "same", "padded", "resized", "separable", "transposed", "decoder", "cut", "gated")


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("name", FORMS)
def test_cells_lie_where_the_pixels_they_see_are(name, size):
    model = windows(name, size)
    (start, step), columns = centres(model, "last")
    assert columns == (start, step)
    points = np.repeat(np.eye(size * size, dtype="float32").reshape(-1, size, size, 1), 3, axis=-1)
    outputs = model.predict(points, verbose=0) - model.predict(0 * points[:1], verbose=0)  # by bright pixels' places
    middle, found = outputs.shape[1] // 2, []  # cells at the edges miss pixels
    for cell in range(middle, middle + (4 if name in ("transposed", "decoder") else 1)):  # where cells take turns
        by_row = outputs[:, cell, cell, 0].reshape(size, size).sum(axis=1)
        found.append(np.average(np.arange(size), weights=by_row) - cell * step)
    assert start == pytest.approx(np.mean(found), abs=1e-3)


@pytest.mark.parametrize("moved", ["permuted", "reshaped"])
def test_where_places_are_moved_about_the_map_is_stretched_and_says_so(moved):
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(2, 5)(x)
    x = layers.Permute((2, 1, 3))(x) if moved == "permuted" else layers.Reshape((4, 16, 2))(x)
    x = layers.Conv2D(2, 1, name="last")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    maps = GradCam(model)
    assert "stretched over the whole image" in maps.note and maps(np.zeros((1, 12, 12, 3)), [0]).shape == (1, 12, 12)
    cells = (8, 8) if moved == "permuted" else (4, 16)
    assert maps.positions == tuple(((12 / count - 1) / 2, 12 / count) for count in cells)
    assert GradCam(linear()).note == ""


# --- models within models ---


def stacked(first, *others, name=None):
    """A sequential model around another model and what follows."""
    start = first.inputs[0]
    return keras.Sequential([keras.Input(start.shape[1:], dtype=start.dtype), first, *others], name=name)


def teachable():
    """Teachable Machine's form: a stack around MobileNet and its pooling, and a stack of dense layers."""
    keras.utils.set_random_seed(1)
    base = keras.applications.MobileNet(input_shape=(64, 64, 3), alpha=0.25, include_top=False, weights=None)
    features = stacked(base, layers.GlobalAveragePooling2D(name="pool"), name="features")
    head = keras.Sequential(
        [keras.Input((256,)), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")], name="head"
    )
    return stacked(features, head)


def twin_names():
    """Two models within whose layers have the same names; the first is called twice, once on flipped images."""
    keras.utils.set_random_seed(2)
    parts = [
        keras.Sequential(
            [keras.Input(shape), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")], name=name
        )
        for name, shape in (("left", (12, 12, 3)), ("right", (10, 10, 4)))
    ]
    x = inputs = keras.Input((12, 12, 3))
    x = layers.RandomRotation(0.2)(x)
    once, again = (parts[0](y, training=False) for y in (x, layers.Rescaling(-1.0)(x)))
    x = layers.Concatenate()([parts[1](once), layers.Add()([parts[1](again), parts[1](once)])])
    x = layers.Dense(3, name="conv")(layers.Flatten()(layers.Dropout(0.5)(x)))
    return keras.Model(inputs, layers.Activation("softmax")(x))


@pytest.mark.parametrize("make", [teachable, twin_names])
def test_a_flattened_model_predicts_the_same_and_shares_its_weights(make):
    model = make()
    flat, images = flattened(model), np.random.RandomState(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
    for weight in model.weights:  # such as only training leaves: moving statistics that are neither 0 nor 1
        weight.assign(weight + 0.1)
    found, expected = (np.asarray(one(images, training=False)) for one in (flat, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {id(weight) for weight in flat.weights} == {id(weight) for weight in model.weights}
    assert not any(hasattr(plain(layer), "layers") for layer in flat.layers)
    assert flattened(flat) is flat and gradcam(model, images, [0, 1, 2]).shape == images.shape[:3]


def test_layers_keep_their_names_where_these_are_different():
    flat, nested = deep()
    assert [layer.name for layer in flattened(nested).layers[1:4]] == ["scaling_unit", "conv", "head_pool"]
    twins = {layer.name for layer in flattened(twin_names()).layers}
    assert {"left.conv", "left.conv.2", "right.conv", "right.conv.2", "right.conv.3", "conv"} <= twins


def test_a_flat_model_is_left_as_it_is(trained):
    assert flattened(trained) is trained


def deep(size=8):
    """The layers of `linear` as models in models in models: `(flat, nested)` with the same weights."""
    flat = linear(size)
    _, scale, conv, pool, dense, softmax = (layer for layer in flat.layers)
    inner = keras.Sequential([keras.Input((size, size, 3)), conv], name="inner")
    middle = keras.Sequential([keras.Input((size, size, 3)), inner, pool], name="middle")
    x = inputs = keras.Input((size, size, 3), dtype="uint8")
    outer = keras.Model(inputs, middle(scale(x)), name="outer")
    return flat, stacked(outer, dense, softmax)


def test_a_nested_network_has_the_map_of_the_same_network_without_nesting():
    flat, nested = deep()
    images, classes = pictures(5, size=8), [0, 1, 2, 0, 1]
    np.testing.assert_allclose(nested.predict(images, verbose=0), flat.predict(images, verbose=0), atol=1e-6)
    expected = gradcam(flat, images, classes)
    np.testing.assert_allclose(gradcam(nested, images, classes), expected, atol=1e-5)
    assert expected.any() and spatial_layers(nested) == ["conv"]


def test_a_nested_network_points_at_the_planted_object(trained):
    images, labels, _ = planted(20, seed=1)
    body = keras.Model(trained.input, trained.get_layer("head_pool").output, name="body")
    nested = stacked(stacked(body, name="around"), trained.get_layer("logits"))
    expected = gradcam(trained, images[1::2], labels[1::2])
    np.testing.assert_allclose(gradcam(nested, images[1::2], labels[1::2]), expected, atol=1e-5)


def test_what_an_inlined_model_does_to_its_input_s_dtype_is_kept():
    inner = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1), layers.Flatten(), layers.Dense(2)])
    model = keras.Sequential([keras.Input((4, 4, 3), dtype="uint8"), inner])
    images = pictures(3, size=4)
    np.testing.assert_allclose(flattened(model).predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-4)


def test_sums_with_numbers_and_parts_in_16_bits_are_inlined_as_they_are():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(x + 3.0)
    inner = keras.Sequential([keras.Input((4, 4, 4)), layers.Conv2D(2, 1), layers.Flatten(), layers.Dense(2)])
    model = keras.Model(inputs, layers.Softmax(dtype="float32")(inner(x)))
    images = np.random.RandomState(0).normal(size=(3, 6, 6, 3)).astype("float32")
    np.testing.assert_array_equal(flattened(model).predict(images, verbose=0), model.predict(images, verbose=0))
    assert gradcam(model, images, [0, 1, 0]).shape == (3, 6, 6)


def test_a_model_of_any_size_has_maps_of_the_images_size():
    model = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(2, 3), layers.GlobalMaxPooling2D(), layers.Dense(2)]
    )
    assert gradcam(model, np.ones((2, 9, 12, 3), "float32"), [0, 1]).shape == (2, 9, 12)


def test_what_comes_before_the_first_convolution_and_what_has_one_cell_is_passed_over():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Normalization()(x))
    x = layers.Conv2D(2, 8)(layers.DepthwiseConv2D(1, name="depth")(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert spatial_layers(model) == ["depth"]
    dense = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2, activation="softmax")])
    with pytest.raises(NotApplicable, match="no layer with height and width"):
        GradCam(dense)


def test_channels_that_come_first_are_refused():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 1, data_format="channels_first", name="torch_like")(layers.Permute((3, 1, 2))(x))
    with pytest.raises(NotApplicable, match="torch_like has its channels first"):
        spatial_layers(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))


# --- scores in front of the last activation ---


def ends(form):
    """The last layers of a classifier of 4 features, in the forms that people save."""
    x = inputs = keras.Input((4,))
    if form == "dense":
        x = layers.Dense(3, activation="softmax")(x)
    elif form == "layer":
        x = layers.Softmax()(layers.Dense(3)(x))
    elif form == "activation":
        x = layers.Activation("sigmoid")(layers.Dense(3)(x))
    elif form == "convolution":  # as MobileNet's of Keras: a 1x1 convolution, reshaped behind its softmax
        x = layers.Conv2D(3, 1, activation="softmax")(layers.Reshape((1, 1, 4))(x))
        x = layers.Dropout(0.5)(layers.Flatten()(x))
    elif form == "logits":
        x = layers.Dense(3)(x)
    elif form in ("sigmoid", "one logit"):
        x = layers.Dense(1, activation="sigmoid" if form == "sigmoid" else None)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("form", ["dense", "layer", "activation", "convolution", "logits", "sigmoid", "one logit"])
def test_scores_are_those_in_front_of_the_activation_however_sure_it_is(form):
    """Scores of hundreds, whose probabilities are 0 and 1: the logarithm would have lost them."""
    model = ends(form)
    kernel = np.random.RandomState(0).normal(size=(4, model.output_shape[-1])) * 200
    bias = np.arange(model.output_shape[-1]) + 1.0
    target = next(layer for layer in model.layers if layer.weights)
    target.set_weights([kernel.reshape(target.get_weights()[0].shape), bias])
    x = np.random.RandomState(1).normal(size=(5, 4)).astype("float32")
    expected = x @ kernel + bias
    expected = np.concatenate([-expected, expected], axis=1) if expected.shape[1] == 1 else expected
    scores = keras.Model(model.inputs[0], logits_of(model)).predict(x, verbose=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-2)


def test_the_score_of_a_mean_of_softmaxes_is_its_logarithm():
    inputs = keras.Input((4,))
    both = [layers.Dense(3, activation="softmax")(inputs) for _ in range(2)]
    model, x = keras.Model(inputs, layers.Average()(both)), np.random.RandomState(1).normal(size=(5, 4))
    scores = keras.Model(model.input, logits_of(model)).predict(x, verbose=0)
    np.testing.assert_allclose(np.exp(scores), model.predict(x, verbose=0), atol=1e-6)
    logits = keras.Model(inputs, layers.Average()([layers.Dense(3)(inputs) for _ in range(2)]))
    assert logits_of(logits) is logits.output


def test_one_sigmoid_speaks_for_class_1_and_against_class_0():
    """One convolution whose single channel is the brightness: what speaks for class 1 is the bright half."""
    x = inputs = keras.Input((4, 4, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(1, 1, name="conv")(x))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="dense")(x))
    model.get_layer("conv").set_weights([np.ones((1, 1, 3, 1)), np.array([-1.5])])
    model.get_layer("dense").set_weights([np.array([[100.0]]), np.zeros(1)])
    image = np.zeros((1, 4, 4, 3), "float32")
    image[:, :, 2:] = 1.0
    against, speaks = gradcam(model, np.repeat(image, 2, axis=0), [0, 1])
    np.testing.assert_allclose(speaks, image[0, :, :, 0], atol=1e-6)
    np.testing.assert_allclose(against, 1 - image[0, :, :, 0], atol=1e-6)


def test_a_map_is_laid_out_by_rows_and_columns():
    """One cell speaks, in a network without padding and of other strides along the columns."""
    features = np.zeros((1, 2, 3, 1))
    features[0, 1, 2] = 1.0
    (heat,) = weighed(features, np.ones((1, 2, 3, 1)), (9, 20), ((2.0, 4.0), (1.0, 6.0)))
    assert np.unravel_index(heat.argmax(), heat.shape) == (6, 13) and heat.shape == (9, 20)
    assert heat[4, 13] == pytest.approx(0.5) and heat[6, 10] == pytest.approx(0.5) and not heat[:3].any()


def test_a_gallery_shows_every_class():
    labels = np.repeat([0, 1, 2], [50, 2, 10])
    chosen = spread(np.arange(62), labels, 7)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1, 2, 0] and chosen.tolist() == [0, 50, 52, 1, 51, 53, 2]


def test_overlays_show_right_and_wrong(trained, tmp_path):
    images, labels, _ = planted(30, seed=3)
    predicted = labels.copy()
    predicted[:4] = 1 - predicted[:4]
    numbers = written(looked_at(trained, images, labels, predicted, ("noise", "square")), tmp_path)["numbers"]
    shown = {name: set(chosen) for name, chosen in numbers["images shown"].items()}
    assert shown["wrong"] == {0, 1, 2, 3} and len(shown["right"]) == 6 and numbers["layer"] == "second"
    all_wrong = looked_at(trained, images, labels, 1 - labels, ("noise", "square"))
    assert set(all_wrong.numbers["images shown"]) == {"wrong"}


def test_feature_maps_and_kernels(trained, tmp_path):
    assert stages(trained) == {(16, 16): "second"} and kernels(trained).shape == (3, 3, 3, 12)
    caffe = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 1, name="scaling_caffe"), layers.Conv2D(2, 3)])
    np.testing.assert_array_equal(kernels(caffe), caffe.layers[1].get_weights()[0][:, :, ::-1])  # it hands on BGR
    stage = np.zeros((4, 4, 20))
    stage[..., 7] = np.arange(16).reshape(4, 4)
    assert varying(stage)[0] == 7 and len(varying(stage)) == 6
    images, labels, _ = planted(2)
    section = activations(trained, images, labels, ("noise", "square"))
    assert set(section.figures) == {"maps0", "maps1", "kernels"}
    assert written(section, tmp_path)["numbers"]["stages"] == {"16 x 16": "second"}
