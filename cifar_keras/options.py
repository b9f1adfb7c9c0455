"""The options of an experiment: each field of `Options` is one `--option`."""

import argparse
import dataclasses
from dataclasses import dataclass, field

from cifar_keras.config import BUDGETS
from cifar_keras.utils.paths import PROJECT

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


def positive(text):
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, received {text!r}")
    return int(text)


def rate(text):
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return value


def seeds(text):
    """`3` or `0-4`: a range of whole numbers."""
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"expected a seed such as 0, or a range such as 0-4, received {text!r}")
    if int(last or first) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected seeds below 2**31, received {text!r}")
    return range(int(first), int(last or first) + 1)


def _option(default, text, **parsing):
    return field(default=default, metadata={"help": text, **parsing})


@dataclass(frozen=True)
class Options:
    """The options of every experiment file; each field is one `--option`."""

    variant: str | None = _option(None, "recipe, or all; default best where there is one", metavar="NAME")
    budget: str = _option(
        "full", "full is the study, quick about 5 minutes, demo the embedded data", choices=tuple(BUDGETS)
    )
    dataset: str | None = _option(
        None,
        "cifar10, cifar100, shapes, shapes100, or the path of an image folder (default cifar10; demo: shapes)",
        metavar="NAME|DIR",
    )
    classes: str | None = _option(
        None, "some of its classes by name, separated by commas (default: all)", metavar="NAME,NAME"
    )
    data_dir: str | None = _option(None, "where archives and weights are looked for first", metavar="DIR")
    image_size: int | None = _option(None, "side of a folder's or of shapes' images", type=positive, metavar="PIXELS")
    weights: str | None = _option(
        None,
        "backbone's start: imagenet, none, or a file (default: what the model calls for)",
        metavar="imagenet|none|PATH",
    )
    epochs: int | None = _option(None, "over all stages, shared as the recipe does", type=positive, metavar="N")
    batch_size: int | None = _option(
        None, "images a step; learning rates follow its square root", type=positive, metavar="N"
    )
    learning_rate: float | None = _option(
        None, "of the last stage; the other stages' follow", type=rate, metavar="RATE"
    )
    views: int | None = _option(
        None, "views of an image that a frozen backbone sees (default: the recipe's)", type=positive, metavar="N"
    )
    class_weights: str | None = _option(
        None, "balanced: a rare class counts as much in the loss as a frequent one", choices=("balanced",)
    )
    on_the_fly: bool = _option(False, "send every epoch through a frozen backbone instead of storing its features")
    skip_unreadable: bool = _option(False, "leave out damaged images of a folder; a record lists them")
    seed: range = _option(range(1), "0, or 0-4 for five runs", type=seeds, metavar="0|0-4")
    limit: int | None = _option(None, "most images of each split", type=positive, metavar="N")
    precision: str = _option("auto", "auto: 16 bit on GPUs that gain, else float32", choices=PRECISIONS)
    deterministic: bool = _option(False, "reproducible kernels, slower")
    track: str | None = _option(None, "also write TensorBoard files to results/tensorboard/", choices=("tensorboard",))
    root: str = _option(str(PROJECT), "where model_cp/, Models/ and results/ go (default: the project)", metavar="DIR")
    fresh: bool = _option(False, "start over, whatever has been done")
    dry_run: bool = _option(False, "print configuration, parameters, splits and paths; train nothing")
    tables: bool = _option(False, "train nothing: only write the experiment's own table and figure anew")
    verbose: bool = _option(False, "show TensorFlow's messages, and where an unexpected error came from")

    def changes(self):
        """What deviates from the recipe, by option name: it becomes part of every file name."""
        names = (
            *("epochs", "batch_size", "learning_rate", "class_weights", "views", "on_the_fly"),
            *("limit", "image_size", "precision", "deterministic"),
        )
        plain = {f.name: f.default for f in dataclasses.fields(self)}
        return {name.replace("_", "-"): getattr(self, name) for name in names if getattr(self, name) != plain[name]}


def add_options(parser, *, only=None):
    """Adds the fields of `Options` to an argparse parser."""
    for option in dataclasses.fields(Options):
        if only is None or option.name in only:
            flag = f"--{option.name.replace('_', '-')}"
            kind = {"action": "store_true"} if option.default is False else {"default": option.default}
            parser.add_argument(flag, **kind, **option.metadata)
