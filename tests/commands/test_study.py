import csv
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers import record, store

from cifar_keras.commands import study
from cifar_keras.config import ConfigError
from cifar_keras.report import summaries
from cifar_keras.utils.paths import PROJECT

EXPERIMENT = '''"""Exp {number}: question {number}?

Run      python experiments/exp{number}_x.py
Result   not yet run
"""
from cifar_keras.config import Experiment, Stage, Training

RECIPE = Training("scratch_cnn", (Stage(1, 0.1),))
VARIANTS = {{"best": RECIPE, "published": RECIPE}}
EXPERIMENT = Experiment({number}, "x", VARIANTS, published={{"test": 0.5}}, part_of_study={number} < 5{more})
if __name__ == "__main__":
    {body}
'''
EXIT = "import sys; print('child', sys.argv[1:], flush=True); sys.exit({})"


def project(folder, *, more="", **bodies):
    """A project whose experiments do this when they are started: `exp1="..."`. Returns its experiments folder."""
    for name, body in bodies.items():
        path = folder / "experiments" / f"{name}_x.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            EXPERIMENT.format(
                number=name.removeprefix("exp"), body=textwrap.indent(body or "pass", "    ").strip(), more=more
            )
        )
    (folder / "README.md").write_text("# R\n<!-- generated: results -->\n<!-- /generated -->\nend\n")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "results.md").write_text("# T\n<!-- generated: tables -->\n<!-- /generated -->\n")
    return folder / "experiments"


def study_of(folder, *codes):
    return project(folder, **{f"exp{i}": EXIT.format(code) for i, code in enumerate(codes, start=1)})


def test_a_study_without_experiments_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="must hold experiments with `part_of_study=True`"):
        study.study([], root=tmp_path, folder=project(tmp_path, exp5=""))


def test_experiments_come_by_number_and_are_never_run(tmp_path):
    folder = project(tmp_path, exp10="raise SystemExit('imported')", exp2="raise SystemExit('imported')")
    (folder / "helper.py").write_text("not python at all")
    two, ten = study.experiments(folder)
    assert (two.key, two.experiment.number, two.question) == ("exp2_x", 2, "Exp 2: question 2?")
    assert (tuple(two.experiment.variants), two.experiment.published) == (("best", "published"), {"test": 0.5})
    assert ten.key == "exp10_x"


def test_an_experiment_that_is_not_python_is_named(tmp_path):
    folder = project(tmp_path, exp1="def (")
    with pytest.raises(ConfigError, match="exp1_x.py must be an experiment.*SyntaxError"):
        study.experiments(folder)


@pytest.mark.parametrize("text", ["EXPERIMENT = 3", "import sys; sys.exit(0)", "x = 1"])
def test_a_file_without_an_experiment_is_named(text, tmp_path):
    folder = project(tmp_path, exp1="")
    (folder / "exp2_y.py").write_text(text)
    with pytest.raises(ConfigError, match="exp2_y.py must be an experiment"):
        study.experiments(folder)


def test_the_projects_own_experiments_can_be_read():
    entries = study.experiments()
    assert [entry.experiment.number for entry in entries[:4]] == [1, 2, 3, 4]
    assert all(entry.question.endswith("?") for entry in entries[:4])
    assert all(entry.experiment.variants and entry.experiment.published["test"] for entry in entries[:4])


def test_reading_commands_load_neither_tensorflow_nor_keras():
    code = "import sys; from cifar_keras.commands import study; from cifar_keras import plotting; "
    code += "study.experiments(); print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_list_shows_the_question_and_the_newest_result(tmp_path, capsys):
    folder = project(tmp_path, exp1="", exp4="", exp5="")
    new = record(experiment="exp4_x", utc="2026-02-02", test_accuracy=0.91, budget="quick")
    failed = record(experiment="exp5_x", status="failed", test_accuracy=None)
    store(tmp_path, new, record(experiment="exp4_x"), failed)
    assert study.list_experiments(tmp_path, folder=folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["exp1_x", "    Exp 1: question 1?", "    newest run: not yet run"]
    what = "CIFAR-10 (JPEG), best, quick, weights none, 2026-02-02"
    assert lines[5] == f"    newest run: 91.0% of 10,000 test images, {what}"
    assert lines[8].startswith("    newest run: failed, CIFAR-10 (JPEG)")


@pytest.mark.parametrize("name", ["2", "exp2", "exp2_x", "exp2_x.py", "experiments/exp2_x.py"])
def test_run_accepts_short_names_and_passes_arguments_and_exit_code_through(name, tmp_path, capfd):
    folder = study_of(tmp_path, 0, 7)
    assert study.run(name, ["--seed", "0-4"], folder=folder) == 7
    assert capfd.readouterr().out == "child ['--seed', '0-4']\n"


@pytest.mark.parametrize("name", ["exp", "5", "exp2_", "x", ""])
def test_an_unknown_name_lists_the_choices(name, tmp_path):
    with pytest.raises(ConfigError, match="one of: exp1_x, exp2_x .*Received: '"):
        study.run(name, [], folder=study_of(tmp_path, 0, 0))


def test_study_goes_on_after_a_failure_and_then_collates(tmp_path, capfd):
    store(tmp_path, record(experiment="exp4_x"))
    assert study.study(["--root", "r"], root=tmp_path, folder=study_of(tmp_path, 0, 3, 0, 0)) == 1
    out = capfd.readouterr().out
    assert out.count("child ['--root', 'r']") == 4
    places = [out.index(text) for text in ("study 1/4: exp1_x", "study 1/4 done", "study 2/4: exp2_x", "89.6%")]
    assert places == sorted(places)
    assert "study 4/4 done, elapsed" in out and "1 failed" in out
    assert out.splitlines()[-1].startswith("1 of 4 failed: exp2_x (exit code 3)")
    assert (tmp_path / "results" / "results.csv").exists()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0, 0, 0], 0),
        ([0, 2, 0, 0], 1),
        ([2, 2, 2, 2], 2),
        ([3, 2, 3, 3], 3),
        ([4], 4),
        ([0, 4], 4),
        ([3, 130], 130),
        ([-15, 0], 143),
        ([-9, 2], 3),
        ([], 0),
    ],
)
def test_one_exit_code_stands_for_several(codes, expected):
    assert study.combined(codes) == expected


def test_the_time_left_follows_the_plan_and_the_speed_so_far():
    equal = [200, 200, 200, 200]
    line = study.progress(equal, [(0, 100.0), (0, 140.0)])
    assert line == "== study 2/4 done, elapsed 4 min, about 4 min left"
    assert study.progress([10, 90], [(0, 20.0)]).endswith("elapsed 20 s, about 3 min left")
    assert study.progress([None, 50, None], [(0, 20.0)]).endswith("time left unknown")
    # One that failed at once says nothing about speed.
    assert study.progress(equal, [(2, 1.0)]).endswith("elapsed 1 s, 1 failed, time left unknown")
    assert study.progress(equal, [(2, 1.0), (0, 200.0)]).endswith("1 failed, about 7 min left")
    assert study.progress([1], [(0, 9000.0)]) == "== study 1/1 done, elapsed 2.5 h"


def test_a_run_knows_how_much_of_the_study_remains_after_it(tmp_path, capfd):
    code = f"import os; print('ahead:', os.environ.get({study.AHEAD!r})); raise SystemExit(0)"
    folder = project(tmp_path, **{f"exp{i}": code for i in range(1, 5)})
    study.study([], root=tmp_path, budget="full", folder=folder)
    assert "ahead: study time left unknown" in capfd.readouterr().out
    store(tmp_path, *(record(experiment=f"exp{i}_x", budget="quick", training_seconds=600.0 * i) for i in range(1, 5)))
    study.study([], root=tmp_path, budget="quick", folder=folder)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("ahead")]
    # Runs that end at once had been finished before: the speed stays that of the plan.
    assert lines[0] == "ahead: study about 1.5 h left" and lines[2] == "ahead: study about 40 min left"
    study.process(folder / "exp1_x.py", [])
    assert "ahead: None" in capfd.readouterr().out


def test_a_study_stops_where_another_process_has_a_run(tmp_path, capfd):
    assert study.study([], root=tmp_path, folder=study_of(tmp_path, 0, 4, 0, 0)) == 4
    out = capfd.readouterr().out
    assert "study stopped during exp2_x" in out and "study 3/4" not in out


def test_the_plan_takes_the_newest_run_of_this_budget_else_the_budgets_own_seconds(tmp_path):
    entries = study.experiments(project(tmp_path, exp1="", exp2=""))
    runs = [record(experiment="exp1_x", training_seconds=seconds) for seconds in (5.0, 7.0)]
    runs.append(record(experiment="exp2_x", config={"overrides": {"epochs": 1}}))  # says nothing about the recipe
    assert study.planned_seconds(entries, runs, "full") == [7.0, None]
    assert study.planned_seconds(entries, runs, "quick") == [200, 200]


WAITING = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "stopped").write_text(str(number))
    sys.exit(0)  # even a child that ends well was stopped
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(30)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows can't send a process a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_child_and_ends_the_study(number, tmp_path):
    folder = project(tmp_path, exp1=WAITING, exp2="raise SystemExit(0)", exp3="", exp4="")
    code = (
        "import signal, sys; from cifar_keras.commands import study\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it\n"
        f"sys.exit(study.study([{str(tmp_path)!r}], root={str(tmp_path)!r}, folder={str(folder)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, number)
    out, _ = child.communicate(timeout=20)
    assert child.returncode == 128 + number
    assert (tmp_path / "stopped").read_text() == str(int(number))
    assert "study stopped during exp1_x" in out and "2/4" not in out


def test_signals_are_handled_as_before_once_a_child_has_ended(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    study.run("1", [], folder=study_of(tmp_path, 0))
    assert signal.getsignal(signal.SIGTERM) is before


def test_collate_writes_only_when_asked_and_then_nothing_is_stale(tmp_path, capsys):
    folder = project(tmp_path, exp1="", exp4="x = 'Result   not yet run'")
    store(tmp_path, record(experiment="exp4_x"), record(experiment="exp1_x", budget="quick"))
    sources = {
        path: path.read_text() for path in (tmp_path / "README.md", tmp_path / "docs" / "results.md", *folder.iterdir())
    }
    study.collate(tmp_path, fmt="csv", folder=folder)
    assert sources == {path: path.read_text() for path in sources}
    rows = csv.DictReader(capsys.readouterr().out.splitlines())
    measured = [(row["table"], row["experiment"], row["budget"]) for row in rows if row["seeds"] == "1"]
    assert measured == [("results", "exp4_x", "full"), ("other runs", "exp1_x", "quick")]
    study.collate(tmp_path, write=True, folder=folder)
    records = study.results.read(tmp_path)
    assert {path: path.read_text() for path in sources} == study.refreshed(records, folder)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# R\n<!-- generated") and readme.endswith("<!-- /generated -->\nend\n")
    assert "[exp4_x](experiments/exp4_x.py)" in readme
    assert "\nResult   best: 89.6%" in (folder / "exp4_x.py").read_text()
    assert "x = 'Result   not yet run'" in (folder / "exp4_x.py").read_text()
    assert (folder / "exp1_x.py").read_text() == sources[folder / "exp1_x.py"]


def test_readme_and_docstrings_never_take_results_from_elsewhere(tmp_path):
    folder = project(tmp_path, exp1="")
    with pytest.raises(ConfigError, match="`--write` needs the project's own results"):
        study.collate(tmp_path / "demo", write=True, folder=folder)


def test_writing_needs_the_pages_of_the_repository(tmp_path):
    folder = project(tmp_path, exp1="")
    (tmp_path / "docs" / "results.md").unlink()
    with pytest.raises(ConfigError, match="Received: no docs/results.md"):
        study.collate(tmp_path, write=True, folder=folder)


def test_the_projects_readme_and_docstrings_are_fresh():
    for path, text in study.refreshed(study.results.read(PROJECT)).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `cifar-keras collate --write`"


def test_the_readme_stays_short_and_links_each_page_of_docs():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 8 * 1024
    for page in (PROJECT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, f"README.md does not link {page.name}"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_alone_prints_every_target():
    out = subprocess.run(["make", "-C", str(PROJECT)], capture_output=True, text=True).stdout
    for target in ("setup", "demo", "study", "test", "test-slow", "bench", "lint", "clean"):
        assert f"make {target} " in out


def test_the_projects_own_tables_are_fresh():
    records = study.results.read(PROJECT)
    for entry in study.experiments():
        experiment = entry.experiment
        for family in summaries.families(experiment, records) if experiment.summary else ():
            path = PROJECT / "results" / f"{family.name}.md"
            assert path.read_text(encoding="utf-8") == summaries.text_of(family), "run `cifar-keras collate --write`"


def test_the_readme_shows_the_study_alone_and_other_experiments_their_own_tables(tmp_path):
    project(tmp_path, exp6="", more=', summary="gap"')
    folder = project(tmp_path, exp1="")
    records = [record(experiment="exp1_x"), record(experiment="exp6_x", variant="a", budget="quick")]
    texts = {path.name: text for path, text in study.refreshed(records, folder).items()}
    assert "exp1_x" in texts["README.md"] and "exp6_x" not in texts["README.md"]
    assert "\nResult   see results/exp6*.md" in texts["exp6_x.py"] and "Result   best: 89.6%" in texts["exp1_x.py"]
    unrun = {path.name: text for path, text in study.refreshed([], folder).items()}
    assert "\nResult   not yet run" in unrun["exp6_x.py"]


@pytest.mark.parametrize("asked", ["exp4", "1"])
def test_report_of_one_run_analyses_it_and_says_what_is_missing(asked, tmp_path, capsys, monkeypatch):
    from cifar_keras.explain import analyse
    from cifar_keras.report import page

    seen = []

    def refresh(run_id, **where):
        seen.append(run_id)
        if asked == "1":
            raise ConfigError("`--dataset` must name the folder.")

    monkeypatch.setattr(analyse, "refresh", refresh)
    monkeypatch.setattr(page, "build_run", lambda root, record, **named: f"{record['run_id']}: {named['question']}")
    older, newer = (record(experiment="exp4_x", config={"number": 4}, utc=f"2026-01-0{day}") for day in (1, 2))
    store(tmp_path, older, newer)
    code = study.report(tmp_path, name=asked, folder=project(tmp_path, exp4=""))
    out = capsys.readouterr().out
    assert seen == ["1"] and out.endswith("1: Exp 4: question 4?\n") and code == (asked == "1")
    assert ("1 is not analysed: `--dataset` must" in out) == (asked == "1")
    with pytest.raises(ConfigError, match="RUN must be a run id"):
        study.report(tmp_path, name="exp9", folder=tmp_path / "experiments")
