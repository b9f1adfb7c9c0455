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
import PIL
from PIL import Image
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data import images, layout
from cifar_keras.data.base import SPLIT_SEED, Dataset, Rows, Split, digests, identical_pixels, stratified
from cifar_keras.data.layout import SPLITS
from cifar_keras.utils import files
from cifar_keras.utils.cache import cache
from cifar_keras.utils.text import printable

KNOWN = {  # fingerprint: (slug, label)
    "f10d4c9e536a564f17fa5e8d68ba087d1235e60cd1f21700e11ff43f0647bbb0": ("cifar10-jpeg", "CIFAR-10 (JPEG)"),
}
MAX_DEFAULT_SIZE = 224  # photographs of 4000 pixels would fill the disk before anyone asked for them
BLOCK = 256  # images decoded at a time: memory stays flat however many there are
PASSED_OVER = ("__MACOSX",)  # besides hidden ones
NAMED = 5  # files or folders that a sentence names before it says "..."
SKIP = "An experiment's `--skip-unreadable` leaves such images out and lists them in the run's record"


@dataclass(frozen=True, slots=True)
class _File:
    """An image file: where it lies, what it belongs to, and what changes when its content does."""

    path: str  # relative to the folder, with slashes
    split: str  # '' where the folder has no splits
    class_name: str
    state: tuple[int, int, int] | None  # bytes, time of the last change to the content and to anything; None: no access


@dataclass(frozen=True, slots=True)
class _Scan:
    """What lies in a folder.

    Attributes:
        files: the images, sorted by path.
        assumed: which folder was taken for which split, None where they are called so.
        left_out: images of other kinds, and folders without any, a line each.
    """

    files: list[_File]
    assumed: str | None
    left_out: tuple[str, ...]


class UnreadableError(ConfigError):
    """Images that can't be decoded."""

    def __init__(self, root, paths):
        count = len(paths)
        super().__init__(
            f"{count} image{'s' * (count > 1)} in {root} can't be decoded: {_some(paths)}. Replace or remove them, "
            f"then start again: nothing is left out silently. {SKIP}."
        )
        self.paths = paths


def load(root, *, image_size=None, decoded_at=None, skip_unreadable=False):
    """Loads `train/<class>/*`, with or without `val/` and `test/`, or `<class>/*` alone.

    Splits may be called otherwise (`Training`, `test_set`, `valid`; see `layout`): the notes then say what was taken
    for what. A class is a folder that directly holds images; folders may be nested, and the class is then called
    `animal/cat`. Of a link its own path counts, never its target's. A tenth of train is carved off for each of val and
    test that is missing, stratified and always the same; a class of three images or more is in all three. Hidden files
    and those that are no images are passed over; images of other kinds are counted in the notes. The decoded images
    lie in a cache (`$CIFAR_KERAS_CACHE`, else `$XDG_CACHE_HOME/cifar_keras` or `~/.cache/cifar_keras`), so a second
    start is fast and a folder larger than memory streams from disk.

    Args:
        root: the folder.
        image_size: every image's shorter side is resized to it and the centre cut out. Default: the most frequent
            shorter side of the training images (the smaller of equals), at most 224.
        decoded_at: `(height, width)` that images are decoded at whenever they are read, in place of the cached ones:
            a model from elsewhere then gets the pixels of the file, not those of the cache once more resized.
        skip_unreadable: leave out images that are damaged or can't be read, and name them in `Dataset.skipped`. All
            else, the fingerprint included, is then as without these files.
    Returns: `Dataset`; splits hold `Rows` of one memory map. The fingerprint depends on relative paths and bytes only.
    Raises: ConfigError if the layout isn't one of these, or naming the images that can't be decoded.
    """
    root = Path(root)
    name = root.name if root.name not in ("", "..") else root.resolve().name
    try:
        scan = _scan(root, skip_unreadable=skip_unreadable)
        _check_layout(root, scan.files, "".join(f" ({line})" for line in scan.left_out))
        found, facts, pixels, hashes = _readable(root, scan.files, image_size, skip_unreadable=skip_unreadable)
    except OSError as error:
        hint = f" {SKIP}." if Path(str(error.filename)).suffix.lower() in images.EXTENSIONS else ""
        raise ConfigError(f"Could not read {error.filename}: {error.strerror}. Mend or remove it.{hint}") from error
    class_names = tuple(sorted({file.class_name for file in found}))
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.class_name] for file in found], np.int32)
    parts = _parts(root, found, labels)
    slug, label = KNOWN.get(facts["fingerprint"], (_slug(name, facts["fingerprint"]), name))
    skipped = tuple(sorted({file.path for file in scan.files} - {file.path for file in found}))
    if decoded_at not in (None, tuple(pixels.shape[1:3])):
        pixels = Files([root / file.path for file in found], decoded_at)
    twins = identical_pixels(*(hashes[parts[name]] for name in SPLITS))
    return Dataset(
        slug=slug,
        label=label,
        fingerprint=facts["fingerprint"],
        class_names=class_names,
        notes=tuple(filter(None, (twins, scan.assumed, *scan.left_out, _on_skipped(skipped)))),
        skipped=skipped,
        carved=tuple(name for name in ("val", "test") if name not in {file.split for file in found}),
        **{name: Split(Rows(pixels, parts[name]), labels[parts[name]]) for name in SPLITS},
    )


class Files:
    """Image files as an array, decoded when indexed: no memory and no disk, however many and large they are.

    Args:
        paths: of the files.
        size: `(height, width)`; see `images.decode`.
    """

    def __init__(self, paths, size):
        self.paths, self.size = paths, tuple(size)
        self.shape, self.ndim, self.dtype = (len(paths), *self.size, 3), 4, np.dtype("uint8")

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        """`key` is an int or an array of indices."""
        if np.ndim(key) == 0:
            return images.decode(self.paths[key], size=self.size)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda place: images.decode(self.paths[place], size=self.size), key))
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), self.dtype)


def _scan(root, *, skip_unreadable=False):
    """Every image file below the folder, with what the folders above it mean; see `_Scan`."""
    states, kinds, folders = {}, Counter(), set()
    for entry in _walk(root):
        path = Path(entry.path).relative_to(root)
        if entry.is_dir():
            folders.add(path.parts)
        elif path.suffix.lower() in images.EXTENSIONS:
            states[path] = _state(entry, skip_unreadable=skip_unreadable)
        elif entry.is_file() and (kind := images.unused(entry.path)) is not None:  # a pipe would never end
            kinds[kind] += 1
    plan = layout.of(root, {path.parent.parts for path in states})
    used = {path: state for path, state in states.items() if path.parts[0] not in plan.unlabelled}
    found = [_File(path.as_posix(), *plan.split_and_class(path.parent.parts), state) for path, state in used.items()]
    left_out = (images.left_out(kinds) if kinds else None, _on_empty(folders, states))
    return _Scan(
        sorted(found, key=lambda file: file.path),
        plan.assumed and printable(plan.assumed),
        tuple(printable(line) for line in left_out if line),
    )


def _walk(folder, above=()):
    """Files and folders, links followed; a link to a folder that it lies in is passed over, as it would never end."""
    here = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in PASSED_OVER:
                continue
            if not entry.is_dir():
                yield entry
            elif os.path.realpath(entry.path) not in (*above, here):
                yield entry
                yield from _walk(entry.path, (*above, here))


def _state(entry, *, skip_unreadable):
    """What of a file changes with its content; None for one that can't be read, where these are skipped.

    Raises: OSError for such a one otherwise.
    """
    try:
        status = entry.stat()
    except OSError:
        if not skip_unreadable:
            raise
        return None
    if skip_unreadable and not os.access(entry.path, os.R_OK):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _on_empty(folders, paths):
    """The line on folders in which no image lies at any depth, the outermost ones alone."""
    full = {path.parts[:depth] for path in paths for depth in range(len(path.parts))}
    empty = sorted("/".join(folder) for folder in folders if folder not in full and folder[:-1] in full)
    return f"folders without a usable image: {_some(empty)}" if empty else None


def _on_skipped(paths):
    if not paths:
        return None
    return printable(f"{len(paths):,} damaged image{'s' * (len(paths) > 1)} left out: {_some(paths)}")


def _some(names):
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)


def _check_layout(root, found, left_out):
    """Raises ConfigError unless every image has a class, and every split the same two or more.

    Args:
        root: the folder.
        found: its `_File`s.
        left_out: what was not taken, in brackets: it may be why something is missing.
    """
    expected = "Expected: train/<class>/*.png|jpg, with or without val/ and test/, or <class>/*.png|jpg."
    if not found:
        raise ConfigError(f"{root} holds no images ({', '.join(sorted(images.EXTENSIONS))}){left_out}. {expected}")
    classes = {}
    for file in found:
        if not file.class_name or file.split not in ("", *SPLITS):
            raise ConfigError(f"{root / file.path} belongs to no class of a known split. {expected}")
        classes.setdefault(file.split, set()).add(file.class_name)
    known = classes.get("train", classes.get("", set()))
    meant = {layout.split_of(name) for name in known}
    if len(known) < 2 or (len(meant) > 1 and None not in meant):
        raise ConfigError(
            f"{root} needs at least two classes to train. Received: {sorted(known)}{left_out}. {expected}"
        )
    for split, names in classes.items():
        if odd := sorted(names ^ known):
            raise ConfigError(
                f"Every split of {root} must hold the same classes. {odd[0]!r} is in only one of train and {split} "
                f"({len(odd)} such classes){left_out}. Add its images there, or remove the class."
            )


def _readable(root, found, image_size, *, skip_unreadable):
    """The files that can be decoded, the facts of these, their pixels and digests.

    Which can't be is kept as long as no file changes and Pillow stays the same.

    Raises: UnreadableError where some can't be and these are not skipped; ConfigError where a class would be empty.
    """
    if not skip_unreadable:
        facts = _facts(root, found)
        return found, facts, *_decoded(root, found, facts["fingerprint"], image_size or facts["side"])
    noted = cache() / f"{_listing(root, found)}.unreadable-{PIL.__version__}-{len(images.FORMATS)}.json"
    damaged = set(json.loads(noted.read_text())) if noted.is_file() else set()
    kept = [file for file in found if file.state is not None and file.path not in damaged]
    if lost := {(f.split, f.class_name) for f in found} - {(f.split, f.class_name) for f in kept}:
        names = _some(sorted("/".join(filter(None, pair)) for pair in lost))
        raise ConfigError(f"Every image of {names} in {root} is damaged. Replace some, or remove the class.")
    try:
        return _readable(root, kept, image_size, skip_unreadable=False)
    except UnreadableError as error:  # each time more are known, so this ends
        files.write_json(noted, sorted(damaged.union(error.paths)))
        return _readable(root, found, image_size, skip_unreadable=True)


def _listing(root, found):
    """A digest, 32 hex digits, that changes when a file does, or what it is taken for."""
    listing = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16)
    for file in found:
        listing.update(os.fsencode(file.path) + repr(file.state).encode())
        if file.split and not file.path.startswith(f"{file.split}/"):
            listing.update(file.split.encode())
    return listing.hexdigest()


def _facts(root, found):
    """Fingerprint and default side of a folder, kept until a file's size or times change.

    Returns: {"fingerprint": 64 hex digits, "side": pixels}.
    """
    cached = cache() / f"{_listing(root, found)}.json"
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
            broken.append(path.relative_to(root).as_posix())
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
            raise UnreadableError(root, sorted(broken))


def _parts(root, found, labels):
    """Indices into the files for each split; what is missing is carved from train."""
    splits = np.array([file.split or "train" for file in found])
    parts = {name: np.flatnonzero(splits == name) for name in SPLITS}
    tenth = len(parts["train"]) // 10
    missing = [name for name in ("test", "val") if not len(parts[name])]
    enough = np.flatnonzero(np.bincount(labels[parts["train"]]) > len(missing))  # classes with an image for every split
    for name in missing:
        taken = stratified(labels[parts["train"]], max(1, tenth), seed=SPLIT_SEED, each=enough)
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
