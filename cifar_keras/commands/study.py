"""`cifar-keras list`, `run`, `study`, `collate` and `report`. Each experiment runs in a process of its own."""

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cifar_keras import results
from cifar_keras.config import BUDGETS, CifarKerasError, ConfigError, Experiment, HeldError
from cifar_keras.report import table
from cifar_keras.utils import system
from cifar_keras.utils.files import write_text
from cifar_keras.utils.paths import PROJECT
from cifar_keras.utils.text import AHEAD, duration

SOME_FAILED, ALL_FAILED = 1, 3
ENDING = (129, 130, 143, HeldError.exit_code)  # SIGHUP, SIGINT, SIGTERM, a run held elsewhere: these end a series
ALREADY_DONE = 0.1  # of its planned time: a run that ends sooner had been finished before, so its time means nothing
EXPERIMENTS = PROJECT / "experiments"
PAGES = ("README.md", "docs/results.md")  # with generated tables
FIGURE = "docs/accuracy_time.png"  # in the README


@dataclass(frozen=True)
class Entry:
    """An experiment file; its question is the first line of its docstring."""

    path: Path
    question: str
    experiment: Experiment

    @property
    def key(self):
        """The file's name without ending: `exp3_finetune`."""
        return self.path.stem


def experiments(folder=EXPERIMENTS):
    """The experiments in a folder, by number. Their files are imported (which takes milliseconds), not run.

    Raises: ConfigError if a file is not an experiment, or if there are none.
    """
    paths = [path for path in Path(folder).glob("exp*.py") if re.match(r"exp\d+_", path.name)]
    if not paths:
        raise ConfigError(
            f"This command needs the experiment files, expected in {Path(folder).absolute()}. Received: none. They are "
            "not part of the installed package: clone or download the project's repository, and run the command in it."
        )
    return sorted((_entry(path) for path in paths), key=lambda entry: (entry.experiment.number, entry.key))


def study_entries(folder=EXPERIMENTS):
    """The experiments that the study compares, by number."""
    return [entry for entry in experiments(folder) if entry.experiment.part_of_study]


def _entry(path):
    try:
        module = runpy.run_path(str(path))
        experiment = module["EXPERIMENT"]
        if not isinstance(experiment, Experiment):
            raise TypeError(f"EXPERIMENT is of type {type(experiment).__name__}")
    except (Exception, SystemExit) as error:  # the file may hold anything
        raise ConfigError(
            f"{path} must be an experiment: a Python file with an `EXPERIMENT`. Received: {error!r}. "
            "Fix it or move it out of the folder."
        ) from None
    lines = (module["__doc__"] or "").splitlines()
    return Entry(path, lines[0] if lines else "", experiment)


def entry_named(name, entries):
    """Finds an entry by a name such as `exp3`, `3`, `exp3_finetune` or `exp3_finetune.py`.

    Raises: ConfigError that lists the choices.
    """
    wanted = Path(str(name)).name.removesuffix(".py")
    for entry in entries:
        number = entry.experiment.number
        if wanted in (entry.key, f"exp{number}", f"{number}"):
            return entry
    choices = ", ".join(entry.key for entry in entries)
    raise ConfigError(f"The experiment must be one of: {choices} (or its number). Received: {name!r}.")


def list_experiments(root, *, folder=EXPERIMENTS):
    """Prints every experiment with its question and its newest run in `root`. Returns exit code 0."""
    records = results.read(root)
    for entry in experiments(folder):
        own = [record for record in records if record["experiment"] == entry.key]
        print(f"{entry.key}\n    {entry.question}\n    newest run: {_newest(own)}")
    return 0


def _newest(records):
    """Describes the newest record (the last one) in one line."""
    if not records:
        return table.NOT_YET
    record = records[-1]
    what = f"{record['dataset']}, {record['variant']}, {record['budget']}, weights {record['weights']}"
    if record["status"] != "finished" or record.get("test_accuracy") is None:
        return f"{record['status']}, {what}, {record['utc']}"
    return f"{record['test_accuracy']:.1%} of {record['test_n']:,} test images, {what}, {record['utc']}"


def run(name, arguments, *, folder=EXPERIMENTS):
    """Runs one experiment in a process of its own. Returns its exit code."""
    return process(entry_named(name, experiments(folder)).path, arguments)


def process(path, arguments, *, ahead=None):
    """Runs a Python file in a process, passes SIGINT, SIGTERM and SIGHUP on to it and waits until it ends.

    Args:
        path: the file.
        arguments: for its command line.
        ahead: text about the work that remains after it, for its progress lines; None for no text.
    Returns: its exit code, or 128 + the signal's number if it or this process got a signal.
    """
    sys.stdout.flush()
    received, child = [], None
    environment = dict(os.environ) if ahead is None else os.environ | {AHEAD: ahead}

    def forward(number, _):
        received.append(number)
        if child is not None:
            system.pass_on(number, child)

    with _handling(forward):
        # In a session of its own, the child gets a terminal's Ctrl-C once, from us, and not twice.
        child = subprocess.Popen([sys.executable, str(path), *arguments], env=environment, start_new_session=True)
        for number in received:  # before the child existed
            system.pass_on(number, child)
        code = child.wait()
    if received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _handling(handler):
    """Within the block, `handler` gets the signals that end a process, except those that are ignored (nohup)."""
    former = {number: signal.getsignal(number) for number in system.TERMINATING}
    former = {number: before for number, before in former.items() if before != signal.SIG_IGN}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def study(arguments, *, root, budget="full", folder=EXPERIMENTS):
    """Runs the study's experiments one after the other, each in a process, then collates the results in `root`.

    Every experiment gets the `arguments` as they are, with `--root` and `--budget`, if given, but `--backbone` only
    where it has a choice. The time left is estimated from the budget.

    Returns: exit code, see `combined`. A signal also ends the study, without tables.
    """
    if not (chosen := study_entries(folder)):
        raise ConfigError(f"{folder} must hold experiments with `part_of_study=True`. Received: none.")
    plan = planned_seconds(chosen, results.read(root), budget)
    jobs = [(entry.key, entry.question, entry.path, _for(entry, arguments)) for entry in chosen]
    codes = series("study", jobs, plan, speed=1.0)
    if codes[-1] in ENDING:
        return codes[-1]
    print()
    if "--dry-run" not in arguments:
        collate(root, folder=folder)
    failed = [f"{entry.key} (exit code {code})" for entry, code in zip(chosen, codes, strict=True) if code]
    if failed:
        print(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}; see their messages above", flush=True)
    return combined(codes)


def _for(entry, arguments):
    """The arguments without `--backbone NAME` and `--backbone=NAME`, unless the experiment takes it."""
    if entry.experiment.any_backbone:
        return arguments
    named = [place for place, argument in enumerate(arguments) if argument == "--backbone"]
    dropped = {*named, *(place + 1 for place in named)}
    kept = (argument for place, argument in enumerate(arguments) if place not in dropped)
    return [argument for argument in kept if not argument.startswith("--backbone=")]


def series(name, jobs, plan, *, speed=None):
    """Runs Python files one after the other, each in a process, and prints the progress after each.

    Args:
        name: of the series, for its lines.
        jobs: list of `(key, description, file, arguments)`.
        plan: the seconds that each should take; None if unknown.
        speed: initial estimate of actual seconds per planned second; None if unknown.
    Returns: list of exit codes. It ends early with one of `ENDING`.
    """
    runs = []
    for place, (key, what, path, arguments) in enumerate(jobs, start=1):
        print(f"\n== {name} {place}/{len(jobs)}: {key}: {what}", flush=True)
        start = time.monotonic()
        left = seconds_left(plan, runs, after=place, speed=speed)
        code = process(path, arguments, ahead=f"{name} {time_left(left)}")
        runs.append((code, time.monotonic() - start))
        if code in ENDING:
            print(
                f"== {name} stopped during {key}; the same command without `--fresh` continues from there", flush=True
            )
            break
        print(progress(plan, runs, name=name, speed=speed), flush=True)
    return [code for code, _ in runs]


def combined(codes):
    """Combines the exit codes of several processes into one.

    Returns: 0 if none failed; the code in `ENDING` if one ended the series; 1 if some failed. If all failed, the code
        that they share (2: bad input), else 3.
    """
    codes = [128 - code if code < 0 else code for code in codes]  # as `subprocess` reports signals
    if ended := [code for code in codes if code in ENDING]:
        return ended[0]
    if not any(codes):
        return 0
    if not all(codes):
        return SOME_FAILED
    return codes[0] if len(set(codes)) == 1 else ALL_FAILED


def planned_seconds(entries, records, budget):
    """The seconds that each experiment should take: those of its newest run with this budget, else the budget's own.

    They are None if unknown: for a first full run. The records are in order, the oldest first.
    """
    seconds = {entry.key: BUDGETS[budget].seconds for entry in entries}
    for record in records:
        if (record["status"], record["budget"], results.overrides(record)) == ("finished", budget, ""):
            seconds[record["experiment"]] = record["training_seconds"]
    return [seconds[entry.key] for entry in entries]


def progress(plan, runs, *, name="study", speed=None):
    """The line on a whole series: '== study 2/4 done, elapsed 3 min, about 5 min left'.

    `runs` are the `(exit code, seconds)` of those that ended; the other arguments are those of `series`.
    """
    failed, elapsed = sum(code != 0 for code, _ in runs), sum(seconds for _, seconds in runs)
    line = f"== {name} {len(runs)}/{len(plan)} done, elapsed {duration(elapsed)}"
    if failed:
        line += f", {failed} failed"
    if len(runs) == len(plan):
        return line
    return f"{line}, {time_left(seconds_left(plan, runs, after=len(runs), speed=speed))}"


def time_left(seconds):
    """The seconds left as text; None: unknown."""
    return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


def seconds_left(plan, runs, *, after, speed=None):
    """How long the runs after the first `after` should take, judged by those that succeeded; None if unknown."""
    timed = [(taken, wanted) for (code, taken), wanted in zip(runs, plan, strict=False) if not code and wanted]
    pairs = [(taken, wanted) for taken, wanted in timed if taken > ALREADY_DONE * wanted]
    if pairs:
        speed = sum(taken for taken, _ in pairs) / sum(wanted for _, wanted in pairs)
    ahead = plan[after:]
    return speed * sum(ahead) if speed and all(ahead) else None


def collate(root, *, fmt="text", write=False, folder=EXPERIMENTS):
    """Rebuilds results.csv in `root` and prints the comparison as 'text', 'csv' or 'markdown'. Returns exit code 0.

    With `write`, it also updates `PAGES`, beside the folder of experiments, and the experiments' `Result` lines.

    Raises: ConfigError if `write` is set for results from another folder, or a page is missing.
    """
    project, entries = Path(folder).resolve().parent, experiments(folder)
    if write and Path(root).resolve() != project:
        raise ConfigError(f"`--write` needs the project's own results, in {project}. Received: --root {root}.")
    if write and (missing := [page for page in PAGES if not (project / page).is_file()]):
        raise ConfigError(
            f"`--write` updates {' and '.join(PAGES)} in {project}. Received: no {missing[0]}. Run it in the project's "
            "repository, or leave out `--write`."
        )
    records = results.rebuild(root)
    print(comparison(records, entries, fmt))
    if write:
        from cifar_keras.report import accuracy_time  # matplotlib takes a second

        for entry in entries:
            if entry.experiment.summary:
                process(entry.path, ["--tables", "--root", str(root)])
        own = {entry.key for entry in study_entries(folder)}
        accuracy_time.draw([record for record in records if record["experiment"] in own], project / FIGURE)
        for path, text in refreshed(records, folder).items():
            if text != path.read_text(encoding="utf-8"):
                write_text(path, text)
                print(f"refreshed {path}", file=sys.stderr)
    return 0


def report(root, *, name=None, dataset=None, data_dir=None, folder=EXPERIMENTS):
    """Analyses the newest run of each of the study's experiments, or one run, then writes the page.

    `name` is a run id, an experiment (its newest run) or a run's saved model; None for the study.

    Returns: exit code; 1 if some run could not be analysed, which the page then states.
    Raises: ConfigError if there is nothing to compare, or no such run.
    """
    from cifar_keras.report import page
    from cifar_keras.saved import find

    if name is None:
        entries = study_entries(folder)
        runs = {group.name: group.first["run_id"] for group in page.study_groups(root, entries).values()}
        failed = _analysed(runs, root=root, dataset=dataset, data_dir=data_dir)
        print(page.build(root, entries, dataset=dataset))
    else:
        record = find.record_of(name, results.finished(root))
        failed = _analysed({record["run_id"]: record["run_id"]}, root=root, dataset=dataset, data_dir=data_dir)
        entries = experiments(folder) if Path(folder).is_dir() else []
        question = next((one.question for one in entries if one.key == record["experiment"]), "")
        print(page.build_run(root, record, question=question, dataset=dataset))
    return SOME_FAILED if failed else 0


def _analysed(runs, **where):
    """Analyses runs (name -> id) that are not analysed yet. Returns how many could not be analysed."""
    from cifar_keras.explain import analyse

    failed = 0
    for name, run_id in runs.items():
        try:
            analyse.refresh(run_id, **where)
        except (CifarKerasError, OSError, ValueError) as error:  # the page states what is missing
            failed += 1
            print(f"{name} is not analysed: {error}", flush=True)
    return failed


def comparison(records, entries, fmt):
    """Both tables as text, each under its heading; as CSV, one table whose first column names the table."""
    first, others = table.collated(records, entries)
    if fmt == "csv":
        empty = dict.fromkeys(table.HEADINGS, table.DASH)
        rows = [{"table": "results", **empty, "budget": "full", **row} for row in first]
        return table.render(rows + [{"table": "other runs", **empty, **row} for row in others], fmt)
    titles = ("Results: full budget, the weights each model calls for", "Other runs: other budgets, weights or options")
    mark = "**" if fmt == "markdown" else ""
    if fmt == "text" and others and not any(table.counts(record) for record in records):
        first = []  # after a demo, eight rows of dashes would hide the measured ones
    parts = [(title, rows) for title, rows in zip(titles, (first, others), strict=True) if rows]
    return "\n\n".join(f"{mark}{title}{mark}\n\n{table.render(rows, fmt)}" for title, rows in parts)


def refreshed(records, folder=EXPERIMENTS):
    """The text that README.md, docs/results.md and the experiment files should have: path -> text. Writes nothing."""
    entries, folder = experiments(folder), Path(folder)
    texts = {
        entry.path: table.with_result(entry.path.read_text(encoding="utf-8"), _result(entry, records))
        for entry in entries
    }
    study = study_entries(folder)  # the others have tables of their own in results/
    own = [record for record in records if record["experiment"] in {entry.key for entry in study}]
    tables = (("results", table.summarised(own, study)), ("tables", comparison(own, study, "markdown")))
    for page, (name, content) in zip(PAGES, tables, strict=True):
        path = folder.parent / page
        texts[path] = table.generated(path.read_text(encoding="utf-8"), name, content)
    return texts


def _result(entry, records):
    """The `Result` line of an experiment's docstring; an experiment with tables of its own refers to them."""
    if entry.experiment.summary and any(record["experiment"] == entry.key for record in records):
        return f"Result   see results/exp{entry.experiment.number}*.md"
    return table.docstring_result(records, entry.key)
