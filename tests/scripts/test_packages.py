"""What packages say of the library, compared with what the sources say. Nothing is built."""
import json
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

TOP = pathlib.Path(__file__).parents[2]


def nodes_of_the_linker_script():
    text = re.sub(r"/\*.*?\*/", "", (TOP / "libvfio-user.map").read_text(), flags=re.DOTALL)
    for node, body in re.findall(r"^(LIBVFIO_USER_\d+) \{(.*?)\}", text, re.MULTILINE | re.DOTALL):
        yield f"{node}@{node}"
        yield from (f"{name}@{node}" for name in re.findall(r"^\s*(\w+);", body, re.MULTILINE))


def test_debian_lists_the_symbols():
    """A new function is a line in debian/libvfio-user0.symbols, with the version that brings it."""
    head, *lines = (TOP / "debian/libvfio-user0.symbols").read_text().splitlines()
    assert head == "libvfio-user.so.0 libvfio-user0 #MINVER#"
    assert {line.split()[0] for line in lines} == set(nodes_of_the_linker_script())
    assert all(re.fullmatch(r" \S+ \d+\.\d+\.\d+", line) for line in lines)


def test_notices_are_of_the_crates_that_are_linked():
    """After a change of Cargo.lock: scripts/third-party."""
    subprocess.run([TOP / "scripts/third-party", "--check"], check=True)


def allows(expression, allowed):
    """Whether a licence expression (SPDX's, or the older one with a slash) can be met with the licences allowed."""
    words = re.findall(r"[()]|[\w.+-]+(?: WITH [\w.-]+)?", expression.replace("/", " OR "))
    logic = {"(": "(", ")": ")", "AND": "and", "OR": "or"}
    return eval(" ".join(logic.get(word, str(word in allowed)) for word in words))  # noqa: S307 (of these words only)


@pytest.mark.parametrize("expression, met", [
    ("MIT", True), ("GPL-3.0", False), ("GPL-3.0 OR MIT", True), ("GPL-3.0/MIT", True), ("GPL-3.0 AND MIT", False),
    ("(GPL-3.0 OR MIT) AND Zlib", True), ("(GPL-3.0 OR MIT) AND GPL-2.0", False), ("MIT WITH LLVM-exception", False),
])
def test_how_an_expression_is_read(expression, met):
    assert allows(expression, {"MIT", "Zlib"}) == met


def test_licenses_are_those_that_are_allowed():
    """What cargo-deny asks with the texts, asked of what the crates say."""
    rules = tomllib.loads((TOP / "deny.toml").read_text())["licenses"]
    exceptions = {each["crate"]: each["allow"] for each in rules["exceptions"]}
    command = ["cargo", "metadata", "--locked", "--offline", "--format-version=1"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    graph = json.loads(subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, check=True).stdout)
    ids = {node["id"] for node in graph["resolve"]["nodes"]}
    others = {
        crate["name"]: crate["license"]
        for crate in graph["packages"]
        if crate["id"] in ids and not allows(crate["license"] or "none", {*rules["allow"], *exceptions.get(crate["name"], [])})
    }
    assert not others


def test_what_cargo_deny_says():
    """Of the texts of licences, too, and of where crates come from; without a network."""
    if shutil.which("cargo-deny") is None:
        pytest.skip("cargo-deny is not installed")
    done = subprocess.run(["cargo", "deny", "--locked", "--offline", "check", "licenses", "bans", "sources"], cwd=TOP,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package, notices", [("libvfio-user", "THIRD-PARTY.md"), ("vfu", "tools/vfu/THIRD-PARTY.md")])
def test_bills_of_materials_list_what_is_linked(bills, package, notices):
    bill = json.loads((bills / f"{package}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == package
    listed = {(each["name"], each["version"]) for each in bill["components"]}
    linked = set(re.findall(r"^- (\S+) (\S+)$", (TOP / notices).read_text(), re.MULTILINE))
    assert linked and linked <= listed
    assert all(each.get("licenses") for each in bill["components"])
    # Of the tests alone.
    assert not {"cbindgen", "proptest", "object"} & {name for name, _ in listed}


@pytest.fixture(scope="module")
def bills(tmp_path_factory):
    if shutil.which("cargo-cyclonedx") is None:
        pytest.skip("cargo-cyclonedx is not installed")
    folder = tmp_path_factory.mktemp("bills")
    subprocess.run([TOP / "scripts/sbom", folder], check=True)
    return folder


def test_bills_of_materials_are_the_same_each_time(bills, tmp_path):
    subprocess.run([TOP / "scripts/sbom", tmp_path], check=True)
    for bill in bills.iterdir():
        assert (tmp_path / bill.name).read_text() == bill.read_text()
