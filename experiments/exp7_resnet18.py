"""Exp 7: how does a CNN of five convolutions compare with ImageNet's ResNet18, and what does selecting on test add?

Run      python experiments/exp7_resnet18.py
Result   see results/exp7*.md
Compare  exp4_scratch.py (a better small network), exp3_finetune.py (a larger pretrained one)

five_conv    conv 64, 64, pool, 128, 128, pool, 256, pool, each with BatchNorm and ReLU, dense 512, dropout 0.5; Adam
             1e-3, halved every ten of 30 epochs, batch 64; crops, flips, brightness and contrast. Published: 89.11%.
audit        the same, with test accuracy measured after every epoch: what does it add to choose the epoch on test, as
             the source did? It is labelled as an audit and selects nothing here.
resnet18     ImageNet weights at 224 pixels, the last residual stage and a linear head trained, Adam 1e-4, ten epochs.
             Published: 91.95%. Assumed: constant rate, batch 64, shifts and flips.
resnet18_32  the same network from scratch, with a stem for 32 pixels and every layer trained.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training

FIVE_CONV = Training(
    "five_conv", (Stage(30, 1e-3, schedule="step"),), batch_size=64, optimizer="adam", also_score="last", weights="none"
)
RESNET18 = Training(
    "resnet18_224", (Stage(10, 1e-4, schedule="constant"),), batch_size=64, optimizer="adam", also_score="last"
)
STEM_32 = {"backbone": "resnet18_32", "pixels": 32, "trainable": "all", "images_per_second": 40}
EXPERIMENT = Experiment(
    number=7,
    name="resnet18",
    variants={
        "five_conv": FIVE_CONV,
        "audit": replace(FIVE_CONV, also_score="epochs"),
        "resnet18": RESNET18,
        "resnet18_32": replace(RESNET18, override=STEM_32, stages=(Stage(10, 1e-3),), weights="none"),
    },
    published={"five_conv": {"test": 0.8911}, "audit": {"test": 0.8911}, "resnet18": {"test": 0.9195}},
    summary="selection",
)

if __name__ == "__main__":
    main(EXPERIMENT)
