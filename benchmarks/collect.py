"""Runs every benchmark of this folder, prints a table and writes RESULTS.md, whole or not at all.

Run: make bench, or make bench ARGS=--full
A benchmark is a file here with a function `rows(full)`; each runs in a process of its own, one after the other. The
short form takes about ten minutes on 2 cores, the full one about an hour. Nothing else should run on the machine.
"""

import argparse
import ast
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import measure
from measure import row

from cifar_keras.files import write_text
from cifar_keras.runtime import git_commit

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
LIBRARIES = ("tensorflow", "keras", "torch", "jax", "numpy")


def names():
    """The benchmarks in this folder, by name."""
    for path in sorted(HERE.glob("*.py")):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if "rows" in functions:
            yield path.stem


def send_rows(name, full):
    """In a benchmark's own process: prints its rows as JSON lines, and nothing else, to stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        found = importlib.import_module(name).rows(full)
    for values in found:
        print(json.dumps(values, allow_nan=False))


def rows_of(name, *, full):
    """A benchmark's rows, or one that says that it failed."""
    command = [sys.executable, __file__, "--rows", name, *(["--full"] if full else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return [row(name, "-", met=False, note=f"failed with exit code {done.returncode}")]
    return [json.loads(line) for line in done.stdout.splitlines()]


def report(rows, *, full, seconds):
    """RESULTS.md as text.

    Args:
        rows: of all benchmarks.
        full: which form they were run in.
        seconds: that they took together.
    """
    command = "make bench ARGS=--full" if full else "make bench"
    form = "the full form" if full else "the short form: few and short windows, and not everything that is compared"
    judged = [values for values in rows if values.get("target")]
    return "\n\n".join(
        (
            "# Benchmarks",
            f"Written by `{command}` ({form}) on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC "
            f"in {seconds / 60:.0f} minutes. Each ratio comes from one run on this machine:",
            f"- {measure.hardware()}\n- {', '.join(versions())}\n- commit {git_commit() or 'unknown'}",
            "`met` is `-` where a target does not apply or a side was not measured. Values are medians of windows; a "
            "ratio is the median of ratios within a round ([measure.py](measure.py)).",
            "## Targets",
            measure.table(judged, "github"),
            "## Everything that was measured",
            measure.table(rows, "github"),
        )
    )


def versions():
    """Python and what is installed of the libraries, with their versions."""
    yield f"Python {platform.python_version()}"
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{library} {importlib.metadata.version(library)}"


def collect(full):
    """Runs everything, prints as it goes, and returns the exit code: 1 where a benchmark failed."""
    start, rows = time.perf_counter(), []
    for name in names():
        print(f"== benchmarks/{name}.py", flush=True)
        rows += (found := rows_of(name, full=full))
        print(measure.table(found, "plain"), flush=True)
    write_text(RESULTS, report(rows, full=full, seconds=time.perf_counter() - start) + "\n")
    print(f"{measure.hardware()}; the tables are in benchmarks/{RESULTS.name}")
    return int(any(values["note"].startswith("failed with") for values in rows if values.get("note")))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer and more windows, and everything that is compared")
    parser.add_argument("--rows", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    return send_rows(options.rows, options.full) if options.rows else collect(options.full)


if __name__ == "__main__":
    sys.exit(main())
