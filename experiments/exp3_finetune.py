"""Exp 3: what do we gain if we train every layer of ResNet50?

Run      python experiments/exp3_finetune.py
Result   best, efficientnet_lite0: 82.5% of 10,000 test images [80.6, 84.4] sd 0.21, 2 seeds, CIFAR-10, 27
         min, Intel(R) Xeon(R) Processor (AMX), 2 cores
         published, efficientnet_lite0: 80.8% of 10,000 test images [80.0, 81.6], 1 seed, CIFAR-10, Intel(R)
         Xeon(R) Processor (AVX-512), 2 cores
Compare  exp1_frozen.py (the same backbone, frozen), exp4_scratch.py (no pretraining)

best       first the head alone, so that its random gradients don't spoil the backbone, then every layer at a lower
           rate with warm-up; BatchNorm's statistics follow with a momentum that fits the length of the run.
published  a student study's 0.85/0.74/0.72. It states normalised inputs, 32 pixels and every layer trainable. We
           assume [0, 1] scaling, no augmentation, every layer from the first step, and `config.tutorial`: plain
           linear head, Adam at 1e-3, batch 32, 10 epochs.
"""

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training, tutorial

EXPERIMENT = Experiment(
    number=3,
    name="finetune",
    variants={
        "best": Training(
            model="resnet50_finetune",
            stages=(
                Stage(epochs=2, learning_rate=2e-3, freeze_backbone=True),
                Stage(epochs=18, learning_rate=5e-4, warmup=0.1),
            ),
            weight_decay=2e-2,
        ),
        "published": tutorial("resnet50_finetune", scaling="unit", augmentation=()),
    },
    published={"train": 0.85, "val": 0.74, "test": 0.72},
    part_of_study=True,
    any_backbone=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
