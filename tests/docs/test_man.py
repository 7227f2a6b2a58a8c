"""The manual pages: there is one for each function, tools take them, and their examples compile."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
VFU = TOP / "target/debug/vfu"
FUNCTIONS = re.findall(r"^    (\w+);$", (TOP / "libvfio-user.map").read_text(), re.M)
HEADERS = {name: (TOP / "include" / name).read_text() for name in ("libvfio-user.h", "libvfio-user-ext.h")}
SECTIONS = ["NAME", "LIBRARY", "SYNOPSIS", "DESCRIPTION"]


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("man3")
    subprocess.run([TOP / "scripts/man-pages", "--date", "2026-01-02", "--version", "1.2.3", "--output", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def every_page(pages, tmp_path_factory):
    """Those of section 3, and those of `vfu`."""
    folder = tmp_path_factory.mktemp("man1")
    subprocess.run([VFU, "man", folder], check=True)
    found = sorted([*pages.iterdir(), *folder.iterdir()])
    assert len(found) > len(FUNCTIONS) + 10
    return found


def section(page, title):
    return re.search(rf"^\.SH {title}\n(.*?)(?=^\.SH |\Z)", page.read_text(), re.M | re.S)[1]


def code(text):
    """The lines of an example as a reader sees them, from .EX to .EE."""
    source = re.search(r"^\.EX\n(.*?)^\.EE$", text, re.M | re.S)[1]
    for written, meant in {r"\&": "", r"\-": "-", r"\(aq": "'", r"\(ga": "`", r"\(ha": "^", r"\(ti": "~"}.items():
        source = source.replace(written, meant)
    return source.replace(r"\e", "\\")


def words(text):
    return [word.lower() for word in re.findall(r"\w+", text)]


def one_line(text):
    return re.sub(r"\s+", " ", text)


def test_every_function_has_a_page(pages):
    assert len(FUNCTIONS) >= 62
    assert {page.name for page in pages.iterdir()} == {
        f"{name}.3" for name in [*FUNCTIONS, "libvfio-user", "libvfio-user-ext"]}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_page_says_what_the_header_says(pages, name):
    page = pages / f"{name}.3"
    text = page.read_text()
    assert re.findall(r"^\.SH (.*)$", text, re.M)[:4] == SECTIONS
    [header] = [header for header, content in HEADERS.items() if re.search(rf"^\w[\w *]*\b{name}\(", content, re.M)]
    synopsis = code(section(page, "SYNOPSIS"))
    assert f"#include <vfio-user/{header}>" in synopsis
    prototype = synopsis.split("\n\n", 1)[1]
    assert one_line(prototype) in one_line(HEADERS[header])
    # Every word of the comment, but for those that say where in the file something is.
    declaration = re.escape(prototype.splitlines()[0].split("(")[0])
    comment = re.search(rf"/\*\*((?:(?!\*/).)*)\*/\n{declaration}\(", HEADERS[header], re.S)[1]
    comment = re.sub(r"see the top of [^.]*?(file|libvfio-user\.h)|Threads: |\.h\b", " ", re.sub(r"^ \*", "", comment, flags=re.M))
    shown = set(words(re.sub(r"\\f.|\\[%&]|\\\(..", " ", text.replace(r"\-", "-"))))
    assert [word for word in words(comment) if word not in shown] == []


@pytest.mark.parametrize("name", [*FUNCTIONS, "libvfio-user", "libvfio-user-ext"])
def test_an_example_compiles(pages, tmp_path, name):
    source = code(section(pages / f"{name}.3", "EXAMPLES"))
    if name in FUNCTIONS:
        assert f"{name}(" in source
    (tmp_path / "example.c").write_text(source)
    include = tmp_path / "include"
    include.mkdir()
    (include / "vfio-user").symlink_to(TOP / "include")
    compiled = subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{include}", "-c", tmp_path / "example.c",
         "-o", tmp_path / "example.o"], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr


def test_references_lead_somewhere(every_page):
    there = {page.name for page in every_page}
    for page in every_page:
        for name, number in re.findall(r"\\fB([\w\\-]+)\\f[PR]\\?(?:fR)?\((\d)\)", page.read_text()):
            assert f"{name.replace(chr(92), '')}.{number}" in there, f"{page.name}: {name}({number})"


@pytest.mark.parametrize("command", [
    ["mandoc", "-T", "lint", "-W", "warning"],
    # As `man -l --warnings` calls it.
    ["groff", "-man", "-t", "-ww", "-z", "-K", "utf8", "-T", "utf8"],
], ids=["mandoc", "groff"])
def test_tools_have_nothing_to_say(every_page, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    # A page by itself: groff takes several for one.
    said = [subprocess.run([*command, page], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
            for page in every_page]
    assert "".join(said) == ""


def test_dates_are_that_of_the_release(every_page):
    dates = dict(re.findall(r"(release_date|RELEASE_DATE: &str) = ['\"]([\d-]+)['\"]",
                            (TOP / "meson.build").read_text() + (TOP / "tools/vfu/src/commands/shell.rs").read_text()))
    assert len(dates) == 2 and len(set(dates.values())) == 1
    if dated := re.search(r"^## \[?[\d.]+\]? .*?(\d{4}-\d\d-\d\d)", (TOP / "CHANGELOG.md").read_text(), re.M):
        assert dated[1] in dates.values()


def test_the_build_makes_the_same(pages):
    build = pathlib.Path(os.environ.get("VFU_EXAMPLES") or TOP / "target/meson/examples-c").parent / "docs/man"
    built = {page.name: page.read_text() for page in build.glob("*.3")}
    dated = re.compile(r"^(\.TH \S+ 3) \S+ \"libvfio\\-user \S+\"", re.M)
    assert {name: dated.sub(r"\1", text) for name, text in built.items()} == {
        page.name: dated.sub(r"\1", page.read_text()) for page in pages.iterdir()}
