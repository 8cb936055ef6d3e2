"""Packages of npm that tests use, installed where they are missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[1] / ".ci" / "npm_package"
NO_NPM = 3  # what INSTALL says where there is no npm


def npm_package(package: str) -> Path:
    """The folder that has ``NAME@VERSION`` in its ``node_modules``."""
    installed = subprocess.run([INSTALL, package], stdout=subprocess.PIPE, text=True, check=False)
    if installed.returncode == NO_NPM:
        pytest.skip(f"{package} needs node and npm, and there is none")
    assert installed.returncode == 0, f"{package} cannot be installed"
    return Path(installed.stdout.strip())
