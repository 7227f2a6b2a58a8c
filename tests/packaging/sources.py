"""What packages are made of, for the tests of them."""
import os
import pathlib
import shutil
import subprocess
import tomllib

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
VERSION = tomllib.loads((TOP / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def run(*command, **options):
    """What a command prints, which succeeds."""
    environment = os.environ | options.pop("environment", {})
    result = subprocess.run(
        [str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, check=False, **options,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}: status {result.returncode}\n{result.stdout[-8000:]}"
    return result.stdout


def needs(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
