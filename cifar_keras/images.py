"""Decoding: any image file or mode becomes RGB uint8. Folders, predictions and the web page all come through here."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from cifar_keras.config import ConfigError

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB once decoded; a few kilobytes of PNG can claim far more


class ImageError(ConfigError):
    """One image can't be decoded; the message names it."""


def decode(source, *, size=None):
    """Decodes an image: upright by its EXIF tag, first frame, transparency over white, 16 bits cut to 8.

    Args:
        source: path, bytes, or binary file.
        size: if given, the shorter side is resized to it (bicubic, antialiased) and the centre cut out.
    Returns: uint8 `(height, width, 3)`, RGB in [0, 255]; `(size, size, 3)` with `size`.
    Raises: ImageError if it isn't an image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are allowed")
            image = _rgb(ImageOps.exif_transpose(image))
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            return np.array(image)
    except Exception as error:  # a damaged file makes the decoders raise nearly anything, even TypeError
        raise ImageError(
            f"{_name(source)} can't be decoded as an image ({_reason(error)}). "
            "Expected: a whole PNG, JPEG, BMP, GIF, PNM, TIFF or WebP file. Replace or remove it."
        ) from error


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
    return str(getattr(source, "name", "The upload"))


def _reason(error):
    if isinstance(error, Image.UnidentifiedImageError):
        return "unknown or empty format"
    return str(error) or type(error).__name__
