"""Exp 11: how small can the CNN get before it loses accuracy?

Run      python experiments/exp11_small_models.py --weights model_cp/exp4.model.keras
Result   not yet run
Compare  exp4_scratch.py (which trains the network that is made smaller)

prune_50 to prune_95  the smallest weights of the trained network set to zero, that share of them in all layers together
           (arXiv:1506.02626), and the others trained for five more epochs. Zeros make a file smaller once it is
           compressed. They make nothing faster: the same multiplications are done.
half, tenth  half the width, and a tenth of the weights, from scratch by experiment 4's recipe. These are faster.
distilled  the tenth, which learns from the logits of the trained network (arXiv:1503.02531): temperature 4, nine
           tenths of the loss.

`--weights` names the network that is pruned and that teaches; it must be one of experiment 4's `best`.
"""

from dataclasses import replace

from cifar_keras.cli import main
from cifar_keras.config import Experiment, Stage, Training

SCRATCH = Training(
    "compressed_cnn",
    (Stage(15, 0.16, schedule="linear"),),
    {"backbone": "airnet_tenth", "images_per_second": 900},
    batch_size=500,
    optimizer="muon",
    weight_decay=2e-6,
    label_smoothing=0.2,
    weights="none",
)
HALF = {"backbone": "airnet_half", "images_per_second": 500}
PRUNED = Training("compressed_cnn", (Stage(5, 5e-4, warmup=0.1),), batch_size=500, label_smoothing=0.2)
EXPERIMENT = Experiment(
    number=11,
    name="small_models",
    variants={f"prune_{100 * share:.0f}": replace(PRUNED, sparsity=share) for share in (0.5, 0.8, 0.9, 0.95)}
    | {"half": replace(SCRATCH, override=HALF), "tenth": SCRATCH}
    | {"distilled": replace(SCRATCH, weights=None, label_smoothing=0.0, distillation=(4.0, 0.9))},
)

if __name__ == "__main__":
    main(EXPERIMENT)
