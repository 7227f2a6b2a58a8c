"""The headers in every C and C++ that their users have: no compiler finds anything to say about them."""

import pathlib

import pytest

from toolbox import HEADERS, INCLUDE, TOP, includes, need, run, zig

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wundef", "-Werror"]
C = ["c99", "c11", "c17", "gnu99", "gnu11", "gnu17", "gnu2x"]
CXX = ["c++11", "c++14", "c++17", "c++20", "c++2b", "gnu++11", "gnu++20"]


def linux_headers(folder):
    """The kernel's headers without glibc's: what a distribution with musl has in its place."""
    for name in ("linux", "asm", "asm-generic"):
        places = [path for path in pathlib.Path("/usr/include").glob(f"{name}") if path.is_dir()]
        places += pathlib.Path("/usr/include").glob(f"*-linux-gnu/{name}")
        assert places, f"no kernel headers {name}"
        (folder / name).symlink_to(places[0])
    return folder


def gcc(folder):
    return [need("gcc")]


def gxx(folder):
    return [need("g++")]


def clang(folder):
    return [need("clang")]


def clangxx(folder):
    return [need("clang++")]


def musl_gcc(folder):
    headers = folder / "kernel"
    headers.mkdir()
    return [need("musl-gcc"), "-isystem", linux_headers(headers)]


def zig_for(compiler, target):
    def command(folder):
        return [*zig(), compiler, "-target", target]

    command.__name__ = f"zig_{compiler}_{target}"
    return command


TARGETS = ["x86_64-linux-gnu", "x86_64-linux-musl", "aarch64-linux-musl"]
LANGUAGES = [(compiler, "c", C) for compiler in (gcc, clang, musl_gcc)]
LANGUAGES += [(compiler, "c++", CXX) for compiler in (gxx, clangxx)]
LANGUAGES += [(zig_for("cc", target), "c", ["c99", "gnu2x"]) for target in TARGETS]
LANGUAGES += [(zig_for("c++", target), "c++", ["c++11", "c++2b"]) for target in TARGETS]
EACH = pytest.mark.parametrize(
    "compiler, language, standard",
    [pytest.param(compiler, language, standard, id=f"{compiler.__name__}-{standard}")
     for compiler, language, standards in LANGUAGES for standard in standards])


def check(command, language, standard, folder, text):
    (folder / "text").write_text(text + "int main(void) { return 0; }\n")
    run([*command, "-x", language, f"-std={standard}", *WARNINGS, "-I", INCLUDE, "-c", "text", "-o", "object"], folder)


@EACH
def test_the_headers_compile_together_in_any_order(compiler, language, standard, tmp_path):
    command = compiler(tmp_path)
    for headers in (HEADERS, HEADERS[::-1]):
        check(command, language, standard, tmp_path, includes(headers))


@EACH
def test_each_header_compiles_alone_and_twice(compiler, language, standard, tmp_path):
    command = compiler(tmp_path)
    for header in HEADERS:
        check(command, language, standard, tmp_path, includes([header, header]))


@pytest.mark.parametrize("standard", CXX)
@pytest.mark.parametrize("compiler", [gxx, clangxx])
def test_the_headers_compile_within_a_linkage_block(compiler, standard, tmp_path):
    """As programs do that know headers of C as having none of their own."""
    check(compiler(tmp_path), "c++", standard, tmp_path, 'extern "C" {\n' + includes(HEADERS) + "}\n")


# Strict ISO C hides loff_t: a program names the type otherwise there.
@pytest.mark.parametrize("compiler, options", [
    (clang, ["-std=gnu11"]), (clang, ["-std=c11", "-Dloff_t=__loff_t"]), (gcc, ["-std=c99", "-Dloff_t=__loff_t"]),
    (musl_gcc, ["-std=gnu11", "-Dloff_t=off_t"]), (musl_gcc, ["-std=c99", "-Dloff_t=off_t"]),
    (zig_for("cc", "x86_64-linux-musl"), ["-std=gnu11", "-Dloff_t=off_t"]),
])
def test_the_interface_is_the_recorded_one(compiler, options, tmp_path):
    run([*compiler(tmp_path), *options, "-Wall", "-Wextra", "-Werror", "-I", INCLUDE,
         TOP / "tests/abi/interface.c", "-o", "interface"], tmp_path)
    run(["./interface"], tmp_path)


def cross(machine):
    def command(folder):
        return [need(f"{machine}-gcc", f"Debian's package gcc-{machine.replace('_', '-')} has it")]

    command.__name__ = f"{machine}_gcc"
    return command


MACHINES = ["aarch64", "i686", "loongarch64", "powerpc64le", "riscv64", "x86_64"]
OTHERS = [cross(f"{machine}-linux-gnu") for machine in MACHINES] + [cross("arm-linux-gnueabihf")]
OTHERS += [zig_for("cc", f"{machine}-linux-gnu") for machine in MACHINES if machine != "i686"]
OTHERS += [zig_for("cc", target) for target in ("x86-linux-gnu", "x86-linux-musl", "arm-linux-gnueabihf")]


@pytest.mark.parametrize("compiler", OTHERS)
def test_layouts_are_the_recorded_ones_on_other_machines(compiler, tmp_path):
    """All that can be told without running it, the bit-fields' places are not."""
    musl = ["-Dloff_t=off_t"] if "musl" in compiler.__name__ else []
    run([*compiler(tmp_path), "-std=gnu11", *musl, "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-c",
         TOP / "tests/abi/interface.c", "-o", "object"], tmp_path)


@pytest.mark.parametrize("compiler", [gcc, clang, musl_gcc, zig_for("cc", "aarch64-linux-musl")])
def test_calls_of_both_generations_compile(compiler, tmp_path):
    """Where the names are loff_t or off_t alike: a callback with an off_t is one of these headers' type."""
    run([*compiler(tmp_path), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-c",
         TOP / "tests/abi/compat.c", "-o", "object"], tmp_path)
