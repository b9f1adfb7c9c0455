"""How long does a PyTorch tutorial's CNN train, and how fast do we reach about the same accuracy?

Run: python benchmarks/against_tutorial.py [--full]
Theirs: five convolutions (64-64-M-128-128-M-256-M, each with BatchNorm and ReLU), a hidden layer of 512 with dropout
0.5, Adam at 1e-3 halved every ten epochs, batch 64, 30 epochs with crops, flips and jitter; its authors report 89.1%.
The network and recipe are those of a public student project (experiment 7 runs them). An epoch over 45,000 images is
timed with the fastest of PyTorch's loops, times 30. Ours: the seconds until a run of experiment 4 on all images reached
88% on val, from its history; of several runs on this kind of machine the fastest, so the recipe may be chosen on val.
Only in this ratio does one implementation come from an earlier run.
"""

import itertools

import measure
from measure import row

from cifar_keras import results
from cifar_keras.utils.paths import PROJECT
from cifar_keras.utils.runtime import device

TITLE = "7 to 88%, scratch CNN"
EPOCHS, IMAGES, BATCH = 30, 45_000, 64
ACCURACY = 0.88
TARGET = 1 / 5


def rows(full):
    """The tutorial's seconds, ours, and their ratio."""
    loops = measure.training_loops("tutorial", batch_size=BATCH, full=full)
    how = {"rounds": 3, "seconds": 10} if full else {"rounds": 1, "seconds": 3}
    with measure.fastest_turn(TITLE, loops, **how) as (best, loop, tried):
        steps = 2 * IMAGES // BATCH if full else 80
        speed = loop.implementation.speed(what=loop.what, steps=steps) if loop else None
    return tried + ([theirs(best, speed, steps)] if speed else []) + [ours(speed)]


def theirs(loop, speed, steps):
    """The tutorial's training time, from the speed of some steps."""
    share = f"from {steps * BATCH / IMAGES:.2g} epochs, extrapolated; augmentation included, evaluation not"
    return row(TITLE, f"tutorial's CNN, {EPOCHS} epochs: {loop}", EPOCHS * IMAGES / speed, "s", note=share)


def ours(speed):
    """Our seconds to that accuracy, compared with the tutorial's whole training if it was timed."""
    name = f"ours to {ACCURACY:.0%} on val"
    found = [(seconds, record) for record, history in runs() if (seconds := seconds_to(history, ACCURACY)) is not None]
    if not found:
        return row(TITLE, name, note=f"no full run of experiment 4 on {IMAGES:,} images that reached it, with history")
    here = [one for one in found if one[1]["device"] == device()]
    seconds, record = min(here or found, key=lambda one: one[0])
    note = f"{record['run_id']}, {record['device']}, {record['val_n']:,} val images"
    if not here:
        return row(TITLE, name, seconds, "s", note=f"not compared, since it ran elsewhere: {note}")
    ratio = seconds * speed / (EPOCHS * IMAGES) if speed else None
    met = ratio <= TARGET if ratio else None
    return row(TITLE, name, seconds, "s", ratio=ratio, target=f"at most {TARGET:g} x the tutorial", met=met, note=note)


def seconds_to(history, accuracy):
    """The training seconds after which val accuracy first was at least that, val and saving included; None if never."""
    reached = zip(itertools.accumulate(history["seconds"]), history["val_accuracy"], strict=True)
    return next((seconds for seconds, value in reached if value >= accuracy), None)


def runs(root=PROJECT):
    """Each finished full run of experiment 4 on as many images, with its history."""
    for record in results.read(root):
        full = (record["experiment"], record["budget"], record["status"]) == ("exp4_scratch", "full", "finished")
        if full and record["train_images"] == IMAGES and "history" in record:
            yield record, record["history"]


if __name__ == "__main__":
    measure.main(__doc__, rows)
