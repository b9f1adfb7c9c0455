"""How many images per second do we train, compared with PyTorch? ResNet50 at 32 pixels, and the scratch CNN.

Run: python benchmarks/throughput.py [--full]
Ours is `train.fit` with the experiment's recipe: pipeline, augmentation and callbacks included, on every Keras backend
that is installed. Theirs is the fastest of PyTorch's loops over memory layouts, torch.compile and loader workers, with
the same network, optimiser, batch and augmentation. For comparison: the bare step on one batch in memory
(`train_on_batch`), and TensorFlow without oneDNN, the default on x86 CPUs without 16-bit instructions.
"""

import statistics
from dataclasses import dataclass

import measure
from measure import ONLY_FULL, Implementation, Turn, judged, measured, ratio_of, row

from cifar_keras.utils.system import cpu_flags

PYTORCH = "the fastest"
OURS, ON_BATCH, WITHOUT_ONEDNN = "Keras on TensorFlow, fit", "Keras on TensorFlow, train_on_batch", "oneDNN off, fit"
BACKENDS = ("jax", "torch")  # beside TensorFlow
ONEDNN_BY_DEFAULT = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"}  # any of these, in TensorFlow 2.21


@dataclass(frozen=True)
class Comparison:
    """One model against its equal in PyTorch.

    Attributes:
        title: in the table.
        name: of the study's row and of PyTorch's recipe.
        batch_size: of both.
        tensorflow, best: least ratios of TensorFlow and of the best Keras backend to PyTorch; None: no target.
        onednn: least ratio of TensorFlow to itself without oneDNN.
        fit: least ratio of `fit` to `train_on_batch`.
    """

    title: str
    name: str
    batch_size: int
    tensorflow: float
    best: float | None = None
    onednn: float | None = None
    fit: float | None = None


COMPARISONS = (
    Comparison("1 training, ResNet50 at 32", "resnet50_finetune", 128, tensorflow=0.8, best=1.0, onednn=5.0, fit=0.95),
    Comparison("2 training, scratch CNN", "scratch_cnn", 500, tensorflow=1.2),
)


def rows(full):
    """Both comparisons."""
    return [line for comparison in COMPARISONS for line in compared(comparison, full)]


def compared(comparison, full):
    """The rows of one comparison: every PyTorch loop once, then the fastest in turns with our implementations."""
    loops = measure.training_loops(comparison.name, batch_size=comparison.batch_size, full=full)
    how = {"rounds": 3, "seconds": 10} if full else {"rounds": 1, "seconds": 3}
    with measure.fastest_turn(comparison.title, loops, **how) as (best, loop, tried):
        turns = our_turns(comparison, full)
        turns |= {PYTORCH: loop} if loop else {}
        try:
            speeds = measure.rounds_of(turns, rounds=5 if full else 3, seconds=15 if full else 4)
        finally:
            for name in set(turns) - {PYTORCH}:
                turns[name].implementation.close()
    failures = {name: turn.implementation.failure for name, turn in turns.items()}
    compiled = [] if full or not loops else [row(comparison.title, "PyTorch compile", note=ONLY_FULL)]
    pytorch = [measured(comparison.title, f"{PYTORCH}: {best}", speeds[PYTORCH])] if loop else []
    return tried + compiled + pytorch + judgements(comparison, speeds, failures, full=full)


def our_turns(comparison, full):
    """Our implementations. They warm up one after the other; their pace then decides how many steps a window has."""

    def turn(what, backend, **environment):
        environment = {"KERAS_BACKEND": backend, **environment}
        return Turn(
            Implementation((what, comparison.name), images=comparison.batch_size, environment=environment).ready()
        )

    turns = {OURS: turn("fit", "tensorflow"), ON_BATCH: turn("on_batch", "tensorflow")}
    if full and comparison.onednn:
        turns[WITHOUT_ONEDNN] = turn("fit", "tensorflow", TF_ENABLE_ONEDNN_OPTS="0")
    others = filter(measure.installed, BACKENDS if full else ())
    return turns | {on(backend): turn("fit", backend) for backend in others}


def on(backend):
    return f"Keras on {backend}, fit"


def judgements(comparison, speeds, failures, *, full):
    """Our rows: each implementation's speed, and what it is measured by."""
    title, ours, pytorch = comparison.title, speeds[OURS], speeds.get(PYTORCH, [])
    against = judged(ratio_of(ours, pytorch), comparison.tensorflow, of="PyTorch")
    lines = [measured(title, OURS, ours, note=failures[OURS], **against)]
    for backend in BACKENDS:
        name = on(backend)
        why = f"not measured: pip install {backend}" if full else ONLY_FULL
        found = speeds.get(name, [])
        lines.append(measured(title, name, found, note=failures.get(name, why), ratio=ratio_of(found, pytorch)))
    if comparison.best and full:
        backends = [name for name in (OURS, *map(on, BACKENDS)) if speeds.get(name)]
        best = max(backends, key=lambda name: statistics.median(speeds[name]), default=OURS)
        against = judged(ratio_of(speeds[best], pytorch), comparison.best, of="PyTorch")
        lines.append(measured(title, f"best backend: {best}", speeds[best], **against))
    return lines + own_parts(comparison, speeds, failures)


def own_parts(comparison, speeds, failures):
    """TensorFlow against itself: without oneDNN, and without data and callbacks."""
    title, ours, lines = comparison.title, speeds[OURS], []
    if comparison.onednn:
        lines.append(
            measured(
                title, WITHOUT_ONEDNN, speeds.get(WITHOUT_ONEDNN, []), note=failures.get(WITHOUT_ONEDNN, ONLY_FULL)
            )
        )
        against = judged(ratio_of(ours, speeds.get(WITHOUT_ONEDNN, [])), comparison.onednn, of="oneDNN off")
        note = None
        if ONEDNN_BY_DEFAULT & cpu_flags():
            against["met"], note = None, "does not apply: TensorFlow turns oneDNN on by itself on this CPU"
        lines.append(measured(title, f"{OURS}, against {WITHOUT_ONEDNN}", ours, note=note, **against))
    lines.append(measured(title, ON_BATCH, speeds[ON_BATCH], note=failures[ON_BATCH]))
    ratio = ratio_of(ours, speeds[ON_BATCH])
    against = judged(ratio, comparison.fit, of="train_on_batch") if comparison.fit else {"ratio": ratio}
    return [*lines, measured(title, f"{OURS}, against train_on_batch", ours, **against)]


if __name__ == "__main__":
    measure.main(__doc__, rows)
