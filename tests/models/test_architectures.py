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

DENSENET = {  # 24 channels, 12 more with each of 16 layers, and half of them behind a transition
    "conv1": ((32, 32, 24), 9 * 3 * 24),
    "block1_0_conv1": ((32, 32, 48), 24 * 48),
    "block1_0_conv2": ((32, 32, 12), 9 * 48 * 12),
    "block1_0_concat": ((32, 32, 36), 0),
    "block1_15_concat": ((32, 32, 216), 0),
    "transition1_conv": ((32, 32, 108), 216 * 108),
    "transition1_pool": ((16, 16, 108), 0),
    "block2_15_concat": ((16, 16, 300), 0),
    "transition2_conv": ((16, 16, 150), 300 * 150),
    "transition2_pool": ((8, 8, 150), 0),
    "block3_15_concat": ((8, 8, 342), 0),
    "final_bn": ((8, 8, 342), 4 * 342),
    "head_pool": ((342,), 0),
    "logits": ((10,), 342 * 10 + 10),
}


def wide_table(width, last):
    """Of a wide ResNet; `last` is the number of the last block in each stage."""
    return {
        "conv1": ((32, 32, 16), 9 * 3 * 16),
        "stage1_0_pre1_bn": ((32, 32, 16), 4 * 16),
        "stage1_0_shortcut": ((32, 32, 16 * width), 16 * 16 * width),
        f"stage1_{last}_add": ((32, 32, 16 * width), 0),
        "stage2_0_conv1": ((16, 16, 32 * width), 9 * 16 * width * 32 * width),
        f"stage2_{last}_add": ((16, 16, 32 * width), 0),
        f"stage3_{last}_conv2": ((8, 8, 64 * width), 9 * (64 * width) ** 2),
        "final_bn": ((8, 8, 64 * width), 4 * 64 * width),
        "head_pool": ((64 * width,), 0),
        "logits": ((10,), 64 * width * 10 + 10),
    }


def deep_table(*last):
    """Of a ResNet with a stem for 32 pixels; `last` are the numbers of the last blocks of its stages."""
    sizes = zip(last, (32, 16, 8, 4), (64, 128, 256, 512), strict=True)
    ends = {f"stage{stage}_{end}_relu2": ((size, size, n), 0) for stage, (end, size, n) in enumerate(sizes, start=1)}
    return ends | {"conv1": ((32, 32, 64), 9 * 3 * 64), "logits": ((10,), 512 * 10 + 10)}


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


# --- the networks of experiment 12, which their sources describe for 32 pixels ---


def residual_weights(*depths):
    """Trained weights of a ResNet with blocks of two convolutions: kernels, two per BatchNorm channel, classifier."""
    count, ins = 9 * 3 * 64 + 2 * 64, 64
    for out, depth in zip((64, 128, 256, 512), depths, strict=True):
        count += 9 * ins * out + (2 * depth - 1) * 9 * out * out + 2 * depth * 2 * out
        count += ins * out + 2 * out if ins != out else 0  # the shortcut
        ins = out
    return count + ins * 10 + 10


def wide_weights(blocks, width):
    """The same of a wide ResNet, whose BatchNorms stand in front of their convolutions, with `blocks` in each stage."""
    count, ins = 9 * 3 * 16, 16
    for out in (16 * width, 32 * width, 64 * width):
        count += 9 * ins * out + (2 * blocks - 1) * 9 * out * out + 2 * ins + (2 * blocks - 1) * 2 * out
        count += ins * out  # the shortcut
        ins = out
    return count + 2 * ins + ins * 10 + 10


def dense_weights(layers, growth):
    """The same of a DenseNet-BC with `layers` in each of three blocks."""
    channels = 2 * growth
    count = 9 * 3 * channels
    for block in range(3):
        for _ in range(layers):
            count += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 9 * 4 * growth * growth
            channels += growth
        if block < 2:
            count += 2 * channels + channels * (channels // 2)
            channels //= 2
    return count + 2 * channels + channels * 10 + 10


NETWORKS = {  # model: (layers with weights that its name counts, its table, trained weights by hand, and as known)
    "resnet18_32": (18, deep_table(1, 1, 1, 1), residual_weights(2, 2, 2, 2), 11_173_962),
    "resnet34_32": (34, deep_table(2, 3, 5, 2), residual_weights(3, 4, 6, 3), 21_282_122),
    "densenet_bc_100_12": (100, DENSENET, dense_weights(16, 12), 769_162),
    "wrn_16_4": (16, wide_table(4, 1), wide_weights(2, 4), 2_748_890),
    "wrn_28_10": (28, wide_table(10, 3), wide_weights(4, 10), 36_479_194),
}
PRE_ACTIVATED = ("densenet_bc_100_12", "wrn_16_4", "wrn_28_10")


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network's name and model, built once for the tests below."""
    return request.param, model_of(request.param)[1]


def of_kind(model, *kinds):
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def source(layer, *passed):
    """The layer that a layer's input comes from, behind layers of the types `passed`."""
    found = layer.input._keras_history.operation
    return source(found, *passed) if isinstance(found, passed) else found


def test_a_network_of_experiment_12_has_the_feature_maps_of_its_paper(network):
    name, model = network
    table = NETWORKS[name][1]
    assert {
        layer: (model.get_layer(layer).output.shape[1:], model.get_layer(layer).count_params()) for layer in table
    } == table


def test_a_network_of_experiment_12_trains_as_many_weights_as_a_count_by_hand(network):
    name, model = network
    _, _, by_hand, known = NETWORKS[name]
    assert sum(keras.ops.size(weight) for weight in model.trainable_variables) == by_hand == known


def test_the_number_in_a_network_s_name_is_that_of_its_layers(network):
    """A ResNet counts its classifier but no shortcuts, a DenseNet its classifier, a wide ResNet its convolutions."""
    name, model = network
    counted = of_kind(model, keras.layers.Conv2D, keras.layers.Dense)
    if name.startswith("wrn"):
        counted = of_kind(model, keras.layers.Conv2D)
    elif name.startswith("resnet"):
        counted = [layer for layer in counted if not layer.name.endswith("_shortcut")]
    assert len(counted) == NETWORKS[name][0]


def test_batchnorm_and_relu_stand_in_front_of_each_convolution_or_behind_it(network):
    """In front of all but the first, and at the end (pre-activation); in the original ResNets, a BatchNorm behind."""
    name, model = network
    norms, convolutions = (of_kind(model, kind) for kind in (keras.layers.BatchNormalization, keras.layers.Conv2D))
    if name not in PRE_ACTIVATED:
        assert {source(norm).name for norm in norms} == {layer.name for layer in convolutions}
        return
    activated = [source(layer, keras.layers.ZeroPadding2D) for layer in convolutions[1:]]
    for relu in [*activated, source(model.get_layer("head_pool"))]:
        assert isinstance(relu, keras.layers.Activation) and relu.activation is keras.activations.relu
        assert isinstance(source(relu), keras.layers.BatchNormalization)
    assert source(model.get_layer("head_pool")).name == "final_relu"


@pytest.mark.parametrize("network", ["wrn_16_4", "wrn_28_10"], indirect=True)
def test_a_wide_block_adds_its_input_or_where_the_shape_changes_a_convolution_of_the_activated_input(network):
    _, model = network
    before = "conv1"
    for block in of_kind(model, keras.layers.Add):
        stem = block.name.removesuffix("_add")
        kept, computed = (tensor._keras_history.operation.name for tensor in block.input)
        assert computed == f"{stem}_conv2"
        assert kept == (f"{stem}_shortcut" if stem.endswith("_0") else before)
        assert source(model.get_layer(f"{stem}_pre1_bn")).name == before
        if stem.endswith("_0"):
            assert source(model.get_layer(kept)).name == f"{stem}_pre1_relu"
        before = block.name


@pytest.mark.parametrize("network", ["densenet_bc_100_12"], indirect=True)
def test_a_dense_layer_sees_every_channel_before_it(network):
    _, model = network
    concatenations = of_kind(model, keras.layers.Concatenate)
    assert len(concatenations) == 3 * 16
    for layer in concatenations:
        stem = layer.name.removesuffix("_concat")
        before, computed = (tensor._keras_history.operation for tensor in layer.input)
        assert computed.name == f"{stem}_conv2" and source(model.get_layer(f"{stem}_pre1_bn")) is before
        assert layer.output.shape[-1] == before.output.shape[-1] + 12


def test_layers_of_these_networks_are_named_and_their_batchnorm_follows_the_run(network):
    _, model = network
    assert all(layer.name.split("_")[0] not in ("conv2d", "batch") for layer in model.layers if layer.weights)
    assert {norm.momentum for norm in of_kind(model, keras.layers.BatchNormalization)} == {0.9}
    assert {norm.epsilon for norm in of_kind(model, keras.layers.BatchNormalization)} == {1e-5}


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
