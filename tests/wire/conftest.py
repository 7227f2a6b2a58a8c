import ctypes
import faulthandler
import os
import pathlib
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))


def pytest_collection_modifyitems(items):
    if ctypes.sizeof(ctypes.c_size_t) > 4:
        return
    listed = pathlib.Path(__file__).with_name("needs-64-bits.list").read_text().splitlines()
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if name in listed or name.split("[")[0] in listed:
            item.add_marker(pytest.mark.skip(reason="takes a machine of 64 bits"))


@pytest.fixture(autouse=True)
def no_endless_wait():
    """A call of the library that never returns ends the run, with a traceback, instead of hanging it."""
    faulthandler.dump_traceback_later(float(os.environ.get("VFU_TEST_SECONDS", 120)), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
