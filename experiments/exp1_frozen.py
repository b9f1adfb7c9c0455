"""Exp 1: how far does a frozen ImageNet ResNet50 get on 32-pixel images?

Run      python experiments/exp1_frozen.py
Result   best, efficientnet_lite0: 51.4% of 10,000 test images [51.2, 51.6] sd 0.08, 3 seeds, CIFAR-10,
         Intel(R) Xeon(R) Processor (AMX), 2 cores
         published, efficientnet_lite0: 48.8% of 10,000 test images [47.8, 49.8], 1 seed, CIFAR-10, Intel(R)
         Xeon(R) Processor (AMX), 2 cores
Compare  exp2_augment_224.py (larger images), exp3_finetune.py (every layer trained), exp4_scratch.py

best       caffe scaling, with which the weights were trained; the backbone's BatchNorm in inference mode; a linear
           probe after a normalisation (arXiv:2111.06377, A.1).
published  a student study's 0.46/0.43/0.42. It states normalised inputs and 32 pixels. We assume [0, 1] scaling, no
           augmentation, and `config.tutorial`: plain linear head, Adam at 1e-3, batch 32, 10 epochs.
"""

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training, tutorial

EXPERIMENT = Experiment(
    number=1,
    name="frozen",
    variants={
        "best": Training(
            model="resnet50_frozen",
            stages=(Stage(epochs=10, learning_rate=2e-3),),
            weight_decay=1e-2,
        ),
        "published": tutorial("resnet50_frozen", scaling="unit"),
    },
    published={"train": 0.46, "val": 0.43, "test": 0.42},
    part_of_study=True,
    any_backbone=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
