"""Exp 2: what do 224 pixels and augmentation add to the frozen ResNet50?

Run      python experiments/exp2_augment_224.py
Result   best, efficientnet_lite0: 89.5% of 10,000 test images [88.8, 90.0], 1 seed, CIFAR-10, 41 min,
         Intel(R) Xeon(R) Processor (AMX), 2 cores
Compare  exp1_frozen.py (the same backbone at 32 pixels), exp3_finetune.py (every layer trained)

best       each image is shifted and mirrored at its own size, then resized inside the model to 224 pixels, the size
           that the backbone was trained on; caffe scaling, BatchNorm in inference mode, linear probe. Four views of
           each image go through the backbone once, and the ten epochs show them in turn. A new view in every epoch
           takes 2.5 times as long (`--views 10`; `benchmarks/views.py` measures what it adds).
published  a student study's 0.16/0.21/0.20, train below val. It states normalised inputs, augmentation and 224
           pixels. We assume [0, 1] scaling; shift, flip and colour jitter; and `config.tutorial`: plain linear head,
           Adam at 1e-3, batch 32, 10 epochs.
"""

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training, tutorial

EXPERIMENT = Experiment(
    number=2,
    name="augment_224",
    variants={
        "best": Training(
            model="resnet50_augment_224",
            stages=(Stage(epochs=10, learning_rate=2e-3),),
            weight_decay=1e-2,
            views=4,
        ),
        "published": tutorial("resnet50_augment_224", scaling="unit", augmentation=("shift", "flip", "colour_jitter")),
    },
    published={"train": 0.16, "val": 0.21, "test": 0.20},
    part_of_study=True,
    any_backbone=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
