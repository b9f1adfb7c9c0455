"""What the benchmarks share: sides that are processes of their own and take turns, rows of results, the command line.

Sides are timed in windows, one side after the other and then again (A B C A B C), so that a machine that grows slower
or busier does so for all. A ratio is the median, over the rounds, of two sides' ratio within a round. The sides of a
comparison are in memory at the same time, up to 2 GB each.
"""

import argparse
import contextlib
import importlib.util
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

SIDES = Path(__file__).resolve().parent / "sides.py"
COLUMNS = ("benchmark", "side", "value", "unit", "ratio", "target", "met", "note")
WITHOUT_TORCH = "not measured: install benchmarks/requirements.txt"
ONLY_FULL = "not measured: --full"
LAYOUTS = ("nchw", "channels_last", "compile")  # of PyTorch's loops; the last is channels_last under torch.compile
WORKERS = (0, 1, 2)  # processes of PyTorch's data loader


class Side:
    """One side of a comparison: `sides.py` in a process, which takes steps and times them when it is told to.

    It warms up from the start on; `failure` says why there is nothing to measure, once that is known.

    Args:
        arguments: of `sides.py`.
        images: that one step takes in.
        environment: variables to set.
    """

    def __init__(self, arguments, *, images, environment=None):
        self.images, self.failure, self.pace = images, None, None
        self.errors = tempfile.TemporaryFile("w+")
        self.folder = tempfile.TemporaryDirectory()  # for what the process leaves when it is ended midway
        self.process = subprocess.Popen(
            [sys.executable, str(SIDES), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "TMPDIR": self.folder.name, **(environment or {})},
        )

    def ready(self):
        """Waits for the end of the warm-up; returns the side."""
        if self.pace is None and self.failure is None:
            (self.pace,) = self._answer() or (None,)
        return self

    def speed(self, *, seconds=0.0, what="", lead=1, steps=None):
        """Images a second over a window, or None once the side has failed; arguments as for `times`."""
        times = self.times(seconds=seconds, what=what, lead=lead, steps=steps)
        return len(times) * self.images / sum(times) if times else None

    def times(self, *, seconds=0.0, what="", lead=1, steps=None):
        """The seconds of each step of a window, or None once the side has failed.

        Args:
            seconds: of the window, about; at least one step is timed.
            what: which of its loops the side is to run.
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
        """The seconds that the process sends, a list; where it ends instead, None, and what it said last is kept."""
        if line := self.process.stdout.readline():
            return [float(seconds) for seconds in line.split()]
        code = self.process.wait()
        self.errors.seek(0)
        said = [line.strip() for line in self.errors if line.strip()] or [f"exit code {code}"]
        self.failure = f"failed: {said[-1][:200]}"
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
    """What a side does when it is its turn."""

    side: Side
    what: str = ""


def rounds_of(turns, *, rounds, of="speed", **window):
    """Lets every side run in every round.

    Args:
        turns: `Turn` by name.
        rounds: how many windows each gets.
        of: which method of `Side` is asked: 'speed' for images a second, 'times' for the seconds of each step.
        window: arguments of that method.
    Returns: lists of what it said by name, an entry a round; empty for a side that failed.
    """
    found = {name: [] for name in turns}
    for turn in turns.values():
        turn.side.ready()  # or the first windows would share the machine with those that still start
    for _ in range(rounds):
        for name, turn in turns.items():
            said = getattr(turn.side, of)(what=turn.what, **window)
            found[name] += [said] if said else []
    return found


@contextlib.contextmanager
def fastest_turn(benchmark, turns, *, rounds, seconds, lead=1):
    """Tries all turns, ends every side but the fastest, and yields the fastest's name and `Turn` and everybody's rows.

    Arguments as for `rounds_of`. Without turns, or where all fail, name and turn are None.
    """
    speeds = rounds_of(turns, rounds=rounds, seconds=seconds, lead=lead)
    best = max((name for name in turns if speeds[name]), key=lambda n: statistics.median(speeds[n]), default=None)
    rows = [measured(benchmark, f"{name}, tried", speeds[name], note=turns[name].side.failure) for name in turns]
    kept = turns.get(best)
    for side in {turn.side for turn in turns.values()} - {kept and kept.side}:
        side.close()
    try:
        yield best, kept, rows or [row(benchmark, "PyTorch", note=WITHOUT_TORCH)]
    finally:
        if kept:
            kept.side.close()


def training_loops(recipe, *, batch_size, full):
    """Every PyTorch training loop as a `Turn` by name; none without PyTorch. Torch.compile takes a minute: full only.

    Args:
        recipe: key of `torch_models.RECIPES`.
        batch_size: images of a step there.
        full: whether to try torch.compile too.
    """
    turns = {}
    for layout in (LAYOUTS if full else LAYOUTS[:2]) if installed("torch") else ():
        # One by one: OpenMP's barriers take minutes where another process computes.
        side = Side(("torch_train", recipe, layout), images=batch_size).ready()
        for workers in WORKERS:
            turns[f"PyTorch {layout}, {workers} workers"] = Turn(side, str(workers))
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


def row(benchmark, side, value=None, unit="", *, ratio=None, target=None, met=None, note=""):
    """A row of results: `rows(full)` of every benchmark returns a list of these."""
    return {
        "benchmark": benchmark, "side": side, "value": value, "unit": unit,
        "ratio": ratio, "target": target, "met": met, "note": note or "",
    }  # fmt: skip


def measured(benchmark, side, speeds, *, note=None, **judgement):
    """The row of some windows: their median, and how far they spread."""
    if not speeds:
        return row(benchmark, side, note=note or "not measured", **judgement)
    spread = f"{cell(min(speeds))} to {cell(max(speeds))} in {len(speeds)} windows" if speeds[1:] else "one window"
    return row(benchmark, side, statistics.median(speeds), "images/s", note=note or spread, **judgement)


def judged(ratio, at_least, *, of):
    """The columns that compare a side with another, as keywords for `row` and `measured`.

    Args:
        ratio: from `ratio_of`.
        at_least: the target.
        of: what the ratio is to.
    """
    met = None if ratio is None else ratio >= at_least
    return {"ratio": ratio, "target": f"at least {at_least:g} x {of}", "met": met}


def hardware():
    """The machine in words."""
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
