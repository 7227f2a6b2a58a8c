import os
import pathlib
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import parts

unavailable = None


@pytest.fixture(scope="session")
def root():
    """The unpacked packages; without them there is nothing to test with."""
    global unavailable
    try:
        return parts.fetch()
    except parts.Unavailable as e:
        unavailable = f"no guest to test with: {e}"
        pytest.skip(unavailable)


def pytest_terminal_summary(terminalreporter):
    """One line says why, not one for each test."""
    if unavailable:
        terminalreporter.write_line(f"skipped, {unavailable}")


@pytest.fixture(scope="session")
def examples():
    return pathlib.Path(os.environ.get("VFU_EXAMPLES") or parts.TOP / "target" / "meson" / "examples-c")
