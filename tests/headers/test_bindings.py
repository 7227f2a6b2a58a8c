"""The headers as those tools read them that make bindings for other languages."""

import pathlib
import re
import sysconfig

import pytest

from toolbox import HEADERS, INCLUDE, functions, includes, need, run

# What SWIG says of any C: that a flexible array cannot be set (462), that it has no name to give to a structure without
# one (503), and that a member is called as a keyword of Python is (314).
KNOWN_LIMITS = "314,462,503"


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """What bindgen makes of the headers, in a file."""
    need("bindgen", "`cargo install bindgen-cli`, or " + "scripts/install-deps test")
    folder = tmp_path_factory.mktemp("bindgen")
    (folder / "all.h").write_text(includes(HEADERS))
    run(["bindgen", "all.h", "-o", "bindings.rs", "--allowlist-file", f"{INCLUDE}/.*", "--", f"-I{INCLUDE}"], folder)
    return folder / "bindings.rs"


def test_bindgen_finds_every_function(bound):
    text = bound.read_text()
    assert {name for name in functions() if not re.search(rf"pub fn {name}\b", text)} == set()


def test_what_bindgen_makes_has_the_layout_of_c(bound):
    """It generates the sizes and offsets that Clang told it: as tests, or as assertions to be compiled."""
    run([need("rustc"), "--edition", "2021", "--cap-lints", "allow", "--test", bound, "-o", "layouts"], bound.parent)
    out = run(["./layouts"], bound.parent)
    checks = int(re.search(r"(\d+) passed", out)[1]) + bound.read_text().count("size_of::<")
    assert checks > 50


# How programs give C with extensions of GNU to pycparser, which knows none: those are the system headers', but for
# __attribute__ and __extension__.
PLAIN = ["__attribute__(x)=", "__extension__=", "__asm__(x)=", "__inline=", "__restrict=", "__signed__=signed",
         "__builtin_va_list=int"]


@pytest.mark.parametrize("standard", ["c99", "gnu11"])
def test_pycparser_parses_all_of_it(standard, tmp_path):
    pycparser = pytest.importorskip("pycparser", reason="no pycparser: Debian's package is python3-pycparser")
    (tmp_path / "all.c").write_text(includes(HEADERS))
    text = run(["gcc", "-E", f"-std={standard}", f"-I{INCLUDE}", *(f"-D{plain}" for plain in PLAIN), "all.c"], tmp_path)
    tree = pycparser.c_parser.CParser().parse(text, "all.c")
    declared = {node.name: node for node in tree.ext if getattr(node, "name", None)}
    assert functions() - declared.keys() == set()
    offset = declared["vfu_region_access_cb_t"].type.args.params[3]
    assert offset.name == "offset" and offset.type.type.names[0] in ("loff_t", "__loff_t")


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    """What SWIG makes of the headers, a module for Python, in a folder."""
    need("swig")
    folder = tmp_path_factory.mktemp("swig")
    (folder / "vfu.i").write_text(
        "%module vfu\n%{\n" + includes(HEADERS) + "%}\n"
        "#define __attribute__(x)\n#define __extension__\n%include <stdint.i>\n"
        # SWIG takes a flexible array of char for a string that can be set.
        "%immutable vfio_user_bitmap::data;\n"
        + "".join(f'%include "{header}"\n' for header in HEADERS))
    said = run(["swig", f"-w{KNOWN_LIMITS}", "-python", f"-I{INCLUDE}", "vfu.i"], folder, silent=False)
    assert "Warning" not in said and "Error" not in said, said
    return folder


def test_swig_wraps_every_function(wrapped):
    text = (wrapped / "vfu.py").read_text()
    assert {name for name in functions() if f"def {name}(" not in text} == set()


def test_what_swig_makes_compiles(wrapped):
    python = pathlib.Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").exists():
        pytest.skip("no Python.h: Debian's package is libpython3-dev")
    run([need("gcc"), f"-I{python}", f"-I{INCLUDE}", "-c", "vfu_wrap.c", "-o", "wrap.o"], wrapped, silent=False)
