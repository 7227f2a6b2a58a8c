"""docs/conformance.md says what scripts/conformance finds."""
import subprocess

from page import TOP


def test_the_examples_keep_to_the_protocol():
    page = (TOP / "docs" / "conformance.md").read_text().splitlines()
    run = subprocess.run([TOP / "scripts" / "conformance"], stdout=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 0, run.stdout
    rows = run.stdout.splitlines()
    assert len(rows) > 4
    missing = [row for row in rows if row not in page]
    assert not missing, "\n".join(["docs/conformance.md lacks:", *missing])
