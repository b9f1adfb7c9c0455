"""The embedded datasets, drawn by code: the same pixels on every machine, with no file and no network.

`shapes` has ten classes; `shapes100` has CIFAR-100's form, a hundred classes (ten shapes in ten colours) in twenty
superclasses (each shape in warm and in cold colours).
Everything is integer arithmetic. Random numbers are SplitMix64 of a counter (split, stream, image, place), so
image i of a split depends on nothing else and any block of images is drawn in one go.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_keras.config import Limits
from cifar_keras.data.base import Dataset, Split, digests, identical_pixels
from cifar_keras.utils.paths import StrPath

VERSION = "1"  # of the drawing
SIZES = {"train": 20_000, "val": 2_000, "test": 5_000}
SIDE = 4096  # units across the image: geometry does not depend on the number of pixels
RADIUS = 1024  # a shape's radius in its own coordinates, before it is scaled
CENTRES = (1500, 2597)  # of a shape, in units; this and the next are ranges with the end excluded
RADII = (900, 1501)
PATCHES = (500, 1401)  # sides of what hides a part of the picture
TURN = 370  # 1024 times the tangent of half the largest angle: 40 degrees to either side
LATTICE = 5  # random values along one side of the texture
TEXTURE = 40  # brightness, to either side
NOISE = 24  # each channel of each pixel, to either side
PIXELS_AT_ONCE = 2**18  # pixels drawn at a time: the temporaries stay near the processor


def load(name: str, *, image_size: int, limits: Limits) -> Dataset:
    """Draws the splits, or the first images of each: prefixes are balanced, as image i is of class i mod 10 (or 100).

    What is drawn is a pure function of the split's name, the index and the size.
    """
    kind = GENERATED[name]
    splits: dict[str, Any] = {}
    for split, full in SIZES.items():
        limit = getattr(limits, split)
        indices = np.arange(full if limit is None else min(limit, full))
        labels = (indices % len(kind.class_names)).astype(np.int32)
        coarse = labels // 5 if kind.superclass_names else None
        splits[split] = Split(render(split, indices, size=image_size, kind=name), labels, coarse)
    return Dataset(
        slug=name,
        label=f"{name} (synthetic)",
        fingerprint=_fingerprint(image_size, name),
        class_names=kind.class_names,
        superclass_names=kind.superclass_names,
        notes=(identical_pixels(*(digests(split.images) for split in splits.values())),),
        **splits,
    )


def write(root: StrPath, *, classes: int = 4, per_class: int = 80) -> Path:
    """Writes a small folder of images of the first classes of `shapes`, `<class>/<number>.png`, to try things on.

    A folder that is there stays as it is.
    """
    root = Path(root)
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
    for label, name in enumerate(GENERATED["shapes"].class_names[:classes]):
        (temporary / name).mkdir()
        for number, image in enumerate(render("train", 10 * np.arange(per_class) + label)):
            Image.fromarray(image).save(temporary / name / f"{number:03}.png")
    temporary.chmod(0o755)
    return temporary.rename(root)


def render(split: str, indices: np.ndarray, *, size: int = 32, kind: str = "shapes") -> np.ndarray:
    """Draws images of one split.

    Args:
        split: 'train', 'val' or 'test'.
        indices: int `(n,)`; the class is the index modulo the number of classes.
        size: side in pixels.
        kind: key of `GENERATED`.
    Returns: uint8 `(n, size, size, 3)`, RGB in [0, 255].
    """
    images = np.empty((len(indices), size, size, 3), np.uint8)
    count = max(1, PIXELS_AT_ONCE // size**2)
    for start in range(0, len(indices), count):
        images[start : start + count] = _block(split, indices[start : start + count], size, GENERATED[kind])
    return images


def _block(split, indices, size, kind):
    """The images of one block: texture, then the shape, then a patch that hides a part of it, then noise."""
    draw, labels = _Draws(split, indices), indices % len(kind.class_names)
    first, contrast = draw(3, 0, 256), draw(3, 80, 177)
    # Wraps around: in every channel at least 80 apart, either as often brighter as darker.
    if kind.superclass_names:
        colour = np.asarray(tuple(COLOURS.values()))[labels % 10] + first // 8 - 16
        background, labels = (colour + contrast) % 256, labels // 10
    else:
        background, colour = first, (first + contrast) % 256
    covered = _coverage(draw, labels, size)[..., None]
    pixels = background[:, None, None] + (colour - background)[:, None, None] * covered // 4
    pixels += _texture(draw, size)[..., None]
    pixels = np.where(_patch(draw, size)[..., None], draw(3, 0, 256)[:, None, None], pixels)
    pixels += draw(3 * size * size, -NOISE, NOISE + 1).reshape(pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


class _Draws:
    """Random integers, a fresh stream with each call: `draw(count, low, high)` is int32 `(n, count)`, high excluded."""

    def __init__(self, split, indices):
        numbers = np.uint64(list(SIZES).index(split) << 32) | indices.astype(np.uint64)
        self.counters = numbers[:, None] << np.uint64(26)  # leaves 2**26 draws to each image
        self.used = 0

    def __call__(self, count, low, high):
        counters = self.counters + np.arange(self.used, self.used + count, dtype=np.uint64)
        self.used += count
        fractions = _splitmix64(counters) >> np.uint64(32)  # of 2**32
        return low + ((fractions * np.uint64(high - low)) >> np.uint64(32)).astype(np.int32)


def _splitmix64(counters):
    """The generator's output for each counter (Steele et al., OOPSLA 2014), uint64 wrapping around."""
    z = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _coverage(draw, classes, size):
    """How much of each pixel its shape covers, int32 `(n, size, size)` in 0..4: four samples per pixel."""
    u, v = _own_coordinates(draw, size)
    inside = np.empty(u.shape, bool)
    for number, shape in enumerate(SHAPES.values()):
        inside[classes == number] = shape(u[classes == number], v[classes == number])
    quarters = inside.astype(np.int32)
    return quarters[:, ::2, ::2] + quarters[:, 1::2, ::2] + quarters[:, ::2, 1::2] + quarters[:, 1::2, 1::2]


def _own_coordinates(draw, size):
    """Each sample's place as the shape sees it: moved, turned and scaled, int32 `(n, 2 * size, 2 * size)` twice."""
    place = (2 * np.arange(2 * size, dtype=np.int32) + 1) * SIDE // (4 * size)
    centre, radius = draw(2, *CENTRES), draw(1, *RADII)
    x = (place - centre[:, :1])[:, None, :]
    y = (place - centre[:, 1:])[:, :, None]
    # tan(angle / 2) = t / 1024 gives cosine and sine as fractions: exact, where a library's last bit would differ.
    t = draw(1, -TURN, TURN + 1)
    cosine = ((1024**2 - t * t) * RADIUS // (1024**2 + t * t) * 4096 // radius)[..., None]
    sine = (2 * 1024 * t * RADIUS // (1024**2 + t * t) * 4096 // radius)[..., None]
    return (cosine * x + sine * y) >> 12, (cosine * y - sine * x) >> 12


def _texture(draw, size):
    """Smooth random brightness, int32 `(n, size, size)`: a coarse lattice of values, interpolated."""
    values = draw(LATTICE**2, -TEXTURE, TEXTURE + 1).reshape(-1, LATTICE, LATTICE)
    place = (2 * np.arange(size, dtype=np.int32) + 1) * (LATTICE - 1) * 64 // (2 * size)
    weights = np.maximum(0, 64 - np.abs(place[:, None] - 64 * np.arange(LATTICE, dtype=np.int32)))
    return (weights @ values @ weights.T) >> 12


def _patch(draw, size):
    """Where a rectangle hides the picture, bool `(n, size, size)`."""
    place = (2 * np.arange(size, dtype=np.int32) + 1) * SIDE // (2 * size)
    start, extent = draw(2, 0, SIDE), draw(2, *PATCHES)
    within = (place >= start[..., None]) & (place < (start + extent)[..., None])
    return within[:, 0, None, :] & within[:, 1, :, None]


def _fingerprint(size, kind):
    """SHA-256 of the version, the size and some images of each split: it changes when the drawing changes."""
    sample = (render(split, np.arange(50), size=size, kind=kind).tobytes() for split in SIZES)
    return hashlib.sha256(b"".join((f"{kind} {VERSION} {size} ".encode(), *sample))).hexdigest()


def _crescent(u, v):
    return (u * u + v * v < 950**2) & ((u - 480) ** 2 + v * v > 760**2)


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return (np.minimum(u, v) < 270) & (np.maximum(u, v) < 950)


def _ring(u, v):
    distance = u * u + v * v
    return (distance > 520**2) & (distance < 920**2)


def _star(u, v):
    """Inside at least four of a pentagon's five sides: the star that its sides make when drawn on."""
    sides = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))  # 1024 * (sine, cosine) of 72 degree steps
    return sum((a * u + b * v < 340 * 1024).astype(np.int8) for a, b in sides) >= 4


def _tee(u, v):
    return (np.abs(v) < 880) & ((v < -380) & (np.abs(u) < 880) | (np.abs(u) < 260))


SHAPES = {  # a point (u, v), right and down from the shape's centre, lies inside: the class names and their order
    "circle": lambda u, v: u * u + v * v < 850**2,
    "crescent": _crescent,
    "cross": _cross,
    "hourglass": lambda u, v: (np.abs(v) < 900) & (np.abs(u) < np.abs(v)),
    "ring": _ring,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 760,
    "star": _star,
    "stripes": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) < 850) & ((v + 850) % 650 < 400),
    "tee": _tee,
    "triangle": lambda u, v: (v < 620) & (1000 * np.abs(u) < 577 * (v + 950)),
}

COLOURS = {  # RGB, five warm ones and five cold ones: the class names of `shapes100` and their order
    "red": (220, 30, 40),
    "orange": (235, 125, 25),
    "yellow": (230, 215, 40),
    "pink": (240, 130, 170),
    "brown": (125, 70, 35),
    "green": (40, 160, 60),
    "cyan": (40, 200, 210),
    "blue": (30, 70, 215),
    "violet": (125, 45, 190),
    "grey": (128, 128, 128),
}


@dataclass(frozen=True)
class Kind:
    """One of the embedded datasets: its classes, and its superclasses of five classes each, where it has them."""

    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...] = ()


GENERATED = {
    "shapes": Kind(tuple(SHAPES)),
    "shapes100": Kind(
        tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS),
        tuple(f"{warmth} {shape}" for shape in SHAPES for warmth in ("warm", "cold")),
    ),
}
