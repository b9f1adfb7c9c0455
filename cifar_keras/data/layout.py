"""What the folders of a folder of images mean: splits, classes, or something that must not be taken for either."""

import itertools
import re
from dataclasses import dataclass, field

from cifar_keras.config import ConfigError

SPLITS = ("train", "val", "test")
WORDS = {
    "train": "train|training|trn",
    "val": "val|valid|validation|dev|development",
    "test": "test|testing|tst|eval|evaluation",
}
AROUND = "seg|the|data|images?|imgs?|pics?|pictures?|photos?|set|split|samples?|folder|dir"  # `seg_train`, `TestSet`
UNLABELLED = re.compile(rf"(?:(?:{AROUND})_?)*(?:pred|predict|predictions?|unlabell?ed)(?:_?(?:{AROUND}))*")
ALIKE = 0.5  # share of the names of two folders' subfolders that both have, from which on the two look like splits


@dataclass(frozen=True)
class Layout:
    """How paths below a folder are read.

    Attributes:
        splits: which split a top folder is; empty where classes stand on top.
        doubled: top folders that hold nothing but a folder of their own split, as in `seg_train/seg_train/<class>`.
        unlabelled: top folders whose images have no class: they belong to no split.
    """

    splits: dict[str, str] = field(default_factory=dict)
    doubled: frozenset = frozenset()
    unlabelled: tuple[str, ...] = ()

    def split_and_class(self, above):
        """Of the folders above an image, which split and which class they name; '' for none.

        Args:
            above: their names, from the top.
        """
        if not self.splits or not above:
            return "", "/".join(above)
        top, *below = above
        return self.splits.get(top, top), "/".join(below[top in self.doubled :])

    @property
    def assumed(self):
        """What was taken for what, in a sentence; None where the folders are called train, val and test."""
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
    for split, words in WORDS.items():
        if re.fullmatch(rf"(?:(?:{AROUND})_?)*(?:{words})(?:_?(?:{AROUND}))*_?\d*", plain):
            return split
    return None


def _plain(name):
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def of(root, places):
    """Finds out which folders are splits.

    Args:
        root: the folder, for messages.
        places: the folders that directly hold images, each as a tuple of names from the top.
    Returns: `Layout`.
    Raises: ConfigError where the folders look like splits and can't be taken for some.
    """
    tops = sorted({place[0] for place in places if place})
    below = {top: {place[1:] for place in places if place[:1] == (top,)} for top in tops}
    named = {top: split for top in tops if (split := split_of(top))}
    if not _splits_stand_on_top(below, named):
        _check_classes(root, places, below, named)
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


def _nested(places):
    """Whether images lie in a folder below."""
    return any(places)


def _splits_stand_on_top(below, named):
    """Whether the folders' names are meant as splits; vehicles may have a class of trains, even of several kinds."""
    nested = {top for top in below if _nested(below[top])}
    if "train" in nested:
        return True
    others = [top for top in below if top not in named and not UNLABELLED.fullmatch(_plain(top))]
    trains = [top for top in nested if named.get(top) == "train"]
    if trains:
        return not others or len(set(named.values())) > 1
    return bool(named) and not others and nested == set(below)


def _is_doubled(places, split):
    """Whether a split's folder holds nothing but another one of that split."""
    names = {place[0] for place in places if place}
    return () not in places and len(names) == 1 and split_of(*names) == split and any(len(p) > 1 for p in places)


def _check_classes(root, places, below, named):
    """Raises ConfigError where folders that are to be classes look like splits."""
    if len(below) == 1 and () not in places:
        _check_inside(root, *below.items())
    flat = [top for top in named if not _nested(below[top])]
    if len({named[top] for top in flat}) > 1 and "train" in {named[top] for top in flat}:
        raise ConfigError(
            f"{root} needs at least two classes to train. Received: {flat}, which are names of splits and hold images "
            "directly. Expected: train/<class>/*.png|jpg, with or without val/ and test/, or <class>/*.png|jpg."
        )
    names = {top: {place[0].casefold() for place in inner if place} for top, inner in below.items() if _nested(inner)}
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
            raise ConfigError(_look_like_splits(root, below, one, sorted(names[one] & names[other])))


def _alike(one, other):
    """Whether two sets of names are the same, or nearly; one name for all, as in `<class>/images`, is no set."""
    together = one | other
    return len(together) > 1 and len(one & other) >= ALIKE * len(together)


def _look_like_splits(root, tops, example, shared):
    some = ", ".join(shared[:3]) + ", ..." * (len(shared) > 3)
    return (
        f"The folders {', '.join(sorted(tops)[:5])} in {root} look like splits, as the same classes lie in several of "
        f"them ({some}). Call the splits train, val and test. If they are classes, such as '{example}/{shared[0]}', "
        f"put these on top under a name of their own: '{example}-{shared[0]}'."
    )


def _check_inside(root, only):
    """Refuses a folder around the splits: their paths would become classes."""
    top, inner = only
    if of(root / top, inner).splits:
        raise ConfigError(
            f"{root} must hold train/<class>/* or <class>/* itself. Received: one folder with the splits in it. "
            f"Give the path of that one: {root / top}."
        )
