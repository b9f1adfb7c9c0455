"""Exp 12: how far do networks that papers report on CIFAR-10 get in 140 minutes on two CPU cores?

Run      python experiments/exp12_architectures.py --variant wrn_16_4
Result   not yet run
Compare  exp4_scratch.py (a network made for few epochs), exp7_resnet18.py (ResNet18 with ImageNet's weights)

resnet18, resnet34  He et al., arXiv:1512.03385, with a stem for 32 pixels: 7 and 3 epochs. The paper has no figure for
                    these two on CIFAR-10.
densenet            DenseNet-BC, 100 layers, growth rate 12 (Huang et al., arXiv:1608.06993): 4 epochs. The paper
                    reports 95.5% after 300.
wrn_16_4            wide ResNet (Zagoruyko and Komodakis, arXiv:1605.07146): 10 epochs. The paper reports 95.0%
                    after 200.
wrn_28_10           the same with 36 million weights, for a GPU: 200 epochs as in the paper, which reports 96.0%. Two
                    cores need about three hours for one epoch.

All train from random weights with crops (those of wide ResNets filled by reflection) and flips, batch 128 and SGD at
0.1, as the wide ResNets did. Their rate fell in steps; here it follows a cosine. The papers had all 50,000 images.
"""

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training


# Wide ResNets add L2 of 5e-4 to the gradient, DenseNet 1e-4, and momentum 0.9 multiplies it by ten; decay is decoupled.
def recipe(model, epochs, *, decay=5e-3):
    return Training(model, (Stage(epochs, 0.1),), optimizer="sgd", weight_decay=decay)


EXPERIMENT = Experiment(
    number=12,
    name="architectures",
    variants={
        "resnet18": recipe("resnet18_32", 7),
        "resnet34": recipe("resnet34_32", 3),
        "densenet": recipe("densenet_bc_100_12", 4, decay=1e-3),
        "wrn_16_4": recipe("wrn_16_4", 10),
        "wrn_28_10": recipe("wrn_28_10", 200),
    },
    summary="effects",
    published={"densenet": {"test": 0.9549}, "wrn_16_4": {"test": 0.9498}, "wrn_28_10": {"test": 0.96}},
)

if __name__ == "__main__":
    main(EXPERIMENT)
