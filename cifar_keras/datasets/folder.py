"""Any folder of images as a dataset: scanned, fingerprinted, decoded once into a memory map, split."""

import hashlib
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cifar_keras import files, images
from cifar_keras.config import ConfigError
from cifar_keras.datasets.base import SPLIT_SEED, Dataset, Rows, Split, digests, identical_pixels, stratified

KNOWN = {  # fingerprint: (slug, label)
    "f10d4c9e536a564f17fa5e8d68ba087d1235e60cd1f21700e11ff43f0647bbb0": ("cifar10-jpeg", "CIFAR-10 (JPEG)"),
}
SPLITS = ("train", "val", "test")
MAX_DEFAULT_SIZE = 224  # photographs of 4000 pixels would fill the disk before anyone asked for them
BLOCK = 256  # images decoded at a time: memory stays flat however many there are


@dataclass(frozen=True, slots=True)
class _File:
    """An image file: where it lies, what it belongs to, and what changes when its content does."""

    path: str  # relative to the folder, with slashes
    split: str  # '' where the folder has no splits
    class_name: str
    state: tuple[int, int, int]  # bytes, time of the last change to the content and to anything


def load(root, *, image_size=None):
    """Loads `train/<class>/*`, with or without `val/` and `test/`, or `<class>/*` alone.

    A class is a folder that directly holds images; folders may be nested, and the class is then called
    `animal/cat`. A tenth of train is carved off for each of val and test that is missing, stratified and always
    the same. Hidden files and other files than images are passed over. The decoded images lie in a cache
    (`$CIFAR_KERAS_CACHE`, else `$XDG_CACHE_HOME/cifar_keras` or `~/.cache/cifar_keras`), so a second start is fast
    and a folder larger than memory streams from disk.

    Args:
        root: the folder.
        image_size: every image's shorter side is resized to it and the centre cut out. Default: the most frequent
            shorter side of the training images (the smaller of equals), at most 224.
    Returns: `Dataset`; splits hold `Rows` of one memory map. The fingerprint depends on relative paths and bytes only.
    Raises: ConfigError if the layout isn't one of these, or naming the images that can't be decoded.
    """
    root = Path(root).resolve()
    try:
        found = _scan(root)
        _check_layout(root, found)
        facts = _facts(root, found)
    except OSError as error:
        raise ConfigError(f"Could not read {error.filename}: {error.strerror}. Mend or remove it.") from error
    pixels, hashes = _decoded(root, found, facts["fingerprint"], image_size or facts["side"])
    class_names = tuple(sorted({file.class_name for file in found}))
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.class_name] for file in found], np.int32)
    parts = _parts(root, found, labels)
    slug, label = KNOWN.get(facts["fingerprint"], (_slug(root.name, facts["fingerprint"]), root.name))
    return Dataset(
        slug=slug,
        label=label,
        fingerprint=facts["fingerprint"],
        class_names=class_names,
        notes=(identical_pixels(*(hashes[parts[name]] for name in SPLITS)),),
        **{name: Split(Rows(pixels, parts[name]), labels[parts[name]]) for name in SPLITS},
    )


def _scan(root):
    """Every image file below the folder, sorted by path."""
    train = root / "train"
    depth = int(train.is_dir() and any(entry.is_dir() for entry in train.iterdir()))  # else it may be a class of trains
    found = []
    for entry in _walk(root):
        path = Path(entry.path).relative_to(root)
        above = path.parent.parts
        status = entry.stat()
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        found.append(_File(path.as_posix(), "".join(above[:depth]), "/".join(above[depth:]), state))
    return sorted(found, key=lambda file: file.path)


def _walk(folder, above=()):
    """Image files, links followed; a link to a folder that it lies in is passed over, as it would never end."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in images.EXTENSIONS:
                yield entry


def _check_layout(root, found):
    """Raises ConfigError unless every image has a class, and every split the same two or more."""
    expected = "Expected: train/<class>/*.png|jpg, with or without val/ and test/, or <class>/*.png|jpg."
    if not found:
        raise ConfigError(f"{root} holds no images ({', '.join(sorted(images.EXTENSIONS))}). {expected}")
    classes = {}
    for file in found:
        if not file.class_name or file.split not in ("", *SPLITS):
            raise ConfigError(f"{root / file.path} belongs to no class of a known split. {expected}")
        classes.setdefault(file.split, set()).add(file.class_name)
    known = classes.get("train", classes.get("", set()))
    if len(known) < 2 or known <= set(SPLITS):
        raise ConfigError(f"{root} needs at least two classes to train. Received: {sorted(known)}. {expected}")
    for split, names in classes.items():
        if odd := sorted(names ^ known):
            raise ConfigError(
                f"Every split of {root} must hold the same classes. {odd[0]!r} is in only one of train and {split} "
                f"({len(odd)} such classes). Add its images there, or remove the class."
            )


def _facts(root, found):
    """Fingerprint and default side of a folder, kept until a file's size or times change.

    Returns: {"fingerprint": 64 hex digits, "side": pixels}.
    """
    listing = hashlib.blake2b(os.fsencode(root), digest_size=16)
    for file in found:
        listing.update(os.fsencode(file.path) + repr(file.state).encode())
    cached = cache() / f"{listing.hexdigest()}.json"
    if cached.is_file():
        return json.loads(cached.read_text())
    paths = [root / file.path for file in found]
    digest, sides = hashlib.sha256(), Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool, _progress(found, f"reading {root.name}") as bar:
        for start in range(0, len(found), BLOCK):
            block = slice(start, start + BLOCK)
            for file, (content, side) in zip(found[block], pool.map(_inspect, paths[block]), strict=True):
                digest.update(os.fsencode(f"{content}  {file.path}\n"))  # the lines that sha256sum prints
                if file.split in ("", "train") and side:
                    sides[side] += 1
            bar.update(len(paths[block]))
    side = min(sides, key=lambda side: (-sides[side], side), default=MAX_DEFAULT_SIZE)
    facts = {"fingerprint": digest.hexdigest(), "side": min(side, MAX_DEFAULT_SIZE)}
    files.write_json(cached, facts)
    return facts


def _inspect(path):
    """A file's SHA-256 and the image's shorter side; None where the header can't be read: decoding will name it."""
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            with Image.open(file) as image:
                return content, min(image.size)
        except Exception:  # noqa: BLE001
            return content, None


def _decoded(root, found, fingerprint, size):
    """The decoded images as a read-only memory map, and their digests, from the cache or into it."""
    pixels = cache() / f"{fingerprint[:16]}-{size}.npy"
    hashes = pixels.with_suffix(".digests.npy")
    with files.lock(pixels, timeout=24 * 3600, busy=f"Another process is decoding {root}."):
        if not pixels.is_file():
            _decode(root, found, pixels, size)
        if not hashes.is_file():
            with files.replacing(hashes) as temporary:
                np.save(temporary, digests(np.load(pixels, mmap_mode="r")))
    return np.load(pixels, mmap_mode="r"), np.load(hashes)


def _decode(root, found, target, size):
    """Decodes every image into one `.npy` file, written in order: a full disk is then an error, not a crash."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(found), size, size, 3)}
    paths, broken = [root / file.path for file in found], []

    def decode(path):
        try:
            return images.decode(path, size=size)
        except images.ImageError:
            broken.append(str(path.relative_to(root)))
            return np.zeros((size, size, 3), np.uint8)

    with (
        files.replacing(target) as temporary,
        open(temporary, "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        _progress(found, f"decoding {root.name}") as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(paths), BLOCK):
            block = list(pool.map(decode, paths[start : start + BLOCK]))
            file.writelines(block)
            bar.update(len(block))
        if broken:
            raise ConfigError(_refusal(root, sorted(broken)))


def _refusal(root, broken):
    return (
        f"{len(broken)} image{'s' * (len(broken) > 1)} in {root} can't be decoded: {', '.join(broken[:5])}"
        f"{', ...' * (len(broken) > 5)}. Replace or remove them, then start again: nothing is left out silently."
    )


def _parts(root, found, labels):
    """Indices into the files for each split; what is missing is carved from train."""
    splits = np.array([file.split or "train" for file in found])
    parts = {name: np.flatnonzero(splits == name) for name in SPLITS}
    tenth = len(parts["train"]) // 10
    for name in ("test", "val"):
        if not len(parts[name]):
            taken = stratified(labels[parts["train"]], max(1, tenth), seed=SPLIT_SEED)
            parts[name], parts["train"] = parts["train"][taken], np.delete(parts["train"], taken)
    left = Counter(labels[parts["train"]].tolist())
    if scarce := sorted({file.class_name for file, label in zip(found, labels, strict=True) if not left[label]}):
        raise ConfigError(
            f"{root} has too few images of {scarce[0]!r} to split them into train, val and test. "
            "Add some, or put them into train/, val/ and test/ yourself."
        )
    return parts


def _slug(name, fingerprint):
    """Part of file names: lower-case letters, digits and dashes, and what tells two folders of one name apart."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'folder'}-{fingerprint[:6]}"


def _progress(found, what):
    return tqdm(total=len(found), unit=" images", desc=what, mininterval=1)


def cache_folder():
    """Where decoded images and features are kept; nothing is made."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CIFAR_KERAS_CACHE") or shared / "cifar_keras")


def cache():
    """The folder of decoded images and features, made where it is missing, or ConfigError says what to set."""
    place = cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(
            f"The cache of decoded images and features, {place}, can't be written. "
            "Set CIFAR_KERAS_CACHE to a folder that can, with room for them."
        )
    return place
