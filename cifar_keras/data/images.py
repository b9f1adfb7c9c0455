"""Decoding: any image file or mode becomes RGB uint8. Folders, predictions and the web page all come through here."""

import contextlib
import io
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps, features

from cifar_keras.config import ConfigError


def _decoders():
    """The names of the decoders to use, of those that this Pillow has.

    They read raster formats in which people keep photographs. EPS, PDF and WMF would start an interpreter. TGA has no
    signature, so any file would pass for it. PSD, ICO and the like hold several pictures. HEIF needs pillow-heif.
    """
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    optional = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
    wanted = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    there = (name for name in wanted if name in Image.OPEN)
    return tuple(name for name in there if name not in optional or features.check(optional[name]))


DECODERS = _decoders()
EXTENSIONS = frozenset(  # of the files that are taken from a folder; a camera's .mpo begins as a JPEG
    ending
    for ending, format in Image.registered_extensions().items()
    if format in (*DECODERS, "MPO") and ending != ".pfm"  # floating-point pixels have no agreed range
)
PICTURE_ENDINGS = (  # endings of images; some of them can't be used
    ".3fr .ai .arw .avif .bpg .cr2 .cr3 .crw .cur .dcm .dds .dcr .djvu .dng .emf .eps .erf .exr .fit .fits .hdr"
    " .heic .heif .hif .icns .ico .j2k .jng .jp2 .jxl .jxr .kdc .mef .mos .mrw .nef .nrw .orf .pcx .pef .pfm .ps"
    " .psb .psd .qoi .raf .ras .raw .rw2 .rwl .sgi .sr2 .srw .svg .svgz .tga .webp .wmf .x3f .xbm .xcf .xpm"
)
UNUSED = frozenset(PICTURE_ENDINGS.split()) - EXTENSIONS
OTHERS = frozenset(  # endings of files that are no images, so that their content need not be read
    ".avi .bin .cfg .csv .db .doc .docx .gz .h5 .hdf .hdf5 .htm .html .ini .ipynb .json .jsonl .lnk .log .mat .md .mkv"
    " .mov .mp3 .mp4 .mpeg .mpg .npy .npz .parquet .pdf .pkl .py .pyc .rar .sh .tar .tfrecord .toml .tsv .txt .url"
    " .wav .webm .xls .xlsx .xml .yaml .yml .zip".split()
)
HINTS = dict.fromkeys((".heic", ".heif", ".hif"), "install pillow-heif") | {".avif": "needs Pillow 11.3 or newer"}
MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB once decoded; a few kilobytes of PNG can claim far more
BEGINNING = re.compile(  # of JPEG, PNG, GIF, TIFF (and most cameras' raw files), WebP, AVIF and HEIC
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(avi[fs]|hei[cx]|mif1|msf1)", re.DOTALL
)


class Lazy:
    """Images that are made when indexed, as a whole split of them may not fit into memory.

    Args:
        make: takes an int array of indices, returns their images, uint8 `(height, width, 3)` each.
        shape: `(n, height, width, 3)`.
    """

    def __init__(self, make, shape):
        self.make, self.shape, self.ndim, self.dtype = make, tuple(shape), 4, np.dtype("uint8")

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        """`key` is an int or an array of indices."""
        found = np.asarray(self.make(np.atleast_1d(key)), self.dtype).reshape(-1, *self.shape[1:])
        return found[0] if np.ndim(key) == 0 else found


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
    return decode_with_side(source, size=size)[0]


def decode_with_side(source, *, size=None):
    """Decodes an image as `decode` does. Returns the array, and the shorter side of the image in its file."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are allowed")
            side = min(image.size)
            ImageOps.exif_transpose(image, in_place=True)
            image = _rgb(image)
            return np.array(image if size is None else _fitted(image, size)), side
    except Exception as error:  # a damaged file makes the decoders raise nearly anything, even TypeError
        raise ImageError(
            f"{_name(source)} can't be decoded as an image ({_reason(error, source)}). "
            f"Expected: a whole image file ({', '.join(DECODERS)}). Replace or remove it."
        ) from error


def decoded(paths, size):
    """Image files as an array, decoded when indexed: `Lazy`. Arguments as for `decode`."""

    def make(indices):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda index: decode(paths[index], size=size), indices))

    return Lazy(make, (len(paths), *size, 3))


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
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _rgb(image):
    """Any Pillow mode to RGB, without the clipping that Pillow does to 16-bit grey."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
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
    """The ending, with a dot and in lower case, of an image file that is none of `EXTENSIONS`; None for other files.

    It is '' for a file without an ending. Where the ending is unknown, the first 32 bytes show whether it is an image.
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


def files_in(folder, *, strict=True):
    """The images in a folder and below it, without hidden files. Links are followed, but not to a folder around them.

    Returns: `(images, folders, kinds)`: `os.DirEntry` of each file that ends as in `EXTENSIONS` and of each folder, and
        a `Counter` of the kinds of images that can't be used, for `left_out`. Files come before folders, by name.
    Raises: OSError for a folder that can't be read if `strict`; otherwise the folder is skipped.
    """
    found, folders, kinds = [], [], Counter()
    for entry in _walk(folder, strict=strict):
        if entry.is_dir():
            folders.append(entry)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            found.append(entry)
        elif entry.is_file() and (kind := unused(entry.path)) is not None:  # reading a pipe would never end
            kinds[kind] += 1
    return found, folders, kinds


def _walk(folder, above=(), *, strict):
    here = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            shown = [one for one in entries if not one.name.startswith(".") and one.name != "__MACOSX"]
    except OSError:
        if strict:
            raise
        return
    for entry in sorted(shown, key=lambda one: (one.is_dir(), one.name)):
        if not entry.is_dir():
            yield entry
        elif os.path.realpath(entry.path) not in here:  # else it would never end
            yield entry
            yield from _walk(entry.path, here, strict=strict)


def left_out(kinds):
    """The line on the `kinds` of `files_in`: '12 files left out: 8 .heic (install pillow-heif), 4 .svg'."""
    rename = "images by their content: rename them, as in .jpg"
    parts = []
    for ending, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])):
        hint = HINTS.get(ending) if ending in UNUSED else rename
        parts.append(f"{count:,} {ending or 'without an ending'}" + (f" ({hint})" if hint else ""))
    total = sum(kinds.values())
    return f"{total:,} file{'s' * (total > 1)} left out: {', '.join(parts)}"
