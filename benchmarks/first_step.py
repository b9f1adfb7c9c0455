"""How soon does ResNet50 train its first step? Ours against plain Keras.

Run: python benchmarks/first_step.py [--full]
Each implementation is a process of its own: build, compile, first step with a batch of 128 at 32 pixels. Ours creates
the optimiser's slots and the metrics before the step, so that the step is traced once, and has fused kernels for
BatchNormalization and AdamW, all as `train.fit` does. Plain Keras traces the step twice. The command is
`experiments/exp3_finetune.py` on the embedded set, with one step.
"""

import contextlib
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

import measure
from measure import cell, ratio_of, row

from cifar_keras.utils.paths import PROJECT

TITLE = "3 first step of ResNet50"
IMPLEMENTATIONS = {"ours": "ours", "plain": "plain Keras"}
PARTS = {"first step": 1 / 3, "build + compile + first step": 0.45}  # targets, relative to plain Keras
SCRIPT = PROJECT / "experiments" / "exp3_finetune.py"
OPTIONS = ("--budget", "demo", "--limit", "16", "--epochs", "1")
TO_FIRST_STEP = 15  # seconds


def first_step(implementation):
    """Prints the seconds from an imported library to the start of the first step, and to its end."""
    from cifar_keras.utils import runtime

    runtime.setup()
    import keras
    import numpy as np

    from cifar_keras.config import Stage, Training
    from cifar_keras.models.fused import fused_kernels
    from cifar_keras.models.zoo import MODELS, build, set_trainable
    from cifar_keras.training.optim import CrossEntropy, make_optimizer, make_schedule
    from cifar_keras.training.train import make_variables

    start = time.perf_counter()
    model_row = MODELS["resnet50_finetune"]
    model = build(model_row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    set_trainable(model, model_row, freeze_backbone=False)
    training = Training(model_row.name, stages=(Stage(1, 1e-3),), weight_decay=0.02)
    optimizer = make_optimizer(training, training.stages[0], steps=100)
    if implementation == "plain":
        optimizer = keras.optimizers.AdamW(make_schedule(training.stages[0], steps=100), weight_decay=0.02)
    model.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    if implementation == "ours":
        make_variables(model)
    ready = time.perf_counter()
    images = np.zeros((128, 32, 32, 3), "uint8")
    with fused_kernels(model) if implementation == "ours" else contextlib.nullcontext():
        model.fit(images, np.zeros(128, "int32"), batch_size=128, epochs=1, verbose=0)
    print(time.perf_counter() - ready, time.perf_counter() - start)


def rows(full):
    """Both implementations, in turns, and the command."""
    seconds = {implementation: [] for implementation in IMPLEMENTATIONS}
    for _ in range(3 if full else 1):
        for implementation, found in seconds.items():
            line = [sys.executable, __file__, implementation]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            found.append([float(part) for part in done.stdout.split()])
    lines = [line for place, part in enumerate(PARTS) for line in compared(part, place, seconds)]
    return [*lines, to_first_step(), command()]


def compared(part, place, seconds):
    """The rows of one span of time: ours with its ratio, and plain Keras."""
    values = {implementation: [run[place] for run in found] for implementation, found in seconds.items()}
    ratio, target = ratio_of(values["ours"], values["plain"]), PARTS[part]
    for implementation, found in values.items():
        note = f"{cell(min(found))} to {cell(max(found))} in {len(found)}"
        judged = {"ratio": ratio, "target": f"at most {target:.2g} x plain", "met": ratio <= target}
        name = f"{part}, {IMPLEMENTATIONS[implementation]}"
        yield row(TITLE, name, statistics.median(found), "s", note=note, **(judged if implementation == "ours" else {}))


def until_first_step(start, *arguments):
    """Runs the experiment until its first step is done, and prints the seconds since `start` (of `time.time`)."""
    from cifar_keras.utils import runtime

    runtime.setup()
    from cifar_keras.training import train

    def stop(*_, **__):
        print(time.time() - float(start), flush=True)
        os._exit(0)

    train.Recorder.on_train_batch_end = stop
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def to_first_step():
    """From the start of the command to the end of its first step."""
    with tempfile.TemporaryDirectory() as root:
        line = [sys.executable, __file__, "until", str(time.time()), *OPTIONS, "--root", root]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds = float(done.stdout.splitlines()[-1])
    judged = {"target": f"at most {TO_FIRST_STEP} s", "met": seconds <= TO_FIRST_STEP}
    return row(TITLE, "exp3_finetune.py, from the command to the end of the first step", seconds, "s", **judged)


def command():
    """The whole command with one epoch of one step, from its start to its end."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        subprocess.run([sys.executable, SCRIPT, *OPTIONS, "--root", root], capture_output=True, check=True)
        seconds = time.perf_counter() - start
    note = "16 images, one step, then val, saving in four forms, test and pictures"
    return row(TITLE, "exp3_finetune.py, one epoch of one step, whole command", seconds, "s", note=note)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in IMPLEMENTATIONS:
        first_step(sys.argv[1])
    elif sys.argv[1:2] == ["until"]:
        until_first_step(*sys.argv[2:])
    else:
        measure.main(__doc__, rows)
