"""Do the intervals of `cifar-keras compare` keep their promise? Simulated coverages and false positives.

Run: python benchmarks/intervals.py [--repetitions 3000] [--seed 0]
Coverage: how often a 95% interval contains the truth. False positives: how often two equally good classifiers are
called distinguishable. Accuracies are about 90%; errors of two models on one test set correlate by 0.5; seeds of a
recipe spread by 0.2 points. tests/test_metrics.py holds these same functions to their bounds.
"""

import argparse
from functools import partial

import numpy as np

from cifar_keras import metrics
from cifar_keras.results import matching
from cifar_keras.results.groups import Group

SPREAD = 0.002  # standard deviation of a recipe's accuracy over seeds
CORRELATION = 0.5  # of being right, between two models over images


def covers(estimate, truth):
    return estimate.low <= truth <= estimate.high


def seeds(random, count, *, accuracy=0.9, n=10_000):
    """Accuracies of some seeds on one test set: whole images of `n`."""
    return [float(value) for value in np.round(random.normal(accuracy, SPREAD, count) * n) / n]


def two_models(random, p_a, p_b, n):
    """Which of `n` images two models get right: two bool arrays, correlated."""
    both = p_a * p_b + CORRELATION * (p_a * (1 - p_a) * p_b * (1 - p_b)) ** 0.5
    counts = random.multinomial(n, (both, p_a - both, p_b - both, 1 - p_a - p_b + both))
    return np.repeat((True, True, False, False), counts), np.repeat((True, False, True, False), counts)


def one_seed_covered(random, *, n):
    accuracy = random.binomial(n, 0.9) / n
    return covers(metrics.accuracy_interval([accuracy], n), 0.9)


def seeds_covered(random, *, count):
    return covers(metrics.seeds_interval(seeds(random, count)), 0.9)


def unpaired_covered(random, *, n1, n2):
    p1, p2 = random.binomial(n1, 0.90) / n1, random.binomial(n2, 0.91) / n2
    return covers(metrics.difference_unpaired(p1, n1, p2, n2), 0.01)


def paired_covered(random, *, n):
    return covers(metrics.difference_paired(*two_models(random, 0.90, 0.91, n)), 0.01)


def difference_of_seeds_covered(random, *, counts):
    a, b = seeds(random, counts[0]), seeds(random, counts[1], accuracy=0.91)
    return covers(metrics.difference_seeds(a, b), 0.01)


def falsely_by_image(random, *, n=10_000, spread=0.0):
    """One seed each, with stored predictions; `spread` draws the two models' accuracies as seeds would."""
    p_a, p_b = random.normal(0.9, spread, 2)
    correct = two_models(random, p_a, p_b, n)
    return matching.distinguishable(metrics.difference_paired(*correct), metrics.mcnemar(*correct))


def falsely_without_predictions(random, *, n=10_000):
    """One seed each, on the same images, of which only the accuracies are known."""
    a, b = (correct.mean() for correct in two_models(random, 0.9, 0.9, n))
    return matching.compared(group([a], n), group([b], n)).distinguishable


def falsely_by_seeds(random, *, counts, n=10_000):
    a, b = (group(seeds(random, count, n=n), n) for count in counts)
    return matching.compared(a, b).distinguishable


def falsely_on_other_images(random, *, counts, images=(10_000, 10_000)):
    """Some seeds of two recipes, each recipe on a test set of its own, which may be hard or easy."""
    groups = []
    for number, (count, n) in enumerate(zip(counts, images, strict=True)):
        drawn = random.binomial(n, 0.9) / n
        groups.append(group(seeds(random, count, accuracy=drawn, n=n), n, fingerprint=f"of recipe {number}"))
    return matching.compared(*groups).distinguishable


def group(accuracies, n, *, fingerprint="the same"):
    """A `Group` with no more than accuracies and data."""
    known = {"run_id": "-", "test_n": n, "fingerprint": fingerprint}
    runs = (known | {"seed": seed, "test_accuracy": float(p)} for seed, p in enumerate(accuracies))
    return Group(tuple(runs))


COVERAGE = {
    "Wilson, n = 10,000": partial(one_seed_covered, n=10_000),
    "Wilson, n = 200": partial(one_seed_covered, n=200),
    "Student t, 2 seeds": partial(seeds_covered, count=2),
    "Student t, 3 seeds": partial(seeds_covered, count=3),
    "Student t, 5 seeds": partial(seeds_covered, count=5),
    "Student t, 9 seeds": partial(seeds_covered, count=9),
    "BCa, 10 seeds": partial(seeds_covered, count=10),
    "BCa, 20 seeds": partial(seeds_covered, count=20),
    "Newcombe unpaired, n = 10,000 and 1,000": partial(unpaired_covered, n1=10_000, n2=1_000),
    "Newcombe unpaired, n = 200 and 200": partial(unpaired_covered, n1=200, n2=200),
    "Newcombe paired, n = 10,000": partial(paired_covered, n=10_000),
    "Newcombe paired, n = 200": partial(paired_covered, n=200),
    "Welch t, 2 and 2 seeds": partial(difference_of_seeds_covered, counts=(2, 2)),
    "Welch t, 3 and 9 seeds": partial(difference_of_seeds_covered, counts=(3, 9)),
    "pooled t, 1 and 3 seeds": partial(difference_of_seeds_covered, counts=(1, 3)),
    "Welch t, 10 and 10 seeds": partial(difference_of_seeds_covered, counts=(10, 10)),
}
FALSE_POSITIVES = {
    "one seed each, by image": falsely_by_image,
    "one seed each, by image, n = 200": partial(falsely_by_image, n=200),
    "one seed each, accuracies alone": falsely_without_predictions,
    "one seed each, by image, seeds spreading": partial(falsely_by_image, spread=SPREAD),
    "1 and 3 seeds": partial(falsely_by_seeds, counts=(1, 3)),
    "2 and 2 seeds": partial(falsely_by_seeds, counts=(2, 2)),
    "2 and 2 seeds, n = 200": partial(falsely_by_seeds, counts=(2, 2), n=200),
    "5 and 5 seeds": partial(falsely_by_seeds, counts=(5, 5)),
    "10 and 10 seeds": partial(falsely_by_seeds, counts=(10, 10)),
    "3 and 3 seeds, other images": partial(falsely_on_other_images, counts=(3, 3)),
    "3 and 3 seeds, n = 10,000 and 500": partial(falsely_on_other_images, counts=(3, 3), images=(10_000, 500)),
    "1 and 3 seeds, other images": partial(falsely_on_other_images, counts=(1, 3)),
}


SIMULATIONS = {"coverage of 95% intervals": COVERAGE, "false positives": FALSE_POSITIVES}


def rate(simulation, *, repetitions, seed=0):
    """How often a simulation says yes, in [0, 1]."""
    random = np.random.default_rng(seed)
    return float(np.mean([simulation(random) for _ in range(repetitions)]))


def simulated(simulations, *, repetitions, seed=0):
    """`(name, rate, two standard errors of it)` of each simulation, as they end."""
    for name, simulation in simulations.items():
        share = rate(simulation, repetitions=repetitions, seed=seed)
        yield name, share, 2 * (share * (1 - share) / repetitions) ** 0.5


def rows(full):
    """What `collect.py` asks for. The bounds that each simulation is held to stand in tests/test_metrics.py."""
    from measure import row  # here, since the tests load this file alone

    repetitions = 3000 if full else 300
    return [
        row(title, name, 100 * share, "%", note=f"+- {100 * error:.1f}, {repetitions:,} repetitions")
        for title, simulations in SIMULATIONS.items()
        for name, share, error in simulated(simulations, repetitions=repetitions)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.repetitions:,} repetitions each, seed {options.seed}; +- two standard errors of the simulation")
    for title, simulations in SIMULATIONS.items():
        print(f"\n| {title:40} | share        |\n|{'-' * 42}|{'-' * 14}|")
        for name, share, error in simulated(simulations, repetitions=options.repetitions, seed=options.seed):
            print(f"| {name:40} | {100 * share:4.1f}% +- {100 * error:.1f} |", flush=True)


if __name__ == "__main__":
    main()
