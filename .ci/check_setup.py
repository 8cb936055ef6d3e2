"""Checks that a fresh clone sets itself up, whatever newer releases the package index has.

    python .ci/check_setup.py [--uv PATH]

Clones the checkout into an empty folder and runs ``make demo`` and ``make setup`` there with an
empty HOME, a PATH of ``/usr/bin:/bin`` and the oldest supported Python: once with the pip that
this Python brings, with the oldest supported pip and with the newest, and once with uv. The
index then has, beside the usual releases, a newer one of every locked package: a stub without
code, on which a set-up that resolves anything itself either fails or ends with a package that
cannot be imported. Exits with the number of set-ups that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = ("requirements.lock", "requirements-run.lock")
STUB_VERSION: Final = "9999.1"  # newer than any release
OLDEST_PYTHON: Final = (3, 11)
OLDEST_PIP: Final = "22.3"


def locked() -> dict[str, str]:
    """Return the locked packages and their versions.

    Raises:
        SystemExit: The lock of the run time pins what the other one does not.
    """
    pins = [
        dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))
        for lock in LOCKS
    ]
    if differing := pins[1].items() - pins[0].items():
        sys.exit(f"{LOCKS[1]} differs from {LOCKS[0]}: {sorted(differing)}; run make lock")
    return pins[0]


def write_stub(folder: Path, package: str) -> None:
    """Write a wheel of ``package`` in a version newer than any release, without code."""
    stem = f"{package.replace('-', '_')}-{STUB_VERSION}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {STUB_VERSION}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def oldest_python() -> str:
    """Return an interpreter of the oldest supported version that can make virtual environments."""
    name = "python{}.{}".format(*OLDEST_PYTHON)
    for folder in ("/usr/bin", *os.get_exec_path()):
        python = f"{folder}/{name}"
        if os.access(python, os.X_OK):
            imports = [python, "-c", "import venv, ensurepip"]
            if subprocess.run(imports, capture_output=True, check=False).returncode == 0:
                return python
    sys.exit(f"{name} with venv and ensurepip was not found (Debian 12: python3-venv)")


def set_up(python: str, stubs: Path, *, pip: str | None = None, uv: str | None = None) -> bool:
    """Set up a fresh clone and run its main job; print how it went."""
    title = f"uv {uv}" if uv else f"pip {pip or 'of ' + python}"
    with tempfile.TemporaryDirectory(prefix="agentsrv-setup-") as folder:
        home, clone = Path(folder, "home"), Path(folder, "clone")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        env = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        if pip is not None:
            venv = clone / ".venv"
            subprocess.run([python, "-m", "venv", venv], check=True, env=env)
            upgrade = [venv / "bin/pip", "install", "--quiet", "--upgrade"]
            release = "pip" if pip == "newest" else f"pip=={pip}"
            subprocess.run([*upgrade, release], check=True, env=env)
        env |= {"PIP_FIND_LINKS": str(stubs), "UV_FIND_LINKS": str(stubs)}
        began = time.monotonic()
        for target in ("demo", "setup"):
            command = ["make", f"PYTHON={python}", f"UV={uv or ''}", target]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            run = subprocess.run(command, cwd=clone, env=env, check=False, **pipes)
            if run.returncode or "uv failed" in run.stdout:
                print(f"{title}: make {target} failed ({run.returncode}):\n{run.stdout}")
                return False
            print(
                f"{title}: make {target} passed after {time.monotonic() - began:.0f} s", flush=True
            )
        versions = {
            name: version
            for name, version in installed(clone / ".venv/bin/python").items()
            if version == STUB_VERSION
        }
        if versions:
            print(f"{title}: installed releases newer than the lock: {sorted(versions)}")
        return not versions


def installed(python: Path) -> dict[str, str]:
    """Return what an environment has installed: names and versions."""
    code = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    lines = subprocess.run([python, "-c", code], check=True, text=True, stdout=subprocess.PIPE)
    return dict(line.split(" ", 1) for line in lines.stdout.splitlines())


def main() -> int:
    """Run all set-ups; return how many failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uv", default=shutil.which("uv"), help="also set up with this uv")
    options = parser.parse_args()
    python = oldest_python()
    with tempfile.TemporaryDirectory(prefix="agentsrv-stubs-") as folder:
        stubs = Path(folder)
        for package in locked():
            write_stub(stubs, package)
        passed = [set_up(python, stubs, pip=pip) for pip in (None, OLDEST_PIP, "newest")]
        if options.uv:
            passed.append(set_up(python, stubs, uv=options.uv))
    return passed.count(False)


if __name__ == "__main__":
    sys.exit(main())
