"""One change at a time: what each variant adds to the first one, and what that says about a source's claims."""

import numpy as np

from cifar_keras.plotting import BLUE, GREY, ORANGE, figure_of, without_frame
from cifar_keras.report.summaries.base import corrected, correction, difference, is_clear, points, significance, verdict
from cifar_keras.report.table import DASH, markdown_table

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not distinguishable"


def effects(family):
    """What each variant adds to the experiment's first one: `{variant: (Difference or None, corrected p or None)}`.

    Empty where the first one has not been run.
    """
    base, *others = family.experiment.variants
    run = [variant for variant in others if variant in family.groups]
    if base not in family.groups:
        return {}
    found = [difference(family.groups[base], family.groups[variant]) for variant in run]
    p_values, _ = corrected(found)
    return dict(zip(run, zip(found, p_values, strict=True), strict=True))


def text(family):
    """The differences with their corrected p-values, and an answer to every claim."""
    base, found = next(iter(family.experiment.variants)), effects(family)
    if not found:
        return [f"Nothing to compare yet: it takes `{base}` and another variant."]
    count = sum(p is not None for _, p in found.values())
    note = (
        f"Test accuracy minus that of `{base}`, in points, on the same seeds and images: paired by image for one seed "
        f"(McNemar's test), by seed for several (Student's t). {correction(count)} Gap: train minus test, both of the "
        "selected weights, in inference mode."
    )
    rows = [_row(family, variant, *effect) for variant, effect in found.items()]
    return [f"## What each change does to `{base}`", note, markdown_table(rows), *_answers(family, found)]


def _row(family, variant, found, p):
    group = family.groups[variant]
    train, asked = group.average("train_accuracy"), sum(stage["epochs"] for stage in group.config["training"]["stages"])
    trained = ", ".join(f"{run['epochs']} of {asked}" for run in group.runs if run["epochs"] < asked)
    return {
        "variant": variant,
        "difference [95%]": found.shown() if found else DASH,
        "p": significance(p),
        "effect": verdict(found, p),
        "gap": DASH if train is None else points(train - group.estimate.value),
        "ended after epoch": trained or DASH,
    }


def _answers(family, found):
    """A table of the claims about these data; nothing where there are none."""
    slug = (next(iter(family.groups.values())).config or {}).get("dataset", "")
    claims = [claim for claim in family.experiment.claims if slug.startswith(claim.dataset or "")]
    if claims:
        yield "## What the source claims"
        others = tuple(family.experiment.variants)[1:]
        yield markdown_table([{"claim": claim.text, "here": answer(claim, found, others)} for claim in claims])
    if any(claim.kind == "most" for claim in claims):
        yield "What matters most is decided by the 95% intervals, which are not corrected for their number."


def answer(claim, found, others):
    """Whether the runs confirm a claim.

    Args:
        claim: a `config.Claim`.
        found: from `effects`.
        others: all variants but the first; a claim of kind 'most' is about all of them.
    Returns: 'confirmed', 'refuted' or 'not distinguishable', with the differences; or what has not been run.
    """
    needed = others if claim.kind == "most" else claim.variants
    if missing := [variant for variant in needed if (found.get(variant) or (None,))[0] is None]:
        return f"not run: {', '.join(missing)}"
    shown = ", ".join(f"{variant} {found[variant][0].estimate.points()}" for variant in claim.variants)
    said = _most(claim, found) if claim.kind == "most" else _direction(claim, found)
    return f"{said} ({shown})"


def _direction(claim, found):
    """All of the claim's variants must be better, or worse; one that is clearly the opposite refutes it."""
    sign = 1 if claim.kind == "better" else -1
    signs = [np.sign(d.estimate.value) * sign if is_clear(d, p) else 0 for d, p in map(found.get, claim.variants)]
    return CONFIRMED if min(signs) > 0 else REFUTED if min(signs) < 0 else OPEN


def _most(claim, found):
    """Each of the claim's variants must change accuracy by more than every other, beyond both intervals."""
    sizes = {variant: _size(d.estimate) for variant, (d, _) in found.items() if d is not None}
    ours = [sizes.pop(variant) for variant in claim.variants]
    if not sizes:
        return OPEN
    if min(low for low, _ in ours) > max(high for _, high in sizes.values()):
        return CONFIRMED
    return REFUTED if max(low for low, _ in sizes.values()) > min(high for _, high in ours) else OPEN


def _size(estimate):
    """The interval of a difference's absolute value."""
    ends = abs(estimate.low), abs(estimate.high)
    return (min(ends) if estimate.excludes_zero else 0.0), max(ends)


def draw(family, path):
    """A forest plot: each variant's difference from the first one with its 95% interval."""
    found = {variant: effect for variant, effect in effects(family).items() if effect[0] is not None}
    with figure_of(path, family.title, size=(7.5, 1.6 + 0.32 * max(1, len(found)))) as figure:
        panel = figure.add_subplot()
        for place, (d, p) in enumerate(found.values()):
            e = d.estimate
            colour = GREY if not is_clear(d, p) else BLUE if e.value > 0 else ORANGE
            reach = [[100 * (e.value - e.low)], [100 * (e.high - e.value)]]
            panel.errorbar(100 * e.value, place, xerr=reach, color=colour, marker="o", capsize=3)
        panel.set_yticks(range(len(found)), list(found))
        panel.invert_yaxis()
        panel.axvline(0, color=GREY, linewidth=0.8)
        base = next(iter(family.experiment.variants))
        panel.set(xlabel=f"test accuracy minus that of {base}, points, with 95% intervals")
        panel.set_title("grey: can't be told from zero after Holm's correction", fontsize=9, color=GREY)
        without_frame(panel, "x")
