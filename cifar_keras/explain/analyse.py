"""Analyses a finished run, or any saved model: computes what it needs once, then calls one function per section."""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np

from cifar_keras import results
from cifar_keras.config import ConfigError, Limits, RunConfig
from cifar_keras.data import load, options_of
from cifar_keras.data.base import Dataset, at_most, digests
from cifar_keras.explain import elsewhere
from cifar_keras.explain.activations import activations
from cifar_keras.explain.base import NotApplicable
from cifar_keras.explain.calibration import calibration
from cifar_keras.explain.embeddings import feature_space
from cifar_keras.explain.errors import errors
from cifar_keras.explain.gradcam import looked_at, spatial_layers
from cifar_keras.explain.model_comparison import model_comparison
from cifar_keras.explain.published import comparable, published
from cifar_keras.saved import artifacts, inference
from cifar_keras.saved.find import is_model, known, matching, model_of, record_of
from cifar_keras.saved.formats import OPENERS
from cifar_keras.training.train import evaluation_batch
from cifar_keras.utils.cache import cache
from cifar_keras.utils.files import replacing, sha256, write_json
from cifar_keras.utils.paths import Paths
from cifar_keras.utils.text import duration

EMBEDDED = 10_000  # training images whose embeddings are compared, at most
EXAMPLES = 2  # whose feature maps are shown
AGREES = 0.005  # how much the accuracy on the same images may differ on another machine


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        name: of its folder below `results/explain/`: the run's id, or the file's name and 6 digits of its SHA-256.
        path: of the saved model.
        dataset: the run's images within the run's limits, or any images at the size that the model takes.
        record, config: of the run; None for a model without one.
        classifier: for a model without a run.
    """

    name: str
    path: Path
    dataset: Dataset
    record: dict | None = None
    config: RunConfig | None = None
    classifier: inference.Classifier | None = None

    @property
    def facts(self):
        """Its part of `index.json`."""
        if self.record:
            return {"run_id": self.name}
        return {
            "model": str(self.path), "dataset": self.dataset.label, "class names": list(self.dataset.class_names),
            "input scaling": self.classifier.scaling, "image size": list(self.classifier.size),
        }  # fmt: skip


@dataclass(frozen=True)
class Computed:
    """What the model makes of a split: labels int `(n,)`, probabilities `(n, classes)`, embeddings `(n, channels)`.

    For a model without a run only what a section needs is computed; embeddings are None where there are none.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    embeddings: np.ndarray | None


def explain(name, *, root, dataset=None, data_dir=None, layer=None, only=None, **loading):
    """Analyses a finished run, or a saved model on any dataset, and writes `results/explain/<run id>/`.

    For a model without a run below `root` it is `results/explain/<file's name>-<6 digits of its SHA-256>/`.

    Args:
        name: a run id, an experiment's name or number (its newest finished run), or the path of a saved model.
        root: folder that holds `results/` and `model_cp/`.
        dataset: as `--dataset`; needed for runs on image folders, and for models without a run.
        data_dir: as `--data-dir`.
        layer: of Grad-CAM; None for the last spatial one.
        only: names of the sections to make; None for all.
        loading: options of `inference.load`, for a model without a run.
    Returns: the folder.
    Raises: ConfigError where the run, its model, its data or the layer can't be found.
    """
    start, root = time.monotonic(), Path(root)
    subject = find(name, root=root, dataset=dataset, data_dir=data_dir, **loading)
    folder = root / "results" / "explain" / subject.name
    print(f"{subject.name}: {len(subject.dataset.test):,} test images of {subject.dataset.label}", flush=True)
    model = _loaded(subject, layer)
    if subject.record:
        computed = {split: _computed(model, subject, split) for split in ("train", "val", "test")}
        _check_accuracy(subject.record, computed["test"])
        peers = others(subject.record, root=root)
    else:
        data = dataclasses.replace(subject.dataset, train=at_most(subject.dataset.train, EMBEDDED))
        found = elsewhere.computed_by(subject.classifier, model, data)
        computed, peers = {split: Computed(*arrays) for split, arrays in found.items()}, {}
    steps = sections(subject, model, computed, peers, folder=root / "results", layer=layer)
    _make(steps, folder, only=only, facts=subject.facts | {"others": sorted(peers.values())})
    print(f"{folder} after {duration(time.monotonic() - start)}", flush=True)
    return folder


def _make(steps, folder, *, only, facts):
    """Makes and saves the wanted sections, and lists them in `index.json`."""
    state = json.loads((folder / "index.json").read_text(encoding="utf-8")) if only else {}
    made, without = dict.fromkeys(state.get("sections", ())), dict(state.get("left out", {}))
    wanted = [key for key in steps if only is None or key in only]
    for place, key in enumerate(wanted, start=1):
        before = time.monotonic()
        print(f"explain {place}/{len(wanted)}: {key}", end="", flush=True)
        try:
            steps[key]().save(folder)
            made[key], outcome = None, duration(time.monotonic() - before)
            without.pop(key, None)
        except NotApplicable as reason:
            made.pop(key, None)
            without[key], outcome = str(reason), f"left out, as {reason}"
        print(f", {outcome}", flush=True)
    _sweep(folder, kept=made)
    write_json(folder / "index.json", facts | {"sections": list(made), "left out": without})


def refresh(run_id, *, root, dataset=None, data_dir=None):
    """Brings an analysis up to date: all of it where there is none yet, `versus` alone where there are new runs."""
    path = Path(root) / "results" / "explain" / run_id / "index.json"
    if not path.is_file():
        explain(run_id, root=root, dataset=dataset, data_dir=data_dir)
        return
    (record,) = (record for record in results.read(root) if record["run_id"] == run_id)
    if json.loads(path.read_text(encoding="utf-8"))["others"] != sorted(others(record, root=root).values()):
        explain(run_id, root=root, dataset=dataset, data_dir=data_dir, only=("versus",))


def _loaded(subject, layer):
    """The model, which takes the dataset's images as they are; None where the file has no gradients.

    Raises: ConfigError where the file is damaged, or the model has no such spatial layer.
    """
    try:
        model = elsewhere.whole(subject.classifier) if subject.classifier else artifacts.load(subject.path)
        if layer is not None and model is None:
            raise NotApplicable(elsewhere.NO_LAYERS)
        if layer is not None and layer not in (names := spatial_layers(model)):
            raise ConfigError(f"`--layer` must be one of {', '.join(names)}. Received: {layer!r}.")
    except NotApplicable as reason:
        raise ConfigError(f"`--layer` can't be given, as {reason}. Received: {layer!r}.") from None
    return model


def _check_accuracy(record, test):
    """Raises ConfigError where the model's accuracy on these images is not the recorded one."""
    accuracy = float(np.mean(test.probabilities.argmax(axis=1) == test.labels))
    if len(test.labels) != record["test_n"] or abs(accuracy - record["test_accuracy"]) > AGREES:
        raise ConfigError(
            f"The model must reach {record['test_accuracy']:.2%} of {record['test_n']:,} test images, as recorded. "
            f"Received: {accuracy:.2%} of {len(test.labels):,}. The images or the model have changed."
        )


def _sweep(folder, *, kept):
    """Removes the files of sections that an earlier analysis had and this one does not."""
    for path in folder.glob("*.*"):
        if path.stem.partition("_")[0] not in (*kept, "index"):
            path.unlink()


def sections(subject, model, computed, peers, *, folder, layer):
    """The functions that make the sections, by the sections' names."""
    data, test, val = subject.dataset, computed["test"], computed["val"]
    names, predicted = data.class_names, test.probabilities.argmax(axis=1)
    coarse = subject.record and subject.record.get("superclass_of")
    train = at_most(data.train, EMBEDDED)
    few = [int(np.argmax(test.labels == label)) for label in np.unique(test.labels)[:EXAMPLES]]
    groups = {"superclass": coarse, "superclass_names": data.superclass_names} if coarse else {}

    def against():
        if not subject.record:
            raise NotApplicable("the model belongs to no recorded run")
        if not peers:
            raise NotApplicable("no other run has stored predictions on these test images")
        own = results.title(subject.record)
        everyone = {f"{own} (this run)" if own in peers else own: test.probabilities}
        everyone |= {other: results.read_predictions(folder, run_id)[1] for other, run_id in peers.items()}
        return model_comparison(test.labels, everyone, images=data.test.images, class_names=names)

    def space():
        if test.embeddings is None:
            raise NotApplicable(elsewhere.without_embeddings(model, dataclasses.replace(data, train=train)))
        return feature_space(
            (computed["train"].embeddings, computed["train"].labels, train.images),
            (test.embeddings, test.labels, data.test.images),
            predicted, names, accuracy=float(np.mean(predicted == test.labels)),
        )  # fmt: skip

    def with_layers(section, *arguments, **named):
        if model is None:
            raise NotApplicable(elsewhere.NO_LAYERS)
        return section(model, *arguments, **named)

    return {
        "errors": lambda: errors(test.labels, test.probabilities, names, images=data.test.images, **groups),
        "calibration": lambda: calibration(test.labels, test.probabilities, val.labels, val.probabilities),
        "gradcam": lambda: with_layers(looked_at, data.test.images, test.labels, predicted, names, layer=layer),
        "activations": lambda: with_layers(
            activations, np.stack([np.asarray(data.test.images[i]) for i in few]), test.labels[few], names
        ),
        "space": space,
        "versus": against,
        **_beside_published(subject, test),
    }  # fmt: skip


def _beside_published(subject, test):
    """The section that only CIFAR-10's official test images have."""
    data = subject.dataset
    if not comparable(data.fingerprint, len(test.labels)):
        return {}
    own = results.title(subject.record) if subject.record else subject.name
    pictures = {"images": data.test.images, "class_names": data.class_names}
    return {"published": lambda: published(test.labels, test.probabilities, own=own, **pictures)}


def find(name, *, root, dataset=None, data_dir=None, **loading):
    """The `Subject` that a name stands for. Arguments and errors as for `explain`."""
    records, path = results.finished(root), Path(name)
    if path.suffix in OPENERS and (not is_model(name) or next(matching(str(name), records), None) is None):
        if not path.is_file():
            raise ConfigError(f"The model must be a file. Received: {str(path)!r}, which is not a file.")
        if dataset is None:
            raise ConfigError(
                f"`--dataset NAME|DIR` must name the images to analyse {path} on, as it belongs to no recorded run. "
                f"Received: none. Runs: {known(records)}."
            )
        classifier, data = elsewhere.opened(path, dataset=dataset, data_dir=data_dir, **loading)
        return Subject(f"{path.stem}-{sha256(path)[:6]}", path, data, classifier=classifier)
    record = record_of(str(name), records)
    if given := sorted(name for name, value in loading.items() if value is not None):
        option = {"scaling": "input-scaling"}.get(given[0], given[0].replace("_", "-"))
        raise ConfigError(
            f"`--{option}` is for models without a recorded run. Received: {name}, whose run is {record['run_id']}. "
            "Leave the option out."
        )
    config = RunConfig.restored(record["config"])
    path = model_of(record, path if is_model(name) else None, Paths.of(config, root))
    data = images_of(record, config, dataset=dataset, data_dir=data_dir)
    return Subject(record["run_id"], path, data, record, config)


def images_of(record, config, *, dataset, data_dir):
    """The dataset of a run, cut as the run cut it.

    Raises: ConfigError where the folder of the images is not given, or the images are not the run's.
    """
    known, classes = options_of(config, record["class_names"])
    if dataset is None and known is None:
        raise ConfigError(
            f"`--dataset` must name the folder of {record['dataset']}, as {record['run_id']} used it. Received: none."
        )
    data = load(
        dataset or known,
        data_dir=data_dir,
        image_size=config.overrides.get("image-size"),
        classes=",".join(classes) if classes else None,
        limits=Limits(**config.limits),
        skip_unreadable="skipped" in record,
    )
    if data.fingerprint != config.fingerprint:
        raise ConfigError(
            f"The images must be those of the run, {record['dataset']} (fingerprint {config.fingerprint[:12]}). "
            f"Received: {data.label} ({data.fingerprint[:12]}). Name their folder: `--dataset DIR`."
        )
    count = config.training.get("per_class")
    return data if count is None else data.with_per_class(count, seed=config.seed)


def _computed(model, subject, split):
    """The `Computed` of a split, from the cache or into it, keyed by the model's file and the images."""
    data = getattr(subject.dataset, split)
    data = at_most(data, EMBEDDED) if split == "train" else data
    key = hashlib.sha256(sha256(subject.path).encode() + digests(data.images).tobytes())
    path = cache() / "explain" / f"{subject.record['run_id']}-{split}-{key.hexdigest()[:8]}.npz"
    if not path.is_file():
        batch = evaluation_batch(SimpleNamespace(**subject.config.row), subject.dataset)
        probabilities, embeddings = passed(model, data, what=split, batch_size=batch)
        with replacing(path) as temporary:
            np.savez(temporary, probabilities=probabilities, embeddings=embeddings)
    with np.load(path) as stored:
        return Computed(np.asarray(data.labels), stored["probabilities"], stored["embeddings"])


def passed(model, data, **options):
    """Probabilities and embeddings of a split, in one pass; `options` of `elsewhere.through`."""
    both = keras.Model(model.input, [model.output, elsewhere.embedding_of(model)])
    return elsewhere.through(both.predict_on_batch, data, **options)


def others(record, *, root):
    """The newest other run of each experiment and variant with predictions on the same images: run ids by name."""
    folder = Path(root) / "results"
    runs = [one for one in results.finished(root) if one["run_id"] != record["run_id"]]
    same = [one for one in runs if all(one[c] == record[c] for c in ("fingerprint", "test_n"))]
    own, found = results.read_predictions(folder, record["run_id"]), {}
    for one in same if own is not None else ():
        stored = results.read_predictions(folder, one["run_id"])
        if stored is not None and np.array_equal(stored[0], own[0]):
            found[results.title(one)] = one["run_id"]
    return found
