"""`cifar-keras find-lr`: the loss of a recipe at ever higher rates, on the embedded images."""

import numpy as np
import pytest
from helpers import EXPERIMENT_FILES, experiment_of
from PIL import Image

from cifar_keras import cli, runner
from cifar_keras.commands import find_lr
from cifar_keras.config import ConfigError, Experiment, Stage, Training
from cifar_keras.options import Options
from cifar_keras.training.lr_range import RangeTest, Suggestion, rising
from cifar_keras.training.train import Recorder

SMALL = ("--dataset", "shapes", "--limit", "200", "--precision", "float32")
EXP4 = experiment_of(next(path for path in EXPERIMENT_FILES if path.stem == "exp4_scratch"))
TWO_STAGES = Training("m", stages=(Stage(2, 1e-3), Stage(8, 1e-2, warmup=0.1)))


def ran(*arguments):
    with pytest.raises(SystemExit) as exit:
        cli.command(["find-lr", *map(str, arguments)])
    return exit.value.code


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def weights_at_the_start(monkeypatch, callback):
    """A list that gets the model's weights when a `fit` with this callback begins."""
    seen, real = [], callback.on_train_begin

    def begin(self, logs=None):
        seen.append(self.model.get_weights())
        real(self, logs)

    monkeypatch.setattr(callback, "on_train_begin", begin)
    return seen


def test_it_starts_from_a_run_s_weights_suggests_rates_and_writes_a_figure_alone(tmp_path, monkeypatch, capsys):
    ours = weights_at_the_start(monkeypatch, RangeTest)
    asked = ("--variant", "published", "--from", "3e-5", "--to", "1e-2", "--steps", "60")
    assert ran("exp4", *SMALL, *asked, "--root", tmp_path / "ours") == 0
    stem = "exp4_shapes_published_limit=200_precision=float32"
    assert files(tmp_path / "ours") == [f"results/figures/{stem}_find_lr.png"]
    said = capsys.readouterr().out
    for part in ("steepest descent", "minimum / 10", "the recipe's rate", "all trained weights", "let val decide"):
        assert part in said
    assert said.splitlines()[-1].endswith("find_lr.png")
    with Image.open(said.splitlines()[-1]) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500

    theirs = weights_at_the_start(monkeypatch, Recorder)
    plain = {"dataset": "shapes", "limit": 200, "precision": "float32", "epochs": 1, "variant": "published", "seed": 0}
    runner.run(EXP4, Options(**plain, root=str(tmp_path / "theirs")))
    for one, other in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_never_falls_suggests_nothing_and_exits_with_1(tmp_path, capsys):
    path = tmp_path / "curve.png"
    bounds = ("--from", "1e-12", "--to", "1e-11", "--steps", "20")
    assert ran("4", "--variant", "published", *SMALL, *bounds, "--out", path, "--root", tmp_path / "root") == 1
    assert "no suggestion: the smoothed loss never fell" in capsys.readouterr().out
    assert files(tmp_path) == ["curve.png"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("exp99",), "The experiment must be one of: exp1_frozen"),
        (("exp4", "--variant", "x"), "`--variant` must be one of best, long, published. Received: 'x'"),
        (("exp4", "--variant", "all"), "`--variant` must be one of best"),
        (("exp4", "--seed", "0-4"), "`--seed` must be one seed. Received: 0-4"),
        (("exp4", *SMALL, "--stage", "2"), "`--stage` must be 1 to 1: the recipe has one stage. Received: 2"),
        (("exp4", *SMALL, "--steps", "19"), "`--steps` must be at least 20, or there is no curve. Received: 19"),
        (("exp4", *SMALL, "--from", "1", "--to", "0.1"), "`--from` must be below `--to`. Received: 1 and 0.1"),
        (("exp4", *SMALL, "--from", "9"), "`--from` must be below `--to`. Received: 9 and"),
        (("exp4", "--out", "curve.pdf"), "`--out` must end in .png. Received: 'curve.pdf'"),
        (("exp4", "--backbone", "resnet18"), "`--backbone` is for experiments that compare networks"),
    ],
)
def test_bad_input_is_one_sentence_and_exits_with_2(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ran(*arguments, "--root", tmp_path) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.splitlines()) == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("arguments", [("--from", "0"), ("--to", "nan"), ("--steps", "0"), ("--stage", "0"), ()])
def test_a_value_that_is_none_is_refused_by_the_parser(arguments, capsys):
    assert ran(*(("exp4", *arguments) if arguments else ())) == 2
    assert "error: " in capsys.readouterr().err


def test_the_variant_is_best_or_the_first_and_old_names_hold():
    def of(experiment, **options):
        return find_lr.resolved(experiment, Options(**options)).variant

    ablation = Experiment(7, "x", {"first": None, "second": None}, renamed={"old": "second"})
    assert (of(EXP4), of(ablation), of(ablation, variant="old")) == ("best", "first", "second")
    with pytest.raises(ConfigError, match="first, second. Received: 'third'"):
        of(ablation, variant="third")


def test_rates_go_from_a_ten_thousandth_of_the_stage_s_own_to_thirty_times_it():
    rates = find_lr.planned(TWO_STAGES, 2, find_lr.Asked())
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(1e-6), pytest.approx(0.3), 100)
    rates = find_lr.planned(TWO_STAGES, 1, find_lr.Asked(last=5.0))
    assert (rates[0], rates[-1]) == (pytest.approx(1e-7), pytest.approx(5.0))
    with pytest.raises(ConfigError, match="1 to 2: the recipe has 2 stages. Received: 3"):
        find_lr.planned(TWO_STAGES, 3, find_lr.Asked())


def test_a_later_stage_says_that_its_run_begins_elsewhere():
    said = "\n".join(find_lr.plan(TWO_STAGES, 2, rising(1e-6, 1.0, 100)))
    assert "stage 2 of 2, adamw, 100 steps from 1e-06 to 1" in said
    assert "starts from the initial weights; a run has trained stage 1 before" in said
    assert "initial weights" not in "\n".join(find_lr.plan(TWO_STAGES, 1, rising(1e-6, 1.0, 100)))


def test_what_ended_the_test_and_a_loss_that_still_falls_are_said():
    rates, found = rising(1e-4, 1.0, 40), Suggestion(0.01, 0.02, still_falling=True)

    def of(steps):
        return "\n".join(find_lr.conclusion(rates, np.ones(40), found, recipe=0.05, steps=steps))

    assert "both may be too low" in of(40) and "ended after" not in of(40)
    assert "ended after step 40, at the rate 1:" in of(60) and "both may be too low" not in of(60)
    assert "recipe's rate   0.05" in of(40)


def test_the_figure_survives_a_loss_that_soars_and_marks_what_was_found(tmp_path, monkeypatch):
    marks, real = [], find_lr.logarithmic
    monkeypatch.setattr(
        find_lr,
        "logarithmic",
        lambda panel, *ends: (marks.extend(panel.get_legend_handles_labels()[1]), real(panel, *ends)),
    )
    losses = np.r_[np.linspace(2.3, 1.0, 30), 1e30]
    found = Suggestion(0.01, 0.02, still_falling=False)
    find_lr.draw(rising(1e-4, 1.0, 31), losses, tmp_path / "a.png", found=found, recipe=5.0, title="t")
    assert marks[2:] == ["the recipe's rate: 5", "steepest descent: 0.01", "minimum / 10: 0.02"]
    find_lr.draw(rising(1e-4, 1.0, 2), np.ones(2), tmp_path / "b.png", found=None, recipe=5.0, title="t")
    assert files(tmp_path) == ["a.png", "b.png"]


def test_a_loss_that_is_never_finite_is_a_failed_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(find_lr, "built", lambda job: None)
    monkeypatch.setattr(find_lr, "range_test", lambda *_, **__: (np.empty(0), np.empty(0)))
    assert ran("exp4", *SMALL, "--root", tmp_path) == 3
    assert "first step was not finite" in capsys.readouterr().err and files(tmp_path) == []


def test_an_earlier_stage_has_a_figure_of_its_own_and_nothing_of_a_frozen_backbone_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR_KERAS_CACHE", str(tmp_path / "cache"))
    asked, rates = [], rising(1e-4, 1.0, 40)
    monkeypatch.setattr(find_lr, "built", lambda job: None)
    monkeypatch.setattr(
        find_lr, "range_test", lambda *_, **more: (asked.append(more["stage"]), (rates, np.linspace(2.3, 1.0, 40)))[1]
    )
    assert ran("exp3", *SMALL, "--weights", "none", "--stage", "1", "--root", tmp_path) == 0
    assert ran("exp3", *SMALL, "--weights", "none", "--root", tmp_path) == 0
    stem = "results/figures/exp3_shapes_limit=200_precision=float32_weights=none_find_lr"
    assert asked == [1, 2] and files(tmp_path) == [f"{stem}.png", f"{stem}_stage1.png"]
