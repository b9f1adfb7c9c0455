"""`cifar-keras inspect`: a description of a saved model, read from its file."""

from tabulate import tabulate

from cifar_keras.saved import inference
from cifar_keras.utils.text import printable, shortened

MOST_NAMES = 20  # of classes
FACTS = ("run_id", "dataset", "exported_from")  # of the provenance
OUTPUTS = {  # of several numbers, by the last activation
    "softmax": ", probabilities (softmax)",
    "linear": ", logits",
    "sigmoid": ", a sigmoid for each class: no distribution over the classes",
}
ONE_OUTPUT = {  # of one number
    "sigmoid": "the probability of the second class (sigmoid)",
    "hard_sigmoid": "the probability of the second class (hard sigmoid)",
    "linear": "the logit of the second class (no sigmoid in the file)",
    "softmax": "a softmax of one number, which is always 1: it distinguishes no classes",
}


def text(network, *, class_names=None):
    """A description of a `Network` for people: file, input contract, classes, provenance, layers.

    Raises: ConfigError unless there is one of the given names per class.
    """
    note = network.provenance or {}
    apart = "" if network.architecture is None else f", architecture {network.architecture}"
    facts = {
        "file": f"{network.path}, {network.path.stat().st_size / 2**20:,.1f} MiB{apart}",
        "written by": network.written_by or "not stated",
        "input": _input(network),
        "output": _output(network),
        "classes": _classes(network, class_names),
        **{name.replace("_", " "): note[name] for name in FACTS if name in note},
    }
    if not note:
        facts["provenance"] = "none: a file from elsewhere"
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}}{value}" for name, value in facts.items()]
    return printable("\n".join([*lines, "", *_layers(network.model)]))


def _input(network):
    size, channels = network.size or ("any", "any"), network.channels
    shape = ("images", channels, *size) if network.channels_first else ("images", *size, channels)
    dtype = network.quantised.dtype if network.quantised else network.dtype
    parts = [f"{dtype} ({', '.join(map(str, shape))})"]
    if network.channels_first:
        parts.append("channels first")
    if network.batch:
        parts.append("1 image at a time" if network.batch == 1 else f"{network.batch} images at a time")
    parts.append("RGB" if channels == 3 else "grey; RGB becomes grey by ITU-R 601 luma")
    return f"{', '.join(parts)}; {_scaling(network)}"


def _scaling(network):
    if "contract" in (network.provenance or {}):
        return "in [0, 255], the model scales them"
    if network.quantised:
        return _quantised(network.quantised)
    if network.holds_scaling:
        return "scaled by the model's own layers"
    if network.dtype == "uint8":
        return "pixels as they are, in [0, 255]"
    return "scaling not stated: see `--input-scaling` of `cifar-keras predict`"


def _quantised(quantised):
    low, high = quantised.ends
    known = inference.scaling_of_range(low, high)
    meaning = f"that is {known!r}" if known else "the range of no scaling here"
    return (
        f"integers stand for {low:.4g} to {high:.4g} ({quantised.scale:.4g} x (integer - {quantised.zero})), {meaning}"
    )


def _output(network):
    quantised = network.quantised_output
    low, high = quantised.ends if quantised else (0, 0)
    integers = f", quantised as {quantised.dtype} for {low:.4g} to {high:.4g}" if quantised else ""
    if network.outputs == 1:
        unknown = "the probability of the second class, or its logit: `predict` decides by its values"
        return f"1 number per image: {ONE_OUTPUT.get(network.activation, unknown)}{integers}"
    if "output" in (network.provenance or {}).get("contract", ""):
        return f"{network.outputs} numbers per image: float32 probabilities"
    kind = OUTPUTS.get(network.activation, ", probabilities or logits")
    return f"{network.outputs} numbers per image{kind}{integers}"


def _classes(network, class_names):
    names, note, _ = inference.named(network, class_names)
    own = (network.provenance or {}).get("class_names")
    if "class_names" not in note:
        return f"{len(names)}, not named"
    listed = f"{len(names)}: {shortened(names, MOST_NAMES)}"
    if class_names is None:
        return listed
    differs = own is not None and tuple(own) != names
    return f"{listed} (by --class-names{'; the file has ' + shortened(own, MOST_NAMES) if differs else ''})"


def _layers(model):
    """One line per layer, and the number of weights."""
    if model is None:
        return ["the layers of this format are not listed"]
    rows = [(one.name, type(one).__name__, _shape(one.output), f"{one.count_params():,}") for one in model.layers]
    table = tabulate(rows, ("layer", "kind", "output", "weights"), "plain", colalign=("left", "left", "left", "right"))
    return [table, "", f"{len(model.layers)} layers, {model.count_params():,} weights"]


def _shape(output):
    return "several" if isinstance(output, list) else " x ".join(str(side or "any") for side in output.shape[1:])
