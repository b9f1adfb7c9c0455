"""Experiments' own tables: which runs meet, and every sentence turned by the numbers behind it."""

import dataclasses
import itertools

import pytest
from helpers import record

from cifar_keras.config import Claim, ConfigError, Experiment, Stage, Training
from cifar_keras.report import summaries
from cifar_keras.results.groups import Group

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
    paths = summaries.write(made, runs, tmp_path)
    texts = {path.name: path.read_text() for path in paths}
    assert texts.pop("exp6.md").startswith("# exp6_made_up: cifar10, not yet run")  # official data: dashes
    return texts


def cell_runs(values, weights="imagenet", **changes):
    """The eight cells of a factorial with these accuracies, in the order of its names."""
    cells = list(itertools.product(("unit", "caffe"), (32, 224), (None, "training")))
    columns = ("scaling", "pixels", "frozen_norm")
    variants = {
        f"cell{place}": dataclasses.replace(RECIPE, override={"head": "plain", **dict(zip(columns, cell, strict=True))})
        for place, cell in enumerate(cells)
    }
    runs = [
        run(name, value, config={"weights": weights}, **changes) for name, value in zip(variants, values, strict=True)
    ]
    return Experiment(6, "made_up", variants, summary="factorial", published={"cell0": {"test": 0.42}}), runs


def test_main_effects_are_means_over_the_other_factors(tmp_path):
    made, runs = cell_runs([0.40, 0.42, 0.60, 0.62, 0.50, 0.52, 0.70, 0.72])
    (text,) = written(tmp_path, made, runs).values()
    flat = " ".join(text.split())
    # Four pairs of cells with n = 10,000: 1.96 * sqrt(sum of p (1 - p) / n over eight cells) / 4
    half = 1.96 * sum(p * (1 - p) / 10_000 for p in (0.4, 0.42, 0.6, 0.62, 0.5, 0.52, 0.7, 0.72)) ** 0.5 / 4
    assert f"| unit -> caffe | +10.0 [+{10 - 100 * half:.1f}, +{10 + 100 * half:.1f}]" in flat
    assert "| 32 -> 224 | +20.0" in flat and "| inference -> training | +2.0" in flat
    assert "pixels 32 costs 20.0 points against 224; scaling unit costs 10.0 points against caffe; BatchNorm" in text
    assert "The published 0.42 (cell0; here 40.0%) lies in the interval of cell1." in text
    assert (tmp_path / "results" / "figures" / "exp6_cifar10-jpeg_summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_cause_follows_the_numbers(tmp_path):
    made, runs = cell_runs([0.40, 0.80, 0.42, 0.82, 0.41, 0.81, 0.43, 0.83])
    (text,) = written(tmp_path, made, runs).values()
    assert "With ImageNet weights, BatchNorm inference costs 40.0 points against training; pixels 32 costs" in text
    made, runs = cell_runs([0.80, 0.40, 0.80, 0.40, 0.80, 0.40, 0.80, 0.40])
    (text,) = written(tmp_path, made, runs).values()
    assert "With ImageNet weights, BatchNorm training costs 40.0 points against inference. The published" in text


def test_an_effect_within_chance_or_of_other_data_is_none(tmp_path):
    made, runs = cell_runs([0.50, 0.51, 0.50, 0.51, 0.50, 0.51, 0.50, 0.51], test_n=200)
    for place, one in enumerate(runs):
        one["train_images"] = 200 if place in (2, 3, 6, 7) else 1666  # at the larger pixels, as under `quick`
    (text,) = written(tmp_path, made, runs).values()
    assert "No main effect can be told from zero" in text
    (pixels,) = (line for line in text.splitlines() if line.startswith("| pixels"))
    assert pixels.split("|")[3].strip() == "-"


def test_without_imagenet_weights_no_cause_is_named(tmp_path):
    made, runs = cell_runs([0.1] * 8, weights="exp3-abc")
    (text,) = written(tmp_path, made, runs).values()
    assert "Not measured with ImageNet weights" in text and "costs" not in text


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
    assert "**rich**: the running metric gives a gap of -7.0 points, the same network in inference mode" in text
    assert "without augmentation +3.0: the metric alone makes -10.0 of it" in text
    assert "Published: train 65%, test 72%, gap -7.0;" in text and "their network's own gap was +3.0." in text
    (other,) = written(tmp_path, *gap_runs(train=0.60)).values()
    assert "without augmentation -12.0: the metric alone makes +5.0 of it" in other
    assert "their network's own gap was -12.0." in other


def test_published_figures_stand_beside_cifar10_alone(tmp_path):
    made, runs = gap_runs(train=0.75)
    for one in runs:
        one["config"]["dataset"] = "shapes"
    (text,) = written(tmp_path, made, runs).values()
    assert "97" not in text and "Published" not in text and "| plain" in text


def test_options_and_images_tell_tables_apart(tmp_path):
    made, runs = gap_runs(train=0.75)
    small = [run("plain", 0.6, config={"overrides": {"limit": 10_000}}, train_images=10_000)]
    whole, limited = written(tmp_path, made, [*runs, *small]).values()
    assert limited.startswith("# exp6_made_up: CIFAR-10 (JPEG), limit=10000\n") and "| 10,000" in limited
    assert whole.startswith("# exp6_made_up: CIFAR-10 (JPEG)\n")


def test_each_precision_has_a_table_of_its_own(tmp_path):
    made, runs = gap_runs(train=0.75)
    mixed = run("plain", 0.6, precision="mixed_bfloat16", config={"overrides": {"precision": "mixed_bfloat16"}})
    chosen_for_the_machine = run("rich", 0.65, precision="mixed_bfloat16")
    found = written(tmp_path, made, [*runs, mixed, chosen_for_the_machine])
    assert list(found) == ["exp6_cifar10-jpeg.md", "exp6_cifar10-jpeg_precision=mixed_bfloat16.md"]
    *_, text = found.values()
    assert text.startswith("# exp6_made_up: CIFAR-10 (JPEG), mixed_bfloat16\n") and "60.0%" in text and "65.0%" in text


def test_a_pretrained_network_stands_beside_those_from_scratch(tmp_path):
    """In the order in which they are run: all of them meet in one table in the end."""
    scratch = run("five", 0.8, config={"training": {"weights": "none"}})
    pretrained = run("resnet", 0.9, config={"weights": "imagenet"}, weights_called_for="imagenet")
    made = experiment("selection", "five", "resnet")
    (before,) = written(tmp_path, made, [scratch]).values()
    assert "80.0%" in before and "| resnet    | -" in before
    ((name, after),) = written(tmp_path, made, [scratch, pretrained]).items()
    assert name == "exp6_cifar10-jpeg.md" and "80.0%" in after and "90.0%" in after


def test_the_last_epochs_weights_are_what_the_gap_is_about():
    _, (plain, rich) = gap_runs(train=0.75)
    rich, plain = Group((rich,)), Group((plain,))
    assert summaries.gap.gaps(rich)["test"] == 0.72 and summaries.gap.gaps(plain)["test"] == 0.71
    assert summaries.gap.gaps(plain)["gap_inference"] == pytest.approx(0.24)


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
    runs, made = [], experiment("transfer", *values)
    for variant, accuracies in values.items():
        base, count = variant.startswith("scratch"), variant.partition("_")[2]
        config = {"weights": "none"} if base else {"weights": "source-1", "overrides": {"weights": "source-1"}}
        config["training"] = {"weights": "none" if base else None, "per_class": int(count) if count else None}
        images = 3 * int(count or 100)
        runs += [
            run(variant, value, seed=seed, config=config, train_images=images) for seed, value in enumerate(accuracies)
        ]
    return made, runs


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
    assert "hurts" in rows["100", "finetune"]  # all 300 images of three classes
    assert "finetune, 100 labelled images a class" in text


def test_runs_from_other_weights_data_or_budgets_are_other_families(tmp_path):
    made, runs = transfer({"finetune_50": (0.6,), "scratch_50": (0.5,)})
    other = run("finetune_50", 0.7, config={"weights": "b-2", "overrides": {"weights": "b-2"}})
    quick = run("scratch_50", 0.3, config={"budget": "quick", "training": {"weights": "none"}}, budget="quick")
    found = written(tmp_path, made, [*runs, other, quick])
    names = ("_weights=source-1", "_weights=b-2", "_quick")
    assert set(found) == {f"exp6_cifar10-jpeg{end}.md" for end in names}
    assert "Nothing was transferred" in found["exp6_cifar10-jpeg_quick.md"]
    assert "60.0%" in found["exp6_cifar10-jpeg_weights=source-1.md"]
    assert "70.0%" in found["exp6_cifar10-jpeg_weights=b-2.md"] and "50.0%" in found["exp6_cifar10-jpeg_weights=b-2.md"]


def test_a_baselines_own_table_goes_when_it_has_company(tmp_path):
    made, runs = transfer({"finetune_50": (0.6,), "scratch_50": (0.5,)})
    (alone,) = written(tmp_path, made, [one for one in runs if one["variant"] == "scratch_50"])
    (both,) = written(tmp_path, made, runs)
    assert (alone, both) == ("exp6_cifar10-jpeg.md", "exp6_cifar10-jpeg_weights=source-1.md")
    left = {path.name for path in (tmp_path / "results").rglob("*.*")}
    assert left == {both, "exp6.md", "exp6_cifar10-jpeg_weights=source-1_summary.png"}


def test_one_common_seed_is_the_one_that_is_compared(tmp_path):
    made, runs = transfer({"finetune_50": (0.6, 0.9), "scratch_50": (0.5, 0.1)})
    shared = [one for one in runs if (one["variant"], one["seed"]) not in (("finetune_50", 0), ("scratch_50", 0))]
    alone = [one for one in runs if (one["variant"], one["seed"]) in (("finetune_50", 0), ("scratch_50", 1))]
    (text,) = written(tmp_path, made, shared).values()
    assert "+80.0 [" in text and "Newcombe, unpaired, 1 seed)" in text
    (text,) = written(tmp_path, made, alone).values()
    (row,) = (line for line in text.splitlines() if line.startswith("| 50"))
    assert [part.strip() for part in row.split("|")[5:7]] == ["-", "-"]


def test_labelled_images_are_counted_not_read_from_the_name(tmp_path):
    """Where a class has fewer images than a variant asks for, variants coincide."""
    made, runs = transfer({"finetune_50": (0.6,), "finetune_250": (0.6,), "scratch_50": (0.5,)})
    for one in runs:
        one["train_images"] = 3 * 40
    (family,) = (family for family in summaries.families(made, runs) if family.groups)
    assert [(method, count) for method, count, *_ in summaries.transfer.points_of(family)] == [
        ("finetune", 40), ("scratch", 40),
    ]  # fmt: skip


CLAIMS = (
    Claim("Deep helps.", ("deep",), "better"),
    Claim("Wide hurts.", ("wide",), "worse"),
    Claim("Deep matters most.", ("deep",), "most"),
    Claim("Flat helps.", ("flat",), "better", dataset="cifar100"),
)


def effect_runs(values, **changes):
    """Runs of three seeds or of one, by variant; stages as a record has them."""
    made = experiment("effects", "base", "deep", "wide", "flat", claims=CLAIMS)
    config = {"training": {"weights": None, "stages": [{"epochs": 2}]}}
    runs = [
        run(variant, value, seed=seed, config=config, train_accuracy=0.95, **changes)
        for variant, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    return made, runs


def effect_rows(text):
    lines = text.split("## What each change does")[1].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}


def test_each_change_is_compared_with_the_first_variant_by_seed(tmp_path):
    made, runs = effect_runs(
        {"base": (0.70, 0.71, 0.72), "deep": (0.80, 0.811, 0.822), "wide": (0.60, 0.61, 0.621), "flat": (0.6, 0.7, 0.8)}
    )
    (text,) = written(tmp_path, made, runs).values()
    rows = effect_rows(text)
    assert "base" not in rows
    assert "+10.1 [+9.9, +10.3] (paired t, 3 seeds) | < 0.001 | helps | +13.9" in rows["deep"].replace("  ", "")
    assert "hurts" in rows["wide"] and "can't be told from zero" in rows["flat"]
    assert "corrected for 3 comparisons (Holm)" in text
    (answers,) = (part for part in text.split("## ") if part.startswith("What the source claims"))
    assert "| Deep helps.        | confirmed (deep +10.1" in answers
    assert "| Wide hurts.        | confirmed (wide -10.0" in answers
    assert "| Deep matters most. | not distinguishable" in answers  # flat's interval is wider than that
    assert "Flat helps" not in answers  # a claim about other data
    assert (tmp_path / "results" / "figures" / "exp6_cifar10-jpeg_summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_claim_can_be_refuted_or_wait_for_its_runs(tmp_path):
    made, runs = effect_runs({"base": (0.7,), "deep": (0.6,), "flat": (0.9,)})
    (text,) = written(tmp_path, made, runs).values()
    assert "refuted (deep -10.0" in text and "Wide hurts.        | not run: wide" in text
    assert "Deep matters most. | not run: wide" in text  # it is about all variants
    (text,) = written(tmp_path, *effect_runs({"base": (0.7,), "deep": (0.6,), "wide": (0.7,), "flat": (0.9,)})).values()
    assert "Deep matters most. | refuted" in text  # flat changes more
    assert "which are not corrected for their number" in text
    (alone,) = written(tmp_path, made, runs[1:]).values()
    assert "Nothing to compare yet: it takes `base` and another variant." in alone


def test_p_values_are_corrected_for_the_number_of_comparisons(tmp_path):
    made, runs = effect_runs({"base": (0.7, 0.7, 0.7), "deep": (0.71, 0.715, 0.72), "wide": (0.70, 0.71, 0.69)})
    (text,) = written(tmp_path, made, runs).values()
    assert "| 0.070 | can't be told from zero" in effect_rows(text)["deep"]  # 0.035 for a single comparison
    (text,) = written(tmp_path, made, runs[:6]).values()
    assert "| 0.035 | helps" in effect_rows(text)["deep"]


def test_an_early_end_is_shown_with_the_epochs_that_were_planned(tmp_path):
    made, runs = effect_runs({"base": (0.7,), "deep": (0.7,)})
    runs[1]["epochs"] = 1
    (text,) = written(tmp_path, made, runs).values()
    assert "| 1 of 2" in effect_rows(text)["deep"]


def test_a_claim_about_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="`claims` must name variants of the experiment. Received: deep, wide"):
        experiment("effects", "base", claims=CLAIMS[:2])
