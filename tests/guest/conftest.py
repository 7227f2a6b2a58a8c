import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import lab


@pytest.fixture(scope="session")
def root():
    """The unpacked packages; without them there is nothing to test with."""
    try:
        return lab.fetch()
    except lab.Unavailable as e:
        pytest.skip(f"no QEMU, kernel or busybox to be had: {e}")


@pytest.fixture(scope="session")
def examples():
    return lab.pathlib.Path(os.environ.get("VFU_EXAMPLES") or lab.TOP / "target" / "meson" / "examples-c")
