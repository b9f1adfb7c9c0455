"""What the benchmarks share: implementations in processes of their own, rows of results, the command line.

Implementations take turns: each is timed for a window, one after the other, then all again (A B C A B C). A machine
that becomes slower or busier then affects all of them. A ratio is the median over the rounds of the ratio of two
implementations within a round. All implementations of a comparison are in memory at the same time, up to 2 GB each.
"""

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from cifar_keras import results
from cifar_keras.config import Limits, RunConfig
from cifar_keras.data import load
from cifar_keras.utils import runtime
from cifar_keras.utils.paths import Paths
from cifar_keras.utils.system import cores, cpu_name

IMPLEMENTATIONS = Path(__file__).resolve().parent / "implementations.py"
COLUMNS = ("benchmark", "implementation", "value", "unit", "ratio", "target", "met", "note")
WITHOUT_TORCH = "not measured: install benchmarks/requirements.txt"
ONLY_FULL = "not measured: --full"
LAYOUTS = ("nchw", "channels_last", "compile")  # of PyTorch's loops; the last is channels_last under torch.compile
WORKERS = (0, 1, 2)  # processes of PyTorch's data loader


class Implementation:
    """One implementation of a comparison: a process of `implementations.py`, which takes and times steps on request.

    It starts to warm up at once. If it fails, `failure` holds the reason.

    Args:
        arguments: of `implementations.py`.
        images: that one step takes in.
        environment: variables to set.
    """

    def __init__(self, arguments, *, images, environment=None):
        self.images, self.failure, self.pace = images, None, None
        self.errors = tempfile.TemporaryFile("w+")
        self.folder = tempfile.TemporaryDirectory()  # for what the process leaves when it is ended midway
        self.process = subprocess.Popen(
            [sys.executable, str(IMPLEMENTATIONS), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "TMPDIR": self.folder.name, **(environment or {})},
        )

    def ready(self):
        """Waits for the end of the warm-up; returns the implementation."""
        if self.pace is None and self.failure is None:
            (self.pace,) = self._answer() or (None,)
        return self

    def speed(self, *, seconds=0.0, what="", lead=1, steps=None):
        """Images a second over a window, or None once the implementation has failed; arguments as for `times`."""
        times = self.times(seconds=seconds, what=what, lead=lead, steps=steps)
        return len(times) * self.images / sum(times) if times else None

    def times(self, *, seconds=0.0, what="", lead=1, steps=None):
        """The seconds of each step of a window, or None once the implementation has failed.

        Args:
            seconds: of the window, about; at least one step is timed.
            what: which of its loops the implementation runs.
            lead: steps before the window.
            steps: to time, in place of `seconds`.
        """
        if self.ready().failure is not None:
            return None
        steps = steps or max(1, round(seconds / self.pace))
        self.process.stdin.write(f"{lead} {steps} {what}\n")
        self.process.stdin.flush()
        if times := self._answer():
            self.pace = sum(times) / steps  # better known than after the warm-up
        return times

    def _answer(self):
        """The list of seconds that the process sends. None if it ends instead; `failure` then has its last message."""
        if line := self.process.stdout.readline():
            return [float(seconds) for seconds in line.split()]
        code = self.process.wait()
        self.errors.seek(0)
        messages = [line.strip() for line in self.errors if line.strip()] or [f"exit code {code}"]
        self.failure = f"failed: {messages[-1][:200]}"
        return None

    def close(self):
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        self.folder.cleanup()


@dataclass(frozen=True)
class Turn:
    """An implementation and what it runs when its turn comes."""

    implementation: Implementation
    what: str = ""


def rounds_of(turns, *, rounds, of="speed", **window):
    """Lets every implementation run in every round.

    Args:
        turns: `Turn` by name.
        rounds: how many windows each gets.
        of: which method of `Implementation` is called: 'speed' for images per second, 'times' for seconds per step.
        window: arguments of that method.
    Returns: by name, the list of its measurements, one per round; empty for an implementation that failed.
    """
    found = {name: [] for name in turns}
    for turn in turns.values():
        turn.implementation.ready()  # or the first windows would share the machine with those that still start
    for _ in range(rounds):
        for name, turn in turns.items():
            measurement = getattr(turn.implementation, of)(what=turn.what, **window)
            found[name] += [measurement] if measurement else []
    return found


@contextlib.contextmanager
def fastest_turn(benchmark, turns, *, rounds, seconds, lead=1):
    """Tries all turns, ends all implementations but the fastest, and yields its name, its `Turn` and the rows of all.

    Arguments as for `rounds_of`. Without turns, or where all fail, name and turn are None.
    """
    speeds = rounds_of(turns, rounds=rounds, seconds=seconds, lead=lead)
    best = max((name for name in turns if speeds[name]), key=lambda n: statistics.median(speeds[n]), default=None)
    rows = [
        measured(benchmark, f"{name}, tried", speeds[name], note=turns[name].implementation.failure) for name in turns
    ]
    kept = turns.get(best)
    for implementation in {turn.implementation for turn in turns.values()} - {kept and kept.implementation}:
        implementation.close()
    try:
        yield best, kept, rows or [row(benchmark, "PyTorch", note=WITHOUT_TORCH)]
    finally:
        if kept:
            kept.implementation.close()


def training_loops(recipe, *, batch_size, full, precisions=("float32",)):
    """Every PyTorch training loop as a `Turn` by name; none without PyTorch. Torch.compile takes a minute: full only.

    Args:
        recipe: key of `torch_models.RECIPES`.
        batch_size: images of a step there.
        full: whether to try torch.compile too.
        precisions: to try; 'mixed_bfloat16' is PyTorch's autocast.
    """
    turns = {}
    layouts = (LAYOUTS if full else LAYOUTS[:2]) if installed("torch") else ()
    for layout, precision in itertools.product(layouts, precisions):
        # One by one: OpenMP's barriers take minutes where another process computes.
        implementation = Implementation(("torch_train", recipe, layout, precision), images=batch_size).ready()
        for workers in WORKERS:
            turns[f"PyTorch {layout}, {precision}, {workers} workers"] = Turn(implementation, str(workers))
    return turns


def runs_on(dataset, root):
    """The recorded runs on a dataset whose `.keras` is still their own, oldest first, each with its `paths.Paths`."""
    runtime.setup()
    from cifar_keras.saved import artifacts

    fingerprint = load(dataset, limits=Limits(10, 10, 10)).fingerprint
    for record in results.read(root):
        paths = Paths.of(RunConfig.restored(record["config"]), root)
        own = paths.keras.is_file() and artifacts.provenance(paths.keras)["run_id"] == record["run_id"]
        if own and record["config"]["fingerprint"] == fingerprint:
            yield record, paths


def installed(module):
    return importlib.util.find_spec(module) is not None


def ratio_of(ours, theirs):
    """The median over rounds of `ours / theirs`, or None where one of them was not measured."""
    pairs = list(zip(ours, theirs, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def row(benchmark, implementation, value=None, unit="", *, ratio=None, target=None, met=None, note=""):
    """A row of results: `rows(full)` of every benchmark returns a list of these."""
    return {
        "benchmark": benchmark, "implementation": implementation, "value": value, "unit": unit,
        "ratio": ratio, "target": target, "met": met, "note": note or "",
    }  # fmt: skip


def measured(benchmark, implementation, speeds, *, note=None, **judgement):
    """A row for some windows: their median and their spread."""
    if not speeds:
        return row(benchmark, implementation, note=note or "not measured", **judgement)
    spread = f"{cell(min(speeds))} to {cell(max(speeds))} in {len(speeds)} windows" if speeds[1:] else "one window"
    return row(benchmark, implementation, statistics.median(speeds), "images/s", note=note or spread, **judgement)


def judged(ratio, at_least, *, of):
    """The columns that compare an implementation with another, as keywords for `row` and `measured`.

    Args:
        ratio: from `ratio_of`.
        at_least: the target; None: there is none, only the ratio.
        of: what the other is called.
    """
    if at_least is None:
        return {"ratio": ratio}
    met = None if ratio is None else ratio >= at_least
    return {"ratio": ratio, "target": f"at least {at_least:g} x {of}", "met": met}


def hardware():
    """A description of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu_name()}, {cores()} cores, {memory:.0f} GiB"


def table(rows, form):
    """Rows as a table in one of tabulate's formats."""
    lines = [[cell(values.get(column)) for column in COLUMNS] for values in rows]
    return tabulate(lines, COLUMNS, form, disable_numparse=True)


def cell(value):
    """A value in words, numbers with three digits."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return str(value)


def main(description, rows):
    """The command line of a benchmark: prints the hardware and its rows.

    Args:
        description: the module's docstring.
        rows: its function.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer and more windows, and everything that is compared")
    options = parser.parse_args()
    print(hardware(), flush=True)
    print(table(rows(options.full), "plain"))
