"""The report: sentences that turn with the numbers, one file that needs nothing else, and lines for what is missing."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import entry, record, store

from cifar_keras.config import ConfigError
from cifar_keras.explain import errors
from cifar_keras.report import conclusions, page
from cifar_keras.results import with_derived
from cifar_keras.results.groups import Group

NOWHERE = Path("nowhere")
KEYS = ("exp1_frozen", "exp2_augment_224", "exp3_finetune", "exp4_scratch")


def run(key, test, seconds, **changes):
    """A finished run of the study with all that the page shows."""
    history = {"epoch": [1, 2], "accuracy": [0.5, 0.6], "val_accuracy": [0.55, 0.6]}
    values = {
        "experiment": key, "test_accuracy": test, "training_seconds": seconds, "run_id": f"{key}-1", "history": history,
        "epochs": 2, "train_images": 45_000, "images_per_second": 100.0, "parameters_trainable": 10,
        "peak_memory_mb": 900, "config": {"dataset": "cifar10-jpeg", "overrides": {}, "training": {}},
        "fingerprint": "f" * 12,
    }  # fmt: skip
    return record(**(values | changes))


def group(*runs, folder=NOWHERE):
    return Group(tuple(with_derived(one) for one in runs), folder)


def groups_of(*runs, folder=NOWHERE):
    return [group(one, folder=folder) for one in runs]


def entries():
    return [entry(key, "best", "published", test=0.5) for key in KEYS]


def test_the_sentences_change_when_two_models_are_swapped():
    first, second = run("a", 0.90, 600), run("b", 0.85, 60)
    best, cost, _ = conclusions.sentences(groups_of(first, second))
    assert (
        "is a (90.0%" in best
        and "followed by b (85.0%" in best
        and "of 5.0 points" in best
        and "unlikely to be" in best
    )
    assert "takes 10 min to train, 10.0 times as long as b" in cost and "5.0 points less accurate" in cost
    swapped = conclusions.sentences(groups_of(first | {"test_accuracy": 0.85}, second | {"test_accuracy": 0.90}))
    assert "is b (90.0%" in swapped[0] and "followed by a (85.0%" in swapped[0]
    assert swapped[1] == "It also trains fastest, in 60 s."


def test_features_from_the_cache_are_not_for_free():
    _, cost, _ = conclusions.sentences(groups_of(run("a", 0.9, 5, cached_seconds=115), run("b", 0.8, 60)))
    assert "takes 2 min to train, 2.0 times as long as b" in cost


def test_a_difference_within_chance_is_said_to_be_one():
    best, *_ = conclusions.sentences(groups_of(run("a", 0.901, 1, test_n=200), run("b", 0.90, 1, test_n=200)))
    assert "may be due to chance" in best


def test_stored_predictions_make_the_comparison_paired(tmp_path):
    right = np.arange(1000) < 900
    other = right.copy()
    other[:12] = False  # twelve images, all in one direction: paired this can be told, unpaired it can't
    runs = [run("a", 0.9, 1, test_n=1000), run("b", 0.888, 1, test_n=1000)]
    unpaired, *_ = conclusions.sentences(groups_of(*runs))
    (tmp_path / "predictions").mkdir()
    for one, correct in zip(runs, (right, other), strict=True):
        probabilities = np.eye(2, dtype="float16")[1 - correct.astype(int)]
        path = tmp_path / "predictions" / f"{one['run_id']}.npz"
        np.savez(path, labels=np.zeros(1000, "int32"), probabilities=probabilities)
    assert (
        "may be due" in unpaired and "unlikely to be due" in conclusions.sentences(groups_of(*runs, folder=tmp_path))[0]
    )


def test_of_several_seeds_the_means_are_compared_with_their_spread():
    steady, shaky = (
        [run(name, mean + spread * k, 1, seed=k, run_id=f"{name}{k}", test_n=10_000) for k in (-1, 0, 1)]
        for name, mean, spread in (("a", 0.90, 0.001), ("b", 0.89, 0.02))
    )
    best, _, caveats = conclusions.sentences([group(*steady), group(*shaky)])
    assert "of 1.0 points" in best and "may be due" in best and "3 or more training seeds" in caveats


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"weights": "none", "weights_called_for": "imagenet"},
            "Nothing here is evidence on ImageNet pretraining: a started",
        ),
        ({"budget": "quick"}, "trained under different budgets"),
        ({"test_n": 200}, "measured on 200 to 10,000 test images"),
        ({}, "Each figure comes from one training seed"),
    ],
)
def test_the_caveats_are_those_that_apply(changes, said):
    texts = ("Nothing here is", "different budgets", "measured on 200", "one training seed")
    *_, caveat = conclusions.sentences(groups_of(run("a", 0.9, 1, **changes), run("b", 0.8, 1)))
    assert said in caveat and sum(text in caveat for text in texts) == 1 + bool(changes)


class Outside(html.parser.HTMLParser):
    """Collects what a page loads from elsewhere, and the identifiers that it gives."""

    def __init__(self):
        super().__init__()
        self.loaded, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "data") or (name in ("href", "xlink:href") and tag != "a"):
                self.loaded += [value] if value and not value.startswith(("data:", "#")) else []
            if name == "id":
                self.ids.append(value)


@pytest.fixture
def built(tmp_path):
    store(tmp_path, run("exp4_scratch", 0.9, 2000), run("exp1_frozen", 0.4, 60))
    stored = sorted((tmp_path / "results" / "runs").glob("*.json"))
    labels = np.arange(40) % 3
    probabilities = np.eye(3)[(labels + (np.arange(40) % 7 == 0)) % 3] * 0.7 + 0.1
    folder = tmp_path / "results" / "explain" / "0"  # `store` numbers them
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3)).astype("uint8")
    errors(labels, probabilities, ("<cat>", "dog", "frog"), images=images).save(folder)
    (folder / "index.json").write_text(json.dumps({"sections": ["errors"], "left out": {"gradcam": "no <places>"}}))
    assert len(stored) == 2
    return page.build(tmp_path, entries()).read_text()


def test_the_page_loads_nothing_from_elsewhere_and_its_identifiers_are_unique(built):
    parser = Outside()
    parser.feed(built)
    assert parser.loaded == [] and "@import" not in built and "<script" not in built
    assert len(parser.ids) == len(set(parser.ids)) > 5
    for target in set(re.findall(r'(?:href="#|url\(#)([^")]+)', built)):
        assert target in parser.ids, target


def test_the_page_shows_what_was_measured_and_says_what_is_missing(built):
    assert "90.0% [89.4, 90.6]" in built and "10,000 images, budget full" in built and "not run" in built
    assert re.search("<td>0 *</td>", built)  # seed 0 is a seed
    assert built.count('role="img"') >= 5 and "aria-label=" in built
    assert "Not analysed yet: cifar-keras explain" in built  # exp1
    assert "No section gradcam: no &lt;places&gt;." in built and "macro F1" in built
    assert "Where it fails" in built and "&lt;cat&gt;" in built and "<cat>" not in built
    assert "CIFAR-10 (JPEG) is not the official archive" in built
    assert "python experiments/exp4_scratch.py --dataset DIR" in built


def test_one_experiment_alone_makes_no_report(tmp_path):
    store(tmp_path, run("exp4_scratch", 0.9, 2000))
    with pytest.raises(ConfigError, match="two or more of them.*Received: 1"):
        page.build(tmp_path, entries())


def test_the_page_is_about_the_data_that_most_experiments_share_and_the_largest_budget(tmp_path):
    runs = [
        run("exp4_scratch", 0.9, 9), run("exp4_scratch", 0.7, 9, budget="quick"), run("exp1_frozen", 0.4, 9),
        run("exp4_scratch", 0.99, 9, dataset="shapes (synthetic)", fingerprint="s" * 12),
        run("exp1_frozen", 0.3, 9, budget="quick", variant="published"),
        run("exp1_frozen", 0.2, 9, variant="published"), run("exp5_preprocessing", 0.1, 9, variant="best"),
    ]  # fmt: skip
    store(tmp_path, *runs)
    groups = page.study_groups(tmp_path, entries())
    assert list(groups) == ["exp1_frozen", "exp4_scratch"] and groups["exp4_scratch"].estimate.value == 0.9
    (frozen,) = page.rebuilt(groups, tmp_path).items()
    assert (frozen[0], frozen[1].estimate.value) == ("exp1_frozen", 0.2)


def test_changed_recipes_are_shown_as_such_where_there_are_no_others(tmp_path):
    changed = {"config": {"dataset": "shapes", "overrides": {"limit": 90, "deterministic": True}, "training": {}}}
    store(
        tmp_path,
        run("exp4_scratch", 0.9, 9),
        run("exp1_frozen", 0.4, 9, **changed),
        run("exp1_frozen", 0.5, 9, seed=2, **changed),
    )
    groups = page.study_groups(tmp_path, entries())
    how = {row["model"]: row["how"] for row in page.overview(groups, entries(), {})}
    assert "limit=90" in how["frozen"] and "2 seeds" in how["frozen"] and "limit" not in how["scratch"]
    lines = page.commands(groups, tmp_path, "somewhere")
    assert "python experiments/exp1_frozen.py --dataset shapes --limit 90 --deterministic" in lines
    assert any(line.endswith("--deterministic --seed 2") for line in lines)
    assert lines[-1] == f"cifar-keras report --root {tmp_path.name} --dataset DIR"


def test_each_backbone_of_an_experiment_has_its_row_and_its_part_of_the_page(tmp_path):
    chosen = {"dataset": "cifar10-jpeg", "overrides": {"backbone": "efficientnet_lite0"}, "training": {}}
    other = {"backbone": "efficientnet_lite0", "config": chosen, "published_test": None}
    store(
        tmp_path,
        run("exp1_frozen", 0.5, 9, backbone="resnet50"),
        run("exp1_frozen", 0.6, 8, run_id="exp1_other-1", **other),
        run("exp4_scratch", 0.9, 60, backbone="airnet"),
    )
    groups = page.study_groups(tmp_path, entries())
    assert list(groups) == ["exp1_frozen", "exp1_frozen-efficientnet_lite0", "exp4_scratch"]
    rows = page.overview(groups, entries(), page.rebuilt(groups, tmp_path))
    frozen = [(row["backbone"], row["published"], row["ours"][:5]) for row in rows if row["model"] == "frozen"]
    assert frozen == [("resnet50", "72%", "50.0%"), ("efficientnet_lite0", "-", "60.0%")]
    text = page.render(groups, entries(), tmp_path)
    assert 'id="exp1_frozen-efficientnet_lite0"' in text and "frozen, efficientnet_lite0" in text
    assert "2 of 4 experiments have been run" in text
    assert "python experiments/exp1_frozen.py --dataset DIR --backbone efficientnet_lite0" in text


RECIPE = {
    "dataset": "shapes-ring+star+tee", "variant": "best", "budget": "quick", "overrides": {"limit": 90},
    "limits": {"train": 5000, "val": None, "test": 200},
    "row": {"name": "scratch_cnn", "augmentation": ["shift", "flip"]},
    "training": {"optimizer": "muon", "weight_decay": 2e-06, "test_time_augmentation": True,
                 "stages": [{"epochs": 2, "learning_rate": 0.0005, "freeze_backbone": False}]},
}  # fmt: skip


@pytest.fixture
def alone(tmp_path):
    """The page of one run whose classes differ in size, after an earlier one; and its record."""
    names = ["ring", "star", "tee"]
    history = {name: [2.0, 1.5] for name in ("loss", "val_loss")} | {
        name: [0.5, 0.6] for name in ("accuracy", "val_accuracy")
    }
    history |= {"epoch": [1, 2], "stage": [1, 1]}
    changes = {
        "config": RECIPE, "budget": "quick", "class_names": names, "test_n": 20, "history": history, "best_epoch": 2,
        "tta_accuracy": 0.9, "published_test": 0.5, "variant": "long", "keras": "3.15.1", "train_n": 100,
    }  # fmt: skip
    earlier = run("exp4_scratch", 0.5, 60, **changes) | {"utc": "2025-01-01"}
    store(tmp_path, earlier, record := run("exp4_scratch", 0.85, 60, **changes))
    record["run_id"] = "1"
    labels = np.array([0] * 10 + [1] * 5 + [2] * 5)
    guesses = np.array([0] * 8 + [2] * 2 + [1] * 5 + [2] * 4 + [1])
    (tmp_path / "results" / "predictions").mkdir()
    np.savez(tmp_path / "results" / "predictions" / "1.npz", labels=labels, probabilities=np.eye(3)[guesses])
    path = page.build_run(tmp_path, record, question="Exp 4: how far from scratch?")
    assert path == tmp_path / "results" / "report" / "1" / "index.html"
    return path.read_text()


def test_the_page_of_one_run_holds_its_result_recipe_classes_and_how_to_run_it_again(alone):
    text = re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|svg).*?</\1>", "", alone))
    text = " ".join(text.split())
    assert "85.0% [64.0, 94.8] 20 50%" in text and "tta 90.0%" in text and "Run 1, recorded 2026" in text
    assert "The published figure, 50.0%, lies below it." in text
    assert "Of 100 training images, 98.0% are classified correctly, 13.0 points more than of test images." in text
    assert "previous run +0.3500" in text and "ran under the budget quick and the command line changed limit=90" in text
    assert "ring alone is 50.0% of the test images. Balanced accuracy, the mean over classes, is 86.7%" in text
    assert "ring 80.0% 10" in text and "star 100.0% 5" in text
    assert "1 2 0.0005 no" in text and "optimizer muon" in text and "weight decay 2e-06" in text
    assert "limits train 5000, test 200" in text and "model: augmentation shift, flip" in text
    assert (
        "How far from scratch?" in text and "Not analysed yet: cifar-keras explain 1" in text and "keras 3.15.1" in text
    )
    again = "python experiments/exp4_scratch.py --variant long --dataset shapes --classes ring,star,tee --budget quick"
    assert f"{again} --limit 90" in text and "cifar-keras report 1 --root" in text


@pytest.mark.parametrize(
    ("dataset", "classes", "options"),
    [
        ("cifar10", None, ""),
        ("cifar10-jpeg", None, " --dataset DIR"),
        ("shapes100", None, " --dataset shapes100"),
        ("shapes-ring+star", ["ring", "star"], " --dataset shapes --classes ring,star"),
        ("shapes-ring+star", None, " --dataset shapes --classes ring,star"),  # an older record
        ("imagenet-2classes-abcdef", None, " --dataset DIR"),  # the name of a folder
    ],
)
def test_the_command_names_the_data_and_the_classes_that_were_chosen(dataset, classes, options, tmp_path):
    config = {"dataset": dataset, "overrides": {}} | ({"classes": classes} if classes else {})
    one = group(run("exp4_scratch", 0.9, 1, config=config, class_names=["ring", "star"], precision="mixed_float16"))
    first, _ = page.commands({"exp4_scratch": one}, tmp_path)
    assert first == f"python experiments/exp4_scratch.py{options} --precision mixed_float16"


def test_the_page_of_one_run_needs_nothing_else_and_shows_loss_and_accuracy(alone):
    parser = Outside()
    parser.feed(alone)
    assert parser.loaded == [] and len(parser.ids) == len(set(parser.ids))
    assert alone.count('role="img"') == 1 and "kept: epoch 2, val 60.0%" in alone
    for target in set(re.findall(r'(?:href="#|url\(#)([^")]+)', alone)):
        assert target in parser.ids, target


def test_a_run_within_its_published_figure_and_without_history_says_so(tmp_path):
    whole = run("exp4_scratch", 0.72, 60, history=None, best_epoch=None, published_test=0.72)
    text = page.render_run(whole, tmp_path)
    assert "The published figure, 72.0%, lies within the interval." in text and "no history kept" in text
    assert "no result of the study" not in text and "some tenths of a point." in text


def test_figures_follow_the_pages_ink():
    svg = '<?xml version="1.0"?><svg width="10pt"><metadata>x</metadata>' \
          '<path id="a" style="fill: #000000; stroke: #0173b2"/><use href="#a" clip-path="url(#a)"/></svg>'  # fmt: skip
    assert page.themed(svg, "one figure") == (
        '<svg width="10pt"><path id="one-figure-a" style="fill: currentColor; stroke: #0173b2"/>'
        '<use href="#one-figure-a" clip-path="url(#one-figure-a)"/></svg>'
    )
