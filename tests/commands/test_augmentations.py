"""`cifar-keras augmentations`: a picture of every step."""

import numpy as np
import pytest
from PIL import Image

from cifar_keras import cli
from cifar_keras.commands import augmentations
from cifar_keras.data.augment import STEPS


def ran(*arguments):
    with pytest.raises(SystemExit) as exit:
        cli.command(["augmentations", *map(str, arguments)])
    return exit.value.code


def test_it_draws_a_row_for_every_step(tmp_path, monkeypatch, capsys):
    drawn, real = {}, augmentations.rows_of_images
    monkeypatch.setattr(
        augmentations, "rows_of_images", lambda rows, path, **more: (drawn.update(rows), real(rows, path, **more))
    )
    assert ran("--dataset", "shapes", "--root", tmp_path) == 0
    (path,) = tmp_path.rglob("*.png")
    assert path.name == "augmentations_shapes.png" and str(path) in capsys.readouterr().out
    assert list(drawn) == ["as they are", *STEPS]
    plain = drawn.pop("as they are")
    for name, images in drawn.items():
        assert images.shape == plain.shape == (8, 32, 32, 3)
        assert not np.array_equal(images, plain), name
    with Image.open(path) as picture:
        assert min(picture.size) > 600


def test_another_seed_draws_other_pictures_and_out_names_the_file(tmp_path):
    for seed in ("0", "1"):
        assert ran("--dataset", "shapes", "--seed", seed, "--out", tmp_path / f"{seed}.png") == 0
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_an_unknown_dataset_is_one_sentence(capsys):
    assert ran("--dataset", "imagenet22k") == 2
    assert "`dataset` must be" in capsys.readouterr().err
