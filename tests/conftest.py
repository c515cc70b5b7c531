"""What tests share: the number of threads, real data where there is some, the marks."""

import os
from pathlib import Path

import pytest

from minisagan import device


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    device.set_threads(2)  # on any machine: what threads do is tested, and in the same way


@pytest.fixture
def real_data():
    """real_data("mnist") is the folder that holds the folder mnist; without one the test is skipped, visibly."""

    def find(name):
        for place in (os.environ.get("MINISAGAN_DATA"), Path(__file__).parents[2] / "shared" / "data"):
            if place and Path(place, name).is_dir():
                return Path(place)
        pytest.skip(f"no {name} in $MINISAGAN_DATA or ../shared/data")

    return find
