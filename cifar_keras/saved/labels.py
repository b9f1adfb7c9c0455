"""Names of classes: as they are listed, as folders carry them, and which output of a model is which."""

import codecs
import math
import os
import re
from pathlib import Path

import numpy as np

from cifar_keras.config import ConfigError

BESIDE = ("labels.txt", "class_names.txt", "classes.txt")  # files of names that often lie beside a model
MAX_BYTES = 2**20  # of a file with names
FAR = 0.1  # how much more accurate another order must be before it is worth a word
DOUBT = 0.01  # how probable such a difference may be by chance alone, all orders being tried


def listed(given):
    """Class names as somebody states them, in the order of a model's outputs.

    Args:
        given: a sequence of names; or text, as on the command line: names separated by commas, or the path of a UTF-8
            file with one name a line, also as Teachable Machine writes it, `0 name`.
    Returns: tuple of str.
    Raises: ConfigError for names that are empty or equal, and for a file that can't be read.
    """
    if not isinstance(given, str | os.PathLike):
        names = tuple(given)
    elif os.path.isfile(given):
        names = _without_numbers(_lines(Path(given)))
    elif "," in str(given):
        names = tuple(name.strip() for name in str(given).split(","))
    else:
        raise ConfigError(
            "`--class-names` must be names separated by commas, or a file with one name a line. "
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
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} must be a file of class names, at most {MAX_BYTES:,} bytes. Received: more.")
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Notepad's "Unicode"
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be a text file in UTF-8, one class name a line. Received: {error}.") from None
    return [line.strip() for line in text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def _without_numbers(lines):
    """Names by their numbers, where each line is `number name` and the numbers are 0 and up, each once."""
    found = [re.fullmatch(r"([0-9]{1,6})\s+(\S.*)", line) for line in lines]
    if not all(found) or sorted(int(one[1]) for one in found) != list(range(len(lines))):
        return tuple(lines)
    return tuple(one[2] for one in sorted(found, key=lambda one: int(one[1])))


def folder_of(path):
    """The absolute folder of a file as its path names it. Links are not followed, except where `..` steps out of one.

    In a store of links (DVC, git-annex) what a link points to has another name and lies in another folder.
    """
    parts = (_here() / path).parent.parts
    if ".." not in parts:
        return Path(*parts)
    after = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:after])), *parts[after:])


def _here():
    """The working folder by the name under which the shell entered it, which may be a link's."""
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return Path(named)
    except OSError:
        pass
    return Path.cwd()


def label_of(path, names):
    """The class that the folder of a file names; where it names none, the folder's name, which is not in `names`.

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
    """Another order of a model's outputs that fits far better than the one assumed.

    Far better is at least `FAR`, and beyond doubt: an exact paired test (McNemar's, one-sided), whose p is multiplied
    by the number of orders that there are, since the best of them all was picked.

    Args:
        confusion: int `(classes, classes)`, true classes as rows, outputs as columns.
        tries: how many confusion matrices are looked at.
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
    return order if log_p + math.lgamma(classes + 1) + math.log(tries) < math.log(DOUBT) else None
