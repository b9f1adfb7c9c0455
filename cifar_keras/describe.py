"""`cifar-keras inspect`: what a saved model is, told from its file."""

from tabulate import tabulate

from cifar_keras.units import printable

SHOWN = 20  # class names
FACTS = ("run_id", "dataset", "exported_from")  # of the provenance


def text(network):
    """A description for people: file, input contract, classes, provenance, layers.

    Args:
        network: `formats.Network`.
    """
    note = network.provenance or {}
    facts = {
        "file": f"{network.path}, {network.path.stat().st_size / 2**20:,.1f} MiB",
        "written by": network.written_by or "not stated",
        "input": _input(network),
        "output": f"{network.outputs} numbers an image{_said_of(note, 'output')}",
        "classes": _classes(note, network.outputs),
        **{name.replace("_", " "): note[name] for name in FACTS if name in note},
    }
    if not note:
        facts["provenance"] = "none: a file from elsewhere"
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}}{value}" for name, value in facts.items()]
    return printable("\n".join([*lines, "", *_layers(network.model)]))


def _input(network):
    height, width = network.size or ("any", "any")
    return f"{network.dtype} (images, {height}, {width}, 3), {_scaling(network)}"


def _scaling(network):
    if "contract" in (network.provenance or {}):
        return "RGB in [0, 255]; it scales by itself"
    if network.holds_scaling:
        return "RGB; layers of its own scale"
    return "RGB; it does not say how scaled: see `--input-scaling` of `cifar-keras predict`"


def _said_of(note, name):
    return ": float32 probabilities" if name in note.get("contract", "") else ", probabilities or logits"


def _classes(note, outputs):
    names = note.get("class_names")
    if not names:
        return f"{outputs}, not named"
    return f"{len(names)}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def _layers(model):
    """A line a layer, and how many weights there are."""
    if model is None:
        return ["the layers of this format are not listed"]
    rows = [(one.name, type(one).__name__, _shape(one.output), f"{one.count_params():,}") for one in model.layers]
    table = tabulate(rows, ("layer", "kind", "output", "weights"), "plain", colalign=("left", "left", "left", "right"))
    return [table, "", f"{len(model.layers)} layers, {model.count_params():,} weights"]


def _shape(output):
    return "several" if isinstance(output, list) else " x ".join(str(side or "any") for side in output.shape[1:])
