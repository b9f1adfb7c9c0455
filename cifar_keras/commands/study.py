"""What `cifar-keras list`, `run`, `study` and `collate` do. An experiment runs in a process of its own."""

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
from cifar_keras.utils.files import write_text
from cifar_keras.utils.paths import PROJECT
from cifar_keras.utils.text import AHEAD, duration

STUDY = (1, 2, 3, 4)  # the numbers of the experiments that make up the study
SOME_FAILED, ALL_FAILED = 1, 3
STOPPED = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
ENDING = (*STOPPED, HeldError.exit_code)  # after which a series goes no further: where one run is held, so are others
ALREADY_DONE = 0.1  # of its planned time: a run that ends sooner had been finished before and says nothing about speed


@dataclass(frozen=True)
class Entry:
    """An experiment file.

    Attributes:
        path: the file.
        question: the first line of its docstring.
        experiment: its `config.Experiment`.
    """

    path: Path
    question: str
    experiment: Experiment

    @property
    def key(self):
        """The file's name without ending: `exp3_finetune`."""
        return self.path.stem

    @property
    def number(self):
        return self.experiment.number

    @property
    def variants(self):
        return tuple(self.experiment.variants)

    @property
    def published(self):
        return self.experiment.published


def experiments(folder=PROJECT / "experiments"):
    """The experiments in a folder, by number. Their files are imported (which takes milliseconds), not run.

    Raises: ConfigError naming a file that is no experiment.
    """
    paths = (path for path in Path(folder).glob("exp*.py") if re.match(r"exp\d+_", path.name))
    return sorted((_entry(path) for path in paths), key=lambda entry: (entry.number, entry.key))


def study_entries(folder=PROJECT / "experiments"):
    """Those of the four experiments that the study compares."""
    return [entry for entry in experiments(folder) if entry.number in STUDY]


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
    """The entry that `exp3`, `3`, `exp3_finetune` or `exp3_finetune.py` names.

    Raises: ConfigError listing the choices.
    """
    wanted = Path(str(name)).name.removesuffix(".py")
    for entry in entries:
        if wanted in (entry.key, f"exp{entry.number}", str(entry.number)):
            return entry
    choices = ", ".join(entry.key for entry in entries) or "none found"
    raise ConfigError(f"The experiment must be one of: {choices} (or its number). Received: {name!r}.")


def list_experiments(root, *, folder=PROJECT / "experiments"):
    """Prints every experiment with its question and its last result below `root`. Returns exit code 0."""
    records = results.read(root)
    for entry in experiments(folder):
        own = [record for record in records if record["experiment"] == entry.key]
        print(f"{entry.key}\n    {entry.question}\n    last: {_last(own)}")
    return 0


def _last(records):
    """The newest record (they come oldest first) in one line."""
    if not records:
        return table.NOT_YET
    record = records[-1]
    what = f"{record['dataset']}, {record['variant']}, {record['budget']}, weights {record['weights']}"
    if record["status"] != "finished" or record.get("test_accuracy") is None:
        return f"{record['status']}, {what}, {record['utc']}"
    return f"{record['test_accuracy']:.1%} of {record['test_n']:,} test images, {what}, {record['utc']}"


def run(name, arguments, *, folder=PROJECT / "experiments"):
    """Runs one experiment as a process of its own. Returns its exit code.

    Raises: ConfigError for a name that no experiment has.
    """
    return process(entry_named(name, experiments(folder)).path, arguments)


def process(path, arguments, *, ahead=None):
    """Runs a Python file as a process, hands SIGINT, SIGTERM and SIGHUP on to it and waits for its end.

    Args:
        path: the file.
        arguments: for its command line.
        ahead: what its progress lines shall say of the work that comes after it; None for nothing.
    Returns: its exit code; 128 + the signal's number where it or this process got one.
    """
    sys.stdout.flush()
    received, child = [], None
    environment = dict(os.environ) if ahead is None else os.environ | {AHEAD: ahead}

    def forward(number, _):
        received.append(number)
        if child is not None:
            child.send_signal(number)

    with _handling(forward):
        # A session of its own: a terminal's Ctrl-C then reaches the child once, through us, not twice.
        child = subprocess.Popen([sys.executable, str(path), *arguments], env=environment, start_new_session=True)
        for number in received:  # before there was a child
            child.send_signal(number)
        code = child.wait()
    if received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _handling(handler):
    """Sends the signals that end a process to `handler` for the length of the block, but for those ignored (nohup)."""
    numbers = (number - 128 for number in STOPPED)
    former = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def study(arguments, *, root, budget="full", folder=PROJECT / "experiments"):
    """Runs the study's experiments one after the other, each a process, then collates what is below `root`.

    Args:
        arguments: passed on to every experiment as they are (`--root` and `--budget` among them, if not the default).
        root: folder whose results are collated.
        budget: what `arguments` says; the time left is estimated from it.
        folder: where the experiments are.
    Returns: exit code, see `combined`. A signal also ends the study, without tables.
    """
    entries = experiments(folder)
    chosen = [entry_named(number, entries) for number in STUDY]
    plan = planned_seconds(chosen, results.read(root), budget)
    jobs = [(entry.key, entry.question, entry.path, arguments) for entry in chosen]
    codes = series("study", jobs, plan, speed=1.0)
    if codes[-1] in ENDING:
        return codes[-1]
    print()
    if "--dry-run" not in arguments:
        collate(root, folder=folder)
    failed = [f"{entry.key} (exit code {code})" for entry, code in zip(chosen, codes, strict=True) if code]
    if failed:
        print(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}; what they said stands above", flush=True)
    return combined(codes)


def series(name, jobs, plan, *, speed=None):
    """Runs Python files one after the other, each a process, and says after each how far it is.

    Args:
        name: what the whole is called in its lines.
        jobs: `(key, what it is, file, arguments)` each.
        plan: seconds that each should take; None where nothing is known.
        speed: actual seconds per planned one, to begin with; None if unknown.
    Returns: list of exit codes; it ends early with that of a stopping signal, or where another process has a run.
    """
    runs = []
    for place, (key, what, path, arguments) in enumerate(jobs, start=1):
        print(f"\n== {name} {place}/{len(jobs)}: {key}: {what}", flush=True)
        start = time.monotonic()
        left = seconds_left(plan, runs, after=place, speed=speed)
        code = process(path, arguments, ahead=f"{name} {said(left)}")
        runs.append((code, time.monotonic() - start))
        if code in ENDING:
            print(
                f"== {name} stopped during {key}; the same command, without `--fresh`, goes on from there", flush=True
            )
            break
        print(progress(plan, runs, name=name, speed=speed), flush=True)
    return [code for code, _ in runs]


def combined(codes):
    """One exit code for several processes.

    Returns: 0 if none failed, that which ended them early if one did (`ENDING`), 1 if some failed; if all did, the code
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
    """How long each experiment should take: as its newest run under this budget did, else as the budget plans it.

    Args:
        entries: the experiments.
        records: of earlier runs, oldest first.
        budget: key of `config.BUDGETS`.
    Returns: list of seconds, None where nothing is known (a first full run).
    """
    seconds = {entry.key: BUDGETS[budget].seconds for entry in entries}
    for record in records:
        if (record["status"], record["budget"], results.overrides(record)) == ("finished", budget, ""):
            seconds[record["experiment"]] = record["training_seconds"]
    return [seconds[entry.key] for entry in entries]


def progress(plan, runs, *, name="study", speed=None):
    """One line for the whole: '== study 2/4 done, elapsed 3 min, about 5 min left'.

    Args:
        plan: seconds that each run should take; None where nothing is known.
        runs: `(exit code, seconds)` of those that ended.
        name: what the whole is called.
        speed: as `series`.
    """
    failed, elapsed = sum(code != 0 for code, _ in runs), sum(seconds for _, seconds in runs)
    line = f"== {name} {len(runs)}/{len(plan)} done, elapsed {duration(elapsed)}"
    if failed:
        line += f", {failed} failed"
    if len(runs) == len(plan):
        return line
    return f"{line}, {said(seconds_left(plan, runs, after=len(runs), speed=speed))}"


def said(left):
    """Seconds left in words, None included."""
    return "time left unknown" if left is None else f"about {duration(left)} left"


def seconds_left(plan, runs, *, after, speed=None):
    """How long the runs after the first `after` should take, at the speed of those that succeeded; None if unknown."""
    timed = [(taken, wanted) for (code, taken), wanted in zip(runs, plan, strict=False) if not code and wanted]
    pairs = [(taken, wanted) for taken, wanted in timed if taken > ALREADY_DONE * wanted]
    if pairs:
        speed = sum(taken for taken, _ in pairs) / sum(wanted for _, wanted in pairs)
    ahead = plan[after:]
    return speed * sum(ahead) if speed and all(ahead) else None


def collate(root, *, fmt="text", write=False, folder=PROJECT / "experiments"):
    """Rebuilds results.csv below `root` and prints the comparison.

    Args:
        root: folder that holds `results/`.
        fmt: 'text', 'csv' or 'markdown'.
        write: also refresh README.md, docs/results.md and the experiments' `Result` lines.
        folder: where the experiments are; README.md and docs/ stand beside it.
    Returns: exit code 0.
    Raises: ConfigError if `write` is asked for with results from elsewhere.
    """
    project = Path(folder).resolve().parent
    if write and Path(root).resolve() != project:
        raise ConfigError(f"`--write` takes the project's own results, those in {project}. Received: --root {root}.")
    records, entries = results.rebuild(root), experiments(folder)
    print(comparison(records, entries, fmt))
    if write:
        for entry in entries:
            if entry.experiment.summary:
                process(entry.path, ["--tables", "--root", str(root)])
        for path, text in refreshed(records, folder).items():
            if text != path.read_text(encoding="utf-8"):
                write_text(path, text)
                print(f"refreshed {path}", file=sys.stderr)
    return 0


def report(root, *, name=None, dataset=None, data_dir=None, folder=PROJECT / "experiments"):
    """Analyses the newest run of each of the study's experiments, or one run, then writes the page.

    Args:
        root: folder that holds `results/`.
        name: of one run: its id, an experiment (its newest), or its saved model; None takes the study.
        dataset: as `--dataset`, for runs on image folders.
        data_dir: as `--data-dir`.
        folder: where the experiments are.
    Returns: exit code; 1 where some run could not be analysed, of which the page says so.
    Raises: ConfigError where there is nothing to compare, or no such run.
    """
    from cifar_keras.report import page
    from cifar_keras.saved import find

    if name is None:
        entries = study_entries(folder)
        runs = {group.name: group.first["run_id"] for group in page.study_groups(root, entries).values()}
        failed = _analysed(runs, root=root, dataset=dataset, data_dir=data_dir)
        print(page.build(root, entries, dataset=dataset))
    else:
        record = find.recorded(name, root=root)
        failed = _analysed({record["run_id"]: record["run_id"]}, root=root, dataset=dataset, data_dir=data_dir)
        question = next((one.question for one in experiments(folder) if one.key == record["experiment"]), "")
        print(page.build_run(root, record, question=question, dataset=dataset))
    return SOME_FAILED if failed else 0


def _analysed(runs, **where):
    """Analyses runs, ids by name, where that is wanted; returns how many could not be."""
    from cifar_keras.explain import analyse

    failed = 0
    for name, run_id in runs.items():
        try:
            analyse.refresh(run_id, **where)
        except (CifarKerasError, OSError, ValueError) as error:  # the page does without, and says so
            failed += 1
            print(f"{name} is not analysed: {error}", flush=True)
    return failed


def comparison(records, entries, fmt):
    """Both tables as text, each under its heading; as CSV one table, whose first column says which."""
    first, others = table.collated(records, entries)
    if fmt == "csv":
        empty = dict.fromkeys(table.HEADINGS, table.DASH)
        rows = [{"table": "results", **empty, "budget": "full", **row} for row in first]
        return table.render(rows + [{"table": "other runs", **empty, **row} for row in others], fmt)
    titles = ("Results: full budget, the weights each model calls for", "Other runs: other budgets, weights or options")
    mark = "**" if fmt == "markdown" else ""
    if fmt == "text" and others and not any(table.counts(record) for record in records):
        first = []  # after a demo eight rows of dashes would hide what was measured
    parts = [(title, rows) for title, rows in zip(titles, (first, others), strict=True) if rows]
    return "\n\n".join(f"{mark}{title}{mark}\n\n{table.render(rows, fmt)}" for title, rows in parts)


def refreshed(records, folder=PROJECT / "experiments"):
    """What README.md, docs/results.md and the experiment files should say, given these records: path -> text.

    Nothing is written.
    """
    entries, folder = experiments(folder), Path(folder)
    texts = {entry.path: entry.path.read_text(encoding="utf-8") for entry in entries}
    found = {entry.path: _result(entry, records) for entry in entries}
    texts = {path: table.with_result(text, found[path]) for path, text in texts.items()}
    study = study_entries(folder)  # the others have tables of their own in results/
    own = [record for record in records if record["experiment"] in {entry.key for entry in study}]
    pages = {
        folder.parent / "README.md": ("results", table.summarised(own, study)),
        folder.parent / "docs" / "results.md": ("tables", comparison(own, study, "markdown")),
    }
    for path, (name, content) in pages.items():
        texts[path] = table.generated(path.read_text(encoding="utf-8"), name, content)
    return texts


def _result(entry, records):
    """The `Result` line of an experiment's docstring; one with tables of its own has them for runs of every kind."""
    if entry.experiment.summary and any(record["experiment"] == entry.key for record in records):
        return f"Result   see results/exp{entry.number}*.md"
    return table.docstring_result(records, entry.key)
