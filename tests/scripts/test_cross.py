"""What scripts/cross says where a machine's tools are missing."""

import os
import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/cross"


def cross(folder, *words, programs=()):
    """Runs it where only these programs can be found, besides those that any system has."""
    for name in ("bash", "dirname", "sed", "uname", *programs):
        (folder / name).symlink_to(shutil.which(name) or "/bin/true")
    return subprocess.run(["bash", SCRIPT, *words], env=dict(os.environ, PATH=str(folder)), capture_output=True, text=True,
                          timeout=60)


@pytest.mark.parametrize("machine, prefix, qemu", [
    ("aarch64", "aarch64-linux-gnu", "aarch64"), ("armhf", "arm-linux-gnueabihf", "arm"), ("i686", "i686-linux-gnu", "i386"),
    ("loong64", "loongarch64-linux-gnu", "loongarch64"), ("ppc64le", "powerpc64le-linux-gnu", "ppc64le"),
    ("riscv64", "riscv64-linux-gnu", "riscv64"),
])
@pytest.mark.parametrize("missing", ["compiler", "qemu", "rustc"])
def test_it_is_skipped_by_the_name_of_what_is_missing(machine, prefix, qemu, missing, tmp_path):
    needed = {"compiler": f"{prefix}-gcc", "qemu": f"qemu-{qemu}-static", "rustc": "rustc"}
    there = [name for what, name in needed.items() if what not in ("rustc", missing)]
    done = cross(tmp_path, machine, programs=there)
    assert done.returncode == 77, done.stderr
    assert done.stdout.startswith(f"{machine}: skipped: no {needed[missing]}"), done.stdout


@pytest.mark.parametrize("emulator", ["qemu-aarch64-static", "qemu-aarch64"])
def test_the_emulator_has_either_name(emulator, tmp_path):
    """Debian 14 has no program whose name ends in -static."""
    done = cross(tmp_path, "aarch64", programs=["aarch64-linux-gnu-gcc", emulator])
    assert done.returncode == 77, done.stderr
    assert done.stdout.startswith("aarch64: skipped: no rustc"), done.stdout


def test_an_unknown_machine_is_told_of_those_that_there_are(tmp_path):
    done = cross(tmp_path, "vax")
    assert done.returncode == 2 and "aarch64, armhf, i686, loong64, ppc64le, riscv64; and musl" in done.stderr


def test_a_rustc_that_is_too_old_is_not_taken(tmp_path):
    """Debian 12 has one, and its source, in the main suite."""
    source = tmp_path / "lib/rustlib/src/rust/library/std/Cargo.toml"
    source.parent.mkdir(parents=True)
    source.touch()
    (tmp_path / "rustc").write_text(f"""#!/bin/sh
case $1 in
    --version) echo "rustc 1.85.0" ;;
    --print) echo {tmp_path} ;;
esac
""")
    (tmp_path / "rustc").chmod(0o755)
    done = cross(tmp_path, "aarch64", programs=["aarch64-linux-gnu-gcc", "qemu-aarch64-static"])
    assert done.returncode == 77, done.stderr
    assert done.stdout.startswith("aarch64: skipped: no rustc 1."), done.stdout
