"""The headers, and the tools that read them: each is found, or its tests are skipped with the reason."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

TOP = pathlib.Path(__file__).parents[2]
INCLUDE = TOP / "include"
HEADERS = sorted(str(path.relative_to(INCLUDE)) for folder in ("", "pci_caps") for path in (INCLUDE / folder).glob("*.h"))
INSTALL = "scripts/install-deps test installs it from Debian's packages"


def need(command, hint=INSTALL):
    """Path of a program; the test is skipped where there is none."""
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"no {command}: {hint}")
    return path


def zig():
    """Zig as a command: a package of PyPI has it, Debian none."""
    if shutil.which("zig"):
        return ["zig"]
    for python in ("python3", "/usr/bin/python3"):
        if subprocess.run([python, "-c", "import ziglang"], capture_output=True).returncode == 0:
            return [python, "-m", "ziglang"]
    pytest.skip("no zig: `pip install ziglang` puts one into Python's packages")


def run(command, folder, silent=True):
    """Runs a command in a folder; its output if it succeeds and, where that is asked for, complains of nothing."""
    environment = dict(os.environ, ZIG_GLOBAL_CACHE_DIR=str(TOP / "target/zig"), LC_ALL="C")
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not (silent and done.stderr), f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout if silent else done.stdout + done.stderr


def functions():
    """The functions that the library exports."""
    script = (TOP / "libvfio-user.map").read_text()
    names = set(re.findall(r"^\s*((?:vfux?|dma)_\w+);", script, re.M))
    assert len(names) >= 34
    return names


def includes(headers):
    return "".join(f"#include <{header}>\n" for header in headers)
