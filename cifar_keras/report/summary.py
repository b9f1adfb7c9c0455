"""An experiment's own table and figure: its variants side by side, and what they say, from the records alone."""

import dataclasses
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from cifar_keras import metrics
from cifar_keras.config import RunConfig, published_of
from cifar_keras.data import CIFAR10
from cifar_keras.report import summary_plots
from cifar_keras.report.table import DASH
from cifar_keras.results.groups import newest_recipes
from cifar_keras.utils.files import write_text
from cifar_keras.utils.paths import stem

DESCRIPTIVE = ("images_per_second",)  # columns of a row that change no number
WORDS = {"frozen_norm": "BatchNorm", None: "inference"}  # for readers: a column, and what it is where nothing is said


@dataclass(frozen=True)
class Family:
    """The groups of one experiment that are compared: same data, budget, precision and starting weights.

    Attributes:
        experiment: `config.Experiment`.
        name: of its files.
        groups: `results.groups.Group` by variant, in the experiment's order; empty before the first run.
        source: the weights that all but the baselines start from.
    """

    experiment: object
    name: str
    groups: dict
    source: str = "none"

    @property
    def first(self):
        """The first run, for what all of them share."""
        return next(iter(self.groups.values())).first

    @property
    def title(self):
        """What was run on what."""
        if not self.groups:
            return f"{self.experiment.key}: {self.experiment.about}, not yet run"
        first, more = self.first, []
        if first["budget"] != "full":
            more.append(f"budget {first['budget']}")
        if self.source not in ("none", first["weights_called_for"]):
            more.append(f"from {self.source}")
        more += [first["overrides"], next(iter(self.groups.values())).precision_note]
        return ", ".join((f"{first['experiment']}: {first['dataset']}", *(part for part in more if part)))

    def published(self, variant, split="test"):
        """What the source reported of official CIFAR-10; None where it did not, and beside other data."""
        if self.groups and self.first["config"]["dataset"] not in CIFAR10:
            return None
        return published_of(self.experiment.published, variant).get(split)


def write(experiment, records, root):
    """Writes `results/<name>.md` and `results/figures/<name>_summary.png` for each family of an experiment's runs.

    Tables of families that there are no more go.

    Args:
        experiment: `config.Experiment`.
        records: run records, of other experiments too.
        root: folder that holds `results/`.
    Returns: the paths of the tables.
    """
    folder, written = Path(root) / "results", []
    for family in families(experiment, records) if experiment.summary else ():
        path = folder / f"{family.name}.md"
        if family.groups:
            _, draw = KINDS[experiment.summary]
            draw(family, folder / figure_name(family))
        write_text(path, text_of(family))
        written.append(path)
    own = (folder.glob(f"exp{experiment.number}{end}.md") for end in ("", "_*"))
    for path in {*chain(*own)} - {*written}:  # what other records made: a baseline alone, before it had company
        (folder / "figures" / f"{path.stem}_summary.png").unlink(missing_ok=True)
        path.unlink()
    return written


def figure_name(family):
    """Where a family's figure stands, below `results/`."""
    return f"figures/{family.name}_summary.png"


def text_of(family):
    """A family's table and sentences, as Markdown."""
    parts = [f"# {family.title}", _table(overview(family))]
    if family.groups:
        text, _ = KINDS[family.experiment.summary]
        parts += [*text(family), f"![{family.title}]({figure_name(family)})", _provenance(family)]
    return "\n\n".join(parts) + "\n"


def families(experiment, records):
    """The `Family`s of an experiment; a baseline that starts at random stands beside runs from any weights."""
    found = {}
    for group in newest_recipes(records):
        if group.first["experiment"] == experiment.key and group.first["variant"] in experiment.variants:
            config = _naming(group)
            key = (config.dataset, config.budget, group.first["overrides"], group.precision_note)
            found.setdefault(key, []).append((config, is_baseline(group), group))
    if experiment.about not in [dataset for dataset, *_ in found]:
        name = f"exp{experiment.number}_{experiment.about}"
        yield Family(experiment, name.removesuffix(f"_{CIFAR10[0]}"), {})  # as `paths.stem` does
    for members in found.values():
        sources = {config.weights: config for config, baseline, _ in members if not baseline}
        for source, first in (sources or {"none": members[0][0]}).items():
            groups = {c.variant: group for c, baseline, group in members if baseline or c.weights == source}
            ordered = {variant: groups[variant] for variant in experiment.variants if variant in groups}
            name = stem(dataclasses.replace(first, variant="best", seed=0))
            yield Family(experiment, name, ordered, source)


def _naming(group):
    """The configuration that names a table: a precision other than float32 is part of the name, chosen or not."""
    config = RunConfig.restored(group.config)
    overrides = {name: value for name, value in config.overrides.items() if name != "precision"}
    if group.precision_note:
        overrides["precision"] = group.precision_note
    return dataclasses.replace(config, overrides=overrides)


def is_baseline(group):
    """Whether these runs start from random weights, whatever `--weights` names."""
    return (group.config["training"] or {}).get("weights") == "none"


def overview(family):
    """The table of all variants: one dict per row, with dashes for what has not been run."""
    return [_overview_row(family, variant, family.groups.get(variant)) for variant in family.experiment.variants]


def _overview_row(family, variant, group):
    row = {"variant": variant, "published": percent(family.published(variant))}
    if group is None:
        return row | dict.fromkeys(("test [95% interval]", "seeds", "train", "images", "epochs", "minutes"), DASH)
    row["test [95% interval]"] = group.estimate.accuracy()
    for heading, column in {"test-time augmentation": "tta_accuracy", "superclasses": "coarse_accuracy"}.items():
        if (value := group.average(column)) is not None:
            row[heading] = percent(value)
    return row | {
        "seeds": str(len(group.runs)),
        "train": percent(group.average("train_accuracy")),
        "images": f"{group.first['train_images']:,}",
        "epochs": str(group.first["epochs"]),
        "minutes": group.minutes or DASH,
    }


def class_means(group):
    """Mean accuracy over seeds by class name, for the classes that have test images."""
    columns = zip(group.first["class_names"], *(run["class_accuracy"] for run in group.runs), strict=True)
    return {name: mean(values) for name, *values in columns if None not in values}


def percent(share):
    """'71.3%', or a dash."""
    return DASH if share is None else f"{100 * share:.1f}%"


def points(difference):
    """'+1.3'."""
    return f"{100 * difference:+.1f}"


def _table(rows):
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True, missingval=DASH)


def _provenance(family):
    runs = [run for group in family.groups.values() for run in group.runs]
    values = {name: ", ".join(sorted({str(run[name]) for run in runs})) for name in ("device", "keras", "git_commit")}
    weights = ", ".join(sorted({run["weights"] for run in runs}))
    return (
        f"{runs[0]['dataset']}, fingerprint {runs[0]['fingerprint']}; weights: "
        f"{weights}. {values['device']}; Keras {values['keras']}; commits {values['git_commit']}. Written by "
        f"`python experiments/{family.experiment.key}.py` from `runs/`; `--tables` writes it again."
    )


# --- a factorial: which of the factors matters? ---


def factors(experiment):
    """The columns in which an experiment's variants differ, and each variant's levels.

    Returns: `(columns, {variant: levels})`.
    """
    changed = {variant: training.override for variant, training in experiment.variants.items()}
    columns = dict.fromkeys(column for override in changed.values() for column in override)
    columns = [c for c in columns if c not in DESCRIPTIVE and len({o.get(c) for o in changed.values()}) > 1]
    return columns, {variant: tuple(override.get(c) for c in columns) for variant, override in changed.items()}


def word(name):
    """A column or a level in words."""
    return str(WORDS.get(name, name))


def factorial_text(family):
    """The main effect of each factor, and what may be concluded."""
    columns, levels = factors(family.experiment)
    cells = {levels[variant]: group for variant, group in family.groups.items()}
    if len(cells) < len(family.experiment.variants):
        return [f"{len(cells)} of {len(family.experiment.variants)} cells have been run: no effects yet."]
    effects = {word(column): _effect(cells, place) for place, column in enumerate(columns)}
    table = [
        {
            "factor": name,
            "change": f"{word(low)} -> {word(high)}",
            "effect on test, points": estimate.points() if estimate else DASH,
        }
        for name, (low, high, estimate) in effects.items()
    ]
    note = (
        "The mean change over the other factors' levels, with the 95% interval that the draw of the test images gives. "
        "Cells that differ in their numbers of images are not compared."
    )
    return ["## Main effects", note, _table(table), conclusion(family, effects)]


def _effect(cells, place):
    """One factor's two levels and the mean change from the first to the second, None where data differ."""
    low, high = dict.fromkeys(levels[place] for levels in cells)
    pairs = [(cells[(*k[:place], low, *k[place + 1 :])], group) for k, group in cells.items() if k[place] == high]
    pairs = [(a, b) for a, b in pairs if _data(a) == _data(b)]
    if not pairs:
        return low, high, None
    change = mean(b.estimate.value - a.estimate.value for a, b in pairs)
    half = 1.96 * sum(_variance(group) for pair in pairs for group in pair) ** 0.5 / len(pairs)
    return low, high, metrics.Estimate(change, change - half, change + half, "normal")


def _data(group):
    return group.first["train_images"], group.test_n


def _variance(group):
    """The variance of a mean accuracy, from the draw of the test images."""
    p = group.estimate.value
    return p * (1 - p) / group.test_n


def conclusion(family, effects):
    """The paragraph: it names causes with ImageNet weights alone, and only effects that can be told from zero."""
    if family.source != "imagenet":
        return (
            f"Not measured with ImageNet weights: these cells start from `{family.source}`, and what a scaling or a "
            "resolution does to weights that were trained otherwise says nothing about the published figures."
        )
    told = {name: e for name, e in effects.items() if e[2] is not None and e[2].excludes_zero}
    ranked = sorted(told.items(), key=lambda item: -abs(item[1][2].value))
    sentences = [
        f"{name} {word(low if e.value > 0 else high)} costs {abs(100 * e.value):.1f} points against "
        f"{word(high if e.value > 0 else low)}"
        for name, (low, high, e) in ranked
    ]
    first = f"With ImageNet weights, {'; '.join(sentences)}." if sentences else "No main effect can be told from zero."
    return " ".join((first, *_reproduced(family)))


def _reproduced(family):
    """Which cells' intervals hold each published figure."""
    for variant in family.experiment.variants:
        if (published := family.published(variant)) is None:
            continue
        estimates = {name: group.estimate for name, group in family.groups.items()}
        holding = [name for name, e in estimates.items() if e.low <= published <= e.high]
        yield (
            f"The published {published:.2f} ({variant}; here {percent(estimates[variant].value)}) lies in the "
            f"interval of {', '.join(holding) or 'no cell'}."
        )


# --- the gap between train and test, measured both ways ---


def gaps(group):
    """Accuracies and gaps of the last epoch's weights (where not scored, of the selected ones), means over seeds.

    Returns: dict with 'running' (the metric that `fit` shows), 'train' (inference mode, no augmentation), 'test',
        'gap_running' and 'gap_inference', shares.
    """
    train = group.average("last_train_accuracy") or group.average("train_accuracy")
    test = group.average("last_test_accuracy") or group.average("test_accuracy")
    running = mean(run["history"]["accuracy"][-1] for run in group.runs)
    return {
        "running": running, "train": train, "test": test, "gap_running": running - test, "gap_inference": train - test,
    }  # fmt: skip


def gap_text(family):
    """Both gaps of each variant; what of a published gap is the metric; accuracy by class beside the published."""
    rows = []
    for variant, group in family.groups.items():
        g = gaps(group)
        rows.append(
            {
                "variant": variant,
                "train, running": percent(g["running"]),
                "train, inference": percent(g["train"]),
                "test": percent(g["test"]),
                "gap, running": points(g["gap_running"]),
                "gap, inference": points(g["gap_inference"]),
                "best epoch by val": ", ".join(str(run["best_epoch"]) for run in group.runs),
            }
        )
    note = (
        "Gap: train minus test in percentage points, of the last epoch's weights. Running: what `fit` shows, the mean "
        "over an epoch of moving weights with dropout on augmented images. Inference: the final weights without either."
    )
    return ["## The gap, both ways", note, _table(rows), *_artefacts(family), *_by_class(family)]


def _artefacts(family):
    """A sentence on each variant of which the source reported train and test."""
    for variant, group in family.groups.items():
        train, test = (family.published(variant, split) for split in ("train", "test"))
        if train is None or test is None:
            continue
        g = gaps(group)
        metric = g["gap_inference"] - g["gap_running"]
        yield (
            f"**{variant}**: the running metric gives a gap of {points(g['gap_running'])} points, the same network in "
            f"inference mode without augmentation {points(g['gap_inference'])}: the metric alone makes "
            f"{points(-metric)} of it. Published: train {train:.0%}, test {test:.0%}, gap {points(train - test)}; if "
            f"the metric shifts theirs as it shifts ours, their network's own gap was {points(train - test + metric)}."
        )


def _by_class(family):
    """Accuracy by class of the variants for which the source reported some."""
    for variant, published in family.experiment.published_classes.items():
        group = family.groups.get(variant)
        if group and set(published) & set(group.first["class_names"]):
            means = sorted(class_means(group).items(), key=lambda pair: -pair[1])
            rows = [{"class": name, "published": percent(published.get(name)), "here": percent(value)}
                    for name, value in means]  # fmt: skip
            yield f"## Accuracy by class, {variant}"
            yield _table(rows)


# --- which epoch is reported ---


def selection_text(family):
    """What reporting the last epoch, the one that val selects, and the one that test selects makes of one run."""
    rows = []
    for variant, group in family.groups.items():
        for run in group.runs:
            followed = run["history"].get("test_accuracy")
            rows.append(
                {
                    "variant": variant,
                    "seed": str(run["seed"]),
                    "last epoch": percent(run.get("last_test_accuracy")),
                    "val-selected": percent(run["test_accuracy"]),
                    "test-selected (audit)": percent(max(followed)) if followed else DASH,
                    "selecting on test adds": points(max(followed) - run["test_accuracy"]) if followed else DASH,
                }
            )
    note = (
        "Accuracy on test. `test-selected` is an audit that follows test after every epoch, as the source did, and "
        "takes its maximum: it shows what that adds, and is no result."
    )
    return ["## Which epoch is reported", note, _table(rows)]


# --- transfer against labelled images ---


def transfer_points(family):
    """`(method, labelled images per class, whether from scratch, group)`; variants on the same images count once."""
    found = {}
    for variant, group in family.groups.items():
        asked = (group.config["training"] or {}).get("per_class")
        labelled = group.first["train_images"] // len(group.first["class_names"])
        method = variant.removesuffix(f"_{asked}")
        found.setdefault((method, labelled), (method, labelled, is_baseline(group), group))
    return sorted(found.values(), key=lambda point: point[1])


def transfer_text(family):
    """Paired differences to the network from scratch, and the classes that gain and lose most."""
    if family.source == "none":
        return ["Nothing was transferred: every network here starts at random."]
    placed = transfer_points(family)
    bases = {labelled: group for _, labelled, baseline, group in placed if baseline}
    pairs = [(m, n, bases[n], group) for m, n, baseline, group in placed if not baseline and n in bases]
    if not pairs:
        return ["No variant has been run beside the network from scratch yet."]
    rows = [{"labelled a class": f"{n:,}", "method": m, **_against(base, group)} for m, n, base, group in pairs]
    note = (
        "Minus the network from random weights, on the same labelled images and for as many epochs, in points. The "
        "intervals cover the draw of labelled images and initial weights, of one source network and one test set; "
        "several comparisons are not corrected for."
    )
    most = max(pairs, key=lambda pair: (pair[1], pair[3].estimate.value))
    return ["## What transfer adds", note, _table(rows), *_gains(most[1], most[0], *most[2:])]


def _against(base, group):
    """The paired difference over the seeds that both have; for one seed, with the interval over images."""
    ours, theirs = ({run["seed"]: run["test_accuracy"] for run in side.runs} for side in (group, base))
    seeds, n = sorted(ours.keys() & theirs.keys()), group.test_n
    row = {"test": group.estimate.accuracy(), "from scratch": base.estimate.accuracy()}
    if not seeds:
        return row | {"difference [95%]": DASH, "transfer": DASH}
    if len(seeds) > 1:
        d = metrics.difference_seeds_paired([theirs[s] for s in seeds], [ours[s] for s in seeds])
    else:
        d = metrics.difference_unpaired(theirs[seeds[0]], n, ours[seeds[0]], n)
    behind = f"{d.kind}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    verdict = "helps" if d.low > 0 else "hurts" if d.high < 0 else "can't be told from zero"
    return row | {"difference [95%]": f"{d.points()} ({behind})", "transfer": verdict}


def _gains(count, method, base, group):
    """The classes that gain most and least."""
    ours, theirs = class_means(group), class_means(base)
    changes = sorted(((ours[name] - theirs[name], name) for name in ours), reverse=True)
    shown = changes if len(changes) <= 10 else [*changes[:5], *changes[-5:]]
    yield f"## Which classes gain: {method}, {count:,} labelled images a class"
    yield _table([{"class": name, "gain, points": points(change)} for change, name in shown])


KINDS = {
    "factorial": (
        factorial_text,
        lambda family, path: summary_plots.factorial(family, path, factors(family.experiment), word),
    ),
    "gap": (gap_text, lambda family, path: summary_plots.gap(family, path, gaps)),
    "selection": (selection_text, summary_plots.selection),
    "transfer": (
        transfer_text,
        lambda family, path: summary_plots.transfer(family, path, transfer_points(family)),
    ),
}
