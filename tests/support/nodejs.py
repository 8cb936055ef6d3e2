"""Packages from npm, for tests that run a program under Node.js."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from tests.support.programs import require

INSTALL = Path(__file__).parents[2] / ".ci" / "npm"
CACHE = INSTALL.with_name(".cache")


def npm_folder(name: str, *packages: str) -> Path:
    """Return the folder of that name with these packages, such as ``ws@8.18.0``.

    Skips the test without Node.js and npm.
    """
    for program in ("node", "npm"):
        require(program)
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "npm.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = subprocess.run(
            [INSTALL, name, *packages], stdout=subprocess.PIPE, text=True, check=False
        )
    assert installed.returncode == 0, f"{packages[0]} cannot be installed"
    return Path(installed.stdout.strip())
