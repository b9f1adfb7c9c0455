"""The learning-rate range test (Smith, arXiv:1506.01186, section 3.3): the rate rises from step to step.

Smith raises it linearly and watches accuracy. This is fastai's form: the rate rises exponentially, the training loss of
each step is watched, and the test ends where it diverges. Nothing is written.
"""

import dataclasses
import math
from dataclasses import dataclass

import keras
import numpy as np

from cifar_keras.data.pipeline import steps_per_epoch
from cifar_keras.models.fused import fused_kernels
from cifar_keras.training.train import (
    Reseed,
    Sparse,
    compile_stage,
    progress_bar,
    training_images,
    weights_in_loss,
)

BETA = 0.8  # of the moving average: about five steps count, and twice as many for `centred`
DIVERGED = 4.0  # times the lowest smoothed loss: there the test ends
EDGE = 5  # steps at either end that suggest nothing: their neighbours are on one side only
SMALLEST = 2 * EDGE + 10  # steps of a test
CLEAR = 1.5  # times the scatter of single losses: by so much a loss falls that does not merely vary


@dataclass(frozen=True)
class Suggestion:
    """Where to start looking for a stage's peak rate.

    Attributes:
        steepest: the rate at which the smoothed loss falls fastest, by the rate's logarithm.
        below_minimum: a tenth of the rate at the lowest moving average.
        still_falling: whether the loss is lowest in the last steps, so that both may be too small.
    """

    steepest: float
    below_minimum: float
    still_falling: bool


def rising(first, last, steps):
    """The rates of a test, by equal factors: float64 `(steps,)`, both ends included."""
    return np.geomspace(first, last, steps)


def smoothed(losses, beta=BETA):
    """The exponential moving average after each step: float64 `(steps,)`.

    Its bias is corrected as in Adam (arXiv:1412.6980, section 3): equal losses stay as they are from the first step on.

    Args:
        losses: float `(steps,)`.
        beta: what remains of a loss's weight after each step, in [0, 1).
    """
    total, weight, means = 0.0, 0.0, []
    for loss in losses:
        total, weight = beta * total + loss, beta * weight + 1
        means.append(total / weight)
    return np.array(means)


def centred(losses, beta=BETA):
    """The moving average of the moving average, taken backwards: float64 `(steps,)`.

    One alone lags behind by `beta / (1 - beta)` steps, which would suggest too high a rate; the second moves it back.
    So that a diverging end does not reach back, no loss after the minimum counts more than the highest before it.
    """
    losses = np.asarray(losses, "float64")
    lowest = int(np.argmin(smoothed(losses, beta)))
    capped = np.minimum(losses, losses[: lowest + 1].max())
    return smoothed(smoothed(capped, beta)[::-1], beta)[::-1]


def diverged(losses):
    """Whether the last loss is not finite, or the moving average is `DIVERGED` times its minimum."""
    if not math.isfinite(losses[-1]):
        return True
    means = smoothed(losses)
    return bool(means[-1] > DIVERGED * means.min())


def suggested(rates, losses):
    """What a curve suggests.

    Args:
        rates: float `(steps,)`, rising.
        losses: float `(steps,)`, finite.
    Returns: `Suggestion`; None if there are too few steps, or if the smoothed loss never falls by more than `CLEAR`
        times the standard deviation of single losses about it. Of losses that only vary, under 1% seem to fall.
    """
    if len(losses) < SMALLEST:
        return None
    curve = centred(losses)
    bottom = EDGE + int(np.argmin(curve[EDGE:]))
    scatter = np.std((losses - curve)[: bottom + 1])
    if curve[:EDGE].mean() - curve[bottom] <= CLEAR * scatter:
        return None
    slopes = np.gradient(curve, np.log(rates))
    end = max(EDGE + 1, min(bottom + 1, len(losses) - EDGE))
    steepest = EDGE + int(np.argmin(slopes[EDGE:end]))
    lowest = int(np.argmin(smoothed(losses)))  # where the loss soars, `centred` rises too early
    return Suggestion(float(rates[steepest]), float(rates[lowest]) / 10, bottom >= len(losses) - EDGE)


class RangeTest(keras.callbacks.Callback):
    """Sets the rate before each step, keeps the batch's loss after it, and ends training with the rates or the loss.

    Args:
        rates: float `(steps,)`, one per step.
        bar: from `train.progress_bar`.
    """

    def __init__(self, rates, bar):
        super().__init__()
        self.rates, self.bar, self.losses = rates, bar, []

    def on_train_batch_begin(self, batch, logs=None):
        model = self.model
        model.optimizer.learning_rate = float(self.rates[len(self.losses)])
        model.reset_metrics()  # what Keras reports is the mean since the last reset, else since the epoch's start

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))
        self.bar.update()
        if len(self.losses) == len(self.rates) or diverged(self.losses):
            self.model.stop_training = True


def range_test(model, row, dataset, training, *, stage, rates, seed):
    """Trains one stage of a recipe for one step at each rate, until the loss diverges.

    Images, augmentation, loss, optimiser and kernels are those of a run that begins this stage. Only the schedule is
    replaced. A backbone that is frozen computes each batch, where a run would store its features. The optimiser's
    multiples of the rate (`optim.Muon`) stay as the recipe has them, so all its rates rise together.

    Args:
        model: from `job.built`, at its initial weights; trained afterwards, and of no use.
        row: its `zoo.ModelSpec`.
        dataset: `data.base.Dataset`.
        training: `config.Training`.
        stage: number of the stage, from 1.
        rates: float `(steps,)`, from `rising`.
        seed: of order, augmentation and dropout.
    Returns: `(rates, losses)` of the steps whose loss is finite: float64 `(n,)` each.
    """
    first = sum(earlier.epochs for earlier in training.stages[: stage - 1])
    epochs = first + math.ceil(len(rates) / (steps := steps_per_epoch(dataset.train, training.batch_size)))
    constant = dataclasses.replace(training.stages[stage - 1], schedule="constant", warmup=0.0)
    with fused_kernels(model), progress_bar(len(rates), 0, unit="step") as bar:
        compile_stage(model, row, training, constant, steps=len(rates))
        test = RangeTest(rates, bar)
        model.fit(
            training_images(row, dataset, training, seed=seed, first_epoch=first, epochs=epochs),
            initial_epoch=first,
            epochs=epochs,
            steps_per_epoch=steps,
            callbacks=[Reseed(seed), Sparse(training.sparsity), test],
            class_weight=weights_in_loss(dataset, training),
            shuffle=False,  # the pipeline has ordered them
            verbose=0,
        )
    losses = np.array(test.losses)
    finite = np.isfinite(losses)  # all but perhaps the last
    return rates[: len(losses)][finite], losses[finite]
