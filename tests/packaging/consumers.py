#!/usr/bin/env python3
"""Build and install the library in the ways its consumers do, and use it there.

Usage: consumers.py [unittest options]

Every test installs into a folder of its own, compiles a program against what is
there, and runs it. All builds share one Cargo target folder, $CARGO_TARGET_DIR or
a temporary one, so that the Rust code is compiled once for each profile.

Needs meson, ninja, pkg-config, a C compiler, cargo and rustc. Test output of the
tools is shown only when they fail.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
VERSION = re.search(r"version: '([\d.]+)'", (PROJECT / "meson.build").read_text())[1]
# Behind the soname's number come the first two of the package's version.
LIBRARY = "libvfio-user.so.0." + VERSION.rpartition(".")[0]
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]

shared_folder = None


def setUpModule():  # noqa: N802 (unittest's name)
    global shared_folder
    shared_folder = tempfile.TemporaryDirectory(prefix="libvfio-user-packaging-")
    os.environ.setdefault("CARGO_TARGET_DIR", f"{shared_folder.name}/cargo")


def tearDownModule():  # noqa: N802
    shared_folder.cleanup()


def run(command, **environment):
    """Run a command; return what it printed, or fail with it."""
    result = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise AssertionError(f"{command}: status {result.returncode}\n{result.stdout}")
    return result.stdout


def public_names():
    return set(re.findall(r"^\s*(\w+);", (PROJECT / "libvfio-user.map").read_text(), re.MULTILINE))


def exported(library):
    """Names of the symbols that a shared library or an archive defines for others."""
    dynamic = [] if library.suffix == ".a" else ["--dynamic"]
    lines = run(["nm", *dynamic, "--defined-only", "--extern-only", "--format=posix", library]).splitlines()
    symbols = [line.split() for line in lines if len(line.split()) >= 2]
    return {name.partition("@")[0] for name, kind, *_ in symbols if kind != "A"}


# Of a build that is about the library alone.
LIBRARY_ALONE = ["-Dtests=false", "-Dexamples=false", "-Dtools=disabled"]


class Consumer(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="consumer-")))
        self.build = self.folder / "build"

    def meson_install(self, *options, **environment):
        """Set up, compile and install with these options of `meson setup`."""
        log = run(["meson", "setup", *options, self.build, PROJECT])
        self.assertNotIn("WARNING", log)
        run(["meson", "compile", "-C", self.build])
        run(["meson", "install", "-C", self.build], **environment)

    def check_program(self, program, **environment):
        output = run([program, self.folder / "socket"], **environment)
        self.assertEqual(output, "consumer: fine\n")

    def compile(self, *arguments, output="consumer"):
        run(["cc", *WARNINGS, "-o", self.folder / output, *arguments])
        return self.folder / output

    def pkg_config(self, prefix, *options):
        output = run(
            ["pkg-config", *options, "libvfio-user"],
            PKG_CONFIG_PATH=prefix,
        )
        return output.split()

    def check_shared_library(self, libdir):
        library = libdir / "libvfio-user.so"
        self.assertEqual(os.readlink(libdir / "libvfio-user.so.0"), LIBRARY)
        self.assertEqual(library.resolve().name, LIBRARY)
        self.assertIn("[libvfio-user.so.0]", run(["readelf", "--dynamic", "--wide", library]))
        self.assertEqual(exported(library), public_names())

    def check_static_library(self, libdir):
        # Besides, the one that all USDT probes of a program are relative to.
        self.assertEqual(exported(libdir / "libvfio-user.a") - {"_.stapsdt.base"}, public_names())


class Spdk(Consumer):
    """The command lines of SPDK's configure and makefiles."""

    def install_and_link(self, buildtype, kind):
        destination = self.folder / "destination"
        self.meson_install(
            "--buildtype", buildtype, f"-Ddefault_library={kind}", "-Dlibdir=/usr/local/lib",
            DESTDIR=destination,
        )  # fmt: skip
        prefix = destination / "usr/local"
        # SPDK brings -ljson-c for the C library; this one does without.
        json_c = subprocess.run(["pkg-config", "--exists", "json-c"], check=False).returncode == 0
        program = self.compile(
            f"-I{prefix}/include", HERE / "consumer.c",
            f"-L{prefix}/lib", "-lvfio-user", *(["-ljson-c"] if json_c else []),
        )  # fmt: skip
        return prefix / "lib", program

    def test_static(self):
        for buildtype in ("release", "debug"):
            with self.subTest(buildtype):
                libdir, program = self.install_and_link(buildtype, "static")
                self.check_static_library(libdir)
                self.assertEqual(list(libdir.glob("*.so*")), [])
                self.check_program(program)
                shutil.rmtree(self.build)

    def test_shared(self):
        libdir, program = self.install_and_link("release", "shared")
        self.check_shared_library(libdir)
        self.assertEqual(list(libdir.glob("*.a")), [])
        self.check_program(program, LD_LIBRARY_PATH=libdir)


class Subproject(Consumer):
    """A parent project that reads libvfio_user_dep, as QEMU does."""

    def build_parent(self, *options):
        parent = self.folder / "parent"
        shutil.copytree(HERE / "parent", parent)
        shutil.copy(HERE / "consumer.c", parent)
        (parent / "subprojects").mkdir()
        (parent / "subprojects/libvfio-user").symlink_to(PROJECT)
        log = run(["meson", "setup", "--werror", *options, self.build, parent])
        self.assertNotIn("WARNING", log)
        run(["meson", "compile", "-C", self.build])
        self.check_program(self.build / "consumer")
        self.check_program(self.build / "consumer-by-name")

    def test_shared(self):
        self.build_parent("--buildtype=release")

    def test_static(self):
        self.build_parent("--buildtype=release", "-Ddefault_library=static")


class PkgConfig(Consumer):
    def install(self, *options):
        prefix = self.folder / "prefix"
        self.meson_install("--buildtype=release", f"--prefix={prefix}", "-Dlibdir=lib", *LIBRARY_ALONE, *options)
        return prefix

    def check_hardening(self, library):
        """What the loader resolved cannot be written to, no stack is code, and the file is no program."""
        dynamic = run(["readelf", "--dynamic", "--segments", "--wide", library])
        self.assertRegex(dynamic, r"\(FLAGS_1\) .*\bNOW\b")
        self.assertIn("GNU_RELRO", dynamic)
        self.assertRegex(dynamic, r"GNU_STACK .* RW  ")
        self.assertNotIn("TEXTREL", dynamic)
        self.assertEqual(library.stat().st_mode & 0o777, 0o644)

    def test_shared(self):
        prefix = self.install()
        self.check_hardening(prefix / "lib/libvfio-user.so")
        flags = self.pkg_config(prefix / "lib/pkgconfig", "--cflags", "--libs")
        program = self.compile("-DSHORT_INCLUDES", HERE / "consumer.c", *flags)
        self.assertIn("libvfio-user.so.0", run(["readelf", "--dynamic", program]))
        self.check_program(program, LD_LIBRARY_PATH=prefix / "lib")

    def test_tells_what_it_is(self):
        """Which version, and that it is not the C library, whose version is 0.0.1."""
        prefix = self.folder / "prefix"
        run(["meson", "setup", f"--prefix={prefix}", "-Dlibdir=lib", *LIBRARY_ALONE, self.build, PROJECT])
        for folder in (self.build / "meson-uninstalled", self.build / "meson-private"):
            with self.subTest(folder.name):
                for question, answer in {
                    "--modversion": VERSION,
                    "--variable=implementation": "rust",
                    "--variable=api_version": "0.2",
                    "--variable=soversion": "0",
                    "--atleast-version=1.0": None,
                }.items():
                    name = "libvfio-user" + ("-uninstalled" if "uninst" in folder.name else "")
                    output = run(["pkg-config", question, name], PKG_CONFIG_PATH=folder)
                    self.assertEqual(output.strip(), answer or "")

    def test_static(self):
        prefix = self.install("-Ddefault_library=static")
        flags = self.pkg_config(prefix / "lib/pkgconfig", "--static", "--cflags", "--libs")
        program = self.compile("-DSHORT_INCLUDES", HERE / "consumer.c", *flags)
        self.assertNotIn("libvfio-user", run(["readelf", "--dynamic", program]))
        self.check_program(program)
        # Nothing of it is missing where everything is static, either.
        self.check_program(self.compile("-static", HERE / "consumer.c", *flags, output="all-static"))
        self.check_beside_another_rust_library(flags)

    def test_static_and_not_optimized(self):
        """More of Rust's standard library is in what the object is made of, and dropped again."""
        prefix = self.folder / "prefix"
        kind = ["--buildtype=debug", "-Ddefault_library=static"]
        self.meson_install(*kind, f"--prefix={prefix}", "-Dlibdir=lib", *LIBRARY_ALONE)
        self.check_beside_another_rust_library(
            self.pkg_config(prefix / "lib/pkgconfig", "--static", "--cflags", "--libs")
        )

    def check_beside_another_rust_library(self, flags):
        other = self.folder / "libother.a"
        run(["rustc", "--edition=2024", "--crate-type=staticlib", "-o", other, HERE / "other_library.rs"])
        for position, libraries in {"before": [other, *flags], "behind": [*flags, other]}.items():
            program = self.compile(HERE / "two_rust_libraries.c", *libraries, "-lm", output=position)
            self.assertEqual(run([program]), "two libraries: fine\n")

    def test_uninstalled(self):
        run(["meson", "setup", "--buildtype=release", self.build, PROJECT])
        run(["meson", "compile", "-C", self.build])
        flags = self.pkg_config(self.build / "meson-uninstalled", "--cflags", "--libs")
        program = self.compile("-DSHORT_INCLUDES", HERE / "consumer.c", *flags)
        self.check_program(program, LD_LIBRARY_PATH=self.build)

    def test_cmake(self):
        if shutil.which("cmake") is None:
            self.skipTest("CMake is not installed")
        prefix = self.install()
        build = self.folder / "cmake"
        run(["cmake", "-S", HERE / "cmake", "-B", build, f"-DCONSUMER={HERE / 'consumer.c'}", "-DCMAKE_BUILD_TYPE=Release"],
            PKG_CONFIG_PATH=prefix / "lib/pkgconfig")
        run(["cmake", "--build", build])
        self.check_program(build / "consumer", LD_LIBRARY_PATH=prefix / "lib")

    def test_both_in_places_of_their_own(self):
        prefix = self.folder / "opt/vfio"
        self.meson_install(
            *LIBRARY_ALONE, "--buildtype=debugoptimized", "-Ddefault_library=both", f"--prefix={prefix}",
            "-Dlibdir=lib64/here", "-Dincludedir=headers",
        )  # fmt: skip
        libdir = prefix / "lib64/here"
        self.check_shared_library(libdir)
        self.check_static_library(libdir)
        self.assertTrue((prefix / "headers/vfio-user/pci_caps/px.h").is_file())
        pages = {page.name for page in (prefix / "share/man/man3").iterdir()}
        self.assertEqual(pages, {f"{name}.3" for name in {*public_names(), "libvfio-user", "libvfio-user-ext"}})
        flags = self.pkg_config(libdir / "pkgconfig", "--cflags", "--libs")
        self.check_program(self.compile(HERE / "consumer.c", *flags), LD_LIBRARY_PATH=libdir)


class Tools(Consumer):
    """`vfu`, with what belongs beside it."""

    def targets(self, *options):
        run(["meson", "setup", "--buildtype=release", *options, self.build, PROJECT])
        listed = json.loads(run(["meson", "introspect", "--targets", self.build]))
        shutil.rmtree(self.build)
        return {target["name"] for target in listed}

    def test_installed(self):
        destination = self.folder / "destination"
        run(
            ["meson", "setup", "--buildtype=release", "--prefix=/usr", "-Dtests=false", "-Dexamples=false"]
            + [self.build, PROJECT]
        )
        run(["meson", "compile", "-C", self.build])
        self.assertIn("no work to do", run(["ninja", "-C", self.build]))
        run(["meson", "install", "-C", self.build, "--destdir", destination])
        usr = destination / "usr"
        vfu = usr / "bin/vfu"
        self.assertEqual(run([vfu, "--version"]), f"vfu {VERSION}\n")
        sections = run(["readelf", "--sections", "--wide", vfu])
        self.assertIn(".text", sections)
        for absent in (".symtab", ".debug_info", ".debug_line"):
            self.assertNotIn(absent, sections)
        self.assertLess(vfu.stat().st_size, 8 << 20)
        self.assertNotIn("libvfio", run(["readelf", "--dynamic", vfu]))
        # Each as the program itself makes it, in the place where shells and `man` look for it.
        for shell, place in {
            "bash": "bash-completion/completions/vfu",
            "zsh": "zsh/site-functions/_vfu",
            "fish": "fish/vendor_completions.d/vfu.fish",
        }.items():
            self.assertEqual((usr / "share" / place).read_text(), run([vfu, "completions", shell]))
        pages = self.folder / "pages"
        run([vfu, "man", pages])
        self.assertEqual(
            {page.name: page.read_text() for page in pages.iterdir()},
            {page.name: page.read_text() for page in (usr / "share/man/man1").iterdir()},
        )

    def test_wanted(self):
        """With the tests it is built when it is asked for, without them unless it is refused."""
        self.assertNotIn("vfu", self.targets())
        self.assertIn("vfu", self.targets("-Dtools=enabled"))
        self.assertIn("vfu", self.targets("-Dtests=false"))
        self.assertNotIn("vfu", self.targets("-Dtests=false", "-Dtools=disabled"))

    def test_no_part_of_other_projects(self):
        parent = self.folder / "parent"
        shutil.copytree(HERE / "parent", parent)
        shutil.copy(HERE / "consumer.c", parent)
        (parent / "subprojects").mkdir()
        (parent / "subprojects/libvfio-user").symlink_to(PROJECT)
        run(["meson", "setup", "-Dlibvfio-user:tools=enabled", self.build, parent])
        listed = json.loads(run(["meson", "introspect", "--targets", self.build]))
        self.assertNotIn("vfu", {target["name"] for target in listed})


class Crates(Consumer):
    """What `cargo package` packs, which somebody may want to compile with cargo alone."""

    def packed(self, name):
        """The files, without those that Cargo makes."""
        command = ["cargo", "package", "--list", "--offline", "--allow-dirty", "-p", name]
        listed = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout
        return set(listed.split()) - {".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml", "Cargo.toml.orig"}

    def test_no_tests_that_nobody_needs(self):
        """The sources with their unit tests, what those read, the headers, an example, and the notices."""
        library = self.packed("libvfio-user")
        folders = {"src": ".*", "include": r".*\.h", "examples": r"\w+\.rs", "tests/hand-over": r".*\.image"}
        others = {name for name in library if not any(re.fullmatch(f"{f}/{n}", name) for f, n in folders.items())}
        notices = {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"}
        self.assertEqual(others, notices | {"build.rs", "libvfio-user.map"})
        tool = {name for name in self.packed("vfu") if not name.startswith("src/")}
        self.assertEqual(tool, {"LICENSE", "README.md"})

    def test_compiles_by_itself(self):
        """Cargo unpacks what it packed and compiles it there."""
        manifest = PROJECT / "Cargo.toml"
        run(["cargo", "package", "--offline", "--allow-dirty", "--manifest-path", manifest, "-p", "libvfio-user"])


class Build(Consumer):
    def test_nothing_to_do_the_second_time(self):
        run(["meson", "setup", "--buildtype=release", self.build, PROJECT])
        run(["meson", "compile", "-C", self.build])
        self.assertIn("no work to do", run(["ninja", "-C", self.build]))

    def test_works_without_network(self):
        """With the crates there, a build that can't reach the network is like any other."""
        run(["cargo", "fetch", "--locked", "--manifest-path", PROJECT / "Cargo.toml"])
        run(["meson", "setup", "--buildtype=debug", *LIBRARY_ALONE, self.build, PROJECT])
        run(
            ["meson", "compile", "-C", self.build],
            CARGO_HTTP_PROXY="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9",
            CARGO_TARGET_DIR=self.folder / "fresh",
        )  # fmt: skip

    def test_says_what_is_missing(self):
        """Without Rust in PATH the set-up ends with a sentence that says so."""
        tools = self.folder / "tools"
        tools.mkdir()
        for tool in ("meson", "ninja", "cc", "ar", "ld", "as", "objcopy", "pkg-config", "python3", "env", "sh"):
            (tools / tool).symlink_to(shutil.which(tool))
        with self.assertRaisesRegex(AssertionError, "cargo and rustc .* must be in PATH"):
            run(["meson", "setup", self.build, PROJECT], PATH=tools)


if __name__ == "__main__":
    program = unittest.main(verbosity=2, exit=False)
    bad = len(program.result.failures) + len(program.result.errors)
    skipped = len(program.result.skipped)
    good = program.result.testsRun - bad - skipped
    print(f"{good} passed, {bad} failed, {skipped} skipped")
    if "TEST_RESULTS" in os.environ:
        counts = {"passed": good, "failed": bad, "skipped": skipped}
        pathlib.Path(os.environ["TEST_RESULTS"], "packaging.counts.json").write_text(json.dumps(counts))
    sys.exit(bad != 0)
