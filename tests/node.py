"""Packages from npm, for tests that run a program under Node.js."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[1] / ".ci" / "npm"
CACHE = INSTALL.with_name(".cache")
NO_NPM = 3  # what INSTALL says where there is no npm


def npm_folder(name: str, *packages: str) -> Path:
    """The folder of that name with these packages, such as ``ws@8.18.0``; skips without npm."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "npm.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = subprocess.run(
            [INSTALL, name, *packages], stdout=subprocess.PIPE, text=True, check=False
        )
    if installed.returncode == NO_NPM:
        pytest.skip(f"{packages[0]} needs node and npm, and there is none")
    assert installed.returncode == 0, f"{packages[0]} cannot be installed"
    return Path(installed.stdout.strip())
