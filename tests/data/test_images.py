"""Whatever the file, RGB uint8 comes out, or a sentence that names the file."""

import importlib
import io
import os
import sys
import types
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features

from cifar_keras.config import ConfigError
from cifar_keras.data import images
from cifar_keras.data.images import ImageError, decode

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


@pytest.mark.parametrize(
    ("ending", "kind", "needs"),
    [
        ("jfif", "JPEG", None),
        ("jpe", "JPEG", None),
        ("apng", "PNG", None),
        ("pnm", "PPM", None),
        ("dib", "DIB", None),
        ("mpo", "MPO", None),
        ("avif", "AVIF", "avif"),
        ("jp2", "JPEG2000", "jpg_2000"),
    ],
)
def test_what_pillow_opens_is_taken_and_decoded(tmp_path, ending, kind, needs):
    if needs and not features.check(needs):
        pytest.skip(f"this Pillow has no {kind}")
    assert f".{ending}" in images.EXTENSIONS and images.unused(f"a.{ending}") is None
    decoded = decode(saved(Image.new("RGB", (16, 16), RED), tmp_path / f"a.{ending}", format=kind))
    assert np.abs(decoded.astype(int) - RED).max() < 10


def test_the_endings_of_before_are_all_taken_and_none_that_needs_an_interpreter_or_has_no_signature():
    before = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
    assert before < images.EXTENSIONS
    assert not images.EXTENSIONS & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".tga", ".pfm", ".psd", ".h5", ".mpg"}
    assert not images.EXTENSIONS & images.OTHERS and not images.UNUSED & images.OTHERS


def test_heic_is_taken_where_pillow_heif_is_installed_and_named_elsewhere(monkeypatch):
    def register():
        Image.register_open("HEIF", lambda *_: None, lambda prefix: False)
        Image.register_extension("HEIF", ".heic")

    error = images.ImageError  # other modules catch this class
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    try:
        monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
        with_it = importlib.reload(images)
        assert ".heic" in with_it.EXTENSIONS and "HEIF" in with_it.DECODERS and with_it.unused("a.heic") is None
        Image.OPEN.pop("HEIF"), Image.EXTENSION.pop(".heic")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
        without = importlib.reload(images)
        assert ".heic" not in without.EXTENSIONS and without.unused("a.HEIC") == ".heic"
        line = without.left_out(Counter({".svg": 4, ".heic": 8}))
        assert line == "12 files left out: 8 .heic (install pillow-heif), 4 .svg"
    finally:
        monkeypatch.undo()
        importlib.reload(images).ImageError = error


def test_one_file_left_out_is_no_plural_and_kinds_come_by_number():
    assert images.left_out(Counter({".psd": 1})) == "1 file left out: 1 .psd"
    assert images.left_out(Counter({".a": 1, ".raw": 2000})).startswith(
        "2,001 files left out: 2,000 .raw, 1 .a (images"
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_a_file_whose_ending_says_nothing_is_an_image_if_it_begins_as_one(tmp_path, kind):
    assert images.unused(saved(Image.new("RGB", (4, 4), RED), tmp_path / "0001", format=kind)) == ""
    assert images.unused(saved(Image.new("RGB", (4, 4), RED), tmp_path / "a.jpg_large", format=kind)) == ".jpg_large"
    assert images.unused(saved(Image.new("RGB", (4, 4), RED), tmp_path / "a.txt", format=kind)) is None


def test_a_file_that_is_no_image_or_cannot_be_read_is_none(tmp_path):
    (tmp_path / "notes").write_text("no image")
    assert images.unused(tmp_path / "notes") is None and images.unused(tmp_path / "missing") is None
