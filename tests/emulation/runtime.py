"""A GPU's memory, streams and graphs, as CuPy shows them.

New memory holds NaN, between guards. While a stream captures, nothing runs: calls are recorded and run at each launch
of the graph, on the same addresses, which must not have been freed by then.
"""

import contextlib
import itertools
import types
import weakref

import numpy as np

GUARD = 512  # bytes before and after each array, which nobody may change

settings = types.SimpleNamespace(
    checked=False,  # kernels report races and accesses out of bounds: some five times slower
    order="random",  # of threads and blocks: "forward", "reverse" or "random"
    seed=0,  # of the random order
    memory=1 << 40,  # bytes on the GPU
    gpus=1,  # that CuPy shows; all memory is one
)


class EmulationError(RuntimeError):
    """A kernel, or the use of a graph, that would go wrong on a GPU, now and then or always."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError: made of the bytes asked for, those in use, and the limit of the pool."""

    def __init__(self, size, total, limit=0):
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


# ---- Memory


class Block:
    """A stretch of GPU memory between guards."""

    live = weakref.WeakValueDictionary()  # by address
    in_use = 0  # bytes of all

    def __init__(self, size):
        if Block.in_use + default_pool.cached + size > settings.memory:
            self.size = 0
            raise OutOfMemoryError(size, Block.in_use)
        self.size, raw = size, np.empty(size + 2 * GUARD + 256, np.uint8)
        start = GUARD + -(raw.ctypes.data + GUARD) % 256
        self.before, self.bytes, self.after = raw[:start], raw[start : start + size], raw[start + size :]
        self.before.fill(0xFF)
        self.after.fill(0xFF)
        self.address = raw.ctypes.data + start
        Block.live[self.address] = self
        Block.in_use += size

    def __del__(self):
        Block.in_use -= self.size

    def intact(self):
        return (self.before == 0xFF).all() and (self.after == 0xFF).all()


def memory_at(address, size):
    """The block that this stretch of memory lies in, and its bytes."""
    for block in Block.live.values():
        if block.address <= address and address + size <= block.address + block.size:
            return block, block.bytes[address - block.address :][:size]
    raise EmulationError(f"{size} bytes at {address:#x} are not an array's")


class Memory:
    """A block in use: it goes back to its pool when the last array on it dies."""

    def __init__(self, block, pool):
        self.block, self.pool = block, pool

    def __del__(self):
        self.pool.take_back(self.block)


class MemoryPool:
    """Reuses what was freed, and keeps it as long as it lives itself."""

    def __init__(self):
        self.free = {}

    def malloc(self, size):
        free = self.free.get(size)
        return Memory(free.pop() if free else Block(size), self)

    def take_back(self, block):
        self.free.setdefault(block.size, []).append(block)

    def free_all_blocks(self):
        self.free.clear()


class DefaultPool:
    """CuPy's gives freed memory to anybody: a graph must not count on it. So here it is gone, though it still counts
    as taken, until this pool needs it or gives it back: other pools can't have it."""

    cached = 0  # bytes

    def malloc(self, size):
        self.cached = max(0, self.cached - size)
        if Block.in_use + self.cached + size > settings.memory:
            self.free_all_blocks()
        return Memory(Block(size), self)

    def take_back(self, block):
        self.cached += block.size

    def free_all_blocks(self):
        self.cached = 0


default_pool = DefaultPool()
_malloc = default_pool.malloc


def malloc(size):
    return _malloc(size)


@contextlib.contextmanager
def using_allocator(allocator):
    global _malloc
    before, _malloc = _malloc, allocator
    try:
        yield
    finally:
        _malloc = before


# ---- Streams and graphs


class Stream:
    """Does calls at once, or records them."""

    numbers = itertools.count(1)
    of = weakref.WeakValueDictionary()  # by ptr
    current = None

    def __init__(self, null=False, non_blocking=False):
        self.ptr, self.non_blocking, self.recorded = next(Stream.numbers), non_blocking, None
        Stream.of[self.ptr] = self

    def use(self):
        Stream.current = self
        return self

    def synchronize(self):
        refuse_while_capturing("synchronize()")

    def begin_capture(self, mode=None):
        if not self.non_blocking:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: the default stream can't be captured")
        if self.recorded is not None:
            raise RuntimeError("cudaErrorIllegalState: the stream captures already")
        self.recorded, self.nodes = [], []

    def is_capturing(self):
        return self.recorded is not None

    def end_capture(self):
        if self.recorded is None:
            raise RuntimeError("cudaErrorIllegalState: the stream does not capture")
        graph, self.recorded = Graph(self.recorded, self.nodes), None
        return graph

    def submit(self, call, blocks, name, nbytes=0):
        """Do call() now, or at each launch. It must not hold the blocks: freed memory is to be seen as such.

        `name` says what it is, `nbytes` how much memory it reads and writes; a name of None is for what only the
        emulation does, and no graph of CUDA's has a node for.
        """
        if self.recorded is None:
            call()
        else:
            self.recorded.append((call, [weakref.ref(block) for block in blocks]))
            if name is not None:
                self.nodes.append((name, nbytes))


Stream.null = Stream(null=True)
Stream.current = Stream.null


class Graph:
    """Calls to run again, on the memory that they were recorded with; `nodes`: (name, bytes moved) of each."""

    def __init__(self, calls, nodes):
        self.calls, self.nodes = calls, nodes

    def launch(self, stream=None):
        for call, blocks in self.calls:
            if any(block() is None for block in blocks):
                raise EmulationError("the graph uses memory that was freed since it was recorded")
            call()


def refuse_while_capturing(what):
    if Stream.current.recorded is not None:
        raise RuntimeError(f"the current stream is capturing, so {what} is not allowed")
