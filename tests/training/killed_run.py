"""Exp 99: a run of two stages, seconds long, that says on stdout which phase it is in?

Run      python tests/training/killed_run.py --dataset FOLDER --deterministic --root DIR
Result   not yet run

`test_kill.py` starts this file and kills it.
"""

import dataclasses
import functools

from cifar_keras.utils import runtime

runtime.setup()

import keras  # noqa: E402

from cifar_keras import results, runner  # noqa: E402
from cifar_keras.cli import main  # noqa: E402
from cifar_keras.config import Experiment, Stage, Training  # noqa: E402
from cifar_keras.models.backbones import BACKBONES, Backbone  # noqa: E402
from cifar_keras.saved import artifacts  # noqa: E402
from cifar_keras.training import features, train  # noqa: E402

BEST = Training(
    "scratch_cnn",
    override={"backbone": "tiny", "head": "plain", "augmentation": ("shift", "flip")},
    stages=(Stage(2, 1e-2, freeze_backbone=True), Stage(3, 1e-2)),
    batch_size=32,
    optimizer="adamw",
    weight_decay=0.01,
    label_smoothing=0.1,
)
FROZEN = dataclasses.replace(
    BEST, stages=(Stage(4, 1e-2),), override={**BEST.override, "backbone": "dry", "trainable": "head"}, views=3
)
EXPERIMENT = Experiment(number=99, name="killed", variants={"best": BEST, "frozen": FROZEN})


def tiny(x, *, momentum):
    """Every kind of layer that has a state of its own."""
    return keras.layers.Dropout(0.3, name="dropout")(dry(x, momentum=momentum))


def dry(x, *, momentum):
    """The same without dropout, which leaves a pure function of the image."""
    x = keras.layers.Conv2D(6, 3, strides=4, name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=momentum, name="bn")(x)
    return keras.layers.Activation("relu", name="relu")(x)


def announced(owner, name, phase_of):
    """Has a function print its phase before and after."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def announcing(*arguments, **keywords):
        phase = phase_of(keywords)
        print(f"> {phase}", flush=True)
        value = function(*arguments, **keywords)
        print(f"< {phase}", flush=True)
        return value

    setattr(owner, name, announcing)


if __name__ == "__main__":
    BACKBONES.update(tiny=Backbone(tiny), dry=Backbone(dry))
    announced(runner, "prepare", lambda _: "data")
    announced(runner, "built", lambda _: "model")
    features.evaluation_batch = lambda *_: 8  # twenty blocks a view
    announced(features, "extracted", lambda _: "features")
    announced(train, "_fit_stage", lambda keywords: f"stage {keywords['number']}")
    announced(keras.Model, "evaluate", lambda _: "validation")  # what `fit` calls after an epoch
    announced(train.Resume, "save", lambda _: "epoch's state")
    announced(artifacts, "save", lambda _: "artifacts")
    announced(results, "write", lambda _: "results")
    main(EXPERIMENT)
