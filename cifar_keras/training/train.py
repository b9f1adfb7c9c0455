"""Training: one `fit` per stage, with callbacks that record, select, save and report. A kill costs one epoch."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass, field

import keras
import numpy as np
from tqdm import tqdm

from cifar_keras.config import ConfigError, RunFailedError
from cifar_keras.data.pipeline import evaluation_pipeline, steps_per_epoch, train_pipeline
from cifar_keras.models.fused import fused_kernels
from cifar_keras.models.zoo import set_trainable
from cifar_keras.training.optim import Accuracy, CrossEntropy, make_optimizer
from cifar_keras.utils.files import replacing, write_json
from cifar_keras.utils.text import AHEAD, duration

HISTORY = ("epoch", "stage", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")


@dataclass
class Progress:
    """How far a run has come: what `state.json` in its resume folder holds.

    Attributes:
        identity: the run's canonical configuration.
        run_id: the run's name and the time it was first started.
        git_commit: of the code that started it.
        epochs: finished ones, over all stages.
        best_epoch: the one whose weights val selected, counted from 1.
        best: its (val accuracy, -val loss).
        seconds: wall time in `fit` so far.
        cpu_seconds: processor time in `fit` and of extracted features, all threads of this process together.
        history: lists by the names in HISTORY.
        features: seconds that each file of features took, and its origin: {name: {"seconds": 1.5, "cached": False}}.
    """

    identity: str
    run_id: str = ""
    git_commit: str | None = None
    epochs: int = 0
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: dict = field(default_factory=lambda: {name: [] for name in HISTORY})
    features: dict = field(default_factory=dict)

    def feature_seconds(self, *, cached):
        """Extraction time of the features that came from the cache, or of those that this run extracted."""
        return sum(entry["seconds"] for entry in self.features.values() if entry["cached"] == cached)


class Resume:
    """The folder with everything that resuming needs. `state.json` is written last and names its weights."""

    def __init__(self, folder):
        self.folder = folder
        self.state = folder / "state.json"

    def load(self, identity):
        """The progress of an interrupted run, or a new one.

        Raises: ConfigError if the folder belongs to a run with another configuration.
        """
        if not self.state.is_file():
            return Progress(identity)
        progress = Progress(**json.loads(self.state.read_text(encoding="utf-8")))
        progress.best = tuple(progress.best)
        if progress.identity != identity:
            raise ConfigError(
                f"{self.folder} holds an interrupted run of the same name with another configuration "
                f"({_difference(progress.identity, identity)}). Use `--fresh` to start over, or the earlier options."
            )
        return progress

    def begun(self):
        """The configuration of the interrupted run, as a dict; None if there is none."""
        if not self.state.is_file():
            return None
        return json.loads(json.loads(self.state.read_text(encoding="utf-8"))["identity"])

    def last(self, epochs):
        """The path of the weights and optimiser state after this many epochs."""
        return self.folder / f"last-{epochs:04d}.weights.h5"

    def best(self, epochs):
        """The path of the weights after this many epochs, kept while they are the best."""
        return self.folder / f"best-{epochs:04d}.weights.h5"

    def save(self, model, progress):
        """Writes the state after an epoch; a kill midway leaves the state of the previous epoch."""
        with replacing(self.last(progress.epochs)) as temporary:
            model.save_weights(temporary)
        if progress.best_epoch == progress.epochs:
            with averaged(model), replacing(self.best(progress.epochs)) as temporary:
                _alone(model).save_weights(temporary)
        self.note(progress)
        keep = {self.state, self.last(progress.epochs), self.best(progress.best_epoch)}
        for file in set(self.folder.iterdir()) - keep:
            file.unlink()

    def note(self, progress):
        """Writes `state.json`. The weights that belong to it must exist already."""
        write_json(self.state, progress.__dict__)

    def load_best(self, model, progress):
        """Gives the model the weights that val selected."""
        _alone(model).load_weights(self.best(progress.best_epoch))

    def clear(self):
        """Removes the folder when the run is done or `--fresh` starts over. The state goes first, in case of a kill."""
        self.state.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def averaged(model):
    """Within it, a model has the moving averages of its weights, if its optimiser keeps them (`Training.ema`)."""
    _swap_averages(model)
    try:
        yield
    finally:
        _swap_averages(model)


def _swap_averages(model):
    """Exchanges a model's weights and their averages, as Keras' `SwapEMAWeights` does for validation alone."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of one that scales the loss
    if getattr(optimizer, "use_ema", False):
        pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        for variable, average in pairs:
            held = np.array(keras.ops.convert_to_numpy(variable))  # a copy: the array may share the variable's memory
            variable.assign(average)
            average.assign(held)


def _alone(model):
    """The same layers without the optimiser, whose state belongs to one stage."""
    return keras.Model(model.input, model.output)


def _difference(before, after):
    """The first keys whose values differ between two identities."""
    before, after = json.loads(before), json.loads(after)
    keys = [key for key in after if before.get(key) != after[key]]
    return ", ".join(f"{key}: {json.dumps(before.get(key))} then, {json.dumps(after[key])} now" for key in keys[:2])


class Reseed(keras.callbacks.Callback):
    """Sets every random layer's generator from (seed, epoch): a resumed epoch draws what it would have drawn."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        for number, layer in enumerate(self.model._flatten_layers()):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                key = np.random.Philox(key=[self.seed, epoch * 2**20 + number]).random_raw(2)
                generator.state.assign((key % 2**31).astype(generator.state.dtype))


class Averages(keras.callbacks.Callback):
    """Has val judge the averages of the weights, where the optimiser keeps some."""

    def on_test_begin(self, logs=None):
        _swap_averages(self.model)

    def on_test_end(self, logs=None):
        _swap_averages(self.model)


class Follow(keras.callbacks.Callback):
    """An audit: writes the accuracy on another split after every epoch to the history, and selects nothing."""

    def __init__(self, split, *, name, batch_size):
        super().__init__()
        self.name, self.count = name, len(split)
        self.images = evaluation_pipeline(split, batch_size=batch_size)

    def on_epoch_end(self, epoch, logs=None):
        # As NumPy arrays, since other backends can't read TensorFlow's tensors.
        batches = ((images.numpy(), labels.numpy()) for images, labels in self.images)
        with averaged(self.model):
            right = sum(np.sum(self.model.predict_on_batch(x).argmax(axis=-1) == y) for x, y in batches)
        logs[self.name] = float(right) / self.count


class Recorder(keras.callbacks.Callback):
    """Adds each epoch to the history, remembers which was best on val, and saves what resuming needs."""

    def __init__(self, progress, resume, *, stage):
        super().__init__()
        self.progress, self.resume, self.stage = progress, resume, stage

    def on_train_begin(self, logs=None):
        self.mark, self.cpu_mark = time.perf_counter(), time.process_time()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):  # a running mean: once it is not finite it stays so
            self.fail(f"The loss became {logs['loss']} in step {batch + 1} of {self.params['steps']}")

    def fail(self, what):
        """Ends the run: what happened and where, likely causes, and which weights are kept."""
        kept = f"The best weights so far stay in {self.resume.best(self.progress.best_epoch)}."
        raise RunFailedError(
            f"{what}, epoch {self.epoch + 1}, stage {self.stage} (learning rate {self.rate:.3g}). Likely causes: too "
            "high a learning rate (`--learning-rate`) or 16-bit overflow (`--precision float32`). "
            + (kept if self.progress.epochs else "No epoch had been finished.")
        )

    def on_epoch_end(self, epoch, logs=None):
        # From mark to mark: tracing the first step, validation and saving all count.
        progress, before, self.mark = self.progress, self.mark, time.perf_counter()
        seconds = self.mark - before
        cpu_before, self.cpu_mark = self.cpu_mark, time.process_time()
        row = {
            **{name: float(value) for name, value in logs.items()},
            "epoch": epoch + 1,
            "stage": self.stage,
            "learning_rate": self.rate,  # at the epoch's start; at the end of the last one schedules are at zero
            "seconds": round(seconds, 3),
        }
        if not math.isfinite(row["val_loss"]):
            self.fail(f"The loss on val became {row['val_loss']} after the last step")
        for name, value in row.items():
            progress.history.setdefault(name, []).append(value)
        progress.epochs = epoch + 1
        progress.seconds += seconds
        progress.cpu_seconds += self.cpu_mark - cpu_before
        if (score := (row["val_accuracy"], -row["val_loss"])) > tuple(progress.best):
            progress.best, progress.best_epoch = score, epoch + 1
        self.resume.save(self.model, progress)


class Sparse(keras.callbacks.Callback):
    """Holds a share of the trained kernels' weights at zero: the smallest, of all layers together.

    Pruning by magnitude (Han et al., arXiv:1506.02626), once, before the first step. In a resumed run the smallest ones
    are those that are zero already. A share of None holds no weight.
    """

    def __init__(self, share):
        super().__init__()
        self.share = share

    def on_train_begin(self, logs=None):
        self.kept = {}
        if self.share is None:
            return
        layers = [layer for layer in self.model.layers if layer.trainable and hasattr(layer, "kernel")]
        sizes = {layer.name: np.abs(keras.ops.convert_to_numpy(layer.kernel)) for layer in layers}
        everything = np.concatenate([size.ravel() for size in sizes.values()])
        last = max(0, round(self.share * everything.size) - 1)  # in order of size, the last one that is not kept
        bound = np.partition(everything, last)[last]
        self.kept = {name: (size > bound).astype("float32") for name, size in sizes.items()}
        self.hold()

    def on_train_batch_end(self, batch, logs=None):
        if self.kept:  # reading the model costs JAX a copy of its state
            self.hold()

    def hold(self):
        """Sets the weights that are not kept to zero."""
        model = self.model  # on JAX, reading it brings the variables up to date
        for name, mask in self.kept.items():
            kernel = model.get_layer(name).kernel
            kernel.assign(kernel * mask)


class Patience(keras.callbacks.Callback):
    """Ends training when val has seen no new best for some epochs; see `Training.patience`.

    Keras' `EarlyStopping` counts from the start of each `fit`. This one reads `Progress`, so a resumed run ends where
    the unbroken one would.
    """

    def __init__(self, progress, training):
        super().__init__()
        self.progress, self.training = progress, training

    def on_epoch_end(self, epoch, logs=None):
        if waited_enough(self.progress, self.training):
            self.model.stop_training = True


def waited_enough(progress, training):
    """Whether the run has had as many epochs without a new best on val as its recipe allows."""
    return training.patience is not None and progress.epochs - progress.best_epoch >= training.patience


def progress_bar(total, done, **named):
    """A bar that is shown only in a terminal, and removed at the end."""
    return tqdm(total=total, initial=done, disable=None, leave=False, dynamic_ncols=True, **named)


class Report(keras.callbacks.Callback):
    """Updates a bar over the steps of the whole run, and prints one line per epoch."""

    def __init__(self, bar, progress, *, epochs):
        super().__init__()
        self.bar, self.progress, self.epochs = bar, progress, epochs

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        row = {name: values[-1] for name, values in self.progress.history.items()}
        left = (self.epochs - row["epoch"]) * row["seconds"]
        self.bar.write(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  "
            f"val_loss {row['val_loss']:.4f}  val_accuracy {row['val_accuracy']:.4f}  rate {row['learning_rate']:.2e}  "
            f"{row['seconds']:.0f} s  {time_left(left)}",
            file=sys.stdout,
        )
        sys.stdout.flush()


def time_left(seconds):
    """The time left of a run, and what a study runs after it: 'about 3 min left; behind this run: ...'."""
    study = f"; behind this run: {ahead}" if (ahead := os.environ.get(AHEAD)) else ""
    return f"about {duration(seconds)} left{study}"


def evaluation_batch(row, dataset):
    """The batch size for evaluation: about the same memory at every image size."""
    side = max((row.pixels, *dataset.image_shape[:-1]))  # features have no sides
    return max(32, round(500 * (32 / side) ** 2))


def fit(model, row, dataset, training, *, seed, resume, progress, callbacks=(), audits=()):
    """Trains a model through its stages, continuing from `progress`, and leaves it with the selected weights.

    Args:
        model: from `zoo.build`, at its initial weights; returns logits.
        row: the model's `zoo.ModelSpec`.
        dataset: `data.base.Dataset`.
        training: `config.Training`.
        seed: of order, augmentation and dropout.
        resume: `Resume`.
        progress: `Progress` from `resume.load`; updated in place.
        callbacks: Keras callbacks; at an epoch's end they run after `progress` has been updated.
        audits: callbacks that run first; what they add to the epoch's `logs` goes into the history.
    """
    if progress.epochs:
        model.load_weights(resume.last(progress.epochs))
    keywords = {"seed": seed, "resume": resume, "progress": progress, "callbacks": callbacks, "audits": audits}
    first = 0
    with fused_kernels(model):
        for number, stage in enumerate(training.stages, start=1):
            if progress.epochs < first + stage.epochs and not waited_enough(progress, training):
                if training.ema and progress.epochs == first > 0:  # Keras ends a `fit` by keeping the averages
                    model.load_weights(resume.last(first))
                _fit_stage(model, row, dataset, training, number=number, first=first, **keywords)
            first += stage.epochs
    if progress.epochs < training.epochs:
        print(f"ended after epoch {progress.epochs}: no new best on val for {training.patience} epochs")
    resume.load_best(model, progress)


def make_variables(model):
    """Creates a compiled model's optimiser slots and metrics. In the first step, they would have it traced twice."""
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, np.zeros(1, "int32"), np.zeros((1, model.output_shape[-1]), "float32"))
    model.reset_metrics()


def class_weights(labels, *, classes):
    """Weights that make all classes count alike in the loss: images / (classes * images of the class), by label.

    scikit-learn's 'balanced' (`compute_class_weight`); the mean over the images is 1, so learning rates keep their
    meaning. Classes without a training image do not count as classes.
    """
    counts = np.bincount(labels, minlength=classes)
    there = np.count_nonzero(counts)
    return {label: len(labels) / (there * count) if count else 0.0 for label, count in enumerate(counts.tolist())}


def compile_stage(model, row, training, stage, *, steps):
    """Freezes and thaws a model as its row and a stage say, and compiles it with the stage's loss and optimiser.

    Args:
        model: from `zoo.build`.
        row: its `zoo.ModelSpec`.
        training: `config.Training`.
        stage: `config.Stage`, one of the recipe's or made from it.
        steps: over which the stage's schedule is spread.
    """
    set_trainable(model, row, freeze_backbone=stage.freeze_backbone)
    optimizer = make_optimizer(training, stage, steps=steps)
    model.compile(optimizer, CrossEntropy(training.label_smoothing), metrics=[Accuracy()])
    make_variables(model)


def training_images(row, dataset, training, *, seed, first_epoch, epochs):
    """The batches that a recipe trains on, from `first_epoch` to `epochs` (exclusive), see `train_pipeline`."""
    return train_pipeline(
        dataset.train,
        batch_size=training.batch_size,
        seed=seed,
        first_epoch=first_epoch,
        epochs=epochs,
        augmentation=row.augmentation,
        classes=len(dataset.class_names),
    )


def weights_in_loss(dataset, training):
    """The weight of each class in a recipe's loss, by label; None where all images count alike."""
    if training.class_weights != "balanced":
        return None
    return class_weights(dataset.train.labels, classes=len(dataset.class_names))


def _fit_stage(model, row, dataset, training, *, number, first, seed, resume, progress, callbacks, audits):
    """Trains the remaining epochs of one stage, which starts after `first` epochs."""
    stage = training.stages[number - 1]
    steps = steps_per_epoch(dataset.train, training.batch_size)
    compile_stage(model, row, training, stage, steps=steps * stage.epochs)
    if progress.epochs > first:
        model.load_weights(resume.last(progress.epochs))  # now with the optimiser's state
    end = first + stage.epochs
    images = training_images(row, dataset, training, seed=seed, first_epoch=progress.epochs, epochs=end)
    # Closed here, since Keras does not call `on_train_end` after an error, whose message a live bar would garble.
    with progress_bar(training.epochs * steps, progress.epochs * steps, unit="step") as bar:
        own = [Recorder(progress, resume, stage=number), Report(bar, progress, epochs=training.epochs)]
        own += [Averages(), Sparse(training.sparsity), Patience(progress, training)]
        model.fit(
            images,
            initial_epoch=progress.epochs,
            epochs=end,
            steps_per_epoch=steps,
            validation_data=evaluation_pipeline(dataset.val, batch_size=evaluation_batch(row, dataset)),
            callbacks=[Reseed(seed), *audits, *own, *callbacks],
            class_weight=weights_in_loss(dataset, training),
            shuffle=False,  # the pipeline has ordered them
            verbose=0,
        )
