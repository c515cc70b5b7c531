"""Two hosts: network namespaces of this machine, joined by a cable of the kernel's; nothing else leads across."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from ranks import ENVIRONMENT, MPIEXEC, digest, opened, script

from minisagan import team

pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich mpi4py")
ADDRESSES = "10.77.0.1", "10.77.0.2"
REMOTE = """#!/bin/sh
while [ "$1" != {address} ]; do shift; done  # mpiexec calls it as it calls ssh
shift
exec ip netns exec {name} unshare --uts sh -c "hostname second; $*"
"""
FIRST = """
    from minisagan import bench
    training = opened(processes=None)
    training.advance()
    with bench.exchanged(training.team) as of_all:
        training.advance(5)
    print(of_all.nbytes, of_all.meetings)
    print(digest(training))
"""


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextmanager
def two_hosts():
    """Yields the names of two namespaces with the ADDRESSES; skips the test where they can't be made."""
    names, made = [f"minisagan-{os.getpid()}-{k}" for k in (1, 2)], []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this machine allows no network namespaces: {getattr(error, 'stderr', error)}")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("cable", "lo"):
                ip("-n", name, "link", "set", link, "up")
        end = time.monotonic() + 20
        while not all("state UP" in ip("-n", name, "link", "show", "cable") for name in names):
            assert time.monotonic() < end, "the cable has no signal"
            time.sleep(0.05)
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


def carried(name):
    """Bytes that came in over the cable."""
    return int(ip("netns", "exec", name, "cat", "/sys/class/net/cable/statistics/rx_bytes"))


def test_two_hosts_have_the_bits_of_one_process_and_the_cable_carries_what_is_counted(tmp_path):
    training = opened()
    training.advance(6)
    with two_hosts() as (here, there):
        remote = tmp_path / "remote"
        remote.write_text(REMOTE.format(address=ADDRESSES[1], name=there))
        remote.chmod(0o755)
        options = ["-iface", "cable", "-launcher", "ssh", "-launcher-exec", remote, "-hosts", ",".join(ADDRESSES)]
        command = ["ip", "netns", "exec", here, MPIEXEC, *options, "-n", "2", sys.executable, script(tmp_path, FIRST)]
        network = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}  # one kernel, but no shared memory
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT | network)
        assert done.returncode == 0, done.stderr
        over_cable = carried(here)
    numbers, bits = done.stdout.splitlines()
    counted, meetings = map(int, numbers.split())
    print(f"{meetings // 5} meetings a step, {counted // 5:,} bytes to each host; {over_cable:,} over the cable")
    assert bits == digest(training)
    owned = sum(x.nbytes for x in team.owned(training))
    expected = counted * 6 // 5 + owned // 2  # `owned`, when they are read at last
    of_weights = 6 * (len(training.adam_g.weights) + len(training.adam_d.weights))  # gradients once, weights by halves
    assert of_weights < counted // 5 < of_weights + owned // 4  # these stay at home
    assert expected < over_cable < 1.25 * expected + 300_000
