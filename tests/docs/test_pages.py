"""The pages that a reader follows step by step, followed.

UPDATE_DOCS=1 writes what the commands print into the pages, where they show nothing yet.
"""
import os
import pathlib

import pytest

from page import TOP, Session, blocks, fill, follow

BUILD = pathlib.Path(os.environ.get("VFU_BUILD") or TOP / "target" / "meson")
VFU = pathlib.Path(os.environ.get("VFU") or TOP / "target" / "debug" / "vfu")


@pytest.mark.parametrize("name", ["writing-a-device"])
def test_a_page_does_what_it_says(tmp_path, name):
    page = TOP / "docs" / f"{name}.md"
    if os.environ.get("UPDATE_DOCS") == "1":
        fill(page, tmp_path, BUILD, VFU)
    else:
        assert follow(page, tmp_path, BUILD, VFU) > 10


def test_the_first_device_of_the_readme_works(tmp_path):
    [device] = [block.text for block in blocks(TOP / "README.md") if block.kind == "c"]
    (tmp_path / "device.c").write_text(device)
    session = Session(tmp_path, BUILD, VFU)
    try:
        assert session.run("cc -Wall device.c $(pkg-config --cflags --libs libvfio-user) -o device") == []
        assert session.run("./device device.sock &") == []
        shown = session.run("vfu script device.sock <<END\ninfo\nwrite BAR0 4 0x12345678\nread BAR0 0 --count 16\nEND")
        assert any(line.split()[:2] == ["BAR0", "0x10"] for line in shown), shown
        assert shown[-1].startswith("0000:   00 00 00 00  78 56 34 12  00 00 00 00  00 00 00 00"), shown
        # It ends with its client, and takes its socket away.
        assert session.run("wait $!; echo $?; ls device.sock 2>/dev/null") == ["0"]
    finally:
        session.close()
