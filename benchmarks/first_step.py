"""How soon does ResNet50 train its first step? Build, compile and first step, with `optimizer.build` first and without.

Run: python benchmarks/first_step.py [--full]
Each side is a process of its own; the ratio is what building the optimiser's slots outside the step's trace saves.
"""

import statistics
import subprocess
import sys
import time

import measure
from measure import cell, ratio_of, row

TITLE = "first step of ResNet50"
SIDES = {"built": "optimizer.build first", "plain": "plain Keras"}


def first_step(build_first):
    """Prints the seconds from an imported library to the end of the first step of batch 128 at 32 pixels."""
    from cifar_keras import runtime

    runtime.setup()
    import numpy as np

    from cifar_keras.config import Stage, Training
    from cifar_keras.optim import CrossEntropy, make_optimizer
    from cifar_keras.zoo import MODELS, build, set_trainable

    start = time.perf_counter()
    model_row = MODELS["resnet50_finetune"]
    model = build(model_row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    set_trainable(model, model_row, freeze_backbone=False)
    training = Training(model_row.name, stages=(Stage(1, 1e-3),))
    optimizer = make_optimizer(training, training.stages[0], steps=100)
    model.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    if build_first:
        model.optimizer.build(model.trainable_variables)
    images = np.zeros((128, 32, 32, 3), "uint8")
    model.fit(images, np.zeros(128, "int32"), batch_size=128, epochs=1, verbose=0)
    print(time.perf_counter() - start)


def rows(full):
    """Both sides, in turns."""
    seconds = {side: [] for side in SIDES}
    for _ in range(3 if full else 1):
        for side, found in seconds.items():
            done = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=True)
            found.append(float(done.stdout))
    lines = []
    for side, found in seconds.items():
        note = f"{cell(min(found))} to {cell(max(found))} in {len(found)}"
        ratio = ratio_of(found, seconds["plain"]) if side == "built" else None
        lines.append(row(TITLE, SIDES[side], statistics.median(found), "s", ratio=ratio, note=note))
    return lines


if __name__ == "__main__":
    if sys.argv[1:] in (["built"], ["plain"]):
        first_step(sys.argv[1] == "built")
    else:
        measure.main(__doc__, rows)
