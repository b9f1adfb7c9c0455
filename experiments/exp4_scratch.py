"""Exp 4: how good is a small CNN from scratch, compared with a ResNet50 pretrained on ImageNet?

Run      python experiments/exp4_scratch.py
Result   best: 93.3% of 10,000 test images [92.8, 93.8], 1 seed, CIFAR-10, AMD EPYC, 2 cores
         best: 93.2% of 10,000 test images [92.8, 93.7] sd 0.17, 3 seeds, CIFAR-10, mixed_bfloat16, Intel(R)
         Xeon(R) Processor (AMX), 2 cores
         best: 90.2% of 10,000 test images [89.6, 90.8], 1 seed, CIFAR-10 (JPEG), 37 min, AMD EPYC (AVX-512),
         2 cores
         long: 94.7% of 10,000 test images [94.2, 95.1], 1 seed, CIFAR-10, mixed_bfloat16, 90 min, Intel(R)
         Xeon(R) Processor (AMX), 2 cores
         published: 86.2% of 10,000 test images [85.6, 86.9], 1 seed, CIFAR-10, Intel(R) Xeon(R) Processor
         (AVX-512), 2 cores
Compare  exp3_finetune.py (twelve times the parameters, pretrained)

best       the fast one, airbench's network and recipe (arXiv:2404.00498): whitening in the first layer, three groups of
           convolutions, label smoothing, alternating flip, Muon on convolution kernels, linear decay. Here it runs 15
           epochs instead of 8, with batch 500 instead of 2000, which gives a CPU more steps for the same arithmetic,
           and with a lower rate.
long       airbench96's network (github.com/KellerJordan/cifar10-airbench): twice as wide, three convolutions a group,
           and a shortcut around two of them. Its 20 epochs need five times the arithmetic. Images move twice as far
           and lose a square, because without that the network fits its training images closely.
published  a student study's 0.88/0.74/0.72. It states only that inputs are normalised. We assume the same network,
           [0, 1] scaling, no augmentation, no label smoothing, and `config.tutorial`: plain linear head, Adam at 1e-3,
           batch 32, 10 epochs.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training, tutorial, with_epochs

BEST = Training(
    model="scratch_cnn",
    stages=(Stage(epochs=15, learning_rate=0.16, schedule="linear"),),
    batch_size=500,
    optimizer="muon",
    weight_decay=2e-6,
    label_smoothing=0.2,
    test_time_augmentation=True,
)
FAR = ("far_shift", "alternating_flip", "cutout")
WIDE = {"backbone": "airnet_residual", "augmentation": FAR, "images_per_second": 40}
EXPERIMENT = Experiment(
    number=4,
    name="scratch",
    variants={
        "best": BEST,
        "long": replace(with_epochs(BEST, 20), override=WIDE),
        "published": tutorial("scratch_cnn", scaling="unit", augmentation=()),
    },
    published={"train": 0.88, "val": 0.74, "test": 0.72},
    part_of_study=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
