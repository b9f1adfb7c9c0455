import csv

import pytest
from helpers import entry, record

from cifar_keras.config import ConfigError
from cifar_keras.report import table
from cifar_keras.results.groups import Group


def test_a_row_states_accuracy_interval_n_data_hardware_and_time():
    (row,), others = table.collated([record()])
    assert others == []
    assert row == {
        "experiment": "exp4_scratch", "variant": "best", "backbone": "-", "dataset": "CIFAR-10 (JPEG)",
        "weights": "none", "precision": "float32", "published test": "72%",
        "test [95% interval] (n)": "89.6% [89.0, 90.2] (10,000)",
        "seeds": "1", "train (n)": "98.0% (5,000)", "val (n)": "90.0% (5,000)", "parameters": "1,972,792",
        "minutes": "42", "hardware": "2-core CPU",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({}, "results"),
        ({"config": {"overrides": {}}}, "results"),
        ({"budget": "quick"}, "others"),
        ({"weights": "exp3_quick-1a2b3c"}, "others"),
        ({"weights_called_for": "imagenet"}, "others"),
        ({"config": {"overrides": {"epochs": 2}}}, "others"),
        ({"precision": "mixed_bfloat16"}, "results"),
        ({"precision": "mixed_bfloat16", "config": {"overrides": {"precision": "mixed_bfloat16"}}}, "results"),
        ({"status": "failed", "test_accuracy": None}, "nowhere"),
    ],
)
def test_only_whole_runs_from_the_weights_called_for_are_results(changes, where):
    results, others = table.collated([record(**changes)])
    assert (len(results), len(others)) == {"results": (1, 0), "others": (0, 1), "nowhere": (0, 0)}[where]


def test_other_runs_name_budget_weights_data_and_what_was_overridden():
    config = {"overrides": {"epochs": 2, "weights": "none"}}  # weights have a column of their own
    _, (transferred, quick) = table.collated([record(budget="quick", config=config), record(weights="exp3-1a2b3c")])
    assert (quick["budget"], quick["weights"]) == ("quick, epochs=2", "none")
    assert (transferred["budget"], transferred["weights"]) == ("full", "exp3-1a2b3c")
    assert transferred["dataset"] == "CIFAR-10 (JPEG)"
    assert "published test" not in quick


def test_what_was_not_measured_shows_dashes_and_the_published_figure():
    experiments = [entry("exp1_frozen", "best", "published", test=0.42), entry("exp4_scratch", "best")]
    results, _ = table.collated([record(), record(experiment="exp1_frozen", budget="demo")], experiments)
    assert [(row["experiment"], row["variant"]) for row in results] == [
        ("exp1_frozen", "best"),
        ("exp1_frozen", "published"),
        ("exp4_scratch", "best"),
    ]
    known = {heading for heading, text in results[0].items() if text != "-"}
    assert known == {"experiment", "variant", "published test"} and results[0]["published test"] == "42%"


def test_seeds_are_averaged_and_the_newest_of_equal_runs_wins():
    runs = [
        record(utc="2026-01-03", seed=0, test_accuracy=0.8),
        record(utc="2026-01-01", seed=0, test_accuracy=0.1),  # older, though it comes later
        record(utc="2026-01-02", seed=1, test_accuracy=0.9),
        record(utc="2026-01-02", seed=0, test_accuracy=0.5, dataset="CIFAR-10", fingerprint="def"),
    ]
    (official, jpeg), _ = table.collated(runs)
    assert official["test [95% interval] (n)"].startswith("50.0%") and official["seeds"] == "1"
    assert jpeg["test [95% interval] (n)"].startswith("85.0%") and jpeg["seeds"] == "2"


def test_several_seeds_have_the_interval_of_their_mean_and_their_spread():
    runs = [record(seed=seed, test_accuracy=accuracy) for seed, accuracy in enumerate((0.89, 0.90, 0.91))]
    (row,), _ = table.collated(runs)  # Student's t for two degrees of freedom, 4.303, times 0.01 / sqrt(3)
    assert row["test [95% interval] (n)"] == "90.0% [87.5, 92.5] sd 1.00 (10,000)"
    assert "best: 90.0% of 10,000 test images [87.5, 92.5] sd 1.00, 3 seeds" in table.docstring_result(
        runs, "exp4_scratch"
    )


def test_runs_of_an_older_recipe_do_not_enter_the_mean_of_a_new_one():
    old = [record(seed=seed, utc=f"2026-01-0{seed + 1}", config={"seed": seed, "rate": 1}) for seed in range(3)]
    new = record(seed=0, utc="2026-02-01", test_accuracy=0.5, config={"seed": 0, "rate": 2})
    (row,), _ = table.collated([*old, new])
    assert row["seeds"] == "1" and row["test [95% interval] (n)"].startswith("50.0%")


def test_two_precisions_are_two_rows_whether_or_not_an_old_record_calls_one_an_override():
    config = {"precision": "mixed_bfloat16", "overrides": {"precision": "mixed_bfloat16"}}
    old = record(precision="mixed_bfloat16", test_accuracy=0.5, seed=1, config=config)
    new = record(precision="mixed_bfloat16", test_accuracy=0.7, config=config | {"overrides": {}})
    rows, others = table.collated([record(), old, new])
    assert [(row["precision"], row["seeds"], row["test [95% interval] (n)"][:5]) for row in rows] == [
        ("float32", "1", "89.6%"), ("mixed_bfloat16", "2", "60.0%"),
    ]  # fmt: skip
    assert others == [] and "precision" in table.render(rows, "text")
    assert "precision" not in table.render(rows[:1], "text") and "precision" in table.render(rows[:1], "markdown")
    plain, mixed = table.summarised([record(), old, new], []).splitlines()[2:]
    assert "mixed_bfloat16" not in plain and "2-core CPU, 2 seeds, mixed_bfloat16" in mixed
    line = table.docstring_result([old], "exp4_scratch")
    assert "CIFAR-10 (JPEG), mixed_bfloat16, 42 min" in " ".join(line.split())


def test_unknown_values_are_dashes():
    unknown = dict.fromkeys(("train_accuracy", "parameters", "training_seconds", "device", "published_test"))
    (row,), _ = table.collated([record(**unknown)])
    for heading in ("train (n)", "parameters", "minutes", "hardware", "published test"):
        assert row[heading] == "-"


def test_the_three_renderings_hold_the_same_cells():
    rows, _ = table.collated([record(dataset="a|b")], [entry("exp1_frozen", "best")])
    assert list(csv.DictReader(table.render(rows, "csv").splitlines())) == rows
    assert "89.6%" in table.render(rows, "text")
    markdown = table.render(rows, "markdown").splitlines()
    assert len(markdown) == 4 and "**" not in "".join(markdown)
    assert "exp4_scratch" in markdown[3] and "a\\|b" in markdown[3]
    assert table.render([], "text") == ""


def test_generated_text_replaces_only_what_stands_between_its_marks():
    text = (
        "a\n<!-- generated: results -->\nold\n<!-- /generated -->\nb\n<!-- generated: more -->\n<!-- /generated -->\n"
    )
    new = table.generated(text, "results", r"new \1")
    assert new == text.replace("old", r"new \1")
    assert table.generated(new, "results", r"new \1") == new
    with pytest.raises(ConfigError, match="Expected one pair"):
        table.generated(text, "absent", "new")


def test_the_docstring_line_says_mean_interval_seeds_data_hardware_and_minutes():
    assert table.docstring_result([record(budget="quick")], "exp4_scratch") == "Result   not yet run"
    runs = [record(), record(experiment="exp1_frozen")]
    assert table.docstring_result(runs, "exp4_scratch") == (
        "Result   best: 89.6% of 10,000 test images [89.0, 90.2], 1 seed, CIFAR-10 (JPEG), 42 min, 2-core CPU"
    )


def test_with_result_changes_that_line_and_its_continuation_alone():
    source = '"""Exp 4: a question?\n\nRun      python x\nResult   old,\n         more\nCompare  y\n\n'
    source += 'Result   z\n"""\nx = 1\n'
    runs = [record(dataset='a"""b\\n' + " long" * 30), record(variant="published", device="GPU")]
    new = table.with_result(source, table.docstring_result(runs, "exp4_scratch"))
    assert max(map(len, new.splitlines())) <= 120
    assert new.startswith('"""Exp 4: a question?\n\nRun      python x\nResult   best: ')
    assert "\n         published: " in new and new.endswith('\nCompare  y\n\nResult   z\n"""\nx = 1\n')
    compile(new, "exp4_scratch.py", "exec")
    assert table.with_result(new, "Result   old,\n         more") == source
    with pytest.raises(ConfigError, match="'Result   '"):
        table.with_result('"""Nothing."""\n', "Result   x")


def test_the_readme_s_table_has_seven_columns_of_measured_rows_and_names_the_others_in_one_line():
    experiments = [entry("exp1_frozen", "best"), entry("exp4_scratch", "best", "wide")]
    table_, line = table.summarised([record()], experiments).split("\n\n")
    header, _, *rows = table_.splitlines()
    assert header.count("|") == 8 and len(rows) == 1
    assert "[exp4_scratch](experiments/exp4_scratch.py)" in rows[0] and "42 min, 2-core CPU, 1 seed " in rows[0]
    assert "[exp1_frozen](experiments/exp1_frozen.py) (best), [exp4_scratch]" in line and "(wide)" in line
    assert table.summarised([record()], [entry("exp4_scratch", "best")]).count("\n\n") == 0


def test_minutes_are_left_out_where_other_work_shared_the_cores():
    alone = record(cpu_seconds=4600.0, cores=2)  # of 2 x 2,520 seconds
    shared = record(seed=1, cpu_seconds=4500.0, cores=2)
    unknown = record(seed=2)
    on_gpu = record(seed=3, cpu_seconds=100.0, cores=None)
    assert [Group((one,)).minutes for one in (alone, unknown, on_gpu)] == ["42", "42", "42"]
    assert Group((shared,)).minutes == Group((alone, shared)).minutes == ""
    (row,), _ = table.collated([shared])
    assert row["minutes"] == "-" and " min" not in table.summarised([shared], [])
