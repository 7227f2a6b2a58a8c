import faulthandler
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture(autouse=True)
def no_endless_wait():
    """A call of the library that never returns ends the run, with a traceback, instead of hanging it."""
    faulthandler.dump_traceback_later(float(os.environ.get("VFU_TEST_SECONDS", 120)), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
