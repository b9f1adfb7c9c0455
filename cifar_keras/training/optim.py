"""The loss, the optimisers, and the one place that makes both from a recipe."""

import math

import keras
from keras import ops
from keras.optimizers import schedules

from cifar_keras.models import fused


class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of labels and logits with label smoothing (Szegedy et al., arXiv:1512.00567, section 7).

    Labels are integers `(batch,)`, or each class's share `(batch, classes)` where images are mixed. Computed in
    float32 under every precision policy.
    """

    def __init__(self, label_smoothing=0.0, name="cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        targets = y_true
        if len(y_true.shape) == 1:
            targets = ops.one_hot(ops.cast(y_true, "int32"), y_pred.shape[-1], dtype="float32")
        return keras.losses.categorical_crossentropy(
            targets, ops.cast(y_pred, "float32"), from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class Accuracy(keras.metrics.MeanMetricWrapper):
    """The share of images whose most probable class is the label, or the class with the largest share in a mixed image.

    Labels as for `CrossEntropy`. Keras' own 'accuracy' settles on one form of them, but training may mix images and
    validation never does.
    """

    def __init__(self, name="accuracy", **kwargs):
        super().__init__(_right, name=name, **kwargs)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _right(y_true, y_pred):
    """Whether each image is classified correctly, as 0 or 1."""
    label = y_true if len(y_true.shape) == 1 else ops.argmax(y_true, axis=-1)
    return ops.cast(ops.equal(ops.cast(label, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32")), "float32")


def orthogonalized(matrix, *, steps=3):
    """Brings a matrix's singular values near 1 by a quintic Newton-Schulz iteration.

    The coefficients maximise the slope at zero, so the values land in about [0.3, 1.2] rather than on 1
    (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).

    Args:
        matrix: float `(rows, columns)`.
        steps: iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    rows, columns = matrix.shape
    x = ops.transpose(matrix) if rows > columns else matrix  # the smaller Gram matrix
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    for _ in range(steps):
        gram = x @ ops.transpose(x)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return ops.transpose(x) if rows > columns else x


class Muon(keras.optimizers.Optimizer):
    """Muon on convolution kernels, Nesterov SGD on everything else.

    Keras' own Muon gives kernels of four dimensions silently to AdamW. A kernel `(height, width, in, out)` counts here
    as a matrix `(height * width * in, out)`: its norm is set to `sqrt(out)` and it moves by the orthogonalised
    momentum. The recipe is airbench94_muon's (github.com/KellerJordan/cifar10-airbench).

    Args:
        learning_rate: step of the kernels, relative to a spectral norm of about 1.
        momentum: of the kernels' gradients.
        head_rate, bias_rate: learning rates of two- and of one-dimensional variables, as multiples of `learning_rate`.
        sgd_momentum: of those variables' gradients.
        decay: L2 coefficient of those variables; a step at the rate `peak` takes away `decay / (1 - sgd_momentum)`.
        peak: the highest rate of the schedule, default `learning_rate`.
    """

    def __init__(
        self,
        learning_rate=0.24,
        momentum=0.6,
        head_rate=1.0,
        bias_rate=1.0,
        sgd_momentum=0.85,
        decay=0.0,
        peak=None,
        name="muon",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.head_rate = head_rate
        self.bias_rate = bias_rate
        self.sgd_momentum = sgd_momentum
        self.decay = decay
        self.peak = learning_rate if peak is None else peak

    def build(self, variables):
        """Makes one momentum slot per variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Moves one variable; called by Keras."""
        buffer = self.momentums[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        if len(variable.shape) == 4:
            self._orthogonal_step(gradient, variable, rate, buffer)
        else:
            multiple = self.head_rate if len(variable.shape) == 2 else self.bias_rate
            # At the schedule's peak the decay is `decay` whatever the rate, hence the division.
            gradient = gradient + (self.decay / (multiple * self.peak)) * variable
            self.assign(buffer, self.sgd_momentum * buffer + gradient)
            self.assign_sub(variable, rate * multiple * (gradient + self.sgd_momentum * buffer))

    def _orthogonal_step(self, gradient, variable, rate, buffer):
        self.assign(buffer, self.momentum * buffer + gradient)
        update = gradient + self.momentum * buffer
        matrix = ops.reshape(update, (-1, variable.shape[-1]))
        update = ops.reshape(orthogonalized(matrix), variable.shape)
        norm = ops.sqrt(ops.sum(ops.square(variable)))
        self.assign(variable, variable * (math.sqrt(variable.shape[-1]) / norm) - rate * update)

    def get_config(self):
        names = ("momentum", "head_rate", "bias_rate", "sgd_momentum", "decay", "peak")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _OneKernel:
    """Adam whose update is one TensorFlow kernel for each variable, by the same formula; on other backends Keras' own.

    Keras composes the update from arithmetic, in several passes over the weights, and weight decay computes the
    schedule again for each variable. In a ResNet50 these are thousands of operations, and tracing them was most of the
    time that a first step took (`docs/speed.md`).
    """

    @property
    def _as_keras_does(self):
        return keras.backend.backend() != "tensorflow" or self.amsgrad  # which the kernel lacks

    def _apply_weight_decay(self, variables):
        if self._as_keras_does:  # else `update_step` does it
            super()._apply_weight_decay(variables)

    def update_step(self, gradient, variable, learning_rate):
        """Moves one variable; called by Keras."""
        if self._as_keras_does:
            return super().update_step(gradient, variable, learning_rate)
        rate, step = ops.cast(learning_rate, variable.dtype), ops.cast(self.iterations + 1, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            variable.assign_sub(variable * (rate * self.weight_decay))
        momentum, velocity = (slot[self._get_variable_index(variable)] for slot in (self._momentums, self._velocities))
        return fused.apply_adam(
            variable,
            momentum.value,
            velocity.value,
            ops.cast(gradient, variable.dtype),
            rate=rate,
            betas=(self.beta_1, self.beta_2),
            epsilon=self.epsilon,
            step=step,
        )


class Adam(_OneKernel, keras.optimizers.Adam):
    """Keras' Adam, see `_OneKernel`."""


class AdamW(_OneKernel, keras.optimizers.AdamW):
    """Keras' AdamW, see `_OneKernel`."""


def make_schedule(stage, *, steps):
    """The stage's learning rate over its `steps` as a Keras schedule."""
    if stage.schedule == "constant":
        return stage.learning_rate
    if stage.schedule == "linear":
        return schedules.PolynomialDecay(stage.learning_rate, steps, end_learning_rate=0.0)
    if stage.schedule == "step":
        last = [round(steps * part / 3) - 1 for part in (1, 2)]  # the last step at each rate
        return schedules.PiecewiseConstantDecay(last, [stage.learning_rate * 0.5**n for n in range(3)])
    warmup = round(stage.warmup * steps)
    if not warmup:
        return schedules.CosineDecay(stage.learning_rate, steps)
    return schedules.CosineDecay(0.0, steps - warmup, warmup_target=stage.learning_rate, warmup_steps=warmup)


def make_optimizer(training, stage, *, steps):
    """The stage's optimiser, its schedule spread over `steps`."""
    rate = make_schedule(stage, steps=steps)
    averages = {"use_ema": True, "ema_momentum": training.ema} if training.ema else {}
    if training.optimizer == "adam":
        return Adam(rate, **averages)
    if training.optimizer == "adamw":
        return AdamW(rate, weight_decay=training.weight_decay, **averages)
    if training.optimizer == "sgd":
        decay = training.weight_decay or None
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=decay, **averages)
    # 'muon': airbench states its rates for a loss summed over the batch and logits divided by the features' number
    # (256); ours is a mean over plain logits, which is the same step at these multiples. So only the kernels' rate
    # is the stage's, and the others follow the batch linearly.
    batch, peak = training.batch_size, stage.learning_rate
    return Muon(
        rate,
        head_rate=0.67 * batch / 256**2 / peak,
        bias_rate=0.053 * batch / peak,
        decay=training.weight_decay * batch,
        peak=peak,
        **averages,
    )
