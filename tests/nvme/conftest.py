import os
import sys

here = os.path.dirname(__file__)
sys.path.insert(0, here)
# The client, and what runs an example as a process, are those of the migration tests.
sys.path.insert(0, os.path.join(here, "..", "migration"))

import pytest

from driver import Driver
from peer import Device


@pytest.fixture
def start():
    """Starts controllers, and sees to it that each of them ends in good order."""
    devices = []

    def start(*options):
        if not any(o.startswith(("--file", "--size")) for o in options):
            options = ("--size=16M", *options)
        devices.append(Device("nvme", *options))
        return devices[-1]
    yield start
    for device in devices:
        if device.process.returncode is None:  # else the test has ended it
            assert device.process.poll() is None, "the server has ended by itself"
            device.end()


@pytest.fixture
def attach(start):
    """Starts controllers with a driver each; `device` in place of options: one that runs."""
    drivers = []

    def attach(*options, device=None, **arguments):
        drivers.append(Driver(device or start(*options), **arguments))
        return drivers[-1]
    yield attach
    for driver in drivers:
        driver.close()


@pytest.fixture(params=["trapped", "polled"])
def doorbells(request):
    """The option for each way in which doorbells are rung."""
    return ["--poll-doorbells"] if request.param == "polled" else []


@pytest.fixture(params=["memory", "file"])
def backing(request, tmp_path):
    """The options for each kind of namespace, 16 MiB."""
    return ["--size=16M"] + ([f"--file={tmp_path}/disk"] if request.param == "file" else [])
