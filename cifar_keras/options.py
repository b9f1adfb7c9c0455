"""The options of an experiment: each field of `Options` is one `--option`."""

import argparse
import dataclasses
from dataclasses import dataclass, field

from cifar_keras.config import BUDGETS
from cifar_keras.utils.paths import PROJECT

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


def positive(text):
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, received {text!r}")
    return int(text)


def rate(text):
    """Parses a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return value


def seeds(text):
    """Parses `3` or `0-4` into a range of whole numbers."""
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

    variant: str | None = _option(
        None, "the recipe, or all of them (default: best if there is one, else all)", metavar="NAME"
    )
    budget: str = _option(
        "full", "full: the study itself; quick: about 5 minutes; demo: the embedded images", choices=tuple(BUDGETS)
    )
    dataset: str | None = _option(
        None,
        "cifar10, cifar100, shapes, shapes100, or the path of an image folder (default cifar10; demo: shapes)",
        metavar="NAME|DIR",
    )
    classes: str | None = _option(None, "use only these classes of the dataset (default: all)", metavar="NAME,NAME")
    data_dir: str | None = _option(None, "the first folder to search for archives and weights", metavar="DIR")
    image_size: int | None = _option(
        None, "side of the images, for a folder or shapes", type=positive, metavar="PIXELS"
    )
    weights: str | None = _option(
        None,
        "the backbone's initial weights: imagenet, none, or a file (default: the model's)",
        metavar="imagenet|none|PATH",
    )
    backbone: str | None = _option(
        None, "the network in the place of ResNet50, as efficientnet_lite0, in experiments that vary it", metavar="NAME"
    )
    pixels: int | None = _option(
        None, "side at which the backbone sees the images (default: the model's)", type=positive, metavar="N"
    )
    epochs: int | None = _option(None, "total over all stages, divided as in the recipe", type=positive, metavar="N")
    batch_size: int | None = _option(
        None, "images per step; learning rates scale with its square root", type=positive, metavar="N"
    )
    learning_rate: float | None = _option(
        None, "of the last stage; those of the other stages scale with it", type=rate, metavar="RATE"
    )
    views: int | None = _option(
        None, "augmented views per image for a frozen backbone (default: the recipe's)", type=positive, metavar="N"
    )
    class_weights: str | None = _option(
        None, "balanced: each class counts the same in the loss, however rare", choices=("balanced",)
    )
    on_the_fly: bool = _option(False, "run a frozen backbone in every epoch instead of storing its features")
    skip_unreadable: bool = _option(False, "leave out a folder's damaged images; the record lists them")
    seed: range = _option(range(1), "0, or 0-4 for five runs", type=seeds, metavar="0|0-4")
    limit: int | None = _option(None, "at most this many images per split", type=positive, metavar="N")
    precision: str = _option("auto", "auto: 16 bit on GPUs, and CPUs with AMX, that gain from it", choices=PRECISIONS)
    deterministic: bool = _option(False, "reproducible kernels, slower")
    track: str | None = _option(None, "also write TensorBoard files to results/tensorboard/", choices=("tensorboard",))
    root: str = _option(
        str(PROJECT),
        "where model_cp/, Models/ and results/ go (default: the checkout, or the current folder)",
        metavar="DIR",
    )
    fresh: bool = _option(False, "start over and ignore earlier work")
    dry_run: bool = _option(False, "print configuration, parameters, splits and paths; train nothing")
    tables: bool = _option(False, "train nothing: only rewrite the experiment's own table and figure")
    verbose: bool = _option(False, "show TensorFlow's messages, and the traceback of an unexpected error")

    def loading(self):
        """The options of `data.load`, without the dataset's name and the limits, by name."""
        return {name: getattr(self, name) for name in ("data_dir", "image_size", "classes", "skip_unreadable")}

    def changes(self):
        """The options that change the recipe, by name; they become part of every file name."""
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
