"""An experiment's own table and figure: its variants side by side, and what they say, from the records alone."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from cifar_keras import evaluate
from cifar_keras.config import RunConfig, published_of
from cifar_keras.files import write_text
from cifar_keras.paths import stem
from cifar_keras.report import summary_plots
from cifar_keras.report.rows import average
from cifar_keras.report.table import DASH, newest_recipes

FACTORS = ("scaling", "pixels", "BatchNorm")  # of a factorial, in the order of its cells' names


@dataclass(frozen=True)
class Family:
    """The runs of one experiment that are compared: on the same data, under one budget, from the same weights.

    Attributes:
        experiment: `config.Experiment`.
        name: of its files.
        cells: rows of the newest recipe, one a seed, by variant, in the experiment's order.
    """

    experiment: object
    name: str
    cells: dict

    @property
    def first(self):
        """Any run: what all share."""
        return next(iter(self.cells.values()))[0]

    @property
    def title(self):
        """What was run on what."""
        first, budget = self.first, "" if self.first["budget"] == "full" else f", budget {self.first['budget']}"
        return f"{first['experiment']}: {first['dataset']}{budget}"

    def published(self, variant, split="test"):
        """What the source reported; None where it did not."""
        return published_of(self.experiment.published, variant).get(split)


def write(experiment, records, root):
    """Writes `results/<name>.md` and `results/figures/<name>_summary.png` for each family of an experiment's runs.

    Args:
        experiment: `config.Experiment`.
        records: run records, of other experiments too.
        root: folder that holds `results/`.
    """
    for family in families(experiment, records):
        text, draw = KINDS[experiment.summary]
        folder = Path(root) / "results"
        picture = draw(family, folder / "figures" / f"{family.name}_summary.png")
        parts = [f"# {family.title}", _table(overview(family)), *text(family), f"![figure](figures/{picture.name})"]
        parts.append(_provenance(family))
        write_text(folder / f"{family.name}.md", "\n\n".join(parts) + "\n")


def families(experiment, records):
    """The `Family`s of an experiment; a baseline that starts at random stands beside runs from any."""
    found = {}
    for group in newest_recipes(records):
        if group[0]["experiment"] == experiment.key and group[0]["variant"] in experiment.variants:
            config = RunConfig.restored(group[0]["config"])
            changes = {name: value for name, value in config.overrides.items() if name != "weights"}
            baseline = (config.training or {}).get("weights") == "none"
            key = (config.dataset, config.budget, tuple(sorted(changes.items())))
            found.setdefault(key, []).append((config, baseline, group))
    for members in found.values():
        sources = {config.weights: config for config, baseline, _ in members if not baseline}
        for source, first in sources.items():
            cells = {c.variant: group for c, baseline, group in members if baseline or c.weights == source}
            ordered = {variant: cells[variant] for variant in experiment.variants if variant in cells}
            yield Family(experiment, stem(dataclasses.replace(first, variant="best", seed=0)), ordered)


def overview(family):
    """The table of all variants: a dict a row, dashes where nothing was run."""
    return [_overview_row(family, variant, family.cells.get(variant)) for variant in family.experiment.variants]


def _overview_row(family, variant, runs):
    published = family.published(variant)
    row = {"variant": variant, "published": percent(published)}
    if runs is None:
        return row | dict.fromkeys(("test [95% interval]", "seeds", "train", "epochs", "minutes"), DASH)
    row["test [95% interval]"] = accuracy(runs)
    if average(runs, "tta_accuracy") is not None:
        row["test-time augmentation"] = percent(average(runs, "tta_accuracy"))
    if average(runs, "coarse_accuracy") is not None:
        row["superclasses"] = percent(average(runs, "coarse_accuracy"))
    row |= {"seeds": str(len(runs)), "train": percent(average(runs, "train_accuracy"))}
    row |= {"epochs": str(runs[0]["epochs"]), "minutes": f"{average(runs, 'training_seconds') / 60:.1f}"}
    return row


def accuracy(runs):
    """'71.3% [70.4, 72.2]': Wilson for one seed, Student's t for several."""
    estimate = evaluate.accuracy_interval([run["test_accuracy"] for run in runs], runs[0]["test_n"])
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def class_means(runs):
    """Accuracy by class name, mean over seeds, of the classes that have test images."""
    columns = zip(runs[0]["class_names"], *(run["class_accuracy"] for run in runs), strict=True)
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
    runs = [run for group in family.cells.values() for run in group]
    values = {name: ", ".join(sorted({str(run[name]) for run in runs})) for name in ("device", "keras", "git_commit")}
    weights = ", ".join(sorted({run["weights"] for run in runs}))
    return (
        f"{runs[0]['dataset']}, fingerprint {runs[0]['fingerprint']}; {runs[0]['test_n']:,} test images; weights: "
        f"{weights}. {values['device']}; Keras {values['keras']}; commits {values['git_commit']}. Written by "
        f"`python experiments/{family.experiment.key}.py` from `runs/`."
    )


# --- a factorial: which of the factors matters? ---


def factorial_text(family):
    """The main effect of each factor, and what may be concluded."""
    cells = {tuple(variant.split("_")): average(runs, "test_accuracy") for variant, runs in family.cells.items()}
    if len(cells) < 8:
        return [f"{len(cells)} of {len(family.experiment.variants)} cells have been run: no effects yet."]
    effects = [_effect(cells, place) for place in range(len(FACTORS))]
    table = [
        {"factor": name, "change": f"{low} -> {high}", "effect on test, points": points(effect), "range": spread}
        for name, (low, high, effect, spread) in zip(FACTORS, effects, strict=True)
    ]
    return ["## Main effects", _table(table), conclusion(family, effects)]


def _effect(cells, place):
    """One factor's two levels, the mean change from the first to the second, and its range over the other factors."""
    low, high = dict.fromkeys(levels[place] for levels in cells)
    changes = [
        value - cells[(*levels[:place], low, *levels[place + 1 :])]
        for levels, value in cells.items()
        if levels[place] == high
    ]
    return low, high, mean(changes), f"{points(min(changes))} to {points(max(changes))}"


def conclusion(family, effects):
    """The paragraph: it names a cause with ImageNet weights alone."""
    n = family.first["test_n"]
    weights = family.first["weights"]
    if weights != "imagenet":
        return (
            f"Not measured with ImageNet weights: these cells start from `{weights}`, and what a scaling or a "
            "resolution does to weights that were trained otherwise says nothing about the published 0.42 and 0.20."
        )
    ranked = sorted(zip(FACTORS, effects, strict=True), key=lambda pair: -abs(pair[1][2]))
    (name, (low, high, effect, _)), (second, (_, _, other, _)) = ranked[:2]
    worst, best = (percent(pick(average(r, "test_accuracy") for r in family.cells.values())) for pick in (min, max))
    return (
        f"With ImageNet weights the largest main effect is that of {name}: {points(effect)} points from {low} to "
        f"{high}; next comes {second} with {points(other)}. The cells span {worst} to {best} of {n:,} test images. "
        "So far as frozen features go, this is the factor to look for behind a low published figure."
    )


# --- the gap between train and test, measured both ways ---


def gaps(runs):
    """Accuracies and gaps of the last epoch's weights (where not scored, of the selected ones), means over seeds.

    Returns: dict with 'running' (the metric that `fit` shows), 'train' (inference mode, no augmentation), 'test',
        'gap_running' and 'gap_inference', shares.
    """
    train = average(runs, "last_train_accuracy") or average(runs, "train_accuracy")
    test = average(runs, "last_test_accuracy") or average(runs, "test_accuracy")
    running = mean(run["history"]["accuracy"][-1] for run in runs)
    return {
        "running": running, "train": train, "test": test, "gap_running": running - test, "gap_inference": train - test,
    }  # fmt: skip


def gap_text(family):
    """Both gaps of each variant; what of a published gap is the metric; accuracy by class beside the published."""
    rows = []
    for variant, runs in family.cells.items():
        g = gaps(runs)
        rows.append(
            {
                "variant": variant,
                "train, running": percent(g["running"]),
                "train, inference": percent(g["train"]),
                "test": percent(g["test"]),
                "gap, running": points(g["gap_running"]),
                "gap, inference": points(g["gap_inference"]),
                "best epoch by val": ", ".join(str(run["best_epoch"]) for run in runs),
            }
        )
    note = (
        "Gap: train minus test in percentage points, of the last epoch's weights. Running: what `fit` shows, the mean "
        "over an epoch of moving weights with dropout on augmented images. Inference: the final weights without either."
    )
    return ["## The gap, both ways", note, _table(rows), *_artefacts(family), *_by_class(family)]


def _artefacts(family):
    """A sentence on each variant of which the source reported train and test."""
    for variant, runs in family.cells.items():
        train, test = (family.published(variant, split) for split in ("train", "test"))
        if train is None or test is None:
            continue
        g = gaps(runs)
        metric = g["gap_inference"] - g["gap_running"]
        yield (
            f"**{variant}**: published train {train:.0%}, test {test:.0%}, gap {points(train - test)} points. Here the "
            f"running metric gives {points(g['gap_running'])}, the same network in inference mode without augmentation "
            f"{points(g['gap_inference'])}: {abs(100 * metric):.1f} points of the gap "
            + ("are an artefact of how train accuracy was measured." if metric > 0.01 else "are due to the metric.")
        )


def _by_class(family):
    """Accuracy by class of the variants for which the source reported some."""
    for variant, published in family.experiment.published_classes.items():
        runs = family.cells.get(variant)
        known = [name for name in published if runs and name in runs[0]["class_names"]]
        if known:
            means = sorted(class_means(runs).items(), key=lambda pair: -pair[1])
            rows = [{"class": name, "published": percent(published.get(name)), "here": percent(value)}
                    for name, value in means]  # fmt: skip
            yield f"## Accuracy by class, {variant}"
            yield _table(rows)


# --- which epoch is reported ---


def selection_text(family):
    """What reporting the last epoch, the one that val selects, and the one that test selects makes of one run."""
    rows = []
    for variant, runs in family.cells.items():
        for run in runs:
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
    """`(method, labelled images a class, runs)` of every variant named `<method>` or `<method>_<images>`."""
    for variant, runs in family.cells.items():
        method, _, count = variant.partition("_")
        labelled = int(count) if count else runs[0]["train_images"] // len(runs[0]["class_names"])
        yield method, labelled, runs


def transfer_text(family):
    """Paired differences to the network from scratch, and the classes that gain and lose most."""
    by_point = {(method, count): runs for method, count, runs in transfer_points(family)}
    rows, gains = [], []
    for (method, count), runs in by_point.items():
        if method != "scratch" and (base := by_point.get(("scratch", count))):
            rows.append({"labelled a class": f"{count:,}", "method": method, **_against(base, runs)})
            gains.append((count, method, base, runs))
    if not rows:
        return ["No variant has been run beside the network from scratch yet."]
    rows.sort(key=lambda row: (int(row["labelled a class"].replace(",", "")), row["method"]))
    note = "Minus the network from random weights, on the same labelled images and for as many epochs, in points."
    return ["## What transfer adds", note, _table(rows), *_gains(*max(gains, key=lambda g: (g[0], g[1] == "finetune")))]


def _against(base, runs):
    """The paired difference over the seeds that both have; of one seed, with the images' interval."""
    ours, theirs = ({run["seed"]: run["test_accuracy"] for run in group} for group in (runs, base))
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) > 1:
        d = evaluate.difference_seeds_paired([theirs[s] for s in seeds], [ours[s] for s in seeds])
    else:
        n = runs[0]["test_n"]
        d = evaluate.difference_unpaired(base[0]["test_accuracy"], n, runs[0]["test_accuracy"], n)
    behind = f"{d.kind}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    verdict = "helps" if d.low > 0 else "hurts" if d.high < 0 else "can't be told from zero"
    return {
        "test": accuracy(runs), "from scratch": accuracy(base),
        "difference [95%]": f"{points(d.value)} [{points(d.low)}, {points(d.high)}] ({behind})",
        "transfer": verdict,
    }  # fmt: skip


def _gains(count, method, base, runs):
    """The classes that gain most and least."""
    ours, theirs = class_means(runs), class_means(base)
    changes = sorted(((ours[name] - theirs[name], name) for name in ours), reverse=True)
    shown = changes if len(changes) <= 10 else [*changes[:5], *changes[-5:]]
    yield f"## Which classes gain: {method}, {count:,} labelled images a class"
    yield _table([{"class": name, "gain, points": points(change)} for change, name in shown])


KINDS = {
    "factorial": (factorial_text, summary_plots.factorial),
    "gap": (gap_text, lambda family, path: summary_plots.gap(family, path, gaps)),
    "selection": (selection_text, summary_plots.selection),
    "transfer": (
        transfer_text,
        lambda family, path: summary_plots.transfer(family, path, list(transfer_points(family))),
    ),
}
