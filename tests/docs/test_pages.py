"""The pages that a reader follows step by step, followed.

UPDATE_DOCS=1 writes what the commands print into the pages, where they show nothing yet.
"""
import os
import pathlib

import pytest

from page import TOP, fill, follow

BUILD = pathlib.Path(os.environ.get("VFU_BUILD") or TOP / "target" / "meson")
VFU = pathlib.Path(os.environ.get("VFU") or TOP / "target" / "debug" / "vfu")


@pytest.mark.parametrize("name", ["writing-a-device"])
def test_a_page_does_what_it_says(tmp_path, name):
    page = TOP / "docs" / f"{name}.md"
    if os.environ.get("UPDATE_DOCS") == "1":
        fill(page, tmp_path, BUILD, VFU)
    else:
        assert follow(page, tmp_path, BUILD, VFU) > 10
