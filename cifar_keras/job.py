"""Preparing a run: the experiment and the command line become a `Job`; what the job will do; its model."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cifar_keras import metrics
from cifar_keras.config import (
    BUDGETS,
    ConfigError,
    Experiment,
    Limits,
    RunConfig,
    cut,
    limits_of,
    with_batch_size,
    with_epochs,
    with_learning_rate,
)
from cifar_keras.data import load
from cifar_keras.data.augment import mixes
from cifar_keras.data.base import Dataset, stratified, take
from cifar_keras.data.pipeline import steps_per_epoch
from cifar_keras.models.weights import load_backbone, resolve
from cifar_keras.models.zoo import ModelSpec, build, initialise_from_data, parameter_counts, row_of
from cifar_keras.saved import inference
from cifar_keras.training import features
from cifar_keras.training.distil import Student
from cifar_keras.training.train import Resume
from cifar_keras.utils import runtime
from cifar_keras.utils.paths import Paths


@dataclass(frozen=True)
class Job:
    """A run that is about to start, with everything resolved."""

    experiment: Experiment
    config: RunConfig
    row: ModelSpec
    dataset: Dataset
    weights_file: Path | None
    paths: Paths


def prepare(experiment, options):
    """Resolves an experiment and the command line to a `Job`."""
    budget = BUDGETS[options.budget].shared(experiment.share)
    training = experiment.variants[options.variant]
    row = row_of(training, backbone=backbone_of(experiment, options), pixels=options.pixels)
    changed, plain = options.changes(), row_of(training)
    for name in ("backbone", "pixels"):
        if getattr(row, name) != getattr(plain, name):
            changed[name] = getattr(row, name)
    limits = limits_of(budget, training, pixels=row.pixels, images_per_second=row.images_per_second)
    if options.limit is not None:
        limits = Limits(*(min(options.limit, given or options.limit) for given in dataclasses.astuple(limits)))
    if options.data_dir is not None and not Path(options.data_dir).is_dir():
        raise ConfigError(f"`--data-dir` must be a folder. Received: {options.data_dir!r}, which is not a folder.")
    default_weights, weights, weights_file = weights_of(training, options, row, pretrained=budget.pretrained)
    dataset = load(options.dataset or budget.dataset, limits=limits, **options.loading())
    if training.per_class is not None:
        if limits.train is None:
            dataset.check_per_class(training.per_class)
        dataset = dataset.with_per_class(training.per_class, seed=options.seed)
    config = RunConfig(
        experiment=experiment.key,
        number=experiment.number,
        **{name: getattr(options, name) for name in ("variant", "budget", "seed", "deterministic")},
        dataset=dataset.slug,
        fingerprint=dataset.fingerprint,
        weights=weights,
        precision=_precision(options, row),
        limits=limits,
        training=recipe(training, options, row, budget=budget, images=len(dataset.train)),
        row=dataclasses.asdict(row),
        overrides=changed | ({"weights": weights} if weights != default_weights else {}),
        classes=None if options.classes is None else dataset.class_names,
    )
    paths = Paths.of(config, options.root)
    if not options.fresh and (begun := Resume(paths.resume).begun()):
        config = as_begun(config, begun)
    return Job(experiment, config, row, dataset, weights_file, paths)


def weights_of(training, options, row, *, pretrained):
    """What the run starts from, or learns from: the name that is called for, the name it has, and the file or None.

    Raises: ConfigError as `weights.resolve`, and for a student without a teacher.
    """
    default = training.weights or (row.weights if pretrained else "none")
    name, path = resolve(training.weights or options.weights or default, row, data_dir=options.data_dir)
    if training.distillation and path is None:
        raise ConfigError(
            f"`--weights` must name the teacher that {options.variant!r} learns from: a model that was trained here on "
            f"the same classes, as experiments leave it in model_cp/. Received: {name!r}."
        )
    return default, name, path


def backbone_of(experiment, options):
    """The network that `--backbone` names, or None; raises ConfigError where the experiment has no use for it."""
    if options.backbone and not experiment.any_backbone:
        raise ConfigError(
            f"`--backbone` is for experiments that compare networks. {experiment.key} is about its own. "
            f"Received: {options.backbone!r}; leave it out."
        )
    return options.backbone


def _precision(options, row):
    gains = {"gains_on_amx": row.gains_on_amx, "deterministic": options.deterministic}
    return runtime.choose_precision(options.precision, **gains)[0]


def as_begun(config, begun):
    """The configuration of a run that continues: see `RunConfig.as_begun`."""
    continued = config.as_begun(begun)
    if continued.precision != config.precision:
        print(
            f"The run continues in {continued.precision}, as it began; `--precision auto` chooses {config.precision} "
            "here. `--fresh` starts over."
        )
    return continued


def recipe(training, options, row, *, budget, images):
    """A variant's recipe, cut to the budget and the data, with the command line's changes applied.

    Raises: ConfigError if a change does not go with the row or the data.
    """
    training = cut(training, budget, images=images, images_per_second=row.images_per_second)
    for change, value in (
        (with_epochs, options.epochs),
        (with_batch_size, options.batch_size),
        (with_learning_rate, options.learning_rate),
    ):
        training = change(training, value) if value is not None else training
    fields = {"class_weights": options.class_weights, "views": 0 if options.on_the_fly else options.views}
    training = dataclasses.replace(training, **{k: value for k, value in fields.items() if value is not None})
    if training.batch_size > images:
        raise ConfigError(
            f"`--batch-size` must be at most the number of training images, {images}. Received: {training.batch_size}."
        )
    if options.views and options.on_the_fly:
        raise ConfigError(
            "Use either `--views` (the number of stored views) or `--on-the-fly` (none is stored). Received: both."
        )
    if (options.views or options.on_the_fly) and not features.frozen(row, training):
        raise ConfigError(
            "`--views` and `--on-the-fly` are for a backbone that is frozen in every stage. "
            f"Received: a recipe that trains the backbone of {row.name!r}."
        )
    if options.views and not row.augmentation:
        raise ConfigError(
            f"`--views` needs a model with augmentation; without it, all views are alike. Received: {row.name!r}."
        )
    if training.class_weights and mixes(row.augmentation):
        raise ConfigError(
            "`--class-weights` must be left out where images are mixed, since a mixed image has two classes. Received: "
            f"{training.class_weights!r}."
        )
    if options.views and mixes(row.augmentation):
        raise ConfigError(
            "`--views` must be left out where images are mixed: a stored view would keep one partner. Received: "
            f"{options.views}."
        )
    return training


def built(job):
    """The run's model at its initial weights, under the run's precision."""
    config, dataset = job.config, job.dataset
    runtime.apply(precision=config.precision, deterministic=config.deterministic)
    steps = steps_per_epoch(dataset.train, config.training.batch_size) * config.training.epochs
    model = build(
        job.row, image_shape=dataset.image_shape, classes=len(dataset.class_names), steps=steps, seed=config.seed
    )
    initialise_from_data(model, sample(dataset.train, 5000).images)
    if job.weights_file is None:
        return model
    if config.training.distillation:
        return Student.of(model, teacher_of(job), *config.training.distillation)
    load_backbone(model, job.weights_file, with_head=config.training.sparsity is not None)
    return model


def teacher_of(job):
    """The model that `--weights` names, up to its logits; raises ConfigError unless it knows the same classes."""
    found, wanted = inference.load(job.weights_file), job.dataset
    model, classes = found.network.model, tuple(found.class_names)  # an ONNX file, say, has no Keras model
    if model is None or classes != tuple(wanted.class_names) or tuple(found.size) != wanted.image_shape[:2]:
        raise ConfigError(
            "`--weights` must name a teacher that was trained here, on the same classes and on images of "
            f"{wanted.image_shape[0]} x {wanted.image_shape[1]} pixels. Received: {job.weights_file}, which knows "
            f"{', '.join(found.class_names)} at {found.size[0]} x {found.size[1]}."
        )
    return keras.Model(model.input, model.get_layer("logits").output)


def sample(split, count):
    """A fixed stratified subset. Folders are sorted by class, so the first images would not be representative."""
    return take(split, stratified(split.labels, min(count, len(split)), seed=0))


def headline(job, progress):
    """The lines that a run starts with: what it trains, on what, and warnings."""
    config, dataset = job.config, job.dataset
    epochs, done = config.training.epochs, progress.epochs
    lines = [
        f"{config.experiment}  variant {config.variant}, budget {config.budget}, seed {config.seed}, "
        f"weights {config.weights}, {config.precision}",
        f"{dataset.label}: {len(dataset.train):,} train, {len(dataset.val):,} val, {len(dataset.test):,} test; "
        f"{epochs} epochs of batch {config.training.batch_size}" + (f", going on after epoch {done}" if done else ""),
        *dataset.notes,
        *on_balance(dataset, config.training),
    ]
    if (asked := config.training.per_class or 0) > (most := dataset.largest_class):
        lines.append(f"the limit leaves {most:,} training images of a class, of the variant's {asked:,}")
    if config.weights == "none" and (config.training.weights or config.row["weights"]) != "none":
        lines.append("random weights: frozen rows show random features")
    return "\n".join(lines)


def on_balance(dataset, training):
    """Warnings, one per line: classes of different sizes, and classes without a test image."""
    counts = {
        name: np.bincount(getattr(dataset, name).labels, minlength=len(dataset.class_names))
        for name in ("train", "test")
    }
    if metrics.imbalanced(counts["train"]):
        most, fewest = (dataset.class_names[pick(counts["train"])] for pick in (np.argmax, np.argmin))
        line = (
            f"classes differ in size: {counts['train'].max():,} training images of {most}, {counts['train'].min():,} "
            f"of {fewest}; naming the largest class always would score "
            f"{metrics.majority_share(counts['test']):.1%} on test"
        )
        yield line if training.class_weights else f"{line}; `--class-weights balanced` makes classes count alike"
    if absent := [dataset.class_names[label] for label in np.flatnonzero(counts["test"] == 0)]:
        yield f"without a test image: {', '.join(absent[:5])}{', ...' * (len(absent) > 5)}"


def describe(job):
    """Prints what a run would do and where it would write (`--dry-run`)."""
    config, dataset, paths = job.config, job.dataset, job.paths
    model = built(job)
    counts = parameter_counts(model, job.row, config.training)
    print(json.dumps(json.loads(config.identity), indent=1))
    print(f"\nparameters  {counts['parameters']:,} total, {counts['parameters_trainable']:,} trainable")
    print(f"{dataset.label}  " + ", ".join(f"{n} {len(getattr(dataset, n)):,}" for n in ("train", "val", "test")))
    for note in (*dataset.notes, *on_balance(dataset, config.training)):
        print(note)
    if features.applicable(model, job.row, config.training):
        parts = (model, job.row, dataset, config.training)
        print(features.described(*parts, seed=config.seed, deterministic=config.deterministic))
    print("\n".join(f"{what:13} {path}" for what, path in paths.artifacts().items()))
    print(f"{'results':13} {paths.csv}")
