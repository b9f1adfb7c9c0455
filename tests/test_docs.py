"""The documents stay true: accuracies are in the results, rows of the table of forms are tests, links lead to files."""

import ast
import itertools
import json
import re

import pytest
from helpers import EXPERIMENT_FILES, experiment_of

from cifar_keras import results
from cifar_keras.results.groups import newest_recipes
from cifar_keras.utils.paths import PROJECT

CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
PAGES = [PROJECT / "README.md", CONTRIBUTING, PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]
FORMS = PROJECT / "docs" / "saved_models.md"
STATED = [PROJECT / "README.md", PROJECT / "docs" / "findings.md"]
SHARES = [name for name in results.COLUMNS if name.endswith("_accuracy")]
RECORDS = results.finished(PROJECT)


def rows_of_forms():
    """`(form, file, test)` of every row of the table of forms."""
    rows = [line.split("|")[1:-1] for line in FORMS.read_text(encoding="utf-8").splitlines() if "::test_" in line]
    return [(row[0].strip(), *re.search(r"`([\w/]+\.py)::(test_\w+)`", row[-1]).groups()) for row in rows]


def test_the_table_of_forms_is_there():
    assert len(rows_of_forms()) >= 20


@pytest.mark.parametrize(("form", "file", "test"), rows_of_forms())
def test_every_row_of_the_table_of_forms_is_a_test(form, file, test):
    tree = ast.parse((PROJECT / "tests" / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, form


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
        target = "".join(target)
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links {target}"


def lines_to_change():
    """`(file, line, replacement)` of each line that a diff in CONTRIBUTING.md keeps or removes."""
    for block in re.findall(r"^```diff\n(.*?)^```", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line, behind in itertools.pairwise([*block.splitlines(), " "]):
            if line.startswith("+++ b/"):
                file = line.removeprefix("+++ b/")
            elif line[0] in " -" and not line.startswith("--- "):
                yield file, line[1:], behind[1:] if behind[0] == "+" else line[1:]


@pytest.mark.parametrize(("file", "line", "replacement"), list(lines_to_change()))
def test_the_diffs_of_contributing_apply_or_are_applied(file, line, replacement):
    assert {line, replacement} & set((PROJECT / file).read_text(encoding="utf-8").splitlines())


def test_contributing_lists_every_package():
    packages = {path.parent.name for path in (PROJECT / "cifar_keras").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"`(\w+)/`", CONTRIBUTING.read_text(encoding="utf-8")))


def shares_stated(page):
    """`(share, paragraph)` of each percentage that a page states by hand: '94.15' of '94.15%'."""
    text = re.sub(r"(?s)<!-- generated.*?<!-- /generated -->|```.*?```|<[^>]+>", "", page.read_text(encoding="utf-8"))
    for paragraph in re.split(r"\n\n|\n(?=[-|])", text):
        for share in re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)%(?! interval)", paragraph):
            yield share, paragraph


def measured(records):
    """Every accuracy in the records and in the means over seeds."""
    means = [{name: group.average(name) for name in SHARES} for group in newest_recipes(records)]
    return {value for run in [*records, *means] for name in SHARES if (value := run.get(name)) is not None}


def published():
    """Every test accuracy that a source reported for an experiment of the study."""
    experiments = [experiment_of(path) for path in EXPERIMENT_FILES]
    return {experiment.published["test"] for experiment in experiments if experiment.part_of_study}


@pytest.mark.parametrize("page", STATED, ids=lambda page: page.name)
def test_every_accuracy_that_a_page_states_is_in_the_results(page):
    stated = list(shares_stated(page))
    assert stated
    official = published() | measured([run for run in RECORDS if "JPEG" not in run["dataset"]])
    everything = published() | measured(RECORDS) | jpeg_cost()
    for share, paragraph in stated:
        digits = len(share.partition(".")[2])
        known = everything if "JPEG" in paragraph else official
        assert share in {f"{100 * value:.{digits}f}" for value in known}, f"{share}% in: {paragraph}"


def jpeg_cost():
    """The accuracies of `results/jpeg_cost.json`, which `cifar-keras evaluate --json` wrote."""
    documents = json.loads((PROJECT / "results" / "jpeg_cost.json").read_text(encoding="utf-8"))
    return {model["accuracy"] for document in documents for model in document["models"]}
