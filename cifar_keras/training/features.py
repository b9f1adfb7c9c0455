"""Features of a frozen backbone: computed once per image and view, kept on disk, and trained on in place of images.

A frozen backbone in inference mode is a pure function of the image, and augmentation is one of (seed, epoch, index). So
the model is cut after its pooling layer: the trunk runs once for each view of each image, and `fit` trains the head on
a dataset that holds features. Both share the layers of the whole model, which therefore has the trained head.

Features are float32, as the network computes them: 8 KiB per image for ResNet50, 369 MB per view of 45,000 images.
float16 would halve that but lose four of seven digits, and time runs out before the disk is full: a view takes half an
hour at 224 pixels on two cores. `$CIFAR_KERAS_CACHE/features` may be deleted at any time, even during a run, since the
run keeps its files open.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cifar_keras.config import ConfigError, HeldError, RunFailedError
from cifar_keras.data.augment import augmented, mixes
from cifar_keras.data.base import Split
from cifar_keras.data.pipeline import evaluation_pipeline
from cifar_keras.training.train import evaluation_batch, progress_bar, time_left
from cifar_keras.utils import runtime
from cifar_keras.utils.cache import cache, cache_folder
from cifar_keras.utils.files import lock, settle
from cifar_keras.utils.text import duration

POOL = "head_pool"  # every head's first layer: it has no weights, and returns one vector per image
WITHOUT_EFFECT = ("momentum", "trainable")  # on what a layer computes in inference mode
LINE = re.compile(rb" *(\d+\.\d{3}) ([0-9a-f]{32})\n")  # of a journal: seconds, digest
HASHED = 256  # images read at a time
REPORT_EVERY = 60  # seconds


@dataclass(frozen=True)
class Views(Split):
    """A split that holds features in place of images, in several views, of which each epoch sees one."""

    views: tuple = ()  # float32 `(n, channels)` each; `images` is the first of them

    def in_epoch(self, epoch):
        return self.views[epoch % len(self.views)]


class Stored:
    """An `.npy` file that is memory-mapped only while it is indexed: open maps count as memory of the process."""

    def __init__(self, path):
        mapped = np.load(path, mmap_mode="r")
        self.shape, self.dtype, self.offset = mapped.shape, mapped.dtype, mapped.offset
        self.file = open(path, "rb")  # outlives the file's name

    def __del__(self):
        self.file.close()

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        return np.array(np.memmap(self.file, self.dtype, "r", self.offset, self.shape)[key])


@dataclass(frozen=True)
class FeatureFile:
    """Features of one split in one view: a file that grows block by block and is renamed when it is whole.

    `<name>.blocks` beside it has one line per block: the seconds it took, and its digest. Only blocks that agree with
    their line count, so what a kill, a power cut or a bad disk has spoilt is computed again.

    Attributes:
        path: where the whole file stands.
        split: `data.base.Split`, of images.
        view: keywords of `evaluation_pipeline`: seed, epoch, augmentation.
        width: numbers a feature.
        block: images at a time.
    """

    path: Path
    split: Split
    view: dict
    width: int
    block: int

    @property
    def partial(self):
        return self.path.with_suffix(".partial")

    @property
    def journal(self):
        return self.path.with_suffix(".blocks")

    @property
    def blocks(self):
        """Number of blocks; the last may be shorter."""
        return -(-len(self.split) // self.block)

    @property
    def header(self):
        """The bytes in front of the numbers."""
        buffer = io.BytesIO()
        shape = (len(self.split), self.width)
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def images(self, blocks):
        """How many images the first blocks hold."""
        return min(blocks * self.block, len(self.split))

    def size(self, blocks):
        """Bytes of the file with its first blocks."""
        return len(self.header) + 4 * self.width * self.images(blocks)

    def intact(self):
        """The seconds that each block took, up to the first that is missing or damaged."""
        path, seconds = self.path if self.path.is_file() else self.partial, []
        if not path.is_file() or not self.journal.is_file():
            return seconds
        lines = self.journal.read_bytes().splitlines(keepends=True)[: self.blocks]
        with open(path, "rb") as file:
            if file.read(len(self.header)) != self.header:
                return seconds
            for line in lines:
                match = LINE.fullmatch(line)
                if not match or match[2] != _digest(file.read(4 * self.width * self.block)):
                    break
                seconds.append(float(match[1]))
        return seconds

    def whole(self, intact):
        """Whether all blocks are there, given the result of `intact`, and the file has its final name."""
        return len(intact) == self.blocks and self.path.is_file()

    def extend(self, trunk, *, after, each):
        """Computes the blocks that follow the first `after`, and calls `each` with the number of images in each.

        Returns: the seconds that each took.
        """
        seconds = []
        with open(self.partial, "ab") as file, open(self.journal, "ab") as journal:
            file.truncate(self.size(after) if after else 0)
            journal.truncate(after * len(_line(0.0, b"")))
            if not after:
                file.write(self.header)
            mark = time.perf_counter()
            batches = evaluation_pipeline(self.split, batch_size=self.block, first=after * self.block, **self.view)
            for images, _ in batches:
                images = images.numpy()
                # The last block is filled up with copies: a batch of another size would take seconds to trace.
                full = np.resize(images, (self.block, *images.shape[1:]))
                rows = trunk.predict_on_batch(full)[: len(images)].astype("<f4").tobytes()
                file.write(rows)
                file.flush()  # before its line
                before, mark = mark, time.perf_counter()
                seconds.append(mark - before)
                journal.write(_line(mark - before, rows))
                journal.flush()
                each(len(images))
            os.fsync(journal.fileno())  # else a power cut may leave blocks without their lines
        return seconds


def _digest(data):
    """A digest of 32 hex digits, as bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest().encode("ascii")


def _line(seconds, rows):
    """A journal's line, see LINE; all are of one length."""
    return b"%11.3f %s\n" % (seconds, _digest(rows))


def frozen(row, training):
    """Whether no stage of a recipe trains the backbone, and its BatchNorm does not follow the batches either."""
    untrained = row.trainable == "head" or all(stage.freeze_backbone for stage in training.stages)
    return untrained and row.frozen_norm is None


def applicable(model, row, training):
    """Whether the backbone always gives the same vector for the same view of an image. Arguments as for `extracted`."""
    if training.views == 0 or training.also_score == "epochs" or not frozen(row, training):
        return False  # an audit sends images through the whole model after every epoch
    if mixes(row.augmentation) or training.distillation:
        return False  # an image's partner changes from epoch to epoch; a teacher needs the images
    trunk, _ = cut(model)
    return not any(getattr(layer, "seed_generator", None) for layer in trunk.layers)  # a frozen dropout still drops


def cut(model):
    """Cuts a model after its pooling layer.

    Returns: `(trunk, head)`: images to features `(batch, channels)`, and features to logits, of the model's own layers.
    """
    features = model.get_layer(POOL).output
    return keras.Model(model.input, features, name="trunk"), keras.Model(features, model.output, name="head")


def views_of(row, training):
    """How many views of each training image are extracted: at most one per epoch, and one if all are alike."""
    return min(training.views or training.epochs, training.epochs) if row.augmentation else 1


def extracted(model, row, dataset, training, *, seed, deterministic, resume, progress):
    """Cuts a model with a frozen backbone, and extracts the features that are not in the cache.

    After a kill it continues with the first unfinished block. Equal arguments give bit-identical features, whether
    cached, resumed or neither.

    Args:
        model: from `zoo.build`, with the weights that training starts from; see `applicable`.
        row: its `zoo.ModelSpec`.
        dataset: `data.base.Dataset`, of images.
        training: `config.Training`.
        seed: the run's, of augmentation.
        deterministic: whether kernels are forced to be reproducible.
        resume: `train.Resume`.
        progress: `train.Progress`; its `features` are filled in.
    Returns: `(head, row, dataset)` for `fit`: the dataset's train and val hold features; test keeps its images.
    Raises: ConfigError if the disk has no room for them; RunFailedError if it fills up meanwhile.
    """
    trunk, head = cut(model)
    files = planned(trunk, row, dataset, training, seed=seed, deterministic=deterministic)
    done = [file.intact() for file in files]
    print(summary(files, done), flush=True)
    require_room(files, done)
    left, total = _left(files, done), sum(len(file.split) for file in files)
    with progress_bar(total, total - left, desc="features", unit=" images") as bar:
        report = Report(bar, left=left)
        for file, seconds in zip(files, done, strict=True):
            if file.whole(seconds):
                progress.features.setdefault(file.path.name, {"seconds": sum(seconds), "cached": True})
            else:
                missing = len(file.split) - file.images(len(seconds))
                _complete(file, trunk, missing=missing, report=report, resume=resume, progress=progress)
    *views, val = (Stored(file.path) for file in files)
    train = Views(views[0], dataset.train.labels, dataset.train.coarse_labels, tuple(views))
    val = dataclasses.replace(dataset.val, images=val)
    return head, dataclasses.replace(row, augmentation=()), dataclasses.replace(dataset, train=train, val=val)


def described(model, row, dataset, training, *, seed, deterministic):
    """The line of `summary` for a run that has not begun. Arguments as for `extracted`."""
    files = planned(cut(model)[0], row, dataset, training, seed=seed, deterministic=deterministic)
    return summary(files, [file.intact() for file in files])


def planned(trunk, row, dataset, training, *, seed, deterministic):
    """The files that a run needs: one for each view of train, then val.

    Their names end with a digest of everything that the features depend on. Arguments as for `extracted`.
    """
    plain = {"seed": 0, "epoch": 0, "augmentation": ()}
    changed = {"seed": seed, "augmentation": row.augmentation} if row.augmentation else plain
    views = [changed | {"epoch": view} for view in range(views_of(row, training))]
    block = min(evaluation_batch(row, dataset), len(dataset.train))
    facts = {**_network(trunk), **_machine(deterministic), "dataset": dataset.fingerprint, "block": block}
    pixels = {name: _pixels(getattr(dataset, name).images) for name in ("train", "val")}
    steps = _steps(row.augmentation, dataset.train.images)

    def file_of(split, view):
        seen = {**view, "pixels": pixels[split], "steps": steps if view["augmentation"] else None}
        text = json.dumps({**facts, **seen}, sort_keys=True)
        parts = (dataset.slug, split, *((f"view{view['epoch'] + 1}",) if view["augmentation"] else ()))
        name = "-".join((*parts, row.backbone, f"{row.pixels}px", _digest(text.encode())[:16].decode()))
        path = cache_folder() / "features" / f"{name}.npy"
        return FeatureFile(path, getattr(dataset, split), view, trunk.output_shape[-1], block)

    return [*(file_of("train", view) for view in views), file_of("val", plain)]


def _network(trunk):
    """What a trunk computes: its layers, without what has no effect here, and the digest of its weights."""
    layers = json.loads(trunk.to_json(), object_hook=lambda d: {k: v for k, v in d.items() if k not in WITHOUT_EFFECT})
    return {"layers": layers, "weights": _sha256(trunk.get_weights())}


def _machine(deterministic):
    """The parts of the environment that change the last digits of features."""
    names = ("backend", "device", "keras", "tensorflow")
    facts = {name: value for name, value in runtime.environment().items() if name in names}
    facts["backend_version"] = runtime.version(facts["backend"])
    return facts | {"onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS"), "deterministic": deterministic}


def _pixels(images):
    """The digest of a split's images, read a block at a time."""
    return _sha256(images[start : start + HASHED] for start in range(0, len(images), HASHED))


def _sha256(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _steps(names, images):
    """A digest of some augmented images, which changes with the code of the augmentation."""
    seeds = np.random.RandomState(0).randint(0, 2**16, (64, 3)).astype("int32")  # odd epochs as well as even ones
    probe = np.resize(images[:8], (64, *images.shape[1:]))
    return _digest(np.asarray(augmented(probe, seeds, names)).tobytes()).decode()


def _complete(file, trunk, *, missing, report, resume, progress):
    """Extracts the missing part of a file. No kill loses the time it took: it is stored before the file gets its name.

    Raises: HeldError if another process holds the file for more than a day.
    """
    with _turn(file), _write_errors(file):
        seconds = file.intact()
        cached = file.whole(seconds)  # completed by the process that this one has waited for
        if cached:
            report.skip(missing)
        else:
            if file.path.is_file():
                print(f"{file.path} is damaged: computed again from block {len(seconds) + 1} on", flush=True)
                os.replace(file.path, file.partial)
            begun = time.process_time()
            seconds += file.extend(trunk, after=len(seconds), each=report.update)
            progress.cpu_seconds += time.process_time() - begun
        progress.features[file.path.name] = {"seconds": sum(seconds), "cached": cached}
        resume.note(progress)
        if not cached:
            settle(file.partial, file.path)


@contextlib.contextmanager
def _turn(file):
    """Holds the file's lock. If another process has it, prints a line and waits."""
    busy = "Another process is extracting the same features."
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(file.path, timeout=0, busy=busy))
        except HeldError as error:
            print(f"{error} This one waits for it.", flush=True)
            stack.enter_context(lock(file.path, timeout=24 * 3600, busy=busy))
        yield


@contextlib.contextmanager
def _write_errors(file):
    """Turns an OSError into a RunFailedError that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(
            f"Could not write {file.partial}: {error.strerror}. What is there already stays and is not computed again. "
            "Free some space, or set CIFAR_KERAS_CACHE to a folder that has some, then run the same command; with "
            "`--on-the-fly` no features are stored."
        ) from error


def require_room(files, done):
    """Checks that the missing part of the files fits on the disk.

    Args:
        files: from `planned`.
        done: `FeatureFile.intact` of each.
    Raises: ConfigError if it does not, or if the cache can't be written.
    """
    needed = sum(file.size(file.blocks) - file.size(len(seconds)) for file, seconds in zip(files, done, strict=True))
    if not needed:
        return
    folder = cache()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"This run's features take {needed / 1e9:.1f} GB more in {folder}. Received: {free / 1e9:.1f} GB free. "
            "Free some space, set CIFAR_KERAS_CACHE to a folder that has it, ask for fewer (`--views N`) or for none "
            "(`--on-the-fly`)."
        )


def summary(files, done):
    """A line on which features a run uses and where they come from. Arguments as for `require_room`."""
    *views, val = (len(file.split) for file in files)
    what = f"{len(views)} view{'s' * (len(views) > 1)} of {views[0]:,} train images, {val:,} val"
    if not (left := _left(files, done)):
        return f"features: {what}; from the cache, extracting them had taken {duration(sum(map(sum, done)))}"
    size = sum(file.size(file.blocks) for file in files) / 1e9
    total = sum(len(file.split) for file in files)
    return f"features: {what}; {left:,} of {total:,} to extract, once: {size:.2f} GB in {files[0].path.parent}"


def _left(files, done):
    """The number of images whose features are not in the files yet."""
    return sum(len(file.split) - file.images(len(seconds)) for file, seconds in zip(files, done, strict=True))


class Report:
    """Updates a bar over the images of all files, and prints one line per minute."""

    def __init__(self, bar, *, left):
        self.bar = bar
        self.left = self.todo = left
        self.start = self.printed = time.perf_counter()

    def skip(self, images):
        """Counts images whose features another process has extracted meanwhile."""
        self.bar.update(images)
        self.left, self.todo = self.left - images, self.todo - images

    def update(self, images):
        """Counts images whose features have just been extracted."""
        self.bar.update(images)
        self.left -= images
        now = time.perf_counter()
        if now - self.printed >= REPORT_EVERY:
            self.printed, speed = now, (self.todo - self.left) / (now - self.start)
            done = f"features {self.bar.total - self.left:,}/{self.bar.total:,}  {speed:.1f} images/s"
            self.bar.write(f"{done}  {time_left(self.left / speed)}", file=sys.stdout)
            sys.stdout.flush()
