"""CIFAR-10 and CIFAR-100 from the official archives: found or downloaded, checked, and read without running them."""

import hashlib
import http.client
import io
import pickle
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from cifar_keras.config import ConfigError
from cifar_keras.data.base import Dataset, Split, carve, digests, identical_pixels, take
from cifar_keras.utils import files
from cifar_keras.utils.paths import StrPath, keras_cache, search_paths

TIMEOUT = 15  # seconds without a byte, until a download counts as failed
MEMBER_BYTES = 2**28  # the largest member has 155 MB


@dataclass(frozen=True)
class Archive:
    """A published archive, and what of it is read.

    Attributes:
        label: for tables and messages.
        url: its official address.
        sha256: of the archive, as Keras 3.15 publishes it.
        folder: the archive's only folder, which is also the name of the unpacked one.
        keras_name: under which Keras caches it.
        train, test: the members with images, in order, and the MD5 of each (torchvision's lists).
        meta: the member with the class names, and its MD5.
        labels, names: keys of the labels and the class names; then the same for superclasses, where there are any.
    """

    label: str
    url: str
    sha256: str
    folder: str
    keras_name: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels: bytes
    names: bytes
    coarse_labels: bytes | None = None
    coarse_names: bytes | None = None

    @property
    def members(self) -> dict[str, str]:
        """Every member that is read, and its MD5."""
        return self.train | self.test | self.meta

    @property
    def file(self) -> str:
        """The archive's official file name."""
        return self.url.rsplit("/", 1)[1]


ARCHIVES = {
    "cifar10": Archive(
        label="CIFAR-10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        keras_name="cifar-10-batches-py-target",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels=b"labels",
        names=b"label_names",
    ),
    "cifar100": Archive(
        label="CIFAR-100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        keras_name="cifar-100-python-target",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels=b"fine_labels",
        names=b"fine_label_names",
        coarse_labels=b"coarse_labels",
        coarse_names=b"coarse_label_names",
    ),
}
SUPERCLASSES = {  # of CIFAR-100, each with its five classes, by the names in the archive
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}


def load(name: str, *, data_dir: StrPath | None = None) -> Dataset:
    """Loads 'cifar10' or 'cifar100'; val is a tenth of the 50,000 training images, stratified, always the same.

    Args:
        name: a key of `ARCHIVES`.
        data_dir: looked into first; then `$CIFAR_KERAS_DATA`, then the cache of Keras. In each place the archive
            counts as well as the folder unpacked from it. Found nowhere, the archive is downloaded into that cache.
    Returns: `Dataset`; its fingerprint is the same for the archive and for the folder.
    Raises: ConfigError if the data can't be found or downloaded, or aren't the published ones. Nothing is changed.
    """
    archive = ARCHIVES[name]
    source = find(archive, data_dir) or _download(archive)
    batches = _from_folder(archive, source) if source.is_dir() else _from_archive(archive, source)
    (meta,) = (batches.pop(member) for member in archive.meta)
    class_names, superclass_names = _names(meta, archive.names, source), _names(meta, archive.coarse_names, source)
    train = _split(archive, [batches.pop(member) for member in archive.train], source)
    test = _split(archive, [batches.pop(member) for member in archive.test], source)
    fingerprint = _fingerprint(train, test, class_names, superclass_names)
    rest, held_out = carve(train.labels, len(train) // 10)
    val, train = take(train, held_out), take(train, rest)
    return Dataset(
        slug=name,
        label=archive.label,
        fingerprint=fingerprint,
        class_names=class_names,
        superclass_names=superclass_names,
        train=train,
        val=val,
        test=test,
        notes=(identical_pixels(*(digests(split.images) for split in (train, val, test))),),
    )


def find(archive: Archive, data_dir: StrPath | None) -> Path | None:
    """The first archive or unpacked folder in the search paths, unchecked, or None."""
    for path in search_paths(data_dir, "datasets"):
        for file in (path, path / archive.file, path / f"{archive.keras_name}_archive"):
            if file.is_file():
                return file
        for folder in (path, path / archive.folder, path / archive.keras_name / archive.folder):
            if all((folder / member).is_file() for member in archive.members):
                return folder
    return None


def _download(archive):
    """Downloads into the cache of Keras, under Keras's name for it; the file appears there once it is checked."""
    target = keras_cache("datasets") / f"{archive.keras_name}_archive"
    try:
        with urllib.request.urlopen(archive.url, timeout=TIMEOUT) as response, files.replacing(target) as temporary:
            _receive(response, temporary, archive.file)
            _check(files.sha256(temporary), archive, archive.url)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"{archive.label} was not found and could not be downloaded from {archive.url} "
            f"({getattr(error, 'reason', None) or error}). Either fetch it elsewhere and put {archive.file} "
            f"(SHA-256 {archive.sha256}) into {keras_cache('datasets')}, or into a folder named by `--data-dir` or "
            "CIFAR_KERAS_DATA; or go without it: `--dataset shapes` needs no file, `--dataset FOLDER` takes "
            "any folder of images."
        ) from error
    return target


def _receive(response, path, name):
    """Copies the response to a file, with a bar that shows speed and time left."""
    total = int(response.headers.get("Content-Length") or 0) or None
    with open(path, "wb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=name) as bar:
        while chunk := _read(response):
            file.write(chunk)
            bar.update(len(chunk))


def _read(response):
    try:
        return response.read(2**16)
    except OSError as error:  # another type, as a full disk raises an OSError too
        raise http.client.HTTPException(f"the connection broke: {error}") from error


def check(archive: Archive, source: Path) -> None:
    """Compares an archive, or every file of an unpacked folder, with the published checksums.

    Raises: ConfigError if one differs.
    """
    if source.is_dir():
        for member in archive.members:
            _published(archive, source, member)
    else:
        _check(files.sha256(source), archive, source)


def _check(received, archive, name):
    """Raises ConfigError unless a SHA-256 is the published one."""
    if received != archive.sha256:
        raise ConfigError(
            f"{name} is not the published {archive.label} archive, or not all of it. Expected SHA-256 "
            f"{archive.sha256}, received {received}. Fetch {archive.url} again; what is on disk was not changed."
        )


def _from_archive(archive, path):
    """Reads the members straight from the tar file: nothing is unpacked to disk, no other member is looked at."""
    with open(path, "rb") as file:
        _check(hashlib.file_digest(file, "sha256").hexdigest(), archive, path)
        file.seek(0)
        batches = {}
        try:
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                for info in tar:
                    folder, member = PurePosixPath(info.name).parent, PurePosixPath(info.name).name
                    if str(folder) == archive.folder and member in archive.members and info.isfile():
                        batches[member] = _unpickle(_member(tar, info), f"{path}, {info.name}")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise ConfigError(
                f"{path} can't be read as a gzipped tar archive: {error}. Fetch {archive.url}."
            ) from error
    if missing := sorted(archive.members.keys() - batches.keys()):
        raise ConfigError(f"{path} lacks {', '.join(missing)} in {archive.folder}/. Fetch {archive.url} again.")
    return batches


def _member(tar, info):
    if info.size > MEMBER_BYTES:
        raise tarfile.ReadError(f"{info.name} claims {info.size:,} bytes, at most {MEMBER_BYTES:,} are allowed")
    return tar.extractfile(info).read()


def _from_folder(archive, folder):
    """Reads the unpacked files, each checked against its published MD5."""
    return {member: _unpickle(_published(archive, folder, member), folder / member) for member in archive.members}


def _published(archive, folder, member):
    """The bytes of one unpacked file, which must be the published ones."""
    data = (folder / member).read_bytes()
    received, expected = hashlib.md5(data, usedforsecurity=False).hexdigest(), archive.members[member]
    if received != expected:
        raise ConfigError(
            f"{folder / member} is not the published file. Expected MD5 {expected}, received {received}. "
            f"Unpack {archive.url} again, or name another place with `--data-dir`; nothing was changed."
        )
    return data


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # NumPy moves it from module to module
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Builds arrays, and nothing else: a pickle can name any function and have it called."""

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only NumPy arrays are allowed")
        return _ALLOWED[module, name]


def _unpickle(data, name):
    """A batch file's dictionary: bytes keys, as Python 2 wrote them."""
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # bytes that are no pickle make it raise nearly anything
        raise ConfigError(f"{name} was refused: {error}. Expected: a pickled CIFAR batch. Fetch it again.") from error
    if not isinstance(batch, dict):
        raise ConfigError(f"{name} was refused: expected a dictionary, received {type(batch).__name__}.")
    return batch


def _split(archive, batches, source):
    """Batches to one `Split`; the 3072 bytes of an image are its red, green and blue planes, row by row."""
    try:
        planes = np.concatenate([batch[b"data"] for batch in batches])
        images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels, coarse = (
            np.concatenate([np.array(batch[key], np.int32) for batch in batches]) if key else None
            for key in (archive.labels, archive.coarse_labels)
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{source} does not hold CIFAR batches: {error!r}. Fetch {archive.url} again.") from error
    if images.dtype != np.uint8 or len(images) != len(labels):
        raise ConfigError(
            f"{source}: expected one label for each uint8 image, received {len(labels)} labels for {len(images)} "
            f"images of {images.dtype}. Fetch {archive.url} again."
        )
    return Split(images, labels, coarse)


def _names(meta, key, source):
    """The class names under a key; none without a key."""
    try:
        return tuple(name.decode() for name in meta[key]) if key else ()
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{source} holds no class names under {key!r}: {error!r}. Fetch it again.") from error


def _fingerprint(train, test, *names):
    """SHA-256 over names, labels and pixels, in the archive's order and before anything is carved."""
    digest = hashlib.sha256(repr(names).encode())
    for split in (train, test):
        for array in (split.images, split.labels, split.coarse_labels):
            if array is not None:
                digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")))
    return digest.hexdigest()
