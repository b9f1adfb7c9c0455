"""The report: the study on one self-contained page, from the records and what `explain` has left beside them."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe
import matplotlib
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cifar_keras import results
from cifar_keras.config import BEST, BUDGETS, PUBLISHED, ConfigError
from cifar_keras.files import write_text
from cifar_keras.report.meaning import Row, sentences
from cifar_keras.report.rows import natural
from cifar_keras.report.table import DASH, newest_recipes
from cifar_keras.units import duration

TEMPLATE = Path(__file__).with_name("page.html.j2")
GREY = "0.45"
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "cifar_keras"}
TICKS = (1, 3, 10, 30, *(60 * minutes for minutes in (1, 2, 5, 10, 20, 60, 180, 600, 1800)))  # seconds of training
SECTIONS = ("errors", "calibration", "gradcam", "activations", "space", "versus")  # of `explain`, in their order


@dataclass(frozen=True)
class Picture:
    """A figure of the page: SVG, what it shows, and a caption."""

    svg: str
    description: str
    caption: str = ""


def build(root, entries):
    """Writes `results/report/index.html`.

    Args:
        root: folder that holds `results/`.
        entries: of the study's experiments, anything with `key`, `number`, `question` and `published`.
    Returns: the path.
    Raises: ConfigError where no two of the study's experiments have finished runs.
    """
    records = results.read(root)
    rows = study_rows(records, entries, Path(root) / "results")
    if len(rows) < 2:
        raise ConfigError(
            "The report compares the study's experiments, so two of them or more must have a finished run. Received: "
            f"{len(rows)} below {root}. Run `cifar-keras study`, or `make demo`."
        )
    text = render(rows, entries, Path(root) / "results")
    path = Path(root) / "results" / "report" / "index.html"
    write_text(path, text)
    return path


def study_rows(records, entries, folder):
    """A `Row` for each experiment with a finished run: the newest of the largest budget, on the data most have.

    Args:
        records: run records, oldest first.
        entries: as for `build`.
        folder: where results.csv stands; predictions are looked for beside it.
    Returns: `{key: Row}` in the experiments' order.
    """
    groups = [group for group in newest_recipes(records) if not results.overrides(group[0])]
    groups = groups or newest_recipes(records)
    keys = [entry.key for entry in entries]
    best = [group for group in groups if group[0]["experiment"] in keys and group[0]["variant"] == BEST]
    if not best:
        return {}
    data = [group[0]["dataset"] for group in best]
    common = max(sorted(set(data)), key=lambda one: len({g[0]["experiment"] for g in best if g[0]["dataset"] == one}))
    found = {}
    for entry in sorted(entries, key=lambda entry: natural(entry.key)):
        own = [group for group in best if (group[0]["experiment"], group[0]["dataset"]) == (entry.key, common)]
        if own:
            chosen = min(own, key=lambda g: (_rank(g), not _called_for(g), [-ord(c) for c in g[0]["utc"]]))
            rebuilt = [g for g in groups if _rebuilds(g, chosen)]
            found[entry.key] = Row(
                name=_name(entry.key),
                runs=tuple(chosen),
                published=chosen[0].get("published_test"),
                rebuilt=tuple(rebuilt[0]) if rebuilt else (),
                right=_right(folder, chosen[0]),
            )
    return found


def _rank(group):
    return list(BUDGETS).index(group[0]["budget"])


def _called_for(group):
    return group[0]["weights"] == group[0]["weights_called_for"]


def _rebuilds(group, chosen):
    """Whether this is the published recipe on the same data, under the same budget and weights."""
    columns = ("experiment", "dataset", "budget", "weights")
    return group[0]["variant"] == PUBLISHED and all(group[0][c] == chosen[0][c] for c in columns)


def _right(folder, record):
    stored = results.read_predictions(folder, record["run_id"])
    return None if stored is None else stored[1].argmax(axis=1) == stored[0]


def _name(key):
    return key.partition("_")[2].replace("_", " ")


def render(rows, entries, folder):
    """The page as HTML. Arguments as `study_rows` has and returns them."""
    loader = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    first = next(iter(rows.values())).runs[0]
    questions = {entry.key: _sentence(entry.question.partition(": ")[2] or entry.question) for entry in entries}
    return loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Four models on {first['dataset']}",
        subtitle=_subtitle(rows),
        opening=opening(rows),
        overview=overview(rows, entries),
        sentences=sentences(list(rows.values())),
        curves=curves(rows),
        cost=cost(rows),
        models=[model_section(key, row, questions[key], folder) for key, row in rows.items()],
        data=data_lines(rows),
        environment=environment(rows),
        commands=commands(rows),
        figure=figure_html,
        table=table_html,
    )


def _sentence(text):
    return text[:1].upper() + text[1:]


def _subtitle(rows):
    counts = sorted({row.runs[0]["test_n"] for row in rows.values()})
    images = " to ".join(f"{n:,}" for n in dict.fromkeys((counts[0], counts[-1])))
    return f"{len(rows)} of four experiments have been run; {images} test images each; intervals are 95%."


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
    """Dicts heading -> number or text as a table, numbers to the right."""
    if not rows:
        return markupsafe.Markup('<p class="missing">Nothing to show.</p>')
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    numeric = {h for h in headings if all(isinstance(row.get(h), int | float | type(None)) for row in rows)}

    def cell(row, heading, tag="td"):
        value = heading if tag == "th" else _cell(row.get(heading))
        kind = ' class="number"' if heading in numeric else ""
        return f"<{tag}{kind}>{markupsafe.escape(value)}</{tag}>"

    head = "".join(cell({}, heading, "th") for heading in headings)
    body = "".join(f"<tr>{''.join(cell(row, heading) for heading in headings)}</tr>" for row in rows)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return markupsafe.Markup(f'<div class="table">{whole}</div>')


def _cell(value):
    if value is None or value == "":
        return DASH
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def overview(rows, entries):
    """The one table: published, the published recipe run here, ours; a line for what has not been run."""
    lines = []
    for entry in sorted(entries, key=lambda entry: natural(entry.key)):
        row, published = rows.get(entry.key), entry.published.get("test")
        known = DASH if published is None else f"{published:.0%}"
        line = {"model": _name(entry.key), "published": known}
        if row is None:
            lines.append(line | {"published recipe, run here": "not run", "ours": "not run", "how": DASH})
            continue
        rebuilt = Row(row.name, row.rebuilt) if row.rebuilt else None
        run = row.runs[0]
        facts = f"{run['test_n']:,} images, budget {run['budget']}, weights {_weights(run)}"
        lines.append(
            line | {
                "published recipe, run here": _interval(rebuilt) if rebuilt else "not run",
                "ours": _interval(row), "how": facts,
            }
        )  # fmt: skip
    return lines


def _weights(run):
    """Where the backbone came from, in a word or two: a model's file is named in the environment's table."""
    return run["weights"] if run["weights"] in ("none", "imagenet") else f"of {run['weights'].partition('_')[0]}"


def _interval(row):
    e = row.estimate
    return f"{e.value:.1%} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def cost(rows):
    """What each model takes."""
    return [
        {
            "model": row.name,
            "training": duration(row.seconds),
            "epochs": row.runs[0]["epochs"],
            "training images": row.runs[0]["train_images"],
            "images/s": row.runs[0]["images_per_second"],
            "parameters": row.runs[0]["parameters"],
            "of these trained": row.runs[0]["parameters_trainable"],
            "peak memory, MiB": row.runs[0]["peak_memory_mb"],
        }
        for row in rows.values()
    ]


def data_lines(rows):
    """What was trained and measured on."""
    lines = []
    for row in rows.values():
        run = row.runs[0]
        lines.append(
            f"{row.name}: {run['dataset']} (fingerprint {run['fingerprint'][:12]}), {run['train_images']:,} training, "
            f"{run['val_n']:,} val and {run['test_n']:,} test images; {'; '.join(run.get('notes', ())) or 'no notes'}."
        )
    if any("JPEG" in row.runs[0]["dataset"] for row in rows.values()):
        lines.append("CIFAR-10 (JPEG) is not the official archive: the same images, compressed once more.")
    if any("synthetic" in row.runs[0]["dataset"] for row in rows.values()):
        lines.append("The images are synthetic: nothing here is a result on CIFAR.")
    return lines


def environment(rows):
    """Hardware, versions and code of each row."""
    names = ("weights", "device", "backend", "keras", "tensorflow", "python", "precision", "seed", "git_commit", "utc")
    return [
        {"model": row.name, **{name: str(row.runs[0].get(name) or DASH) for name in names}} for row in rows.values()
    ]


def commands(rows):
    """How each row is run again; a folder of images is written DIR."""
    lines = []
    for key, row in rows.items():
        run, config = row.runs[0], row.runs[0]["config"]
        data = config["dataset"]
        parts = [f"python experiments/{key}.py"]
        if data not in ("cifar10",):
            parts.append(f"--dataset {data if data in ('cifar100', 'shapes', 'shapes100') else 'DIR'}")
        if run["budget"] != "full":
            parts.append(f"--budget {run['budget']}")
        if run["weights"] != run["weights_called_for"]:
            parts.append(f"--weights {run['weights'] if run['weights'] in ('none', 'imagenet') else 'FILE'}")
        if len(row.runs) > 1 or run["seed"]:
            parts.append(f"--seed {row.runs[0]['seed']}-{row.runs[-1]['seed']}")
        lines.append(" ".join(parts))
    return [*lines, "cifar-keras report"]


def model_section(key, row, question, folder):
    """What `explain` has left of a run, in the order of SECTIONS."""
    place = folder / "explain" / row.runs[0]["run_id"]
    found = [_stored(place, name) for name in SECTIONS if (place / f"{name}.json").is_file()]
    missing = f"Not analysed yet: cifar-keras explain {row.runs[0]['run_id']}"
    return {"key": key, "name": row.name, "question": question, "sections": found, "missing": missing}


def _stored(place, name):
    facts = json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
    figures = []
    for figure, text in facts["figures"].items():
        svg = (place / f"{name}_{figure}.svg").read_text(encoding="utf-8")
        figures.append(Picture(themed(svg, f"{place.name}-{name}-{figure}"), text, text))
    return facts | {"figures": figures}


def themed(svg, prefix):
    """A transparent matplotlib SVG that stands inside a page: black follows the page's ink, identifiers of its own.

    Args:
        svg: as matplotlib writes it.
        prefix: unique on the page; `url(#...)` and `href="#..."` would else find another figure's shapes.
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
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return themed(buffer.getvalue(), name)


def opening(rows):
    """Accuracy against training seconds, with intervals."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.add_subplot()
    colours = seaborn.color_palette("colorblind", len(rows))
    for row, colour, marker in zip(rows.values(), colours, "osD^v", strict=False):
        e = row.estimate
        reach = [[e.value - e.low], [e.high - e.value]]
        panel.errorbar(row.seconds, e.value, yerr=reach, color=colour, marker=marker, markersize=9, capsize=4)
        panel.annotate(row.name, (row.seconds, e.high), xytext=(0, 5), textcoords="offset points", ha="center")
        if row.published is not None:
            panel.plot(row.seconds, row.published, marker="_", color=colour, markersize=16)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(TICKS))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    panel.margins(x=0.12, y=0.15)
    panel.set(xlabel="training time (log scale)", ylabel="test accuracy")
    _bare(panel)
    described = "; ".join(f"{r.name} {r.estimate.value:.1%} after {duration(r.seconds)}" for r in rows.values())
    caption = "Test accuracy against training time, with 95% intervals. Dashes: published, on official CIFAR-10."
    return Picture(_svg(figure, "opening"), f"Accuracy against training time: {described}.", caption)


def curves(rows):
    """Running train and val accuracy by epoch, a panel a model that keeps its history."""
    kept = {key: row for key, row in rows.items() if row.runs[0].get("history")}
    if not kept:
        return []
    figure = Figure(figsize=(6.5, 0.5 + 2.2 * -(-len(kept) // 2)), layout="constrained")
    panels = list(figure.subplots(-(-len(kept) // 2), 2, sharey=True, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    train, val = seaborn.color_palette("colorblind", 2)
    for panel, row in zip(panels, kept.values(), strict=False):
        panel.axis("on")
        history = row.runs[0]["history"]
        panel.plot(history["epoch"], history["accuracy"], "--", color=train, label="train (running)")
        panel.plot(history["epoch"], history["val_accuracy"], color=val, label="val", marker=".")
        panel.set(title=row.name, xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        _bare(panel)
    figure.supylabel("accuracy", fontsize=10)
    panels[0].legend(frameon=False, fontsize=8)
    text = "Accuracy by epoch on training images, running, and on val, for each model."
    return [Picture(_svg(figure, "curves"), text, text)]


def _bare(panel):
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=GREY, alpha=0.25, linewidth=0.7)
    panel.set_axisbelow(True)
