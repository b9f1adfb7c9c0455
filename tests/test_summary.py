"""Experiments' own tables: which runs meet, and every sentence turned by the numbers behind it."""

import itertools

import pytest
from test_table import record

from cifar_keras.config import Experiment, Stage, Training
from cifar_keras.report import summary

RECIPE = Training("simple_cnn", (Stage(2, 1e-3),))
NAMES = ["cat", "dog", "frog"]


def experiment(kind, *variants, **more):
    return Experiment(6, "made_up", dict.fromkeys(variants, RECIPE), summary=kind, **more)


def run(variant, test, *, seed=0, config=None, **changes):
    """A finished run of a made-up experiment."""
    config = {
        "dataset": "cifar10-jpeg", "budget": "full", "overrides": {}, "weights": "none", "number": 6,
        "training": {"weights": None}, "variant": variant, "seed": seed,
    } | (config or {})  # fmt: skip
    history = {"epoch": [1, 2], "accuracy": [0.4, 0.65], "val_accuracy": [0.5, 0.7]}
    values = {
        "experiment": "exp6_made_up", "variant": variant, "seed": seed, "test_accuracy": test, "config": config,
        "history": history, "class_names": NAMES, "class_accuracy": [test - 0.1, test, None], "epochs": 2,
        "best_epoch": 2, "train_images": 300, "keras": "3.15", "git_commit": "abc", "weights": config["weights"],
        "run_id": f"{variant}{seed}{config['weights']}",
    }  # fmt: skip
    return record(**(values | changes))


def written(tmp_path, made, runs):
    summary.write(made, runs, tmp_path)
    return {path.name: path.read_text() for path in (tmp_path / "results").glob("*.md")}


def cell_runs(values, weights="imagenet"):
    """The eight cells of a factorial with these accuracies, in the order of its names."""
    names = ["_".join(map(str, c)) for c in itertools.product(("unit", "caffe"), (32, 224), ("inference", "training"))]
    runs = [run(name, value, config={"weights": weights}) for name, value in zip(names, values, strict=True)]
    return experiment("factorial", *names), runs


def test_main_effects_are_means_over_the_other_factors(tmp_path):
    made, runs = cell_runs([0.40, 0.42, 0.60, 0.62, 0.50, 0.52, 0.70, 0.72])
    (text,) = written(tmp_path, made, runs).values()
    assert "unit -> caffe | +10.0" in " ".join(text.split()).replace(" | ", " | ")
    assert "32 -> 224 | +20.0" in " ".join(text.split()) and "inference -> training | +2.0" in " ".join(text.split())
    assert "largest main effect is that of pixels: +20.0 points from 32 to 224; next comes scaling with +10.0" in text
    assert "40.0% to 72.0%" in text and "not measured" not in text.lower()
    assert (tmp_path / "results" / "figures" / "exp6_cifar10-jpeg_summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_cause_follows_the_numbers(tmp_path):
    made, runs = cell_runs([0.40, 0.80, 0.42, 0.82, 0.41, 0.81, 0.43, 0.83])
    (text,) = written(tmp_path, made, runs).values()
    assert "largest main effect is that of BatchNorm: +40.0 points from inference to training" in text


def test_without_imagenet_weights_no_cause_is_named(tmp_path):
    made, runs = cell_runs([0.1] * 8, weights="exp3-abc")
    (text,) = written(tmp_path, made, runs).values()
    assert "Not measured with ImageNet weights" in text and "largest" not in text


def test_an_unfinished_factorial_shows_dashes_and_no_effects(tmp_path):
    made, runs = cell_runs([0.1] * 8)
    (text,) = written(tmp_path, made, runs[:3]).values()
    assert "3 of 8 cells" in text and text.count("| -") >= 5 and "Main effects" not in text


PUBLISHED = {"plain": {"train": 0.97, "test": 0.72}, "rich": {"train": 0.65, "test": 0.72}}


def gap_runs(train):
    """A plain and a regularised network, of which the latter has this accuracy on train in inference mode."""
    rich = run("rich", 0.73, last_train_accuracy=train, last_test_accuracy=0.72)
    plain = run("plain", 0.71, train_accuracy=0.95)
    classes = {"plain": {"dog": 0.63, "frog": 0.8}}
    return experiment("gap", "plain", "rich", published=PUBLISHED, published_classes=classes), [plain, rich]


def test_the_gap_is_shown_both_ways_and_the_metrics_part_of_it_named(tmp_path):
    (text,) = written(tmp_path, *gap_runs(train=0.75)).values()
    assert "**rich**: published train 65%, test 72%, gap -7.0 points." in text
    assert "running metric gives -7.0, the same network in inference mode without augmentation +3.0: 10.0" in text
    assert "are an artefact of how train accuracy was measured" in text
    (other,) = written(tmp_path, *gap_runs(train=0.65)).values()
    assert "inference mode without augmentation -7.0: 0.0 points of the gap are due to the metric" in other


def test_the_last_epochs_weights_are_what_the_gap_is_about():
    _, (plain, rich) = gap_runs(train=0.75)
    assert summary.gaps([rich])["test"] == 0.72 and summary.gaps([plain])["test"] == 0.71
    assert summary.gaps([plain])["gap_inference"] == pytest.approx(0.24)


def test_accuracy_by_class_stands_beside_the_published(tmp_path):
    (text,) = written(tmp_path, *gap_runs(train=0.75)).values()
    lines = [line for line in text.split("## Accuracy by class, plain")[1].splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines[1:]] == ["dog", "cat"]  # frog has no test images
    assert "63.0%" in lines[1] and "71.0%" in lines[1]


def test_what_selecting_on_test_adds(tmp_path):
    followed = {"epoch": [1, 2], "accuracy": [0.5, 0.6], "val_accuracy": [0.6, 0.59], "test_accuracy": [0.6, 0.62]}
    audit = run("audit", 0.60, history=followed, best_epoch=1, last_test_accuracy=0.62)
    (text,) = written(tmp_path, experiment("selection", "audit", "plain"), [audit, run("plain", 0.5)]).values()
    row = next(line for line in text.split("##")[1].splitlines() if line.startswith("| audit"))
    assert [part.strip() for part in row.split("|")[3:7]] == ["62.0%", "60.0%", "62.0%", "+2.0"]


def transfer(values):
    """Runs of three seeds: {variant: (accuracies)}; scratch starts at random, the others from a source."""
    runs = []
    for variant, accuracies in values.items():
        base = variant.startswith("scratch")
        config = {"weights": "none"} if base else {"weights": "source-1", "overrides": {"weights": "source-1"}}
        config["training"] = {"weights": "none" if base else None}
        runs += [run(variant, value, seed=seed, config=config) for seed, value in enumerate(accuracies)]
    return experiment("transfer", *values), runs


def test_transfer_is_judged_by_paired_seeds(tmp_path):
    made, runs = transfer({
        "finetune_50": (0.60, 0.62, 0.64), "scratch_50": (0.50, 0.52, 0.54), "probe_50": (0.40, 0.60, 0.55),
        "finetune": (0.79, 0.81, 0.83), "scratch": (0.80, 0.82, 0.84),
    })  # fmt: skip
    ((name, text),) = written(tmp_path, made, runs).items()
    assert name == "exp6_cifar10-jpeg_weights=source-1.md"
    rows = {tuple(p.strip() for p in line.split("|")[1:3]): line for line in text.splitlines() if "paired t" in line}
    assert "+10.0 [+10.0, +10.0] (paired t, 3 seeds)" in rows["50", "finetune"] and "helps" in rows["50", "finetune"]
    assert "can't be told from zero" in rows["50", "probe"]
    assert "hurts" in rows["100", "finetune"]  # 300 images of three classes
    assert "finetune, 100 labelled images a class" in text


def test_runs_from_other_weights_data_or_budgets_are_other_families(tmp_path):
    made, runs = transfer({"finetune_50": (0.6,), "scratch_50": (0.5,)})
    other = run("finetune_50", 0.7, config={"weights": "b-2", "overrides": {"weights": "b-2"}})
    quick = run("scratch_50", 0.3, config={"budget": "quick", "training": {"weights": "none"}}, budget="quick")
    found = written(tmp_path, made, [*runs, other, quick])
    assert set(found) == {f"exp6_cifar10-jpeg{end}.md" for end in ("_weights=source-1", "_weights=b-2")}
    assert "60.0%" in found["exp6_cifar10-jpeg_weights=source-1.md"]
    assert "70.0%" in found["exp6_cifar10-jpeg_weights=b-2.md"] and "50.0%" in found["exp6_cifar10-jpeg_weights=b-2.md"]
