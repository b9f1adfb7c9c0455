"""`cifar-keras find-lr`: the loss of a recipe at ever higher learning rates, and a suggestion.

Only a figure is written: no record, no model, no features.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from cifar_keras.commands.study import EXPERIMENTS, SOME_FAILED, entry_named, experiments
from cifar_keras.config import BEST, ConfigError, RunFailedError
from cifar_keras.job import built, headline, prepare
from cifar_keras.plotting import BLUE, GREEN, GREY, ORANGE, figure_of, logarithmic, without_frame
from cifar_keras.training.lr_range import BETA, DIVERGED, SMALLEST, centred, range_test, rising, suggested
from cifar_keras.training.train import Progress

BELOW, ABOVE = 1e-4, 30.0  # the first and the last rate by default, as multiples of the recipe's
MOVES = {
    "muon": "the rate of the convolution kernels; those of head, biases and norms keep the recipe's ratio to it",
    "adam": "the rate of all trained weights",
    "adamw": "the rate of all trained weights, and with it their decay",
    "sgd": "the rate of all trained weights, and with it their decay",
}


@dataclass(frozen=True)
class Asked:
    """What the command line asks of the test.

    Attributes:
        first: the first rate; None: the recipe's times `BELOW`.
        last: the last rate; None: the recipe's times `ABOVE`.
        steps: training steps.
        stage: number of the stage, from 1; None: the last.
    """

    first: float | None = None
    last: float | None = None
    steps: int = 100
    stage: int | None = None


def run(name, options, asked, *, out=None, folder=EXPERIMENTS):
    """Runs the test, prints what it suggests beside the recipe's own rate, and draws the curve.

    Args:
        name: of the experiment, as for `study.entry_named`.
        options: `options.Options` with a range of seeds, of one; without a variant: `best`, or else the first.
        asked: `Asked`.
        out: path of the PNG; None: `results/figures/<run name>_find_lr.png` below `options.root`.
        folder: with the experiments.
    Returns: exit code; 1 if there is nothing to suggest.
    Raises: ConfigError for what does not fit; RunFailedError if no step has a finite loss or the figure can't be
        written.
    """
    if out is not None and Path(out).suffix.lower() != ".png":
        raise ConfigError(f"`--out` must end in .png. Received: {out!r}.")
    experiment = entry_named(name, experiments(folder)).experiment
    job = prepare(experiment, resolved(experiment, options))
    training = job.config.training
    stage = len(training.stages) if asked.stage is None else asked.stage
    rates = planned(training, stage, asked)
    recipe = training.stages[stage - 1].learning_rate
    print(headline(job, Progress(job.config.identity)))
    print("\n".join(plan(training, stage, rates)), flush=True)
    rates, losses = range_test(
        built(job), job.row, job.dataset, training, stage=stage, rates=rates, seed=job.config.seed
    )
    if not len(losses):
        raise RunFailedError(
            "The loss of the first step was not finite, before any weight had moved. Try `--precision float32`."
        )
    found = suggested(rates, losses)
    kind = "find_lr" if stage == len(training.stages) else f"find_lr_stage{stage}"
    path = Path(out or job.paths.figure(kind))
    draw(rates, losses, path, found=found, recipe=recipe, title=title(job, stage))
    print("\n".join(conclusion(rates, losses, found, recipe=recipe, steps=asked.steps)))
    print(path)
    return 0 if found else SOME_FAILED


def resolved(experiment, options):
    """The options with one variant and one seed; whatever earlier runs have left does not matter.

    Raises: ConfigError for an unknown variant or several seeds.
    """
    first = next(iter(experiment.variants))
    variant = experiment.current(options.variant or (BEST if BEST in experiment.variants else first))
    if variant not in experiment.variants:
        choices = ", ".join(experiment.variants)
        raise ConfigError(f"`--variant` must be one of {choices}. Received: {variant!r}.")
    if len(options.seed) != 1:
        raise ConfigError(f"`--seed` must be one seed. Received: {options.seed[0]}-{options.seed[-1]}.")
    return dataclasses.replace(options, variant=variant, seed=options.seed[0], fresh=True)


def planned(training, stage, asked):
    """The rates of the test: float64 `(steps,)`.

    Raises: ConfigError for a stage that the recipe lacks, too few steps, or rates that do not rise.
    """
    count = len(training.stages)
    if stage > count:
        have = "one stage" if count == 1 else f"{count} stages"
        raise ConfigError(f"`--stage` must be 1 to {count}: the recipe has {have}. Received: {stage}.")
    if asked.steps < SMALLEST:
        raise ConfigError(f"`--steps` must be at least {SMALLEST}, or there is no curve. Received: {asked.steps}.")
    recipe = training.stages[stage - 1].learning_rate
    first = recipe * BELOW if asked.first is None else asked.first
    last = recipe * ABOVE if asked.last is None else asked.last
    if first >= last:
        raise ConfigError(
            f"`--from` must be below `--to`. Received: {first:.3g} and {last:.3g} (by default they are the recipe's "
            f"rate, {recipe:.3g}, times {BELOW:g} and {ABOVE:g})."
        )
    return rising(first, last, asked.steps)


def plan(training, stage, rates):
    """The lines before the test: the stage, the rates, and what they move."""
    count = len(training.stages)
    which = f"stage {stage} of {count}, " if count > 1 else ""
    yield f"rate test: {which}{training.optimizer}, {len(rates)} steps from {rates[0]:.3g} to {rates[-1]:.3g}"
    yield f"varied: {MOVES[training.optimizer]}"
    if stage > 1:
        yield f"it starts from the initial weights; a run has trained stage {stage - 1} before"


def title(job, stage):
    """The figure's title: experiment, variant, stage and dataset."""
    config = job.config
    which = f", stage {stage} of {count}" if (count := len(config.training.stages)) > 1 else ""
    return f"{config.experiment}, {config.variant}{which}: {job.dataset.label}, {len(job.dataset.train):,} images"


def conclusion(rates, losses, found, *, recipe, steps):
    """The lines after the test. `found` is its `Suggestion` or None, `steps` the number that was planned."""
    if len(losses) < steps:
        yield (
            f"ended after step {len(losses)}, at the rate {rates[-1]:.3g}: the next loss was not finite, or the moving "
            f"average had reached {DIVERGED:g} times its minimum"
        )
    if found is None:
        advice = "Try a lower `--from`, a higher `--to` or more `--steps`."
        yield f"no suggestion: the smoothed loss never fell clearly. {advice}"
        return
    yield f"steepest descent    {found.steepest:.2g}"
    yield f"minimum / 10        {found.below_minimum:.2g}"
    yield f"the recipe's rate   {recipe:.2g}"
    if found.still_falling and len(losses) == steps:
        yield "the loss was still falling at the highest rate: both may be too low, try a higher `--to`"
    yield "A starting point, no more: train with some rates around it (`--learning-rate`), and let val decide."


def draw(rates, losses, path, *, found, recipe, title):
    """Draws the loss of each step and the smoothed loss against the rate, with the suggestions and the recipe's rate.

    Args:
        rates: float `(steps,)`.
        losses: float `(steps,)`.
        path: where the PNG goes.
        found: `Suggestion` or None.
        recipe: the recipe's own rate.
        title: experiment, variant, dataset.
    """
    curve = centred(losses)
    with figure_of(path, title, size=(9, 4.8)) as figure:
        panel = figure.add_subplot()
        panel.plot(rates, losses, ".", color=BLUE, alpha=0.35, label="loss of one batch")
        panel.plot(rates, curve, color=BLUE, linewidth=2, label=f"smoothed forwards, then backwards (beta {BETA:g})")
        marks = [("the recipe's rate", recipe, GREY, ":")]
        if found:
            marks.append(("steepest descent", found.steepest, ORANGE, "-"))
            marks.append(("minimum / 10", found.below_minimum, GREEN, "--"))
        for label, rate, colour, line in marks:
            panel.axvline(rate, color=colour, linestyle=line, linewidth=1.6, label=f"{label}: {rate:.2g}")
        seen = [*rates, *(rate for _, rate, _, _ in marks)]
        logarithmic(panel, min(seen) / 1.2, max(seen) * 1.2)
        low, high = min(losses), max(curve)  # a diverging end is cut off, else it would flatten all that comes before
        room = max(high - low, 1e-3)
        panel.set(xlabel="learning rate (log scale)", ylabel="training loss")
        panel.set_ylim(low - 0.1 * room, high + 0.35 * room)
        without_frame(panel, "both")
        panel.legend(fontsize=8, frameon=False, loc="best")
