"""The cache of decoded images and extracted features."""

import os
from pathlib import Path

from cifar_keras.config import ConfigError


def cache_folder():
    """The folder of decoded images and features. Does not create it."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CIFAR_KERAS_CACHE") or shared / "cifar_keras")


def cache():
    """The folder of decoded images and features, created if missing.

    Raises: ConfigError if it can't be written.
    """
    place = cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        writable = os.access(place, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(
            f"The cache of decoded images and features, {place}, can't be written. "
            "Set CIFAR_KERAS_CACHE to a folder that can be written and has enough space."
        )
    return place
