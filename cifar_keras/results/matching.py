"""Groups of several results files: which of them are compared, and whether chance explains their difference."""

import dataclasses
import string
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from cifar_keras import metrics, results
from cifar_keras.config import ConfigError
from cifar_keras.results.groups import CONFIGURATION, Group, as_text, grouped, read_csv, recipe

SURROUNDINGS = ("git_commit", "device", "backend", "keras", "tensorflow", "python")
ABSENT = "absent"
LEVEL = 0.05  # of significance for McNemar's test; intervals cover 95%


@dataclass(frozen=True, eq=False)
class Pair:
    """Two groups and their difference, `b` minus `a`.

    Attributes:
        a: the group of the first file.
        b: the group of the later one.
        difference: of the mean accuracies, a `metrics.Estimate`.
        tests: `metrics.McNemar` by seed, for seeds with stored predictions of both sides on the same images.
        notes: sentences on the data that the reader must know.
    """

    a: Group
    b: Group
    difference: metrics.Estimate
    tests: dict
    notes: tuple

    @property
    def test(self):
        """The test between one seed and one seed; None otherwise."""
        return next(iter(self.tests.values()), None) if one_each(self.a, self.b) else None

    @property
    def distinguishable(self):
        """Whether the difference is unlikely to be due to chance."""
        return distinguishable(self.difference, self.test)

    @property
    def verdict(self):
        """'distinguishable' or 'not distinguishable', with a note if the data differ, which may be the only reason."""
        verdict = "distinguishable" if self.distinguishable else "not distinguishable"
        return verdict if same_data(self.a, self.b) else f"{verdict}, on other data"

    @property
    def seconds_ratio(self):
        """Training time of `b` divided by that of `a`; None if one is unknown."""
        then, now = self.a.average("training_seconds"), self.b.average("training_seconds")
        return now / then if then and now is not None else None

    @property
    def more_parameters(self):
        """How many more parameters `b` has; None if one is unknown."""
        then, now = self.a.average("parameters"), self.b.average("parameters")
        return None if None in (then, now) else now - then


def distinguishable(difference, test=None):
    """Whether the interval excludes zero and McNemar's test, if it applies, agrees.

    The test does not apply to several seeds: each of its p-values is about two models, the interval about all of them.
    """
    return difference.excludes_zero and (test is None or test.p < LEVEL)


def one_each(a, b):
    """Whether both groups hold a single seed."""
    return len(a.runs) == len(b.runs) == 1


def same_data(a, b):
    """Whether both groups were measured on the same number of images of the same data."""
    return a.test_n == b.test_n and a.seen("fingerprint") == b.seen("fingerprint")


def matched(first, later):
    """Finds the counterpart in another file of each group of one file.

    If both sides have a single group under one key, these two are matched, whatever their recipes. Otherwise groups
    with equal overrides are matched, the newest recipe of each side, and then groups with equal recipes. What is left
    is matched in the same way with groups of another precision, which `--precision auto` chooses for the machine. Files
    from before there was a choice of backbones are matched without it.

    Returns: `(pairs, only_first, only_later)`: a list of two-tuples of groups, and two lists of groups.
    """
    unknown = ("backbone",) if None in [group.first.get("backbone") for group in (*first, *later)] else ()

    def key(group):
        return group.key_without(*unknown)

    pairs = _by_key(first, later, key)
    first, later = _left(first, pairs), _left(later, pairs)
    keys = set(map(key, first)) & set(map(key, later))  # these were compared, and did not match
    others = [[group for group in side if key(group) not in keys] for side in (first, later)]
    pairs += _by_key(*others, lambda group: group.key_without("precision", *unknown))
    return pairs, _left(first, pairs), _left(later, pairs)


def _left(groups, pairs):
    """The groups that are in no pair."""
    taken = list(chain(*pairs))
    return [group for group in groups if group not in taken]


def _by_key(first, later, key):
    """Pairs with an equal key; see `matched`."""
    pairs = []
    for value in dict.fromkeys(map(key, first)):
        here, there = ([group for group in side if key(group) == value] for side in (first, later))
        if len(here) == len(there) == 1:
            pairs.append((here[0], there[0]))
            continue
        for trait in (lambda group: group.overrides, lambda group: recipe(group.first)):
            pairs += (found := _by_trait(here, there, trait))
            here, there = _left(here, found), _left(there, found)
    return pairs


def _by_trait(here, there, trait):
    """Pairs with an equal trait, the newest of each side."""
    ours, theirs = ({trait(group): group for group in sorted(side, key=lambda g: g.newest)} for side in (here, there))
    return [(group, theirs[value]) for value, group in ours.items() if value in theirs]


def compared(a, b):
    """The `Pair` of two groups, compared by image if the predictions of both sides are stored."""
    notes, outcomes = [], {}
    if a.seen("fingerprint") != b.seen("fingerprint"):
        notes.append(f"different data under one label: fingerprint {a.seen('fingerprint')} -> {b.seen('fingerprint')}")
    if a.test_n != b.test_n:
        notes.append(f"different numbers of test images: {a.test_n:,} -> {b.test_n:,}")
    if same_data(a, b):
        outcomes, notes = _by_image(a, b)
    both = next(iter(outcomes.values()), None) if one_each(a, b) else None
    tests = {seed: metrics.mcnemar(*outcome) for seed, outcome in outcomes.items()}
    return Pair(a, b, _difference(a, b, both), tests, tuple(notes))


def _by_image(a, b):
    """The images that each side classifies correctly, two bool arrays by seed; and notes on why they are unknown."""
    outcomes, notes = {}, []
    for run_a, run_b in _shared(a, b):
        try:
            known = _correct(a.folder, run_a), _correct(b.folder, run_b)
            if all(known):
                outcomes[run_b["seed"]] = _on_same_images(*known)
            elif one_each(a, b):  # several seeds are compared by their means
                lacking = " and the ".join(side for side, one in zip(("first", "later"), known, strict=True) if not one)
                notes.append(f"not compared by image: no predictions are stored of the {lacking} file's run")
        except ConfigError as error:
            notes.append(f"not compared by image: {error}")
    return outcomes, notes


def _shared(a, b):
    """Pairs of runs to compare by image: the only ones, or those of the seeds that both sides have."""
    if one_each(a, b):
        return [(a.runs[0], b.runs[0])]
    theirs = {run["seed"]: run for run in b.runs}
    return [(run, theirs[run["seed"]]) for run in a.runs if run["seed"] in theirs]


def _difference(a, b, both):
    """The difference of two groups; `both` holds the correctly classified images of one seed each, or is None."""
    if len({*a.accuracies}) > 1 or len({*b.accuracies}) > 1:
        test_sets = None if same_data(a, b) else (a.test_n, b.test_n)
        return metrics.difference_seeds(a.accuracies, b.accuracies, test_sets=test_sets)
    if both is None:
        return metrics.difference_unpaired(a.accuracies[0], a.test_n, b.accuracies[0], b.test_n)
    # Predictions are stored in 16 bits, so a few of them tie. The recorded accuracies are the exact ones.
    return dataclasses.replace(metrics.difference_paired(*both), value=b.accuracies[0] - a.accuracies[0])


def _on_same_images(one, other):
    """The correct images of two results of `_correct`, whose labels must be equal."""
    (labels, correct), (other_labels, other_correct) = one, other
    if not np.array_equal(labels, other_labels):
        raise ConfigError("the stored labels differ, so these are other images.")
    return correct, other_correct


def _correct(folder, run):
    """`(labels, whether each prediction is correct)` of a run; None without stored predictions."""
    stored = results.read_predictions(folder, run["run_id"]) if folder else None
    if stored is None:
        return None
    labels, probabilities = stored
    correct = np.argmax(probabilities, axis=1) == labels
    ties = np.sum(np.sum(probabilities == probabilities.max(axis=1, keepdims=True), axis=1) > 1)
    if len(labels) != run["test_n"] or abs(correct.sum() - run["test_accuracy"] * run["test_n"]) > ties + 0.5:
        raise ConfigError(f"the stored predictions of {run['run_id']} do not give its recorded accuracy.")
    return labels, correct


def changes(a, b):
    """How two groups differ besides their results.

    Returns: list of `(name, then, now)` as text: the configuration's keys if both configurations are known, else the
        columns that describe one; then code and machine.
    """
    if a.config and b.config:
        then, now = flat(a.config), flat(b.config)
        named = [(name, then.get(name, ABSENT), now.get(name, ABSENT)) for name in sorted(then | now)]
    else:
        named = [(column, a.seen(column), b.seen(column)) for column in CONFIGURATION]
    named += [(column, a.seen(column), b.seen(column)) for column in SURROUNDINGS]
    return [(name, then, now) for name, then, now in named if then != now]


def flat(config):
    """A nested configuration as dotted name -> text, without seed and fingerprint, which have their own columns."""
    leaves = {}

    def walk(prefix, value):
        if not isinstance(value, dict | list):
            leaves[prefix] = as_text(value)
            return
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            walk(f"{prefix}.{name}" if prefix else str(name), inner)

    walk("", {name: value for name, value in config.items() if name not in ("seed", "fingerprint")})
    return leaves


@dataclass(frozen=True, eq=False)
class File:
    """One results.csv.

    Attributes:
        letter: its name in tables; the first file is A.
        path: as given.
        name: the file's name, or the path if another file has the same name.
        groups: list of `Group`.
    """

    letter: str
    path: Path
    name: str
    groups: list


def read(paths):
    """Reads results files, as a list of `File`.

    Raises: ConfigError for a file that is no results.csv, and for more files than there are letters.
    """
    if len(paths) > len(string.ascii_uppercase):
        raise ConfigError(f"Expected at most {len(string.ascii_uppercase)} files to compare. Received: {len(paths)}.")
    paths = [Path(path) for path in paths]
    names = Counter(path.name for path in paths)
    return [
        File(letter, path, path.name if names[path.name] == 1 else str(path), grouped(read_csv(path), path.parent))
        for letter, path in zip(string.ascii_uppercase, paths, strict=False)
    ]


def sections(files):
    """Compares each later file with the first.

    Yields: `(file, pairs, unmatched)`: the later `File`, list of `Pair`, and the groups without a counterpart, as
        `(file, groups)` for both files.
    """
    first, *later = files
    for file in later:
        found, only_first, only_later = matched(first.groups, file.groups)
        yield file, [compared(a, b) for a, b in found], ((first, only_first), (file, only_later))
