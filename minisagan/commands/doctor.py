"""`minisagan doctor`: what is installed and found here, and whether it computes what it should."""

import importlib.metadata
import os
import platform

import click

from minisagan import __version__, cpu, cuda, data, parity, selfcheck
from minisagan.commands import hardware
from minisagan.launcher import launched
from minisagan.processes import mpi, nccl

PACKAGES = ("numpy", "imageio", "pillow", "click", "threadpoolctl")
SELF_TEST = "attend"
TOLERANCES = {False: 1e-3, True: 5e-2}  # of a training step on the GPU: of float32, with products in TF32


@click.command(short_help="Show what is installed and found here, and test it.")
def command():
    """Show versions, cores, data sets and GPUs, and check the gradient of one op, and a training step on the GPU.

    The exit code is 5 if a check fails.
    """
    where = data.data_folder()
    click.echo(f"minisagan        {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        click.echo(f"{package:16} {_version(package)}")
    click.echo(f"BLAS             {cpu.blas()}")
    click.echo(f"cores            {os.cpu_count()}, used by threads: {cpu.threads()}")
    obstacle = hardware.use()
    gpus = hardware.gpus()
    named = f"{len(gpus)}: {', '.join(gpus)}" if gpus else "none"
    click.echo(f"GPU              {named}; {obstacle or f'used as {cuda.describe()}'}")
    click.echo(f"MPI              {_ranks()}")
    click.echo(f"NCCL             {'for GPUs alone' if obstacle else nccl.version()}")
    there = "none: no home folder; $MINISAGAN_DATA names another" if where is None else where
    click.echo(f"data folder      {there}{' (not there yet)' if where and not where.is_dir() else ''}")
    for name in data.NAMES:
        click.echo(f"  {name:14} {_found(name, where)}")
    results = list(selfcheck.run(SELF_TEST))
    failed = [result for result in results if not result.passed]
    worst = max(result.error for result in results)
    click.echo(f"self-test        {SELF_TEST}: {len(results)} checks, {len(failed)} failed, largest error {worst:.1e}")
    for result in failed:
        click.echo(result)
    return 5 if failed or not (obstacle or _same_on_gpu()) else 0


def _same_on_gpu():
    """Whether a small training step on the GPU is the CPU's; shows by how much they differ."""
    same = True
    for tf32, allowed in TOLERANCES.items():
        cuda.tf32 = tf32
        errors = parity.errors(parity.SMALL)
        same &= max(errors.values()) <= allowed
        shown = ", ".join(f"{what} {error:.1e}" for what, error in errors.items())
        click.echo(f"GPU against CPU  {'TF32' if tf32 else 'float32'}: {shown} (at most {allowed:g})")
    return same


def _ranks():
    """The launcher's processes and the MPI library, or whether there could be any."""
    world = launched()[1]
    if world > 1:
        mpi.comm()  # a Fault if they are no world
        return f"{world} processes, {mpi.library()}"
    version = _version("mpi4py")
    return "not installed: pip install 'minisagan[mpi]'" if version == "not installed" else f"mpi4py {version}"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _found(name, where):
    if name == "drawn-digits":
        return "needs no file"
    if where is None:
        return "not there: no data folder"
    return data.find(name, where) or "not there: train downloads it"
