"""How many images per second do saved models predict, compared with the same network in PyTorch?

Run: python benchmarks/predict.py [--full]
Ours is `inference.probabilities` of a saved and loaded model at the batch size that runs use. Theirs is the fastest of
several memory layouts and batch sizes in inference mode. Weights are random; this does not change the time. Models
that are the same network at inference are measured once. Test-time augmentation is compared with plain prediction.
"""

from dataclasses import dataclass

import measure
from measure import Implementation, Turn, judged, measured, ratio_of

LAYOUTS = measure.LAYOUTS[:2]


@dataclass(frozen=True)
class Comparison:
    """A model against its equal in PyTorch.

    Attributes:
        title: in the table.
        name: of the study's row and of PyTorch's network.
        images: in the full form.
        few: in the short one.
        batch_sizes: to try in PyTorch.
        target: least ratio to PyTorch.
        views: how many times as long test-time augmentation may take; None: the model's recipes have none.
    """

    title: str
    name: str
    images: int
    few: int
    batch_sizes: tuple[int, ...]
    target: float = 1.0
    views: float | None = None


COMPARISONS = (
    Comparison("8 predict, ResNet50 at 32 (frozen, fine-tuned)", "resnet50_finetune", 10_000, 1000, (32, 100, 500)),
    Comparison("8 predict, ResNet50 at 224", "resnet50_augment_224", 500, 64, (8, 16, 32)),
    Comparison("8 predict, scratch CNN", "scratch_cnn", 10_000, 1000, (32, 100, 500), 1.1, views=6.5),
)


def rows(full):
    """Every model of the zoo."""
    return [line for comparison in COMPARISONS for line in compared(comparison, full)]


def compared(comparison, full):
    """The rows of one model. A window is one pass over the images. The first of each is not timed."""
    count = comparison.images if full else comparison.few
    turns = {}
    for layout in LAYOUTS if measure.installed("torch") else ():
        implementation = Implementation(("torch_predict", comparison.name, layout, str(count)), images=count).ready()
        turns |= {f"PyTorch {layout}, batch {size}": Turn(implementation, str(size)) for size in comparison.batch_sizes}
    one_pass = {"rounds": 1, "seconds": 0.0, "lead": 1}
    with measure.fastest_turn(comparison.title, turns, **one_pass) as (best, turn, tried):
        ours = Implementation(("predict", comparison.name, str(count)), images=count)
        turns = {"ours": Turn(ours)} | ({"theirs": turn} if turn else {})
        turns |= {"views": Turn(ours, "views")} if comparison.views else {}
        try:
            speeds = measure.rounds_of(turns, rounds=5 if full else 3, seconds=0.0, lead=0)
            failure = ours.failure
        finally:
            ours.close()
    theirs = speeds.get("theirs", [])
    against = judged(ratio_of(speeds["ours"], theirs), comparison.target, of="PyTorch")
    lines = [measured(comparison.title, f"the fastest: {best}", theirs)] if theirs else []
    ours = measured(comparison.title, f"probabilities of {count:,} images", speeds["ours"], note=failure, **against)
    return [*tried, *lines, ours, *augmented(comparison, speeds)]


def augmented(comparison, speeds):
    """The row of test-time augmentation, if there is one."""
    if comparison.views:
        ratio = ratio_of(speeds["ours"], speeds["views"])  # of speeds: how many times as long it takes
        met = None if ratio is None else ratio <= comparison.views
        judged = {"ratio": ratio, "target": f"at most {comparison.views:g} x the plain time", "met": met}
        yield measured(comparison.title, "mean over six augmented views", speeds["views"], **judged)


if __name__ == "__main__":
    measure.main(__doc__, rows)
