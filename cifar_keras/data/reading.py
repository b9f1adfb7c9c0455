"""Reading image files with all cores: each file once, for its digest and its pixels.

Pillow spends most of the time of a small image in Python, where threads take turns. So many files are read by processes
of their own. These are started as commands, not by `multiprocessing`, which would run the user's script again in them.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cifar_keras.config import CifarKerasError, RunFailedError
from cifar_keras.data import images
from cifar_keras.utils.system import cores

AT_ONCE = 32  # images that a core decodes at a time: memory stays flat however many there are
MANY = 4096  # files: for fewer, starting processes takes longer than it saves
MOST = 16  # processes: a container may show more cores than it may use
COMMAND = (  # Ctrl-C reaches all processes of a console; the main one ends the others
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from cifar_keras.data import reading; reading.serve()"
)

Read = tuple[str, bytes, int | None]


def read(path: str, size: int) -> Read:
    """A file's SHA-256, its image's pixels at a size, and the shorter side of the image in the file.

    A damaged image has no pixels and no side.

    Raises: OSError if the file can't be read.
    """
    with open(path, "rb", buffering=0) as file:
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()
    try:
        pixels, side = images.decode_with_side(content, size=size)
    except images.ImageError:
        return digest, b"", None
    return digest, pixels.tobytes(), side


def read_all(paths: Sequence[str], size: int) -> Iterator[Read]:
    """`read` of every file, in order.

    Raises: OSError for a file that can't be read; RunFailedError if a process ends early.
    """
    count = min(cores(), MOST)
    block: Callable = _block
    with contextlib.ExitStack() as stack:
        if len(paths) >= MANY and count > 1:
            with contextlib.suppress(OSError):  # no process can be started: threads do it
                block = functools.partial(_elsewhere, stack.enter_context(_processes(count)))
        pool = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(pool.shutdown, cancel_futures=True)
        blocks = (paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE))
        waiting = deque(pool.submit(block, some, size) for some in itertools.islice(blocks, 2 * count))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(block, some, size) for some in itertools.islice(blocks, 1))
            yield from done


def _block(paths: Sequence[str], size: int) -> list[Read]:
    return [read(path, size) for path in paths]


def _elsewhere(idle: queue.SimpleQueue, paths: Sequence[str], size: int) -> list[Read]:
    """`_block` in one of the idle processes."""
    process = idle.get()
    try:
        pickle.dump((paths, size), process.stdin)
        process.stdin.flush()
        found = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise RunFailedError(
            f"A process that decodes images ended early, at one of {paths[0]} to {paths[-1]}."
        ) from error
    finally:
        idle.put(process)
    if isinstance(found, Exception):
        raise found
    return found


@contextlib.contextmanager
def _processes(count: int) -> Iterator[queue.SimpleQueue]:
    """Yields a queue of processes that run `serve`. They end with the block, and also when this process is killed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command, idle = [sys.executable, "-P", "-c", COMMAND], queue.SimpleQueue[Any]()  # -P: not from the current folder
    started: list[Any] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment))
            idle.put(started[-1])
        yield idle
    finally:
        for process in started:
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                process.stdin.close()
            process.stdout.close()
            process.wait()


def serve() -> None:
    """The main function of such a process: reads blocks of files that arrive at stdin, until it closes."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to stderr
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):  # the main process has ended
        while True:
            paths, size = pickle.load(source)
            try:
                found: list[Read] | Exception = _block(paths, size)
            except (OSError, MemoryError, CifarKerasError) as error:
                found = error
            pickle.dump(found, sink)
            sink.flush()
