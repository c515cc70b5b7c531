"""Faults, tried and counted: killed saves, flipped bits, inputs that cannot be, full disks, two writers.

    python examples/faults.py

Each line ends in what was survived of what was tried; the exit code is 1 if anything was not. Linux and macOS.
"""

import contextlib
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner

from minisagan import data
from minisagan.commands import cli
from minisagan.errors import DataError, Fault
from minisagan.run import checkpoint
from minisagan.run.lockfile import locked

RUN = ("train", "--width", 8, "--batch-size", 8, "--threads", 1)


@click.command()
@click.option("--kills", default=100, show_default=True, help="Processes killed while they save.")
@click.option("--flips", default=1000, show_default=True, help="Bits flipped in a checkpoint, at least.")
def main(kills, flips):
    """Try the faults and print what was survived."""
    data.DRAWN = {"train": (64, 0), "test": (32, 1)}  # few digits: a start takes no second
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        code, line = minisagan(*RUN, "--steps", 1, "--out", "run")
        if code:
            sys.exit(f"no run to try faults on: {line}")
        counts = [kill_saves(kills), flip_bits(flips), try_inputs(), fill_disk(), write_together()]
        os.chdir("/")
    sys.exit(0 if all(survived == tried for survived, tried in counts) else 1)


def report(text, survived, tried):
    print(f"{text:66} {survived:5} of {tried}")
    return survived, tried


def minisagan(*args):
    """(exit code, the last line on stderr) of a command line."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    lines = result.stderr.splitlines() or [""]
    return (99 if "Traceback" in result.stderr else result.exit_code), lines[-1]


@contextlib.contextmanager
def child(work):
    """A fork of this process that calls work(), and is killed in the end; yields its pid."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# Killed while saving


def kill_saves(kills):
    """Processes that save one checkpoint after another are killed anywhere; is the newest one whole each time?"""
    tensors = {name: np.random.RandomState(0).randn(500, 500) for name in ("G", "D")}  # 4 MB: some ms to write

    def careful(folder):
        for step in range(1_000_000):
            checkpoint.save(checkpoint.path_of(folder, step), tensors, {"step": str(step)})
            checkpoint.prune(folder, keep=1)

    def plain(folder):
        while True:
            np.savez(folder / "plain.npz", **tensors)

    def whole(folder):
        found, _ = checkpoint.load(checkpoint.newest(folder))
        return all(np.array_equal(found[name], x) for name, x in tensors.items())

    def plain_whole(folder):
        found = np.load(folder / "plain.npz")
        return all(np.array_equal(found[name], x) for name, x in tensors.items())

    def survived(save, check, name, tried):
        count = 0
        for k in range(tried):
            folder = Path(f"{name}-{k}")
            folder.mkdir()
            with child(lambda: save(folder)):  # noqa: B023
                while not settled(folder):
                    time.sleep(0.001)
                time.sleep(random.uniform(0, 0.06))
            with contextlib.suppress(Exception):
                count += bool(check(folder))
            for file in folder.iterdir():
                file.unlink()
        return count

    def settled(folder):
        """Whether a first save is through: from then on there has to be a whole file."""
        with contextlib.suppress(FileNotFoundError):  # one may go meanwhile
            return any(file.suffix != ".tmp" and file.stat().st_size >= 4_000_000 for file in folder.iterdir())

    few = max(kills // 5, 1)
    found = survived(plain, plain_whole, "plain", few)
    print(f"{'    for comparison, np.savez in place: the file is whole':66} {found:5} of {few}")
    return report("killed while saving: the newest checkpoint is whole", survived(careful, whole, "kill", kills), kills)


# Flipped bits


def flip_bits(flips):
    """One bit of a run's checkpoint at a time: in the header's length, in the header, in each tensor."""
    file = checkpoint.newest("run/checkpoints")
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors, _ = checkpoint.load(file)
    position, places = start, list(range(64))  # of bits: all of the length's
    for x in tensors.values():  # in the order of the file
        places += [8 * position + random.randrange(8 * x.nbytes) for _ in range(2)]
        position += x.nbytes
    each = max(0, -(-(flips - len(places)) // 2))
    places += [random.randrange(64, 8 * start) for _ in range(each)]
    places += [random.randrange(8 * start, 8 * len(content)) for _ in range(each)]
    refused, flipped = 0, Path("flipped.safetensors")
    flipped.write_bytes(content)
    with open(flipped, "r+b", buffering=0) as bits:
        for byte, bit in (divmod(place, 8) for place in places):
            os.pwrite(bits.fileno(), bytes([content[byte] ^ 1 << bit]), byte)
            try:
                checkpoint.load(flipped)
            except DataError:
                refused += 1
            os.pwrite(bits.fileno(), content[byte : byte + 1], byte)
    checkpoint.load(flipped)  # as it was
    return report(f"bits flipped in {len(content):,} bytes, all regions: refused", refused, len(places))


# Inputs that cannot be


def try_inputs():
    """Files and options that cannot be: one line and the right exit code, no traceback."""
    good = checkpoint.newest("run/checkpoints").read_bytes()
    files = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "one byte more": good + b"\0",
        "pickle": pickle.dumps({"G": 1}),
        "html": b"<html></html>",
        "a header of 2**60": (1 << 60).to_bytes(8, "little") + b"{",
        "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    }
    tries = []
    for name, content in files.items():
        Path(name).write_bytes(content)
        tries.append((3, f"sample, {name}", ("sample", name)))
    for name, content in {"tiny.png": b"\x89PNG\r\n\x1a\n\0\0", "text.jpg": b"hello", "empty.png": b""}.items():
        Path(f"photos-{name}").mkdir()
        Path(f"photos-{name}", name).write_bytes(content)
        photos = ("--dataset", f"photos-{name}", "--data-dir", "cache", "--out", "x")
        tries.append((3, f"train, a folder with {name}", (*RUN, *photos)))
    Path("list.csv").write_text("none.png,cat\n")
    Path("mnist").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        Path("mnist", name).write_bytes(b"<html>")
    Path("config.json").write_text('{"config": {"warp": 9}}')
    tries += [
        (3, "train, mnist's files are web pages", (*RUN, "--dataset", "mnist", "--data-dir", ".", "--out", "x")),
        (3, "train, a damaged config.json", (*RUN, "--config", "config.json", "--out", "x")),
        (3, "train, labels of no image", (*RUN, "--dataset", "photos-tiny.png", "--labels", "list.csv", "--out", "x")),
        (2, "train, the name of nothing", (*RUN, "--dataset", "", "--out", "x")),
        (2, "train, steps beyond all bounds", (*RUN, "--steps", 10**20, "--out", "x")),
        (2, "train, a batch above the data", (*RUN, "--batch-size", 65, "--out", "x")),
        (2, "train, a rate that is NaN", (*RUN, "--lr-g", "nan", "--out", "x")),
        (2, "train, no such data set", (*RUN, "--dataset", "mnits", "--out", "x")),
        (2, "train, a folder that is not empty", (*RUN, "--out", "run")),
        (2, "train, no such run", (*RUN, "--resume", "nowhere")),
        (2, "train, another width", (*RUN, "--width", 16, "--resume", "run")),
        (1, "train, below a file", (*RUN, "--out", "html/x")),
        (1, "sample, into no folder", ("sample", "run", "-o", "no/such/x.npz")),
        (2, "sample, no such class", ("sample", "run", "--classes", "ten")),
        (0, "train, zero steps", (*RUN, "--steps", 0, "--out", "zero")),
        (0, "train, a finished run", (*RUN, "--resume", "run")),
    ]
    right = 0
    for wanted, name, args in tries:
        code, line = minisagan(*args)
        good = code == wanted and (code == 0 or line.startswith("Error: "))
        right += good
        print(f"    {'  ' if good else 'NO'} {code:3}  {name}")
    return report("inputs and options that cannot be: the right exit code", right, len(tries))


# Full disks


def fill_disk():
    """Saving until nothing more fits: an error, the last file whole, no half one left."""
    survived, folder = 0, Path("small")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in (20_000, 200_000, 333_333):
            x = np.ones(size, np.float32)
            checkpoint.save(checkpoint.path_of(folder, 0), {"x": x}, {"step": "0"})
            if not mounted:
                resource.setrlimit(resource.RLIMIT_FSIZE, (x.nbytes + 4096, before[1]))
            failed = False
            for step in range(1, 100):
                try:
                    x = x if mounted else np.ones(len(x) * 2, np.float32)
                    checkpoint.save(checkpoint.path_of(folder, step), {"x": x}, {"step": str(step)})
                except Fault:
                    failed = True
                    break
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            files = list(folder.iterdir())
            whole = len([checkpoint.load(file) for file in files]) == step
            survived += failed and whole and not list(folder.glob("*.tmp"))
            for file in files:
                file.unlink()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if mounted:
            subprocess.run(["umount", folder], check=True)
    how = "a tmpfs of 3 MB" if mounted else "a limit on a file's size"
    return report(f"full disks ({how}): an error, older files whole", survived, 3)


# Two writers


def write_together():
    """A second process in a run is refused while the first lives, and not after it is killed; two starts get two."""
    ready, told = os.pipe()

    def hold():
        with locked("run"):
            os.write(told, b"!")
            time.sleep(60)

    with child(hold) as pid:
        os.read(ready, 1)
        code, line = minisagan(*RUN, "--resume", "run", "--steps", 2)
        refused = code == 1 and f"in use by process {pid}" in line
    free = minisagan(*RUN, "--resume", "run", "--steps", 2)[0] == 0
    starts = [os.fork() or os._exit(minisagan(*RUN, "--steps", 1)[0]) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in starts]
    apart = codes == [0, 0] and len(list(Path("runs").glob("*/checkpoints/step-00000001.safetensors"))) == 2
    return report("two writers: refused, free after a kill, two starts apart", refused + free + apart, 3)


if __name__ == "__main__":
    main()
