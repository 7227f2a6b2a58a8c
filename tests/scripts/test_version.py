"""One version: whoever asks, this package is the same one. Read from the sources, so that nothing has to be built."""
import datetime
import pathlib
import re
import tomllib

import pytest

TOP = pathlib.Path(__file__).parents[2]


def toml(name):
    return tomllib.loads((TOP / name).read_text())


def only(pattern, name):
    """What the pattern finds in a file, which has it once."""
    (found,) = re.findall(pattern, (TOP / name).read_text(), re.MULTILINE)
    return found


VERSION = toml("Cargo.toml")["workspace"]["package"]["version"]


def test_a_release_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)


@pytest.mark.parametrize("name", ["Cargo.toml", "tools/vfu/Cargo.toml"])
def test_packages_have_the_version_of_all(name):
    assert toml(name)["package"]["version"] == {"workspace": True}


def test_vfu_takes_this_library():
    assert toml("tools/vfu/Cargo.toml")["dependencies"]["libvfio-user"]["version"] == VERSION


@pytest.mark.parametrize("name", ["Cargo.lock", "fuzz/Cargo.lock", "tests/loom/Cargo.lock"])
def test_lock_files(name):
    ours = {package["version"] for package in toml(name)["package"] if package["name"] in ("libvfio-user", "vfu")}
    assert ours == {VERSION}


def test_meson():
    """And so pkg-config, which tests/packaging asks."""
    assert only(r"^  version: '([\d.]+)',$", "meson.build") == VERSION


def test_packages():
    """Debian's revision, after the hyphen, is the package's own."""
    assert re.match(r"libvfio-user \(([\d.]+)-\d+\)", (TOP / "debian/changelog").read_text())[1] == VERSION
    assert only(r"^Version: +(\S+)$", "packages/libvfio-user.spec") == VERSION
    assert only(r"^directory = libvfio-user-(\S+)$", "packages/libvfio-user.wrap") == VERSION
    assert only(r"^source_filename = libvfio-user-(\S+)\.tar\.xz$", "packages/libvfio-user.wrap") == VERSION


def test_api():
    numbers = [only(rf"^#define LIB_VFIO_USER_{part} (\d+)$", "include/libvfio-user.h") for part in ("MAJOR", "MINOR")]
    assert only(r"^api_version = '([\d.]+)'$", "meson.build") == ".".join(numbers)


def test_soname():
    number = only(r"^soversion = '(\d+)'$", "meson.build")
    assert only(r"-soname,libvfio-user\.so\.(\d+)\"", "build.rs") == number
    # The nodes of the linker script follow on one another within one soname; the first has its number.
    assert re.search(r"^LIBVFIO_USER_(\d+) \{", (TOP / "libvfio-user.map").read_text(), re.MULTILINE)[1] == number


def test_changelog_has_the_release_with_its_date():
    headings = re.findall(r"^## (.*)$", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    version, date = re.fullmatch(r"(\S+) - (\S+)", released[0]).groups()
    assert version == VERSION
    assert datetime.date.fromisoformat(date).isoformat() == date
    assert only(r"^release_date = '([\d-]+)'$", "meson.build") == date
    assert headings.index(released[0]) == len(headings) - len(released), "what is unreleased stands above"
