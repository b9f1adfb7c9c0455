"""The CIFAR archives: found, checked, and read without running what a pickle asks for."""

import dataclasses
import hashlib
import io
import pickle
import shutil
import socket
import struct
import tarfile
import time
import urllib.error
import urllib.request
from email.message import Message

import numpy as np
import pytest

from cifar_keras.config import ConfigError
from cifar_keras.data import cifar, load


class Python2Pickler(pickle._Pickler):
    """Writes what the official files hold: protocol 2, bytes as Python 2 strings, NumPy's old module name."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(archive, count, seed):
    random = np.random.RandomState(seed)
    classes = 10 if archive.coarse_labels is None else 20
    content = {
        b"data": random.randint(0, 256, (count, 3072)).astype(np.uint8),
        archive.labels: [i % classes for i in range(count)],
        b"filenames": [b"a.png"] * count,
    }
    return content | ({archive.coarse_labels: [i % 4 for i in range(count)]} if archive.coarse_labels else {})


def contents_of(archive):
    """Every member of a small archive of the same format."""
    counts = dict.fromkeys(archive.train, 200 // len(archive.train)) | dict.fromkeys(archive.test, 40)
    contents = {member: batch(archive, n, seed) for seed, (member, n) in enumerate(counts.items())}
    names = {archive.names: [b"class %d" % i for i in range(10 if archive.coarse_labels is None else 20)]}
    names |= {archive.coarse_names: [b"super %d" % i for i in range(4)]} if archive.coarse_names else {}
    return contents | dict.fromkeys(archive.meta, names)


def write_archive(path, archive, pickles):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for member, data in {"readme.html": b"hello", **pickles}.items():
            info = tarfile.TarInfo(f"{archive.folder}/{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(autouse=True)
def keras_home(tmp_path, monkeypatch):
    """No test sees the machine's data, and none reaches the network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("CIFAR_KERAS_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path / "keras"


real_urlopen = urllib.request.urlopen


def no_network(url, timeout):
    assert timeout <= 15
    raise urllib.error.URLError("no route to host")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """`small(name, contents=..., pickles=...)` publishes a small archive and returns its path."""

    def publish(name="cifar10", *, contents=None, pickles=None):
        archive = cifar.ARCHIVES[name]
        contents = contents or contents_of(archive)
        pickles = {member: python2_pickle(value) for member, value in contents.items()} | (pickles or {})
        path = tmp_path / "published" / archive.file
        write_archive(path, archive, pickles)
        republish(name, path, pickles)
        return path

    def republish(name, path, pickles):
        archive = cifar.ARCHIVES[name]
        md5 = {member: hashlib.md5(data).hexdigest() for member, data in pickles.items()}
        parts = {part: {m: md5[m] for m in getattr(archive, part)} for part in ("train", "test", "meta")}
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(cifar.ARCHIVES, name, dataclasses.replace(archive, sha256=sha256, **parts))

    return publish


def unpacked(path, target):
    with tarfile.open(path) as tar:
        tar.extractall(target, filter="data")
    return target / cifar.ARCHIVES["cifar10"].folder


def test_pixels_and_labels_are_those_of_the_archive(small):
    path = small()
    dataset = load("cifar10", data_dir=path.parent)
    content = contents_of(cifar.ARCHIVES["cifar10"])["test_batch"]
    assert dataset.test.images.shape == (40, 32, 32, 3) and dataset.test.images.dtype == np.uint8
    assert dataset.test.images[3, 5, 7].tolist() == [content[b"data"][3, p * 1024 + 5 * 32 + 7] for p in range(3)]
    assert dataset.test.labels.tolist() == content[b"labels"] and dataset.test.labels.dtype == np.int32
    assert (dataset.slug, dataset.label, dataset.class_names[1]) == ("cifar10", "CIFAR-10", "class 1")
    assert dataset.notes == ("identical pixels: train-val 0, train-test 0, val-test 0",)


def test_val_is_a_stratified_tenth_that_train_lacks(small):
    dataset = load("cifar10", data_dir=small().parent)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (180, 20, 40)
    assert np.bincount(dataset.val.labels).tolist() == [2] * 10
    train, val = ({image.tobytes() for image in split.images} for split in (dataset.train, dataset.val))
    assert len(train) == 180 and len(val) == 20 and not train & val


def test_archive_folder_and_keras_cache_are_one_dataset(small, tmp_path, keras_home, monkeypatch):
    path = small()
    folder = unpacked(path, tmp_path / "unpacked")
    keras = keras_home / "datasets"
    shutil.copytree(folder, keras / "cifar-10-batches-py-target" / folder.name)
    datasets = [load("cifar10", data_dir=place) for place in (path.parent, path, folder.parent, folder, None)]
    shutil.rmtree(keras / "cifar-10-batches-py-target")
    shutil.copy(path, keras / "cifar-10-batches-py-target_archive")
    datasets.append(load("cifar10"))
    (keras / "cifar-10-batches-py-target_archive").unlink()
    monkeypatch.setenv("CIFAR_KERAS_DATA", str(folder.parent))
    datasets.append(load("cifar10"))
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    for dataset in datasets:
        np.testing.assert_array_equal(dataset.train.images, datasets[0].train.images)


def test_another_pixel_is_another_fingerprint(small):
    first = load("cifar10", data_dir=small().parent).fingerprint
    contents = contents_of(cifar.ARCHIVES["cifar10"])
    contents["data_batch_1"][b"data"][0, 0] ^= 1
    assert load("cifar10", data_dir=small(contents=contents).parent).fingerprint != first


def test_a_wrong_archive_is_refused_by_name_and_kept(small):
    path = small()
    path.write_bytes(altered := path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError) as caught:
        load("cifar10", data_dir=path.parent)
    message = str(caught.value)
    assert str(path) in message and cifar.ARCHIVES["cifar10"].sha256 in message
    assert hashlib.sha256(altered).hexdigest() in message
    assert path.read_bytes() == altered


def test_a_wrong_file_of_the_folder_is_refused_by_name(small, tmp_path):
    folder = unpacked(small(), tmp_path)
    with open(folder / "data_batch_3", "ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match=r"data_batch_3 is not the published file\. Expected MD5 \w{32}, received"):
        load("cifar10", data_dir=tmp_path)


def test_the_jpeg_images_pass_for_no_archive():
    assert cifar.ARCHIVES["cifar10"].sha256.startswith("6d958be0")
    assert cifar.ARCHIVES["cifar100"].sha256.startswith("85cd44d0")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_pickle_that_asks_for_a_function_is_refused_and_not_run(small, tmp_path, as_folder):
    trap = tmp_path / "executed"
    path = small(pickles={"test_batch": python2_pickle({b"data": Malicious(trap)})})
    place = unpacked(path, tmp_path) if as_folder else path
    with pytest.raises(ConfigError, match=r"test_batch was refused: .*(posix|nt)\.system"):
        load("cifar10", data_dir=place)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({b"data": np.zeros((40, 3071), np.uint8)}, "CIFAR batches"),
        ({b"data": np.zeros((40, 3072), np.float32)}, "float32"),
        ({b"data": np.zeros((39, 3072), np.uint8)}, "40 labels for 39"),
        ({b"labels": None}, "CIFAR batches"),
    ],
)
def test_other_shapes_and_types_are_refused(small, broken, message):
    contents = contents_of(cifar.ARCHIVES["cifar10"])
    contents["test_batch"] |= broken
    with pytest.raises(ConfigError, match=message):
        load("cifar10", data_dir=small(contents=contents))


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1], protocol=2)])
def test_a_member_that_is_no_batch_is_refused(small, data):
    with pytest.raises(ConfigError, match="test_batch was refused"):
        load("cifar10", data_dir=small(pickles={"test_batch": data}))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_archive_is_a_sentence_even_if_its_checksum_fits(small, monkeypatch, keep):
    path = small()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ConfigError, match="not all of it"):
        load("cifar10", data_dir=path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", dataclasses.replace(cifar.ARCHIVES["cifar10"], sha256=sha256))
    with pytest.raises(ConfigError, match="can't be read as a gzipped tar|lacks"):
        load("cifar10", data_dir=path)


def test_a_member_larger_than_any_real_one_is_not_read(small, monkeypatch):
    path = small()
    monkeypatch.setattr(cifar, "MEMBER_BYTES", 1000)
    with pytest.raises(ConfigError, match="at most 1,000 are allowed"):
        load("cifar10", data_dir=path)


def test_no_file_and_no_network_says_what_to_do_and_writes_nothing(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load("cifar10", data_dir=tmp_path)
    for part in (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        str(tmp_path / "keras" / "datasets"),
        "--dataset shapes",
        "--dataset FOLDER",
        "no route to host",
    ):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Response(io.BytesIO):
    """What urlopen returns; `breaks` makes the connection end with an error."""

    def __init__(self, data, *, breaks=False):
        super().__init__(data)
        self.headers, self.breaks = Message(), breaks
        self.headers["Content-Length"] = str(len(data))

    def read(self, size=-1):
        data = super().read(size)
        if not data and self.breaks:
            raise ConnectionResetError("reset by peer")
        return data


def test_a_download_is_checked_and_found_the_next_time(small, keras_home, monkeypatch):
    path = small()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(path.read_bytes()))
    first = load("cifar10")
    assert [f.name for f in (keras_home / "datasets").iterdir()] == ["cifar-10-batches-py-target_archive"]
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert load("cifar10").fingerprint == first.fingerprint


@pytest.mark.parametrize(("breaks", "message"), [(True, "reset by peer"), (False, "not all of it")])
def test_a_broken_download_leaves_nothing_behind(small, keras_home, monkeypatch, breaks, message):
    half = small().read_bytes()[:5000]
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(half, breaks=breaks))
    with pytest.raises(ConfigError, match=message):
        load("cifar10")
    assert list((keras_home / "datasets").iterdir()) == []


def test_a_server_that_never_answers_is_given_up(small, keras_home, monkeypatch):
    small()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setitem(cifar.ARCHIVES, "cifar10", dataclasses.replace(cifar.ARCHIVES["cifar10"], url=url))
        monkeypatch.setattr(urllib.request, "urlopen", real_urlopen)
        monkeypatch.setattr(cifar, "TIMEOUT", 0.2)
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"could not be downloaded .*timed out"):
            load("cifar10")
    assert time.monotonic() - start < 5 and not keras_home.exists()


def test_cifar100_has_fine_labels_and_superclasses(small):
    dataset = load("cifar100", data_dir=small("cifar100").parent)
    assert (dataset.slug, dataset.label) == ("cifar100", "CIFAR-100")
    assert len(dataset.class_names) == 20 and dataset.superclass_names[3] == "super 3"
    for split in (dataset.train, dataset.val, dataset.test):
        np.testing.assert_array_equal(split.coarse_labels, split.labels % 4)


def test_pixels_in_two_splits_are_counted(small):
    contents = contents_of(cifar.ARCHIVES["cifar10"])
    contents["test_batch"][b"data"][:5] = contents["data_batch_2"][b"data"][0]
    dataset = load("cifar10", data_dir=small(contents=contents))
    assert dataset.notes[0] in (
        "identical pixels: train-val 0, train-test 5, val-test 0",
        "identical pixels: train-val 0, train-test 0, val-test 5",
    )


def test_cifar_comes_in_its_own_size_only(small):
    with pytest.raises(ConfigError, match="must be 32 for cifar10.* Received: 64"):
        load("cifar10", data_dir=small(), image_size=64)
