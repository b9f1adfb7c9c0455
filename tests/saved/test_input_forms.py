"""Models that take or put out something else than RGB floats and a number for each class."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from cifar_keras import cli
from cifar_keras.commands import predict
from cifar_keras.config import ConfigError
from cifar_keras.saved import export, find, formats, inference

RANDOM = np.random.default_rng(5)
NOISE = (RANDOM.integers(0, 256, (40, 8, 8, 3)) * RANDOM.random((40, 1, 1, 3))).astype("uint8")  # of many brightnesses


@pytest.fixture
def folder(tmp_path):
    """Two classes, dark and light, ten images each."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(low, low + 100, (8, 8, 3), dtype="uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def run(*arguments):
    """The exit code of `cifar-keras`."""
    with pytest.raises(SystemExit) as ended:
        cli.command([*map(str, arguments)])
    return ended.value.code or 0


def light_model(activation, *, sequential=False):
    """One number: how light an image is, around 125."""
    last = layers.Dense(1, activation=activation, name="light")
    stack = [layers.Rescaling(1 / 255), layers.Conv2D(3, 1, name="conv"), layers.GlobalAveragePooling2D(), last]
    if sequential:
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.Sequential(stack)])
    else:
        x = inputs = keras.Input((8, 8, 3))
        for layer in stack:
            x = layer(x)
        model = keras.Model(inputs, x)
    stack[1].set_weights([np.eye(3)[None, None], np.zeros(3)])
    last.set_weights([np.full((3, 1), 4.0), np.array([-12 * 125 / 255])])
    return model


@pytest.mark.parametrize(("activation", "kind"), [("sigmoid", "the probability"), (None, "the logit")])
@pytest.mark.parametrize("sequential", [False, True])
def test_one_number_is_the_second_of_two_classes(activation, kind, sequential, folder, tmp_path, capsys):
    model = light_model(activation, sequential=sequential)
    model.save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras")
    light = np.asarray(model.predict_on_batch(NOISE))
    light = light if activation else 1 / (1 + np.exp(-light))
    np.testing.assert_allclose(classifier.predict(NOISE), np.hstack([1 - light, light]), atol=1e-6)
    assert run("predict", tmp_path / "a.keras", folder, "--labels-from-folders", "--class-names", "dark,light") == 0
    out, err = capsys.readouterr()
    assert "accuracy 100.00%" in out and f"{kind} of 'light', the second class" in err
    assert run("inspect", tmp_path / "a.keras") == 0
    out = capsys.readouterr().out
    assert f"1 number per image: {kind} of the second class" in out and "2, not named" in out


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_an_exported_model_of_one_number_puts_out_two(activation, tmp_path):
    pytest.importorskip("ai_edge_litert")
    light_model(activation).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras", class_names="dark,light")
    export.convert(classifier, "litert", tmp_path / "a.tflite", None)
    exported = inference.load(tmp_path / "a.tflite")
    assert exported.class_names == ("dark", "light") and exported.network.outputs == 2 and not exported.assumptions
    np.testing.assert_allclose(exported.predict(NOISE), classifier.predict(NOISE), atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_both_classes_of_one_number_have_overlays(activation, tmp_path):
    pytest.importorskip("cifar_keras.explain.flatten", reason="Grad-CAM does not know single outputs yet")
    model = light_model(activation)
    model.get_layer("light").set_weights([np.array([[40.0], [0.0], [-40.0]]), np.zeros(1)])  # saturated: red, not blue
    model.save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras", class_names="blue,red")
    pixels = np.zeros((8, 8, 3), "uint8")
    pixels[:, :4, 0], pixels[:, 4:, 2] = 255, 255
    painter = predict.Painter(classifier, tmp_path)
    for chosen, column in ((1, 0), (0, 7)):
        heat = painter._map(pixels, chosen)
        assert heat[:, column].min() > 0.9 and heat[:, 7 - column].max() < 0.1
        painter.paint(predict.Prediction("a.png", probabilities=np.eye(2, dtype="float32")[chosen], pixels=pixels))
    assert {path.name for path in tmp_path.glob("*.png")} == {"000001_a_red.png", "000002_a_blue.png"}


def test_a_softmax_of_one_number_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras has something to say about it too
        light_model("softmax").save(tmp_path / "a.keras")
        with pytest.raises(ConfigError, match="a softmax of one number, which is always 1"):
            inference.load(tmp_path / "a.keras")


def test_a_sigmoid_for_each_class_keeps_its_order_and_is_said_to_be_no_distribution(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(4, activation="sigmoid")(layers.Flatten()(layers.Rescaling(0.01)(inputs))))
    model.save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras")
    assert "a sigmoid for each class" in classifier.assumptions[0]
    np.testing.assert_array_equal(classifier.predict(NOISE).argmax(1), model.predict_on_batch(NOISE).argmax(1))


def test_grey_images_are_those_of_pillow(folder, tmp_path, capsys):
    modes = [np.asarray(Image.fromarray(one).convert("L"))[..., None] for one in NOISE]
    np.testing.assert_array_equal(inference.grey(NOISE), modes)
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Rescaling(1 / 255)(x)))
    (model := keras.Model(inputs, x)).save(tmp_path / "a.keras")
    classifier = inference.load(tmp_path / "a.keras")
    np.testing.assert_allclose(classifier.predict(NOISE), model.predict_on_batch(np.stack(modes)), atol=1e-6)
    assert classifier.scalings == ("raw", "unit", "half")
    with pytest.raises(ConfigError, match="one of raw, unit, half for a.keras. Received: 'caffe'"):
        inference.load(tmp_path / "a.keras", scaling="caffe")
    assert run("predict", tmp_path / "a.keras", folder) == 0
    assert capsys.readouterr().err.count("RGB becomes grey by ITU-R 601") == 1
    assert run("inspect", tmp_path / "a.keras") == 0
    assert "float32 (images, 8, 8, 1), grey" in capsys.readouterr().out


def test_an_exported_grey_model_takes_rgb(tmp_path):
    pytest.importorskip("ai_edge_litert")
    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(inputs))).save(tmp_path / "a.h5")
    classifier = inference.load(tmp_path / "a.h5", scaling="unit")
    export.convert(classifier, "litert", tmp_path / "a.tflite", None)
    np.testing.assert_allclose(
        inference.load(tmp_path / "a.tflite").predict(NOISE), classifier.predict(NOISE), atol=1e-6
    )


SPANS = {"raw": (0, 255), "unit": (0, 1), "half": (-1, 1)}


def quantised(path, scaling, dtype, *, outputs=3, softmax=True):
    """Writes a full-integer `.tflite`; returns the float model and what it says of `NOISE`."""
    import tensorflow as tf

    low, high = SPANS[scaling]
    last = ("softmax" if outputs > 1 else "sigmoid") if softmax else None
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1, name="conv")(inputs := keras.Input((8, 8, 3))))
    model = keras.Model(inputs, layers.Dense(outputs, activation=last, name="last")(x))
    model.get_layer("conv").set_weights([np.eye(3)[None, None], np.zeros(3)])
    model.get_layer("last").set_weights([np.eye(3)[:, :outputs] * 6 / (high - low), np.zeros(outputs)])
    real = (low + (high - low) * (NOISE / 255)).astype("float32")
    real[0], real[1] = low, high  # so that the calibrated range is the whole
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one[None]] for one in real)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = getattr(tf, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(converter.convert())
    return model.predict_on_batch((low + (high - low) * (NOISE / 255)).astype("float32"))


@pytest.mark.parametrize(("scaling", "dtype"), [("raw", "uint8"), ("unit", "int8"), ("half", "uint8")])
def test_quantised_inputs_get_the_pixels_that_their_range_means(scaling, dtype, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    expected = quantised(tmp_path / "a.tflite", scaling, dtype)
    classifier = inference.load(tmp_path / "a.tflite")
    assert not classifier.logits and classifier.states_scaling
    assert np.abs(classifier.predict(NOISE) - expected).max() < 0.06
    assert np.ptp(expected, axis=0).min() > 0.2, "or the images would not tell"
    assert (
        f"that is {scaling!r}: pixels go in as they are{' minus 128' * (dtype == 'int8')}" in classifier.assumptions[0]
    )
    assert np.abs(inference.load(tmp_path / "a.tflite", scaling=scaling).predict(NOISE) - expected).max() < 0.06
    assert run("inspect", tmp_path / "a.tflite") == 0
    said = capsys.readouterr().out
    assert f"{dtype} (images, 8, 8, 3), RGB; integers stand for" in said and f"that is {scaling!r}" in said
    with pytest.raises(ConfigError, match="--input-scaling` must be one of raw"):
        classifier.scaled("caffe")


def test_quantised_logits_and_sigmoids_are_real_numbers_again(tmp_path):
    pytest.importorskip("ai_edge_litert")
    logits = quantised(tmp_path / "logits.tflite", "half", "int8", softmax=False)
    classifier = inference.load(tmp_path / "logits.tflite")
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert classifier.logits and np.abs(classifier.predict(NOISE) - expected).max() < 0.06
    light = quantised(tmp_path / "one.tflite", "half", "uint8", outputs=1)
    classifier = inference.load(tmp_path / "one.tflite")
    assert np.abs(classifier.predict(NOISE) - np.hstack([1 - light, light])).max() < 0.06
    assert "the probability of 'class 1'" in classifier.assumptions[-1]


def test_ranges_tell_scalings_apart():
    for scaling in inference.SCALINGS:
        low, high = inference._span(scaling)
        slack = 0.01 * (high - low)
        assert inference.scaling_of_range(low + slack, high - slack) == scaling
    assert inference.scaling_of_range(-128, 127) is None and inference.scaling_of_range(-0.8, 1.1) is None
    half = formats.Quantised("int8", 1 / 128, 0)
    np.testing.assert_array_equal(half.integers(np.uint8([0, 127, 255])), [-128, -1, 127])
    np.testing.assert_array_equal(half.integers(np.float32([-1, 0, 0.5, 3])), [-128, 0, 64, 127])
    np.testing.assert_array_equal(half.real(np.int8([-128, 0, 64])), [-1, 0, 0.5])


def onnx_file(path, shape, *, kind="FLOAT", sigmoid=True, outputs=3):
    """Writes a graph: the means of the channels, times 0.01, and of one output the first minus a half."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    dtype = {"FLOAT16": "float16", "DOUBLE": "float64"}.get(kind, "float32")
    kind, inner = getattr(TensorProto, kind), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    weights = {"factor": np.eye(3)[:, :outputs] * 0.01, "offset": np.full(outputs, -0.5 if outputs == 1 else 0.0)}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=inner),
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["means", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["logits"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", kind, shape)
    scores = helper.make_tensor_value_info("scores", inner, [shape[0], outputs])
    constants = [numpy_helper.from_array(one.astype(dtype), name) for name, one in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [scores], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE"])
@pytest.mark.parametrize("shape", [[None, 3, 8, 8], [1, 3, 8, 8], [16, 8, 8, 3]])
def test_onnx_graphs_of_any_float_layout_and_batch_say_the_same(kind, shape, tmp_path, capsys):
    onnx_file(tmp_path / "a.onnx", shape, kind=kind, sigmoid=False)
    classifier = inference.load(tmp_path / "a.onnx")
    logits = NOISE.mean(axis=(1, 2)) * 0.01
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.predict(NOISE), expected, atol=2e-3 if kind == "FLOAT16" else 1e-5)
    assert classifier.predict(NOISE).dtype == np.float32 and classifier.size == (8, 8)
    assert run("inspect", tmp_path / "a.onnx") == 0
    said = capsys.readouterr().out
    assert ("channels first" in said) == (shape[1] == 3)
    assert ("at a time" in said) == (shape[0] is not None)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_one_number_of_an_onnx_graph_is_read_by_its_values(sigmoid, tmp_path):
    onnx_file(tmp_path / "a.onnx", [None, 8, 8, 3], outputs=1, sigmoid=sigmoid)
    light = NOISE[..., 0].mean(axis=(1, 2))[:, None] * 0.01 - 0.5
    light = 1 / (1 + np.exp(-light))
    classifier = inference.load(tmp_path / "a.onnx")
    np.testing.assert_allclose(classifier.predict(NOISE), np.hstack([1 - light, light]), atol=1e-5)
    kind = "the probability" if sigmoid else "the logit"
    assert kind in classifier.assumptions[0] and "a guess" in classifier.assumptions[0]


@pytest.mark.parametrize(
    ("shape", "kind", "said"),
    [
        ([None, 8, 8, 3], "INT32", "of tensor\\(int32\\)"),
        ([5000, 8, 8, 3], "FLOAT", "5000 images at a time"),
        ([None, 8, 8, None], "FLOAT", "\\(None, 8, 8, None\\)"),
    ],
)
def test_onnx_inputs_that_are_no_images_are_refused_in_a_sentence(shape, kind, said, tmp_path):
    onnx_file(tmp_path / "a.onnx", shape, kind=kind)
    with pytest.raises(ConfigError, match=f"a.onnx.*{said}"):
        inference.load(tmp_path / "a.onnx")


def test_architecture_and_weights_go_under_any_names(folder, tmp_path, capsys):
    model = light_model("sigmoid")
    (tmp_path / "net.json").write_text(model.to_json())
    model.save(tmp_path / "best.h5")
    pair = tmp_path / "net.json", tmp_path / "best.h5"
    assert run("predict", *pair, folder, "--labels-from-folders", "--class-names", "dark,light") == 0
    assert "accuracy 100.00% " in capsys.readouterr().out
    expected = inference.load(tmp_path / "best.h5").predict(NOISE)
    np.testing.assert_array_equal(inference.load(pair[0], weights=pair[1]).predict(NOISE), expected)
    assert run("inspect", *pair, "--class-names", "dark,light") == 0
    out = capsys.readouterr().out
    assert "best.h5" in out and "architecture" in out and "net.json" in out and "dark, light" in out
    for arguments, said in (
        (["predict", pair[0], folder], "must be followed by its weights"),
        (["predict", *pair], "IMAGE must be named after"),
        (["inspect", pair[0]], "weights must be named after it"),
        (["inspect", pair[1], pair[1]], "Weights go with an architecture"),
        (["inspect", tmp_path / "none.json", pair[1]], "none.json"),
    ):
        assert run(*arguments) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    with pytest.raises(ConfigError, match="weights must be named after it. Received: none"):
        formats.open_network(pair[0])


def test_a_list_of_models_pairs_every_architecture_with_what_follows():
    assert find.paired(["a.json", "w.h5", "b.onnx", "c.json", "d.weights.h5"]) == [
        ("a.json", "w.h5"), ("b.onnx", None), ("c.json", "d.weights.h5")
    ]  # fmt: skip
    for arguments in (["a.json"], ["a.json", "b.onnx"], ["a.h5", "b.json"]):
        with pytest.raises(ConfigError, match="must be followed by its weights"):
            find.paired(arguments)


def test_plain_uint8_inputs_take_pixels_as_they_are(tmp_path):
    """Scaled ones would become zeros."""
    x = layers.Activation("linear", dtype="float32")(inputs := keras.Input((8, 8, 3), dtype="uint8"))
    keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))).save(tmp_path / "a.keras")
    assert inference.load(tmp_path / "a.keras").states_scaling
    with pytest.raises(ConfigError, match="must be one of raw for a.keras"):
        inference.load(tmp_path / "a.keras", scaling="unit")


def test_scaling_layers_of_a_model_within_are_seen(tmp_path):
    light_model("sigmoid", sequential=True).save(tmp_path / "a.keras")
    assert inference.load(tmp_path / "a.keras").states_scaling


def scaled_model(first, last):
    """Kernel and bias between what `first` and `last` make of a tensor."""
    x = layers.GlobalAveragePooling2D()(first(inputs := keras.Input((8, 8, 3))))
    (dense := layers.Dense(3)).trainable = False  # frozen kernels are kernels
    x = last(dense(x))
    return keras.Model(inputs, layers.Softmax()(x))


def nested(*stack):
    return keras.Sequential([keras.Input((8, 8, 3)), *stack])


@pytest.mark.parametrize(
    ("first", "states"),
    [
        (lambda x: x, False),
        (lambda x: nested(layers.Conv2D(3, 1), layers.Rescaling(0.1))(x), False),
        (lambda x: layers.Rescaling(0.1)(nested(layers.Conv2D(3, 1))(x)), False),
        (lambda x: layers.Add()([layers.Conv2D(3, 1)(x), x]), False),
        (lambda x: layers.Rescaling(0.1)(x), True),
        (lambda x: layers.Normalization(mean=[1] * 3, variance=[9] * 3)(layers.ZeroPadding2D()(x)), True),
        (lambda x: nested(layers.RandomFlip(), layers.Rescaling(0.1), layers.Conv2D(3, 1))(x), True),
        (lambda x: nested(layers.Rescaling(0.1))(nested(layers.RandomFlip())(x)), True),
        (lambda x: x / 127.5 - 1, True),
        (lambda x: keras.ops.multiply(1 / 255, x), True),
        (lambda x: 2 * x - 1, False),
        (lambda x: (x - 0.5) / 0.5, False),
        (lambda x: x * x, False),
    ],
)
def test_scaling_counts_before_the_first_kernel_only(first, states, tmp_path):
    """A temperature at the end, in every one of these models, says nothing of pixels."""
    scaled_model(first, layers.Rescaling(5.0)).save(tmp_path / "a.keras")
    assert inference.load(tmp_path / "a.keras").states_scaling == states


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("kind", [dict, list])
def test_the_only_tensor_of_a_dict_or_a_list_is_taken(ending, kind, tmp_path):
    inside = keras.Input((8, 8, 3), name="pixels")
    y = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Rescaling(0.01)(inside)))
    expected = keras.Model(inside, y).predict_on_batch(NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the key is not the input's name
        structures = ({"image": inside}, {"probs": y}) if kind is dict else ([inside], [y])
        keras.Model(*structures).save(tmp_path / f"a.{ending}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = inference.load(tmp_path / f"a.{ending}")
        np.testing.assert_allclose(classifier.predict(NOISE), expected, atol=1e-6)
    assert classifier.states_scaling and classifier.network.activation == "softmax"


@pytest.mark.parametrize("keepdims", [0, 1])
def test_class_numbers_of_an_onnx_graph_are_no_probabilities(keepdims, tmp_path):
    onnx_file(tmp_path / "a.onnx", [None, 8, 8, 3])
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(tmp_path / "a.onnx")
    model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=keepdims))
    del model.graph.output[:]
    shape = [None, 1] if keepdims else [None]
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, shape))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="a.onnx.*int64, which holds class numbers.*without its ArgMax"):
        inference.load(tmp_path / "a.onnx")


def test_class_numbers_of_a_tflite_are_no_probabilities(tmp_path):
    pytest.importorskip("ai_edge_litert")
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3))])
    def best(x):
        return tf.argmax(tf.reduce_mean(x, (1, 2)), axis=1)[:, None]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([best.get_concrete_function()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "a.tflite").write_bytes(converter.convert())
    with pytest.raises(ConfigError, match="a.tflite.*int64, which holds class numbers"):
        inference.load(tmp_path / "a.tflite")


@pytest.mark.parametrize("ending", ["KERAS", "H5", "ONNX", "TFLITE"])
def test_endings_may_be_in_upper_case(ending, tmp_path):
    path = tmp_path / f"a.{ending.lower()}"
    if ending == "ONNX":
        onnx_file(path, [None, 8, 8, 3])
    elif ending == "TFLITE":
        pytest.importorskip("ai_edge_litert")
        quantised(path, "unit", "uint8")
    else:
        light_model("sigmoid").save(path)
    expected = inference.load(path).predict(NOISE)
    np.testing.assert_array_equal(inference.load(path.rename(tmp_path / f"A.{ending}")).predict(NOISE), expected)
