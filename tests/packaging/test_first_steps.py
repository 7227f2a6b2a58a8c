"""README's "Using it" and "A first device", followed to the letter on the machine that they are about.

That is Debian with the fewest packages, in a chroot, with a Rust that is already there: this machine's, together with
its crates and what the tests before have compiled, so that cargo finds its work done. Everything else happens there. Skipped
where debootstrap, its network or root cannot be had. VFU_SUITES="bookworm trixie" tries
both releases of Debian; by default it is the older.
"""
import os
import pathlib
import re
import tempfile

import pytest

from chroot import TOP, Chroot, Unavailable

README = (TOP / "README.md").read_text()
SUITES = os.environ.get("VFU_SUITES", "bookworm").split()
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or TOP / "target" / "packaging")


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)[1]


def commands(text):
    """The indented blocks of a section, but for those in its program."""
    text = re.sub(r"^```c\n.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]


USING, STATIC = [block for block in commands(section("Using it")) if "cc device.c" in block]
[LOOKING] = commands(section("A first device"))
[DEVICE] = re.findall(r"^```c\n(.*?)^```", section("A first device"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", params=SUITES)
def system(request):
    with tempfile.TemporaryDirectory(prefix="first-steps-") as folder:
        try:
            chroot = Chroot(request.param, folder)
        except Unavailable as reason:
            pytest.skip(str(reason))
        chroot.write("device.c", DEVICE)
        yield chroot


@pytest.fixture(scope="module")
def with_rust(system):
    TARGET.mkdir(parents=True, exist_ok=True)
    try:
        system.offer_rust(TARGET)
    except Unavailable as reason:
        pytest.skip(str(reason))
    return system


def drive(system):
    """The device is started and looked at, as soon as it listens."""
    start, look = LOOKING.splitlines()
    shown = system.run(f"{start}\nuntil {look} 2>/dev/null; do kill -0 $!; done\nwait $!")
    assert re.search(r"BAR0 .*0x10\b", shown), shown


def test_without_a_rust_it_is_said_where_there_is_one(system):
    """debootstrap's system has the main suite alone, whose Rust is too old in Debian 12."""
    if system.root.name != "bookworm":
        pytest.skip(f"the main suite of {system.root.name} has a Rust that is new enough")
    told = system.try_out("scripts/install-deps build")
    assert told.returncode == 1, told.stdout
    assert f"{system.root.name}-security" in told.stdout and "Nothing has been installed" in told.stdout, told.stdout
    system.run("! command -v gcc && ! command -v meson")


def test_using_it(with_rust):
    """A broken package index beside the good one ends nothing; of dpkg-dev, which tells meson of Debian, there is none."""
    broken = with_rust.root / "etc/apt/sources.list.d/broken.list"
    broken.write_text("deb [trusted=yes] file:/nowhere stable main\n")
    shown = with_rust.run(USING)
    broken.unlink()
    assert "not all package indexes can be had" in shown, shown
    with_rust.run("! command -v dpkg-architecture")
    assert with_rust.run("command -v vfu").strip() == "/usr/local/bin/vfu"
    with_rust.run("test -e /usr/local/share/man/man1/vfu.1 && test ! -e /usr/local/lib64")
    drive(with_rust)


def test_a_static_link_where_both_kinds_are(with_rust):
    with_rust.run("meson configure build -Ddefault_library=both\nmeson compile -C build\nmeson install -C build && ldconfig")
    with_rust.run("test -e /usr/local/lib/libvfio-user.so && test -e /usr/local/lib/libvfio-user.a")
    with_rust.run(STATIC)
    assert "libvfio-user" not in with_rust.run("readelf --dynamic device")
    drive(with_rust)


def test_using_it_with_dpkg_dev(with_rust):
    with_rust.run("ninja -C build uninstall >/dev/null && rm -r build device && ldconfig && ! command -v vfu")
    with_rust.run("apt-get install -y -qq --no-install-recommends dpkg-dev >/dev/null && command -v dpkg-architecture")
    with_rust.run(USING)
    assert "libvfio-user.so.0" in with_rust.run("readelf --dynamic device")
    drive(with_rust)
