"""How times, and text from elsewhere, are printed."""

import re

AHEAD = (
    "CIFAR_KERAS_AHEAD"  # environment variable: how much of the study remains after this run, for its progress lines
)


def duration(seconds):
    """Seconds in a readable unit: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def printable(text):
    """Text that is safe to print: escapes control characters, which a terminal would obey, except line ends."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode("ascii")
        for one in str(text)
    )


def file_name(text):
    """Text as part of a file's name: `_` replaces the characters that some system forbids."""
    return re.sub(r'[<>:"/\\|?*]', "_", printable(text))
