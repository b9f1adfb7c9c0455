"""run(): data -> model -> fit -> evaluate -> record, on one page; `job` prepares it, `outcome` makes the record."""

import contextlib
import json

from cifar_keras import metrics, results
from cifar_keras.config import CifarKerasError, ConfigError, RunConfig, RunFailedError
from cifar_keras.job import built, describe, headline, prepare
from cifar_keras.outcome import conclude, draw, facts, last_epoch, now
from cifar_keras.report import comparison, summaries
from cifar_keras.training import features, tensorboard
from cifar_keras.training.train import Follow, Resume, evaluation_batch, fit
from cifar_keras.utils import runtime
from cifar_keras.utils.files import lock, sweep
from cifar_keras.utils.paths import stem
from cifar_keras.utils.text import duration


def run(experiment, options):
    """Runs one variant of an experiment with one seed; continues where an earlier attempt stopped.

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
            results.rebuild(options.root)  # in case the run was killed after writing its record
            print("Already finished; `--fresh` runs it again.")
        else:
            record = carried_out(job, resume, progress, tracking=options.track)
        resume.clear()
    if experiment.summary:
        summaries.write(experiment, results.read(options.root), options.root)
    print(last_line(record, options.root))
    return record


def carried_out(job, resume, progress, *, tracking):
    """Trains, evaluates and records. A run that fails is recorded as failed."""
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


def audits(job):
    """The callback that measures test accuracy after each epoch, where the recipe asks for it."""
    if job.config.training.also_score != "epochs":
        return ()
    return (Follow(job.dataset.test, name="test_accuracy", batch_size=evaluation_batch(job.row, job.dataset)),)


def finished(job, progress):
    """The newest finished record of this run; None if there is none, or if a later attempt was stopped midway.

    Raises: ConfigError if the finished run of this name had another configuration.
    """
    paths = job.paths
    done = results.finished(paths.root)
    same_name = [record for record in done if stem(RunConfig.restored(record["config"])) == paths.stem]
    begun_anew = progress.run_id and progress.run_id not in [record["run_id"] for record in same_name]
    if not same_name or begun_anew or not paths.keras.is_file():
        return None
    before = same_name[-1]["config"]
    if before != json.loads(job.config.as_begun(before).identity):
        raise ConfigError(
            f"{paths.keras.name} was made by a finished run of the same name with another configuration "
            f"(run {same_name[-1]['run_id']}). Use `--fresh` to replace it, or `--root DIR` to keep both."
        )
    return same_name[-1]


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
    """Balanced accuracy and the largest class's share; None where classes are balanced, or in an older record."""
    if record.get("balanced_accuracy") is None:
        return None
    return f"balanced {record['balanced_accuracy']:.4f}, largest class {record['majority_share']:.1%} of test"
