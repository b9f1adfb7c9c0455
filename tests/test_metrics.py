"""Intervals and tests: by hand, against published examples, and by how often they hold in simulations."""

import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest

from cifar_keras import metrics
from cifar_keras.utils.paths import PROJECT

Z = 1.959963984540054  # the normal distribution's 97.5% point
T1, T2 = 12.706204736, 4.302652730  # Student's, for one and two degrees of freedom (any table)


def simulations():
    """benchmarks/intervals.py, which holds the simulations."""
    specification = importlib.util.spec_from_file_location("intervals", PROJECT / "benchmarks" / "intervals.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


INTERVALS = simulations()


def bounds(estimate):
    return estimate.low, estimate.high


def wilson(right, n):
    """The formula."""
    middle, half = right + Z**2 / 2, Z * math.sqrt(right * (n - right) / n + Z**2 / 4)
    return (middle - half) / (n + Z**2), (middle + half) / (n + Z**2)


def answers(both, only_a, only_b, neither):
    """Two bool arrays with these counts: right in both, in the first alone, in the second alone, in neither."""
    counts = (both, only_a, only_b, neither)
    return np.repeat((True, True, False, False), counts), np.repeat((True, False, True, False), counts)


def test_one_seed_has_a_wilson_interval_and_so_have_seeds_that_agree():
    for values in ([0.9], [0.9, 0.9, 0.9]):
        estimate = metrics.accuracy_interval(values, 1000)
        assert (estimate.value, estimate.kind) == (0.9, "Wilson")
        assert bounds(estimate) == pytest.approx(wilson(900, 1000), abs=1e-9)


def test_few_seeds_have_students_interval():
    two = metrics.seeds_interval([0.90, 0.92])  # sd 0.02 / sqrt(2), over sqrt(2): 0.01
    assert two.value == pytest.approx(0.91) and two.kind == "Student t"
    assert bounds(two) == pytest.approx((0.91 - T1 * 0.01, 1.0))  # clipped: 1.037 is no accuracy
    three = metrics.accuracy_interval([0.90, 0.91, 0.92], 10_000)  # sd 0.01
    half = T2 * 0.01 / math.sqrt(3)
    assert bounds(three) == pytest.approx((0.91 - half, 0.91 + half))


def test_from_ten_seeds_on_a_reproducible_bootstrap_takes_over():
    values = [0.90, 0.91, 0.905, 0.903, 0.908, 0.902, 0.911, 0.899, 0.904, 0.907]
    assert metrics.seeds_interval(values[:9]).kind == "Student t"
    estimate = metrics.seeds_interval(values)
    assert estimate == metrics.seeds_interval(values) and estimate.kind == "BCa"
    assert min(values) < estimate.low < estimate.value < estimate.high < max(values)
    error = np.std(values) / math.sqrt(10)  # of the resampled mean, hence with n below; BCa is near the normal here
    assert bounds(estimate) == pytest.approx((estimate.value - Z * error, estimate.value + Z * error), abs=0.2 * error)


@pytest.mark.parametrize("count", [2, 9, 10, 20])
def test_seeds_that_agree_give_an_interval_without_width(count):
    assert bounds(metrics.seeds_interval([0.9] * count)) == (0.9, 0.9)
    apart = metrics.difference_seeds([0.9] * count, [0.8] * count)
    assert apart.low == apart.value == apart.high == pytest.approx(-0.1)
    one = metrics.difference_seeds([0.9], [0.8] * count)
    assert one.low == one.value == one.high == pytest.approx(-0.1)


def test_seeds_that_agree_on_one_side_alone_leave_the_other_sides_spread():
    welch = metrics.difference_seeds([0.9, 0.9, 0.9], [0.91, 0.93])  # 0.02 +- t1 x 0.01
    assert bounds(welch) == pytest.approx((0.02 - T1 * 0.01, 0.02 + T1 * 0.01))


def test_newcombes_unpaired_examples():
    """Newcombe (1998), Table II: 56/70 - 48/80, 9/10 - 3/10 and 10/10 - 0/20, method 10."""
    for first, second, expected in (
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
        ((0, 20), (10, 10), (0.6791, 1.0000)),
    ):
        estimate = metrics.difference_unpaired(first[0] / first[1], first[1], second[0] / second[1], second[1])
        assert bounds(estimate) == pytest.approx(expected, abs=6e-5)
        assert estimate.value == pytest.approx(second[0] / second[1] - first[0] / first[1])
        reverse = metrics.difference_unpaired(second[0] / second[1], second[1], first[0] / first[1], first[1])
        assert bounds(reverse) == pytest.approx((-estimate.high, -estimate.low))


@pytest.mark.parametrize("counts", [(20, 12, 2, 16), (1, 97, 1, 1), (2, 6, 5, 2), (7, 4, 3, 6), (30, 5, 0, 0)])
def test_the_paired_interval_equals_the_formula(counts):
    e, f, g, h = counts
    n = sum(counts)
    (p1, (l1, u1)), (p2, (l2, u2)) = (((e + f) / n, wilson(e + f, n)), ((e + g) / n, wilson(e + g, n)))
    product = (e + f) * (g + h) * (e + g) * (f + h)
    excess = e * h - f * g
    phi = 0 if not product else (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(product)
    below = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    above = math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    first, second = answers(*counts)
    estimate = metrics.difference_paired(second, first)  # the paper's difference is the first minus the second
    assert bounds(estimate) == pytest.approx((p1 - p2 - below, p1 - p2 + above), abs=1e-9)
    assert estimate.value == pytest.approx((f - g) / n)


def test_newcombes_paired_example():
    """Newcombe (1998, paired data), Table III: cells 1, 97, 1, 1; the lower bound of method 10 is 0.8736."""
    first, second = answers(1, 97, 1, 1)
    assert metrics.difference_paired(second, first).low == pytest.approx(0.8736, abs=1e-4)


def test_the_paired_interval_is_narrower_where_errors_are_shared():
    a, b = answers(850, 40, 60, 50)
    paired, unpaired = metrics.difference_paired(a, b), metrics.difference_unpaired(0.89, 1000, 0.91, 1000)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_a_model_does_not_differ_from_itself():
    for counts in ((20, 0, 0, 30), (50, 0, 0, 0), (0, 0, 0, 50)):
        a, b = answers(*counts)
        estimate = metrics.difference_paired(a, b)
        assert estimate.value == 0 and estimate.low == pytest.approx(-estimate.high) and not estimate.excludes_zero
        assert metrics.mcnemar(a, b) == metrics.McNemar(1.0, 0, 0)


def test_mcnemar_by_hand():
    test = metrics.mcnemar(*answers(20, 12, 2, 16))
    assert test == metrics.McNemar(pytest.approx(2 * (1 + 14 + 91) / 2**14), 12, 2)  # C(14, 0), C(14, 1), C(14, 2)
    assert metrics.mcnemar(*answers(10, 0, 5, 10)) == metrics.McNemar(2 / 2**5, 0, 5)


def test_differences_over_seeds_by_hand():
    welch = metrics.difference_seeds([0.90, 0.92], [0.94, 0.96])  # variances 0.0002 each: two degrees of freedom
    half = T2 * math.sqrt(0.0002)
    assert welch.kind == "Welch t" and bounds(welch) == pytest.approx((0.04 - half, 0.04 + half))
    half = T1 * math.sqrt(0.0002 * (1 + 1 / 2))
    later, earlier = metrics.difference_seeds([0.90], [0.91, 0.93]), metrics.difference_seeds([0.91, 0.93], [0.90])
    assert later.kind == earlier.kind == "pooled t"
    assert bounds(later) == pytest.approx((0.02 - half, 0.02 + half))
    assert bounds(earlier) == pytest.approx((-0.02 - half, -0.02 + half))


def test_other_test_images_add_the_variance_of_their_draw():
    """Variances of the means: 0.0001 each of the seeds, 0.9 x 0.1 / 900 and 0.5 x 0.5 / 2500 of the test sets."""
    a, b = [0.89, 0.91], [0.49, 0.51]
    estimate = metrics.difference_seeds(a, b, test_sets=(900, 2500))
    assert estimate.kind == "Welch t + test"
    half = 2.306004135 * math.sqrt(0.0004)  # Student's for 0.0004^2 / (0.0001^2 + 0.0001^2) = 8 degrees of freedom
    assert bounds(estimate) == pytest.approx((-0.4 - half, -0.4 + half))
    one = metrics.difference_seeds([0.9], [0.5, 0.5], test_sets=(900, 2500))  # no spread: the normal distribution's
    assert one.kind == "pooled t + test"
    assert bounds(one) == pytest.approx((-0.4 - Z * math.sqrt(0.0002), -0.4 + Z * math.sqrt(0.0002)))


def test_many_seeds_on_both_sides_are_compared_as_few_are():
    a, b = [0.90 + 0.001 * step for step in range(12)], [0.92 + 0.002 * step for step in range(12)]
    assert metrics.difference_seeds(a, b).kind == "Welch t"


def test_differences_stay_between_minus_one_and_one():
    assert bounds(metrics.difference_seeds([0.0, 0.5], [0.5, 1.0])) == (-1.0, 1.0)


def test_nothing_of_this_loads_scipy_before_it_is_called():
    code = "import sys, cifar_keras.report.comparison; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What a simulation should find: 95% covered and 5% false positives, but where method or question make it another.
# BCa has too few values to resample, even at twenty seeds; Welch's degrees of freedom are approximate where there are
# few seeds; intervals of accuracies alone, and Newcombe's at 200 images, are wider than need be.
EXPECTED = {
    "Wilson, n = 200": (0.95, 0.96),
    "BCa, 10 seeds": (0.89, 0.92),
    "BCa, 20 seeds": (0.92, 0.94),
    "Welch t, 2 and 2 seeds": (0.96, 1.00),
    "Welch t, 3 and 9 seeds": (0.93, 0.95),
    "Newcombe paired, n = 200": (0.95, 0.97),
    "one seed each, by image, n = 200": (0.01, 0.05),
    "one seed each, accuracies alone": (0.00, 0.02),
    "one seed each, by image, seeds spreading": (0.13, 0.20),  # what one seed cannot know
    "2 and 2 seeds": (0.00, 0.04),
    "2 and 2 seeds, n = 200": (0.00, 0.04),
    "5 and 5 seeds": (0.04, 0.05),
    "3 and 3 seeds, n = 10,000 and 500": (0.05, 0.06),  # the accuracy of 500 images is not quite normal
}
BOOTSTRAPPED = ("BCa, 10 seeds", "BCa, 20 seeds")


def check(name, repetitions):
    """Whether a simulated rate lies where it should, give or take four standard errors of the simulation."""
    nominal = 0.95 if name in INTERVALS.COVERAGE else 0.05
    low, high = EXPECTED.get(name, (nominal, nominal))
    rate = INTERVALS.rate((INTERVALS.COVERAGE | INTERVALS.FALSE_POSITIVES)[name], repetitions=repetitions)
    print(f"{name}: {rate:.3f} of {repetitions:,}")
    slack = [4 * math.sqrt(max(share * (1 - share), 0.001) / repetitions) for share in (low, high)]
    assert low - slack[0] <= rate <= high + slack[1]


@pytest.mark.parametrize("name", INTERVALS.COVERAGE | INTERVALS.FALSE_POSITIVES)
def test_intervals_cover_and_equals_are_seldom_told_apart(name):
    check(name, repetitions=400 if name in BOOTSTRAPPED else 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERVALS.COVERAGE | INTERVALS.FALSE_POSITIVES)
def test_intervals_cover_and_equals_are_seldom_told_apart_in_many_repetitions(name):
    check(name, repetitions=10_000)


def test_paired_seeds_against_scipys_t_test():
    from scipy import stats

    a, b = [0.50, 0.53, 0.55, 0.49], [0.56, 0.58, 0.59, 0.57]
    found = metrics.difference_seeds_paired(a, b)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(0.0575) and found.kind == "paired t"


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.7, 0.9]) == [1.0, 1.0] and metrics.holm([0.2]) == [0.2] and metrics.holm([]) == []


def test_the_paired_t_test_is_scipys():
    from scipy import stats

    a, b = np.array([0.81, 0.83, 0.80, 0.84]), np.array([0.83, 0.84, 0.83, 0.85])
    assert metrics.paired_t_test(a, b) == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert metrics.paired_t_test(a, a) == 1.0
    assert metrics.paired_t_test([0.5, 0.75], [0.75, 1.0]) == 0.0  # exact accuracies, equal differences


def test_equal_differences_of_counted_images_are_not_certain():
    a, b = [0.85, 0.75], [0.86, 0.76]
    assert 0.01 < metrics.paired_t_test(a, b, n=200) < 0.2
    assert metrics.paired_t_test(a, b, n=10_000) < metrics.paired_t_test(a, b, n=200)
    found = metrics.difference_seeds_paired(a, b, n=200)
    half = 12.706 * (1 / (6 * 200**2) / 2) ** 0.5  # Student's t with one degree of freedom
    assert found.high - found.value == pytest.approx(half, rel=1e-3)


def test_two_seeds_that_differ_by_chance_are_rarely_called_different():
    random = np.random.default_rng(0)
    right = random.binomial(200, 0.7, (4000, 2, 2)) / 200
    p = np.array([metrics.paired_t_test(a, b, n=200) for a, b in right])
    assert np.mean(p < 0.05) < 0.06 and np.mean(p < 1e-3) < 0.003
