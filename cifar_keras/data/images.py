"""Decoding: any image file or mode becomes RGB uint8. Folders, predictions and the web page all come through here."""

import contextlib
import io
import os
import re

import numpy as np
from PIL import Image, ImageOps, features

from cifar_keras.config import ConfigError


def _formats():
    """The names of the decoders that are used, of those that this Pillow has.

    Raster formats in which people keep photographs, decoded inside this process. EPS, PDF and WMF would start an
    interpreter; TGA has no signature, so that any junk would pass for it; PSD, ICO and the like show more than one
    picture. HEIF comes with pillow-heif, where that is installed.
    """
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    optional = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
    wanted = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    there = (name for name in wanted if name in Image.OPEN)
    return tuple(name for name in there if name not in optional or features.check(optional[name]))


FORMATS = _formats()
EXTENSIONS = frozenset(  # of the files that are taken from a folder; a camera's .mpo begins as a JPEG does
    ending
    for ending, format in Image.registered_extensions().items()
    if format in (*FORMATS, "MPO") and ending != ".pfm"  # floating-point pixels have no agreed range
)
PICTURES = (  # endings of images, of which some can't be used
    ".3fr .ai .arw .avif .bpg .cr2 .cr3 .crw .cur .dcm .dds .dcr .djvu .dng .emf .eps .erf .exr .fit .fits .hdr"
    " .heic .heif .hif .icns .ico .j2k .jng .jp2 .jxl .jxr .kdc .mef .mos .mrw .nef .nrw .orf .pcx .pef .pfm .ps"
    " .psb .psd .qoi .raf .ras .raw .rw2 .rwl .sgi .sr2 .srw .svg .svgz .tga .webp .wmf .x3f .xbm .xcf .xpm"
)
UNUSED = frozenset(PICTURES.split()) - EXTENSIONS
OTHERS = frozenset(  # endings of files that are no images, so that nobody need look inside
    ".avi .bin .cfg .csv .db .doc .docx .gz .h5 .hdf .hdf5 .htm .html .ini .ipynb .json .jsonl .lnk .log .mat .md .mkv"
    " .mov .mp3 .mp4 .mpeg .mpg .npy .npz .parquet .pdf .pkl .py .pyc .rar .sh .tar .tfrecord .toml .tsv .txt .url"
    " .wav .webm .xls .xlsx .xml .yaml .yml .zip".split()
)
HINTS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "install pillow-heif"),
    ".avif": "needs Pillow 11.3 or newer",
}
MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB once decoded; a few kilobytes of PNG can claim far more
BEGINNING = re.compile(  # of JPEG, PNG, GIF, TIFF (and most cameras' raw files), WebP, AVIF and HEIC
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(avi[fs]|hei[cx]|mif1|msf1)", re.DOTALL
)


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
            f"{_name(source)} can't be decoded as an image ({_reason(error, source)}). "
            f"Expected: a whole image file ({', '.join(FORMATS)}). Replace or remove it."
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


def _reason(error, source):
    ending = os.path.splitext(_name(source))[1].lower()
    if isinstance(error, Image.UnidentifiedImageError):
        hint = HINTS.get(ending) if ending not in EXTENSIONS else None
        return f"{ending}: {hint}" if hint else "unknown or empty format"
    return str(error) or type(error).__name__


def unused(path):
    """What kind of image a file is that is none of `EXTENSIONS`, for a line such as '8 .heic, 4 .svg'.

    A file whose ending says nothing is an image if it begins as one; 32 bytes of it are read.

    Args:
        path: of the file.
    Returns: its ending with a dot, in lower case, '' for a file without; None for what is no image.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending in UNUSED:
        return ending
    if ending in OTHERS:
        return None
    try:
        with open(path, "rb") as file:
            return ending if BEGINNING.match(file.read(32)) else None
    except OSError:
        return None


def left_out(kinds):
    """The line on images that are not used.

    Args:
        kinds: `collections.Counter` of what `unused` returned.
    Returns: for example '12 files left out: 8 .heic (install pillow-heif), 4 .svg'.
    """
    rename = "images by their content: rename them, as in .jpg"
    parts = []
    for ending, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])):
        hint = HINTS.get(ending) if ending in UNUSED else rename
        parts.append(f"{count:,} {ending or 'without an ending'}" + (f" ({hint})" if hint else ""))
    total = sum(kinds.values())
    return f"{total:,} file{'s' * (total > 1)} left out: {', '.join(parts)}"
