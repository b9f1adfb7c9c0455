"""What the folders in a folder of images mean: splits, classes, or neither."""

import itertools
import re
from dataclasses import dataclass, field

from cifar_keras.config import ConfigError
from cifar_keras.utils.text import shortened

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train|training|trn",
    "val": "val|valid|validation|dev|development",
    "test": "test|testing|tst|eval|evaluation",
}
AROUND = "seg|the|data|images?|imgs?|pics?|pictures?|photos?|set|split|samples?|folder|dir"  # `seg_train`, `TestSet`
UNLABELLED = re.compile(rf"(?:(?:{AROUND})_?)*(?:pred|predict|predictions?|unlabell?ed)(?:_?(?:{AROUND}))*")
ALIKE = 0.5  # share of subfolder names that two folders have in common, from which on they look like splits


@dataclass(frozen=True)
class Layout:
    """How paths below a folder are read.

    Attributes:
        splits: the split of each top folder; empty where the top folders are classes.
        doubled: top folders that hold only a folder of the same split, as in `seg_train/seg_train/<class>`.
        unlabelled: top folders whose images have no class; they belong to no split.
    """

    splits: dict[str, str] = field(default_factory=dict)
    doubled: frozenset = frozenset()
    unlabelled: tuple[str, ...] = ()

    def split_and_class(self, above: tuple[str, ...]) -> tuple[str, str]:
        """The split and the class that the folders `above` an image, from the top, name; '' for none."""
        if not self.splits or not above:
            return "", "/".join(above)
        top, *below = above
        return self.splits.get(top, top), "/".join(below[top in self.doubled :])

    @property
    def assumed(self):
        """Which folder is which split, in a sentence; None where the folders are called train, val and test."""
        plain = all(top == split for top, split in self.splits.items()) and not self.doubled
        if plain and not self.unlabelled:
            return None
        order = sorted(self.splits.items(), key=lambda pair: SPLITS.index(pair[1]))
        parts = [f"{f'{top}/{top}' if top in self.doubled else top} is {split}" for top, split in order]
        parts += [f"{top} is left out, as its images have no class" for top in self.unlabelled]
        return f"folders: {', '.join(parts)}"


def split_of(name):
    """The split that a folder's name is a spelling of (`Training`, `seg_train`, `test-set`, `valid`), or None."""
    plain = _plain(name)
    for split, words in SPLIT_NAMES.items():
        if re.fullmatch(rf"(?:(?:{AROUND})_?)*(?:{words})(?:_?(?:{AROUND}))*_?\d*", plain):
            return split
    return None


def _plain(name):
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def of(root, folders) -> Layout:
    """Finds out which folders are splits.

    Args:
        root: the folder, for messages.
        folders: those that directly hold images, each as a tuple of names from the top.
    Returns: `Layout`.
    Raises: ConfigError where folders look like splits but can't be used as such.
    """
    tops = sorted({folder[0] for folder in folders if folder})
    below = {top: {folder[1:] for folder in folders if folder[:1] == (top,)} for top in tops}
    named = {top: split for top in tops if (split := split_of(top))}
    if not _splits_stand_on_top(below, named):
        _check_classes(root, folders, below, named)
        return Layout()
    for split in SPLITS:
        if len(same := [top for top in tops if named.get(top) == split]) > 1:
            raise ConfigError(
                f"{root} must hold one folder for {split}. Received: {' and '.join(same)}. "
                "Merge them, or move one elsewhere."
            )
    if "train" not in named.values():
        raise ConfigError(
            f"{root} must hold a folder of training images, train. Received: {', '.join(tops)}. Add it; or give the "
            "inner folder, if its images are to be split."
        )
    doubled = frozenset(top for top, split in named.items() if _is_doubled(below[top], split))
    return Layout(named, doubled, tuple(top for top in tops if top not in named and UNLABELLED.fullmatch(_plain(top))))


def _splits_stand_on_top(below, named):
    """Whether the top folders are splits; among vehicles, train may be a class, even with kinds of trains in it."""
    nested = {top for top in below if any(below[top])}
    if "train" in nested:
        return True
    others = [top for top in below if top not in named and not UNLABELLED.fullmatch(_plain(top))]
    trains = [top for top in nested if named.get(top) == "train"]
    if trains:
        return not others or len(set(named.values())) > 1
    return bool(named) and not others and nested == set(below)


def _is_doubled(folders, split):
    """Whether a split's folder holds only another one of that split."""
    names = {folder[0] for folder in folders if folder}
    return () not in folders and len(names) == 1 and split_of(*names) == split and any(len(f) > 1 for f in folders)


def _check_classes(root, folders, below, named):
    """Raises ConfigError where folders that are used as classes look like splits."""
    if len(below) == 1 and () not in folders:
        _check_inside(root, *below.items())
    flat = [top for top in named if not any(below[top])]
    if len({named[top] for top in flat}) > 1 and "train" in {named[top] for top in flat}:
        raise ConfigError(
            f"{root} needs at least two classes to train. Received: {flat}, which are names of splits and hold images "
            "directly. Expected: train/<class>/*.png|jpg, with or without val/ and test/, or <class>/*.png|jpg."
        )
    names = {top: {folder[0].casefold() for folder in inner if folder} for top, inner in below.items() if any(inner)}
    found = {split for inner in names.values() for split in map(split_of, inner)}
    if len(found) > 1 and None not in found:
        top = min(names)
        raise ConfigError(
            f"{root} has its splits inside of its classes, as in {top}/{min(names[top])}. Expected: train/<class>/*, "
            "with or without val/ and test/. Move the splits to the top."
        )
    numbered = len({re.sub(r"\d+", "", top) for top in names}) == 1  # fold1, fold2, ...
    for one, other in itertools.combinations(sorted(names), 2):
        if (len(below) <= 3 or numbered) and _alike(names[one], names[other]):
            shared = sorted(names[one] & names[other])
            raise ConfigError(
                f"The folders {', '.join(sorted(below)[:5])} in {root} look like splits, as the same classes lie in "
                f"several of them ({shortened(shared, 3)}). Call the splits train, val and test. If they are classes, "
                f"such as '{one}/{shared[0]}', move these to the top under a name of their own: '{one}-{shared[0]}'."
            )


def _alike(one, other):
    """Whether two sets of names are the same, or nearly; a single name, as in `<class>/images`, does not count."""
    together = one | other
    return len(together) > 1 and len(one & other) >= ALIKE * len(together)


def _check_inside(root, only):
    """Refuses a folder around the splits, whose paths would become classes."""
    top, inner = only
    if of(root / top, inner).splits:
        raise ConfigError(
            f"{root} must hold train/<class>/* or <class>/* itself. Received: one folder with the splits in it. "
            f"Give the path of that one: {root / top}."
        )
