"""Machines that the library is not for are refused, by cargo and by meson, with a sentence. Nothing is built."""
import pathlib
import subprocess

import pytest

TOP = pathlib.Path(__file__).parents[2]
SENTENCE = "error: libvfio-user needs a little-endian machine"


def compiled(output, *options):
    """rustc with what src/lib.rs says before its first module, which needs no crates. What it makes replaces
    what is there under that name, be it /dev/null."""
    head = (TOP / "src/lib.rs").read_text().partition("\npub mod ")[0]
    command = ["rustc", "--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "-o", output, *options, "-"]
    return subprocess.run(command, input=head, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["s390x-unknown-linux-gnu", "powerpc64-unknown-linux-gnu"])
def test_rustc_refuses_big_endian_machines(target, tmp_path):
    """Without their standard library, rustc would not come to it; so it compiles for this one, with their order of bytes."""
    known = subprocess.run(["rustc", "--print", "cfg", "--target", target], capture_output=True, text=True, check=True).stdout
    [order] = [line for line in known.splitlines() if line.startswith("target_endian=")]
    done = compiled(tmp_path / "made", "-A", "explicit_builtin_cfgs_in_flags", "--cfg", order)
    assert done.returncode != 0 and SENTENCE in done.stderr, done.stderr


def test_rustc_does_not_refuse_this_machine(tmp_path):
    done = compiled(tmp_path / "made")
    assert done.returncode == 0, done.stderr


def test_meson_refuses_big_endian_machines(tmp_path):
    """The compiler is this machine's, as it is meson that speaks."""
    (tmp_path / "cross.ini").write_text(
        "[binaries]\nc = 'cc'\nar = 'ar'\nobjcopy = 'objcopy'\nstrip = 'strip'\n"
        "[properties]\nneeds_exe_wrapper = true\n"
        "[host_machine]\nsystem = 'linux'\ncpu_family = 's390x'\ncpu = 'z13'\nendian = 'big'\n"
    )
    command = ["meson", "setup", tmp_path / "build", TOP, "--cross-file", tmp_path / "cross.ini"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "libvfio-user needs a little-endian machine" in done.stdout, done.stdout
