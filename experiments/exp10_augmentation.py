"""Exp 10: which augmentation helps a small CNN from scratch?

Run      python experiments/exp10_augmentation.py
Result   not yet run
Compare  exp4_scratch.py (the same network; its recipe smooths labels), exp8_cnn_variants.py (a plainer network)

shift_flip  the baseline: shifts by up to two pixels, mirrored in every other epoch; experiment 4's recipe without label
            smoothing and test-time augmentation. Every other variant changes one thing, most of them by one step more.
none, cutout  no augmentation; a grey square (arXiv:1708.04552).
mixup, cutmix  two images and their labels mixed (arXiv:1710.09412, arXiv:1905.04899).
rand_augment, aug_mix  several operations drawn for each image (arXiv:1909.13719, arXiv:1912.02781).
label_smoothing  0.2, as in experiment 4: what mixing does to labels, without touching images.

`cifar-keras augmentations` draws what each step does. `--backbone resnet18_32` trains ResNet18 in place of the CNN.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training

BASE = Training(
    "scratch_cnn", (Stage(15, 0.16, schedule="linear"),), batch_size=500, optimizer="muon", weight_decay=2e-6
)
STEPS = ("shift", "alternating_flip")
MORE = ("cutout", "mixup", "cutmix", "rand_augment", "aug_mix")
EXPERIMENT = Experiment(
    number=10,
    name="augmentation",
    variants={"shift_flip": BASE, "none": replace(BASE, override={"augmentation": ()})}
    | {step: replace(BASE, override={"augmentation": (*STEPS, step)}) for step in MORE}
    | {"label_smoothing": replace(BASE, label_smoothing=0.2)},
    summary="effects",
    any_backbone=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
