"""Exp 8: what makes a plain CNN good, one change at a time?

Run      python experiments/exp8_cnn_variants.py --dataset cifar10
Result   see results/exp8*.md
Compare  exp6_regularization.py (three techniques together), exp4_scratch.py (a better network and recipe)

baseline    four 3x3 convolutions of 32, 64, 128 and 128 channels, BatchNorm, ReLU, a linear head on the mean; SGD with
            momentum, the rate halved twice, crops and flips. Its weight decay is L2 of 5e-4 under momentum 0.9.
one_cycle   a linear rise over 30% of the steps to twice the rate, then cosine decay (arXiv:1708.07120, rate alone).
ema         the moving average of the weights over about 500 steps is judged and kept.
adam, adamw  rate 1e-3; Adam has no weight decay, AdamW the same share a step as the baseline.

The claims are a student study's, which left its numbers blank and states no recipe. They are tested on this one.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Claim, Experiment, Stage, Training

BASE = Training("plain_cnn", (Stage(15, 0.05, schedule="step"),), optimizer="sgd", weight_decay=5e-3)
CONV8, WIDE, JITTER = {"backbone": "conv8"}, {"backbone": "conv4_double"}, ("crop", "flip", "colour_jitter")
COLUMNS = {"depth_6": {"backbone": "conv6"}, "depth_8": CONV8, "kernel_5": {"backbone": "conv4_5x5"}}
COLUMNS |= {"width_half": {"backbone": "conv4_half"}, "width_double": WIDE, "no_norm": {"backbone": "conv4_no_norm"}}
COLUMNS |= {"dropout": {"head": "plain_dropout"}, "no_augmentation": {"augmentation": ()}}
COLUMNS |= {"jitter": {"augmentation": JITTER}}


def recipe(peak=0.05, schedule="step", warmup=0.0, **more):
    return replace(BASE, stages=(Stage(15, peak, schedule=schedule, warmup=warmup),), **more)


RECIPES = {
    "adam": recipe(1e-3, optimizer="adam", weight_decay=0.0),
    "adamw": recipe(1e-3, optimizer="adamw", weight_decay=0.25),
    "cosine": recipe(schedule="cosine"),
    "one_cycle": recipe(0.1, "cosine", warmup=0.3),
    "constant": recipe(schedule="constant"),
    "no_decay": recipe(weight_decay=0.0),
    "early_stopping": recipe(patience=2),
    "ema": recipe(ema=0.998),
}
CLAIMS = (
    Claim("Deeper networks overfit on CIFAR-100.", ("depth_6", "depth_8"), "worse", dataset="cifar100"),
    Claim("Augmentation helps.", ("no_augmentation",), "worse"),
    Claim("The schedule and weight decay matter most.", ("constant", "no_decay"), "most"),
)
NETWORKS = {name: replace(BASE, override=columns) for name, columns in COLUMNS.items()}
EXPERIMENT = Experiment(8, "cnn_variants", {"baseline": BASE} | NETWORKS | RECIPES, summary="effects", claims=CLAIMS)

if __name__ == "__main__":
    main(EXPERIMENT)
