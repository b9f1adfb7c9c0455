"""One contract for every model, real sizes: what comes in, what comes out, what is saved, what trains."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import config, noise

from cifar_keras.config import ConfigError, Stage, Training
from cifar_keras.models import blocks
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.zoo import (
    MODELS,
    backbone_layers,
    build,
    initialise_from_data,
    momentum_for,
    row_of,
    set_trainable,
)
from cifar_keras.saved import artifacts
from cifar_keras.training.optim import CrossEntropy, make_optimizer
from cifar_keras.utils.paths import Paths

IMAGES = noise(6).images
PARAMETERS = {
    "resnet50": 23_587_712,
    "airnet": 1_971_360,  # 9 x widths + 3 a BatchNorm channel
    "resnet18": 11_176_512 + 4_800 + 4_800,  # torchvision's without its classifier, and the moving statistics
    "simple": 896 + 18_496,
    "five_conv": 555_328 + 2_560,
    "conv4": 896 + 18_496 + 73_856 + 147_584 + 4 * (32 + 64 + 128 + 128),
    "resnet18_32": 11_173_962 - 5_130 + 9_600,  # what test_architectures.py counts, less classifier, and statistics
    "densenet100": 769_162 - 3_430 + 23_988,
    "wrn_16_4": 2_748_890 - 2_570 + 3_616,
}  # of the backbone: Keras' count, or by hand
# More of the blocks of another row, which keeps the contract for both: 21 and 36 million weights would only cost time.
# Or the same network, which starts from other weights.
ALIKE = {"resnet34_32": "resnet18_32", "wrn_28_10": "wrn_16_4", "compressed_cnn": "scratch_cnn"}
TESTED = [name for name in MODELS if name not in ALIKE]
SLOW = ("densenet_bc_100_12",)  # 99 convolutions; `test_architectures.py` checks its layers


def test_a_row_is_left_out_only_beside_one_of_the_same_function_and_columns():
    def function(row):
        return getattr(BACKBONES[row.backbone].build, "func", BACKBONES[row.backbone].build)

    for name, tested in ALIKE.items():
        own, other = MODELS[name], MODELS[tested]
        assert tested in TESTED and function(own) is function(other)
        aside = ("name", "backbone", "images_per_second", "gains_on_amx", "weights")
        same = {field: getattr(other, field) for field in aside}
        assert dataclasses.replace(own, **same) == other


def marked(names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.fixture(scope="module", params=marked(TESTED))
def row(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def logits_model(row):
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    initialise_from_data(model, IMAGES)
    return model


@pytest.fixture(scope="module")
def saved(row, logits_model, tmp_path_factory):
    """The model as the runner saves it, and where."""
    paths = Paths.of(config(number=4), tmp_path_factory.mktemp(row.name))
    model = artifacts.for_inference(logits_model)
    artifacts.save(model, paths, provenance={"class_names": list("abcdefghij"), "run_id": "x"}, history={"loss": [1.0]})
    return model, paths


def test_raw_pixels_in_float32_probabilities_out(saved):
    model, _ = saved
    assert model.input_shape == (None, 32, 32, 3) and model.inputs[0].dtype == "uint8"
    result = model.predict(IMAGES, verbose=0)
    assert result.shape == (6, 10) and result.dtype == np.float32
    np.testing.assert_allclose(result.sum(axis=1), 1.0, atol=1e-5)


def test_the_backbone_has_the_published_number_of_parameters(row, logits_model):
    assert sum(layer.count_params() for layer in backbone_layers(logits_model)) == PARAMETERS[row.backbone]


def test_the_residual_network_has_airbench96_s_shortcuts_and_parameters():
    x = keras.Input((32, 32, 3))
    network = keras.Model(x, BACKBONES["airnet_residual"].build(x, momentum=0.9))
    assert network.output_shape == (None, 3, 3, 512)
    assert sum(layer.count_params() for layer in network.layers) == 9_907_488 + 3 * 3 * (128 + 384 + 512)
    for group in (1, 2, 3):
        shortcut = network.get_layer(f"group{group}c_add").input
        assert [tensor._keras_history.operation.name for tensor in shortcut] == [
            f"group{group}c_bn",
            f"group{group}a_gelu",
        ]


def test_every_saved_form_gives_the_same_probabilities(saved):
    model, paths = saved
    expected = model.predict(IMAGES, verbose=0)
    for other in (
        artifacts.load(paths.keras),
        artifacts.load(paths.h5),
        artifacts.rebuild(paths.architecture, paths.custom_h5),
    ):
        np.testing.assert_allclose(other.predict(IMAGES, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("head", blocks.HEADS)
def test_every_head_begins_with_a_layer_that_gives_a_vector_an_image(head):
    """Where `features` cuts."""
    features = keras.Input((2, 2, 5))
    model = keras.Model(features, blocks.HEADS[head](features, 10))
    assert model.layers[1].name == "head_pool" and not model.layers[1].weights
    assert model.layers[1].output.shape == (None, 20 if head.startswith("dense") else 5)


def test_files_say_what_they_are(saved):
    _, paths = saved
    for path in (paths.keras, paths.h5, paths.custom_h5):
        note = artifacts.provenance(path)
        assert note["class_names"] == list("abcdefghij")
        assert "RGB in [0, 255]" in note["contract"]


def test_no_layer_is_ours(saved):
    model, _ = saved
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)


def test_a_fixed_seed_fixes_the_weights():
    first, again, other = (
        build(MODELS["scratch_cnn"], image_shape=(32, 32, 3), classes=10, steps=100, seed=seed)
        .get_layer("group2a")
        .get_weights()[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", marked(name for name in TESTED if MODELS[name].pixels < 100))  # 224: the same columns
@pytest.mark.parametrize("freeze_backbone", [True, False])
def test_a_step_changes_exactly_what_the_stage_calls_trainable(name, freeze_backbone):
    row = MODELS[name]
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=2, seed=0)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    training = Training(row.name, stages=(Stage(1, 0.1, schedule="constant"),), optimizer="sgd")
    set_trainable(model, row, freeze_backbone=freeze_backbone)
    model.compile(make_optimizer(training, training.stages[0], steps=1), CrossEntropy())
    model.optimizer.build(model.trainable_variables)
    model.fit(noise(8).images, noise(8).labels, batch_size=8, epochs=1, verbose=0)
    backbone_trains = row.trainable == "all" and not freeze_backbone
    for layer in model.layers:
        trains = layer.name.startswith(("head_", "logits")) or (
            backbone_trains and not layer.name.startswith(("scaling_", "whitening"))
        )
        for variable, old in zip(layer.weights, before[layer.name], strict=True):
            changed = not np.array_equal(keras.ops.convert_to_numpy(variable.value), old)
            assert changed == trains, f"{layer.name}: {variable.name}"


def test_another_image_size_and_number_of_classes(row):
    model = build(row, image_shape=(48, 48, 3), classes=3, steps=100, seed=0)
    assert model.predict(noise(2, size=48).images, verbose=0).shape == (2, 3)


def test_resizing_does_not_round_the_pixels(row):
    model = build(row, image_shape=(20, 20, 3), classes=3, steps=100, seed=0)
    resized = keras.Model(model.input, model.get_layer("scaling_resize").output).predict(
        noise(1, size=20).images, verbose=0
    )
    assert resized.shape == (1, row.pixels, row.pixels, 3)
    assert np.abs(resized - np.round(resized)).max() > 0.1


def test_momentum_fits_the_length_of_the_run():
    assert momentum_for(20) == 0.5
    assert momentum_for(100) == pytest.approx(0.9)
    assert momentum_for(100_000) == 0.99
    model = build(MODELS["resnet50_finetune"], image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    norms = [layer for layer in backbone_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 53 and {layer.momentum for layer in norms} == {momentum_for(100)}


def test_overrides_replace_columns_and_unknown_ones_are_named():
    row = row_of(Training("resnet50_frozen", stages=(), override={"pixels": 64, "scaling": "unit"}))
    assert (row.pixels, row.scaling, row.images_per_second) == (
        64,
        "unit",
        MODELS["resnet50_frozen"].images_per_second / 4,
    )
    with pytest.raises(ConfigError, match="scalling"):
        row_of(Training("resnet50_frozen", stages=(), override={"scalling": "unit"}))
    with pytest.raises(ConfigError, match="resnet50_finetune"):
        row_of(Training("resnet51", stages=()))


def test_a_saved_h5_needs_nothing_of_ours(tmp_path):
    """The README's lines, in a process that can't import this package."""
    model = artifacts.for_inference(
        build(MODELS["scratch_cnn"], image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    )
    path = Paths.of(config(number=4), tmp_path)
    artifacts.save(model, path, provenance={}, history={})
    np.save(tmp_path / "images.npy", IMAGES)
    code = f"""
import sys; sys.modules["cifar_keras"] = None
import keras, numpy as np
model = keras.saving.load_model({str(path.h5)!r}, compile=False)
np.save({str(tmp_path / "out.npy")!r}, model.predict(np.load({str(tmp_path / "images.npy")!r}), verbose=0))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.predict(IMAGES, verbose=0), atol=1e-6)
