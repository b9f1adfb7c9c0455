"""The command line as users meet it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from cifar_keras.cli import guarded, main
from cifar_keras.commands import study
from cifar_keras.config import ConfigError, Experiment, HeldError, RunFailedError, Training
from cifar_keras.data import shapes
from cifar_keras.options import Options, seeds
from cifar_keras.utils.paths import CHECKOUT, PROJECT, checkout

EXP3 = str(PROJECT / "experiments" / "exp3_finetune.py")


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=os.path.abspath(os.sep), **environment
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (EXP3, "--help"),
        ("-m", "cifar_keras", "--help"),
        ("-m", "cifar_keras", "find-lr", "--help"),
        ("-m", "cifar_keras", "list"),
        ("-m", "cifar_keras", "collate", "--root", "ROOT"),
    ],
    ids=str,
)
def test_help_list_and_collate_never_load_tensorflow(arguments, tmp_path):
    code = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('cifar_keras', run_name='__main__') if sys.argv[0] == '-m' else "
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert not {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)"
    )
    arguments = tuple(str(tmp_path) if argument == "ROOT" else argument for argument in arguments)
    arguments = ("-m", *arguments[2:]) if arguments[0] == "-m" else arguments
    done = call("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    assert "exp3_finetune" in done.stdout or "study" in done.stdout


def test_help_shows_the_question_and_every_option():
    text = call(EXP3, "--help").stdout
    assert "train every layer" in text
    for name in (
        *(
            "variant",
            "budget",
            "dataset",
            "data-dir",
            "backbone",
            "weights",
            "epochs",
            "batch-size",
            "learning-rate",
            "seed",
        ),
        *("limit", "precision", "deterministic", "root", "fresh", "dry-run", "verbose"),
    ):
        assert f"--{name}" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--variant", "x"), "choose from best, published, all"),
        (("--budget", "x"), "full"),
        (("--precision", "x"), "mixed_bfloat16"),
        (("--epochs", "0"), "at least 1"),
        (("--learning-rate", "-1"), "above 0"),
        (("--learning-rate", "nan"), "above 0"),
        (("--seed", "4-0"), "0-4"),
        (("--seed", "3000000000"), "below 2**31"),
        (("--unknown",), "--unknown"),
    ],
)
def test_a_bad_option_lists_the_choices_and_exits_with_2(arguments, text):
    done = call(EXP3, *arguments)
    assert done.returncode == 2
    assert text in done.stderr and "Traceback" not in done.stderr


def test_a_bad_dataset_is_one_sentence(tmp_path):
    done = call(EXP3, "--dataset", "cifar11", "--weights", "none", "--root", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: `dataset` must be 'cifar10'") and len(done.stderr.splitlines()) == 1


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    done = call(EXP3, "--data-dir", str(tmp_path / "x"), "--budget", "demo", "--root", str(tmp_path))
    assert done.returncode == 2 and "`--data-dir` must be a folder" in done.stderr


def test_all_variants_leave_out_numbers_of_labelled_images_that_no_class_has(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(study, "process", lambda path, arguments, ahead: seen.append(arguments[-3]) or 0)
    recipe = Training("scratch_cnn", ())
    sizes = {f"scratch_{count}": replace(recipe, per_class=count) for count in (5, 50)}
    experiment = Experiment(number=9, name="cifar100_transfer", variants={"scratch": recipe} | sizes)
    shapes.write(tmp_path / "images", classes=2, per_class=20)
    for limit, kept in (([], ["scratch", "scratch_5"]), (["--limit", "9"], ["scratch", "scratch_5", "scratch_50"])):
        seen.clear()
        with pytest.raises(SystemExit) as end:
            main(experiment, ["--dataset", str(tmp_path / "images"), *limit])
        assert end.value.code == 0 and seen == kept
    assert "scratch_50 is left out. The variant takes 50 labelled images of each class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "runs", "code"), [([0, 0, 0], 3, 0), ([0, 3, 0], 3, 1), ([0, 143, 0], 2, 143), ([4], 1, 4)]
)
def test_seeds_run_one_by_one_until_a_signal(monkeypatch, codes, runs, code):
    seen = []

    def process(path, arguments, ahead):
        seen.append(arguments)
        return codes[len(seen) - 1]

    monkeypatch.setattr(study, "process", process)
    experiment = Experiment(number=3, name="finetune", variants={"best": None})
    with pytest.raises(SystemExit) as end:
        main(experiment, ["--seed", "0-2", "--epochs", "1"])
    assert end.value.code == code and len(seen) == runs
    assert seen[0] == ["--seed", "0-2", "--epochs", "1", "--variant", "best", "--seed", "0"]


def test_seeds_are_one_or_a_range():
    assert list(seeds("3")) == [3]
    assert list(seeds("0-4")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (RunFailedError("x"), 3),
        (HeldError("x"), 4),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 3),
    ],
)
def test_exit_codes_without_stack_traces(error, code, capsys):
    def failing():
        raise error

    for resumable in (True, False):
        assert guarded(failing, resumable=resumable) == code
        err = capsys.readouterr().err
        assert "Traceback" not in err and ("continues" in err) == (resumable and code == 130)


def test_only_what_deviates_becomes_part_of_a_name():
    assert Options(seed=1, root="elsewhere", fresh=True, data_dir="d").changes() == {}
    assert Options(epochs=3, precision="float32").changes() == {"epochs": 3, "precision": "float32"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Calls Python in an empty folder, with a copy of the package that is in no checkout, as an installed one."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    shutil.copytree(PROJECT / "cifar_keras", site / "cifar_keras", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(site)}
        line = [sys.executable, *arguments]
        return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True)

    run.folder = folder
    return run


def test_a_checkout_holds_experiments_and_pyproject(tmp_path):
    assert CHECKOUT == PROJECT == checkout(PROJECT / "cifar_keras" / "utils" / "paths.py")
    file = tmp_path / "site-packages" / "cifar_keras" / "utils" / "paths.py"
    assert checkout(file) is None
    (tmp_path / "site-packages" / "experiments").mkdir(parents=True)
    assert checkout(file) is None  # anybody's package may be called so
    (tmp_path / "site-packages" / "pyproject.toml").touch()
    assert checkout(file) == tmp_path / "site-packages"


@pytest.mark.parametrize(
    "arguments", [("list",), ("run", "exp4"), ("study", "--budget", "demo"), ("collate",), ("find-lr", "exp4")], ids=str
)
def test_installed_what_needs_the_experiments_asks_for_a_checkout(arguments, installed):
    done = installed("-m", "cifar_keras", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(installed.folder / "experiments") in done.stderr and "repository" in done.stderr
    assert not any(installed.folder.iterdir())


def test_installed_the_experiments_of_the_current_folder_are_used(installed):
    shutil.copytree(PROJECT / "experiments", installed.folder / "experiments")
    try:
        done = installed("-m", "cifar_keras", "list")
        assert done.returncode == 0 and "exp4_scratch" in done.stdout, done.stderr
        done = installed("-m", "cifar_keras", "run", "exp3", "--variant", "x")
        assert done.returncode == 2 and "choose from best" in done.stderr
    finally:
        shutil.rmtree(installed.folder / "experiments")


INSTALLED = """
from cifar_keras import cli
from cifar_keras.utils import runtime
assert runtime.git_commit() is None
runtime.setup()
import keras
from cifar_keras.data import shapes
layers = [keras.layers.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")]
keras.Sequential(layers).save("m.keras")
shapes.write("images", classes=2, per_class=1)
for line in (
    "doctor", "inspect m.keras", "predict m.keras images", "evaluate m.keras --dataset shapes --limit 20",
    "export m.keras --to litert --dataset shapes", "compare CSV",
):
    try:
        cli.command(line.split())
    except SystemExit as end:
        assert end.code == 0, line
"""  # fmt: skip


def test_installed_saved_models_are_used_in_the_current_folder(installed):
    csv = (PROJECT / "results" / "results.csv").as_posix()
    done = installed("-W", "ignore", "-c", INSTALLED.replace("CSV", csv))
    assert done.returncode == 0, done.stderr
    assert "not in a git checkout" in done.stdout and "2 images, m.keras" in done.stderr
    made = {path.name for path in installed.folder.iterdir()}
    assert made == {"m.keras", "m.tflite", "images", "results"}
    assert [path.suffix for path in (installed.folder / "results" / "evaluate").iterdir()] == [".png"]
