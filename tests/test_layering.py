"""Imports go only downward, and the library branches on no experiment."""

import ast
import functools

from cifar_keras.utils.paths import PROJECT

# Each package imports only from those above it in this list; so does each module within its package.
ORDER = {
    "config": (),
    "utils": ("text", "paths", "system", "files", "cache", "runtime"),
    "options": (),
    "metrics": (),
    "plotting": (),
    "data": (
        *("base", "images", "cifar", "layout", "reading", "folder", "shapes", "", "draws", "mixing", "policies"),
        *("augment", "pipeline"),
    ),
    "models": ("torch_files", "blocks", "backbones", "fused", "zoo", "weights"),
    "training": ("optim", "distil", "train", "lr_range", "features", "tensorboard"),
    "results": ("records", "", "groups", "matching"),
    "saved": (
        *("safe_loading", "stored_weights", "artifacts", "formats", "find", "labels", "inference", "scaling"),
        *("scoring", "resizing", "inspect_model", "export"),
    ),
    "explain": (
        *(
            "base",
            "errors",
            "calibration",
            "embeddings",
            "model_comparison",
            "published",
            "flatten",
            "gradcam",
            "activations",
        ),
        *("elsewhere", "", "analyse"),
    ),
    "report": (
        *(
            "table",
            "accuracy_time",
            "summaries.base",
            "summaries.effects",
            "summaries.factorial",
            "summaries.gap",
            "summaries.selection",
        ),
        *("summaries.transfer", "summaries", "comparison", "conclusions", "page"),
    ),
    "job": (),
    "outcome": (),
    "runner": (),
    "commands": ("doctor", "augmentations", "predict", "footprint", "evaluate", "published", "study", "find_lr"),
    "cli": (),
    "__main__": (),
}
PACKAGE = PROJECT / "cifar_keras"
WITHOUT_TENSORFLOW = (
    *("config", "utils.text", "utils.paths", "utils.system", "utils.files", "utils.cache"),
    *("options", "metrics", "plotting"),
    *("data.base", "data.images", "data.cifar", "data.layout", "data.reading", "data.folder", "data.shapes", "data"),
    *("results.records", "results", "results.groups", "results.matching", "saved.labels"),
    *("report.table", "report.summaries", "report.comparison", "report.conclusions", "report.page", "commands.study"),
)
CONVERTERS = ("saved.resizing", "saved.export", "models.fused")
ONLY_KERAS = (
    "models.",
    "training.optim",
    "training.train",
    "training.lr_range",
    "training.distil",
    "training.features",
    "saved.",
    "job",
    "outcome",
    "runner",
)


@functools.cache
def modules():
    """`(name, tree)` of every module of the package, by its dotted name below it."""
    return [*_modules()]


def _modules():
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


def inner_imports(tree):
    """The modules of this package that a module imports, as `(package, module)`."""
    known = dict(modules())
    for used in imports(tree):
        parts = used.removeprefix("cifar_keras.").split(".")
        if used.startswith("cifar_keras."):
            found = next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in known)
            yield found.partition(".")[::2]


def test_every_module_has_its_place_in_the_order():
    placed = {package: sorted(filter(None, inner)) for package, inner in ORDER.items()}
    found = {}
    for name, _ in modules():
        package, _, inner = name.partition(".")
        found.setdefault(package, []).append(inner)
    del found[""]
    assert {package: sorted(filter(None, inner)) for package, inner in found.items()} == placed


def test_packages_import_only_those_below_them():
    """Hence no two packages import each other, and there is no cycle."""
    packages = list(ORDER)
    for name, tree in modules():
        package = name.partition(".")[0]
        for used, _ in inner_imports(tree) if name else ():
            assert packages.index(used) <= packages.index(package), f"{name} imports from {used}"


def test_modules_import_only_those_below_them_in_their_package():
    for name, tree in modules():
        package, _, module = name.partition(".")
        inner = [used for owner, used in inner_imports(tree) if owner == package and used in ORDER[package]]
        for used in inner:
            assert ORDER[package].index(used) < ORDER[package].index(module), f"{name} imports {package}.{used}"


def test_tensorflow_and_keras_are_imported_only_where_they_are_needed():
    for name, tree in modules():
        roots = {i.partition(".")[0] for i in imports(tree)}
        if name in WITHOUT_TENSORFLOW:
            assert not roots & {"tensorflow", "keras"}, name
        if name.startswith(ONLY_KERAS):
            assert "tensorflow" not in roots or name in CONVERTERS, name


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
                assert node.end_lineno - node.lineno < 45, f"{name}.{node.name}"


def test_tests_share_helpers_and_import_no_other_test():
    folder = PROJECT / "tests"
    tests = {path.stem for path in folder.rglob("*.py")} - {"helpers"}
    for path in folder.rglob("test_*.py"):
        roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert not roots & tests, path.name


def test_tests_mirror_the_package():
    for folder in (path for path in (PROJECT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))):
        assert folder.name in ORDER, f"tests/{folder.name} has no package of its name"
