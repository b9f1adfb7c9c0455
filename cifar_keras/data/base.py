"""What every dataset is, whichever source it comes from."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_keras.config import ConfigError, Limits

SPLIT_SEED = 0  # of what is carved from train: it belongs to the data, no run's seed changes it


class Rows:
    """Chosen images of an array, in a chosen order, read only when they are indexed: a memory map stays on disk.

    Attributes:
        images: uint8 `(n, height, width, 3)`; an array, a memory map or other rows.
        indices: int `(m,)`, into `images`.
    """

    def __init__(self, images: "np.ndarray | Rows", indices: np.ndarray | Sequence[int]) -> None:
        self.images = images
        self.indices = np.asarray(indices)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.images.shape[1:])

    @property
    def ndim(self) -> int:
        return self.images.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> np.ndarray:
        """`key` is an int, a slice, or an array of indices or of booleans. Returns an array, not to be written to."""
        return np.asarray(self.images[self.indices[key]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8 `(n, height, width, 3)`, RGB in [0, 255]; an array or `Rows` of a memory map.
        labels: int32 `(n,)`, indices into `Dataset.class_names`.
        coarse_labels: int32 `(n,)`, indices into `Dataset.superclass_names`, or None.
    """

    images: np.ndarray | Rows
    labels: np.ndarray
    coarse_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def in_epoch(self, epoch: int) -> np.ndarray | Rows:
        """What stands for the images in an epoch of training, counted from 0: here always the images themselves."""
        return self.images


@dataclass(frozen=True)
class Dataset:
    """A dataset with its three splits.

    Attributes:
        slug: part of file names: `cifar10`, `cifar10-jpeg`, `shapes`, `pets-a1b2c3`.
        label: for tables and pictures: `CIFAR-10 (JPEG)`.
        fingerprint: SHA-256 (64 hex digits) over the whole source, before any limit.
        class_names: one per class, in label order.
        train, val, test: `Split`; val selects, test is read once.
        superclass_names: of the coarse labels, else empty.
        notes: facts that a reader of the numbers needs (identical pixels across splits).
        carved: the splits that the source does not have, taken out of its training images.
        skipped: relative paths of the images that are damaged and were left out, where that was asked for.
    """

    slug: str
    label: str
    fingerprint: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    superclass_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    carved: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(height, width, 3)`, or that of what stands for an image."""
        return tuple(self.train.images.shape[1:])

    def limited(self, limits: Limits) -> "Dataset":
        """The same dataset with at most `limits.train`, `.val`, `.test` images, see `stratified`.

        No class is lost where there is room for all.
        """
        cut: dict[str, Any] = {}
        for name in ("train", "val", "test"):
            split, count = getattr(self, name), getattr(limits, name)
            if count is not None and count < len(split):
                each = classes if len(classes := np.unique(split.labels)) <= count else ()
                cut[name] = take(split, stratified(split.labels, count, seed=0, each=each))
        return dataclasses.replace(self, **cut)

    def only(self, names: Sequence[str]) -> "Dataset":
        """The images of two classes or more as a dataset of their own; `class_names` keep their order.

        Raises: ConfigError for fewer classes, and for names that the dataset does not have.
        """
        unknown = sorted(set(names) - set(self.class_names))
        if unknown or len(set(names)) < 2:
            raise ConfigError(
                f"`classes` must be two or more of {', '.join(self.class_names)}. Received: {', '.join(names)}."
            )
        kept = [label for label, name in enumerate(self.class_names) if name in names]
        numbers = np.full(len(self.class_names), -1, "int32")
        numbers[kept] = range(len(kept))
        chosen = tuple(self.class_names[label] for label in kept)
        splits: dict[str, Any] = {}
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            split = take(split, np.flatnonzero(numbers[split.labels] >= 0))
            splits[name] = dataclasses.replace(split, labels=numbers[split.labels])
        return dataclasses.replace(
            self,
            slug=subset_slug(self.slug, chosen),
            label=f"{self.label}, {len(chosen)} classes ({', '.join(chosen)})",
            fingerprint=hashlib.sha256(f"{self.fingerprint} {chosen}".encode()).hexdigest(),
            class_names=chosen,
            **splits,
        )

    @property
    def largest_class(self) -> int:
        """The training images of the class that has most."""
        return int(np.bincount(self.train.labels).max())

    def check_per_class(self, count: int) -> None:
        """Raises ConfigError for a number of training images that no class has."""
        if count > self.largest_class:
            raise ConfigError(
                f"The variant takes {count:,} labelled images of each class, and no class of {self.label} has more "
                f"than {self.largest_class:,} for training. The variant without a number takes all of them."
            )

    def with_per_class(self, count: int, *, seed: int) -> "Dataset":
        """The dataset with at most `count` training images per class. A seed's smaller draws are in its larger ones."""
        labels, random = self.train.labels, np.random.RandomState(seed)
        drawn = [random.permutation(np.flatnonzero(labels == label))[:count] for label in range(len(self.class_names))]
        return dataclasses.replace(self, train=take(self.train, np.sort(np.concatenate(drawn))))


def subset_slug(slug, names):
    """The slug of some of a dataset's classes: with all their names where these are short, else with a digest."""
    text = "+".join(names)
    if len(text) <= 48 and re.fullmatch(r"[\w+]+", text, re.ASCII):
        return f"{slug}-{text}"
    return f"{slug}-{len(names)}classes-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def take(split: Split, indices: np.ndarray) -> Split:
    """The split's images at `indices`, in that order: a copy of an array, a view of `Rows`."""
    images = Rows(split.images, indices) if isinstance(split.images, Rows) else split.images[indices]
    coarse = None if split.coarse_labels is None else split.coarse_labels[indices]
    return Split(images, split.labels[indices], coarse)


def stratified(labels: np.ndarray, count: int, *, seed: int, each: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """Indices of `count` images in which every class has its share (largest remainders), sorted.

    A pure function of its arguments: `RandomState` is frozen across NumPy versions, `Generator` is not.

    Args:
        labels: int `(images,)`.
        count: how many to take.
        seed: of the draw.
        each: classes that get an image even where their share is 0. It replaces one of the largest class, or is taken
            beyond `count` where no class can spare one.
    """
    random = np.random.RandomState(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = count * sizes / len(labels)
    shares = np.floor(exact).astype(int)
    for index in np.argsort(shares - exact, kind="stable")[: count - shares.sum()]:
        shares[index] += 1
    shares[(shares == 0) & np.isin(classes, each)] = 1
    while shares.sum() > count and shares.max() > 1:
        shares[shares.argmax()] -= 1
    chosen = [random.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def at_most(split: Split, count: int) -> Split:
    """The split, or a stratified choice of `count` of its images where it has more."""
    return split if len(split) <= count else take(split, stratified(split.labels, count, seed=0))


def carve(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Takes `count` images out of a split, stratified and always the same: `(indices left, indices taken)`."""
    taken = stratified(labels, count, seed=SPLIT_SEED)
    return np.setdiff1d(np.arange(len(labels)), taken), taken


def digests(images: np.ndarray | Rows) -> np.ndarray:
    """A 64-bit BLAKE2 hash of each image's pixels, uint64 `(n,)`, read one image at a time.

    Among a million images, two different ones share a hash with probability 3e-8.
    """
    pixels = (np.ascontiguousarray(images[i]).data for i in range(len(images)))
    return np.frombuffer(b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in pixels), dtype="<u8")


def identical_pixels(train: np.ndarray, val: np.ndarray, test: np.ndarray) -> str:
    """The note on leaks, from the splits' `digests`: 'identical pixels: train-val 3, train-test 12, val-test 0'.

    It counts the images of the second split of each pair that have a twin in the first.
    """
    pairs = {"train-val": (train, val), "train-test": (train, test), "val-test": (val, test)}
    counts = (f"{name} {np.isin(second, first).sum()}" for name, (first, second) in pairs.items())
    return "identical pixels: " + ", ".join(counts)
