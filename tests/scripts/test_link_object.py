"""What scripts/link-object makes of an archive, here of C, for this machine and those that there are cross compilers for."""

import pathlib
import re
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/link-object"
CROSS = ["aarch64-linux-gnu-", "arm-linux-gnueabihf-", "i686-linux-gnu-", "loongarch64-linux-gnu-", "powerpc64le-linux-gnu-",
         "riscv64-linux-gnu-"]
LIBRARY = """
int unused(int (*f)(void)) { return f() + 1; }
int within(int (*f)(void)) { return f() + 2; }
int wanted(int (*f)(void)) { return within(f) + 3; }
"""
PROGRAM = """
int wanted(int (*f)(void));
static int one(void) { return 1; }
int main(void) { return wanted(one) - 6; }
"""


@pytest.fixture(params=["", *CROSS])
def tools(request):
    if shutil.which(f"{request.param}gcc") is None:
        pytest.skip(f"no {request.param}gcc")
    return request.param


@pytest.fixture
def made(tools, tmp_path):
    """The object, and another beside it: both with a table of frames, and functions that nobody calls."""
    (tmp_path / "library.c").write_text(LIBRARY)
    (tmp_path / "program.c").write_text(PROGRAM)
    (tmp_path / "map").write_text("V { global: wanted; local: *; };\n")
    run = lambda *command: subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                          text=True)
    run(f"{tools}gcc", "-O1", "-fPIC", "-fno-inline", "-fexceptions", "-ffunction-sections", "-c", "library.c", "program.c")
    run(f"{tools}ar", "rc", "library.a", "library.o")
    run(SCRIPT, "--objcopy", f"{tools}objcopy", "--readelf", f"{tools}readelf", "--archive", "library.a", "--map", "map", "--output",
        "object.o", "--", f"{tools}gcc")
    return run


def test_what_is_public_is_all_that_is_global(made, tools):
    symbols = [line.split() for line in made(f"{tools}nm", "object.o").stdout.splitlines()]
    assert [name for *_, kind, name in symbols if kind.isupper() and kind != "U"] == ["wanted"]


def test_the_linker_reads_its_frames(made, tools):
    """Where it cannot, it says so and makes a program without a table of frames."""
    assert made(f"{tools}gcc", "-o", "program", "program.o", "object.o").stdout == ""
    sections = made(f"{tools}readelf", "--sections", "--wide", "program").stdout
    [size] = re.findall(r" \.eh_frame_hdr +PROGBITS +\S+ +\S+ +(\S+)", sections)
    assert int(size, 16) > 8, "no more than its head"
