"""Links of the documentation, in the repository and on the site: files, folders and anchors that are there."""
import collections
import html.parser
import os
import pathlib
import re
import subprocess
import urllib.parse

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
# Of no concern here: what was built, fetched, or is of others.
NOT_OURS = {"target", ".cache", ".git", "node_modules", "third_party"}


def ours():
    """Every page of Markdown, by its path in the repository."""
    found = []
    for folder, folders, files in os.walk(TOP):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.startswith("build")]
        found += [pathlib.Path(folder, name).relative_to(TOP) for name in files if name.endswith(".md")]
    return sorted(found)


def prose(page):
    """A page without its code, in which nothing is a link."""
    text = re.sub(r"^(```+|~~~+).*?^\1\s*$", "", (TOP / page).read_text(), flags=re.M | re.S)
    text = re.sub(r"^(?: {4}|\t)(?![-*\d]).*$", "", text, flags=re.M)
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def anchors(page):
    """What headings are reached by, as forges make it of their text."""
    found, seen = set(), collections.Counter()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", prose(page), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page):
    text = re.sub(r"(`+)(?:(?!\1).)+?\1", "code", prose(page), flags=re.S)
    return re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)


def faults(page):
    for link in links(page):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        target, _, anchor = link.partition("#")
        path = pathlib.Path(os.path.normpath(TOP / page.parent / urllib.parse.unquote(target))) if target else TOP / page
        if not path.exists():
            yield f"{page}: {link}: there is no such file"
        elif not path.is_relative_to(TOP):
            yield f"{page}: {link}: outside of the repository"
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path.relative_to(TOP))):
            yield f"{page}: {link}: there is no such heading"


def test_what_a_heading_is_reached_by(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# A `vfu` page: it's *one*\n```\n# no heading\n```\n## [Two](x) words\n## Two words\n")
    monkeypatch.setattr("test_links.TOP", tmp_path)
    assert anchors("page.md") == {"a-vfu-page-its-one", "two-words", "two-words-1"}
    (tmp_path / "other.md").write_text("[a](page.md#two-words-1) [b](page.md#three) [c](none.c) `[d](x)` [e](#one) [f](https://x/y#z)\n")
    page = pathlib.Path("other.md")
    assert [fault.split(": ")[1] for fault in faults(page)] == ["page.md#three", "none.c", "#one"]


def test_every_link_leads_somewhere():
    pages = ours()
    assert pathlib.Path("README.md") in pages and pathlib.Path("docs/examples/nvme.md") in pages
    assert [fault for page in pages for fault in faults(page)] == []


def test_every_page_has_its_place_on_the_site():
    summary = (TOP / "docs/SUMMARY.md").read_text()
    placed = {os.path.normpath(f"docs/{target}") for target in re.findall(r"\]\(([^)]+)\)", summary)}
    pages = {str(page) for page in ours() if page.parts[0] != ".github"} - {"docs/SUMMARY.md"}
    assert placed == pages


# --- the site -------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    done = subprocess.run([TOP / "scripts/book", "--output", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().removeprefix("skipped: "))
    assert done.returncode == 0, done.stdout
    return folder


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    wrong = []
    for path, page in pages.items():
        # All pages in one, for printing: its links are those of the others. The other is served at any address.
        if path.name in ("print.html", "404.html"):
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            to = pathlib.Path(os.path.normpath(path.parent / urllib.parse.unquote(target))) if target else path
            to = to / "index.html" if to.is_dir() else to
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []
