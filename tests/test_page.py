"""The report: sentences that turn with the numbers, one file that needs nothing else, and lines for what is missing."""

import html.parser
import re

import numpy as np
import pytest
from test_commands import store
from test_table import entry, record

from cifar_keras.config import ConfigError
from cifar_keras.explain import errors
from cifar_keras.report import meaning, page

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


def rows_of(*runs):
    return [meaning.Row(one["experiment"], (one,)) for one in runs]


def entries():
    return [entry(key, "best", "published", test=0.5) for key in KEYS]


def test_the_sentences_turn_when_two_rows_are_swapped():
    first, second = run("a", 0.90, 600), run("b", 0.85, 60)
    best, cost, _ = meaning.sentences(rows_of(first, second))
    assert "is a (90.0%" in best and "before b (85.0%" in best and "of 5.0 points" in best and "can be told" in best
    assert "takes 10 min to train, 10.0 times as long as b" in cost and "5.0 points less accurate" in cost
    swapped = meaning.sentences(rows_of(first | {"test_accuracy": 0.85}, second | {"test_accuracy": 0.90}))
    assert "is b (90.0%" in swapped[0] and "before a (85.0%" in swapped[0]
    assert swapped[1] == "It is also the one that trains soonest, in 60 s."


def test_a_difference_within_chance_is_said_to_be_one():
    best, *_ = meaning.sentences(rows_of(run("a", 0.901, 1, test_n=200), run("b", 0.90, 1, test_n=200)))
    assert "can't be told from the draw" in best


def test_stored_predictions_make_the_comparison_paired():
    right = np.arange(1000) < 900
    other = right.copy()
    other[:12] = False  # twelve images, all in one direction: paired this can be told, unpaired it can't
    plain = [run("a", 0.9, 1, test_n=1000), run("b", 0.888, 1, test_n=1000)]
    unpaired, *_ = meaning.sentences(rows_of(*plain))
    paired = [meaning.Row("a", (plain[0],), right=right), meaning.Row("b", (plain[1],), right=other)]
    assert "can't be told" in unpaired and "can be told" in meaning.sentences(paired)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "none", "weights_called_for": "imagenet"}, "Nothing here speaks about pretraining on ImageNet: a"),
        ({"budget": "quick"}, "under different budgets"),
        ({"dataset": "shapes"}, "on different data"),
        ({}, "One training seed stands behind each row"),
    ],
)
def test_the_caveat_is_the_one_that_applies(changes, said):
    *_, caveat = meaning.sentences(rows_of(run("a", 0.9, 1, **changes), run("b", 0.8, 1)))
    assert said in caveat


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
    run_id = "0"  # `store` numbers them
    images = np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3)).astype("uint8")
    errors(labels, probabilities, ("<cat>", "dog", "frog"), images=images).save(
        tmp_path / "results" / "explain" / run_id
    )
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
    assert built.count('role="img"') >= 5 and "aria-label=" in built
    assert "Not analysed yet: cifar-keras explain" in built  # exp1
    assert "Where it fails" in built and "&lt;cat&gt;" in built and "<cat>" not in built
    assert "CIFAR-10 (JPEG) is not the official archive" in built
    assert "python experiments/exp4_scratch.py --dataset DIR" in built


def test_one_experiment_alone_makes_no_report(tmp_path):
    store(tmp_path, run("exp4_scratch", 0.9, 2000))
    with pytest.raises(ConfigError, match="two of them or more.*Received: 1"):
        page.build(tmp_path, entries())


def test_the_rows_are_of_the_data_that_most_experiments_share_and_the_largest_budget(tmp_path):
    runs = [
        run("exp4_scratch", 0.9, 9), run("exp4_scratch", 0.7, 9, budget="quick"), run("exp1_frozen", 0.4, 9),
        run("exp4_scratch", 0.99, 9, dataset="shapes (synthetic)"),
        run("exp1_frozen", 0.3, 9, budget="quick", variant="published"),
        run("exp1_frozen", 0.2, 9, variant="published"),
    ]  # fmt: skip
    rows = page.study_rows(runs, entries(), tmp_path)
    assert list(rows) == ["exp1_frozen", "exp4_scratch"] and rows["exp4_scratch"].runs[0]["test_accuracy"] == 0.9
    assert rows["exp1_frozen"].rebuilt[0]["test_accuracy"] == 0.2 and rows["exp4_scratch"].rebuilt == ()


def test_figures_follow_the_pages_ink():
    svg = '<?xml version="1.0"?><svg width="10pt"><metadata>x</metadata>' \
          '<path id="a" style="fill: #000000; stroke: #0173b2"/><use href="#a" clip-path="url(#a)"/></svg>'  # fmt: skip
    assert page.themed(svg, "one figure") == (
        '<svg width="10pt"><path id="one-figure-a" style="fill: currentColor; stroke: #0173b2"/>'
        '<use href="#one-figure-a" clip-path="url(#one-figure-a)"/></svg>'
    )
