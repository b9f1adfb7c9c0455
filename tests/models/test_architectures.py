"""The published architectures: shapes and parameter counts by hand, ResNet18 against NumPy, what is frozen."""

import keras
import numpy as np
import pytest
from helpers import noise

from cifar_keras.config import ConfigError, Training
from cifar_keras.models import weights
from cifar_keras.models.backbones import BACKBONES
from cifar_keras.models.zoo import MODELS, build, row_of, set_trainable

SIMPLE = {  # name: (output shape, parameters)
    "group1a": ((32, 32, 32), 3 * 3 * 3 * 32 + 32),
    "group1_pool": ((16, 16, 32), 0),
    "group2a": ((16, 16, 64), 3 * 3 * 32 * 64 + 64),
    "group2_pool": ((8, 8, 64), 0),
    "head_pool": ((4096,), 0),
    "head_hidden": ((128,), 4096 * 128 + 128),
    "logits": ((10,), 128 * 10 + 10),
}
FIVE_CONV = {
    "group1a": ((32, 32, 64), 3 * 3 * 3 * 64 + 64),
    "group1a_bn": ((32, 32, 64), 4 * 64),
    "group1b": ((32, 32, 64), 3 * 3 * 64 * 64 + 64),
    "group1b_bn": ((32, 32, 64), 4 * 64),
    "group1_pool": ((16, 16, 64), 0),
    "group2a": ((16, 16, 128), 3 * 3 * 64 * 128 + 128),
    "group2a_bn": ((16, 16, 128), 4 * 128),
    "group2b": ((16, 16, 128), 3 * 3 * 128 * 128 + 128),
    "group2b_bn": ((16, 16, 128), 4 * 128),
    "group2_pool": ((8, 8, 128), 0),
    "group3a": ((8, 8, 256), 3 * 3 * 128 * 256 + 256),
    "group3a_bn": ((8, 8, 256), 4 * 256),
    "group3_pool": ((4, 4, 256), 0),
    "head_pool": ((4096,), 0),
    "head_hidden": ((512,), 4096 * 512 + 512),
    "head_dropout": ((512,), 0),
    "logits": ((10,), 512 * 10 + 10),
}
RESNET18 = {  # conv without bias; BatchNorm 4 a channel
    "conv1": ((112, 112, 64), 7 * 7 * 3 * 64),
    "pool1": ((56, 56, 64), 0),
    "stage1_1_relu2": ((56, 56, 64), 0),
    "stage2_0_conv1": ((28, 28, 128), 9 * 64 * 128),
    "stage2_0_shortcut": ((28, 28, 128), 64 * 128),
    "stage2_1_relu2": ((28, 28, 128), 0),
    "stage3_1_relu2": ((14, 14, 256), 0),
    "stage4_0_conv2": ((7, 7, 512), 9 * 512 * 512),
    "stage4_1_relu2": ((7, 7, 512), 0),
    "head_pool": ((512,), 0),
    "logits": ((10,), 512 * 10 + 10),
}


def model_of(name, **columns):
    row = row_of(Training(name, stages=(), override=columns))
    return row, build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)


@pytest.mark.parametrize(
    "name, layers, parameters",
    [
        ("simple_cnn", SIMPLE, 545_098),
        ("five_conv", FIVE_CONV, 2_660_682),
        ("resnet18_224", RESNET18, 11_689_512 + 9_600 - 513_000 + 5_130),  # torchvision's, its statistics, ten classes
    ],
)
def test_layer_tables_of_the_published_architectures(name, layers, parameters):
    _, model = model_of(name)
    found = {layer.name: (tuple(layer.output.shape[1:]), layer.count_params()) for layer in model.layers}
    assert {layer: found[layer] for layer in layers} == layers
    scaling = sum(count for layer, (_, count) in found.items() if layer.startswith("scaling"))
    assert model.count_params() - scaling == parameters
    if name != "resnet18_224":
        assert sum(count for _, count in layers.values()) == parameters


def test_the_regularised_network_differs_by_its_batchnorms_and_dropout_alone():
    columns = {"backbone": "simple_norm", "head": "dense128_dropout"}
    _, model = model_of("simple_cnn", **columns)
    assert model.count_params() == 545_098 + 4 * (32 + 64)
    names = [layer.name for layer in model.layers]
    assert [n for n in names if n.endswith("_bn")] == ["group1a_bn", "group2a_bn"]
    assert model.get_layer("head_dropout").rate == 0.5 and names.index("head_dropout") < names.index("head_hidden")
    assert names.index("group1a") < names.index("group1a_bn") < names.index("group1a_relu")


def test_the_stem_for_32_pixels_keeps_their_resolution():
    _, model = model_of("resnet18_224", backbone="resnet18_32", pixels=32)
    assert model.get_layer("conv1").output.shape[1:] == (32, 32, 64)
    assert model.get_layer("stage4_1_relu2").output.shape[1:] == (4, 4, 512)
    assert "pool1" not in [layer.name for layer in model.layers]


def trained(model):
    return {layer.name for layer in model.layers if layer.trainable_variables}


def test_only_the_last_stage_and_the_head_of_resnet18_train():
    row, model = model_of("resnet18_224")
    set_trainable(model, row, freeze_backbone=False)
    assert {name.split("_")[0] for name in trained(model)} == {"stage4", "logits"}
    set_trainable(model, row, freeze_backbone=True)
    assert trained(model) == {"logits"}


def test_a_frozen_batchnorm_may_follow_the_batch_without_training():
    images = noise(16).images
    for norm, moves in ((None, False), ("training", True)):
        row, model = model_of("resnet18_224", pixels=32, trainable="head", frozen_norm=norm)
        set_trainable(model, row, freeze_backbone=False)
        assert trained(model) == {"logits"}
        before = {v.path: v.numpy() for v in model.variables}
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(images, np.arange(16) % 10)
        changed = {path.split("/")[-1] for path, v in before.items() if not np.array_equal(v, _of(model, path))}
        assert changed == {"kernel", "bias"} | ({"moving_mean", "moving_variance"} if moves else set())


def _of(model, path):
    return next(v for v in model.variables if v.path == path).numpy()


# --- torchvision's weights ---


def torchvision_state(seed=0):
    """Random weights under torchvision's names for ResNet18, in its layout."""
    random, state = np.random.default_rng(seed), {}

    def conv(name, out, ins, side):
        kernel = random.normal(size=(out, ins, side, side)) * (2 / (ins * side**2)) ** 0.5
        state[f"{name}.weight"] = kernel.astype("f4")

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = random.uniform(0.5, 1.5, channels).astype("f4")
        state[f"{name}.num_batches_tracked"] = np.int64(7)

    conv("conv1", 64, 3, 7), norm("bn1", 64)
    ins = 64
    for stage, out in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", out, ins, 3), norm(f"{name}.bn1", out)
            conv(f"{name}.conv2", out, out, 3), norm(f"{name}.bn2", out)
            if ins != out:
                conv(f"{name}.downsample.0", out, ins, 1), norm(f"{name}.downsample.1", out)
            ins = out
    state["fc.weight"], state["fc.bias"] = np.zeros((1000, 512), "f4"), np.zeros(1000, "f4")
    return state


def reference(state, x):
    """ResNet18 in NumPy as torchvision defines it: x `(batch, 3, height, width)` to features `(batch, 512, h, w)`."""

    def conv(x, name, stride, padding):
        kernel = state[f"{name}.weight"].astype("f8")
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        return np.einsum("bihwyx,oiyx->bohw", patches, kernel, optimize=True)

    def norm(x, name):
        scale, shift, mean, variance = (
            state[f"{name}.{part}"].astype("f8")[:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    x = np.maximum(norm(conv(x, "conv1", 2, 3), "bn1"), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(-1, -2))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = np.maximum(norm(conv(x, f"{name}.conv1", stride, 1), f"{name}.bn1"), 0)
            y = norm(conv(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
            if stride > 1:
                x = norm(conv(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x


def test_torchvisions_resnet18_computes_the_same_here(tmp_path):
    from safetensors.numpy import save_file

    state = torchvision_state()
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, tmp_path / "resnet18.safetensors")
    _, model = model_of("resnet18_224", pixels=32)
    head = model.get_layer("logits").get_weights()
    weights.load_backbone(model, tmp_path / "resnet18.safetensors")
    np.testing.assert_array_equal(model.get_layer("logits").get_weights()[0], head[0])
    images = noise(3).images
    scaled = keras.Model(model.input, model.get_layer("scaling_torch").output).predict(images, verbose=0)
    ours = keras.Model(model.input, model.get_layer("stage4_1_relu2").output).predict(images, verbose=0)
    theirs = reference(state, scaled.transpose(0, 3, 1, 2).astype("f8")).transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape == (3, 1, 1, 512)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_a_file_of_another_architecture_or_none_is_refused(tmp_path):
    from safetensors.numpy import save_file

    state = torchvision_state()
    del state["layer4.1.conv2.weight"]
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, tmp_path / "short.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    save_file({"embedding.weight": np.zeros((3, 4), "f4")}, tmp_path / "other.safetensors")
    _, model = model_of("resnet18_224", pixels=32)
    with pytest.raises(ConfigError, match="stage4_1_conv2.*no such layer"):
        weights.load_backbone(model, tmp_path / "short.safetensors")
    with pytest.raises(ConfigError, match="torchvision ResNet.*embedding.bias"):
        weights.load_backbone(model, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="can't be read as safetensors"):
        weights.load_backbone(model, tmp_path / "broken.safetensors")


def test_resnet18s_published_weights_are_checked_by_their_sha256(tmp_path):
    (tmp_path / BACKBONES["resnet18"].imagenet.name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="SHA256 694f673d.*Received: 2d711642"):
        weights.resolve(None, MODELS["resnet18_224"], data_dir=tmp_path)
