"""How soon does ResNet50 train its first step? Build, compile and first step, with `optimizer.build` first and without.

Run: python benchmarks/first_step.py
Each side is a process of its own; the ratio is what building the optimiser's slots outside the step's trace saves.
"""

import subprocess
import sys
import time


def measure(build_first):
    """Prints the seconds from an imported library to the end of the first step of batch 128 at 32 pixels."""
    from cifar_keras import runtime

    runtime.setup()
    import numpy as np

    from cifar_keras.config import Stage, Training
    from cifar_keras.optim import CrossEntropy, make_optimizer
    from cifar_keras.zoo import MODELS, build, set_trainable

    start = time.perf_counter()
    row = MODELS["resnet50_finetune"]
    model = build(row, image_shape=(32, 32, 3), classes=10, steps=100, seed=0)
    set_trainable(model, row, freeze_backbone=False)
    training = Training(row.name, stages=(Stage(1, 1e-3),))
    optimizer = make_optimizer(training, training.stages[0], steps=100)
    model.compile(optimizer, CrossEntropy(), metrics=["accuracy"])
    if build_first:
        model.optimizer.build(model.trainable_variables)
    images = np.zeros((128, 32, 32, 3), "uint8")
    model.fit(images, np.zeros(128, "int32"), batch_size=128, epochs=1, verbose=0)
    print(time.perf_counter() - start)


def main():
    """Runs both sides and prints them, their ratio and the hardware."""
    if len(sys.argv) > 1:
        return measure(sys.argv[1] == "built")
    from cifar_keras.runtime import cpu_name

    seconds = {}
    for side in ("built", "plain"):
        done = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=True)
        seconds[side] = float(done.stdout)
    print(f"first step of ResNet50, build and compile included, on {cpu_name()}:")
    print(f"  optimizer.build first  {seconds['built']:6.1f} s")
    print(f"  plain Keras            {seconds['plain']:6.1f} s")
    print(f"  ratio                  {seconds['built'] / seconds['plain']:6.2f}")
    return None


if __name__ == "__main__":
    main()
