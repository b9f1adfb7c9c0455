"""Imports go only downward, and the library branches on no experiment."""

import ast

import pytest

from cifar_keras.paths import PROJECT

ORDER = (
    "config", "units", "paths", "files", "runtime", "images",
    "datasets.base", "datasets.cifar", "datasets.layout", "datasets.folder", "datasets.shapes", "datasets",
    "augment", "pipeline", "blocks", "zoo", "weights", "optim", "foreign", "stored_weights", "artifacts", "train",
    "features", "labels", "formats", "inference", "evaluate", "scaling", "results",
    "report", "report.figures", "report.rows", "report.table",
    "report.summary_plots", "report.summary",
    "report.pairs", "report.comparison",
    "explain.base", "explain.errors", "explain.calibration", "explain.space", "explain.versus", "explain.flatten",
    "explain.gradcam", "explain.activations", "explain.elsewhere", "explain", "explain.analyse", "report.meaning",
    "report.page", "track", "runner", "predict", "scores", "describe", "resizing", "export", "doctor", "commands",
    "cli", "__main__",
)  # fmt: skip
PACKAGE = PROJECT / "cifar_keras"
WITHOUT_TENSORFLOW = (
    "config",
    "units",
    "paths",
    "files",
    "images",
    "labels",
    "datasets",
    "evaluate",
    "results",
    "report",
    "commands",
)
ONLY_KERAS = (
    "blocks",
    "zoo",
    "weights",
    "optim",
    "foreign",
    "stored_weights",
    "artifacts",
    "train",
    "features",
    "formats",
    "inference",
    "runner",
)


def modules():
    """Every module of the package by its dotted name below it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name.replace("__init__", ""), ast.parse(path.read_text())


def imports(tree):
    """The dotted names that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_in_the_order():
    assert {name for name, _ in modules()} - {""} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_earlier_ones(name):
    tree = dict(modules())[name]
    inner = [i.removeprefix("cifar_keras.") for i in imports(tree) if i.startswith("cifar_keras.")]
    for used in inner:
        place = max((known for known in ORDER if f"{used}.".startswith(f"{known}.")), key=len)
        assert ORDER.index(place) < ORDER.index(name), f"{name} imports {used}"


def test_tensorflow_and_keras_are_imported_only_where_they_are_needed():
    for name, tree in modules():
        roots = {i.partition(".")[0] for i in imports(tree)}
        if name.partition(".")[0] in WITHOUT_TENSORFLOW:
            assert not roots & {"tensorflow", "keras"}, name
        if name in ONLY_KERAS:
            assert "tensorflow" not in roots, name


def test_the_library_branches_on_no_experiment_and_no_variant():
    experiments = {path.stem for path in (PROJECT / "experiments").glob("exp*.py")}
    forbidden = experiments | {"published"} | {f"exp{number}" for number in range(1, 10)}
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                constants = {
                    n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
                assert not constants & forbidden, f"{name}, line {node.lineno}"


def test_no_function_is_longer_than_a_screen():
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"
