"""What a run is: frozen dataclasses that every other module reads (standard library only).

`Experiment` is what an experiment file states, `Options` what the command line adds, `RunConfig` the two
resolved against the model's row: the one canonical description of a run, and its identity.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self


class CifarKerasError(Exception):
    """A problem that the user can fix: shown as one sentence, never as a stack trace."""

    exit_code = 3


class ConfigError(CifarKerasError):
    """Bad input. The message names what was expected, what was received and how to fix it."""

    exit_code = 2


class RunFailedError(CifarKerasError):
    """The run itself failed (a diverging loss, a full disk). The last good weights are kept."""


class HeldError(CifarKerasError):
    """Another process holds a lock that this one needs."""

    exit_code = 4


def _one_of(name: str, value: object, choices: Iterable[object]) -> None:
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {value!r}.")


@dataclass(frozen=True)
class Stage:
    """One phase of training with one optimiser.

    Attributes:
        epochs: passes over the training split.
        learning_rate: peak rate; `schedule` takes it from there.
        freeze_backbone: train only the head, whatever the model's row lists as trainable.
        schedule: 'constant', 'cosine' or 'linear' decay to zero at the stage's last step, or 'step', which halves
            the rate after each third of them.
        warmup: share of the stage's steps in which the rate rises linearly from zero, in [0, 1).
    """

    epochs: int
    learning_rate: float
    freeze_backbone: bool = False
    schedule: str = "cosine"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _one_of("schedule", self.schedule, ("constant", "cosine", "linear", "step"))
        if self.warmup and self.schedule != "cosine":
            raise ConfigError(f"`warmup` goes with schedule 'cosine'. Received: {self.schedule!r}.")


@dataclass(frozen=True)
class Training:
    """A recipe: which row of `models.zoo.MODELS`, and how it is trained.

    Attributes:
        model: name of a row of `models.zoo.MODELS`.
        stages: trained one after the other. The weights that are best on val, over all stages, are kept.
        override: columns of the row that this variant replaces, by name.
        batch_size: images per step.
        optimizer: 'adam', 'adamw', 'sgd' (Nesterov, 0.9) or 'muon' (see `training.optim.Muon`; the stages' learning
            rates are then those of the convolution kernels, and everything else keeps airbench's rates).
        weight_decay: decoupled for 'adamw' and 'sgd', fraction of the weights per step at rate 1; for 'muon' per image.
        label_smoothing: share of each target spread over all classes, in [0, 1).
        test_time_augmentation: also score the mean over mirrored and shifted views, in a column of its own.
        views: augmented views of each training image. A frozen backbone computes their features once, and epoch e
            trains on view e modulo `views`. None: one view per epoch, as with augmentation on the fly. 0: no features
            are stored, every epoch goes through the backbone. See `training.features`.
        weights: 'none' for a baseline that starts from random weights whatever `--weights` names; None: `--weights`,
            else the model's row.
        per_class: maximum training images per class, drawn anew for every seed; None: all. Val and test stay whole.
        also_score: 'last' also measures the last epoch's weights, as studies without selection do. 'epochs' also
            measures test accuracy after every epoch, an audit that selects nothing. None: only the selected weights.
        class_weights: 'balanced' weights every training image by images / (classes * images of its class), so that all
            classes count equally in the loss; None: all images count equally.
        patience: epochs without a new best on val after which training ends; None: it never ends early. Schedules are
            those of the full number of epochs.
        ema: momentum of an exponential moving average of the weights, step by step, in (0, 1). Val judges the averages,
            and they are what is kept; BatchNorm's statistics stay those of the weights. A later stage, and
            `also_score` 'last', take the weights themselves. None: no average.
        sparsity: share of the kernels' weights, the smallest of all layers together, that are zero from the start, in
            (0, 1); the run starts from the whole model that `--weights` names, head included. None: no weight is held.
        distillation: (temperature, share of the teacher in the loss): a network with random weights learns from the
            logits of the model that `--weights` names, see `training.distil`. None: it has no teacher.
    """

    model: str
    stages: tuple[Stage, ...]
    override: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 128
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    test_time_augmentation: bool = False
    views: int | None = None
    weights: str | None = None
    per_class: int | None = None
    also_score: str | None = None
    class_weights: str | None = None
    patience: int | None = None
    ema: float | None = None
    sparsity: float | None = None
    distillation: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, ("adam", "adamw", "sgd", "muon"))
        _one_of("weights", self.weights, (None, "none"))
        _one_of("also_score", self.also_score, (None, "last", "epochs"))
        _one_of("class_weights", self.class_weights, (None, "balanced"))
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"`patience` must be at least 1 epoch, or None. Received: {self.patience}.")
        if self.ema and self.sparsity:
            raise ConfigError(
                "Use either `ema` or `sparsity`: averages of pruned weights are not zero. Received: both."
            )
        for name in ("ema", "sparsity"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                raise ConfigError(f"`{name}` must be between 0 and 1, or None. Received: {value}.")

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)


def tutorial(model: str, **override: Any) -> Training:
    """A tutorial's recipe: Adam at a constant 1e-3, batch 32, ten epochs, a plain linear head.

    Args:
        model: name of a row of `models.zoo.MODELS`.
        override: columns of the row, as `Training.override`.
    """
    stages = (Stage(epochs=10, learning_rate=1e-3, schedule="constant"),)
    return Training(model, stages, override={"head": "plain", **override}, batch_size=32, optimizer="adam")


NATIVE = "native"  # in a variant's `scaling`: what the weights of the backbone were trained with
BEST, PUBLISHED = "best", "published"  # variants with a meaning: the default, and the source's recipe rebuilt


@dataclass(frozen=True)
class Claim:
    """What a source claims about variants. The summary `effects` says whether the runs confirm or refute it.

    Attributes:
        text: the claim, one sentence.
        variants: those that it is about.
        kind: 'better' or 'worse' than the experiment's first variant; or 'most', if none of the others changes test
            accuracy by as much.
        dataset: what the slug of the data begins with; None: the claim is about any data.
    """

    text: str
    variants: tuple[str, ...]
    kind: str
    dataset: str | None = None

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ("better", "worse", "most"))


@dataclass(frozen=True)
class Experiment:
    """A question with named variants; `experiments/exp<number>_<name>.py` holds one.

    Attributes:
        number: used in file names.
        name: one or two words; number and name make up the file's name.
        variants: recipes by name. `best` is the default where there is one; otherwise all of them run.
        published: accuracies that the source reported: {"train": 0.46, "val": 0.43, "test": 0.42}; for several
            variants, one such dict per variant name.
        summary: how the experiment's own table and figure compare its variants, a key of `report.summaries.KINDS`;
            None: the variants stand only in the table of all results.
        published_classes: per-class test accuracies that the source reported, by variant and class name.
        about: slug of the dataset that the question is about. Its table exists before there is a run on it.
        part_of_study: whether `cifar-keras study` runs the experiment, and its table and page compare it.
        any_backbone: whether `--backbone` may put another network in the place of its models'.
        renamed: the present names of variants, by the names that older records and commands have.
        claims: what its source claims about its variants; `summary` is 'effects' then.
    """

    number: int
    name: str
    variants: dict[str, Training]
    published: dict[str, Any] = field(default_factory=dict)
    summary: str | None = None
    published_classes: dict[str, dict[str, float]] = field(default_factory=dict)
    about: str = "cifar10"
    part_of_study: bool = False
    any_backbone: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        named = {variant for claim in self.claims for variant in claim.variants}
        if unknown := named - set(self.variants):
            raise ConfigError(f"`claims` must name variants of the experiment. Received: {', '.join(sorted(unknown))}.")

    @property
    def key(self) -> str:
        """The experiment's full name, for example `exp3_finetune`."""
        return f"exp{self.number}_{self.name}"

    def current(self, variant: str) -> str:
        """The present name of a variant, whether it is given by that or by an older one."""
        return self.renamed.get(variant, variant)

    @property
    def share(self) -> float:
        """Share of a budget that each run gets: where all variants run by default, they divide it."""
        return 1.0 if BEST in self.variants else 1 / len(self.variants)


def published_of(published: dict[str, Any], variant: str) -> dict[str, float]:
    """The accuracies that the source reported for a variant, by split; see `Experiment.published`."""
    return published.get(variant, {}) if any(isinstance(value, dict) for value in published.values()) else published


@dataclass(frozen=True)
class Limits:
    """Maximum number of images per split; None: all."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Budget:
    """How much of the study to run.

    Attributes:
        small: maximum images of train, val and test, for models whose input is below 128 pixels.
        large: the same for the other models.
        seconds: training time at the row's `images_per_second`; images and epochs are cut to fit it. None: no cut.
            Where all variants of an experiment run, they divide it (`shared`).
        dataset: loaded when `--dataset` is not given.
        pretrained: whether models start from the weights of their row when `--weights` is not given.
    """

    small: Limits = Limits()
    large: Limits = Limits()
    seconds: float | None = None
    dataset: str = "cifar10"
    pretrained: bool = True

    def shared(self, share: float) -> Self:
        """The budget of one of several runs."""
        return dataclasses.replace(self, seconds=self.seconds and self.seconds * share)


BUDGETS = {
    "full": Budget(),
    "quick": Budget(small=Limits(6000, 1000, 1000), large=Limits(600, 100, 200), seconds=200),
    "demo": Budget(
        small=Limits(4000, 500, 1000), large=Limits(120, 60, 200), seconds=45, dataset="shapes", pretrained=False
    ),
}

MINIMUM_STEPS = 20  # per epoch: with fewer the optimiser hardly moves, so the batch shrinks instead,
MINIMUM_BATCH = 16  # but not below what BatchNorm needs


def with_epochs(training: Training, epochs: int) -> Training:
    """Divides `epochs` among the stages in the recipe's proportions, at least one each; drops the first if too few."""
    stages = training.stages[-epochs:]
    total = sum(stage.epochs for stage in stages)
    counts: list[int] = []
    for behind, stage in zip(reversed(range(len(stages))), stages, strict=True):
        left = epochs - sum(counts) - behind  # each later stage needs an epoch
        counts.append(min(max(1, round(epochs * stage.epochs / total)), left) if behind else left)
    stages = tuple(dataclasses.replace(stage, epochs=n) for stage, n in zip(stages, counts, strict=True))
    return dataclasses.replace(training, stages=stages)


def with_learning_rate(training: Training, rate: float) -> Training:
    """Sets the last stage's learning rate and scales those of the others by the same factor."""
    factor = rate / training.stages[-1].learning_rate
    stages = (dataclasses.replace(s, learning_rate=s.learning_rate * factor) for s in training.stages)
    return dataclasses.replace(training, stages=tuple(stages))


def with_batch_size(training: Training, batch_size: int) -> Training:
    """Sets the batch size; learning rates follow its square root (arXiv:1404.5997, section 5)."""
    rate = training.stages[-1].learning_rate * (batch_size / training.batch_size) ** 0.5
    return dataclasses.replace(with_learning_rate(training, rate), batch_size=batch_size)


def limits_of(budget: Budget, training: Training, *, pixels: int, images_per_second: float) -> Limits:
    """How many images of each split a budget allows: few enough for three epochs in its time, or one per stage.

    Args:
        budget: what is left of time and images.
        training: the full recipe.
        pixels: side of the model's input.
        images_per_second: the model row's reference training speed.
    """
    limits = budget.small if pixels < 128 else budget.large
    if budget.seconds is None:
        return limits
    epochs = min(training.epochs, max(3, len(training.stages)))
    train = int(budget.seconds * images_per_second) // epochs
    return dataclasses.replace(limits, train=train if limits.train is None else min(limits.train, train))


def cut(training: Training, budget: Budget, *, images: int, images_per_second: float) -> Training:
    """Fits a recipe to a budget and to the data: fewer epochs, then batches small enough for some steps per epoch.

    Args:
        training: the full recipe.
        budget: what is left of the time.
        images: number of training images.
        images_per_second: the model row's reference training speed.
    """
    if budget.seconds is not None:
        epochs = max(len(training.stages), int(budget.seconds * images_per_second) // images)
        training = with_epochs(training, min(training.epochs, epochs))
    batch = max(images // MINIMUM_STEPS, min(MINIMUM_BATCH, images))
    return with_batch_size(training, batch) if batch < training.batch_size else training


@dataclass(frozen=True)
class RunConfig:
    """One run, everything resolved. Two runs with equal `identity` are the same run."""

    experiment: str
    number: int
    variant: str
    budget: str
    dataset: str  # the slug of the loaded data, never a path
    fingerprint: str
    seed: int
    weights: str  # 'imagenet', 'none' or '<start of the file's name>-<6 hex digits of its SHA-256>'
    precision: str
    deterministic: bool
    limits: Limits
    training: Training
    row: dict[str, Any]  # the model's row with the variant's overrides
    overrides: dict[str, Any]  # what the command line changed, as in `--epochs 3` or `--precision X`: part of the name
    classes: tuple[str, ...] | None = None  # those that `--classes` chose, in the dataset's order; None: all

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """The configuration in a run's record. Nested values stay dicts; fields of other versions are ignored."""
        found: dict[str, Any] = {field.name: values.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**found)

    def as_begun(self, before: Mapping[str, Any]) -> Self:
        """This configuration, with what an earlier attempt at the run settled.

        That is the precision, unless the command line names one: 'auto' may choose another on another machine. Older
        versions did not record `classes`; the slug and the fingerprint, which identities compare, determine them.

        Args:
            before: the configuration of that attempt, as a dict.
        """
        precision = self.precision if "precision" in self.overrides else before.get("precision", self.precision)
        return dataclasses.replace(self, precision=precision, classes=before.get("classes"))

    @property
    def identity(self) -> str:
        """The canonical configuration: compact JSON with sorted keys, without the row's mere descriptions.

        `classes` and fields of recipe or row leave no trace where they are None: a field that is added later does not
        rename older runs.
        """
        values = dataclasses.asdict(self)
        if self.classes is None:
            del values["classes"]
        values["training"] = {name: value for name, value in values["training"].items() if value is not None}
        described = ("images_per_second", "gains_on_amx", "source")
        values["row"] = {name: v for name, v in self.row.items() if name not in described and v is not None}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))
