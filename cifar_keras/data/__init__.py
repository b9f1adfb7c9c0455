"""Datasets by name: `load('cifar10')`, `load('cifar100')`, `load('shapes')`, `load('path/of/an/image/folder')`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_keras.config import ConfigError, Limits
from cifar_keras.data import cifar, folder, shapes
from cifar_keras.data.base import Dataset, Rows, Split, subset_slug
from cifar_keras.utils.paths import StrPath

__all__ = ["CIFAR10", "NAMES", "Dataset", "Rows", "Split", "load", "options_of", "published_apply"]

NAMES = (*cifar.ARCHIVES, *shapes.GENERATED)  # of the datasets that have one; the others are paths of folders
CIFAR10 = ("cifar10", "cifar10-jpeg")  # slugs of data that show CIFAR-10's images


def load(
    name: str,
    *,
    data_dir: StrPath | None = None,
    image_size: int | None = None,
    classes: str | None = None,
    limits: Limits | None = None,
    decoded_at: tuple[int, int] | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """Loads a dataset with its splits train, val and test; equal arguments give equal images in equal order.

    Args:
        name: 'cifar10', 'cifar100', 'shapes', 'shapes100', or the path of an image folder.
        data_dir: where the official CIFAR archive, or the folder unpacked from it, is looked for first.
        image_size: side in pixels, for folders and shapes; CIFAR images are 32 pixels wide.
        classes: names of those to keep, separated by commas; None keeps all.
        limits: the most images of each split; every class keeps its share.
        decoded_at: `(height, width)` of the images of a folder for a model that wants this size, see `folder.load`.
        skip_unreadable: of a folder, leave out damaged images; `Dataset.skipped` names them.
    Raises: ConfigError for an unknown name, and for data that are missing, damaged or not what they claim to be.
    """
    limits = limits or Limits()
    options: dict[str, Any] = {"image_size": image_size, "decoded_at": decoded_at, "skip_unreadable": skip_unreadable}
    if classes is not None:
        whole = load(name, data_dir=data_dir, **options)
        return whole.only(tuple(part.strip() for part in classes.split(","))).limited(limits)
    _check(name, image_size, skip_unreadable=skip_unreadable)
    if name in cifar.ARCHIVES:
        return cifar.load(name, data_dir=data_dir).limited(limits)
    if name in shapes.GENERATED:
        return shapes.load(name, image_size=image_size or 32, limits=limits)
    if Path(name).is_dir():
        return folder.load(name, **options).limited(limits)
    raise ConfigError(
        "`dataset` must be 'cifar10', 'cifar100', 'shapes', 'shapes100' or the path of an image folder. "
        f"Received: {str(name)!r}. A folder needs train/<class>/*.png|jpg."
    )


def published_apply(slug: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a source's figures may stand beside a run: it has the source's data, CIFAR-10, and its network.

    Args:
        slug: of the run's dataset.
        overrides: what its command line changed.
    """
    return slug in CIFAR10 and "backbone" not in overrides


def _check(name: str, image_size: int | None, *, skip_unreadable: bool) -> None:
    """Raises ConfigError for options that do not go with the dataset."""
    if image_size is not None and not 8 <= image_size <= 1024:
        raise ConfigError(f"`image_size` must be 8 to 1024 pixels. Received: {image_size}.")
    if name in cifar.ARCHIVES and image_size not in (None, 32):
        raise ConfigError(
            f"`image_size` must be 32 for {name}, as the archive has it. Received: {image_size}. "
            "Leave it out: models resize by themselves (`pixels` in their row)."
        )
    if skip_unreadable and name in NAMES:
        raise ConfigError(f"`--skip-unreadable` is for a folder of images. Received: {name}, whose images are whole.")


def options_of(config, class_names):
    """What `--dataset` and `--classes` were for a run, by its `RunConfig` and the class names in its record.

    Older configurations have no `classes`; there, the slug made of the class names shows a choice.

    Returns: `(name, classes)`; the name is None for a folder of images, the classes are None where all were used.
    """
    classes = config.classes
    if classes is None and config.dataset.endswith(subset_slug("", class_names)):
        classes = class_names
    slugs = {subset_slug(name, classes) if classes else name: name for name in NAMES}
    return slugs.get(config.dataset), classes
