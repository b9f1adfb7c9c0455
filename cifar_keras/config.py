"""What a run is: frozen dataclasses that every other module reads (standard library only).

`Experiment` is what an experiment file states, `Options` what the command line adds, `RunConfig` the two
resolved against the model's row: the one canonical description of a run, and its identity.
"""

import dataclasses
import json
from dataclasses import dataclass, field


class CifarKerasError(Exception):
    """A problem that the user can mend: shown as one sentence, never as a stack trace."""

    exit_code = 3


class ConfigError(CifarKerasError):
    """Bad input: says what was expected, what was received and how to mend it."""

    exit_code = 2


class RunFailedError(CifarKerasError):
    """The run itself failed (a diverging loss, a full disk); the last good weights stay."""

    exit_code = 3


class HeldError(CifarKerasError):
    """Another process holds what this one needs."""

    exit_code = 4


def _one_of(name, value, choices):
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {value!r}.")


@dataclass(frozen=True)
class Stage:
    """One phase of training with one optimiser.

    Attributes:
        epochs: passes over the training split.
        learning_rate: peak rate; `schedule` takes it from there.
        freeze_backbone: train the head alone, whatever the model's row calls trainable.
        schedule: 'constant', 'cosine' or 'linear' decay to zero at the stage's last step, or 'step', which halves
            the rate after each third of them.
        warmup: share of the stage's steps in which the rate rises linearly from zero, in [0, 1).
    """

    epochs: int
    learning_rate: float
    freeze_backbone: bool = False
    schedule: str = "cosine"
    warmup: float = 0.0

    def __post_init__(self):
        _one_of("schedule", self.schedule, ("constant", "cosine", "linear", "step"))
        if self.warmup and self.schedule != "cosine":
            raise ConfigError(f"`warmup` goes with schedule 'cosine'. Received: {self.schedule!r}.")


@dataclass(frozen=True)
class Training:
    """A recipe: which row of `models.zoo.MODELS`, and how it is trained.

    Attributes:
        model: name of a row of `models.zoo.MODELS`.
        stages: trained one after the other; the weights best on val are kept over all of them.
        override: columns of the row that this variant replaces, by name.
        batch_size: images a step.
        optimizer: 'adam', 'adamw', 'sgd' (Nesterov, 0.9) or 'muon' (see `training.optim.Muon`; the stages' learning
            rates are then those of the convolution kernels, and everything else keeps airbench's rates).
        weight_decay: decoupled for 'adamw' and 'sgd', fraction of the weights a step at rate 1; for 'muon' per image.
        label_smoothing: share of each target spread over all classes, in [0, 1).
        test_time_augmentation: also score the mean over mirrored and shifted views, in a column of its own.
        views: augmented views of each training image whose features a frozen backbone computes, once; epoch e trains
            on view e modulo `views`. None: one an epoch, which is what augmentation on the fly shows. 0: no features
            are kept, every epoch goes through the backbone. See `features`.
        weights: 'none' for a baseline that starts at random whatever `--weights` says; None: as that or the row says.
        per_class: most training images of a class, drawn anew by every seed; None: all. Val and test stay whole.
        also_score: 'last' also measures the last epoch's weights, as studies without selection do; 'epochs' moreover
            follows test after every epoch, an audit whose figures select nothing; None: only the selected weights.
        class_weights: 'balanced' weighs every training image by images / (classes * images of its class), so that each
            class counts alike in the loss; None: each image does.
    """

    model: str
    stages: tuple[Stage, ...]
    override: dict = field(default_factory=dict)
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

    def __post_init__(self):
        _one_of("optimizer", self.optimizer, ("adam", "adamw", "sgd", "muon"))
        _one_of("weights", self.weights, (None, "none"))
        _one_of("also_score", self.also_score, (None, "last", "epochs"))
        _one_of("class_weights", self.class_weights, (None, "balanced"))

    @property
    def epochs(self):
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)


def tutorial(model, **override):
    """What a tutorial does with a model: Adam at a constant 1e-3, batch 32, ten epochs, a plain linear head.

    Args:
        model: name of a row of `models.zoo.MODELS`.
        override: columns of the row, as `Training.override`.
    """
    stages = (Stage(epochs=10, learning_rate=1e-3, schedule="constant"),)
    return Training(model, stages, override={"head": "plain", **override}, batch_size=32, optimizer="adam")


BEST, PUBLISHED = "best", "published"  # variants with a meaning: what is run by default, and the source's rebuilt


@dataclass(frozen=True)
class Experiment:
    """A question with named variants; `experiments/exp<number>_<name>.py` holds one.

    Attributes:
        number: what file names are made of.
        name: one or two words; with the number it is the file's name.
        variants: recipes by name. `best` is the default where there is one, else all of them run.
        published: accuracies that the source reported: {"train": 0.46, "val": 0.43, "test": 0.42}; of several
            variants, such a dict by the variant's name.
        summary: how the variants are compared in a table and a figure of their own, a key of `report.summaries.KINDS`;
            None: in the table of all results alone.
        published_classes: per-class test accuracies that the source reported, by variant and class name.
        about: slug of the dataset that the question is about; its table stands there before there is a run on it.
    """

    number: int
    name: str
    variants: dict[str, Training]
    published: dict = field(default_factory=dict)
    summary: str | None = None
    published_classes: dict[str, dict[str, float]] = field(default_factory=dict)
    about: str = "cifar10"

    @property
    def key(self):
        """The experiment's full name, for example `exp3_finetune`."""
        return f"exp{self.number}_{self.name}"

    @property
    def share(self):
        """What part of a budget each run gets: where all variants run by default, they share it."""
        return 1.0 if BEST in self.variants else 1 / len(self.variants)


def published_of(published, variant):
    """What the source reported of a variant, by split; see `Experiment.published`."""
    return published.get(variant, {}) if any(isinstance(value, dict) for value in published.values()) else published


@dataclass(frozen=True)
class Limits:
    """Most images to take of each split; None takes all."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Budget:
    """How much of the study to run.

    Attributes:
        small: images of train, val and test at most, for models that see fewer than 128 pixels.
        large: the same for the others.
        seconds: training time at the row's `images_per_second`; images and epochs are cut to fit it. None: no cut.
            Of experiments whose variants all run, together (`shared`).
        dataset: what is loaded when `--dataset` is not given.
        pretrained: whether rows start from the weights they call for when `--weights` is not given.
    """

    small: Limits = Limits()
    large: Limits = Limits()
    seconds: int | None = None
    dataset: str = "cifar10"
    pretrained: bool = True

    def shared(self, share):
        """The budget of one of several runs."""
        return dataclasses.replace(self, seconds=self.seconds and self.seconds * share)


BUDGETS = {
    "full": Budget(),
    "quick": Budget(small=Limits(6000, 1000, 1000), large=Limits(600, 100, 200), seconds=200),
    "demo": Budget(
        small=Limits(4000, 500, 1000), large=Limits(120, 60, 200), seconds=45, dataset="shapes", pretrained=False
    ),
}

MINIMUM_STEPS = 20  # an epoch: with fewer the optimiser hardly moves, so the batch shrinks instead,
MINIMUM_BATCH = 16  # but not below what BatchNorm needs


def with_epochs(training, epochs):
    """Shares `epochs` among the stages as the recipe does, at least one each (the last ones, where there are fewer)."""
    stages = training.stages[-epochs:]
    total, counts = sum(stage.epochs for stage in stages), []
    for behind, stage in zip(reversed(range(len(stages))), stages, strict=True):
        left = epochs - sum(counts) - behind  # the stages behind this one need an epoch each
        counts.append(min(max(1, round(epochs * stage.epochs / total)), left) if behind else left)
    stages = tuple(dataclasses.replace(stage, epochs=n) for stage, n in zip(stages, counts, strict=True))
    return dataclasses.replace(training, stages=stages)


def with_learning_rate(training, rate):
    """Sets the last stage's learning rate and scales the others' by the same factor."""
    factor = rate / training.stages[-1].learning_rate
    stages = (dataclasses.replace(s, learning_rate=s.learning_rate * factor) for s in training.stages)
    return dataclasses.replace(training, stages=tuple(stages))


def with_batch_size(training, batch_size):
    """Sets the batch size; learning rates follow its square root (arXiv:1404.5997, section 5)."""
    rate = training.stages[-1].learning_rate * (batch_size / training.batch_size) ** 0.5
    return dataclasses.replace(with_learning_rate(training, rate), batch_size=batch_size)


def with_views(training, views):
    """Sets the number of views; see `Training.views`."""
    return dataclasses.replace(training, views=views)


def with_class_weights(training, class_weights):
    """Sets what the classes count in the loss; see `Training.class_weights`."""
    return dataclasses.replace(training, class_weights=class_weights)


def limits_of(budget, training, *, pixels, images_per_second):
    """How many images of each split a budget admits: so few that its time suffices for three epochs, or one a stage.

    Args:
        budget: a `Budget`.
        training: the full recipe.
        pixels: side of the images that the model sees.
        images_per_second: the model row's reference training speed.
    Returns: `Limits`.
    """
    limits = budget.small if pixels < 128 else budget.large
    if budget.seconds is None:
        return limits
    epochs = min(training.epochs, max(3, len(training.stages)))
    return dataclasses.replace(limits, train=min(limits.train, int(budget.seconds * images_per_second) // epochs))


def cut(training, budget, *, images, images_per_second):
    """Fits a recipe to a budget and to the data: fewer epochs, then batches small enough to make some steps.

    Args:
        training: the full recipe.
        budget: a `Budget`.
        images: training images there are.
        images_per_second: the model row's reference training speed.
    Returns: `Training`.
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
    dataset: str  # the slug of the data that was loaded, never a path
    fingerprint: str
    seed: int
    weights: str  # 'imagenet', 'none' or '<file stem>-<6 hex digits of its SHA-256>'
    precision: str
    deterministic: bool
    limits: Limits
    training: Training
    row: dict  # the model's row with the variant's overrides
    overrides: dict  # what the command line changed, as in `--epochs 3`: it becomes part of every name
    classes: tuple[str, ...] | None = None  # those that `--classes` chose, in the dataset's order; None: all

    @classmethod
    def restored(cls, values):
        """The configuration in a run's record, nested values as dicts, other versions' fields passed over."""
        return cls(**{field.name: values.get(field.name) for field in dataclasses.fields(cls)})

    @property
    def identity(self):
        """The canonical configuration: compact JSON with sorted keys, without what only describes the model's row.

        A part of recipe or row that is None leaves no trace: added later, it does not rename the runs before.
        """
        values = dataclasses.asdict(self)
        if self.classes is None:
            del values["classes"]
        values["training"] = {name: value for name, value in values["training"].items() if value is not None}
        described = ("images_per_second", "source")
        values["row"] = {name: v for name, v in self.row.items() if name not in described and v is not None}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))
