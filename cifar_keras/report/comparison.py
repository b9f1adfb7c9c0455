"""Results files side by side: the difference, its cost, its cause, and whether chance explains it."""

import textwrap
from itertools import chain
from pathlib import Path

from tabulate import tabulate

from cifar_keras import metrics
from cifar_keras.report.table import markdown_table
from cifar_keras.results import with_derived
from cifar_keras.results.groups import KEY, UNKNOWN, Group, age
from cifar_keras.results.matching import changes, compared, read, sections
from cifar_keras.utils.text import csv_text

WIDTH = 118
ON_INTERVALS = (
    "Intervals are 95%. With one seed (Wilson, Newcombe) they cover the draw of the test images, not that of the "
    "training seed: two seeds of one recipe may well be distinguishable. With several seeds (Student t, Welch t, "
    "pooled t, BCa) they cover the draw of the seeds, on this one test set; seeds that all gave one value count as "
    "one. BCa, of one side's ten seeds or more, covers nearer 90%."
)
ON_DIFFERENCES = (
    "Differences are the later file minus the first, in percentage points. Distinguishable: the interval of the "
    "difference excludes 0 and, with one seed each and predictions stored on the same images, McNemar's exact p is "
    "below 0.05. Where the test images differ (+ test), the interval covers the draw of both test sets too. Of many "
    "comparisons between equals, one in twenty may pass."
)
GROUP_COLUMNS = {  # of the CSV, each once for either side
    "overrides": lambda group: group.overrides,
    "accuracy": lambda group: group.estimate.value,
    "low": lambda group: group.estimate.low,
    "high": lambda group: group.estimate.high,
    "interval": lambda group: group.estimate.kind,
    "sd": lambda group: group.spread,
    "seeds": lambda group: len(group.runs),
    "test_n": lambda group: group.test_n,
    "training_seconds": lambda group: group.average("training_seconds"),
    "parameters": lambda group: group.average("parameters"),
    "fingerprint": lambda group: group.seen("fingerprint"),
    "recorded": lambda group: group.newest,
}
PAIR_COLUMNS = {
    "difference": lambda pair: pair.difference.value,
    "difference_low": lambda pair: pair.difference.low,
    "difference_high": lambda pair: pair.difference.high,
    "difference_interval": lambda pair: pair.difference.kind,
    "distinguishable": lambda pair: pair.distinguishable,
    "mcnemar_p": lambda pair: pair.test and pair.test.p,
    "right_in_a_alone": lambda pair: pair.test and pair.test.only_a,
    "right_in_b_alone": lambda pair: pair.test and pair.test.only_b,
    "mcnemar_p_by_seed": lambda pair: (
        "" if pair.test else "; ".join(f"seed {seed}: {_rounded(test.p)}" for seed, test in pair.tests.items())
    ),
    "training_seconds_ratio": lambda pair: pair.seconds_ratio,
    "more_parameters": lambda pair: pair.more_parameters,
    "changed": lambda pair: "; ".join(f"{name}: {then} -> {now}" for name, then, now in changes(pair.a, pair.b)),
    "notes": lambda pair: "; ".join(pair.notes),
}


def run(paths, *, fmt="text"):
    """Prints how each later results file differs from the first; a single file is listed.

    Args:
        paths: of results.csv files.
        fmt: 'text', 'csv' or 'markdown'.
    Returns: exit code 0.
    Raises: ConfigError for a file that is no results.csv.
    """
    files = read(paths)
    print(as_csv(files) if fmt == "csv" else as_text(files, markdown=fmt == "markdown"))
    return 0


def against_previous(record, earlier_records, root):
    """How a run differs from the previous one: 'previous run +0.0041 (not distinguishable)'.

    Args:
        record: of the finished run.
        earlier_records: candidates from `results.read`; later and failed runs are ignored.
        root: folder that holds `results/`.
    Returns: text; None if no run with the same key and overrides finished earlier.
    """
    run, *others = (Group((with_derived(one),), Path(root) / "results") for one in (record, *earlier_records))
    earlier = [
        other
        for other in others
        if other.first["status"] == "finished"
        and age(other.first) < age(run.first)
        and (other.key, other.overrides) == (run.key, run.overrides)
    ]
    if not earlier:
        return None
    pair = compared(max(earlier, key=lambda group: age(group.first)), run)
    return f"previous run {round(pair.difference.value, 4) + 0.0:+.4f} ({pair.verdict})"  # never -0


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
    footnotes = [ON_INTERVALS]
    if len(files) > 1:
        footnotes.append(ON_DIFFERENCES)
    return "\n\n".join((*parts, *(footnotes if markdown else (textwrap.fill(note, WIDTH) for note in footnotes))))


def _heading(text, markdown):
    return f"### {text}" if markdown else textwrap.fill(text, WIDTH)


def _table(rows, markdown):
    return markdown_table(rows) if markdown else tabulate(rows, "keys", tablefmt="plain", disable_numparse=True)


def _plural(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _title(group, *, overrides, precision):
    experiment, variant, dataset, budget, weights = group.key_without("backbone", "precision")
    parts = (f"{experiment} {variant}", group.backbone_note, dataset, budget, overrides, f"weights {weights}")
    return ", ".join(filter(None, (*parts, precision)))


def _listing(groups, markdown):
    """Groups without a counterpart, one per row; in a terminal under their titles, which are too long for a column."""
    if not groups:
        return "no finished run"
    titles = [_title(group, overrides=group.overrides, precision=group.precision_note) for group in groups]
    rows = [_measured(group) | {"recorded": group.newest[:16]} for group in groups]
    if markdown:
        return _table([{"": title} | row for title, row in zip(titles, rows, strict=True)], markdown)
    heading, *lines = textwrap.indent(_table(rows, markdown), "  ").splitlines()
    return "\n".join((heading, *chain(*zip((_heading(title, markdown) for title in titles), lines, strict=True))))


def _block(pair, letters, markdown):
    """A pair: both sides, the difference, whether it is distinguishable from chance, and what else changed."""
    rows = (_measured(pair.a), _measured(pair.b), _differences(pair))
    names = (*letters, f"{letters[1]} - {letters[0]}")
    headings = ("changed", *letters)
    changed = [dict(zip(headings, change, strict=True)) for change in changes(pair.a, pair.b)]
    if not markdown:
        changed = [{name: textwrap.fill(text, 37) for name, text in change.items()} for change in changed]
    parts = [
        _table([{"": name} | row for name, row in zip(names, rows, strict=True)], markdown),
        *(f"note: {note}" for note in pair.notes),
        "; ".join((pair.verdict, *_tested(pair, letters))),
        _table(changed, markdown) if changed else "nothing else changed",
    ]
    overrides = pair.a.overrides if pair.a.overrides == pair.b.overrides else ""
    precision = pair.a.precision_note if pair.a.precision_note == pair.b.precision_note else ""
    title = _heading(_title(pair.a, overrides=overrides, precision=precision), markdown)
    if markdown:
        return "\n\n".join((title, *parts))
    return "\n".join((title, *(textwrap.indent(part, "  ") for part in parts)))


def _tested(pair, letters):
    """McNemar's test in words; empty if predictions of a side are missing."""
    if pair.test:
        alone = (
            f"{letters[0]} alone is right on {_plural(pair.test.only_a, 'image')}, {letters[1]} on {pair.test.only_b:,}"
        )
        return [f"McNemar p = {pair.test.p:.2g} ({alone})"]
    by_seed = ", ".join(f"{test.p:.2g} (seed {seed})" for seed, test in pair.tests.items())
    return [f"McNemar p = {by_seed}"] if by_seed else []


def _measured(group):
    """The row of one group: heading -> text."""
    seconds, parameters = group.average("training_seconds"), group.average("parameters")
    return {
        "accuracy": f"{metrics.percent(group.estimate.value, 2)}%",
        "95% interval": group.estimate.bounds(2),
        "kind": group.estimate.kind,
        "sd": "" if group.spread is None else f"{100 * group.spread:.2f}",
        "seeds": str(len(group.runs)),
        "test n": f"{group.test_n:,}",
        "training": UNKNOWN if seconds is None else f"{seconds:,.0f} s",
        "parameters": UNKNOWN if parameters is None else f"{parameters:,.0f}",
    }


def _differences(pair):
    """The row of a pair's difference, with the headings of `_measured`."""
    d = pair.difference
    texts = {"accuracy": metrics.percent(d.value, 2, "+"), "95% interval": d.bounds(2, "+"), "kind": d.kind}
    if (ratio := pair.seconds_ratio) is not None:
        texts["training"] = f"x {ratio:.2f}"
    if (more := pair.more_parameters) is not None:
        texts["parameters"] = f"{more:+,.0f}"
    return dict.fromkeys(_measured(pair.a), "") | texts


def as_csv(files):
    """The comparison as one table: one row per pair, and per group without a counterpart."""
    first = files[0]
    records = [_record(first, a=group) for group in first.groups] if len(files) == 1 else []
    for file, pairs, ((_, only_first), (_, only_later)) in sections(files):
        for pair in pairs:
            outcome = {name: _rounded(look(pair)) for name, look in PAIR_COLUMNS.items()}
            records.append(_record(first, file, a=pair.a, b=pair.b) | outcome)
        records += [_record(first, file, a=group) for group in only_first]
        records += [_record(first, file, b=group) for group in only_later]
    sides = (f"{name}_{side}" for side in "ab" for name in GROUP_COLUMNS)
    header = ("file_a", "file_b", "found_in", *KEY, *sides, *PAIR_COLUMNS)
    return csv_text(records, header).rstrip("\n")


def _record(first, later=None, **groups):
    """The CSV's row of one group or two, `a` and `b`; other columns stay empty."""
    record = {"file_a": first.path, "file_b": later and later.path, "found_in": " and ".join(groups)}
    for side, group in groups.items():
        for column, value in zip(KEY, group.key, strict=True):  # where the sides differ, in precision: both
            record[column] = value if record.get(column) in (None, value) else f"{record[column]} -> {value}"
        record |= {f"{name}_{side}": _rounded(look(group)) for name, look in GROUP_COLUMNS.items()}
    return record


def _rounded(value):
    """A number without digits that are only rounding errors."""
    return f"{value:.9g}" if isinstance(value, float) else value
