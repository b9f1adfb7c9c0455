"""Stored runs keep their names and identities: the experiment files still describe exactly what was run then.

`stored_configurations.jsonl` holds the configurations of the first 104 runs, as their records have them. A field
that is added to `Training`, `RunConfig` or a model's row must leave no trace at its default.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import EXPERIMENT_FILES, experiment_of

from cifar_keras import job
from cifar_keras.config import NATIVE, RunConfig, with_epochs
from cifar_keras.options import Options
from cifar_keras.utils.paths import PROJECT, Paths

STORED = [json.loads(line) for line in (PROJECT / "tests/stored_configurations.jsonl").read_text().splitlines()]
EXPERIMENTS = {path.stem: experiment_of(path) for path in EXPERIMENT_FILES}


def with_columns(recipe, **columns):
    return replace(recipe, override=recipe.override | columns)


def long_of_then(recipe):
    return replace(with_epochs(recipe, 40), override={"augmentation": ("shift", "alternating_flip", "cutout")})


def scratch_of_then(recipe):
    if recipe.epochs == 20:
        return long_of_then(recipe)
    return with_epochs(recipe, 13) if recipe.epochs == 15 else recipe


RECIPES_OF_THEN = {  # those that have changed since those runs
    "exp2_augment_224": lambda recipe: replace(recipe, views=None),
    "exp4_scratch": scratch_of_then,
    "exp5_preprocessing": lambda recipe: with_columns(
        recipe, scaling=recipe.override["scaling"].replace(NATIVE, "caffe")
    ),
}


def canonical(config):
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def experiment_of_then(key):
    experiment = EXPERIMENTS[key]
    of_then = RECIPES_OF_THEN.get(key, lambda recipe: recipe)
    names = {new: old for old, new in experiment.renamed.items()}
    variants = {names.get(name, name): of_then(recipe) for name, recipe in experiment.variants.items()}
    return replace(experiment, variants=variants)


def options_of(config, root):
    """The command line that a stored configuration came from."""
    changes = {name.replace("-", "_"): value for name, value in config["overrides"].items()}
    named = {name: config[name] for name in ("variant", "budget", "seed")}
    return Options(**{**changes, **named, "root": str(root), "dataset": config["dataset"]})


@pytest.mark.parametrize("stored", STORED, ids=[stored["run_id"] for stored in STORED])
def test_a_stored_run_has_the_same_name_and_identity_today(stored, tmp_path, monkeypatch):
    config = stored["config"]
    data = SimpleNamespace(slug=config["dataset"], fingerprint=config["fingerprint"])
    data.train, data.with_per_class = np.empty(stored["train_images"]), lambda *_, **__: data
    data.check_per_class = lambda _: None
    monkeypatch.setattr(job, "load", lambda *_, **__: data)
    monkeypatch.setattr(job, "resolve", lambda *_, **__: (config["weights"], None))
    monkeypatch.setattr(job, "_precision", lambda *_: config["precision"])  # it depends on the machine
    prepared = job.prepare(experiment_of_then(config["experiment"]), options_of(config, tmp_path))
    assert prepared.config.identity == canonical(config)
    assert prepared.paths.stem == stored["run_id"].rpartition("_")[0]


def test_a_record_s_configuration_gives_back_its_identity_and_name():
    for stored in STORED:
        config = RunConfig.restored(stored["config"])
        assert config.identity == canonical(stored["config"])
        assert Paths.of(config, ".").stem == stored["run_id"].rpartition("_")[0]
    assert len(STORED) == 104
