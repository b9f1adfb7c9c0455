"""How times, tables and text from elsewhere are written."""

import csv
import io
import re
import sys

AHEAD = "CIFAR_KERAS_AHEAD"  # environment variable: what remains of the study after this run, for progress lines


def duration(seconds):
    """Seconds in a readable unit: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shortened(names, most=10):
    """Names in one line: the first `most`, then how many there are in all."""
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def csv_text(rows, columns):
    """Dicts as CSV with these columns; missing values are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def to_stderr(text):
    """Prints printable text on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text):
    """Text that is safe to print: escapes control characters, which a terminal would obey, except line ends."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode("ascii")
        for one in str(text)
    )


def file_name(text):
    """Text as part of a file's name: `_` replaces the characters that some system forbids."""
    return re.sub(r'[<>:"/\\|?*]', "_", printable(text))
