"""The packages for Debian and in RPM's form: built without a network from crates in a folder, looked at, and used.
What takes no compiling is in test_sources.py.

Skipped where a tool is missing. Nothing here depends on how well the code is optimized, so that is done without.
"""
import os
import re
import shutil
import subprocess

import pytest

from sources import HERE, TOP, VERSION, needs, run


@pytest.fixture(scope="module")
def sources():
    """What scripts/source-package makes."""
    # Also crates that are never compiled here, which the tests before have not fetched.
    if subprocess.run(["cargo", "fetch", "--locked", "--quiet"], cwd=TOP, check=False).returncode != 0:
        pytest.skip("the crates of all platforms cannot be fetched")
    # Always the same one, so that what has been compiled there need not be the next time.
    folder = TOP / "target/packages"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if entry.name != "cargo":
                shutil.rmtree(entry)
        else:
            entry.unlink()
    run(TOP / "scripts/source-package", folder)
    return folder


@pytest.fixture(scope="module")
def quick(sources):
    """An environment in which both kinds of package compile the crates once, and quickly."""
    # The compiler itself: a package is built with a home folder that no rustup knows.
    sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
    fast = {"LTO": "off", "CODEGEN_UNITS": "16", "OPT_LEVEL": "1", "DEBUG": "0"}
    profiles = {f"CARGO_PROFILE_{name}_{key}": value for name in ("RELEASE", "TOOLS") for key, value in fast.items()}
    return {**profiles, "PATH": f"{sysroot}/bin:{os.environ['PATH']}", "CARGO_TARGET_DIR": str(sources / "cargo")}


def check_library(library):
    dynamic = run("readelf", "--dynamic", "--segments", "--wide", library)
    assert re.search(r"\(FLAGS_1\) .*\bNOW\b", dynamic) and "GNU_RELRO" in dynamic, dynamic
    assert re.search(r"GNU_STACK .* RW  ", dynamic), dynamic
    assert "[libvfio-user.so.0]" in dynamic
    # The probes are still there, although what debuggers want has been taken out.
    assert "stapsdt" in run("readelf", "--notes", "--wide", library)


# --- Debian -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def debs(sources, quick):
    """The folder with the packages, by name."""
    needs("dpkg-buildpackage", "dh")
    tree = sources / f"libvfio-user-{VERSION}"
    # -d: Rust need not be a package here.
    run("dpkg-buildpackage", "-d", "-us", "-uc", cwd=tree, environment=quick)
    return {path.name.partition("_")[0]: path for path in sources.glob("*.deb")}


@pytest.fixture(scope="module")
def root(debs, tmp_path_factory):
    """All of them, unpacked."""
    folder = tmp_path_factory.mktemp("root")
    for package in debs.values():
        run("dpkg-deb", "--extract", package, folder)
    return folder


def field(package, name):
    return run("dpkg-deb", "--field", package, name).strip()


def test_debian_packages(debs):
    names = {"libvfio-user0", "libvfio-user-dev", "vfu", "libvfio-user-doc"}
    assert {name for name in debs if not name.endswith("-dbgsym")} == names
    for name in names:
        assert field(debs[name], "Version").startswith(f"{VERSION}-")
    for name in ("Conflicts", "Replaces", "Provides"):
        assert field(debs["libvfio-user0"], name) == "libvfio-user"
    assert field(debs["libvfio-user-dev"], "Depends") == f"libvfio-user0 (= {field(debs['libvfio-user0'], 'Version')})"
    # The library takes nothing but the C library, and what unwinds.
    depends = {word.split()[0] for word in field(debs["libvfio-user0"], "Depends").split(", ")}
    assert depends == {"libc6", "libgcc-s1"}


def test_debian_lintian(debs, sources):
    needs("lintian")
    [changes] = sources.glob("*.changes")
    run("lintian", "--fail-on", "error", "--allow-root", changes)


def test_debian_files(root):
    [library] = root.glob("usr/lib/*/libvfio-user.so.0.*")
    check_library(library)
    assert library.stat().st_mode & 0o777 == 0o644
    for name in ("bin/vfu", "include/vfio-user/libvfio-user.h", "share/man/man1/vfu.1.gz", "share/man/man3/libvfio-user.3.gz", "share/doc/vfu/copyright",
                 "share/zsh/vendor-completions/_vfu", "share/doc/libvfio-user-doc/examples/null.c"):
        assert (root / "usr" / name).exists(), name
    for package in ("libvfio-user0", "vfu"):
        [notices] = (root / "usr/share/doc" / package).glob("THIRD-PARTY.md*")
        assert notices.stat().st_size > 1000
    assert run(root / "usr/bin/vfu", "--version") == f"vfu {VERSION}\n"


def test_debian_program(root, tmp_path):
    """A program is compiled with what -dev has, and runs with the library."""
    [libdir] = {path.parent for path in root.glob("usr/lib/*/libvfio-user.so")}
    environment = {"PKG_CONFIG_LIBDIR": str(libdir / "pkgconfig"), "PKG_CONFIG_SYSROOT_DIR": str(root)}
    flags = run("pkg-config", "--cflags", "--libs", "libvfio-user", environment=environment).split()
    run("cc", "-o", tmp_path / "consumer", HERE / "consumer.c", *flags)
    shown = run(tmp_path / "consumer", tmp_path / "socket", environment={"LD_LIBRARY_PATH": str(libdir)})
    assert shown == "consumer: fine\n"


# --- RPM ----------------------------------------------------------------------------------

def test_rpm(sources, quick):
    needs("rpmbuild")
    definitions = {"_sourcedir": sources, "_builddir": sources, "_rpmdir": sources / "rpms", "_topdir": sources / "rpm",
                   "_tmppath": sources}
    options = [word for name, value in definitions.items() for word in ("--define", f"{name} {value}")]
    # --nodeps: what is installed here is not known to rpm. In the folder where Debian's was built, so that the crates are compiled.
    run("rpmbuild", *options, "-bb", "--nodeps", TOP / "packages/libvfio-user.spec", environment=quick)
    packages = {path.name.rpartition(f"-{VERSION}-")[0]: path for path in (sources / "rpms").glob("*/*.rpm")}
    names = {"libvfio-user", "libvfio-user-devel", "libvfio-user-static", "libvfio-user-doc", "vfu"}
    assert {name for name in packages if "-debug" not in name} == names
    assert "libvfio-user.so.0" in run("rpm", "--query", "--provides", "--package", packages["libvfio-user"])
    # By the name that the spec file gives; whether rpm looks behind the link to the library is the distribution's.
    needed = run("rpm", "--query", "--requires", "--package", packages["libvfio-user-devel"])
    assert re.search(rf"^libvfio-user(\(.*\))? = {VERSION}-", needed, re.MULTILINE), needed
