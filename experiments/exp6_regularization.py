"""Exp 6: does regularisation close the gap between train and test, or only seem to?

Run      python experiments/exp6_regularization.py
Result   see results/exp6*.md
Compare  exp4_scratch.py (a better network and recipe)

simple       conv 32, pool, conv 64, pool, dense 128; Adam, 25 epochs. Published: train 97%, test about 72%, overfitting
             after epoch 6. Assumed: 'same' padding, [0, 1] scaling, rate 1e-3, batch 64.
regularized  the same with BatchNorm after each convolution, dropout 0.5, flips and crops. Published: train 65%, test
             about 72%, "gap -7%". Assumed: dropout before the dense layer, chosen on val; after it, nearly all hidden
             units stop firing. The source does not state which model its accuracies by class belong to.
batch_norm, dropout, flip_crop  one technique each.

The gap is shown in both ways: by the running metric, and for the final weights in inference mode on plain images.
"""

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training


def simple(**columns):
    stages = (Stage(epochs=25, learning_rate=1e-3, schedule="constant"),)
    return Training("simple_cnn", stages, columns, batch_size=64, optimizer="adam", also_score="last")


NORM, DROPOUT, FLIP_CROP = {"backbone": "simple_norm"}, {"head": "dense128_dropout"}, {"augmentation": ("crop", "flip")}
CLASSES = {"frog": 0.80, "airplane": 0.84, "cat": 0.53, "dog": 0.63}
EXPERIMENT = Experiment(
    number=6,
    name="regularization",
    variants={
        "simple": simple(),
        "batch_norm": simple(**NORM),
        "dropout": simple(**DROPOUT),
        "flip_crop": simple(**FLIP_CROP),
        "regularized": simple(**NORM, **DROPOUT, **FLIP_CROP),
    },
    published={"simple": {"train": 0.97, "test": 0.72}, "regularized": {"train": 0.65, "test": 0.72}},
    published_classes={"simple": CLASSES, "regularized": CLASSES},
    summary="gap",
)

if __name__ == "__main__":
    main(EXPERIMENT)
