"""Recipes, budgets, identities and names."""

import dataclasses
import json

import pytest
from helpers import TWO, config

from cifar_keras.config import (
    BUDGETS,
    Budget,
    ConfigError,
    Experiment,
    Limits,
    RunConfig,
    Stage,
    Training,
    cut,
    limits_of,
    published_of,
    with_batch_size,
    with_epochs,
    with_learning_rate,
)
from cifar_keras.utils import paths


@pytest.mark.parametrize(("epochs", "shares"), [(20, [2, 18]), (10, [1, 9]), (2, [1, 1]), (1, [1])])
def test_epochs_are_shared_as_the_recipe_does(epochs, shares):
    assert [stage.epochs for stage in with_epochs(TWO, epochs).stages] == shares


def test_a_single_epoch_is_the_last_stage():
    assert not with_epochs(TWO, 1).stages[0].freeze_backbone


def test_a_learning_rate_scales_all_stages_alike():
    assert [stage.learning_rate for stage in with_learning_rate(TWO, 2e-4).stages] == pytest.approx([2e-3, 2e-4])


def test_rates_follow_the_square_root_of_the_batch():
    smaller = with_batch_size(TWO, TWO.batch_size // 4)
    assert smaller.stages[1].learning_rate == pytest.approx(TWO.stages[1].learning_rate / 2)


@pytest.mark.parametrize("shares", [(18, 2), (2, 18), (5, 5, 5), (1, 1, 20)])
@pytest.mark.parametrize("epochs", range(1, 30))
def test_stages_together_have_the_epochs_asked_for(shares, epochs):
    training = Training("m", stages=tuple(Stage(share, 1.0) for share in shares))
    assert with_epochs(training, epochs).epochs == epochs


def test_the_full_budget_changes_nothing():
    assert limits_of(BUDGETS["full"], TWO, pixels=32, images_per_second=75) == Limits()
    assert cut(TWO, BUDGETS["full"], images=45_000, images_per_second=75) == TWO


@pytest.mark.parametrize("name", ["quick", "demo"])
@pytest.mark.parametrize(("pixels", "speed"), [(32, 200), (32, 75), (32, 175), (224, 9)])
def test_a_cut_recipe_takes_about_the_budgets_seconds_and_still_means_something(name, pixels, speed):
    budget = BUDGETS[name]
    limits = limits_of(budget, TWO, pixels=pixels, images_per_second=speed)
    training = cut(TWO, budget, images=limits.train, images_per_second=speed)
    assert limits.train * training.epochs / speed <= 1.05 * budget.seconds
    assert limits.test >= (1000 if pixels < 128 else 200)
    assert len(training.stages) == 2
    assert limits.train // training.batch_size >= 20 or training.batch_size == 16


def test_a_budget_with_more_time_than_needed_leaves_the_epochs():
    training = cut(TWO, Budget(seconds=10_000), images=100, images_per_second=75)
    assert training.epochs == 20


@pytest.mark.parametrize(("images", "batch"), [(45_000, 128), (2560, 128), (1000, 50), (100, 16), (10, 10)])
def test_a_small_dataset_gets_smaller_batches_under_every_budget(images, batch):
    assert cut(TWO, BUDGETS["full"], images=images, images_per_second=75).batch_size == batch


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Stage(1, 1.0, schedule="typo"), "constant, cosine, linear"),
        (lambda: Stage(1, 1.0, schedule="linear", warmup=0.1), "goes with schedule 'cosine'"),
        (lambda: Training("m", stages=(), optimizer="rmsprop"), "adam, adamw, sgd, muon"),
    ],
)
def test_a_recipe_with_a_typo_is_refused_with_the_choices(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_short_names_belong_to_the_plain_run():
    plain = paths.Paths.of(config(), "root")
    assert plain.keras.as_posix() == "root/model_cp/exp3.model.keras"
    assert plain.h5.as_posix() == "root/Models/cifar10_model_3.h5"
    assert plain.custom_h5.as_posix() == "root/Models/cifar10_model_3_custom.h5"
    assert plain.architecture.as_posix() == "root/Models/cifar10_model_3_architecture.json"
    assert plain.history.as_posix() == "root/Models/cifar10_model_3_history.json"


def test_every_other_part_is_appended_in_a_fixed_order():
    other = config(
        dataset="shapes", variant="published", budget="demo", seed=2, overrides={"weights": "none", "epochs": 3}
    )
    assert paths.stem(other) == "exp3_shapes_published_demo_seed2_epochs=3_weights=none"


def test_identity_depends_on_every_field_but_not_on_what_describes_the_row():
    base = config().identity
    for field in dataclasses.fields(RunConfig):
        value = {**config().row, "pixels": 64} if field.name == "row" else "other"
        if field.name in ("limits", "training"):
            value = dataclasses.replace(
                getattr(config(), field.name), **{"limits": {"train": 1}, "training": {"batch_size": 1}}[field.name]
            )
        assert config(**{field.name: value}).identity != base, field.name
    faster = {**config().row, "images_per_second": 1000}
    assert config(row=faster).identity == base


def test_an_attempt_settles_the_precision_that_nobody_named():
    before = json.loads(config(precision="mixed_float16").identity)
    assert config().as_begun(before).precision == "mixed_float16"
    named = config(overrides={"precision": "float32"})
    assert named.as_begun(before) == named


def test_where_all_variants_run_by_default_they_share_the_budget():
    two = Experiment(6, "x", {"a": TWO, "b": TWO})
    with_best = Experiment(6, "x", {"best": TWO, "b": TWO})
    assert (two.share, with_best.share) == (0.5, 1.0)
    quick = BUDGETS["quick"]
    assert quick.shared(0.5).seconds == quick.seconds / 2 and BUDGETS["full"].shared(0.5).seconds is None
    limits = [limits_of(b, TWO, pixels=32, images_per_second=75).train for b in (quick, quick.shared(0.5))]
    assert limits[1] == pytest.approx(limits[0] / 2, abs=1)


def test_published_figures_by_split_or_by_variant():
    assert published_of({"test": 0.7}, "any") == {"test": 0.7} and published_of({}, "any") == {}
    by_variant = {"a": {"test": 0.7}}
    assert published_of(by_variant, "a") == {"test": 0.7} and published_of(by_variant, "b") == {}


def test_a_field_that_says_nothing_leaves_no_trace_in_the_identity():
    plain = json.loads(config().identity)
    assert not {"weights", "per_class", "also_score", "views"} & set(plain["training"]) and "classes" not in plain
    assert json.loads(config(classes=("a", "b")).identity)["classes"] == ["a", "b"]
    assert "frozen_norm" not in json.loads(config(row={**config().row, "frozen_norm": None}).identity)["row"]
    assert json.loads(config(row={**config().row, "frozen_norm": "training"}).identity)["row"]["frozen_norm"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patience": 0}, "`patience` must be at least 1 epoch"),
        ({"ema": 1.0}, "`ema` must be between 0 and 1"),
        ({"sparsity": 0.0}, "`sparsity` must be between 0 and 1"),
        ({"ema": 0.9, "sparsity": 0.5}, "Use either `ema` or `sparsity`"),
    ],
)
def test_fields_of_a_recipe_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(TWO, **fields)
