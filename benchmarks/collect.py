"""Runs the benchmarks in this folder, prints their tables and writes results.json and RESULTS.md.

Run: make bench, or make bench ARGS=--full, or some of them: make bench ARGS="throughput predict --full"
A benchmark is a file in this folder with a function `rows(full)`. Each runs in a process of its own, one after the
other, and its results stay until it runs again. All of them take about ten minutes on 2 cores in the short form and two
hours in full. Nothing else should run on the machine.
"""

import argparse
import ast
import contextlib
import datetime
import importlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import measure
from measure import row

from cifar_keras.utils.files import write_text
from cifar_keras.utils.runtime import git_commit, version

HERE = Path(__file__).resolve().parent
STORE, RESULTS = HERE / "results.json", HERE / "RESULTS.md"
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
    """A benchmark's rows, or one row with the exit code if it failed."""
    command = [sys.executable, __file__, "--rows", name, *(["--full"] if full else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return [row(name, "-", met=False, note=f"failed with exit code {done.returncode}")]
    return [json.loads(line) for line in done.stdout.splitlines()]


def measurement(name, *, full, commit):
    """A benchmark's rows with machine, versions and time, as stored."""
    start, rows = time.perf_counter(), rows_of(name, full=full)
    return {
        "full": full,
        "written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "seconds": time.perf_counter() - start,
        "hardware": measure.hardware(),
        "versions": ", ".join(versions()),
        "commit": commit,
        "rows": rows,
    }


def versions():
    """Python and what is installed of the libraries, with their versions."""
    yield f"Python {platform.python_version()}"
    for library in LIBRARIES:
        if found := version(library):
            yield f"{library} {found}"


def report(store):
    """RESULTS.md as text.

    Args:
        store: what `measurement` returned, by the benchmark's name.
    """
    judged = [values for one in store.values() for values in one["rows"] if values.get("target")]
    return "\n\n".join(
        (
            "# Benchmarks",
            "Written by `make bench`. Each ratio comes from one run on one machine (that of against_tutorial.py from a "
            "stored run on the same kind of machine). `met` is `-` where a target does "
            "not apply or an implementation was not measured. Values are medians of windows; a ratio is the median of "
            "ratios within a round ([measure.py](measure.py)).",
            "## Targets",
            measure.table(judged, "github"),
            *(part for name, one in sorted(store.items()) for part in section(name, one)),
        )
    )


def section(name, one):
    """The parts of RESULTS.md about one benchmark."""
    form = "--full" if one["full"] else "the short form: few and short windows, and not everything that is compared"
    yield f"## [{name}.py]({name}.py)"
    yield (
        f"{form}; {one['seconds'] / 60:.0f} minutes, {one['written']}, commit {one['commit']}\\\n"
        f"{one['hardware']}; {one['versions']}"
    )
    yield measure.table(one["rows"], "github")


def collect(chosen, full):
    """Runs benchmarks, prints and stores as it goes, and returns the exit code: 1 where one failed."""
    commit = git_commit() or "unknown"  # before what is written here counts as a change
    store = json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}
    for name in chosen:
        print(f"== benchmarks/{name}.py", flush=True)
        store[name] = measurement(name, full=full, commit=commit)
        print(measure.table(store[name]["rows"], "plain"), flush=True)
        write_text(STORE, json.dumps(store, indent=1, allow_nan=False) + "\n")
        write_text(RESULTS, report(store) + "\n")
    print(f"{measure.hardware()}; the tables are in benchmarks/{RESULTS.name}")
    notes = (values["note"] for name in chosen for values in store[name]["rows"])
    return int(any(note.startswith("failed with") for note in notes))


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = tuple(names())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(known)}; default all")
    parser.add_argument("--full", action="store_true", help="longer and more windows, and everything that is compared")
    parser.add_argument("--rows", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"expected benchmarks ({', '.join(known)}). Received {', '.join(unknown)}.")
    return send_rows(options.rows, options.full) if options.rows else collect(options.names or known, options.full)


if __name__ == "__main__":
    sys.exit(main())
