"""Exp 9: what does a network trained on CIFAR-10 know about CIFAR-100?

Run      python experiments/exp9_cifar100_transfer.py --dataset cifar100 --weights model_cp/exp4.model.keras
Result   see results/exp9*.md
Compare  exp4_scratch.py (which trains the network that is transferred)

finetune, probe  a new head; every layer is trained, or the head alone on the frozen backbone.
scratch          the same network from random weights, for as many epochs on the same images; ignores `--weights`.
*_50, *_250, *_1000  the same with 50, 250 or 1,000 labelled images per class, drawn anew for every seed; val and test
                 stay whole. A size that no class has is left out (CIFAR-100 has 450 training images of each).

Any pair of datasets works: `--weights` names a model of exp4, `--dataset` and `--classes` what it is transferred to.
`--backbone efficientnet_lite0 --pixels 96` transfers ImageNet's weights instead, at a size at which they work.
The table, the figure (accuracy against labelled images) and the paired intervals go to results/exp9*.md.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training

SCRATCH = Training(
    "transferred_cnn",
    stages=(Stage(epochs=12, learning_rate=0.16, schedule="linear"),),
    batch_size=500,
    optimizer="muon",
    weight_decay=2e-6,
    label_smoothing=0.2,
    weights="none",
)
METHODS = {
    "finetune": replace(SCRATCH, weights=None, stages=(Stage(epochs=12, learning_rate=0.08, schedule="linear"),)),
    "probe": Training("transferred_cnn", (Stage(12, 2e-3),), {"trainable": "head"}, weight_decay=1e-2, views=4),
    "scratch": SCRATCH,
}
EXPERIMENT = Experiment(
    number=9,
    name="cifar100_transfer",
    variants=METHODS
    | {f"{name}_{count}": replace(METHODS[name], per_class=count) for count in (50, 250, 1000) for name in METHODS},
    summary="transfer",
    about="cifar100",
    any_backbone=True,
)

if __name__ == "__main__":
    main(EXPERIMENT)
