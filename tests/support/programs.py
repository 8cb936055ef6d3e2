"""The programs that tests run and that a machine may lack."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

PACKAGES: Final = {
    "bash": "bash",
    "chromium": "chromium",
    "initdb": "postgresql",
    "ip": "iproute2",
    "iptables": "iptables",
    "jq": "jq",
    "mount": "mount",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "nsenter": "util-linux",
    "pg_basebackup": "postgresql",
    "pg_ctl": "postgresql",
    "pg_isready": "postgresql-client",
    "postgres": "postgresql",
    "psql": "postgresql-client",
    "redis-server": "redis-server",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
    "wscat": "nodejs and npm, then npm install --global wscat",
}
"""Debian's package of each program."""

_SYSTEM_FOLDERS: Final = ("/usr/sbin", "/sbin")  # not on every user's PATH


def find(name: str) -> str | None:
    """Return the path of a program, or ``None`` if it is not installed.

    Searches the PATH, the folders of the system's administrator, and Debian's folder of the
    newest PostgreSQL.
    """
    postgres = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda folder: int(re.sub(r"\D", "", folder.parent.name) or 0),
        reverse=True,
    )
    folders = [*map(str, postgres), os.environ.get("PATH", ""), *_SYSTEM_FOLDERS]
    return shutil.which(name, path=os.pathsep.join(folders))


def require(name: str) -> str:
    """Return the path of a program of ``PACKAGES``; skip the test if it is not installed."""
    path = find(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package: {PACKAGES[name]})")
    return path
