"""Exp 5: why did the published frozen ResNet50 get 0.42 at 32 pixels, and 0.20 at 224?

Run      python experiments/exp5_preprocessing.py
Result   see results/exp5*.md
Compare  exp1_frozen.py and exp2_augment_224.py (the recipes that these cells take apart)

A factorial of what the source leaves open: scaling to [0, 1] or the native scaling, with which the weights were trained
(caffe for ResNet50); images of 32 or 224 pixels; BatchNorm of the frozen backbone in inference mode or with the
statistics of each batch. Everything else is `config.tutorial` without augmentation. The table, the figure and the
paragraph go to results/exp5*.md. They name a cause only if the weights are ImageNet's. The published 0.20 also used
augmentation; no cell here does.
"""

from itertools import product

from cifar_keras.cli import main
from cifar_keras.config import NATIVE, Experiment, tutorial

FORWARD = {32: 200, 224: 24}  # images a second: nothing flows back through a frozen backbone


def cell(scaling, pixels, norm):
    columns = {"scaling": scaling, "pixels": pixels, "images_per_second": FORWARD[pixels]}
    return tutorial("resnet50_frozen", **columns, **({"frozen_norm": norm} if norm == "training" else {}))


CELLS = tuple(product(("unit", NATIVE), (32, 224), ("inference", "training")))
EXPERIMENT = Experiment(
    number=5,
    name="preprocessing",
    variants={f"{scaling}_{pixels}_{norm}": cell(scaling, pixels, norm) for scaling, pixels, norm in CELLS},
    published={"unit_32_inference": {"test": 0.42}, "unit_224_inference": {"test": 0.20}},
    summary="factorial",
    any_backbone=True,
    renamed={
        f"caffe_{pixels}_{norm}": f"native_{pixels}_{norm}" for scaling, pixels, norm in CELLS if scaling == NATIVE
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
