"""The table of limits in docs/threat-model.md has what the source has: each constant with its value, and none is missing."""
import re

import pytest

from page import TOP

PAGE = (TOP / "docs" / "threat-model.md").read_text()
ROW = re.compile(r"^\| [^|]+ \| `(\w+)` \| `(src/[\w/]+\.rs)` \| `([^`]+)` \|$", re.M)
LIMITS = ROW.findall(PAGE)
# Files in which every constant is a limit.
OF_LIMITS = ["src/wire/limits.rs", "src/transport/allowance.rs", "src/descriptors.rs"]


def constants(path):
    """Name -> value, as they are written; of what depends on the machine, the first."""
    text = (TOP / path).read_text().split("#[cfg(test)]")[0]
    found = re.findall(r"^(?:pub(?:\([\w:]+\))? )?const (\w+): [^=]+=\s*([^;]+);", text, re.M)
    return {name: re.sub(r"^if cfg!.*?\{ (.*?) \} else .*", r"\1", value, flags=re.S) for name, value in found}


def test_the_table_is_read():
    assert len(LIMITS) == len(PAGE.partition("## All limits")[2].partition("\n\nBesides")[0].strip().splitlines()) - 2 > 25


@pytest.mark.parametrize("name, path, value", LIMITS, ids=[limit[0] for limit in LIMITS])
def test_a_limit_is_as_the_page_says(name, path, value):
    assert constants(path)[name] == value


@pytest.mark.parametrize("path", OF_LIMITS)
def test_no_limit_is_missing(path):
    assert constants(path).keys() == {name for name, where, _ in LIMITS if where == path}


def test_constants_that_the_text_names_are_in_the_table():
    text = PAGE.partition("## All limits")[0]
    named = {name for name in re.findall(r"`([A-Z][A-Z_]+)`", text) if any(name in constants(path) for _, path, _ in LIMITS)}
    assert {"BATCH", "COMMANDS", "MESSAGE_FDS"} <= named <= {name for name, _, _ in LIMITS}
