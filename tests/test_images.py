"""Whatever the file, RGB uint8 comes out, or a sentence that names the file."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from cifar_keras import images
from cifar_keras.config import ConfigError
from cifar_keras.images import ImageError, decode

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_rgb_pixels_come_back_unchanged(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    decoded = decode(saved(Image.fromarray(pixels), tmp_path / "a.png"))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_path_bytes_and_file_give_the_same_pixels(tmp_path):
    path = saved(Image.effect_noise((9, 9), 80).convert("RGB"), tmp_path / "a.png")
    with open(path, "rb") as file:
        from_file = decode(file)
    np.testing.assert_array_equal(decode(path), from_file)
    np.testing.assert_array_equal(decode(str(path)), decode(path.read_bytes()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_white_becomes_white_rgb(tmp_path, mode):
    decoded = decode(saved(Image.new("RGB", (4, 4), WHITE).convert(mode), tmp_path / "a.tif"))
    assert decoded.shape == (4, 4, 3) and decoded.min() == 255


def test_a_cmyk_photograph_keeps_its_colours(tmp_path):
    decoded = decode(saved(Image.new("RGB", (8, 8), RED).convert("CMYK"), tmp_path / "a.jpg", quality=95))
    assert np.abs(decoded.astype(int) - RED).max() < 10


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, ending):
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
    decoded = decode(saved(image, tmp_path / f"a.{ending}"))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_become_white(tmp_path):
    image = Image.fromarray(np.array([[(*RED, 255), (*RED, 0)]], np.uint8))
    assert decode(saved(image, tmp_path / "a.png"))[0].tolist() == [list(RED), list(WHITE)]


def test_the_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (1, 1), 0)
    image.putpalette(RED)
    assert decode(saved(image, tmp_path / "opaque.png"))[0, 0].tolist() == list(RED)
    assert decode(saved(image, tmp_path / "clear.png", transparency=0))[0, 0].tolist() == list(WHITE)


def test_a_photograph_is_turned_upright_by_its_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held with its right side down
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    decoded = decode(saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif))
    assert decoded.shape == (16, 8, 3)
    assert decoded[:8].min() == 255 and decoded[8:].max() == 0


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(path)[0, 0].tolist() == list(RED)


def test_size_keeps_the_aspect_ratio_and_cuts_out_the_centre():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    assert (decode(file.getvalue(), size=8) == 200).all()
    assert decode(file.getvalue(), size=20).shape == (20, 20, 3)


def test_damaged_files_are_named(tmp_path):
    whole = saved(Image.effect_noise((64, 64), 80), tmp_path / "whole.jpg").read_bytes()
    contents = {"empty.png": b"", "text.png": b"no image", "half.jpg": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            decode(tmp_path / name)
    with pytest.raises(ImageError, match="missing.png"):
        decode(tmp_path / "missing.png")
    assert issubclass(ImageError, ConfigError)


def test_an_upload_without_a_name_gets_a_message_too():
    with pytest.raises(ImageError, match="The image can't be decoded"):
        decode(b"no image")


def test_no_interpreter_is_started_for_a_picture_in_postscript(tmp_path, monkeypatch):
    marker, fake = tmp_path / "started", tmp_path / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {marker}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="a.png can't be decoded"):
        decode(tmp_path / "a.png")
    assert not marker.exists()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = saved(Image.new("L", (65, 64)), tmp_path / "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    monkeypatch.setattr(images, "_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="bomb.png.*65 x 64 pixels"):
        decode(path)
