"""What a run leaves behind: the saved model and its scores, the record, and the pictures."""

import datetime
import json
import math

import numpy as np

from cifar_keras import metrics, plotting
from cifar_keras.config import published_of
from cifar_keras.data import published_apply
from cifar_keras.job import sample
from cifar_keras.models.zoo import parameter_counts
from cifar_keras.saved import artifacts
from cifar_keras.saved.inference import augmented_probabilities, probabilities
from cifar_keras.training.train import evaluation_batch
from cifar_keras.utils import runtime, system


def conclude(job, model, progress):
    """Saves the model, evaluates it, and returns the record and `(labels, probabilities)` on test.

    This is the one evaluation on test that counts. `Training.also_score` adds audits, which select nothing.
    """
    config, row, dataset = job.config, job.row, job.dataset
    counts = parameter_counts(model, row, config.training)
    model = artifacts.for_inference(model)
    names = {"class_names": dataset.class_names, "dataset": dataset.label, "config": json.loads(config.identity)}
    artifacts.save(model, job.paths, provenance={"run_id": progress.run_id, **names}, history=progress.history)
    model = artifacts.load(job.paths.keras)  # what is scored is what was saved
    batch = evaluation_batch(row, dataset)
    splits = {"train": few_of_train(job), "val": dataset.val, "test": dataset.test}
    scored = {
        name: (split.labels, probabilities(model, split.images, batch_size=batch)) for name, split in splits.items()
    }
    empty = ("tta_accuracy", "coarse_accuracy", "balanced_accuracy", "majority_share")
    record = facts(job, progress) | counts | {"status": "finished", **dict.fromkeys(empty)}
    for name, (labels, predicted) in scored.items():
        record |= {f"{name}_accuracy": metrics.accuracy(labels, predicted), f"{name}_n": len(labels)}
    record["test_loss"] = metrics.cross_entropy(*scored["test"])
    record |= metrics.beside_accuracy(metrics.confusion(*scored["test"])) or {}
    record |= {"history": progress.history, "class_names": list(dataset.class_names)}
    by_class = metrics.class_accuracy(*scored["test"], classes=len(dataset.class_names))
    record["class_accuracy"] = [None if math.isnan(value) else value for value in by_class.tolist()]
    if dataset.superclass_names:
        superclass = superclass_of(dataset)
        record["coarse_accuracy"] = metrics.coarse_accuracy(*scored["test"], superclass)
        record["superclass_of"] = superclass.tolist()
    if config.training.test_time_augmentation:
        augmented = augmented_probabilities(model, dataset.test.images, batch_size=batch)
        record["tta_accuracy"] = metrics.accuracy(dataset.test.labels, augmented)
    record["peak_memory_mb"] = system.peak_memory_mb()
    return record, scored["test"]


def few_of_train(job):
    """The fixed subset of train on which accuracy is measured after training."""
    return sample(job.dataset.train, 5000 if job.row.pixels < 128 else 1000)


def superclass_of(dataset):
    """The superclass of each class, int `(classes,)`, read from the images; -1 for a class without images."""
    numbers = np.full(len(dataset.class_names), -1)
    for split in (dataset.train, dataset.val, dataset.test):
        numbers[split.labels] = split.coarse_labels
    return numbers


def last_epoch(job, model):
    """The accuracies of a model that holds the last epoch's weights: what a study without selection reports."""
    model, batch = artifacts.for_inference(model), evaluation_batch(job.row, job.dataset)
    return {
        f"last_{name}_accuracy": metrics.accuracy(split.labels, probabilities(model, split.images, batch_size=batch))
        for name, split in {"train": few_of_train(job), "test": job.dataset.test}.items()
    }


def facts(job, progress):
    """The columns that are known whether or not the run succeeds."""
    config, dataset = job.config, job.dataset
    images, batch = len(dataset.train), config.training.batch_size
    apply = published_apply(dataset.slug, config.overrides)
    published = published_of(job.experiment.published, config.variant) if apply else {}
    seconds = progress.seconds + progress.feature_seconds(cached=False)
    skipped = {"count": len(dataset.skipped), "files": list(dataset.skipped[:1000])}  # damaged images
    return {
        "run_id": progress.run_id,
        "utc": now().isoformat(timespec="seconds"),
        **{name: getattr(config, name) for name in ("experiment", "variant", "budget", "seed", "weights", "precision")},
        "model": config.row["name"],
        "backbone": config.row["backbone"],
        "dataset": dataset.label,
        "fingerprint": dataset.fingerprint[:12],
        "weights_called_for": config.training.weights or config.row["weights"],
        "pixels": config.row["pixels"],
        "epochs": progress.epochs,
        "best_epoch": progress.best_epoch,
        "train_images": images,
        "training_seconds": round(seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        "cached_seconds": round(progress.feature_seconds(cached=True), 1),
        "images_per_second": round(progress.epochs * (images - images % batch) / seconds, 1) if seconds else None,
        "deterministic": config.deterministic,
        "batch_size": batch,
        **{f"published_{split}": published.get(split) for split in ("train", "val", "test")},
        **runtime.environment(),
        "git_commit": progress.git_commit,
        "notes": list(dataset.notes),
        **({"skipped": skipped} if dataset.skipped else {}),
        "config": json.loads(config.identity),
    }


def draw(job, record, scored, progress):
    """Draws the run's pictures into results/figures/."""
    dataset, paths = job.dataset, job.paths
    what = f"{record['dataset']} - {record['experiment']}, {record['variant']}"
    plotting.sample_grid(
        dataset.train.images, dataset.train.labels, dataset.class_names, paths.figure("samples"),
        title=f"{record['dataset']}: training images",
    )  # fmt: skip
    splits = {name: getattr(dataset, name).labels for name in ("train", "val", "test")}
    plotting.label_distribution(
        splits, dataset.class_names, paths.figure("labels"), title=f"{record['dataset']}: images a class"
    )
    plotting.training_curves(progress.history, paths.figure("curves"), title=what, best_epoch=progress.best_epoch)
    matrix = metrics.confusion(*scored)
    title = f"{what}: {record['test_accuracy']:.1%} of {record['test_n']:,} test images"
    plotting.confusion_matrix(matrix, dataset.class_names, paths.figure("confusion"), title=title)


def now():
    """The current time, UTC."""
    return datetime.datetime.now(datetime.UTC)
