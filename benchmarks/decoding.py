"""How many images per second does the first start on a folder read, hash and decode?

Run: python benchmarks/decoding.py [--full]
A folder of CIFAR-sized images, half of them JPEG and half PNG: 60,000 in full, else 12,000. They are in the system's
cache, so the disk does not count. Beside `data.load` with an empty cache of its own stands the former way: threads read
every file for its digest and its header, then again to decode it.
"""

import hashlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import numpy as np
from measure import judged, measured, ratio_of
from PIL import Image

from cifar_keras.data import images, load
from cifar_keras.utils.system import cores

TITLE = "10 first read of an image folder"
TARGET = 7_500  # images/s on two cores: 60,000 in 8 s
WAYS = ("read once, by processes", "read, then decode, by threads")


def rows(full):
    """Both ways, in turns."""
    count, speeds = 60_000 if full else 12_000, {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as root:
        paths = make(Path(root, "images"), count)
        for number in range(3):
            os.environ["CIFAR_KERAS_CACHE"] = str(Path(root, f"cache{number}"))
            for name, way in zip(WAYS, (lambda: load(Path(root, "images")), lambda: in_two_passes(paths)), strict=True):
                start = time.perf_counter()
                way()
                speeds[name].append(count / (time.perf_counter() - start))
    ours, former = (speeds[name] for name in WAYS)
    against = judged(ratio_of(ours, former), 2.0, of="two passes by threads")
    note = f"target {TARGET:,} images/s; scan, digests of the pixels and writing included"
    return [measured(TITLE, WAYS[0], ours, **against, note=note), measured(TITLE, WAYS[1], former)]


def make(root, count):
    """Writes smooth random images of two classes; returns their paths."""
    random, paths = np.random.RandomState(0), []
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype("uint8"))
        paths.append(root / ("cat", "dog")[i // 2 % 2] / f"{i:05}.{('jpg', 'png')[i % 2]}")
        small.resize((32, 32), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def in_two_passes(paths):
    """The former way, without scanning and writing."""

    def inspect(path):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            with Image.open(file) as image:
                return digest, min(image.size)

    with ThreadPoolExecutor(cores()) as pool:
        for work in (inspect, lambda path: images.decode(path, size=32)):
            for start in range(0, len(paths), 256):
                list(pool.map(work, paths[start : start + 256]))


if __name__ == "__main__":
    measure.main(__doc__, rows)
