"""Decoding: any image file or mode becomes RGB uint8. Folders, predictions and the web page all come through here."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from cifar_keras.config import ConfigError

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's: EPS would start an interpreter
MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB once decoded; a few kilobytes of PNG can claim far more


class ImageError(ConfigError):
    """One image can't be decoded; the message names it."""


def decode(source, *, size=None):
    """Decodes an image: upright by its EXIF tag, first frame, transparency over white, 16 bits cut to 8.

    Args:
        source: path, bytes, or binary file.
        size: if given, a side or `(height, width)`; see `fitted`.
    Returns: uint8 `(height, width, 3)`, RGB in [0, 255], of that size if given.
    Raises: ImageError if it isn't an image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are allowed")
            image = _rgb(ImageOps.exif_transpose(image))
            return np.array(image if size is None else _fitted(image, size))
    except Exception as error:  # a damaged file makes the decoders raise nearly anything, even TypeError
        raise ImageError(
            f"{_name(source)} can't be decoded as an image ({_reason(error)}). "
            "Expected: a whole PNG, JPEG, BMP, GIF, PNM, TIFF or WebP file. Replace or remove it."
        ) from error


def fitted(pixels, size):
    """Resizes an image until it covers a size (bicubic, antialiased), and cuts out the centre.

    Args:
        pixels: uint8 `(height, width, 3)`.
        size: a side or `(height, width)`.
    Returns: uint8 of that size; equal to `pixels` where they have it.
    Raises: ImageError for another shape or dtype.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ImageError(f"An image must be uint8 (height, width, 3). Received: {pixels.dtype} {pixels.shape}.")
    return np.array(_fitted(Image.fromarray(pixels), size))


def _fitted(image, size):
    height, width = (size, size) if isinstance(size, int) else size
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _rgb(image):
    """Any Pillow mode to RGB, without the clipping that Pillow does to 16-bit grey."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _name(source):
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "The image"))


def _reason(error):
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown or empty format"
    return str(error) or type(error).__name__
