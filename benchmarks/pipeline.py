"""How many training images per second does `train_pipeline` alone deliver, with each kind of augmentation?

Run: python benchmarks/pipeline.py [--full]
Passes of five epochs over 20,000 random CIFAR-sized images in batches of 500, without a model: as in training, one
stream runs through all epochs. The streams take turns. Beside ours stand the same shift and flip made of Keras' own
layers in tf.data.
"""

import time

import measure
import numpy as np
from measure import judged, measured, ratio_of

from cifar_keras.data.base import Split
from cifar_keras.utils import runtime

TITLE = "9 train_pipeline alone, batch 500"
IMAGES, BATCH, EPOCHS = 20_000, 500, 5
STEPS = {
    "no augmentation": (),
    "shift": ("shift",),
    "shift, alternating flip": ("shift", "alternating_flip"),
    "crop, flip": ("crop", "flip"),
    "shift, alternating flip, cutout": ("shift", "alternating_flip", "cutout"),
    "crop, flip, colour jitter": ("crop", "flip", "colour_jitter"),
}
JUDGED, TARGET = "shift, alternating flip", 200_000  # images/s on two cores
LAYERS = "shift, flip by Keras' layers"


def rows(full):
    """Every stream's speed; that of `JUDGED` against `TARGET` and against Keras' layers."""
    runtime.setup()
    random = np.random.RandomState(0)
    split = Split(random.randint(0, 256, (IMAGES, 32, 32, 3)).astype("uint8"), np.zeros(IMAGES, "int32"))
    streams = {name: ours(split, steps) for name, steps in STEPS.items()} | {LAYERS: by_layers(split)}
    speeds = {name: [] for name in streams}
    for number in range(1 + (7 if full else 3)):
        for name, stream in streams.items():
            speed = images_per_second(stream)
            if number:  # the first pass traces the graph
                speeds[name].append(speed)
    against = judged(ratio_of(speeds[JUDGED], speeds[LAYERS]), 1.0, of="Keras' layers")
    lines = [measured(TITLE, name, found) for name, found in speeds.items() if name != JUDGED]
    return [measured(TITLE, JUDGED, speeds[JUDGED], **against, note=f"target {TARGET:,} images/s"), *lines]


def images_per_second(stream):
    """The speed of one pass."""
    start, count = time.perf_counter(), 0
    for images, _ in stream:
        count += len(images)
    return count / (time.perf_counter() - start)


def ours(split, steps):
    """Our pipeline."""
    from cifar_keras.data.pipeline import train_pipeline

    return train_pipeline(split, batch_size=BATCH, seed=0, epochs=EPOCHS, augmentation=steps)


def by_layers(split):
    """Keras' random layers on the stream without augmentation; they return float32."""
    import keras
    import tensorflow as tf

    layers = keras.Sequential(
        [keras.layers.RandomTranslation(2 / 32, 2 / 32, fill_mode="reflect"), keras.layers.RandomFlip("horizontal")]
    )
    plain = ours(split, ())
    return plain.map(
        lambda images, labels: (tf.cast(layers(images, training=True), tf.uint8), labels), num_parallel_calls=2
    )


if __name__ == "__main__":
    measure.main(__doc__, rows)
