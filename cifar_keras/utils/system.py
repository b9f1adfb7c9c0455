"""Whatever differs between Linux, macOS and Windows: signals, processes, files, the console, processors and memory."""

import os
import platform
import signal
import sys
import time
from pathlib import Path

WINDOWS = os.name == "nt"
XLA = sys.platform == "linux"  # TensorFlow's builds for other systems don't all contain it
TERMINATING = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name))
PATIENCE = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between attempts to replace a file that another program has open


def pass_on(number, child):
    """Sends a signal to a child process. On Windows, the console has already sent Ctrl-C to both."""
    if not WINDOWS:
        child.send_signal(number)
    elif number != signal.SIGINT:
        child.terminate()


def is_alive(process):
    """Whether the process with this number exists. Always true on Windows, where `os.kill` would end the process."""
    if WINDOWS:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def replace(source, target):
    """Renames a file over another. Windows refuses this while any program has the other open: it is tried for a while.

    Raises: OSError.
    """
    for pause in PATIENCE if WINDOWS else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
    return os.replace(source, target)


def sync(path):
    """Waits until a file, or the names in a folder, are on the disk. Windows can't do this for folders."""
    if WINDOWS and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def escape_unknown_characters():
    """Lets `print` write an escape, and not fail, for a character that the console's encoding (cp1252, say) lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def cores():
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name():
    """The processor's model and the widest of its instruction sets that matter here: AMX for bfloat16, or AVX-512."""
    flags = cpu_flags()
    sets = [name for flag, name in (("amx_bf16", "AMX"), ("avx512f", "AVX-512")) if flag in flags]
    name = _fields("cpuinfo").get("model name") or platform.processor() or platform.machine()
    return f"{name} ({sets[0]})" if sets else name


def cpu_flags():
    """What an x86 processor can do, by Linux' names (`avx2`, `fma`); empty on other systems."""
    return frozenset(_fields("cpuinfo").get("flags", "").split())


def memory():
    """`(total, available)` bytes of the machine's memory; None except on Linux."""
    fields = _fields("meminfo")
    return tuple(1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable")) if fields else None


def has_nvidia_driver():
    """Whether an NVIDIA driver is loaded, as far as Linux shows it."""
    return Path("/proc/driver/nvidia/version").is_file()


def _fields(name):
    """The `key: value` lines of a file in /proc, the last one for each key; empty on systems without it."""
    try:
        lines = Path("/proc", name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def peak_memory_mb():
    """The most memory that this process has held so far, in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return _windows_peak_memory_mb() if WINDOWS else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _windows_peak_memory_mb():
    import ctypes

    kernel = ctypes.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    counters = (ctypes.c_size_t * 9)()  # PROCESS_MEMORY_COUNTERS on 64 bits: the second number is the peak
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    return round(counters[1] / 2**20) if kernel.K32GetProcessMemoryInfo(process, counters, 72) else None
