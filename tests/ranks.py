"""What tests of MPI share: scripts on ranks that mpiexec starts on this machine, and small trainings to run there."""

import hashlib
import importlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np

from minisagan import cuda, parity
from minisagan.config import Architecture, Config
from minisagan.train import Training

TESTS = Path(__file__).parent
MPIEXEC = Path(sys.executable).with_name("mpiexec")
ENVIRONMENT = os.environ | {
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",  # more ranks than cores: those that wait leave them to those that compute
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "64",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # Open MPI refuses more, and refuses root
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
ARCH = Architecture(width=4, attention=8, attention_key=8, latent=8, classes=3)
CONFIG = Config(batch_size=32, flip=True, architecture=ARCH)
PACKS = Config(batch_size=64, accumulate=2, d_steps=2, parts=4, augment=True, architecture=replace(ARCH, pack=2))
DATA = parity.noise_images(CONFIG, 100)
SCRIPT = """
import sys
from minisagan.errors import Fault
from minisagan.launcher import launched
from minisagan.processes import mpi
from ranks import *
{head}
def first():
{first}
if launched()[0]:
    sys.exit(mpi.serve())
code = 0
try:
    first()
except Fault as error:
    print("refused:", error)
    code = error.exit_code
mpi.end(code)
sys.exit(code)
"""


def ranks(count, *command, **options):
    """The finished mpiexec of so many Pythons."""
    options = {"capture_output": True, "text": True, "timeout": 200, "env": ENVIRONMENT} | options
    return subprocess.run([MPIEXEC, "-n", str(count), sys.executable, *map(str, command)], **options)


def script(folder, first, head=""):
    """The path of a script: all ranks do `head`, then rank 0 does `first`, and the others what it tells them to."""
    path, first = folder / "script.py", textwrap.indent(textwrap.dedent(first), "    ")
    path.write_text(SCRIPT.format(head=textwrap.dedent(head), first=first))
    return path


def opened(config=CONFIG, processes=1, **where):
    """A training whose gates of attention are open, so that all of it matters."""
    training = Training(config, DATA, processes=processes, **where)
    parity.open_gates(training.G, training.D)
    return training


def digest(training):
    return hashlib.sha256(b"".join(cuda.to_host(x).tobytes() for x in training.state().values())).hexdigest()


def trained(config, steps, processes=1, **where):
    """In words, what so many steps end in: the last two's losses, and a digest of all bits."""
    training = opened(config, processes, **where)
    return f"{training.advance(steps - 1)} {training.advance()} {digest(training)}"


def looked():
    """A digest of what a classifier that has learned nothing finds in 600 images: the judge's view of them."""
    from minisagan.judge.classifier import Classifier

    dataset = parity.noise_images(CONFIG, 700)
    features, probabilities = Classifier(32, 1, 3).eval().look(dataset, np.arange(600)[::-1] + 50)
    assert features.shape == (600, 128) and features.std() > 0
    return hashlib.sha256(features.tobytes() + probabilities.tobytes()).hexdigest()


def emulated(gpus):
    """Let this process compute on an emulated GPU, of so many on its host. It imports MPI with NCCL, not before."""
    from emulation import cublas_stand_in, cupy_stand_in

    cuda.cupy, cuda.nccl = lambda: cupy_stand_in, lambda: importlib.import_module("emulation.nccl_stand_in")
    cuda.load_cublas, cuda.tf32, cupy_stand_in.settings.gpus = cublas_stand_in.Cublas, False, gpus
