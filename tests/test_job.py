"""What the command line makes of an experiment before anything is trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import EXPERIMENT_FILES, experiment_of

from cifar_keras import job
from cifar_keras.commands import study
from cifar_keras.config import ConfigError
from cifar_keras.data import shapes
from cifar_keras.options import Options
from cifar_keras.training.train import Progress
from cifar_keras.utils.paths import Paths

EXPERIMENTS = {experiment_of(path).number: experiment_of(path) for path in EXPERIMENT_FILES}


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """Prepares a run without its data and weights."""
    data = SimpleNamespace(slug="cifar10", fingerprint="f" * 64, train=np.empty(45_000))
    monkeypatch.setattr(job, "load", lambda *_, **__: data)
    monkeypatch.setattr(job, "resolve", lambda asked, *_, **__: (asked, None))

    def prepare(number, **options):
        options = {"variant": "best", "seed": 0, "precision": "float32", **options}
        return job.prepare(EXPERIMENTS[number], Options(root=str(tmp_path), **options))

    return prepare


def test_another_backbone_is_part_of_name_and_identity_and_has_a_column_of_its_own(prepared):
    own, other = (prepared(3, backbone=name) for name in (None, "efficientnet_lite0"))
    assert own.config.overrides == {"precision": "float32"}
    assert other.config.overrides == {"precision": "float32", "backbone": "efficientnet_lite0"}
    assert own.config.identity != other.config.identity
    assert (own.row.backbone, other.row.backbone, other.row.scaling) == ("resnet50", "efficientnet_lite0", "lite")
    assert Paths.of(other.config, ".").stem == "exp3_backbone=efficientnet_lite0_precision=float32"
    assert other.config.weights == "imagenet"


def test_naming_the_default_backbone_changes_nothing(prepared):
    assert prepared(1, backbone="resnet50").config == prepared(1).config


def test_another_size_is_part_of_name_and_identity_and_scales_the_pace(prepared):
    own, other = (prepared(3, pixels=side) for side in (None, 96))
    assert (own.row.pixels, other.row.pixels) == (32, 96)
    assert other.config.overrides == {"precision": "float32", "pixels": 96}
    assert Paths.of(other.config, ".").stem == "exp3_pixels=96_precision=float32"
    assert other.row.images_per_second == pytest.approx(own.row.images_per_second / 9)
    assert prepared(3, pixels=32).config == own.config


@pytest.mark.parametrize("side", [31, 1025])
def test_a_size_out_of_range_is_refused(prepared, side):
    with pytest.raises(ConfigError, match=f"`--pixels` must be 32 to 1024. Received: {side}"):
        prepared(3, pixels=side)


def test_a_variant_about_one_size_refuses_another(prepared):
    with pytest.raises(ConfigError, match="this one is about 224 pixels. Received: 96"):
        prepared(5, variant="unit_224_inference", pixels=96)


def test_another_backbone_is_transferred_from_imagenet_not_from_a_model_trained_here(prepared):
    own, other = (
        prepared(9, variant="probe", dataset="cifar100", weights=weights, backbone=backbone).config
        for weights, backbone in (("exp4.keras", None), (None, "efficientnet_lite0"))
    )
    assert (own.weights, own.row["weights"], own.row["name"]) == ("exp4.keras", "source", "transferred_cnn")
    assert (other.weights, other.row["weights"]) == ("imagenet", "imagenet")
    assert other.row["name"] == "transferred_cnn_efficientnet_lite0" and "weights" not in other.overrides


def test_a_number_of_labelled_images_that_no_class_has_is_refused(tmp_path):
    images = str(shapes.write(tmp_path / "images", classes=2, per_class=40))
    where = {"root": str(tmp_path), "dataset": images, "variant": "scratch_1000", "seed": 0, "precision": "float32"}
    with pytest.raises(ConfigError, match="takes 1,000 labelled images of each class, and no class of images"):
        job.prepare(EXPERIMENTS[9], Options(**where))
    cut = job.prepare(EXPERIMENTS[9], Options(**where, limit=10))
    assert "the limit leaves 5 training images of a class, of the variant's 1,000" in job.headline(cut, Progress(""))


@pytest.mark.parametrize("number", [number for number, one in EXPERIMENTS.items() if not one.any_backbone])
def test_an_experiment_about_its_own_network_refuses_another(prepared, number):
    with pytest.raises(ConfigError, match=r"`--backbone` is for experiments that compare networks\. exp"):
        prepared(number, backbone="efficientnet_lite0", variant=next(iter(EXPERIMENTS[number].variants)))


def test_the_preprocessing_cells_follow_the_backbone(prepared):
    assert prepared(5, variant="native_32_inference").row.scaling == "caffe"
    assert prepared(5, variant="native_32_inference", backbone="efficientnet_lite0").row.scaling == "lite"
    assert prepared(5, variant="unit_224_training", backbone="efficientnet_lite0").row.scaling == "unit"


def test_former_names_of_variants_still_resolve():
    experiment = EXPERIMENTS[5]
    assert experiment.current("caffe_224_training") == "native_224_training"
    assert experiment.current("unit_32_inference") == "unit_32_inference"
    assert set(experiment.renamed.values()) <= set(experiment.variants)


@pytest.mark.parametrize("given", [["--backbone", "densenet121"], ["--backbone=densenet121"]])
def test_the_study_names_the_backbone_only_to_experiments_that_take_it(given):
    entry = SimpleNamespace(experiment=EXPERIMENTS[4])
    arguments = ["--budget", "quick", *given, "--fresh"]
    assert study._for(entry, arguments) == ["--budget", "quick", "--fresh"]
    assert study._for(SimpleNamespace(experiment=replace(EXPERIMENTS[4], any_backbone=True)), arguments) == arguments
