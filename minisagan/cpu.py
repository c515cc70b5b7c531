"""What computes in a process: its threads, the chunks of images that they work on, and their scratch memory.

NumPy releases Python's lock inside copies, ufuncs and BLAS, so a few Python threads keep all cores busy in copies and
elementwise work, too, not in matrix products alone. A large op is cut into chunks of images that stay in a core's
cache. Results do not depend on how many threads run: what is summed over images is cut as shapes alone say (the parts
of batch.py, PATCHES of conv_numpy.py), and the partial sums are added in order. A training step does better with
processes.
"""

import ctypes
import functools
import math
import mmap
import os
import sys
import threading
import warnings
from contextlib import suppress

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from minisagan import processes

CHUNK_BYTES = 2 << 20  # what a chunk's buffers may take: near a core's cache, and enough work to hand to a thread
LONG = 1 << 13  # numbers in an inner loop of NumPy's, if it can be chosen
LINE = 64  # bytes in a line of the cache
PACKING = {"Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"}  # the kinds of code of OpenBLAS that pack always

_threads, _count = None, None  # the threads, and how many there are to be (None: as many as cores)
_local = threading.local()


class Threads:
    """Threads that wait to help with a loop.

    A hand-over is two locks: 50 us on the 2-core virtual machine where this was measured, most of it the waking of a
    sleeping core, against 90 us with concurrent.futures. A training step has some 150.
    """

    def __init__(self, helpers):
        self.starts = [threading.Lock() for _ in range(helpers)]
        self.done, self.work, self.error = threading.Semaphore(0), None, None
        self.free = threading.Lock()  # held while a loop runs
        for start in self.starts:
            start.acquire()
            threading.Thread(target=self._help, args=(start,), name="minisagan", daemon=True).start()

    def _help(self, start):
        np.seterr(over="ignore", invalid="ignore", divide="ignore")  # the loop's own thread says what it is to say
        while True:
            start.acquire()
            if self.work is None:
                return
            try:
                self.work()
            except BaseException as error:
                self.error = error
            self.done.release()

    def run(self, work, helpers):
        """Call work() here and in `helpers` other threads at once; the first error of any is raised.

        If they help another thread already, as when two requests to a page compute at once, it is called here alone.
        Who is interrupted while waiting for them (by Ctrl-C) leaves these, and new ones are made.
        """
        if not self.free.acquire(blocking=False):
            work()
            return
        self.work, self.error, left = work, None, helpers
        try:
            for start in self.starts[:helpers]:
                start.release()
            try:
                work()
            finally:
                while left:
                    self.done.acquire()
                    left -= 1
        finally:
            error, self.work = self.error, None  # it may hold what should die
            if left:
                _forget()
                for start in self.starts:  # each helper ends, as soon as its work does
                    with suppress(RuntimeError):  # it was called, and comes
                        start.release()
            else:
                self.free.release()
        if error:
            raise error

    def dismiss(self):
        self.free.acquire()  # after the loop that another thread may be in; whoever comes later works alone
        self.work = None
        for start in self.starts:
            start.release()


def set_threads(count=None):
    """Use `count` threads (default: all cores this process may run on), each with a single-threaded BLAS."""
    global _threads, _count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _threads:
        _threads.dismiss()
    _threads, _count = Threads((count or cores) - 1), count
    keep_freed_memory()
    threadpool_limits(1, "blas")  # one BLAS thread for each of ours: anything more fights over the same cores
    sys.setswitchinterval(1e-3)  # not 5 ms: a thread that waits for Python's lock gets it sooner, 2 % of a step


def start():
    """Make ready to compute, if nobody has: the threads of `set_threads`. The first op does it; an import does not."""
    if _threads is None:
        set_threads(_count)


def _forget():
    """Let the next loop make the threads anew: a process that somebody forks from this one has none of them."""
    global _threads
    _threads = None


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_forget)


def threads():
    """How many threads compute."""
    start()
    return len(_threads.starts) + 1


def busy(count):
    """What computes, in words: so many processes that share a batch, or the threads of one."""
    return f"processes: {count}" if count > 1 else f"threads: {threads()}"


def _blas():
    """What threadpoolctl knows of the matrix libraries in this process."""
    return [lib for lib in threadpool_info() if lib["user_api"] == "blas"]


def blas():
    """The matrix library behind NumPy, its version and the processor that it chose its code for."""
    found = (f"{b['internal_api']} {b['version']} ({b.get('architecture', '?')})" for b in _blas())
    return ", ".join(found) or "unknown"


@functools.cache
def packs_always():
    """Whether the matrix library packs the matrices of every product, even small ones, which takes time for each row.

    OpenBLAS has kernels that do without where there is AVX-512. Of other libraries it isn't known.
    """
    return any(lib.get("architecture") in PACKING for lib in _blas())


def alone():
    """Whether loops run in one thread. Where processes share a batch, the other cores are theirs."""
    return processes.world() > 1 or threads() == 1


def parallel(body, count, spread=True):
    """Call body(0) ... body(count - 1), spread over the threads. The calls must not depend on one another.

    Without `spread`, one after another in this thread: for little work (`worth_threads`).
    """
    if count <= 1 or not spread or alone():
        for i in range(count):
            body(i)
        return
    others = _threads  # these, whatever set_threads does meanwhile
    helpers = min(len(others.starts), count - 1)
    todo = iter(range(count))  # shared: taking the next number is one step under Python's lock

    def work():
        for i in todo:
            body(i)

    others.run(work, helpers)


def chunks(count, bytes_each, at_least=1):
    """Cut `count` items, each with `bytes_each` bytes of working memory, into slices of cache size, for `parallel`.

    It is for work whose result does not depend on where the cuts are. Where the whole is worth waking a thread, several
    threads get `at_least` so many slices, and at least four.
    """
    if not alone() and worth_threads(count * bytes_each):
        bytes_each = max(bytes_each, CHUNK_BYTES // -(-count // max(at_least, 4)))
    step = max(1, CHUNK_BYTES // max(1, bytes_each))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def worth_threads(nbytes):
    """Whether a loop over so many bytes gains by several threads, which wait for one another and for Python's lock.

    Without this, a step of 8 images took 1.6 times as long with two threads as with one.
    """
    return nbytes >= CHUNK_BYTES


def rows(H, row):
    """How many of an image's H rows, of so many numbers each, `tiled` gives: a divisor of H."""
    return next((k for k in range(1, H) if H % k == 0 and k * row >= LONG), H)


def tiled(values, H, W):
    """Values of the channels (C,) at all positions of some whole rows of an image, flat: (rows W C,).

    NumPy's inner loop is as long as they are. With 8,192 numbers it takes 0.6 of the time that it takes with 512 to
    4,096; biases and batch norm's constants in such rows are worth 1.4 % of a step (Zen 5).
    """
    return repeated(values, W * rows(H, W * len(values)))


def repeated(values, count):
    """Values (..., C) so many times behind one another: (..., count C).

    With np.tile, and with NumPy's own way to ask for an address in `empty`, a step takes 2 % longer (Intel).
    """
    *more, C = values.shape
    found = np.empty((*more, count, C), values.dtype)
    found[...] = values[..., None, :]
    return found.reshape(*more, count * C)


def scratch(dtype, size):
    """A flat array of this size in this thread's one buffer, uninitialised: the next call overwrites it.

    A buffer that stays in cache from op to op is worth 3 % of a step.
    """
    nbytes = size * np.dtype(dtype).itemsize
    arena = getattr(_local, "arena", None)
    if arena is None or len(arena) < nbytes:
        arena = _local.arena = empty((max(nbytes, 2 * CHUNK_BYTES),), np.uint8)
    return arena[:nbytes].view(dtype)


def empty(shape, dtype):
    """An uninitialised array that begins where a line of the cache does; those of np.empty begin 16 bytes behind.

    Vectors as long as a line, AVX-512's, then lie in one line each, not in two.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + LINE, np.uint8)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return np.ndarray(shape, dtype, memory, -address % LINE)


def shared(size, dtype):
    """Zeros (size,) in memory that processes forked from this one share with it."""
    nbytes = size * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, nbytes)), np.uint8)[:nbytes].view(dtype)


def fork():
    """os.fork() without the warning of threads that Python 3.12 and later give: ours are idle then, and BLAS's end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def keep_freed_memory():
    """Ask glibc to keep freed arrays for the next step instead of giving each back to the system.

    Otherwise each large array is new memory, cleared page by page as it is first touched.
    """
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):
            pass
