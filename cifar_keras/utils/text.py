"""How quantities are said."""

import sys

AHEAD = "CIFAR_KERAS_AHEAD"  # environment variable: what a run's progress lines say of the study that it is part of


def duration(seconds):
    """Seconds as people say them: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shortened(names, most=10):
    """Names in one line: the first `most`, then how many there are in all."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def to_stderr(text):
    """Prints printable text on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text):
    """Text that a terminal shows and does not obey: whatever is neither printable nor a line's end is spelled out."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode("ascii")
        for one in str(text)
    )
