"""How many images per second do we train, compared with PyTorch? ResNet50 at 32 pixels, and the scratch CNN.

Run: python benchmarks/throughput.py [--full]
Ours is `train.fit` with the experiment's recipe: pipeline, augmentation and callbacks included, on every Keras backend
that is installed. Theirs is the fastest of PyTorch's loops over memory layouts, torch.compile and loader workers, with
the same network, optimiser, batch and augmentation. Both compute in float32; where the processor has AMX, both may also
choose bfloat16. For comparison: the bare step on one batch in memory (`train_on_batch`), what share it reaches of the
FLOP/s of a convolution alone, and TensorFlow without oneDNN, the default on x86 CPUs without 16-bit instructions.
"""

import statistics
from dataclasses import dataclass

import measure
from implementations import CONVOLUTION
from measure import ONLY_FULL, Implementation, Turn, judged, measured, ratio_of, row

from cifar_keras.utils.system import cpu_flags

PYTORCH = "the fastest"
OURS, ON_BATCH, WITHOUT_ONEDNN = "Keras on TensorFlow, fit", "Keras on TensorFlow, train_on_batch", "oneDNN off, fit"
LIMIT = "3x3 convolution and its gradients"
BACKENDS = ("jax", "torch")  # beside TensorFlow
ONEDNN_BY_DEFAULT = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"}  # any of these, in TensorFlow 2.21
FLOAT32, MIXED = "float32", "mixed_bfloat16"


@dataclass(frozen=True)
class Comparison:
    """One model against its equal in PyTorch.

    Attributes:
        title: in the table.
        name: of the study's row and of PyTorch's recipe.
        batch_size: of both.
        gflop: floating-point operations that training on one image needs, in billions: convolutions and dense layers,
            forward and both gradients, as far as anything trains.
        float32, free: least ratios to PyTorch, in float32 and with each side free to choose the precision.
        share: least share of the FLOP/s of a convolution alone; None: no target.
        onednn: least ratio of TensorFlow to itself without oneDNN; None: not measured.
    """

    title: str
    name: str
    batch_size: int
    gflop: float
    float32: float
    free: float
    share: float | None = None
    onednn: float | None = None


COMPARISONS = (
    Comparison("1 training, ResNet50 at 32", "resnet50_finetune", 128, 0.4675, float32=1.0, free=1.0, onednn=5.0),
    Comparison("2 training, scratch CNN", "scratch_cnn", 500, 0.6812, float32=1.2, free=1.0, share=0.85),
)
FIT = 0.95  # least ratio of `fit` to `train_on_batch`


def rows(full):
    """Both comparisons, in float32 and, where the processor gains from it, with bfloat16 too."""
    choices = [(FLOAT32,)] + ([(FLOAT32, MIXED)] if "amx_bf16" in cpu_flags() else [])
    return [line for comparison in COMPARISONS for allowed in choices for line in compared(comparison, allowed, full)]


def compared(comparison, allowed, full):
    """The rows of one comparison: every PyTorch loop once, then the fastest in turns with our implementations."""
    title = titled(comparison, allowed)
    loops = measure.training_loops(comparison.name, batch_size=comparison.batch_size, full=full, precisions=allowed)
    how = {"rounds": 3, "seconds": 10} if full else {"rounds": 1, "seconds": 3}
    with measure.fastest_turn(title, loops, **how) as (best, loop, tried):
        turns = our_turns(comparison, allowed, full)
        turns |= {PYTORCH: loop} if loop else {}
        try:
            speeds = measure.rounds_of(turns, rounds=5 if full else 3, seconds=15 if full else 4)
        finally:
            for name in set(turns) - {PYTORCH}:
                turns[name].implementation.close()
    failures = {name: turn.implementation.failure for name, turn in turns.items()}
    compiled = [] if full or not loops else [row(title, "PyTorch compile", note=ONLY_FULL)]
    pytorch = [measured(title, f"{PYTORCH}: {best}", speeds[PYTORCH])] if loop else []
    return tried + compiled + pytorch + judgements(comparison, allowed, speeds, failures, full=full)


def titled(comparison, allowed):
    return comparison.title if allowed == (FLOAT32,) else f"{comparison.title}, float32 or bfloat16"


def our_turns(comparison, allowed, full):
    """Our implementations. They warm up one after the other; their pace then decides how many steps a window has."""

    def turn(*arguments, images=comparison.batch_size, backend="tensorflow", **environment):
        environment = {"KERAS_BACKEND": backend, **environment}
        return Turn(Implementation(arguments, images=images, environment=environment).ready())

    turns = {}
    for precision in allowed:
        turns[f"{OURS}, {precision}"] = turn("fit", comparison.name, precision)
        turns[f"{ON_BATCH}, {precision}"] = turn("on_batch", comparison.name, precision)
        turns[f"{LIMIT}, {precision}"] = turn("convolution", precision, images=CONVOLUTION[0])
    if full and comparison.onednn and allowed == (FLOAT32,):
        turns[WITHOUT_ONEDNN] = turn("fit", comparison.name, FLOAT32, TF_ENABLE_ONEDNN_OPTS="0")
    others = filter(measure.installed, BACKENDS if full and allowed == (FLOAT32,) else ())
    return turns | {on(backend): turn("fit", comparison.name, FLOAT32, backend=backend) for backend in others}


def on(backend):
    return f"Keras on {backend}, fit"


def judgements(comparison, allowed, speeds, failures, *, full):
    """Our rows: each implementation's speed, and what it is measured by."""
    title, pytorch = titled(comparison, allowed), speeds.get(PYTORCH, [])
    names = [f"{OURS}, {precision}" for precision in allowed]
    best = max(names, key=lambda name: statistics.median(speeds[name] or [0.0]))
    target = comparison.float32 if allowed == (FLOAT32,) else comparison.free
    lines = []
    for name in names:
        against = judged(ratio_of(speeds[name], pytorch), target if name == best else None, of="PyTorch")
        lines.append(measured(title, name, speeds[name], note=failures[name], **against))
    for backend in BACKENDS if allowed == (FLOAT32,) else ():
        name = on(backend)
        why = f"not measured: pip install {backend}" if full else ONLY_FULL
        found = speeds.get(name, [])
        lines.append(measured(title, name, found, note=failures.get(name, why), ratio=ratio_of(found, pytorch)))
    if comparison.onednn and allowed == (FLOAT32,):
        lines += without_onednn(title, comparison, speeds, failures)
    return lines + [line for precision in allowed for line in own_parts(title, comparison, precision, speeds, failures)]


def without_onednn(title, comparison, speeds, failures):
    """TensorFlow against itself without oneDNN."""
    ours, without = speeds[f"{OURS}, {FLOAT32}"], speeds.get(WITHOUT_ONEDNN, [])
    against, note = judged(ratio_of(ours, without), comparison.onednn, of="oneDNN off"), None
    if ONEDNN_BY_DEFAULT & cpu_flags():
        against["met"], note = None, "does not apply: TensorFlow turns oneDNN on by itself on this CPU"
    return [
        measured(title, WITHOUT_ONEDNN, without, note=failures.get(WITHOUT_ONEDNN, ONLY_FULL)),
        measured(title, f"{OURS}, against {WITHOUT_ONEDNN}", ours, note=note, **against),
    ]


def own_parts(title, comparison, precision, speeds, failures):
    """What data and callbacks cost, and how near the step comes to a convolution alone."""
    fit, bare, limit = (f"{name}, {precision}" for name in (OURS, ON_BATCH, LIMIT))
    batch, side, channels = CONVOLUTION
    of_limit = 3 * 2 * 9 * channels**2 * side**2 / 1e9  # GFLOP for each image
    needed = [comparison.gflop * speed for speed in speeds[bare]]
    possible = [of_limit * speed for speed in speeds[limit]]
    share = judged(ratio_of(needed, possible), comparison.share, of="the convolution")
    against = judged(ratio_of(speeds[fit], speeds[bare]), FIT, of="train_on_batch")
    unit = {"unit": "GFLOP/s"}
    return [
        measured(title, bare, speeds[bare], note=failures[bare]),
        measured(title, f"{fit}, against train_on_batch", speeds[fit], **against),
        measured(title, f"{limit}, {batch} x {side} x {side} x {channels}", possible, note=failures[limit]) | unit,
        measured(title, f"{bare}, against the convolution", needed, **share) | unit,
    ]


if __name__ == "__main__":
    measure.main(__doc__, rows)
