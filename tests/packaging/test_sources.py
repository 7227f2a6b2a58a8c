"""The source, as those who pack it get it: Debian's source package, RPM's spec file, meson's wrap file. Nothing is compiled, and
the crates are left out; test_distributions.py takes both.
"""
import shutil

import pytest

from sources import HERE, TOP, VERSION, needs, run

TREE = f"libvfio-user-{VERSION}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    run(TOP / "scripts/source-package", "--without-crates", folder)
    return folder


def test_debian_source(sources):
    """It is made of the archive and debian/, and changes nothing of the first; lintian finds no errors in it."""
    needs("dpkg-source", "lintian")
    run("dpkg-source", "--build", TREE, cwd=sources)
    [description] = sources.glob("*.dsc")
    text = description.read_text()
    for archive in (f"{VERSION}.orig.tar.xz", f"{VERSION}-1.debian.tar.xz"):
        assert f" libvfio-user_{archive}" in text
    run("lintian", "--fail-on", "error", "--allow-root", description)


def test_rpm_spec(sources):
    """rpm can read it, and it names the packages and archives that there are."""
    needs("rpmspec")
    spec = TOP / "packages/libvfio-user.spec"
    names = run("rpmspec", "--query", "--queryformat", "%{name} %{version}\n", spec).split("\n")[:-1]
    assert {name.removesuffix(f" {VERSION}") for name in names} == {
        "libvfio-user", "libvfio-user-devel", "libvfio-user-static", "libvfio-user-doc", "vfu",
    }  # fmt: skip
    lines = run("rpmspec", "--parse", spec).splitlines()
    archives = [line.split()[1] for line in lines if line.startswith("Source")]
    assert archives == [f"{TREE}.tar.xz", f"{TREE}-vendor.tar.xz"]
    assert (sources / archives[0]).is_file()


def test_wrap(sources, tmp_path):
    """A project that has the wrap file and the archive, and nothing else of the library's, is set up with it."""
    project = tmp_path / "project"
    (project / "subprojects/packagefiles").mkdir(parents=True)
    shutil.copy(TOP / "packages/libvfio-user.wrap", project / "subprojects")
    shutil.copy(sources / f"{TREE}.tar.xz", project / "subprojects/packagefiles")
    (project / "meson.build").write_text(
        "project('project', 'c')\nlibrary = dependency('libvfio-user', version: '>= 1.0')\n"
        "executable('consumer', 'consumer.c', dependencies: library)\n"
    )
    shutil.copy(HERE / "consumer.c", project)
    # No installed library is found first.
    shown = run("meson", "setup", tmp_path / "build", project, environment={"PKG_CONFIG_LIBDIR": str(tmp_path)})
    assert f"Dependency libvfio-user found: YES {VERSION} (overridden)" in shown, shown
