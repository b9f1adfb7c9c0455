"""The processes that are compared. Each takes steps of one implementation and times them when its parent asks.

The other benchmarks start it: `python benchmarks/implementations.py fit scratch_cnn`. A line on stdin,
`<lead> <steps> <what>`, starts a window. The answer is the seconds of each step after the lead. The end of stdin ends
the process.
"""

import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONVOLUTION = (250, 16, 256)  # images, side and channels of `convolution`
IMAGES = 45_000  # of CIFAR-10's training split; noise costs the same time


class Clock:
    """Counts steps and answers the parent. The first window, of one step, is the warm-up; nobody asks for it.

    Args:
        lead: steps before it.
    """

    def __init__(self, *, lead):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever the libraries print goes elsewhere
        self.count, self.lead, self.steps, self.what = 0, lead, 1, ""
        self.ends = [time.perf_counter()]

    def step(self):
        """Call this after every step."""
        self.count += 1
        if self.count <= self.lead:
            self.ends.clear()
        self.ends.append(time.perf_counter())
        if self.count == self.lead + self.steps:
            print(*np.diff(self.ends), file=self.answers, flush=True)
            self.wait()

    def wait(self):
        """Sleeps until the parent asks for another window."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # out of the midst of `fit`
        lead, steps, self.what = line.rstrip("\n").split(" ", 2)
        self.count, self.lead, self.steps = 0, int(lead), int(steps)
        self.ends = [time.perf_counter()]


def noise(count):
    """Random images and labels: uint8 `(count, 32, 32, 3)`, int32 `(count,)`."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype="uint8")
    return images, (np.arange(count) % 10).astype("int32")


def noise_dataset(count):
    """A dataset of that many training images and hardly any others."""
    from cifar_keras.data.base import Dataset, Split

    few = Split(*noise(10))
    return Dataset("noise", "noise", "0" * 64, tuple("abcdefghij"), train=Split(*noise(count)), val=few, test=few)


def recipe(name):
    """The `best` recipe of the experiment with that model."""
    from cifar_keras.utils.paths import PROJECT

    experiments = (runpy.run_path(path) for path in sorted((PROJECT / "experiments").glob("exp*.py")))
    recipes = (found["EXPERIMENT"].variants.get("best") for found in experiments)
    return next(training for training in recipes if training and training.model == name)


def keras_model(name, precision="float32"):
    """The row, its model and its recipe's last stage, in which every layer trains."""
    import dataclasses

    from cifar_keras.utils import runtime

    runtime.setup()
    runtime.apply(precision=precision, deterministic=False)
    from cifar_keras.models.zoo import MODELS, build, initialise_from_data

    training = recipe(name)
    model = build(MODELS[name], image_shape=(32, 32, 3), classes=10, steps=1000, seed=0)
    initialise_from_data(model, noise(1000)[0])
    return MODELS[name], model, dataclasses.replace(training, stages=training.stages[-1:])


def fit(clock, name, precision):
    """Our whole path: `train.fit` with pipeline, augmentation and callbacks."""
    row, model, training = keras_model(name, precision)
    import keras

    from cifar_keras.training import train

    class Step(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.step()

    dataset = noise_dataset(IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        resume = train.Resume(Path(folder))
        keywords = {"seed": 0, "resume": resume, "progress": resume.load("benchmark"), "callbacks": [Step()]}
        train.fit(model, row, dataset, training, **keywords)


def on_batch(clock, name, precision):
    """The bare step of the same model on one batch in memory: what `fit` would cost without data and callbacks."""
    row, model, training = keras_model(name, precision)
    from cifar_keras.models.fused import fused_kernels
    from cifar_keras.models.zoo import set_trainable
    from cifar_keras.training.optim import CrossEntropy, make_optimizer
    from cifar_keras.training.train import make_variables

    set_trainable(model, row, freeze_backbone=False)
    optimizer = make_optimizer(training, training.stages[0], steps=1000)
    model.compile(optimizer, CrossEntropy(training.label_smoothing), metrics=["accuracy"])
    make_variables(model)
    batch = noise(training.batch_size)
    with fused_kernels(model):
        while True:
            model.train_on_batch(*batch)
            clock.step()


def convolution(clock, precision):
    """One 3x3 convolution with both of its gradients, of `CONVOLUTION`: as fast as a CNN could train at best."""
    from cifar_keras.utils import runtime

    runtime.setup()
    import tensorflow as tf

    batch, side, channels = CONVOLUTION
    random, dtype = np.random.default_rng(0), precision.removeprefix("mixed_")
    images = tf.cast(random.normal(size=(batch, side, side, channels)), dtype)
    kernel = tf.cast(random.normal(size=(3, 3, channels, channels)), dtype)

    @tf.function
    def step(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            output = tf.nn.conv2d(images, kernel, 1, "SAME")
        by_images, by_kernel = tape.gradient(output, (images, kernel), output_gradients=images)
        return by_images[0, 0, 0, 0] + by_kernel[0, 0, 0, 0]

    while True:
        step(images, kernel).numpy()
        clock.step()


def predict(clock, name, count):
    """`inference.probabilities` of a saved and loaded model; `what` 'views' takes the mean over augmented views."""
    row, model, _ = keras_model(name)
    from cifar_keras.saved import artifacts
    from cifar_keras.saved.inference import augmented_probabilities, probabilities
    from cifar_keras.training.train import evaluation_batch

    with tempfile.TemporaryDirectory() as folder:
        artifacts.for_inference(model).save(Path(folder) / "model.keras")
        model = artifacts.load(Path(folder) / "model.keras")
    dataset = noise_dataset(int(count))
    batch_size = evaluation_batch(row, dataset)
    while True:
        function = augmented_probabilities if clock.what == "views" else probabilities
        function(model, dataset.train.images, batch_size=batch_size)
        clock.step()


def serve(clock, path, count):
    """A saved model in any format on one batch in memory; of Keras the compiled call, without what `predict` adds."""
    from cifar_keras.utils import runtime

    runtime.setup()
    import tensorflow as tf

    from cifar_keras.saved.formats import open_network

    network = open_network(path)
    size = (int(count), *network.size, 3)
    images, run = np.random.default_rng(0).integers(0, 256, size, dtype="uint8"), network.run
    if network.model is not None:
        compiled = tf.function(lambda images: network.model(images, training=False))

        def run(images):
            return compiled(tf.constant(images)).numpy()

    while True:
        run(images)
        clock.step()


def torch_train(clock, name, layout, precision):
    """PyTorch's loop; `what` is the number of the loader's worker processes."""
    import torch
    import torch_models

    from cifar_keras.utils.system import cores

    torch.set_num_threads(cores())
    recipe = torch_models.RECIPES[name]
    trainer, streams = torch_models.Trainer(recipe, layout=layout, precision=precision), {}
    data = noise(IMAGES)
    while True:
        workers = int(clock.what or 0)
        if workers not in streams:
            streams[workers] = torch_models.batches(recipe, *data, workers=workers)
        trainer.step(*next(streams[workers]))
        clock.step()


def torch_predict(clock, name, layout, count):
    """PyTorch's inference; `what` is the batch size."""
    import torch
    import torch_models

    from cifar_keras.utils.system import cores

    torch.set_num_threads(cores())
    model = torch_models.NETWORKS[name]().to(memory_format=torch_models.LAYOUTS[layout]).eval()
    images, _ = noise(int(count))
    while True:
        torch_models.probabilities(model, images, layout=layout, batch_size=int(clock.what or 100))
        clock.step()


TRAINING = {implementation.__name__: implementation for implementation in (fit, on_batch, convolution, torch_train)}
PREDICTING = {
    implementation.__name__: implementation for implementation in (predict, serve, torch_predict)
}  # a step is a pass over all images

if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what in TRAINING:
        TRAINING[what](Clock(lead=1), *arguments)
    else:
        PREDICTING[what](Clock(lead=0), *arguments)
