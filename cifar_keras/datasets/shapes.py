"""The embedded dataset: ten shapes drawn by code, the same pixels on every machine, with no file and no network.

Everything is integer arithmetic. Random numbers are SplitMix64 of a counter (split, stream, image, place), so
image i of a split depends on nothing else and any block of images is drawn in one go.
"""

import hashlib

import numpy as np

from cifar_keras.datasets.base import Dataset, Split, digests, identical_pixels

VERSION = "shapes 1"
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
BLOCK = 2**18  # pixels drawn at a time: the temporaries stay near the processor


def load(*, image_size, limits):
    """Draws the splits, or the first images of each: prefixes are balanced, as image i belongs to class i mod 10.

    Args:
        image_size: side in pixels.
        limits: `config.Limits`.
    Returns: `Dataset`; what is drawn is a pure function of the split's name, the index and the size.
    """
    splits = {}
    for name, full in SIZES.items():
        limit = getattr(limits, name)
        indices = np.arange(full if limit is None else min(limit, full))
        splits[name] = Split(render(name, indices, size=image_size), (indices % len(SHAPES)).astype(np.int32))
    return Dataset(
        slug="shapes",
        label="shapes (synthetic)",
        fingerprint=_fingerprint(image_size),
        class_names=tuple(SHAPES),
        notes=(identical_pixels(*(digests(split.images) for split in splits.values())),),
        **splits,
    )


def render(split, indices, *, size=32):
    """Draws images of one split.

    Args:
        split: 'train', 'val' or 'test'.
        indices: int `(n,)`; the class is the index modulo 10.
        size: side in pixels.
    Returns: uint8 `(n, size, size, 3)`, RGB in [0, 255].
    """
    images = np.empty((len(indices), size, size, 3), np.uint8)
    count = max(1, BLOCK // size**2)
    for start in range(0, len(indices), count):
        images[start : start + count] = _block(split, indices[start : start + count], size)
    return images


def _block(split, indices, size):
    """The images of one block: texture, then the shape, then a patch that hides a part of it, then noise."""
    draw = _Draws(split, indices)
    background = draw(3, 0, 256)
    # Wraps around: in every channel at least 80 away from the background, brighter as often as darker.
    colour = (background + draw(3, 80, 177)) % 256
    covered = _coverage(draw, indices % len(SHAPES), size)[..., None]
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
    """How much of each pixel its shape covers, int32 `(n, size, size)` in 0..4: four samples a pixel."""
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


def _fingerprint(size):
    """SHA-256 of the version, the size and some images of each split: it changes when the drawing changes."""
    sample = (render(split, np.arange(50), size=size).tobytes() for split in SIZES)
    return hashlib.sha256(b"".join((f"{VERSION} {size} ".encode(), *sample))).hexdigest()


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
