"""Any folder of images as a dataset: scanned, fingerprinted, decoded once into a memory map, split."""

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data import cifar, images, layout, reading
from cifar_keras.data.base import SPLIT_SEED, Dataset, Rows, Split, digests, identical_pixels, stratified
from cifar_keras.data.layout import SPLITS
from cifar_keras.utils import files, system
from cifar_keras.utils.cache import cache
from cifar_keras.utils.text import printable, shortened


@dataclass(frozen=True)
class Known:
    """A folder that is recognised by its fingerprint.

    Attributes:
        slug, label: as of `Dataset`.
        superclasses: the names of the classes, separated by spaces, by superclass; empty where there are none.
    """

    slug: str
    label: str
    superclasses: Mapping[str, str] = field(default_factory=dict)


KNOWN = {  # by fingerprint
    "f10d4c9e536a564f17fa5e8d68ba087d1235e60cd1f21700e11ff43f0647bbb0": Known("cifar10-jpeg", "CIFAR-10 (JPEG)"),
    "84e00b1f6803b3749b06175851cf3ad28a920309d34936196092c2ed9bc4034e": Known(
        "cifar100-png", "CIFAR-100 (PNG)", cifar.SUPERCLASSES
    ),
}
MAX_DEFAULT_SIZE = 224  # photographs of 4000 pixels would fill the disk
HEADERS = 256  # read beforehand, to guess the default size
LISTED = 5  # files or folders that a sentence names before it says "..."
SKIP = "An experiment's `--skip-unreadable` leaves such images out and lists them in the run's record"

Parts = tuple[str, ...]  # a path below the folder, taken apart
Size = tuple[int, int]  # height, width
State = tuple[int, int, int]
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _File:
    """An image file: its place, split and class, and a state that changes with its content."""

    path: str  # relative to the folder, with slashes
    split: str  # '' where the folder has no splits
    class_name: str
    state: State | None  # bytes, time of the last change to the content and to anything; None: no access


class UnreadableError(ConfigError):
    """Images that can't be decoded."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        count = len(paths)
        super().__init__(
            f"{count} image{'s' * (count > 1)} in {root} can't be decoded: {shortened(paths, LISTED)}. Replace or "
            f"remove them, then start again: nothing is left out silently. {SKIP}."
        )
        self.paths = paths


def load(
    root: str | Path, *, image_size: int | None = None, decoded_at: Size | None = None, skip_unreadable: bool = False
) -> Dataset:
    """Loads `train/<class>/*`, with or without `val/` and `test/`, or `<class>/*` alone.

    Splits may have other names (`Training`, `test_set`, `valid`; see `layout`), which the notes then list. A class is a
    folder that directly holds images; a nested one is called `animal/cat`. A link counts by its own path, never by its
    target's. A tenth of train is carved off for each of val and test that is missing, stratified and always the same;
    a class of three images or more is in all three. Hidden files and files that are no images are passed over; images
    of other kinds are counted in the notes. The decoded images lie in a cache (`$CIFAR_KERAS_CACHE`, else
    `$XDG_CACHE_HOME/cifar_keras` or `~/.cache/cifar_keras`), so a second start is fast and a folder larger than memory
    streams from disk.

    Args:
        root: the folder.
        image_size: every image's shorter side is resized to it and the centre cut out. Default: the most frequent
            shorter side of the training images (the smaller of equals), at most 224.
        decoded_at: `(height, width)` to decode images at whenever they are read, in place of the cached ones: a model
            from elsewhere then gets the pixels of the file, not resized twice.
        skip_unreadable: leave out images that are damaged or can't be read, and name them in `Dataset.skipped`. The
            rest, the fingerprint included, is then as without these files.
    Returns: `Dataset`; splits hold `Rows` of one memory map. The fingerprint depends on relative paths and bytes only.
    Raises: ConfigError if the layout isn't one of these, or naming the images that can't be decoded.
    """
    root = Path(root)
    try:
        scanned, assumed, left_out = _scan(root, skip_unreadable=skip_unreadable)
        _check_layout(root, scanned, "".join(f" ({line})" for line in left_out))
        found, facts, pixels, hashes = _readable(root, scanned, image_size, skip_unreadable=skip_unreadable)
    except OSError as error:
        raise _not_readable(error) from error
    if decoded_at not in (None, tuple(pixels.shape[1:3])):
        pixels = images.decoded([root / file.path for file in found], decoded_at)
    class_names, labels = _classes(found)
    parts = _parts(root, found, labels)
    known = KNOWN.get(facts["fingerprint"]) or _named(root, facts["fingerprint"])
    skipped = tuple(sorted({file.path for file in scanned} - {file.path for file in found}))
    twins = identical_pixels(*(hashes[parts[split]] for split in SPLITS))
    return Dataset(
        slug=known.slug, label=known.label, fingerprint=facts["fingerprint"], class_names=class_names, skipped=skipped,
        superclass_names=tuple(known.superclasses),
        notes=tuple(filter(None, (twins, assumed, *left_out, _on_skipped(skipped)))),
        carved=tuple(split for split in ("val", "test") if split not in {file.split for file in found}),
        **_splits(pixels, labels, _coarse_labels(known, class_names, labels), parts),
    )  # fmt: skip


def _named(root: Path, fingerprint: str) -> Known:
    """A folder that is not known, by its own name."""
    name = root.name if root.name not in ("", "..") else root.resolve().name
    return Known(_slug(name, fingerprint), name)


def _splits(
    pixels: np.ndarray, labels: np.ndarray, coarse: np.ndarray | None, parts: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The `Split` of each of `parts`, by name."""
    return {
        name: Split(Rows(pixels, chosen), labels[chosen], None if coarse is None else coarse[chosen])
        for name, chosen in parts.items()
    }


def _coarse_labels(known: Known, class_names: Sequence[str], labels: np.ndarray) -> np.ndarray | None:
    """The superclass of each file, int32; None for a folder without superclasses."""
    if not known.superclasses:
        return None
    of_class = {name: number for number, names in enumerate(known.superclasses.values()) for name in names.split()}
    return np.array([of_class[name] for name in class_names], np.int32)[labels]


def _not_readable(error: OSError) -> ConfigError:
    """The error for a file or folder that the system doesn't let us read."""
    hint = f" {SKIP}." if Path(str(error.filename)).suffix.lower() in images.EXTENSIONS else ""
    return ConfigError(f"Could not read {error.filename}: {error.strerror}. Repair or remove it.{hint}")


def _classes(found: Sequence[_File]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, sorted, and the class of each file, int32."""
    names = tuple(sorted({file.class_name for file in found}))
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[file.class_name] for file in found], np.int32)


def _scan(root: Path, *, skip_unreadable: bool = False) -> tuple[list[_File], str | None, tuple[str, ...]]:
    """What lies in a folder.

    Returns: `(files, assumed, left_out)`: the images, sorted by path; which folder was used as which split, None where
        the folders have the splits' names; images of other kinds and folders without any, one line each.
    """
    entries, folders, kinds = images.files_in(root)
    parents = functools.cache(lambda folder: Path(folder).relative_to(root).parts)  # a path is slow to take apart
    paths = {entry: (*parents(os.path.dirname(entry.path)), entry.name) for entry in (*entries, *folders)}
    states = {paths[entry]: _state(entry, skip_unreadable=skip_unreadable) for entry in entries}
    plan = layout.of(root, {path[:-1] for path in states})
    used = {path: state for path, state in states.items() if path[0] not in plan.unlabelled}
    found = [_File("/".join(path), *plan.split_and_class(path[:-1]), state) for path, state in used.items()]
    left_out = (images.left_out(kinds) if kinds else None, _on_empty({paths[one] for one in folders}, states))
    assumed = plan.assumed and printable(plan.assumed)
    return sorted(found, key=lambda file: file.path), assumed, tuple(map(printable, filter(None, left_out)))


def _state(entry: os.DirEntry, *, skip_unreadable: bool) -> State | None:
    """The state of a file that changes with its content; None for an unreadable file, where these are skipped.

    Raises: OSError for an unreadable file otherwise.
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


def _on_empty(folders: set[Parts], paths: Iterable[Parts]) -> str | None:
    """The line on the outermost folders without images at any depth."""
    full = {path[:depth] for path in {path[:-1] for path in paths} for depth in range(len(path) + 1)}
    empty = sorted("/".join(folder) for folder in folders if folder not in full and folder[:-1] in full)
    return f"folders without a usable image: {shortened(empty, LISTED)}" if empty else None


def _on_skipped(paths: Sequence[str]) -> str | None:
    if not paths:
        return None
    return printable(f"{len(paths):,} damaged image{'s' * (len(paths) > 1)} left out: {shortened(paths, LISTED)}")


def _check_layout(root: Path, found: Sequence[_File], left_out: str) -> None:
    """Raises ConfigError unless every image has a class, and every split the same two or more.

    Args:
        root: the folder.
        found: its `_File`s.
        left_out: what was not used, in brackets: it may be the reason why something is missing.
    """
    expected = "Expected: train/<class>/*.png|jpg, with or without val/ and test/, or <class>/*.png|jpg."
    if not found:
        raise ConfigError(f"{root} holds no images ({', '.join(sorted(images.EXTENSIONS))}){left_out}. {expected}")
    classes: dict[str, set[str]] = {}
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


def _readable(
    root: Path, found: list[_File], image_size: int | None, *, skip_unreadable: bool
) -> tuple[list[_File], Facts, np.ndarray, np.ndarray]:
    """The files that can be decoded, their facts, pixels and digests.

    The list of the others is stored, and used until a file or Pillow changes.

    Raises: UnreadableError where there are others that are not to be skipped; ConfigError where a class would be empty.
    """
    if not skip_unreadable:
        facts = _facts(root, found, image_size)
        return found, facts, *_decoded(root, found, facts["fingerprint"], image_size or facts["side"])
    noted = cache() / f"{_listing(root, found)}.unreadable-{PIL.__version__}-{len(images.DECODERS)}.json"
    damaged = set(json.loads(noted.read_text())) if noted.is_file() else set()
    kept = [file for file in found if file.state is not None and file.path not in damaged]
    if lost := {(f.split, f.class_name) for f in found} - {(f.split, f.class_name) for f in kept}:
        names = shortened(sorted("/".join(filter(None, pair)) for pair in lost), LISTED)
        raise ConfigError(f"Every image of {names} in {root} is damaged. Replace some, or remove the class.")
    try:
        return _readable(root, kept, image_size, skip_unreadable=False)
    except UnreadableError as error:  # more are known each time, so this ends
        files.write_json(noted, sorted(damaged.union(error.paths)))
        return _readable(root, found, image_size, skip_unreadable=True)


def _listing(root: Path, found: Sequence[_File]) -> str:
    """A digest, 32 hex digits, that changes when a file or its split changes."""
    listing = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16)
    for file in found:
        listing.update(os.fsencode(file.path) + repr(file.state).encode())
        if file.split and not file.path.startswith(f"{file.split}/"):
            listing.update(file.split.encode())
    return listing.hexdigest()


def _facts(root: Path, found: Sequence[_File], image_size: int | None) -> Facts:
    """Fingerprint and default side of a folder, kept until a file's size or times change.

    The first time, they come from the same reading of the files that decodes the images into the cache.

    Returns: {"fingerprint": 64 hex digits, "side": pixels}.
    """
    cached = cache() / f"{_listing(root, found)}.json"
    pixels = cached.with_suffix(".npy")  # until the fingerprint, which is part of the final name, is known
    if cached.is_file():
        return json.loads(cached.read_text())
    with files.lock(pixels, timeout=24 * 3600, busy=f"Another process is decoding {root}."):
        if cached.is_file():
            return json.loads(cached.read_text())
        size = image_size or _likely_side(root, found)
        facts = _decode(root, found, pixels, size)
        target = _pixels_file(facts["fingerprint"], size)
        if size == (image_size or facts["side"]) and not target.is_file():
            system.replace(pixels, target)
        else:
            pixels.unlink()  # there already, or of the wrong size
        files.write_json(cached, facts)
    return facts


def _likely_side(root: Path, found: Sequence[_File]) -> int:
    """The default side by the headers of some training images, so that reading the files once is mostly enough."""
    train = [file for file in found if file.split in ("", "train")]
    return _default_side(_side(root / file.path) for file in train[:: max(1, len(train) // HEADERS)])


def _side(path: Path) -> int | None:
    """The image's shorter side; None where the header can't be read: decoding will report it."""
    try:
        with Image.open(path) as image:
            return min(image.size)
    except Exception:  # noqa: BLE001
        return None


def _default_side(sides: Iterable[int | None]) -> int:
    """The most frequent of the training images' shorter sides, within the limit; None does not count."""
    counts = Counter(side for side in sides if side)
    return min(min(counts, key=lambda side: (-counts[side], side), default=MAX_DEFAULT_SIZE), MAX_DEFAULT_SIZE)


def _pixels_file(fingerprint: str, size: int) -> Path:
    return cache() / f"{fingerprint[:16]}-{size}.npy"


def _decoded(root: Path, found: Sequence[_File], fingerprint: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The decoded images as a read-only memory map, and their digests, from the cache or into it."""
    pixels = _pixels_file(fingerprint, size)
    hashes = pixels.with_suffix(".digests.npy")
    with files.lock(pixels, timeout=24 * 3600, busy=f"Another process is decoding {root}."):
        if not pixels.is_file():
            _decode(root, found, pixels, size)
        if not hashes.is_file():
            with files.replacing(hashes) as temporary:
                np.save(temporary, digests(np.load(pixels, mmap_mode="r")))
    return np.load(pixels, mmap_mode="r"), np.load(hashes)


def _decode(root: Path, found: Sequence[_File], target: Path, size: int) -> Facts:
    """Reads every file once: decodes the images into one `.npy` file and returns the folder's facts.

    The file is written in order, so that a full disk is an error, not a crash.

    Raises: UnreadableError if images can't be decoded; nothing is written then.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(found), size, size, 3)}
    digest, sides, broken = hashlib.sha256(), [], []
    with (
        files.replacing(target) as temporary,
        open(temporary, "wb") as output,
        _progress(found, f"reading {root.name}") as bar,
    ):
        np.lib.format.write_array_header_1_0(output, header)
        for file, (content, pixels, side) in zip(found, _read(root, found, size), strict=True):
            digest.update(os.fsencode(f"{content}  {file.path}\n"))  # the lines that sha256sum prints
            if side is None:
                broken.append(file.path)
            elif file.split in ("", "train"):
                sides.append(side)
            output.write(pixels)
            bar.update()
        if broken:
            raise UnreadableError(root, sorted(broken))
    return {"fingerprint": digest.hexdigest(), "side": _default_side(sides)}


def _read(root: Path, found: Sequence[_File], size: int) -> Iterator[reading.Read]:
    """Every file's content, see `reading.read`; an error of a file becomes one that is not taken for the cache's."""
    try:
        yield from reading.read_all([os.path.join(root, file.path) for file in found], size)
    except OSError as error:
        raise _not_readable(error) from error


def _parts(root: Path, found: Sequence[_File], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices into the files for each split; missing splits are carved from train."""
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


def _slug(name: str, fingerprint: str) -> str:
    """Part of file names: lower-case letters, digits and dashes, and 6 digits of the fingerprint."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'folder'}-{fingerprint[:6]}"


def _progress(found: Sequence[_File], what: str) -> tqdm:
    return tqdm(total=len(found), unit=" images", desc=what, mininterval=1)
