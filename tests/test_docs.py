"""The documents stay true: each row of the table of forms is a test, links lead to files, and diffs still apply."""

import ast
import itertools
import re

import pytest

from cifar_keras.utils.paths import PROJECT

CONTRIBUTING = PROJECT / "CONTRIBUTING.md"
PAGES = [PROJECT / "README.md", CONTRIBUTING, PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]
FORMS = PROJECT / "docs" / "saved_models.md"


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
