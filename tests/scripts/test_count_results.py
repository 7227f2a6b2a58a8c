"""scripts/count-results: what each kind of file counts for."""
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/count-results"

JUNIT = """<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>
<testcase name="c"><error/></testcase><testcase name="d"><skipped/></testcase></testsuite></testsuites>"""
MESON = "".join('{"name": "%s", "result": "%s"}\n' % (end, end) for end in
                ("OK", "EXPECTEDFAIL", "SKIP", "FAIL", "TIMEOUT", "ERROR", "UNEXPECTEDPASS", "INTERRUPT"))
LIBTEST = "ok a::b\nfailed c\nignored d, said because\nof 1 passed, 2 failed\nok e - should panic\n"


def count(folder):
    told = subprocess.run([SCRIPT, folder], stdout=subprocess.PIPE, check=True, text=True).stdout
    return [int(number) for number in told.split()]


@pytest.mark.parametrize("name, text, expected", [
    ("a.junit.xml", JUNIT, [1, 2, 1]), ("a.meson.json", MESON, [2, 5, 1]), ("a.libtest", LIBTEST, [2, 1, 1]),
    ("a.counts.json", '{"passed": 3, "failed": 2, "skipped": 1}', [3, 2, 1]),
    # One that was begun and not ended is a failure, and one of another kind is nobody's.
    ("a.junit.xml", JUNIT[:-10], [0, 1, 0]), ("a.meson.json", MESON[:-5], [0, 1, 0]),
    ("a.counts.json", '{"passed": 3}', [0, 1, 0]), ("a.txt", "5 passed, 3 failed", [0, 0, 0]),
])
def test_each_kind(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert count(tmp_path) == expected


def test_all_files_are_added_up(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.libtest").write_text(LIBTEST)
    (tmp_path / "a.junit.xml").write_text(JUNIT)
    assert count(tmp_path) == [7, 5, 4]
