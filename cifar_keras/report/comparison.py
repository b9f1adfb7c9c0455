"""Results files side by side: what differs, by how much, at what cost, and whether chance would do as much."""

import csv
import dataclasses
import io
import json
import re
import string
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from tabulate import tabulate

from cifar_keras import evaluate, results
from cifar_keras.config import ConfigError

KEY = ("experiment", "variant", "dataset", "budget", "weights")  # rows are matched by these
CONFIGURATION = (  # the columns that describe it, where a record with the whole of it is missing
    *("model", "pixels", "epochs", "train_images", "precision", "deterministic", "batch_size", "overrides"),
)
SURROUNDINGS = ("git_commit", "device", "backend", "keras", "tensorflow", "python")
ABSENT, UNKNOWN = "absent", "unknown"
FIGURES = (  # of a group, in the CSV
    *("overrides", "accuracy", "low", "high", "interval", "sd", "seeds", "test_n", "training_seconds", "parameters"),
    *("fingerprint", "recorded"),
)
OUTCOME = (  # of a pair, in the CSV
    *("difference", "difference_low", "difference_high", "difference_interval", "distinguishable"),
    *("mcnemar_p", "right_in_a_alone", "right_in_b_alone", "mcnemar_p_by_seed"),
    *("training_seconds_ratio", "more_parameters", "changed", "notes"),
)
LEVEL = 0.05  # of McNemar's test, as of intervals that cover 95%
WIDTH = 118
FOOTNOTES = (
    "Intervals are 95%. With one seed (Wilson, Newcombe) they cover the draw of the test images, not that of the "
    "training seed: two seeds of one recipe may well be distinguishable. With several seeds (Student t, Welch t, "
    "pooled t, BCa) they cover the draw of the seeds, on this one test set; seeds that all gave one value count as "
    "one. BCa at ten seeds covers nearer 90%.",
    "Differences are the later file minus the first, in percentage points. Distinguishable: the interval of the "
    "difference excludes 0 and, with one seed each and predictions stored on the same images, McNemar's exact p is "
    "below 0.05. Of many comparisons between equals, one in twenty may pass.",
)


@dataclass(frozen=True, eq=False)
class Group:
    """Finished runs that differ in nothing but the seed.

    Attributes:
        runs: rows as `results.read_csv` returns them, the newest of each seed, by seed.
        folder: where their results.csv stands; predictions are looked for beside it.
    """

    runs: tuple
    folder: Path

    @property
    def key(self):
        """What rows are matched by."""
        return tuple(self.runs[0][column] for column in KEY)

    @property
    def overrides(self):
        """What the command line changed: '' for the plain recipe, None where it is unknown."""
        return self.runs[0]["overrides"]

    @property
    def config(self):
        """The configuration of the first seed; None where no record stands beside the file."""
        return self.runs[0]["config"]

    @property
    def newest(self):
        """When the newest of the runs was recorded."""
        return max(run["utc"] for run in self.runs)

    @property
    def accuracies(self):
        """Accuracy on test of every seed."""
        return [run["test_accuracy"] for run in self.runs]

    @property
    def test_n(self):
        """Images that each of them was measured on."""
        return self.runs[0]["test_n"]

    @cached_property
    def estimate(self):
        """The mean accuracy with its interval."""
        return evaluate.accuracy_interval(self.accuracies, self.test_n)

    @property
    def spread(self):
        """Standard deviation over seeds; None for one seed."""
        return stdev(self.accuracies) if len(self.runs) > 1 else None

    def average(self, column):
        """The mean of a column over the seeds that know it; None where none does."""
        known = [run[column] for run in self.runs if run.get(column) is not None]
        return mean(known) if known else None

    def seen(self, column):
        """What the runs have in a column, as text; all of it where they differ."""
        values = (run.get(column) for run in self.runs)
        return ", ".join(sorted({UNKNOWN if value is None else _text(value) or "none" for value in values}))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two groups and what tells them apart; differences are `b` minus `a`.

    Attributes:
        a: the group of the first file.
        b: the group of the later one.
        difference: of the mean accuracies, an `evaluate.Estimate`.
        tests: `evaluate.McNemar` by seed, where both sides' predictions on the same images are stored.
        notes: sentences on what the reader must know of the data.
    """

    a: Group
    b: Group
    difference: evaluate.Estimate
    tests: dict
    notes: tuple

    @property
    def test(self):
        """The one test there is between one seed and one seed; None otherwise."""
        return next(iter(self.tests.values()), None) if one_each(self.a, self.b) else None

    @property
    def distinguishable(self):
        """Whether the difference can be told from chance."""
        return distinguishable(self.difference, self.test)

    @property
    def same_data(self):
        """Whether both were measured on equally many images of equal data."""
        return self.a.test_n == self.b.test_n and self.a.seen("fingerprint") == self.b.seen("fingerprint")

    @property
    def seconds_ratio(self):
        """Training time of `b` over that of `a`; None where one is unknown."""
        then, now = self.a.average("training_seconds"), self.b.average("training_seconds")
        return now / then if then and now is not None else None

    @property
    def more_parameters(self):
        """What `b` has more of; None where one is unknown."""
        then, now = self.a.average("parameters"), self.b.average("parameters")
        return None if None in (then, now) else now - then


def distinguishable(difference, test=None):
    """Whether an interval excludes zero and McNemar's test, where it applies, agrees.

    Between several seeds it does not apply: each of its p-values speaks of two of the models, the interval of all.

    Args:
        difference: `evaluate.Estimate`.
        test: `evaluate.McNemar` or None.
    """
    return difference.excludes_zero and (test is None or test.p < LEVEL)


def one_each(a, b):
    """Whether both groups hold a single seed."""
    return len(a.runs) == len(b.runs) == 1


def groups(rows, folder):
    """Finished rows as groups that differ in nothing but the seed: other data, another recipe is another group.

    Args:
        rows: as `results.read_csv` returns them.
        folder: where their results.csv stands.
    Returns: list of `Group`, by key, older recipes first.
    """
    found = {}
    for row in sorted((row for row in rows if row["status"] == "finished"), key=_age):
        found.setdefault((*(row[column] for column in KEY), _recipe(row)), {})[row["seed"]] = row  # the newest stays
    made = (Group(tuple(row for _, row in sorted(seeds.items())), Path(folder)) for seeds in found.values())
    return sorted(made, key=lambda group: (_natural(group.key[0]), group.key, group.newest))


def _age(row):
    return row["utc"], row["run_id"]


def _natural(name):
    """A key that puts exp2 before exp10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _recipe(row):
    """All that may not differ within a group besides the seed."""
    config = row["config"] or {column: row[column] for column in CONFIGURATION}
    return json.dumps([row["fingerprint"], row["test_n"], row["overrides"], {**config, "seed": None}], sort_keys=True)


def matched(first, later):
    """Finds for each group of one file its counterpart in another.

    Under one key a single group on each side is matched whatever its recipe; of several those with equal overrides
    are, the newest recipe of each side; of what is left those with equal recipes.

    Args:
        first: list of `Group`.
        later: the same of another file.
    Returns: `(pairs, only_first, only_later)`: a list of two-tuples of groups, and two lists of groups.
    """
    pairs = []
    for key in dict.fromkeys(group.key for group in first):
        here, there = ([group for group in side if group.key == key] for side in (first, later))
        if len(here) == len(there) == 1:
            pairs.append((here[0], there[0]))
            continue
        for trait in (lambda group: group.overrides, lambda group: _recipe(group.runs[0])):
            pairs += (found := _by_trait(here, there, trait))
            here, there = ([group for group in side if group not in chain(*found)] for side in (here, there))
    taken = list(chain(*pairs))
    return pairs, [group for group in first if group not in taken], [group for group in later if group not in taken]


def _by_trait(here, there, trait):
    """Pairs with an equal trait, the newest of each side."""
    ours, theirs = ({trait(group): group for group in sorted(side, key=lambda g: g.newest)} for side in (here, there))
    return [(group, theirs[value]) for value, group in ours.items() if value in theirs]


def compared(a, b):
    """Compares two groups, by image where both sides' predictions are stored.

    Args:
        a: `Group` of the first file.
        b: `Group` of the later one.
    Returns: `Pair`.
    """
    notes, outcomes = [], {}
    if a.seen("fingerprint") != b.seen("fingerprint"):
        notes.append(f"different data under one label: fingerprint {a.seen('fingerprint')} -> {b.seen('fingerprint')}")
    if a.test_n != b.test_n:
        notes.append(f"different numbers of test images: {a.test_n:,} -> {b.test_n:,}")
    for run_a, run_b in () if notes else _shared(a, b):
        try:
            if outcome := _on_same_images((a.folder, run_a), (b.folder, run_b)):
                outcomes[run_b["seed"]] = outcome
        except ConfigError as error:
            notes.append(f"not compared by image: {error}")
    both = next(iter(outcomes.values()), None) if one_each(a, b) else None
    tests = {seed: evaluate.mcnemar(*outcome) for seed, outcome in outcomes.items()}
    return Pair(a, b, _difference(a, b, both), tests, tuple(notes))


def _shared(a, b):
    """Pairs of runs to compare by image: the only ones, or those of the seeds that both sides have."""
    if one_each(a, b):
        return [(a.runs[0], b.runs[0])]
    theirs = {run["seed"]: run for run in b.runs}
    return [(run, theirs[run["seed"]]) for run in a.runs if run["seed"] in theirs]


def _difference(a, b, both):
    """The difference of two groups; `both` says which images one seed each got right, None where that is unknown."""
    if len({*a.accuracies}) > 1 or len({*b.accuracies}) > 1:
        return evaluate.difference_seeds(a.accuracies, b.accuracies)
    if both is None:
        return evaluate.difference_unpaired(a.accuracies[0], a.test_n, b.accuracies[0], b.test_n)
    # Stored in 16 bit, a few images' best two classes tie; the recorded accuracies stay the ones to state.
    return dataclasses.replace(evaluate.difference_paired(*both), value=b.accuracies[0] - a.accuracies[0])


def _on_same_images(one, other):
    """Which images two runs got right: two bool arrays; None where predictions of one are missing.

    Args:
        one: `(folder, run)`.
        other: the same.
    Raises: ConfigError where a file is broken, or not that of the row, or of other images.
    """
    known = [_correct(folder, run) for folder, run in (one, other)]
    if any(outcome is None for outcome in known):
        return None
    (labels, correct), (other_labels, other_correct) = known
    if not np.array_equal(labels, other_labels):
        raise ConfigError("the stored labels differ, so these are other images.")
    return correct, other_correct


def _correct(folder, run):
    """`(labels, whether each was predicted)` of a run; None without stored predictions."""
    if (stored := results.read_predictions(folder, run["run_id"])) is None:
        return None
    labels, probabilities = stored
    correct = np.argmax(probabilities, axis=1) == labels
    ties = np.sum(np.sum(probabilities == probabilities.max(axis=1, keepdims=True), axis=1) > 1)
    if len(labels) != run["test_n"] or abs(correct.sum() - run["test_accuracy"] * run["test_n"]) > ties + 0.5:
        raise ConfigError(f"the predictions stored of {run['run_id']} do not give the accuracy in its row.")
    return labels, correct


def changes(a, b):
    """What differs between two groups besides their results.

    Returns: list of `(name, then, now)`, text: the configuration's keys where both sides' is known, else the columns
        that describe it; and code and machine.
    """
    if a.config and b.config:
        then, now = flat(a.config), flat(b.config)
        named = [(name, then.get(name, ABSENT), now.get(name, ABSENT)) for name in sorted(then | now)]
    else:
        named = [(column, a.seen(column), b.seen(column)) for column in CONFIGURATION]
    named += [(column, a.seen(column), b.seen(column)) for column in SURROUNDINGS]
    return [(name, then, now) for name, then, now in named if then != now]


def flat(config):
    """A nested configuration as dotted name -> text, but for the seed and the fingerprint, which are told elsewhere."""
    leaves = {}

    def walk(prefix, value):
        if not isinstance(value, dict | list):
            leaves[prefix] = _text(value)
            return
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            walk(f"{prefix}.{name}" if prefix else str(name), inner)

    walk("", {name: value for name, value in config.items() if name not in ("seed", "fingerprint")})
    return leaves


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, eq=False)
class File:
    """One results.csv.

    Attributes:
        letter: what it is called in tables: A is the first.
        path: as it was given.
        name: its name, or the path where another file has the same name.
        groups: list of `Group`.
    """

    letter: str
    path: Path
    name: str
    groups: list


def read(paths):
    """Reads results files.

    Returns: list of `File`.
    Raises: ConfigError where a file is not such, or for more files than there are letters.
    """
    if len(paths) > len(string.ascii_uppercase):
        raise ConfigError(f"Expected at most {len(string.ascii_uppercase)} files to compare. Received: {len(paths)}.")
    paths = [Path(path) for path in paths]
    names = Counter(path.name for path in paths)
    return [
        File(
            letter, path, path.name if names[path.name] == 1 else str(path), groups(results.read_csv(path), path.parent)
        )
        for letter, path in zip(string.ascii_uppercase, paths, strict=False)
    ]


def run(paths, *, fmt="text"):
    """Prints how results files differ, each later one from the first; with one file, what it holds.

    Args:
        paths: of results.csv files.
        fmt: 'text', 'csv' or 'markdown'.
    Returns: exit code 0.
    Raises: ConfigError for a file that is no results.csv, or another format.
    """
    forms = {"text": as_text, "csv": as_csv, "markdown": as_markdown}
    if fmt not in forms:
        raise ConfigError(f"The format must be 'text', 'csv' or 'markdown'. Received: {fmt!r}.")
    print(forms[fmt](read(paths)))
    return 0


def against_previous(record, earlier_records, root):
    """How a run differs from the one before it: 'previous run +0.0041 (not distinguishable)'.

    Args:
        record: of the run, finished.
        earlier_records: candidates, as `results.read` returns them; later ones and failed ones are passed over.
        root: folder that holds `results/`.
    Returns: text, or None where no run of the same experiment, variant, dataset, budget, weights and overrides finished
        earlier.
    """

    def like(other):
        return (*(other[column] for column in KEY), results.overrides(other))

    earlier = [
        other
        for other in earlier_records
        if other["status"] == "finished" and _age(other) < _age(record) and like(other) == like(record)
    ]
    if not earlier:
        return None
    a, b = (
        Group(({**one, "overrides": results.overrides(one)},), Path(root) / "results")
        for one in (max(earlier, key=_age), record)
    )
    pair = compared(a, b)
    return f"previous run {_signed(pair.difference.value, 4)} ({verdict(pair)})"


def verdict(pair):
    """'distinguishable' or 'not distinguishable'; other data are named with it, as they may be all that differs."""
    said = "distinguishable" if pair.distinguishable else "not distinguishable"
    return said if pair.same_data else f"{said}, on other data"


def sections(files):
    """Each later file against the first.

    Yields: `(file, pairs, unmatched)`: the later `File`, list of `Pair`, and for both files `(file, groups)` that the
        other one lacks.
    """
    first, *later = files
    for file in later:
        found, only_first, only_later = matched(first.groups, file.groups)
        yield file, [compared(a, b) for a, b in found], ((first, only_first), (file, only_later))


def as_text(files, *, markdown=False):
    """The comparison for a terminal of 120 columns, or with GitHub's headings and tables."""
    first = files[0]
    bullet = "- " if markdown else ""
    legend = (f"{bullet}{file.letter}  {file.path} ({_plural(len(file.groups), 'group')})" for file in files)
    parts = ["\n".join(legend)]
    if len(files) == 1:
        parts.append(_listing(first.groups, markdown))
    for file, pairs, unmatched in sections(files):
        if len(files) > 2:
            parts.append(f"{'##' if markdown else '=='} {file.letter} against {first.letter}")
        parts += [_block(pair, (first.letter, file.letter), markdown) for pair in pairs]
        for one, alone in unmatched:
            parts += [_heading(f"only in {one.name}", markdown), _listing(alone, markdown)] if alone else []
    parts += FOOTNOTES[: len(files)] if markdown else (textwrap.fill(note, WIDTH) for note in FOOTNOTES[: len(files)])
    return "\n\n".join(parts)


def as_markdown(files):
    """The comparison as GitHub shows it."""
    return as_text(files, markdown=True)


def _heading(text, markdown):
    return f"### {text}" if markdown else textwrap.fill(text, WIDTH)


def _table(rows, markdown):
    if markdown:
        rows = [{name: text.replace("|", "\\|") for name, text in row.items()} for row in rows]
    return tabulate(rows, headers="keys", tablefmt="github" if markdown else "plain", disable_numparse=True)


def _plural(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _title(group, *, overrides):
    experiment, variant, dataset, budget, weights = group.key
    changed = f", {overrides}" if overrides else ""
    return f"{experiment} {variant}, {dataset}, {budget}{changed}, weights {weights}"


def _listing(groups, markdown):
    """Groups without a counterpart, a row each; in a terminal each under its title, which is too long for a column."""
    if not groups:
        return "no finished run"
    titles = [_title(group, overrides=group.overrides) for group in groups]
    rows = [_measured(group) | {"recorded": group.newest[:16]} for group in groups]
    if markdown:
        return _table([{"": title} | row for title, row in zip(titles, rows, strict=True)], markdown)
    heading, *lines = textwrap.indent(_table(rows, markdown), "  ").splitlines()
    return "\n".join((heading, *chain(*zip((_heading(title, markdown) for title in titles), lines, strict=True))))


def _block(pair, letters, markdown):
    """A pair: both sides, the difference, whether it can be told from chance, and what else changed."""
    rows = (_measured(pair.a), _measured(pair.b), _told_apart(pair))
    names = (*letters, f"{letters[1]} - {letters[0]}")
    headings = ("changed", *letters)
    changed = [dict(zip(headings, change, strict=True)) for change in changes(pair.a, pair.b)]
    if not markdown:
        changed = [{name: textwrap.fill(text, 37) for name, text in change.items()} for change in changed]
    parts = [
        _table([{"": name} | row for name, row in zip(names, rows, strict=True)], markdown),
        *(f"note: {note}" for note in pair.notes),
        "; ".join((verdict(pair), *_tested(pair, letters))),
        _table(changed, markdown) if changed else "nothing else changed",
    ]
    title = _heading(
        _title(pair.a, overrides=pair.a.overrides if pair.a.overrides == pair.b.overrides else ""), markdown
    )
    if markdown:
        return "\n\n".join((title, *parts))
    return "\n".join((title, *(textwrap.indent(part, "  ") for part in parts)))


def _tested(pair, letters):
    """McNemar's test in words: one sentence, or none where predictions are not stored on both sides."""
    if pair.test:
        alone = (
            f"{letters[0]} alone is right on {_plural(pair.test.only_a, 'image')}, {letters[1]} on {pair.test.only_b:,}"
        )
        return [f"McNemar p = {pair.test.p:.2g} ({alone})"]
    by_seed = ", ".join(f"{test.p:.2g} (seed {seed})" for seed, test in pair.tests.items())
    return [f"McNemar p = {by_seed}"] if by_seed else []


def _measured(group):
    """Heading -> text of one group's row."""
    seconds, parameters = group.average("training_seconds"), group.average("parameters")
    return {
        "accuracy": f"{100 * group.estimate.value:.2f}%",
        "95% interval": f"[{100 * group.estimate.low:.2f}, {100 * group.estimate.high:.2f}]",
        "kind": group.estimate.kind,
        "sd": "" if group.spread is None else f"{100 * group.spread:.2f}",
        "seeds": str(len(group.runs)),
        "test n": f"{group.test_n:,}",
        "training": UNKNOWN if seconds is None else f"{seconds:,.0f} s",
        "parameters": UNKNOWN if parameters is None else f"{parameters:,.0f}",
    }


def _told_apart(pair):
    """The same headings' texts of a pair's difference."""
    value, low, high = (
        _signed(100 * bound, 2) for bound in (pair.difference.value, pair.difference.low, pair.difference.high)
    )
    texts = {"accuracy": value, "95% interval": f"[{low}, {high}]", "kind": pair.difference.kind}
    if (ratio := pair.seconds_ratio) is not None:
        texts["training"] = f"x {ratio:.2f}"
    if (more := pair.more_parameters) is not None:
        texts["parameters"] = f"{more:+,.0f}"
    return dict.fromkeys(_measured(pair.a), "") | texts


def _signed(value, digits):
    """With its sign; what rounds to zero is +0, never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def as_csv(files):
    """The comparison as one table: a row for each pair, and for each group without a counterpart."""
    first = files[0]
    rows = [_record(first, a=group) for group in first.groups] if len(files) == 1 else []
    for file, pairs, ((_, only_first), (_, only_later)) in sections(files):
        rows += [_record(first, file, a=pair.a, b=pair.b) | _outcome(pair) for pair in pairs]
        rows += [_record(first, file, a=group) for group in only_first]
        rows += [_record(first, file, b=group) for group in only_later]
    sides = (f"{name}_{side}" for side in "ab" for name in FIGURES)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("file_a", "file_b", "found_in", *KEY, *sides, *OUTCOME), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


def _record(first, later=None, *, a=None, b=None):
    """What the CSV says of one group or two; the columns that are left out stay empty."""
    present = {side: group for side, group in (("a", a), ("b", b)) if group}
    row = {"file_a": first.path, "file_b": later and later.path, "found_in": " and ".join(present)}
    row |= zip(KEY, next(iter(present.values())).key, strict=True)
    for side, group in present.items():
        estimate = group.estimate
        values = (
            *(group.overrides, estimate.value, estimate.low, estimate.high, estimate.kind, group.spread),
            *(len(group.runs), group.test_n, group.average("training_seconds"), group.average("parameters")),
            *(group.seen("fingerprint"), group.newest),
        )
        row |= {f"{name}_{side}": _rounded(value) for name, value in zip(FIGURES, values, strict=True)}
    return row


def _outcome(pair):
    """What the CSV says of a difference."""
    difference, test = pair.difference, pair.test
    values = (
        *(difference.value, difference.low, difference.high, difference.kind, pair.distinguishable),
        *((test.p, test.only_a, test.only_b) if test else (None, None, None)),
        "" if test else "; ".join(f"seed {seed}: {_rounded(other.p)}" for seed, other in pair.tests.items()),
        *(pair.seconds_ratio, pair.more_parameters),
        "; ".join(f"{name}: {then} -> {now}" for name, then, now in changes(pair.a, pair.b)),
        "; ".join(pair.notes),
    )
    return {name: _rounded(value) for name, value in zip(OUTCOME, values, strict=True)}


def _rounded(value):
    """Without the digits that are only rounding errors."""
    return f"{value:.9g}" if isinstance(value, float) else value
