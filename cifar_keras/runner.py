"""run(): data -> model -> fit -> evaluate -> record, on one page."""

import contextlib
import dataclasses
import datetime
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_keras import metrics, plotting, results
from cifar_keras.config import (
    BUDGETS,
    CifarKerasError,
    ConfigError,
    Experiment,
    Limits,
    RunConfig,
    RunFailedError,
    cut,
    limits_of,
    published_of,
    with_batch_size,
    with_class_weights,
    with_epochs,
    with_learning_rate,
    with_views,
)
from cifar_keras.data import CIFAR10, load
from cifar_keras.data.base import Dataset, stratified, take
from cifar_keras.data.pipeline import steps_per_epoch
from cifar_keras.models.weights import load_backbone, resolve
from cifar_keras.models.zoo import ModelSpec, build, initialise_from_data, row_of, set_trainable
from cifar_keras.report import comparison, summaries
from cifar_keras.saved import artifacts
from cifar_keras.saved.inference import augmented_probabilities, probabilities
from cifar_keras.training import features, tensorboard
from cifar_keras.training.train import Follow, Resume, evaluation_batch, fit
from cifar_keras.utils import runtime
from cifar_keras.utils.files import lock, sweep
from cifar_keras.utils.paths import Paths, stem
from cifar_keras.utils.text import duration


@dataclass(frozen=True)
class Job:
    """A run that is about to happen, everything looked up."""

    experiment: Experiment
    config: RunConfig
    row: ModelSpec
    dataset: Dataset
    weights_file: Path | None
    paths: Paths


def run(experiment, options):
    """Runs one variant of an experiment with one seed, from where an earlier attempt stopped.

    Args:
        experiment: `config.Experiment`.
        options: `options.Options` with one variant and one seed.
    Returns: the run's record, or None after `--dry-run`.
    Raises: ConfigError, RunFailedError, HeldError.
    """
    tensorboard.require(options.track)
    job = prepare(experiment, options)
    if options.dry_run:
        return describe(job)
    with lock(job.paths.keras, timeout=0, busy="The same run is under way in another process."):
        resume = Resume(job.paths.resume)
        if options.fresh:
            resume.clear()
        progress = resume.load(job.config.identity)
        for path in (*job.paths.artifacts().values(), *job.paths.of_run(progress.run_id)):
            sweep(path)
        if not options.fresh and (record := finished(job, progress)):
            results.rebuild(options.root)  # whatever a kill after its record left undone
            print("Already finished; `--fresh` runs it again.")
        else:
            record = carried_out(job, resume, progress, tracking=options.track)
        resume.clear()
    if experiment.summary:
        summaries.write(experiment, results.read(options.root), options.root)
    print(last_line(record, options.root))
    return record


def carried_out(job, resume, progress, *, tracking):
    """Trains, evaluates and records; a run that fails is recorded as such."""
    if not progress.run_id:
        progress.run_id = f"{job.paths.stem}_{now():%Y%m%dT%H%M%SZ}"
        progress.git_commit = runtime.git_commit()
    print(headline(job, progress))
    tracker = tensorboard.tracker(tracking, folder=job.paths.tracking / progress.run_id, config=job.config)
    try:
        model, callbacks = built(job), tracker.start(progress)
        training, seed, parts = job.config.training, job.config.seed, (model, job.row, job.dataset)
        if features.applicable(model, job.row, training):
            parts = features.extracted(
                *parts, training, seed=seed, deterministic=job.config.deterministic, resume=resume, progress=progress
            )
        watching = {"callbacks": callbacks, "audits": audits(job)}
        fit(*parts, training, seed=seed, resume=resume, progress=progress, **watching)
        record, scored = conclude(job, model, progress)
        if training.also_score:
            parts[0].load_weights(resume.last(progress.epochs))
            record |= last_epoch(job, model)
        draw(job, record, scored, progress)
        tracker.finish(record, {kind: job.paths.figure(kind) for kind in ("confusion", "curves")})
    except RunFailedError as error:
        failed = {**facts(job, progress), "status": "failed", "why": str(error)}
        with contextlib.suppress(CifarKerasError):  # where the disk is full, the first message is the one to show
            results.write(job.paths.root, failed)
        raise
    results.write(job.paths.root, record, predictions=scored)
    return record


def prepare(experiment, options):
    """Resolves an experiment and the command line to a `Job`."""
    budget = BUDGETS[options.budget].shared(experiment.share)
    training = experiment.variants[options.variant]
    row = row_of(training)
    limits = limits_of(budget, training, pixels=row.pixels, images_per_second=row.images_per_second)
    if options.limit is not None:
        limits = Limits(*(min(options.limit, given or options.limit) for given in dataclasses.astuple(limits)))
    if options.data_dir is not None and not Path(options.data_dir).is_dir():
        raise ConfigError(f"`--data-dir` must be a folder. Received: {options.data_dir!r}, which is none.")
    default_weights = training.weights or (row.weights if budget.pretrained else "none")
    asked = training.weights or options.weights or default_weights
    weights, weights_file = resolve(asked, row, data_dir=options.data_dir)
    dataset = load(
        options.dataset or budget.dataset,
        data_dir=options.data_dir,
        image_size=options.image_size,
        classes=options.classes,
        limits=limits,
        skip_unreadable=options.skip_unreadable,
    )
    if training.per_class is not None:
        dataset = dataset.with_per_class(training.per_class, seed=options.seed)
    training = recipe(training, options, row, budget=budget, images=len(dataset.train))
    overrides = options.changes()
    if weights != default_weights:
        overrides["weights"] = weights
    config = RunConfig(
        experiment=experiment.key,
        number=experiment.number,
        variant=options.variant,
        budget=options.budget,
        dataset=dataset.slug,
        fingerprint=dataset.fingerprint,
        seed=options.seed,
        weights=weights,
        precision=runtime.choose_precision(options.precision),
        deterministic=options.deterministic,
        limits=limits,
        training=training,
        row=dataclasses.asdict(row),
        overrides=overrides,
    )
    paths = Paths.of(config, options.root)
    return Job(experiment, config, row, dataset, weights_file, paths)


def recipe(training, options, row, *, budget, images):
    """A variant's recipe, cut to the budget and the data and with the command line's changes.

    Raises: ConfigError if a change does not go with the row or the data.
    """
    training = cut(training, budget, images=images, images_per_second=row.images_per_second)
    for change, value in (
        (with_epochs, options.epochs),
        (with_batch_size, options.batch_size),
        (with_learning_rate, options.learning_rate),
        (with_class_weights, options.class_weights),
        (with_views, 0 if options.on_the_fly else options.views),
    ):
        training = change(training, value) if value is not None else training
    if training.batch_size > images:
        raise ConfigError(
            f"`--batch-size` must be at most the number of training images, {images}. Received: {training.batch_size}."
        )
    if options.views and options.on_the_fly:
        raise ConfigError("`--views` is the number of stored views, `--on-the-fly` stores none. Received: both.")
    if (options.views or options.on_the_fly) and not features.frozen(row, training):
        raise ConfigError(
            "`--views` and `--on-the-fly` are for a backbone that is frozen in every stage, as in experiments 1 and 2. "
            f"Received: a recipe that trains {row.name!r} through."
        )
    if options.views and not row.augmentation:
        raise ConfigError(f"`--views` is for rows with augmentation, else all are alike. Received: {row.name!r}.")
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
    if job.weights_file is not None:
        load_backbone(model, job.weights_file)
    return model


def sample(split, count):
    """A fixed stratified subset: folders come sorted by class, so the first images would not do."""
    return take(split, stratified(split.labels, min(count, len(split)), seed=0))


def conclude(job, model, progress):
    """Saves the model, reads test, and returns the record and `(labels, probabilities)` on test.

    This is the one reading that counts; those of `Training.also_score` are audits, by which nothing is selected.
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
    record = facts(job, progress) | counts | {"status": "finished", "tta_accuracy": None, "coarse_accuracy": None}
    for name, (labels, predicted) in scored.items():
        record |= {f"{name}_accuracy": metrics.accuracy(labels, predicted), f"{name}_n": len(labels)}
    record["test_loss"] = metrics.cross_entropy(*scored["test"])
    record |= beside_accuracy(*scored["test"])
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
    record["peak_memory_mb"] = runtime.peak_memory_mb()
    return record, scored["test"]


def beside_accuracy(labels, probabilities):
    """What belongs beside accuracy where some classes have more test images than others; else None."""
    matrix = metrics.confusion(labels, probabilities)
    counts = matrix.sum(axis=1)
    if not metrics.imbalanced(counts):
        return {"balanced_accuracy": None, "majority_share": None}
    return {
        "balanced_accuracy": metrics.balanced_accuracy(matrix),
        "majority_share": metrics.majority_share(counts),
    }


def few_of_train(job):
    """The fixed subset of train on which accuracy is measured after training."""
    return sample(job.dataset.train, 5000 if job.row.pixels < 128 else 1000)


def superclass_of(dataset):
    """Every class's superclass, int `(classes,)`, as the images show it; -1 for a class without images."""
    numbers = np.full(len(dataset.class_names), -1)
    for split in (dataset.train, dataset.val, dataset.test):
        numbers[split.labels] = split.coarse_labels
    return numbers


def audits(job):
    """The callback that follows test, where the recipe asks for it."""
    if job.config.training.also_score != "epochs":
        return ()
    return (Follow(job.dataset.test, name="test_accuracy", batch_size=evaluation_batch(job.row, job.dataset)),)


def last_epoch(job, model):
    """What a study without selection reports: the accuracies of a model that holds the last epoch's weights."""
    model, batch = artifacts.for_inference(model), evaluation_batch(job.row, job.dataset)
    return {
        f"last_{name}_accuracy": metrics.accuracy(split.labels, probabilities(model, split.images, batch_size=batch))
        for name, split in {"train": few_of_train(job), "test": job.dataset.test}.items()
    }


def facts(job, progress):
    """The columns that are known whether the run succeeds or not."""
    config, dataset = job.config, job.dataset
    images, batch = len(dataset.train), config.training.batch_size
    published = published_of(job.experiment.published, config.variant) if dataset.slug in CIFAR10 else {}
    seconds = progress.seconds + progress.feature_seconds(cached=False)
    return {
        "run_id": progress.run_id,
        "utc": now().isoformat(timespec="seconds"),
        **{name: getattr(config, name) for name in ("experiment", "variant", "budget", "seed", "weights", "precision")},
        "model": config.row["name"],
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
        **({"skipped": skipped(dataset)} if dataset.skipped else {}),
        "config": json.loads(config.identity),
    }


def skipped(dataset):
    """The damaged images that were left out: how many, and the first thousand paths."""
    return {"count": len(dataset.skipped), "files": list(dataset.skipped[:1000])}


def parameter_counts(model, row, training):
    """Total parameters, and those that some stage trains."""
    set_trainable(model, row, freeze_backbone=all(stage.freeze_backbone for stage in training.stages))
    sizes = [math.prod(variable.shape) for variable in model.trainable_variables]
    return {"parameters": model.count_params(), "parameters_trainable": sum(sizes)}


def draw(job, record, scored, progress):
    """The run's pictures in results/figures/."""
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


def finished(job, progress):
    """The newest finished record of this very run; None if there is none, or a later attempt was stopped midway.

    Raises: ConfigError if the finished run of this name had another configuration.
    """
    config, paths = job.config, job.paths
    done = [record for record in results.read(paths.root) if record["status"] == "finished"]
    same_name = [record for record in done if stem(RunConfig.restored(record["config"])) == paths.stem]
    begun_anew = progress.run_id and progress.run_id not in [record["run_id"] for record in same_name]
    if not same_name or begun_anew or not paths.keras.is_file():
        return None
    if same_name[-1]["config"] != json.loads(config.identity):
        raise ConfigError(
            f"{paths.keras.name} was made by a finished run of the same name with another configuration "
            f"(run {same_name[-1]['run_id']}). Use `--fresh` to replace it, or `--root DIR` to keep both."
        )
    return same_name[-1]


def now():
    """The current time, UTC."""
    return datetime.datetime.now(datetime.UTC)


def headline(job, progress):
    """What is about to happen, in a few lines."""
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
    if config.weights == "none" and (config.training.weights or config.row["weights"]) != "none":
        lines.append("random weights: frozen rows show random features")
    return "\n".join(lines)


def on_balance(dataset, training):
    """Warnings, a line each: classes of different sizes, and classes that no test image shows."""
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


def last_line(record, root):
    """The run in one line: result with its 95% interval, published figure, the run before it below `root`, time.

    Where classes differ in size, balanced accuracy and the largest class's share follow the result.
    """
    low, high = metrics.wilson(record["test_accuracy"], record["test_n"])
    parts = (
        f"{record['experiment']}  {record['test_accuracy']:.4f} [{low:.4f}, {high:.4f}] n={record['test_n']}",
        balance(record),
        f"published {record['published_test']}" if record["published_test"] else None,
        comparison.against_previous(record, results.read(root), root),
        duration(record["training_seconds"]),
    )
    return "  ".join(part for part in parts if part)


def balance(record):
    """Balanced accuracy and the largest class's share; None where accuracy needs neither, or in an older record."""
    if record.get("balanced_accuracy") is None:
        return None
    return f"balanced {record['balanced_accuracy']:.4f}, largest class {record['majority_share']:.1%} of test"


def describe(job):
    """Prints what a run would do and where it would write."""
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
    print(f"{'results':13} {Path(paths.csv)}")
