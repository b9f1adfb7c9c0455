"""The command line as users meet it."""

import subprocess
import sys

import pytest

from cifar_keras.cli import guarded, main
from cifar_keras.commands import study
from cifar_keras.config import ConfigError, Experiment, HeldError, RunFailedError
from cifar_keras.options import Options, seeds
from cifar_keras.utils.paths import PROJECT

EXP3 = str(PROJECT / "experiments" / "exp3_finetune.py")


def call(*arguments, **environment):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd="/", **environment)


@pytest.mark.parametrize(
    "arguments",
    [
        (EXP3, "--help"),
        ("-m", "cifar_keras", "--help"),
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
        *("variant", "budget", "dataset", "data-dir", "weights", "epochs", "batch-size", "learning-rate", "seed"),
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
