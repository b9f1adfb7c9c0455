"""An experiment's own table and figure, from the records alone: its variants side by side, and what follows from them.

Each kind of summary is a module with `text(family)`, a list of Markdown paragraphs, and `draw(family, path)`.
"""

import dataclasses
from itertools import chain
from pathlib import Path

from cifar_keras.config import RunConfig
from cifar_keras.data import CIFAR10
from cifar_keras.report.summaries import effects, factorial, gap, selection, transfer
from cifar_keras.report.summaries.base import Family, is_baseline
from cifar_keras.report.table import DASH, markdown_table, percent
from cifar_keras.results.groups import newest_recipes
from cifar_keras.utils.files import write_text
from cifar_keras.utils.paths import stem

KINDS = {"effects": effects, "factorial": factorial, "gap": gap, "selection": selection, "transfer": transfer}


def write(experiment, records, root):
    """Writes `results/<name>.md` and `results/figures/<name>_summary.png` for each family of an experiment's runs.

    Tables of families that no longer exist are deleted.

    Args:
        experiment: `config.Experiment`.
        records: run records, of other experiments too.
        root: folder that holds `results/`.
    Returns: the paths of the tables.
    """
    folder, written = Path(root) / "results", []
    for family in families(experiment, records, folder) if experiment.summary else ():
        path = folder / f"{family.name}.md"
        if family.groups:
            KINDS[experiment.summary].draw(family, folder / figure_name(family))
        write_text(path, text_of(family))
        written.append(path)
    own = (folder.glob(f"exp{experiment.number}{end}.md") for end in ("", "_*"))
    for path in {*chain(*own)} - {*written}:  # from other records: a baseline alone, before other runs joined it
        (folder / "figures" / f"{path.stem}_summary.png").unlink(missing_ok=True)
        path.unlink()
    return written


def figure_name(family):
    """The path of a family's figure, below `results/`."""
    return f"figures/{family.name}_summary.png"


def text_of(family):
    """A family's table and sentences, as Markdown."""
    parts = [f"# {family.title}", markdown_table(overview(family))]
    if family.groups:
        text = KINDS[family.experiment.summary].text(family)
        parts += [*text, f"![{family.title}]({figure_name(family)})", _provenance(family)]
    return "\n\n".join(parts) + "\n"


def families(experiment, records, folder=None):
    """The `Family`s of an experiment. A baseline from random weights belongs to the families of all other weights.

    `folder` is the one with the predictions of the records; None: variants are compared without them.
    """
    found = {}
    for group in newest_recipes(records, folder):
        variant = experiment.current(group.first["variant"])
        if group.first["experiment"] == experiment.key and variant in experiment.variants:
            config = dataclasses.replace(_naming(group), variant=variant)
            key = (config.dataset, config.budget, group.first["overrides"], group.backbone_note, group.precision_note)
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


def _provenance(family):
    runs = [run for group in family.groups.values() for run in group.runs]
    names = ("weights", "device", "keras", "git_commit")
    weights, device, version, commits = (", ".join(sorted({str(run[name]) for run in runs})) for name in names)
    return (
        f"{family.first['dataset']}, fingerprint {family.first['fingerprint']}; weights: {weights}. {device}; "
        f"Keras {version}; commits {commits}. Written by `python experiments/{family.experiment.key}.py` from `runs/`; "
        "`--tables` writes it again."
    )
