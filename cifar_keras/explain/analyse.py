"""One command for a finished run: what it needs is computed once and cached, then a function a section."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from cifar_keras import artifacts, results
from cifar_keras.config import ConfigError, Limits, RunConfig
from cifar_keras.datasets import load
from cifar_keras.datasets.base import Dataset, Split, stratified, take
from cifar_keras.datasets.folder import cache
from cifar_keras.explain.activations import activations
from cifar_keras.explain.calibration import calibration
from cifar_keras.explain.errors import errors
from cifar_keras.explain.gradcam import looked_at
from cifar_keras.explain.space import feature_space
from cifar_keras.explain.versus import versus
from cifar_keras.files import replacing, sha256, write_json
from cifar_keras.paths import Paths
from cifar_keras.pipeline import evaluation_pipeline
from cifar_keras.units import duration

EMBEDDED = 10_000  # images of train, and of test, whose embeddings are compared
PICTURES = 2  # whose feature maps are shown


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        record: of the run.
        path: of its `.keras`.
        dataset: with the limits of the run.
    """

    record: dict
    path: Path
    dataset: Dataset


@dataclass(frozen=True)
class Computed:
    """What the model makes of a split: labels int `(n,)`, probabilities `(n, classes)`, embeddings `(n, channels)`."""

    labels: np.ndarray
    probabilities: np.ndarray
    embeddings: np.ndarray


def explain(name, *, root, dataset=None, data_dir=None, layer=None):
    """Analyses a finished run, and writes `results/explain/<run id>/`.

    Args:
        name: a run id, an experiment's name or number (its newest finished run), or the path of a saved model.
        root: folder that holds `results/` and `model_cp/`.
        dataset: as `--dataset`; needed for runs on image folders.
        data_dir: as `--data-dir`.
        layer: of Grad-CAM; None takes the last one with places.
    Returns: the folder.
    Raises: ConfigError where the run, its model or its data can't be had.
    """
    subject = find(name, root=Path(root), dataset=dataset, data_dir=data_dir)
    folder = Path(root) / "results" / "explain" / subject.record["run_id"]
    print(
        f"{subject.record['run_id']}: {len(subject.dataset.test):,} test images of {subject.dataset.label}", flush=True
    )
    model = artifacts.load(subject.path)
    computed = {split: _computed(model, subject, split) for split in ("train", "val", "test")}
    made, start = [], time.monotonic()
    steps = sections(subject, model, computed, root=root, layer=layer)
    for place, (what, make) in enumerate(steps.items(), start=1):
        print(f"explain {place}/{len(steps)}: {what}", end="", flush=True)
        before = time.monotonic()
        try:
            section = make()
        except ValueError as error:  # a model without places, one run alone
            print(f": left out ({error})", flush=True)
            continue
        section.save(folder)
        made.append(section.name)
        print(f", {duration(time.monotonic() - before)}", flush=True)
    facts = {name: subject.record.get(name) for name in ("run_id", "experiment", "variant", "dataset", "test_n")}
    write_json(folder / "index.json", {**facts, "sections": made})
    print(f"{folder} after {duration(time.monotonic() - start)}")
    return folder


def sections(subject, model, computed, *, root, layer):
    """The functions to call, by what they are about."""
    data, test, val = subject.dataset, computed["test"], computed["val"]
    names, predicted = data.class_names, test.probabilities.argmax(axis=1)
    right = float(np.mean(predicted == test.labels))
    coarse = subject.record.get("superclass_of")
    train_images = take(data.train, chosen(data.train)).images
    few = [int(np.argmax(test.labels == label)) for label in np.unique(test.labels)[:PICTURES]]
    groups = {"superclass": coarse, "superclass_names": data.superclass_names} if coarse else {}
    return {
        "errors": lambda: errors(test.labels, test.probabilities, names, images=data.test.images, **groups),
        "calibration": lambda: calibration(test.labels, test.probabilities, val.labels, val.probabilities),
        "Grad-CAM": lambda: looked_at(model, data.test.images, test.labels, predicted, names, layer=layer),
        "feature maps": lambda: activations(
            model, np.stack([np.asarray(data.test.images[i]) for i in few]), test.labels[few], names
        ),
        "feature space": lambda: feature_space(
            (computed["train"].embeddings, computed["train"].labels, train_images),
            (test.embeddings, test.labels, data.test.images),
            predicted, names, accuracy=right,
        ),
        "other models": lambda: versus(
            test.labels, others(subject, test, root=root), images=data.test.images, class_names=names
        ),
    }  # fmt: skip


def find(name, *, root, dataset, data_dir):
    """The `Subject` that a name stands for. Arguments and errors as for `explain`."""
    records = [record for record in results.read(root) if record["status"] == "finished"]
    record = _record(str(name), records)
    config = RunConfig.restored(record["config"])
    path = Path(name) if Path(name).suffix in (".keras", ".h5") else Paths.of(config, root).keras
    if not path.is_file():
        raise ConfigError(
            f"The model of {record['run_id']} must be {path}. Received: no such file. Run `python "
            f"experiments/{record['experiment']}.py` again, or give the path of the saved model."
        )
    owner = (artifacts.provenance(path) or {}).get("run_id")
    if owner != record["run_id"]:
        raise ConfigError(f"{path} must hold the model of {record['run_id']}. Received: that of {owner}.")
    size = config.overrides.get("image-size")
    data = load(dataset or config.dataset, data_dir=data_dir, image_size=size)
    classes = tuple(record.get("class_names") or ())
    if data.fingerprint != config.fingerprint and 1 < len(classes) and set(classes) < set(data.class_names):
        data = data.only(classes)
    if data.fingerprint != config.fingerprint:
        raise ConfigError(
            f"The data must be those of the run, {record['dataset']} (fingerprint {config.fingerprint[:12]}). "
            f"Received: {data.label} ({data.fingerprint[:12]}). Name their folder: `--dataset DIR`."
        )
    limits = config.limits if isinstance(config.limits, Limits) else Limits(**config.limits)
    return Subject(record, path, data.limited(limits))


def _record(name, records):
    """The record that a run id, an experiment or a saved model's file stands for; the newest of an experiment."""
    path = Path(name)
    if path.suffix in (".keras", ".h5"):
        if not path.is_file():
            raise ConfigError(f"The model must be a file. Received: {name!r}, which is none.")
        name = (artifacts.provenance(path) or {}).get("run_id", "")
    for record in reversed(records):
        number = f"{record['config'].get('number')}"
        if name in (record["run_id"], record["experiment"], f"exp{number}", number):
            return record
    known = ", ".join(dict.fromkeys(record["run_id"] for record in records[-5:])) or "none has finished below this root"
    raise ConfigError(
        f"RUN must be a run id, an experiment or a saved model of a recorded run. Received: {name!r}. Runs: {known}."
    )


def chosen(split):
    """Indices of the images whose embeddings are compared: all, or a stratified choice of `EMBEDDED`."""
    return np.arange(len(split)) if len(split) <= EMBEDDED else stratified(split.labels, EMBEDDED, seed=0)


def embedding_of(model):
    """What enters the layer of logits: the last dense layer's input, `(batch, channels)`.

    Raises: ConfigError for a model without a dense layer.
    """
    for layer in reversed(model.layers):
        if isinstance(layer, keras.layers.Dense):
            return layer.input
    raise ConfigError(f"The model must end in a dense layer. Received: {model.name!r}, which has none.")


def _computed(model, subject, split):
    """What the model makes of a split, from the cache or into it, keyed by the model's file and the data."""
    data = getattr(subject.dataset, split)
    data = take(data, chosen(data)) if split == "train" else data
    key = f"{sha256(subject.path)} {subject.record['config']['fingerprint']} {split} {len(data)}"
    path = (
        cache() / "explain" / f"{subject.record['run_id']}-{split}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.npz"
    )
    if not path.is_file():
        probabilities, embeddings = passed(model, data, what=split)
        with replacing(path) as temporary:
            np.savez(temporary, probabilities=probabilities, embeddings=embeddings)
    with np.load(path) as stored:
        return Computed(np.asarray(data.labels), stored["probabilities"], stored["embeddings"])


def passed(model, data, *, what):
    """Probabilities and embeddings of a split, float32, in one pass with progress."""
    both = keras.Model(model.input, [model.output, embedding_of(model)])
    side = max(model.input_shape[1:3])
    batch = max(8, round(100 * (32 / side) ** 2))
    parts = []
    with tqdm(total=len(data), unit=" images", desc=f"through the model: {what}", disable=None, leave=False) as bar:
        for images, _ in evaluation_pipeline(Split(data.images, data.labels), batch_size=batch):
            parts.append(both.predict_on_batch(images.numpy()))
            bar.update(len(images))
    return tuple(np.concatenate([np.asarray(part[place]) for part in parts]) for place in (0, 1))


def others(subject, test, *, root):
    """Probabilities of the newest other runs on the same test images, and of this one, by experiment and variant.

    Raises: ValueError where there is no other.
    """
    found = {}
    for record in results.read(root):
        same = record["status"] == "finished" and record["fingerprint"] == subject.record["fingerprint"]
        if same and record["run_id"] != subject.record["run_id"] and record["test_n"] == len(test.labels):
            stored = results.read_predictions(Path(root) / "results", record["run_id"])
            if stored is not None and np.array_equal(stored[0], test.labels):
                found[f"{record['experiment']} {record['variant']}"] = stored[1].astype("float32")
    if not found:
        raise ValueError("no other run has predictions on these test images")
    own = f"{subject.record['experiment']} {subject.record['variant']}"
    return {f"{own} (this run)" if own in found else own: test.probabilities, **found}
