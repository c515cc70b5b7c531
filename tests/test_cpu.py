"""Threads that share loops: every call is made once, whoever asks for it, and while the threads are exchanged."""

import contextlib
import os
import signal
import threading

import numpy as np
import pytest

from minisagan import batch, cpu


@pytest.fixture(autouse=True)
def two_threads():
    yield
    cpu.set_threads(2)  # as in all tests


def counted(rounds, size=40):
    """How often each of `size` calls of a loop was made, in each of so many loops: (rounds, size)."""
    made = np.zeros((rounds, size), int)
    for row in made:

        def body(i, row=row):
            row[i] += 1

        cpu.parallel(body, size)
    return made


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_loop_makes_each_call_once(threads):
    cpu.set_threads(threads)
    assert (counted(50) == 1).all()


def test_threads_of_the_programs_own_may_have_loops_at_the_same_time_and_meanwhile_their_number_may_change():
    found, ended = {}, threading.Event()

    def ask(name):
        found[name] = counted(400)

    others = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(4)]

    def change():
        for count in (3, 1, 2, 4) * 5:
            cpu.set_threads(count)
        ended.set()

    changer = threading.Thread(target=change, daemon=True)
    for thread in (*others, changer):
        thread.start()
    for thread in (*others, changer):
        thread.join(60)
    assert ended.is_set() and sorted(found) == [0, 1, 2, 3]
    assert all((made == 1).all() for made in found.values())


def test_a_process_that_is_forked_makes_threads_of_its_own():
    cpu.set_threads(3)
    assert (counted(2) == 1).all()
    child = cpu.fork()
    if not child:
        signal.alarm(30)  # it would wait for threads that it has not
        os._exit(0 if (counted(2) == 1).all() and cpu.threads() == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (counted(2) == 1).all()


def test_a_loop_over_nothing_leaves_the_threads_as_they_are():
    cpu.set_threads(4)
    assert counted(1, size=0).shape == (1, 0)
    before = threading.active_count()
    assert (counted(20) == 1).all() and threading.active_count() == before


def test_whoever_is_interrupted_while_waiting_has_threads_again():
    cpu.set_threads(2)
    started, go = threading.Event(), threading.Event()

    def body(i):
        if threading.current_thread() is threading.main_thread():
            started.wait(30)  # so that the other thread has one of the two calls
        else:
            started.set()
            go.wait(30)

    threads = cpu._threads
    acquire = threads.done.acquire
    threads.done.acquire = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cpu.parallel(body, 2)
    go.set()
    threads.done.acquire = acquire
    assert (counted(20) == 1).all() and cpu.threads() == 2 and cpu._threads is not threads


def threads_of(images, side):
    """The threads that computed some part of a sum over images (n, side, side)."""
    found, together = set(), threading.Barrier(2)

    def f(x):
        found.add(threading.get_ident())
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.2)  # for a part in another thread: the first can't make all parts before the second wakes
        return x.sum(0)

    batch.sum(f, np.ones((images, side, side), np.float32))
    return found


def test_threads_share_large_loops_only():
    """2 MiB of images are worth waking a thread; of less, the calling thread makes all parts and all chunks."""
    cpu.set_threads(2)
    assert len(threads_of(32, 128)) == 2
    assert threads_of(31, 128) == {threading.get_ident()}
    assert len(cpu.chunks(32, 1 << 16, at_least=8)) == 8
    assert len(cpu.chunks(31, 1 << 16, at_least=8)) == 1


@pytest.mark.parametrize("H, row, some", [(32, 512, 16), (8, 512, 8), (12, 2048, 4), (128, 16384, 1), (7, 4096, 7)])
def test_rows_that_are_given_the_same_at_once_are_long_and_divide_the_image(H, row, some):
    assert cpu.rows(H, row) == some


def test_the_first_error_of_a_loop_is_raised_and_the_next_loop_is_whole():
    cpu.set_threads(2)

    def body(i):
        if i == 7:
            raise ZeroDivisionError("seven")

    for _ in range(20):
        with pytest.raises(ZeroDivisionError, match="seven"):
            cpu.parallel(body, 20)
    assert (counted(5) == 1).all()
