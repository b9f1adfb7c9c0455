"""Metrics, 95% intervals and tests: NumPy in, numbers out. Every difference is the second minus the first.

SciPy is imported inside functions: it takes a second to load, which `--help` and `list` should not wait for.
"""

import math
from dataclasses import dataclass
from statistics import mean, variance  # exact: equal values have no variance, not 1e-33

import numpy as np

UNEQUAL = 1.2  # times as many images in the largest class as in the smallest, above which accuracy alone misleads
CONFIDENCE = 0.95  # share of repetitions that an interval is to cover
BOOTSTRAP_FROM = 10  # seeds; resampling fewer values covers far less than it states, Student's t does not


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval.

    Attributes:
        value: an accuracy in [0, 1], or a difference of two in [-1, 1].
        low: lower bound.
        high: upper bound.
        kind: how the bounds were found, for example 'Wilson' or 'Student t'.
    """

    value: float
    low: float
    high: float
    kind: str

    @property
    def excludes_zero(self):
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    def accuracy(self, digits=1):
        """An accuracy with its interval, in percent: '71.3% [70.4, 72.2]'."""
        return f"{percent(self.value, digits)}% {self.bounds(digits)}"

    def points(self, digits=1):
        """A difference with its interval, in percentage points: '+1.3 [+0.2, +2.4]'."""
        return f"{percent(self.value, digits, '+')} {self.bounds(digits, '+')}"

    def bounds(self, digits=1, sign=""):
        """The interval alone, in percent: '[70.4, 72.2]'."""
        return f"[{percent(self.low, digits, sign)}, {percent(self.high, digits, sign)}]"


@dataclass(frozen=True)
class McNemar:
    """The exact test of two classifiers on the same images.

    Attributes:
        p: two-sided. If both were equally good, images that only one of them classifies correctly would be split at
            least as unevenly with this probability.
        only_a: number of images that only the first classifies correctly.
        only_b: number of images that only the second classifies correctly.
    """

    p: float
    only_a: int
    only_b: int


def percent(value, digits=1, sign=""):
    """A share in percent, '71.3', or with `sign="+"` a difference in percentage points, '+1.3'; zero is never -0."""
    return f"{round(100 * value, digits) + 0.0:{sign}.{digits}f}"


def accuracy(labels, probabilities):
    """The share of images whose most probable class is the label, in [0, 1]."""
    return float(np.mean(np.argmax(probabilities, axis=1) == labels))


def coarse_accuracy(labels, probabilities, superclass):
    """The share of images whose most probable superclass is theirs; its probability is the sum of its classes'.

    Args:
        labels: int `(images,)`, of classes.
        probabilities: `(images, classes)`.
        superclass: int `(classes,)`, the superclass of each; -1 for classes without images.
    """
    sums = np.stack([probabilities[:, superclass == coarse].sum(axis=1) for coarse in range(superclass.max() + 1)], 1)
    return accuracy(superclass[labels], sums)


def class_accuracy(labels, probabilities, *, classes):
    """Accuracy of each class, float64 `(classes,)`; NaN for a class without images."""
    right = np.argmax(probabilities, axis=1) == labels
    counts = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, weights=right, minlength=classes) / counts


def cross_entropy(labels, probabilities):
    """Mean negative log-likelihood in nats; probabilities are clipped at float32's smallest normal number."""
    chosen = probabilities[np.arange(len(labels)), labels].astype("float64")
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo("float32").tiny))))


def confusion(labels, probabilities):
    """Counts `(classes, classes)`, true classes as rows, predicted ones as columns."""
    classes = probabilities.shape[1]
    pairs = labels * classes + np.argmax(probabilities, axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(matrix):
    """The mean accuracy over classes: chance is 1 / classes, whatever their sizes.

    Args:
        matrix: counts `(classes, predicted classes)`, as from `confusion`; classes without images are skipped.
    Returns: float in [0, 1]; NaN without any image.
    """
    matrix = np.asarray(matrix)
    counts = matrix.sum(axis=1)
    there = counts > 0
    return float(np.mean(np.diagonal(matrix)[there] / counts[there])) if there.any() else math.nan


def majority_share(counts):
    """The accuracy of naming the largest class for every image, in (0, 1].

    Args:
        counts: images of each class, `(classes,)`, not all zero.
    """
    return float(np.max(counts) / np.sum(counts))


def imbalanced(counts):
    """Whether class sizes differ by more than a fifth, so that balanced accuracy belongs beside accuracy.

    A difference of one image does not count, since splitting equal classes may leave one.

    Args:
        counts: images of each class, `(classes,)`; a class without any counts as one of size zero.
    """
    most, fewest = int(np.max(counts)), int(np.min(counts))
    return most > UNEQUAL * fewest and most - fewest > 1


def beside_accuracy(matrix):
    """What belongs beside accuracy where classes differ in size.

    Args:
        matrix: counts `(classes, predicted classes)`, as from `confusion`.
    Returns: `{"balanced_accuracy": ..., "majority_share": ...}`; None where accuracy suffices (see `imbalanced`).
    """
    counts = np.sum(matrix, axis=1)
    if not imbalanced(counts):
        return None
    return {"balanced_accuracy": balanced_accuracy(matrix), "majority_share": majority_share(counts)}


def wilson(accuracy, n):
    """The Wilson score interval of one accuracy measured on `n` images (Wilson, JASA 22, 1927).

    Returns: `(low, high)`.
    """
    from scipy import stats

    interval = stats.binomtest(round(accuracy * n), n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def seeds_interval(values):
    """The mean accuracy of several seeds; the interval covers the draw of the seeds, on this one test set.

    Student's t (Biometrika 6, 1908) below ten seeds; from ten on the BCa bootstrap (Efron, JASA 82, 1987), whose random
    numbers are fixed. Where all seeds gave the same value the interval has no width.

    Args:
        values: two accuracies or more, in [0, 1].
    Returns: `Estimate`, bounds in [0, 1].
    """
    if len(values) < BOOTSTRAP_FROM:
        return _student_interval(values, "Student t", lowest=0.0)
    centre = mean(values)
    low, high = _bca(values) if variance(values) else (centre, centre)
    return _bounded(centre, low, high, "BCa", lowest=0.0)


def accuracy_interval(values, n):
    """The mean test accuracy of one seed (`wilson`) or several (`seeds_interval`).

    Seeds that all gave the same value carry no information on their spread, so they count as one.

    Args:
        values: accuracies in [0, 1], one per seed.
        n: number of test images.
    Returns: `Estimate`, bounds in [0, 1].
    """
    if len(set(values)) > 1:
        return seeds_interval(values)
    return Estimate(values[0], *wilson(values[0], n), "Wilson")


def difference_unpaired(p1, n1, p2, n2):
    """The difference of two accuracies measured on two samples of images.

    The hybrid score interval of Newcombe (Statistics in Medicine 17, 1998, 873-890, method 10). It also holds on one
    sample of images, but is wider than necessary where both make the same errors.

    Args:
        p1: the first accuracy, in [0, 1].
        n1: images behind it.
        p2: the second accuracy.
        n2: images behind that.
    Returns: `Estimate` of p2 - p1, bounds in [-1, 1].
    """
    return _newcombe((p1, n1), (p2, n2), 0.0, "Newcombe, unpaired")


def difference_paired(correct_a, correct_b):
    """The difference of two accuracies measured on the same images.

    The paired score interval of Newcombe (Statistics in Medicine 17, 1998, 2635-2650, method 10): the unpaired one,
    narrowed by the correlation of the errors, which is counted with a continuity correction where it is positive.

    Args:
        correct_a: bool `(images,)`, whether the first got each image right.
        correct_b: the same of the second.
    Returns: `Estimate` of the second accuracy minus the first, bounds in [-1, 1].
    """
    n, right_a, right_b = len(correct_a), int(np.sum(correct_a)), int(np.sum(correct_b))
    both = int(np.sum(correct_a & correct_b))
    margins = right_a * (n - right_a) * right_b * (n - right_b)
    excess = n * both - right_a * right_b  # both right x both wrong - one right x other right
    phi = (max(excess - n / 2, 0.0) if excess > 0 else excess) / margins**0.5 if margins else 0.0
    return _newcombe((right_a / n, n), (right_b / n, n), phi, "Newcombe, paired")


def mcnemar(correct_a, correct_b):
    """McNemar's exact test (Psychometrika 12, 1947) of whether two classifiers are equally accurate on the same images.

    Args:
        correct_a: bool `(images,)`, whether the first got each image right.
        correct_b: the same of the second.
    Returns: `McNemar`; p is 1 if both classify the same images correctly.
    """
    from scipy import stats

    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(p, only_a, only_b)


def holm(p_values):
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979) of several p-values.

    Args:
        p_values: one per comparison, in [0, 1], in any order.
    Returns: list of corrected p-values in the same order; those below 0.05 are significant together at that level.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))  # never below a smaller p's
        corrected[index] = largest
    return corrected


def difference_seeds(a, b, *, test_sets=None):
    """The difference of two mean accuracies over seeds; the interval covers the draw of the seeds, on one test set.

    Two seeds or more on both sides: Welch's t (Biometrika 34, 1947). One against m: Student's t with the variance of
    the m (df = m - 1), assuming that the one spreads like them. If neither side varies the interval has no width.

    The spread over seeds does not include that over test images. Where the test sets differ, the binomial variance of
    each set is added to that of the seeds; the degrees of freedom follow (Satterthwaite, Biometrics 2, 1946).

    Args:
        a: accuracies of the first side in [0, 1], one per seed.
        b: the same of the second; at least one side has two or more.
        test_sets: number of images in each side's test set; None if both sides used the same one.
    Returns: `Estimate` of the mean of `b` minus that of `a`, bounds in [-1, 1].
    """
    means = mean(a), mean(b)
    if min(len(a), len(b)) == 1:
        several = max(a, b, key=len)
        kind, parts = "pooled t", [(variance(several) * (1 + 1 / len(several)), len(several) - 1)]
    else:
        kind, parts = "Welch t", [(variance(side) / len(side), len(side) - 1) for side in (a, b)]
    square = sum(part for part, _ in parts)
    if test_sets:
        kind += " + test"
        square += sum(p * (1 - p) / n for p, n in zip(means, test_sets, strict=True))
    uncertain = sum(part**2 / df for part, df in parts)
    half = _student(square**2 / uncertain if uncertain else math.inf) * square**0.5
    difference = means[1] - means[0]
    return _bounded(difference, difference - half, difference + half, kind, lowest=-1.0)


def difference_seeds_paired(a, b, *, n=None):
    """The mean difference of runs that share a seed, hence data and order; the interval covers the draw of seeds.

    Student's t of the differences (Biometrika 6, 1908).

    Args:
        a: accuracies of the first side in [0, 1], one per seed; two or more.
        b: the same of the second, of the same seeds in the same order.
        n: number of test images, see `_rounding`; None: the accuracies are exact.
    Returns: `Estimate` of the mean of `b - a`, bounds in [-1, 1].
    """
    differences = [after - before for before, after in zip(a, b, strict=True)]
    return _student_interval(differences, "paired t", lowest=-1.0, least=_rounding(n))


def _rounding(n):
    """The variance of a difference of two accuracies that comes from counting images, 1 / (6 n^2); 0 for None.

    An accuracy is a multiple of 1/n. Without this, a few seeds whose differences happen to be equal would be certain.
    """
    return 1 / (6 * n**2) if n else 0.0


def paired_t_test(a, b, *, n=None):
    """The p-value of Student's paired t-test of equal means (Biometrika 6, 1908), for runs that share a seed.

    Args:
        a: accuracies of the first side, one per seed; two or more.
        b: the same of the second, of the same seeds in the same order.
        n: number of test images, see `_rounding`; None: the accuracies are exact.
    Returns: in [0, 1]; of exact accuracies whose differences are all equal 1 if they are zero, else 0.
    """
    from scipy import stats

    differences = [after - before for before, after in zip(a, b, strict=True)]
    error = (max(variance(differences), _rounding(n)) / len(differences)) ** 0.5
    if not error:
        return float(not any(differences))
    return float(2 * stats.t.sf(abs(mean(differences)) / error, len(differences) - 1))


def _student_interval(values, kind, *, lowest, least=0.0):
    """The mean of values with Student's t interval; their variance is taken to be at least `least`."""
    centre = mean(values)
    half = _student(len(values) - 1) * (max(variance(values), least) / len(values)) ** 0.5
    return _bounded(centre, centre - half, centre + half, kind, lowest=lowest)


def _bounded(value, low, high, kind, *, lowest):
    """An `Estimate` with its bounds clipped to [lowest, 1]."""
    return Estimate(float(value), max(lowest, float(low)), min(1.0, float(high)), kind)


def _student(df):
    """The two-sided critical value of Student's t."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, df))


def _bca(values):
    """The bounds of the BCa bootstrap for the mean of values that vary; reproducible."""
    from scipy import stats

    interval = stats.bootstrap(
        (np.asarray(values, "float64"),), np.mean, confidence_level=CONFIDENCE, method="BCa", vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return interval.low, interval.high


def _newcombe(first, second, phi, kind):
    """Newcombe's hybrid interval: distances to the Wilson bounds, combined with the correlation `phi` of the errors."""
    (p1, n1), (p2, n2) = first, second
    (l1, u1), (l2, u2) = wilson(p1, n1), wilson(p2, n2)

    def distance(one, other):
        return max(0.0, one**2 - 2 * phi * one * other + other**2) ** 0.5

    difference = p2 - p1
    low, high = difference - distance(p2 - l2, u1 - p1), difference + distance(u2 - p2, p1 - l1)
    return _bounded(difference, low, high, kind, lowest=-1.0)
