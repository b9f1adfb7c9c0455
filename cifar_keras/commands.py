"""What `cifar-keras list`, `run`, `study` and `collate` do. Experiments are read or started, never imported."""

import ast
import contextlib
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cifar_keras import results
from cifar_keras.config import ConfigError
from cifar_keras.files import write_text
from cifar_keras.paths import PROJECT
from cifar_keras.report import table

STUDY = (1, 2, 3, 4)  # the numbers of the experiments that make up the study
PLANNED_MINUTES = {1: 1.0, 2: 1.6, 3: 1.6, 4: 1.0}  # relative: under quick and demo all take about the same time
EVERY_RUN_FAILED, SOME_FAILED = 3, 1
BAD_INPUT = ConfigError.exit_code


@dataclass(frozen=True)
class Entry:
    """An experiment file as its text shows it.

    Attributes:
        key: the file's name without ending: `exp3_finetune`.
        path: the file.
        number: what the key starts with, 3.
        question: the first line of the docstring.
        variants: names of the variants that the file writes out.
        published: accuracies that the source reported, by split.
    """

    key: str
    path: Path
    number: int
    question: str
    variants: tuple[str, ...]
    published: dict


def experiments(folder=PROJECT / "experiments"):
    """The experiments in a folder, by number, read with `ast`.

    Raises: ConfigError naming a file that is not Python.
    """
    paths = (path for path in Path(folder).glob("exp*.py") if re.match(r"exp\d+_", path.name))
    return sorted((_entry(path) for path in paths), key=lambda entry: (entry.number, entry.key))


def _entry(path):
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not Python: {error}. Mend it or move it away.") from None
    lines = (ast.get_docstring(tree) or "").splitlines()
    variants = _argument(tree, "variants")
    names = [key.value for key in variants.keys if isinstance(key, ast.Constant)] if _is_dict(variants) else []
    published = _argument(tree, "published")
    return Entry(
        key=path.stem,
        path=path,
        number=int(re.match(r"exp(\d+)", path.stem)[1]),
        question=lines[0] if lines else "",
        variants=tuple(names),
        published=ast.literal_eval(published) if _is_dict(published) else {},
    )


def _is_dict(node):
    return isinstance(node, ast.Dict)


def _argument(tree, name):
    """The expression given to `Experiment(...)` under this keyword; None where there is none."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    keywords = (word for call in calls if call.func.id == "Experiment" for word in call.keywords)
    return next((word.value for word in keywords if word.arg == name), None)


def find(name, entries):
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
    return _process(find(name, experiments(folder)).path, arguments)


def _process(path, arguments):
    """Starts a Python file, hands SIGINT and SIGTERM on, waits. Returns its exit code, 128 + a signal's."""
    sys.stdout.flush()
    # A session of its own: a terminal's Ctrl-C then reaches the child once, through us, not twice.
    child = subprocess.Popen([sys.executable, str(path), *arguments], start_new_session=True)
    received = []

    def forward(number, _):
        received.append(number)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    with _handling(forward):
        code = child.wait()
    if received:
        return 128 + received[0]
    return 128 - code if code < 0 else code


@contextlib.contextmanager
def _handling(handler):
    """Sends SIGINT and SIGTERM to `handler` for the length of the block."""
    former = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in former.items():
            signal.signal(number, handler_before)


def study(arguments, *, root, folder=PROJECT / "experiments"):
    """Runs the study's experiments one after the other, each a process, then collates what is below `root`.

    Args:
        arguments: passed on to every experiment as they are (`--root` among them, where it is not the default).
        root: folder whose results are collated.
        folder: where the experiments are.
    Returns: exit code: 0; 1 when some experiments failed, 3 when all did, 2 when all did for bad input,
        130 or 143 after Ctrl-C or SIGTERM, which also end the study.
    """
    entries = experiments(folder)
    chosen = [find(number, entries) for number in STUDY]
    start, codes = time.monotonic(), []
    for place, entry in enumerate(chosen, start=1):
        print(f"\n== study {place}/{len(chosen)}: {entry.key}: {entry.question}", flush=True)
        codes.append(_process(entry.path, arguments))
        if codes[-1] in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            print(f"study stopped during {entry.key}; the same command resumes it", flush=True)
            return codes[-1]
        print(progress(chosen, place, time.monotonic() - start, failed=sum(map(bool, codes))), flush=True)
    collate(root, folder=folder)
    failed = [f"{entry.key} (exit code {code})" for entry, code in zip(chosen, codes, strict=True) if code]
    if failed:
        print(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}. Their messages stand above.", flush=True)
    return study_code(codes)


def study_code(codes):
    """One exit code for the study from those of its experiments."""
    if not any(codes):
        return 0
    if not all(codes):
        return SOME_FAILED
    return BAD_INPUT if set(codes) == {BAD_INPUT} else EVERY_RUN_FAILED


def progress(entries, done, elapsed, *, failed=0):
    """One line for the whole study: 'study 2/4 done, elapsed 3 min, about 5 min left'.

    The estimate weighs experiments by `PLANNED_MINUTES` and takes the speed from those that are done.
    """
    weights = [PLANNED_MINUTES.get(entry.number, 1.0) for entry in entries]
    left = elapsed * sum(weights[done:]) / sum(weights[:done])
    trouble = f", {failed} failed" if failed else ""
    ending = f", about {_duration(left)} left" if done < len(entries) else ""
    return f"== study {done}/{len(entries)} done{trouble}, elapsed {_duration(elapsed)}{ending}"


def _duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def collate(root, *, fmt="text", write=False, folder=PROJECT / "experiments"):
    """Rebuilds results.csv below `root` and prints the comparison.

    Args:
        root: folder that holds `results/`.
        fmt: 'text', 'csv' or 'markdown'.
        write: also refresh README.md's table and the experiments' `Result` lines, beside `folder`.
        folder: where the experiments are.
    Returns: exit code 0.
    """
    records, entries = results.rebuild(root), experiments(folder)
    print(comparison(records, entries, fmt))
    if write:
        for path, text in refreshed(records, folder).items():
            if text != path.read_text(encoding="utf-8"):
                write_text(path, text)
                print(f"refreshed {path}", file=sys.stderr)
    return 0


def comparison(records, entries, fmt):
    """Both tables under their headings (CSV: the tables alone, a blank line between), as text."""
    first, others = table.collated(records, entries)
    parts = ((_heading("Results: full budget, the weights each model calls for", fmt), first),)
    if others:
        parts += ((_heading("Other runs: other budgets, weights or options", fmt), others),)
    return "\n\n".join(f"{heading}{table.render(rows, fmt)}" for heading, rows in parts)


def _heading(text, fmt):
    return {"text": f"{text}\n\n", "csv": "", "markdown": f"**{text}**\n\n"}.get(fmt, "")


def refreshed(records, folder=PROJECT / "experiments"):
    """What README.md and the experiment files should say, given these records: path -> text. Nothing is written."""
    entries, folder = experiments(folder), Path(folder)
    texts = {entry.path: entry.path.read_text(encoding="utf-8") for entry in entries}
    texts = {path: table.with_result(text, table.docstring_result(records, path.stem)) for path, text in texts.items()}
    readme = folder.parent / "README.md"
    markdown = readme.read_text(encoding="utf-8")
    return texts | {readme: table.generated(markdown, "results", comparison(records, entries, "markdown"))}
