"""What the table of backbones promises, and what `--backbone` makes of a model's row."""

import dataclasses

import keras
import pytest

from cifar_keras.config import NATIVE, ConfigError, Training, tutorial
from cifar_keras.models import blocks
from cifar_keras.models.backbones import BACKBONES, CHOICES, LITE0_BLOCKS, PRETRAINED
from cifar_keras.models.zoo import MODELS, backbone_layers, build, part_of, row_of

# Without their classifiers: of applications as keras.io counts them; of EfficientNet-Lite0 as its authors' file does.
PARAMETERS = {
    "resnet50": 23_587_712,
    "resnet18": 11_176_512 + 4_800 + 4_800,
    "resnet18_32": 11_176_512 + 4_800 + 4_800 - 9_408 + 1_728,  # a stem of 3x3 in place of 7x7
    "efficientnet_lite0": 4_694_073 - 1_281_000 - 49,  # that file also counts the batches of each of 49 BatchNorms
    "efficientnetv2_b0": 5_919_312,
    "densenet121": 7_037_504,
}


@pytest.fixture(scope="module", params=CHOICES)
def chosen(request):
    row = row_of(tutorial("resnet50_frozen"), backbone=request.param)
    return row, build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)


def test_each_choice_is_a_flat_model_of_stock_layers_with_the_published_number_of_weights(chosen):
    row, model = chosen
    assert sum(layer.count_params() for layer in backbone_layers(model)) == PARAMETERS[row.backbone]
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)


def test_its_images_are_scaled_as_its_weights_need(chosen):
    row, model = chosen
    assert row.scaling == (BACKBONES[row.backbone].scaling or "caffe")  # without weights of its own, the row's
    assert f"scaling_{row.scaling}" in [layer.name for layer in model.layers]


def test_batchnorms_momentum_follows_the_run(chosen):
    _, model = chosen
    norms = [layer for layer in backbone_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and {layer.momentum for layer in norms} == {0.9}


def test_lite0_has_stages_that_a_row_can_train_alone():
    assert len(LITE0_BLOCKS) == 16 and LITE0_BLOCKS[0] == "stage1_0" and LITE0_BLOCKS[-1] == "stage7_0"
    x = keras.Input((64, 64, 3))
    model = keras.Model(x, BACKBONES["efficientnet_lite0"].build(x, momentum=0.9))
    assert model.output_shape == (None, 2, 2, 1280)
    assert {part_of(layer.name) for layer in model.layers} == {"backbone"}
    kernels = {layer.name for layer in model.layers if layer.weights}
    assert {name.rpartition("_")[2] for name in kernels} == {"stem", "expand", "depthwise", "project", "top", "bn"}


def test_every_pretrained_choice_names_its_licence_and_the_images_it_was_trained_on():
    for name in PRETRAINED:
        assert BACKBONES[name].imagenet.licence and BACKBONES[name].pixels == 224


def test_a_backbone_brings_name_scaling_and_pace():
    own, other = (row_of(Training("resnet50_finetune", ()), backbone=name) for name in (None, "efficientnet_lite0"))
    assert own == MODELS["resnet50_finetune"] == row_of(Training("resnet50_finetune", ()), backbone="resnet50")
    assert (other.name, other.backbone, other.scaling) == ("efficientnet_lite0_finetune", "efficientnet_lite0", "lite")
    assert other.images_per_second == own.images_per_second * BACKBONES["efficientnet_lite0"].speed
    changed = ("name", "backbone", "scaling", "images_per_second")
    assert {f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(other, f.name)} == {*changed}


def test_a_variants_columns_come_after_the_backbones():
    training = tutorial("resnet50_frozen", scaling="unit", images_per_second=24)
    row = row_of(training, backbone="efficientnet_lite0")
    assert row.scaling == "unit" and row.images_per_second == 24 * BACKBONES["efficientnet_lite0"].speed


@pytest.mark.parametrize(
    ("backbone", "scaling"), [(None, "caffe"), ("efficientnet_lite0", "lite"), ("resnet18", "torch")]
)
def test_native_scaling_is_the_backbones(backbone, scaling):
    assert row_of(tutorial("resnet50_frozen", scaling=NATIVE), backbone=backbone).scaling == scaling


@pytest.mark.parametrize("name", ["vgg16", "airnet", ""])
def test_what_is_no_choice_is_refused_with_the_choices(name):
    with pytest.raises(ConfigError, match="`--backbone` must be one of resnet50, resnet18, efficientnet_lite0"):
        row_of(tutorial("resnet50_frozen"), backbone=name)


def test_every_head_works_on_every_choice(chosen):
    _, model = chosen
    features = model.get_layer("head_pool").input
    for head in blocks.HEADS.values():
        assert head(features, 7).shape == (None, 7)
