"""The report: the study, or one run, on one self-contained page, from the records and the files of `explain`."""

import io
import json
import re
import shlex
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import jinja2
import markupsafe
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate

from cifar_keras import metrics, results
from cifar_keras.config import BEST, BUDGETS, PUBLISHED, ConfigError, RunConfig
from cifar_keras.data import options_of
from cifar_keras.explain.base import DATE
from cifar_keras.plotting import ON_CURVES, curves_on, drawn, shares, short, without_frame
from cifar_keras.report import accuracy_time
from cifar_keras.report.comparison import against_previous
from cifar_keras.report.conclusions import of_one, sentences
from cifar_keras.report.table import DASH, counts, percent
from cifar_keras.results import with_derived
from cifar_keras.results.groups import Group, age, natural, newest_recipes
from cifar_keras.utils.files import write_text
from cifar_keras.utils.paths import PROJECT
from cifar_keras.utils.text import duration

TEMPLATE = Path(__file__).with_name("page.html.j2")
NOT_FROM_A_FILE = ("imagenet", "none")  # weights


@dataclass(frozen=True)
class Picture:
    """A figure of the page: SVG, alternative text, and a caption."""

    svg: str
    description: str
    caption: str = ""


def build(root, entries, *, dataset=None):
    """Writes `results/report/index.html` and returns its path.

    Args:
        root: folder that holds `results/`.
        entries: the study's experiments, as `commands.study.Entry`.
        dataset: the value of `--dataset`, for the commands that repeat the runs.
    Raises: ConfigError if fewer than two of the study's experiments have finished runs.
    """
    path = Path(root) / "results" / "report" / "index.html"
    write_text(path, render(study_groups(root, entries), entries, Path(root), dataset=dataset))
    return path


def build_run(root, record, *, question="", dataset=None):
    """Writes `results/report/<run id>/index.html`, the page of one finished run, and returns its path.

    Args:
        root: as for `build`.
        record: the run's.
        question: its experiment's.
        dataset: as for `build`.
    """
    path = Path(root) / "results" / "report" / record["run_id"] / "index.html"
    write_text(path, render_run(record, Path(root), question=question, dataset=dataset))
    return path


def study_groups(root, entries):
    """The best recipe's runs of each experiment and backbone, on the data that most experiments share.

    Arguments as for `build`.

    Returns: `{key: results.groups.Group}`, in the experiments' order; keys are also anchors on the page.
    Raises: ConfigError for fewer than two.
    """
    keys, by_data = {entry.key for entry in entries}, {}
    for group in _groups(root, BEST):
        if group.first["experiment"] in keys:
            key = "-".join(filter(None, (group.first["experiment"], group.backbone_note)))
            by_data.setdefault(group.first["fingerprint"], {}).setdefault(key, []).append(group)
    common = max(by_data.values(), key=len, default={})
    if len(common) < 2:
        raise ConfigError(
            "The report compares the study's experiments, so two or more of them must have a finished run on the same "
            f"data. Received: {len(common)} below {root}. Run `cifar-keras study`, or `make demo`."
        )
    return {key: _chosen(common[key]) for key in sorted(common, key=natural)}


def _groups(root, variant):
    folder = Path(root) / "results"
    return [group for group in newest_recipes(results.read(root), folder) if group.first["variant"] == variant]


def _chosen(groups):
    """One of an experiment's groups: without overrides, of the largest budget, from the weights called for, newest."""
    groups, budgets = sorted(groups, key=lambda group: max(map(age, group.runs)), reverse=True), list(BUDGETS)

    def rank(group):
        run = group.first
        as_wanted = counts(run) or run["weights"] == run["weights_called_for"]
        return bool(group.overrides), budgets.index(run["budget"]), not as_wanted

    return min(groups, key=rank)


def rebuilt(groups, root):
    """The runs of the published recipe that compare with the best ones, where there are any: `{key: Group}`."""
    alike = ("experiment", "backbone", "fingerprint", "budget", "weights", "precision", "overrides")
    found = {tuple(g.first.get(column) for column in alike): g for g in _groups(root, PUBLISHED)}
    own = {key: tuple(group.first.get(column) for column in alike) for key, group in groups.items()}
    return {key: found[values] for key, values in own.items() if values in found}


def render(groups, entries, root, *, dataset=None):
    """The page as HTML. Arguments as for `build`, and from `study_groups`."""
    questions = {entry.key: entry.question for entry in entries}
    return _filled(
        title=f"{len(groups)} models on {next(iter(groups.values())).first['dataset']}",
        subtitle=_subtitle(groups, entries),
        opening=opening(groups),
        overview=overview(groups, entries, rebuilt(groups, root)),
        sentences=sentences(list(groups.values())),
        curves=curves(groups),
        cost=cost(groups),
        recipe={},
        models=[model_section(key, group, questions[group.first["experiment"]]) for key, group in groups.items()],
        data=data_lines(groups),
        environment=environment(groups),
        commands=commands(groups, root, dataset),
    )


def render_run(record, root, *, question="", dataset=None):
    """The page of one run as HTML. Arguments as for `build_run`."""
    run, folder = with_derived(record), root / "results"
    key, group = run["experiment"], Group((run,), folder)
    groups, stored = {key: group}, results.read_predictions(folder, run["run_id"])
    tables = {"Recipe": recipe(run), "Configuration": [configuration(run)]}
    if lines := by_class(run, stored):
        tables["Classes"] = [lines]
    return _filled(
        title=f"{group.name}, variant {run['variant']}, on {run['dataset']}",
        subtitle=f"Run {run['run_id']}, recorded {run['utc']}; intervals are 95%.",
        opening=None,
        overview=splits(run),
        sentences=[*of_one(group, against_previous(record, results.read(root), root)), *_on_balance(run, stored)],
        curves=run_curves(run),
        cost=_upright(cost(groups)[0]),
        recipe=tables,
        models=[model_section(key, group, question)],
        data=data_lines(groups),
        environment=_upright(environment(groups)[0]),
        commands=commands(groups, root, dataset, run_id=run["run_id"]),
    )


def _filled(**parts):
    """The page from its template."""
    loader = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = loader.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(figure=figure_html, table=table_html, **parts)


def _subtitle(groups, entries):
    sizes = sorted({group.test_n for group in groups.values()})
    images = " to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1])))
    run = {group.first["experiment"] for group in groups.values()}
    return f"{len(run)} of {len(entries)} experiments have been run; {images} test images each; intervals are 95%."


# --- parts ---


def figure_html(picture):
    """A figure with its alternative text."""
    caption = f"<figcaption>{markupsafe.escape(picture.caption)}</figcaption>" if picture.caption else ""
    label = markupsafe.escape(picture.description)
    svg = picture.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    wide = re.search(r'width="([\d.]+)pt"', svg)
    style = f' style="--wide: {float(wide[1]) * 1.35:.0f}px"' if wide else ""
    return markupsafe.Markup(f"<figure{style}>{svg}{caption}</figure>")


def table_html(rows):
    """Dicts heading -> number or text as an HTML table, with numbers aligned right."""
    if not rows:
        return markupsafe.Markup('<p class="missing">Nothing to show.</p>')
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    numeric = [all(isinstance(row.get(h), int | float | None) for row in rows) for h in headings]
    cells = [[_shown(row.get(heading)) for heading in headings] for row in rows]
    sides = ["right" if number else "left" for number in numeric]
    table = tabulate(cells, headings, tablefmt="html", colalign=sides, disable_numparse=True)  # escapes the texts
    return markupsafe.Markup(f'<div class="table">{table}</div>')


def _shown(value):
    """A value as text in a table."""
    if value is None or value == "":
        return DASH
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def overview(groups, entries, rebuilt):
    """The main table, a row per experiment and backbone: the published accuracy, that recipe run here, our recipe."""
    rows = []
    for entry in sorted(entries, key=lambda entry: natural(entry.key)):
        own = {key: group for key, group in groups.items() if group.first["experiment"] == entry.key}
        for key, group in (own or {None: None}).items():
            published = group.first["published_test"] if group else entry.experiment.published.get("test")
            row = {"model": entry.experiment.name.replace("_", " "), "backbone": group and group.first.get("backbone")}
            row["published"] = percent(published, ".0f")
            for heading, one in {"published recipe, run here": rebuilt.get(key), "ours": group}.items():
                row[heading] = one.estimate.accuracy() if one else "not run"
            rows.append(row | {"how": group and _how(group)})
    return rows


def _how(group):
    """Images, budget, overrides, backbone, weights, precision and seeds."""
    run, seeds = group.first, len(group.runs)
    weights = f"weights {short(run['weights'], 24)}"
    parts = [f"{group.test_n:,} images", f"budget {run['budget']}", group.overrides, group.backbone_note, weights]
    return ", ".join(filter(None, [*parts, group.precision_note, f"{seeds} seeds" if seeds > 1 else ""]))


def cost(groups):
    """Time, images and size of each model."""
    return [
        {
            "model": group.name,
            "training": duration(group.seconds),
            "of it from the cache": duration(cached) if (cached := group.average("cached_seconds")) else DASH,
            "epochs": group.first["epochs"],
            "training images": group.first["train_images"],
            "images/s": group.average("images_per_second"),
            "parameters": group.first["parameters"],
            "of these trained": group.first["parameters_trainable"],
            "peak memory, MiB": group.first["peak_memory_mb"],
        }
        for group in groups.values()
    ]


def data_lines(groups):
    """The data of each model's runs, one line each, and what must be known of these data."""
    runs = [group.first for group in groups.values()]
    lines = [
        f"{group.name}: {run['dataset']} (fingerprint {run['fingerprint'][:12]}), {run['train_images']:,} training, "
        f"{run['val_n']:,} val and {run['test_n']:,} test images; {'; '.join(run.get('notes', ())) or 'no notes'}."
        for group, run in zip(groups.values(), runs, strict=True)
    ]
    if any("JPEG" in run["dataset"] for run in runs):
        lines.append("CIFAR-10 (JPEG) is not the official archive: the same images, compressed once more.")
    if any("synthetic" in run["dataset"] for run in runs):
        lines.append("The images are synthetic: nothing here is a result on CIFAR.")
    return lines


def environment(groups):
    """Weights, hardware, versions and code of each group's runs."""
    names = (
        *("backbone", "weights", "precision", "seed", "device", "backend"),
        *("keras", "tensorflow", "python", "git_commit", "utc"),
    )
    return [{"model": group.name, **{name: group.seen(name, DASH) for name in names}} for group in groups.values()]


def commands(groups, root, dataset=None, run_id=None):
    """The commands that repeat the runs and make the page. DIR stands for a folder of images, FILE for a model's."""
    lines = [line for group in groups.values() for line in _again(group)]
    report = f"cifar-keras report {run_id}" if run_id else "cifar-keras report"
    report = report if root.resolve() == PROJECT.resolve() else f"{report} --root {root.name}"
    return [*lines, f"{report} --dataset DIR" if dataset else report]


def _again(group):
    """The commands that repeat a group's runs, one per block of seeds."""
    run = group.first
    parts = [f"python experiments/{run['experiment']}.py"]
    parts += [f"--variant {run['variant']}"] if run["variant"] != BEST else []
    parts += _data(run)
    if run["budget"] != "full":
        parts.append(f"--budget {run['budget']}")
    if run["weights"] != run["weights_called_for"]:
        parts.append(f"--weights {run['weights'] if run['weights'] in NOT_FROM_A_FILE else 'FILE'}")
    changed = dict(run["config"].get("overrides") or {})
    if group.precision_note:
        changed["precision"] = group.precision_note
    parts += [f"--{name}" if v is True else f"--{name} {v}" for name, v in changed.items() if name != "weights"]
    return [" ".join([*parts, *seed]) for seed in _seed_options([run["seed"] for run in group.runs])]


def _data(run):
    """The options that name a run's images."""
    name, classes = options_of(RunConfig.restored(run["config"]), run.get("class_names") or ())
    named = [] if name == "cifar10" else [f"--dataset {name or 'DIR'}"]
    return named + ([f"--classes {shlex.quote(','.join(classes))}"] if classes else [])


def _seed_options(seeds):
    """The options for each block of consecutive seeds: 0, 1, 2, 7 -> ['--seed 0-2'], ['--seed 7']; none for 0 alone."""
    for _, block in groupby(enumerate(seeds), key=lambda pair: pair[1] - pair[0]):
        first, *more = (seed for _, seed in block)
        if more:
            yield [f"--seed {first}-{more[-1]}"]
        else:
            yield [f"--seed {first}"] if first else []


# --- parts of one run's page ---


def splits(run):
    """Accuracy on each split with its interval, beside the published one."""
    what = {
        "train": "a fixed subset, without augmentation", "val": "selected the epoch, hence slightly too high",
        "test": "read once, after training", "tta": "the same, mean over six views", "coarse": "superclasses",
        "last_train": "the last epoch's weights, on train", "last_test": "the last epoch's weights, on test",
    }  # fmt: skip
    rows = []
    for name, words in what.items():
        if (value := run.get(f"{name}_accuracy")) is not None:
            n = run["train_n" if "train" in name else "val_n" if name == "val" else "test_n"]
            row = {
                "accuracy on": name.replace("_", " "),
                "here": metrics.accuracy_interval([value], n).accuracy(),
                "images": n,
            }
            rows.append(row | {"published": percent(run.get(f"published_{name}"), ".0f"), "how": words})
    return rows


def recipe(run):
    """Tables of the stages, of the rest of the recipe, and of the model."""
    training, model = run["config"].get("training", {}), run["config"].get("row", {})
    stages = [{"stage": str(i), **_plain(one)} for i, one in enumerate(training.get("stages", ()), start=1)]
    rest = {name: value for name, value in training.items() if name != "stages"}
    return [
        stages,
        _upright(_plain(rest)),
        _upright(_plain({f"model: {name}": value for name, value in model.items()})),
    ]


def configuration(run):
    """The rest of the configuration."""
    names = ("experiment", "variant", "budget", "seed", "weights", "precision", "deterministic", "limits", "overrides")
    return _upright(_plain({name: run["config"].get(name) for name in names}))


def _plain(values):
    """Names and values of a configuration as text for readers."""
    return {name.replace("_", " "): _word(value) for name, value in values.items()}


def _word(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(one)}" for name, one in value.items() if one is not None) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _upright(values):
    """A dict as the rows of a table with two columns, which fits on a phone."""
    return [{"what": name, "value": _shown(value)} for name, value in values.items()]


def by_class(run, stored):
    """Accuracy of each class, and its number of images if predictions are stored; empty if nothing is known."""
    names = run.get("class_names") or ()
    if stored is None:
        known = run.get("class_accuracy") or ()
        return [{"class": n, "accuracy": percent(a)} for n, a in zip(names, known, strict=False)]
    matrix = metrics.confusion(*stored)
    rows = zip(names, matrix.diagonal().tolist(), matrix.sum(axis=1).tolist(), strict=True)
    return [
        {"class": n, "accuracy": percent(right / size if size else None), "images": size} for n, right, size in rows
    ]


def _on_balance(run, stored):
    """A sentence for classes whose sizes differ by more than a fifth."""
    matrix = None if stored is None else metrics.confusion(*stored)
    if matrix is None or (beside := metrics.beside_accuracy(matrix)) is None:
        return []
    return [
        f"Classes differ in size by more than a fifth: {run['class_names'][matrix.sum(axis=1).argmax()]} alone is "
        f"{beside['majority_share']:.1%} of the test images. Balanced accuracy, the mean over classes, is "
        f"{beside['balanced_accuracy']:.1%}."
    ]


@drawn
def run_curves(run):
    """Loss and accuracy by epoch."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    if (history := run.get("history")) is None:
        figure.text(0.5, 0.5, "no history kept", ha="center")
    else:
        curves_on(figure, history, run.get("best_epoch"))
    text = "Loss and accuracy by epoch, on training images, running, and on val."
    return Picture(_svg(figure, "curves"), text, " ".join((text, *ON_CURVES)))


def model_section(key, group, question):
    """The sections that `explain` wrote for a run, and lines on those that it left out."""
    question = question.partition(": ")[2] or question
    run_id = group.first["run_id"]
    folder, sections = group.folder / "explain" / run_id, []
    missing = [f"Not analysed yet: cifar-keras explain {run_id}"]
    if (folder / "index.json").is_file():
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        sections = [_stored(folder, name) for name in index["sections"]]
        missing = [f"No section {name}: {reason}." for name, reason in index["left out"].items()]
    question = question[:1].upper() + question[1:]
    return {"key": key, "name": group.name, "question": question, "sections": sections, "missing": missing}


def _stored(folder, name):
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    figures = []
    for figure, text in facts["figures"].items():
        svg = (folder / f"{name}_{figure}.svg").read_text(encoding="utf-8")
        figures.append(Picture(themed(svg, f"{folder.name}-{name}-{figure}"), text, text))
    plain = {key: value for key, value in facts["numbers"].items() if isinstance(value, int | float | str)}
    return facts | {"figures": figures, "scalars": [plain] if len(plain) > 2 else []}


def themed(svg, prefix):
    """A transparent matplotlib SVG for use inside a page: black becomes the page's text colour, identifiers are unique.

    Args:
        svg: from matplotlib.
        prefix: unique on the page, so that `url(#...)` and `href="#..."` find no other figure's shapes.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(fill|stroke): #000000\b(?=[;\"])", r"\1: currentColor", svg)
    mark = re.sub(r"\W+", "-", prefix)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}-", svg)


# --- the page's own figures ---


def _svg(figure, name):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=DATE)
    return themed(buffer.getvalue(), name)


@drawn
def opening(groups):
    """Accuracy against training time, with intervals."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.add_subplot()
    for place, (group, colour, marker) in enumerate(accuracy_time.coloured(groups.values())):
        accuracy_time.mark(panel, group.seconds, group, colour=colour, marker=marker)
        at = (group.seconds, group.estimate.high)
        panel.annotate(group.name, at, xytext=(0, 5), textcoords="offset points", ha="center")
        if (published := group.first["published_test"]) is not None:  # at the margin: its training time is unknown
            at = [0.025 * place, 0.025 * place + 0.02]
            panel.plot(at, [published] * 2, color=colour, linewidth=3, transform=panel.get_yaxis_transform())
    accuracy_time.finish(panel, "training time (log scale)")
    described = "; ".join(f"{g.name} {g.estimate.value:.1%} after {duration(g.seconds)}" for g in groups.values())
    caption = "Test accuracy against training time, with 95% intervals."
    if any(group.first["published_test"] is not None for group in groups.values()):
        caption += " Bars at the left edge: published, on official CIFAR-10."
    return Picture(_svg(figure, "opening"), f"Accuracy against training time: {described}.", caption)


@drawn
def curves(groups):
    """Running train and val accuracy by epoch, one panel per model."""
    figure = Figure(figsize=(6.5, 0.5 + 2.2 * -(-len(groups) // 2)), layout="constrained")
    panels = list(figure.subplots(-(-len(groups) // 2), 2, sharey=True, squeeze=False).flat)
    train, val = seaborn.color_palette("colorblind", 2)
    for panel in panels[len(groups) :]:
        panel.axis("off")
    for panel, group in zip(panels, groups.values(), strict=False):
        panel.set(title=group.name, xlabel="epoch")
        without_frame(panel, "both")
        shares(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if (history := group.first.get("history")) is None:
            panel.text(0.5, 0.5, "no history kept", transform=panel.transAxes, ha="center")
            continue
        panel.plot(history["epoch"], history["accuracy"], "--", color=train, label="train (running)")
        panel.plot(history["epoch"], history["val_accuracy"], color=val, label="val", marker=".")
        panel.legend(frameon=False, fontsize=8)
    figure.supylabel("accuracy", fontsize=10)
    text = "Accuracy by epoch on training images, running, and on val, for each model."
    return Picture(_svg(figure, "curves"), text, text)
