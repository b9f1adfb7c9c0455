"""What a model's file may contain, and Keras 2's configurations in Keras 3's terms. No code stored in a file is run.

A model is a description (its configuration, JSON) and weights. The description is read here before Keras builds
anything from it: everything but stock layers, and all code and files that come with a model, is refused by name.
"""

import copy
import inspect
import math
import re

import keras

from cifar_keras.config import ConfigError

MODEL_CLASSES = {"Functional": "Functional", "Model": "Functional", "Sequential": "Sequential"}  # by the names in files
MODULES = {"Functional": "keras.src.models.functional", "Sequential": "keras"}
CODE = (
    "Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup",
    "IntegerLookup", "IndexLookup", "TextVectorization",
)  # fmt: skip
REFUSED = {
    **dict.fromkeys(CODE, "would run code or read files that come with the model"),
    "TFOpLambda": "is an operation of TensorFlow, which Keras 3 can't load as a layer",
    "SlicingOpLambda": "is an operation of TensorFlow, which Keras 3 can't load as a layer",
}
HOMES = ("keras", "builtins")  # modules that a description may name, with their submodules
ONLY_TRAINING = ("_initializer", "_regularizer", "_constraint")  # endings of settings that inference does not need
KERAS3_ARGUMENTS = {("LeakyReLU", "alpha"): "negative_slope", ("InputLayer", "batch_input_shape"): "batch_shape"}
LEFT_OUT = {  # stored settings that Keras 3 does not have, with the value at which each may be ignored; ... for any
    "batch_input_shape": ...,  # `_sequential` makes an InputLayer of it
    "groups": 1,
    "implementation": ...,
    "ragged": False,
    "rms_scaling": False,
    "sparse": False,
    "time_major": False,
    "trainable": ...,
}
POLICIES = ("Policy", "PolicyV1", "DTypePolicy", "FloatDTypePolicy")  # defined by their names
SIXTEEN_BITS = re.compile(r"(mixed_)?b?float16|half")  # also within `int8_from_mixed_bfloat16`
OPERATIONS = ("keras.src.ops.", "keras.ops")
MAX_VALUES = 2**25  # that one layer may put out for one image: 128 MiB in float32, 8 GiB for 64 images


def checked(config):
    """Refuses a model's description that asks for more than stock Keras layers.

    Args:
        config: the description, nested dicts and lists, as `model.to_json()` or a `.h5` has it.
    Raises: ConfigError naming the first layer, class or function that is not Keras' own.
    """
    if isinstance(config, dict):
        if isinstance(kind := config.get("class_name"), str):
            _check_object(kind, config)
        for value in config.values():
            checked(value)
    elif isinstance(config, list | tuple):
        for value in config:
            checked(value)


def _check_object(kind, entry):
    """Refuses one object of a description."""
    inner = entry.get("config")
    name = inner.get("name", entry.get("name", kind)) if isinstance(inner, dict) else inner
    if kind in REFUSED:
        raise _refusal(name, kind, REFUSED[kind])
    if not kind.isidentifier():  # Keras follows dots, so that `layers.Lambda` would be one
        raise _refusal(name, kind, "is no name of a layer")
    registered, module = entry.get("registered_name"), entry.get("module")
    if module is not None and not f"{module}.".startswith(tuple(f"{home}." for home in HOMES)):
        raise _refusal(name, kind, f"belongs to {module}, not to Keras")
    if isinstance(registered, str) and ">" in registered:
        raise _refusal(name, kind, "is a class or function of the model's author")
    if kind == "function" and not hasattr(keras.activations, str(inner)):
        raise _refusal(name, kind, "is no activation of Keras")


def _refusal(name, kind, reason):
    return ConfigError(
        f"The model must consist of stock Keras layers. Received: {name!r} ({kind}), which {reason}. "
        "Save it without that layer from the program that defines it; scaling can be given here by `--input-scaling`."
    )


def to_keras3(config):
    """A model's description in the terms of Keras 3, whether Keras 2 or 3 wrote it. Pure.

    Settings of training (optimiser, loss, metrics, initialisers, regularisers, constraints) are left out unread. All
    layers compute in float32, whatever they were trained in.

    Args:
        config: the description in a `.h5` or `.keras`, or of `model.to_json()`; it is not changed.
    Returns: a configuration for `keras.saving.deserialize_keras_object`.
    Raises: ConfigError as `checked`, or naming a layer or a setting that Keras 3 does not know.
    """
    kind = config["class_name"]
    if kind not in MODEL_CLASSES and not hasattr(keras.layers, str(kind)):
        raise ConfigError(
            f"The model must be made of layers that the file describes. Received: a subclassed model, {kind}, whose "
            "code is not in the file. In the program that defines it, build it with `keras.Sequential` or "
            "`keras.Model(inputs, outputs)` and save that, or export it to ONNX."
        )
    config = in_float32(config)
    checked(config)
    return _entry(config)


def in_float32(value, *, of_type=False):
    """A description without `compile_config` whose layers compute in float32. Pure.

    Args:
        value: the description as Keras of any version writes it, or a part of it.
        of_type: whether `value` is, or belongs to, a layer's type or precision policy.
    """
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if name != "compile_config"}
        return {name: in_float32(part, of_type=of_type or str(name).endswith("dtype")) for name, part in kept.items()}
    if isinstance(value, list | tuple):
        return [in_float32(part, of_type=of_type) for part in value]
    return SIXTEEN_BITS.sub("float32", value) if of_type and isinstance(value, str) else value


def _entry(entry):
    """A layer or a model."""
    kind = entry["class_name"]
    if kind in MODEL_CLASSES:
        inner = _functional(entry["config"]) if MODEL_CLASSES[kind] == "Functional" else _sequential(entry["config"])
        described = {"class_name": MODEL_CLASSES[kind], "module": MODULES[MODEL_CLASSES[kind]]}
    elif str(entry.get("module")).startswith(OPERATIONS):
        return entry  # of Keras 3, as `x + 1` makes it; some are named as layers are
    else:
        inner = _settings(kind, entry["config"])
        described = {"class_name": kind, "module": "keras.layers"}
    kept = {name: entry[name] for name in ("name", "inbound_nodes") if name in entry}
    return {**described, "config": inner, "registered_name": None, **kept}


def _functional(config):
    """A graph of layers.

    A single input or output is not put into a list, or a nested model would return a list. Calls of nested models count
    from 0, except for a `Functional` among the outputs: Keras 2 counted from 1 there, and Keras 3 itself subtracts it.
    """
    layers = [_entry(layer) for layer in config["layers"]]
    ends = {name: _single(config[name]) for name in ("input_layers", "output_layers")}
    nodes = [layer["inbound_nodes"] for layer in layers]
    links = {kind: [*_links(nodes), *(_links(ends) if kind == "Sequential" else ())] for kind in MODULES}
    within = {layer["name"]: layer["class_name"] for layer in layers if layer["class_name"] in MODULES}
    calls = {name: [link[1] for link in links[kind] if link[0] == name] for name, kind in within.items()}
    starts = {name: min(numbers, default=0) for name, numbers in calls.items()}
    for layer in layers:
        layer["inbound_nodes"] = _renumbered(layer["inbound_nodes"], starts)
    stacks = {name: start for name, start in starts.items() if within[name] == "Sequential"}
    kept = {name: config[name] for name in ("name", "trainable") if name in config}
    return {**kept, "layers": layers, **_renumbered(ends, stacks)}


def _single(ends):
    return ends[0] if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list) else ends


def _is_link(value):
    """Whether this names an output in Keras 2's form: `[layer, call, tensor]`, with or without arguments."""
    return isinstance(value, list) and len(value) in (3, 4) and isinstance(value[0], str) and isinstance(value[1], int)


def _links(value):
    """Every such name within a value."""
    if _is_link(value):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _links(inner)


def _renumbered(value, starts):
    """The value with the calls of some layers, by name, counted from 0."""
    if _is_link(value):
        return [value[0], value[1] - starts.get(value[0], 0), *value[2:]]
    if isinstance(value, dict):
        return {name: _renumbered(inner, starts) for name, inner in value.items()}
    return [_renumbered(inner, starts) for inner in value] if isinstance(value, list) else value


def _sequential(config):
    """A stack of layers, with an input layer added where the first layer held the shape."""
    entries = config if isinstance(config, list) else config["layers"]  # a bare list before Keras 2.2.3
    layers, first = [_entry(layer) for layer in entries], entries[0]["config"]
    whole = config if isinstance(config, dict) else {}
    shape = first.get("batch_input_shape") if isinstance(first, dict) else None
    shape = shape or whole.get("build_input_shape")  # of a stack that was built by its first images
    if shape and entries[0]["class_name"] not in (*MODEL_CLASSES, "InputLayer"):
        settings = {"batch_shape": [None, *shape[1:]], "dtype": "float32", "name": "input"}
        layers.insert(0, _entry({"class_name": "InputLayer", "config": settings}))
    return {"name": whole.get("name"), "layers": layers}


def _settings(kind, config):
    """The arguments of a layer. Raises ConfigError for a layer or an argument that Keras 3 does not have."""
    layer = getattr(keras.layers, kind, None)
    if not inspect.isclass(layer):
        raise _refusal(config.get("name"), kind, "Keras 3 does not have")
    known, found = _arguments(layer), {}
    for name, value in config.items():
        name = KERAS3_ARGUMENTS.get((kind, name), name)
        if name.endswith(ONLY_TRAINING):
            continue
        if name in known:
            found[name] = _value(name, value)
        elif value is not None and LEFT_OUT.get(name) not in (..., value):
            raise _refusal(config.get("name"), kind, f"has {name}={value!r}, which Keras 3 does not know")
    return found


def _arguments(layer):
    """The names of a layer's constructor arguments, including those that it passes to its base classes."""
    names = set()
    for base in layer.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


def _value(name, value):
    """An argument's value: nested layers, policies by name, an axis as a number."""
    if isinstance(value, dict) and value.get("class_name") in POLICIES:
        return value["config"]["name"]
    if isinstance(value, dict) and hasattr(keras.layers, value.get("class_name", "")):
        return _entry(value)
    return value[0] if name == "axis" and isinstance(value, list) and len(value) == 1 else value


def build(config):
    """The model of a description in Keras 3's terms, which is not changed; float32 where it names no type."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=True)
    finally:
        keras.config.set_dtype_policy(policy)


def check_size(config, stored_bytes):
    """Refuses a description that needs more memory than its file justifies, before any is allocated.

    Args:
        config: in Keras 3's terms.
        stored_bytes: the size of the file with the weights.
    Raises: ConfigError for more weights than bytes, or a layer that puts out more than `MAX_VALUES` for an image.
    """
    with keras.StatelessScope(initialize_variables=False):  # shapes only: no variable is allocated
        model = build(config)
        if (weights := model.count_params()) > stored_bytes:
            raise ConfigError(
                f"The file must hold the weights that its layers need. Received: {stored_bytes:,} bytes for "
                f"{weights:,} weights. It is damaged or made up."
            )
        _check_outputs(model)


def check_outputs(model, size):
    """Refuses a model that takes images of any size where it needs too much memory for `(height, width)`."""
    with keras.StatelessScope(initialize_variables=False):
        _check_outputs(keras.models.clone_model(model, input_tensors=keras.Input((*size, 3), dtype=model.input.dtype)))


def _check_outputs(model):
    """Raises ConfigError where a call of a layer or operation, in nested models too, puts out too much for an image."""
    found = (one for part in model._flatten_layers() for one in getattr(part, "operations", [part]))
    for layer in {id(one): one for one in found}.values():
        for output in keras.tree.flatten([node.output_tensors for node in layer._inbound_nodes]):
            if (values := math.prod(side or 1 for side in output.shape[1:])) > MAX_VALUES:
                raise ConfigError(
                    f"A layer must put out at most {MAX_VALUES:,} values for an image. Received: {layer.name!r} with "
                    f"{values:,}."
                )
