"""Results files side by side: which groups are compared, their difference, and what is concluded."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from cifar_keras import results
from cifar_keras.config import ConfigError
from cifar_keras.report import comparison
from cifar_keras.results import matching as model
from cifar_keras.results.groups import KEY, grouped, read_csv

CONFIG = {
    "seed": 0, "fingerprint": "f10d" * 16, "precision": "float32", "overrides": {}, "limits": {"train": None},
    "training": {"batch_size": 500, "override": {}, "stages": [{"epochs": 13}]},
}  # fmt: skip


def row(**changes):
    """A finished run as a line of results.csv."""
    return {
        "run_id": "exp4_1", "utc": "2026-01-01T00:00:00+00:00", "experiment": "exp4_scratch", "variant": "best",
        "budget": "full", "model": "scratch_cnn", "dataset": "CIFAR-10", "fingerprint": "f10df10df10d", "seed": 0,
        "weights": "none", "weights_called_for": "none", "overrides": "", "pixels": 32, "epochs": 13,
        "train_images": 45000, "test_accuracy": 0.9, "test_n": 10000, "parameters": 1972792, "batch_size": 500,
        "training_seconds": 2000.0, "precision": "float32", "deterministic": False, "backend": "tensorflow",
        "device": "2 cores", "keras": "3.15.1", "tensorflow": "2.21.0", "python": "3.11.7", "git_commit": "abc",
        "status": "finished",
    } | changes  # fmt: skip


def save(path, *rows, columns=results.COLUMNS):
    """Writes rows as a results.csv, beside it what they hold under `config` and `correct` (which images were right)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for values in rows:
        if "config" in values:
            (path.parent / "runs").mkdir(exist_ok=True)
            (path.parent / "runs" / f"{values['run_id']}.json").write_text(json.dumps({"config": values["config"]}))
        if "correct" in values:
            store(path.parent, values["run_id"], values["correct"])
    return path


def store(folder, run_id, correct, *, shift=0):
    labels = ((np.arange(len(correct)) + shift) % 10).astype("int32")
    probabilities = np.eye(10, dtype="float16")[np.where(correct, labels, (labels + 1) % 10)]
    (folder / "predictions").mkdir(exist_ok=True)
    np.savez_compressed(folder / "predictions" / f"{run_id}.npz", labels=labels, probabilities=probabilities)


def answers(both, only_a, only_b, neither):
    counts = (both, only_a, only_b, neither)
    return np.repeat((True, True, False, False), counts), np.repeat((True, False, True, False), counts)


def seeds(*accuracies, **changes):
    """A run of each seed."""
    name = changes.pop("name", "run")
    return [row(run_id=f"{name}{seed}", seed=seed, test_accuracy=p, **changes) for seed, p in enumerate(accuracies)]


def pair_of(tmp_path, rows_a, rows_b):
    """The only pair of two files."""
    a, b = model.read([save(tmp_path / "a" / "A.csv", *rows_a), save(tmp_path / "b" / "B.csv", *rows_b)])
    ((_, (pair,), _),) = model.sections([a, b])
    return pair


def meetings(rows_a, rows_b):
    """What `matched` makes of rows: run ids in pairs, only in the first, only in the second."""
    sides = [grouped({"config": None} | r for r in rows) for rows in (rows_a, rows_b)]
    pairs, *alone = model.matched(*sides)
    return [(a.runs[0]["run_id"], b.runs[0]["run_id"]) for a, b in pairs], *(
        [group.runs[0]["run_id"] for group in side] for side in alone
    )


@pytest.fixture
def example(tmp_path):
    """Newcombe's paired example (20, 12, 2, 16) as two files of fifty images: B alone is right on 12, A on 2."""
    right_b, right_a = answers(20, 12, 2, 16)
    changed = CONFIG | {"training": CONFIG["training"] | {"stages": [{"epochs": 15}]}, "overrides": {"epochs": 15}}
    a = row(run_id="a", test_accuracy=0.44, test_n=50, config=CONFIG, correct=right_a)
    b = row(
        run_id="b", test_accuracy=0.64, test_n=50, config=changed, correct=right_b, training_seconds=3000.0,
        parameters=1972800, git_commit="def", overrides="epochs=15",
    )  # fmt: skip
    return [save(tmp_path / "a" / "A.csv", a), save(tmp_path / "b" / "B.csv", b)]


def test_a_pair_says_difference_verdict_test_cost_and_what_changed(example, capsys):
    assert comparison.run(example) == 0
    legend, block, *footnotes = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert legend == f"A  {example[0]} (1 group)\nB  {example[1]} (1 group)"
    assert block.splitlines() == [
        "exp4_scratch best, CIFAR-10, full, weights none",
        "         accuracy    95% interval     kind              sd    seeds    test n    training    parameters",
        "  A      44.00%      [31.16, 57.69]   Wilson                  1        50        2,000 s     1,972,792",
        "  B      64.00%      [50.14, 75.86]   Wilson                  1        50        3,000 s     1,972,800",
        "  B - A  +20.00      [+5.62, +32.92]  Newcombe, paired                           x 1.50      +8",
        "  distinguishable; McNemar p = 0.013 (A alone is right on 2 images, B on 12)",
        "  changed                   A       B",
        "  overrides.epochs          absent  15",
        "  training.stages.0.epochs  13      15",
        "  git_commit                abc     def",
    ]
    assert len(footnotes) == 2


def test_the_csv_has_numbers_in_a_row_for_the_pair(example):
    (values,) = csv.DictReader(comparison.as_csv(model.read(example)).splitlines())
    figures = {name: float(values[name]) for name in ("accuracy_a", "accuracy_b", "difference", "difference_low")}
    expected = {"accuracy_a": 0.44, "accuracy_b": 0.64, "difference": 0.2, "difference_low": 0.05615642}
    assert figures == pytest.approx(expected, abs=1e-8)
    assert float(values["mcnemar_p"]) == pytest.approx(212 / 2**14)
    assert {name: values[name] for name in values if name.startswith("right")} == {
        "right_in_a_alone": "2",
        "right_in_b_alone": "12",
    }
    assert (values["file_a"], values["file_b"]) == tuple(map(str, example))
    assert (values["found_in"], values["distinguishable"], values["seeds_a"]) == ("a and b", "True", "1")
    assert (values["training_seconds_ratio"], values["more_parameters"]) == ("1.5", "8")
    assert "training.stages.0.epochs: 13 -> 15; git_commit: abc -> def" in values["changed"]


def test_markdown_has_github_tables_and_no_bold(example, tmp_path, capsys):
    path = save(tmp_path / "c" / "C.csv", row(dataset="a|b"))
    comparison.run([*example, path], fmt="markdown")
    text = capsys.readouterr().out
    assert "**" not in text
    assert text.count("| changed ") == 1 and "| B - A | +20.00" in text
    assert "## B against A" in text and "## C against A" in text
    assert "### only in C.csv" in text and "a\\|b" in text
    assert "\n\ndistinguishable; McNemar p = 0.013" in text


def test_one_file_alone_shows_its_groups_with_intervals(tmp_path, capsys):
    rows = [*seeds(0.90, 0.91, 0.92), row(experiment="exp10_wide"), row(run_id="x", status="failed", budget="quick")]
    comparison.run([save(tmp_path / "A.csv", *rows)])
    legend, listing, footnote = capsys.readouterr().out.split("\n\n")
    assert legend.endswith("A.csv (2 groups)") and footnote.startswith("Intervals are 95%.")
    assert [line.split() for line in listing.splitlines()[1:]] == [
        ["exp4_scratch", "best,", "CIFAR-10,", "full,", "weights", "none"],
        ["91.00%", "[88.52,", "93.48]", "Student", "t", "1.00", "3", "10,000", "2,000", "s", "1,972,792",
         "2026-01-01T00:00"],
        ["exp10_wide", "best,", "CIFAR-10,", "full,", "weights", "none"],
        ["90.00%", "[89.40,", "90.57]", "Wilson", "1", "10,000", "2,000", "s", "1,972,792", "2026-01-01T00:00"],
    ]  # fmt: skip
    rows = list(csv.DictReader(comparison.as_csv(model.read([tmp_path / "A.csv"])).splitlines()))
    assert [(r["found_in"], r["file_b"], r["sd_a"], r["accuracy_b"]) for r in rows] == [
        ("a", "", "0.01", ""),
        ("a", "", "", ""),
    ]
    assert float(rows[0]["low_a"]) == pytest.approx(0.91 - 4.302652730 * 0.01 / 3**0.5)


def test_a_file_without_finished_runs_is_no_error(tmp_path, capsys):
    empty = save(tmp_path / "A.csv", row(status="failed"))
    comparison.run([empty])
    assert "no finished run" in capsys.readouterr().out
    comparison.run([empty, save(tmp_path / "B.csv", row())])
    assert "\n\nonly in B.csv\n\n" in capsys.readouterr().out
    comparison.run([empty], fmt="csv")
    (header,) = capsys.readouterr().out.splitlines()
    assert header.startswith("file_a,file_b,found_in,experiment,")


@pytest.mark.parametrize("predictions", [True, False])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_file_does_not_differ_from_itself(tmp_path, capsys, predictions, count):
    correct = {"correct": answers(20, 12, 2, 16)[0]} if predictions else {}
    rows = seeds(*(0.64 - 0.02 * seed for seed in range(count)), test_n=50, config=CONFIG)
    path = save(tmp_path / "A.csv", *rows)
    for values in rows:
        right = round(values["test_accuracy"] * 50)
        if correct:
            store(tmp_path, values["run_id"], np.arange(50) < right)
    comparison.run([path, path], fmt="csv")
    (values,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert float(values["difference"]) == 0 and values["distinguishable"] == "False" and values["changed"] == ""
    assert float(values["difference_low"]) < 0 < float(values["difference_high"])
    assert (values["mcnemar_p"], values["mcnemar_p_by_seed"]) == (
        ("1" if count == 1 else "", "" if count == 1 else "; ".join(f"seed {seed}: 1" for seed in range(count)))
        if predictions
        else ("", "")
    )
    comparison.run([path, path])
    text = capsys.readouterr().out
    assert "+0.00" in text and "  not distinguishable" in text and "nothing else changed" in text
    assert "only in" not in text


def test_an_older_recipe_is_a_group_of_its_own_and_compared_with_itself_too(tmp_path):
    old = [row(run_id="old", utc="2025-01-01", config=CONFIG | {"precision": "mixed_float16"})]
    path = save(tmp_path / "A.csv", *old, *seeds(0.8, 0.9, config=CONFIG))
    ((_, pairs, unmatched),) = model.sections(model.read([path, path]))
    assert [pair.difference.value for pair in pairs] == [0, 0] and [groups for _, groups in unmatched] == [[], []]
    assert sorted(len(pair.a.runs) for pair in pairs) == [1, 2]


# Which groups are compared


@pytest.mark.parametrize("column", [column for column in KEY if column != "precision"])
def test_rows_that_differ_in_a_key_do_not_meet(column):
    a, b = row(run_id="a", backbone="airnet"), row(run_id="b", backbone="airnet")
    assert meetings([a], [b | {column: "other"}]) == ([], ["a"], ["b"])


def test_files_from_before_backbones_could_be_chosen_are_compared_without_them():
    assert meetings([row(run_id="a", backbone=None)], [row(run_id="b", backbone="airnet")]) == ([("a", "b")], [], [])
    far = row(run_id="b", backbone="airnet", dataset="other")
    assert meetings([row(run_id="a", backbone=None)], [far]) == ([], ["a"], ["b"])


def test_precisions_meet_where_there_is_no_other_counterpart_and_that_is_a_change(tmp_path, capsys):
    a, b = row(run_id="a"), row(run_id="b", precision="mixed_bfloat16", config=CONFIG | {"precision": "mixed_bfloat16"})
    assert meetings([a], [b]) == ([("a", "b")], [], [])
    assert meetings([a], [b, row(run_id="c")]) == ([("a", "c")], [], ["b"])
    three, large = row(run_id="three", overrides="epochs=3"), row(run_id="large", overrides="batch-size=64")
    assert meetings([a, three], [row(run_id="c"), large]) == ([("a", "c")], ["three"], ["large"])
    files = save(tmp_path / "A.csv", a), save(tmp_path / "B.csv", b)
    comparison.run(files)
    text = capsys.readouterr().out
    assert "\nexp4_scratch best, CIFAR-10, full, weights none\n" in text
    assert re.search(r"precision +float32 +mixed_bfloat16", text)
    comparison.run(files, fmt="csv")
    (values,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert values["precision"] == "float32 -> mixed_bfloat16"


def test_a_precision_other_than_float32_stands_in_the_title(tmp_path, capsys):
    a = save(tmp_path / "A.csv", row(), row(run_id="2", precision="mixed_float16", config=CONFIG))
    comparison.run([a, save(tmp_path / "B.csv", row(precision="mixed_float16"))])
    text = capsys.readouterr().out
    assert "\nexp4_scratch best, CIFAR-10, full, weights none, mixed_float16\n" in text
    assert "\n\nonly in A.csv\n\n" in text and "weights none\n" in text


def test_single_groups_meet_whatever_their_recipe():
    a, b = row(run_id="a", config=CONFIG), row(run_id="b", overrides="epochs=3", epochs=3)
    assert meetings([a], [b]) == ([("a", "b")], [], [])


def test_of_several_groups_those_with_equal_overrides_meet_the_newest_recipes_first():
    here = [
        row(run_id="plain"),
        row(run_id="three", overrides="epochs=3"),
        row(run_id="old", overrides="epochs=4", batch_size=32, utc="2025-01-01"),
        row(run_id="new", overrides="epochs=4", batch_size=64, utc="2025-01-02"),
    ]
    there = [row(run_id="b4", overrides="epochs=4"), row(run_id="b5", overrides="epochs=5"), row(run_id="b")]
    pairs, only_first, only_later = meetings(here, there)
    assert sorted(pairs) == [("new", "b4"), ("plain", "b")]
    assert (sorted(only_first), only_later) == (["old", "three"], ["b5"])


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": "epochs=3"},
        {"precision": "mixed_float16"},
        {"config": CONFIG | {"deterministic": True}},
        {"config": None, "epochs": 12},
        {"fingerprint": "other"},
        {"test_n": 1000},
    ],
    ids=str,
)
def test_recipes_and_data_are_never_averaged(change):
    config = {"config": change.get("config", CONFIG)}
    first = {"config": CONFIG} if config["config"] else config
    rows = [row(run_id="a", seed=0) | first, row(run_id="b", seed=1) | config | change]
    assert sorted(len(group.runs) for group in grouped(rows)) == [1, 1]


def test_the_newest_finished_run_of_each_seed_counts():
    rows = [
        row(run_id="new", utc="2026-01-03", test_accuracy=0.8),
        row(run_id="old", utc="2026-01-01", test_accuracy=0.1),
        row(run_id="other", seed=1, test_accuracy=0.9, config=CONFIG | {"seed": 1}),
        row(run_id="failed", utc="2026-01-04", test_accuracy=None, status="failed"),
    ]
    (group,) = grouped({"config": CONFIG} | r for r in rows)
    assert [run["run_id"] for run in group.runs] == ["new", "other"] and group.estimate.value == pytest.approx(0.85)


def test_what_has_no_counterpart_is_listed_under_its_file(tmp_path, capsys):
    a = save(tmp_path / "A.csv", row(), row(experiment="exp1_frozen", overrides="epochs=3"))
    b = save(tmp_path / "B.csv", row(), row(experiment="exp2_augment"))
    comparison.run([a, b])
    text = capsys.readouterr().out
    a_part, b_part = text.partition("only in A.csv\n\n")[2].split("only in B.csv\n\n")
    assert "\nexp1_frozen best, CIFAR-10, full, epochs=3, weights none\n  90.00%" in a_part
    assert "exp2_augment" not in a_part and "\nexp2_augment best" in b_part
    comparison.run([a, b], fmt="csv")
    rows = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [(r["found_in"], r["experiment"], r["accuracy_a"], r["accuracy_b"]) for r in rows] == [
        ("a and b", "exp4_scratch", "0.9", "0.9"),
        ("a", "exp1_frozen", "0.9", ""),
        ("b", "exp2_augment", "", "0.9"),
    ]


def test_every_later_file_is_compared_with_the_first(tmp_path, capsys):
    paths = [
        save(tmp_path / name / "results.csv", row(test_accuracy=p))
        for name, p in zip("xyz", (0.9, 0.8, 0.7), strict=True)
    ]
    comparison.run(paths)
    text = capsys.readouterr().out
    assert "== B against A" in text and "== C against A" in text
    assert [line.split()[3] for line in text.splitlines() if " - A " in line] == ["-10.00", "-20.00"]
    assert f"A  {paths[0]} (1 group)" in text
    names = [file.name for file in model.read(paths)]
    assert names == [str(path) for path in paths]  # three are called results.csv
    with pytest.raises(ConfigError, match="at most 26 files to compare. Received: 27"):
        comparison.run(paths * 9)


# What is concluded from a pair


def test_without_predictions_the_interval_is_newcombes_unpaired_one(tmp_path):
    pair = pair_of(tmp_path, [row(test_accuracy=48 / 80, test_n=80)], [row(test_accuracy=56 / 80, test_n=80)])
    assert pair.difference.kind == "Newcombe, unpaired" and pair.test is None
    assert pair.difference.value == pytest.approx(0.1) and not pair.distinguishable


@pytest.mark.parametrize(("stored", "lacking"), [("a", "later"), ("b", "first"), ("", "first and the later")])
def test_whose_predictions_are_not_stored_is_said_where_they_would_have_counted(tmp_path, stored, lacking):
    right, _ = answers(20, 12, 2, 16)
    rows = [row(test_accuracy=0.64, test_n=50, **({"correct": right} if side in stored else {})) for side in ("a", "b")]
    pair = pair_of(tmp_path, *([r] for r in rows))
    assert pair.notes == (f"not compared by image: no predictions are stored of the {lacking} file's run",)
    assert pair.difference.kind == "Newcombe, unpaired" and not pair.tests
    assert not pair_of(tmp_path / "seeds", [rows[0]], seeds(0.62, 0.66, test_n=50)).notes  # their spread decides
    (other,) = pair_of(tmp_path / "data", [rows[0]], [rows[1] | {"fingerprint": "0"}]).notes
    assert other.startswith("different data")


def test_no_difference_is_called_one_on_the_word_of_the_interval_alone(tmp_path):
    right_a, right_b = answers(150, 0, 5, 45)  # five discordant images: p = 2 / 2**5
    a, b = row(test_accuracy=0.75, test_n=200, correct=right_a), row(test_accuracy=0.775, test_n=200, correct=right_b)
    pair = pair_of(tmp_path, [a], [b])
    assert pair.difference.excludes_zero and pair.test.p == 0.0625
    assert not pair.distinguishable
    assert pair_of(tmp_path / "alone", [a | {"test_accuracy": 0.6}], [b]).distinguishable  # predictions are not A's


def test_seeds_are_compared_by_their_spread_and_by_image_for_each_seed_of_both(tmp_path):
    runs_a = seeds(0.52, 0.56, 0.54, name="a", test_n=50)
    runs_b = seeds(0.62, 0.66, name="b", test_n=50)
    for run in (*runs_a, *runs_b):
        run["correct"] = np.arange(50) < round(50 * run["test_accuracy"])
    pair = pair_of(tmp_path, runs_a, runs_b)
    assert pair.difference.kind == "Welch t" and pair.difference.value == pytest.approx(0.10)
    assert pair.test is None and sorted(pair.tests) == [0, 1]
    assert pair.tests[0].p == pytest.approx(2 / 2**5) and pair.tests[0].only_b == 5
    assert comparison._tested(pair, "AB") == ["McNemar p = 0.062 (seed 0), 0.062 (seed 1)"]
    one = pair_of(tmp_path / "one", runs_a[:1], runs_b)
    assert one.difference.kind == "pooled t" and list(one.tests) == [0] and one.test is None


def test_many_seeds_that_differ_are_distinguishable_even_if_no_single_pair_is(tmp_path):
    runs_a = seeds(0.900, 0.901, 0.899, name="a", test_n=1000)
    runs_b = seeds(0.910, 0.911, 0.909, name="b", test_n=1000)
    for run in (*runs_a, *runs_b):
        run["correct"] = np.random.default_rng(run["seed"]).permutation(np.arange(1000) < 1000 * run["test_accuracy"])
    for run in runs_b:
        run["correct"] = np.random.default_rng(9).permutation(run["correct"])
    pair = pair_of(tmp_path, runs_a, runs_b)
    assert pair.distinguishable and min(test.p for test in pair.tests.values()) > 0.05


def test_seeds_that_agree_say_no_more_than_one(tmp_path):
    pair = pair_of(tmp_path, seeds(0.9, 0.9, name="a", test_n=200), seeds(0.91, 0.91, name="b", test_n=200))
    assert pair.difference.kind == "Newcombe, unpaired" and not pair.distinguishable
    assert pair.a.estimate.kind == "Wilson" and pair.a.spread == 0


def test_other_data_under_one_label_are_named_and_not_compared_by_image(tmp_path, capsys):
    right, _ = answers(20, 12, 2, 16)
    a = row(test_accuracy=0.64, test_n=50, correct=right)
    pair = pair_of(tmp_path, [a], [a | {"fingerprint": "0123456789ab"}])
    assert pair.notes == ("different data under one label: fingerprint f10df10df10d -> 0123456789ab",)
    assert pair.difference.kind == "Newcombe, unpaired" and not pair.tests
    pair = pair_of(tmp_path / "fewer", [a], [row(test_n=1000)])
    assert pair.notes == ("different numbers of test images: 50 -> 1,000",) and not pair.tests
    comparison.run([tmp_path / "fewer" / name / f"{name.upper()}.csv" for name in "ab"])
    text = capsys.readouterr().out
    assert "\n  note: different numbers of test images: 50 -> 1,000\n  distinguishable, on other data\n" in text


@pytest.mark.parametrize("other", [{"fingerprint": "0123456789ab"}, {"test_n": 500}], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_seeds_alone_do_not_tell_apart_what_was_measured_on_other_images(tmp_path, other, count):
    """Each spreads by 0.1 points around its mean, the means are 0.8 points apart: the test sets alone may do that."""
    ours, theirs = (0.899, 0.901, 0.900)[:count], (0.906, 0.908, 0.910)
    same = pair_of(tmp_path / "same", seeds(*ours, test_n=2000), seeds(*theirs, test_n=2000))
    assert same.distinguishable == (count == 3) and "test" not in same.difference.kind
    pair = pair_of(tmp_path, seeds(*ours, test_n=2000), seeds(*theirs, **{"test_n": 2000} | other))
    assert not pair.distinguishable and pair.difference.kind.endswith("t + test")
    assert pair.verdict == "not distinguishable, on other data"
    assert pair.difference.low < same.difference.low and pair.difference.high > same.difference.high


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder, right: store(folder, "b", right, shift=1), "the stored labels differ"),
        (lambda folder, right: store(folder, "b", ~right), "predictions of b do not give its recorded accuracy"),
        (lambda folder, right: store(folder, "b", right[:40]), "predictions of b do not give its recorded accuracy"),
        (lambda folder, right: (folder / "predictions" / "b.npz").write_bytes(b""), "b.npz holds no predictions"),
        (lambda folder, right: (folder / "predictions" / "b.npz").write_bytes(b"PK\3\4"), "b.npz holds no predictions"),
        (lambda folder, right: np.savez(folder / "predictions" / "b.npz", labels=right), "b.npz holds no predictions"),
        (
            lambda folder, right: np.savez(folder / "predictions" / "b.npz", labels=right, probabilities=right),
            "b.npz holds no predictions",
        ),
    ],
)
def test_predictions_that_can_not_be_used_are_said_to_be_so(tmp_path, spoil, why):
    right, _ = answers(20, 12, 2, 16)
    a, b = (row(run_id=name, test_accuracy=0.64, test_n=50, correct=right) for name in "ab")
    paths = [save(tmp_path / "A.csv", a), save(tmp_path / "b" / "B.csv", b)]
    spoil(tmp_path / "b", right)
    ((_, (pair,), _),) = model.sections(model.read(paths))
    assert pair.difference.kind == "Newcombe, unpaired" and pair.test is None
    (note,) = pair.notes
    assert note.startswith("not compared by image: ") and why in note


def test_ties_that_storing_in_16_bit_made_do_not_disown_the_predictions(tmp_path):
    right, _ = answers(20, 12, 2, 16)
    a, b = (row(run_id=name, test_accuracy=0.64, test_n=50, correct=right) for name in "ab")
    paths = [save(tmp_path / "A.csv", a), save(tmp_path / "b" / "B.csv", b)]
    with np.load(tmp_path / "b" / "predictions" / "b.npz") as stored:
        labels, probabilities = stored["labels"], stored["probabilities"].copy()
    probabilities[5] = 0.1  # its label is 5, but the first of equals counts as predicted
    np.savez(tmp_path / "b" / "predictions" / "b.npz", labels=labels, probabilities=probabilities)
    ((_, (pair,), _),) = model.sections(model.read(paths))
    assert pair.difference.kind == "Newcombe, paired" and pair.test.only_a == 1
    assert pair.difference.value == 0  # as the rows say


def test_what_changed_is_the_configuration_where_both_are_known_else_its_columns(tmp_path):
    b = {"config": CONFIG | {"limits": {"train": 500}, "new": []}, "epochs": 3, "keras": "4.0", "git_commit": None}
    pair = pair_of(tmp_path, [row(config=CONFIG)], [row(**b)])
    surroundings = [("git_commit", "abc", "unknown"), ("keras", "3.15.1", "4.0")]
    assert model.changes(pair.a, pair.b) == [("limits.train", "null", "500"), *surroundings]
    del b["config"]
    pair = pair_of(tmp_path / "columns", [row(config=CONFIG)], [row(**b, overrides="epochs=3", deterministic=True)])
    assert model.changes(pair.a, pair.b) == [
        ("epochs", "13", "3"),
        ("deterministic", "false", "true"),
        ("overrides", "none", "epochs=3"),
        *surroundings,
    ]


def test_columns_that_vary_over_seeds_show_all_values(tmp_path):
    rows = seeds(0.90, 0.91)
    rows[1]["device"] = "GPU"
    pair = pair_of(tmp_path, rows, seeds(0.90, 0.91))
    assert model.changes(pair.a, pair.b) == [("device", "2 cores, GPU", "2 cores")]


def test_costs_that_are_unknown_are_said_to_be(tmp_path, capsys):
    a = save(tmp_path / "A.csv", row(training_seconds=None))
    comparison.run([a, save(tmp_path / "B.csv", row(parameters=None))])
    text = capsys.readouterr().out
    assert "unknown     1,972,792" in text and "2,000 s     unknown" in text and " x " not in text


def test_text_fits_a_terminal(tmp_path, capsys):
    long = "exp3_cifar10-jpeg_epochs=5_limit=15000_weights=none-7e9c6e"
    config = CONFIG | {"weights": long * 2, "training": {"a_long_name": {"of_something": {"deeply_nested": long}}}}
    a = row(weights=long, config=CONFIG, overrides="epochs=5, limit=15000, learning-rate=0.001", device="x" * 60)
    a |= {"training_seconds": 360_000.0, "parameters": 1_234_567_890, "git_commit": None}
    b = a | {"config": config, "device": "y " * 60}
    alone = [row(run_id=f"s{s}", experiment="exp2_x", weights=long, seed=s, test_accuracy=s / 10) for s in range(10)]
    comparison.run([save(tmp_path / "A.csv", a, *alone), save(tmp_path / "b" / "B.csv", b)])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 120


@pytest.mark.parametrize("fmt", ["text", "markdown", "csv"])
def test_of_two_that_can_not_be_told_apart_none_is_marked(tmp_path, capsys, fmt):
    paths = [save(tmp_path / "A.csv", row()), save(tmp_path / "B.csv", row(test_accuracy=0.9001))]
    comparison.run(paths, fmt=fmt)
    text = capsys.readouterr().out.replace(str(tmp_path), "").lower()
    assert not [word for word in ("*", "better", "worse", "wins", "winner", "beats") if word in text]


# Against the run before


def records(root, *rows):
    """Records as runs leave them below `root`; predictions where a row says which images were right."""
    for values in rows:
        record = {name: value for name, value in values.items() if name not in ("overrides", "correct")}
        results.write(root, record | {"config": values.get("config", CONFIG)})
        if "correct" in values:
            store(root / "results", values["run_id"], values["correct"])
    return results.read(root)


def test_the_previous_run_is_the_newest_like_it(tmp_path):
    other = {"config": CONFIG | {"overrides": {"epochs": 3}}}
    *earlier, record, later = records(
        tmp_path,
        row(run_id="1", utc="2026-01-01", test_accuracy=0.1),
        row(run_id="2", utc="2026-01-02", test_accuracy=0.8959),
        row(run_id="3", utc="2026-01-03", test_accuracy=None, status="failed"),
        row(run_id="4", utc="2026-01-03", test_accuracy=0.2, **other),
        *(row(run_id=column, utc="2026-01-03", **{column: "other"}) for column in KEY),
        row(run_id="6", utc="2026-01-06", test_accuracy=0.9),
        row(run_id="7", utc="2026-01-07", test_accuracy=0.3),
    )
    everything = [*earlier, record, later]
    said = "previous run +0.0041 (not distinguishable)"
    assert comparison.against_previous(record, everything, tmp_path) == said
    assert comparison.against_previous(earlier[0], everything, tmp_path) is None
    assert comparison.against_previous(later, everything, tmp_path) == "previous run -0.6000 (distinguishable)"


def test_the_previous_run_is_compared_by_image_where_that_is_possible(tmp_path):
    right_a, right_b = answers(700, 100, 140, 60)  # unpaired +0.04 would not do: [-0.0073, +0.0737]
    a = row(run_id="1", utc="2026-01-01", test_accuracy=0.80, test_n=1000, correct=right_a)
    b = row(run_id="2", utc="2026-01-02", test_accuracy=0.84, test_n=1000, correct=right_b)
    earlier, record = records(tmp_path, a, b)
    assert comparison.against_previous(record, [earlier], tmp_path) == "previous run +0.0400 (distinguishable)"
    (tmp_path / "results" / "predictions" / "1.npz").write_bytes(b"broken")  # a finished run must not end on that
    assert comparison.against_previous(record, [earlier], tmp_path).startswith("previous run +0.0400 (")


def test_a_previous_run_on_other_data_is_said_to_be_so(tmp_path):
    a = row(run_id="1", utc="2026-01-01", fingerprint="0")
    earlier, record = records(tmp_path, a, row(run_id="2", utc="2026-01-02"))
    said = "previous run +0.0000 (not distinguishable, on other data)"
    assert comparison.against_previous(record, [earlier], tmp_path) == said


# Files


def test_a_csv_from_before_the_overrides_column_takes_them_from_the_records(tmp_path):
    columns = [name for name in results.COLUMNS if name not in ("overrides", "python")]
    config = CONFIG | {"overrides": {"epochs": 3, "weights": "none"}}
    path = save(tmp_path / "A.csv", row(run_id="a", config=config), row(run_id="b", seed=1), columns=columns)
    (known, unknown) = read_csv(path)
    assert (known["overrides"], unknown["overrides"], unknown["python"]) == ("epochs=3", None, None)
    comparison.run([path, path])


@pytest.mark.parametrize("fmt", ["text", "markdown", "csv"])
def test_comparing_needs_no_tensorflow(tmp_path, fmt):
    save(tmp_path / "A.csv", row(correct=np.arange(10000) < 9000))
    code = f"""
import sys
from cifar_keras.report import comparison
comparison.run(["A.csv", "A.csv"], fmt={fmt!r})
sys.exit("tensorflow" in sys.modules or "keras" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "A.csv" in done.stdout
