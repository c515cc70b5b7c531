"""Many pictures, decoded on all cores.

In forks of this process: threads would wait for Python's lock between any two calls of a decoder, and gain nothing
where images are small. Where forks of a program with threads are not safe (macOS) or do not exist (Windows), there are
threads, which help with large images.

A fork that dies takes nothing with it: the others begin anew behind its task, which is decoded once more, each picture
by itself. One that kills its decoder is damaged. No fork outlives the process that made it by more than a task.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, repeat

from minisagan import cpu
from minisagan.data import decode

TASK = 16, 1 << 18  # pictures and bytes of pixels at a time: one by one, small ones cost more to send than to decode
SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
KILLED = "the process that decoded it was killed: by a fault of the decoder, or because the memory is full"


def decoded(paths, size, fit="crop", channels=3):
    """Yields what `decode.decode` gives for each of the paths, in order; a few more are under way, not all of them."""
    how = size, fit, channels
    each = max(1, min(TASK[0], TASK[1] // (size * size * channels)))
    tasks = [paths[k : k + each] for k in range(0, len(paths), each)]
    count, done = min(cpu.threads(), len(tasks)), 0
    while done < len(tasks):
        try:
            with _forks(count, tasks[done:], how) as forks:
                for k in range(len(tasks) - done):
                    yield from pickle.load(forks[k % count])
                    done += 1
        except (EOFError, pickle.UnpicklingError):
            yield from map(_alone, tasks[done], repeat(how))
            done += 1
        except (OSError, ImportError):  # no forks, no more processes are allowed, or no semaphores
            yield from _by_threads(count, tasks[done:], how)
            return


def _task(paths, how):
    return [decode.decode(path, *how) for path in paths]


def _alone(path, how):
    with _forks(1, [[path]], how) as (fork,), suppress(EOFError, pickle.UnpicklingError):
        return pickle.load(fork)[0]
    return None, KILLED


def _by_threads(count, tasks, how):
    with ThreadPoolExecutor(count) as pool:
        for k in range(0, len(tasks), 4 * count):
            yield from chain.from_iterable(pool.map(_task, tasks[k : k + 4 * count], repeat(how)))


@contextmanager
def _forks(count, tasks, how):
    """A file to read from for each of so many forks: the k-th sends the results of tasks[k::count], as room allows.

    After the `with` the forks are no more.
    """
    if sys.platform != "linux":
        raise OSError("no forks")
    pids, files, lock = [], [], multiprocessing.Lock()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is sent to all, the first process sees to
    try:
        try:
            for k in range(count):
                reads, writes = os.pipe()
                files.append(os.fdopen(reads, "rb"))
                pid = cpu.fork()
                if not pid:
                    _serve(files, writes, lock, tasks[k::count], how)
                os.close(writes)
                pids.append(pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield files
    finally:
        for pid in pids:
            with suppress(OSError):  # somebody may have waited for it before us
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for file in files:
            file.close()


def _serve(files, writes, lock, tasks, how):
    """A fork's whole life: it never returns."""
    try:
        decode.large_pictures = lock
        for file in files:
            file.close()  # so that a pipe whose reader has died is broken
        with os.fdopen(writes, "wb") as out:
            for task in tasks:
                pickle.dump(_task(task, how), out)
                out.flush()
    except BrokenPipeError:
        pass
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)
