"""The table of all results, from run records; README, docs/results.md and docstrings are refreshed from here."""

import itertools
import re
import textwrap

from tabulate import tabulate

from cifar_keras.config import ConfigError, published_of
from cifar_keras.results import overrides
from cifar_keras.results.groups import natural, newest_recipes
from cifar_keras.utils.text import csv_text

DASH = "-"
HEADINGS = (
    *("experiment", "variant", "backbone", "budget", "dataset", "weights", "precision", "published test"),
    *("test [95% interval] (n)", "seeds", "train (n)", "val (n)", "parameters", "minutes", "hardware"),
)
NOT_IN_A_TERMINAL = ("seeds", "train (n)", "parameters", "hardware")  # omitted to keep the text rendering narrow
NOT_YET = "not yet run"


def collated(records, experiments=()):
    """Sorts run records into the study's results and the other runs.

    Args:
        records: dicts with the columns of results.csv; unknown values are None.
        experiments: `commands.study.Entry` or anything with `key`, `variants` and `published`. Their variants without
            a result get a row of dashes.
    Returns: `(results, others)`, one dict heading -> text per row. Results are finished full-budget runs from the
        weights that their model calls for, with nothing overridden on the command line; others are all other finished
        runs.
    """
    groups = newest_recipes(records)
    results = [_row(group) for group in groups if counts(group.first)]
    own = [group.first for group in groups if counts(group.first) and not group.backbone_note]
    measured = {(run["experiment"], run["variant"]) for run in own}
    for entry in experiments:
        missing = [variant for variant in entry.experiment.variants if (entry.key, variant) not in measured]
        results += [_empty_row(entry, variant) for variant in missing]
    results.sort(key=_order)
    others = sorted((_row(group) for group in groups if not counts(group.first)), key=_order)
    for row in results:
        del row["budget"]  # always full
    for row in others:
        del row["published test"]  # not comparable with these
    return results, others


def summarised(records, experiments):
    """The README's table: results in six columns, then one line that lists what is not measured yet.

    Args:
        records: as for `collated`.
        experiments: as for `collated`.
    Returns: Markdown.
    """
    results, _ = collated(records, experiments)
    rows = [_summary(row) for row in results if row["test [95% interval] (n)"] != DASH]
    for before, row in reversed([*itertools.pairwise(rows)]):
        if row["experiment"] == before["experiment"]:
            row["experiment"] = ""  # as above
    missing = {}
    for row in results:
        if row["test [95% interval] (n)"] == DASH:
            missing.setdefault(row["experiment"], []).append(row["variant"])
    parts = [_unpadded(render(rows, "markdown"))] if rows else []
    if missing:
        named = ", ".join(f"{_link(key)} ({', '.join(variants)})" for key, variants in missing.items())
        parts.append(f"Not measured yet: {named}. To run one: `python experiments/NAME.py --variant VARIANT`.")
    return "\n\n".join(parts)


def _unpadded(markdown):
    """A Markdown table without what aligns its source: a third of the README's table was spaces."""
    return re.sub(" {2,}", " ", re.sub("-{3,}", "---", markdown))


def _summary(row):
    names = ("experiment", "variant", "backbone", "dataset", "test [95% interval] (n)", "published test")
    time = "" if row["minutes"] == DASH else f"{row['minutes']} min, "
    hardware = row["hardware"].replace("(R)", "").replace(" Processor", "")
    cost = f"{time}{hardware}, {row['seeds']} seed{'s' * (row['seeds'] != '1')}"
    cost += "" if _plain_precision([row]) else f", {row['precision']}"
    found = {name: row[name] for name in names} | {"experiment": _link(row["experiment"]), "training": cost}
    if found["published test"] == DASH:
        found["published test"] = ""  # nothing is missing: the source used another network
    return found


def _plain_precision(rows):
    """Whether no row has a precision other than float32, so that a narrow table needs no column for it."""
    return {row["precision"] for row in rows} <= {"float32", DASH}


def _link(key):
    return f"[{key}](experiments/{key}.py)"


def counts(record):
    """Whether a finished run is a result of the study: full recipe, all data, the weights that its model calls for."""
    whole = record["budget"] == "full" and not overrides(record)
    weights, wanted = record["weights"], record["weights_called_for"]
    return whole and (weights == wanted or (wanted == "source" and weights not in ("none", "imagenet")))


def _row(group):
    first = group.first
    return {
        "experiment": first["experiment"],
        "variant": first["variant"],
        "backbone": first.get("backbone") or DASH,
        "budget": f"{first['budget']}, {group.overrides}" if group.overrides else first["budget"],
        "dataset": first["dataset"],
        "weights": first["weights"],
        "precision": first.get("precision") or DASH,
        "published test": percent(first.get("published_test"), ".3g"),
        "test [95% interval] (n)": f"{group.estimate.accuracy()}{_spread(group)} ({group.test_n:,})",
        "seeds": str(len(group.runs)),
        "train (n)": _accuracy(group, "train"),
        "val (n)": _accuracy(group, "val"),
        "parameters": f"{parameters:,.0f}" if (parameters := group.average("parameters")) else DASH,
        "minutes": group.minutes or DASH,
        "hardware": group.seen("device", "") or DASH,
    }


def _empty_row(entry, variant):
    row = dict.fromkeys(HEADINGS, DASH) | {"experiment": entry.key, "variant": variant}
    return row | {"published test": percent(published_of(entry.experiment.published, variant).get("test"), ".3g")}


def _order(row):
    """By experiment, of which the second comes before the tenth, then by name."""
    names = ("experiment", "variant", "backbone", "budget", "dataset", "weights", "precision")
    return natural(row["experiment"]), *(row[heading] for heading in names)


def percent(share, form=".1f"):
    """'71.3%', or a dash."""
    return DASH if share is None else f"{100 * share:{form}}%"


def _accuracy(group, split):
    """'89.6% (5,000)', or a dash."""
    value, n = group.average(f"{split}_accuracy"), group.first.get(f"{split}_n")
    return f"{percent(value)} ({n:,})" if value is not None and n else DASH


def _spread(group):
    return "" if group.spread is None else f" sd {100 * group.spread:.2f}"


def render(rows, form):
    """Rows as text in the form 'text', 'csv' or 'markdown'."""
    if not rows:
        return ""
    if form == "csv":
        return csv_text(rows, rows[0]).rstrip("\n")
    if form == "markdown":
        return markdown_table(rows)
    kept = _narrowed(rows)
    # Wrapped here, since tabulate's own wrapping reads '1,000' as a number and fails.
    rows = [{textwrap.fill(heading, 14): textwrap.fill(row[heading], 20) for heading in kept} for row in rows]
    return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)


def _narrowed(rows):
    """The headings that a terminal has room for; backbone and precision only where they tell rows apart."""
    left_out = set(NOT_IN_A_TERMINAL)
    if _plain_precision(rows):
        left_out.add("precision")
    backbones = {(row["experiment"], row["variant"], row["backbone"]) for row in rows if row["backbone"] != DASH}
    if len({key[:2] for key in backbones}) == len(backbones):
        left_out.add("backbone")
    return [heading for heading in rows[0] if heading not in left_out]


def markdown_table(rows):
    """Dicts heading -> text as a Markdown table; `|`, which separates its columns, is escaped."""
    escaped = [{heading: text.replace("|", "\\|") for heading, text in row.items()} for row in rows]
    return tabulate(escaped, headers="keys", tablefmt="github", disable_numparse=True, missingval=DASH)


def generated(markdown, name, content):
    """Puts `content` between `<!-- generated: NAME -->` and `<!-- /generated -->`. Returns the new text.

    Raises: ConfigError if the text has no such pair, or several.
    """
    opening, closing = f"<!-- generated: {name} -->", "<!-- /generated -->"
    pattern = f"(?s)({re.escape(opening)}\n).*?({re.escape(closing)})"
    text, found = re.subn(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", markdown)
    if found != 1:
        raise ConfigError(f"Expected one pair of {opening!r} and {closing!r}, each on its own line. Received: {found}.")
    return text


def docstring_result(records, key):
    """The `Result` line of an experiment's docstring, from the results that `counts`; 'not yet run' where none does.

    For example: 'Result   best: 89.6% of 10,000 test images [89.0, 90.2], 1 seed, CIFAR-10 (JPEG), 42 min, 2-core CPU'.
    More variants or datasets follow on lines of their own; lines break at 110 characters.
    """
    groups = [g for g in newest_recipes(records) if g.first["experiment"] == key and counts(g.first)]
    groups.sort(key=lambda group: _order(_row(group)))
    sentences = [_sentence(group) for group in groups] or [NOT_YET]
    lines = [line for sentence in sentences for line in textwrap.wrap(sentence, 100, break_long_words=False)]
    return "Result   " + "\n         ".join(lines)


def _sentence(group):
    first, accuracy = group.first, percent(group.estimate.value)
    variant = ", ".join(filter(None, (first["variant"], group.backbone_note)))
    interval = f"{group.estimate.bounds()}{_spread(group)}"
    parts = (
        f"{variant}: {accuracy} of {group.test_n:,} test images {interval}",
        f"{len(group.runs)} seed{'s' if len(group.runs) > 1 else ''}",
        first["dataset"],
        group.precision_note,
        f"{group.minutes} min" if group.minutes else "",
        group.seen("device", ""),
    )
    sentence = ", ".join(part for part in parts if part)
    return sentence.replace("\\", "/").replace('"', "'")  # it goes into source text, between three quotes


def with_result(source, result):
    """The source of an experiment file with its `Result` line (and what continues it, indented) replaced.

    Raises: ConfigError if there is no such line.
    """
    text, found = re.subn(r"(?m)^Result   .*(?:\n[ \t]+\S.*)*", lambda _: result, source, count=1)
    if not found:
        raise ConfigError(f"The docstring needs a line that starts with 'Result   '. Received: {source[:80]!r}.")
    return text
