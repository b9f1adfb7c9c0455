"""`cifar-keras augmentations`: what each augmentation does to the same eight images."""

from pathlib import Path

import numpy as np

from cifar_keras.data import load
from cifar_keras.data.augment import STEPS, augmented
from cifar_keras.data.base import stratified
from cifar_keras.plotting import rows_of_images

SHOWN = 8


def run(dataset, *, root, seed=0, out=None, **loading):
    """Draws a row of images for each step of `augment.STEPS`, below the images as they are.

    Args:
        dataset: as `--dataset`.
        root: folder that holds `results/`.
        seed: of the draws, those of a run's first epoch.
        out: path of the PNG; None: `results/figures/augmentations_<dataset>.png`.
        loading: as for `data.load`.
    Returns: exit code 0.
    """
    data = load(dataset, **loading)
    chosen = stratified(data.train.labels, min(SHOWN, len(data.train)), seed=0)
    images = np.stack([data.train.images[int(index)] for index in chosen])
    seeds = np.stack([np.full(len(chosen), seed), np.zeros(len(chosen), int), chosen], axis=-1).astype("int32")
    rows = {"as they are": images} | {name: augmented(images, seeds, (name,)).numpy() for name in STEPS}
    path = Path(out or Path(root) / "results" / "figures" / f"augmentations_{data.slug}.png")
    rows_of_images(rows, path, title=f"{data.label}: {len(chosen)} training images, each step alone, seed {seed}")
    print(path)
    return 0
