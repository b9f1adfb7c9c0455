"""Names of classes: as they are listed, as folders carry them, and which output of a model is which."""

import codecs
import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_keras.config import ConfigError
from cifar_keras.utils.text import shortened

BESIDE = ("labels.txt", "class_names.txt", "classes.txt")  # files of names that often lie beside a model
MAX_NAMES_BYTES = 2**20  # of a file with names
FAR = 0.1  # how much more accurate another order must be to be mentioned
MAX_CHANCE = 0.01  # the highest probability of such a difference by chance, over all orders


def listed(given):
    """Class names as the user states them, in the order of a model's outputs.

    Args:
        given: a sequence of names; or text, as on the command line: names separated by commas, or the path of a UTF-8
            file with one name per line, also in Teachable Machine's form, `0 name`.
    Returns: tuple of str.
    Raises: ConfigError for empty or equal names, and for a file that can't be read.
    """
    if not isinstance(given, str | os.PathLike):
        names = tuple(given)
    elif os.path.isfile(given):
        names = _without_numbers(_lines(Path(given)))
    elif "," in str(given):
        names = tuple(name.strip() for name in str(given).split(","))
    else:
        raise ConfigError(
            "`--class-names` must be names separated by commas, or a file with one name per line. "
            f"Received: {str(given)!r}, which has no comma and is no file."
        )
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"`--class-names` must name every class. Received: {name!r} as name {place + 1}.")
        if name in names[:place]:
            raise ConfigError(f"`--class-names` must name every class differently. Received: {name!r} twice.")
    return names


def _lines(path):
    """The lines of a file of names, without empty ones at its end."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_NAMES_BYTES + 1)
        if len(content) > MAX_NAMES_BYTES:
            raise ConfigError(
                f"{path} must be a file of class names, at most {MAX_NAMES_BYTES:,} bytes. Received: more."
            )
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Notepad's "Unicode"
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be a text file in UTF-8, one class name per line. Received: {error}.") from None
    return [line.strip() for line in text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def _without_numbers(lines):
    """Names by their numbers, where each line is `number name` and the numbers are 0 and up, each once."""
    found = [re.fullmatch(r"([0-9]{1,6})\s+(\S.*)", line) for line in lines]
    if not all(found) or sorted(int(one[1]) for one in found) != list(range(len(lines))):
        return tuple(lines)
    return tuple(one[2] for one in sorted(found, key=lambda one: int(one[1])))


def folder_of(path):
    """The absolute folder of a file as its path names it. Links are followed only where `..` steps out of one.

    In a store of links (DVC, git-annex) the target of a link has another name and lies in another folder.
    """
    parts = (_here() / path).parent.parts
    if ".." not in parts:
        return Path(*parts)
    after = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:after])), *parts[after:])


def _here():
    """The working folder under the name by which the shell entered it; it may be a link's."""
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return Path(named)
    except OSError:
        pass
    return Path.cwd()


def label_of(path, names):
    """The class that a file's folder is named after, else the folder's name, which is then not in `names`.

    Args:
        path: of the file.
        names: of the classes; `animal/cat` is a folder in a folder.
    """
    parts = folder_of(path).parts[1:]
    for depth in range(1 + max(name.count("/") for name in names), 0, -1):
        if (name := "/".join(parts[-depth:])) in names:
            return name
    return parts[-1] if parts else ""


def better_order(confusion, *, tries=1):
    """Another order of a model's outputs that fits far better than the assumed one.

    It must be right on `FAR` more of the images, and significantly so: by McNemar's exact test, one-sided, whose p is
    multiplied by the number of possible orders, as the best of them was picked.

    Args:
        confusion: int `(classes, classes)`, true classes as rows, outputs as columns.
        tries: how many confusion matrices are compared.
    Returns: int `(classes,)`, the class of each output; None where no order is far better.
    """
    from scipy import optimize, stats

    classes = len(confusion)
    kept = np.eye(classes, dtype=int)  # breaks ties: what need not move stays
    rows, columns = optimize.linear_sum_assignment(confusion * (classes + 1) + kept, maximize=True)
    order = rows[np.argsort(columns)]
    moved = np.flatnonzero(order != np.arange(classes))
    before, after = int(confusion[moved, moved].sum()), int(confusion[order[moved], moved].sum())
    if not confusion.sum() or after - before < FAR * confusion.sum():
        return None
    log_p = stats.binom.logsf(after - 1, before + after, 0.5)
    if not math.isfinite(log_p):  # beyond float64: Hoeffding's bound of the same
        log_p = -((after - before) ** 2) / (2 * (before + after))
    return order if log_p + math.lgamma(classes + 1) + math.log(tries) < math.log(MAX_CHANCE) else None


def other_order(confusion, class_names):
    """A sentence on the order of outputs that `better_order` finds, for an assumed one; empty where it finds none."""
    if (order := better_order(confusion)) is None:
        return ""
    right, fits = np.trace(confusion), confusion[order, np.arange(len(order))].sum()
    names = [class_names[label] for label in order]
    stated = shlex.quote(",".join(names))
    if any("," in name for name in names):
        stated = f"FILE with the lines {', '.join(map(repr, names))}"
    return (
        f"with its outputs in another order it is right on {fits / confusion.sum():.2%} of these images, not "
        f"{right / confusion.sum():.2%}. That order was chosen after the fact, to fit them. Check it, then state it: "
        f"--class-names {stated}"
    )


@dataclass(frozen=True)
class Order:
    """Which output of a model stands for which class of a dataset.

    Attributes:
        outputs: int `(outputs,)`: the outputs of the dataset's classes in the dataset's order, then the other outputs.
        others: the names of the other outputs.
        assumed: whether the model names no classes, so that the order is an assumption.
        note: what the user must know, a sentence that continues the model's name; empty where there is nothing.
    """

    outputs: np.ndarray
    others: tuple[str, ...] = ()
    assumed: bool = False
    note: str = ""


def order_of(classifier, class_names, *, exact=False, order="the dataset's order"):
    """The `Order` of a classifier's outputs for a dataset's classes.

    Args:
        classifier: `inference.Classifier`.
        class_names: of the dataset.
        exact: whether outputs for other classes are refused too.
        order: what the order of `class_names` is, for the note on an assumption.
    Raises: ConfigError where the outputs can't be these classes.
    """
    count = len(classifier.class_names)
    names = list(classifier.class_names) if "class_names" in classifier.provenance else None
    if names is None and count == len(class_names):
        outputs = shortened([f"output {place} = {name}" for place, name in enumerate(class_names)], 20)
        note = f"names no classes; assumed: {outputs}: {order}; --class-names states another"
        return Order(np.arange(count), assumed=True, note=note)
    if names is None or not {*class_names} <= {*names} or (exact and count > len(class_names)):
        raise _other_classes(classifier, names, class_names, exact)
    found = [names.index(name) for name in class_names]
    rest = [place for place in range(count) if place not in found]
    others, notes = tuple(names[place] for place in rest), []
    if found != sorted(found):
        notes.append("has the classes in another order; they are matched by name")
    if others:
        more = f"knows {len(others)} more class{'es' * (len(others) > 1)} ({shortened(others)})"
        notes.append(f"{more}; an image assigned to one counts as wrong")
    return Order(np.array(found + rest), others, note="; ".join(notes))


def _other_classes(classifier, names, class_names, exact):
    received, advice = f"{len(classifier.class_names)} outputs", ""
    if names is None:
        received, advice = f"{received} without names", " Name them with `--class-names`."
    else:
        received += f" ({shortened(names)})"
        if missing := [name for name in class_names if name not in names]:
            received += f"; {shortened(missing)} {'is' if len(missing) == 1 else 'are'} not among them"
    if names and {*names} < {*class_names} and not exact:
        advice = f" To use its own classes alone: --classes {','.join(names)}."
    return ConfigError(
        f"{classifier.network.path} must have one output for each of the {len(class_names)} classes "
        f"of the images ({shortened(class_names) or 'none'}). Received: {received}.{advice}"
    )
