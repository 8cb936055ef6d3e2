"""Checks that a fresh clone sets itself up, whatever newer releases the package index has.

    python .ci/check_setup.py [--uv PATH]

Clones the checkout into an empty folder and runs ``make demo`` and ``make setup`` there with an
empty HOME, a PATH of ``/usr/bin:/bin`` and the oldest supported Python: once with the pip that
this Python brings, with the oldest supported pip and with the newest, and once with uv. The
index then has, in addition to the usual releases, a newer one of every locked package: a stub
without code, on which a set-up that resolves anything itself either fails or ends with a package
that cannot be imported. This user's settings of pip, uv and Python would install other packages, or
into other folders.

Then one clone is set up while another set-up runs, killed during a set-up, copied, moved, and given
another Python. Each time ``make demo`` follows, which must pass and run the code of its own folder.
Exits with the number of checks that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = ("requirements.lock", "requirements-run.lock")
STUB_VERSION: Final = "9999.1"  # newer than any release
OLDEST_PYTHON: Final = (3, 11)
OLDEST_PIP: Final = "22.3"
DEMO_PASSED: Final = "stopped at SIGTERM with exit status 0"

SETTINGS: Final[Mapping[str, str]] = {
    "PIP_USER": "1",
    "PIP_TARGET": "/nonexistent/target",
    "PIP_PREFIX": "/nonexistent/prefix",
    "PIP_ROOT": "/nonexistent/root",
    "PIP_PYTHON": "/nonexistent/python",
    "PIP_DRY_RUN": "1",
    "PIP_REQUIRE_HASHES": "1",
    "PIP_CONSTRAINT": "/nonexistent/constraints.txt",
    "PIP_NO_BINARY": ":all:",
    "UV_CONSTRAINT": "/nonexistent/constraints.txt",
    "UV_OVERRIDE": "/nonexistent/overrides.txt",
    "UV_REQUIRE_HASHES": "1",
    "PYTHONHOME": "/nonexistent",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "2",
}
"""Variables that a user may have set, and that must not change a set-up."""

PIP_CONF: Final = """\
[global]
constraint = /nonexistent/constraints.txt
[install]
user = true
target = /nonexistent/target
"""


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
        env |= {"PIP_FIND_LINKS": str(stubs), "UV_FIND_LINKS": str(stubs)} | SETTINGS
        config = home / ".config/pip/pip.conf"
        config.parent.mkdir(parents=True)
        config.write_text(PIP_CONF)
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


class Checkout:
    """A clone to which mishaps happen, and the ``make`` of a user in it."""

    def __init__(self, folder: Path, python: str, uv: str | None) -> None:
        self.place = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, self.place], check=True)
        home = folder / "home"
        home.mkdir()
        self._command = ["make", f"PYTHON={python}", f"UV={uv or ''}"]
        self._options = {
            "env": {"HOME": str(home), "PATH": "/usr/bin:/bin"},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "start_new_session": True,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``make`` with further arguments, of which each later one counts more."""
        return subprocess.Popen([*self._command, *arguments], cwd=self.place, **self._options)

    def make(self, *arguments: str) -> str:
        """Run ``make``; return what it printed and, last, its exit status."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        return f"{output}\nexit status {process.returncode}"


def killed(checkout: Checkout) -> str:
    """Kill a set-up when it has installed a few packages, then repeat it."""
    process = checkout.start("demo")
    packages = checkout.place / ".venv/lib/python{}.{}/site-packages".format(*OLDEST_PYTHON)
    while process.poll() is None and not list(packages.glob("[m-p]*.dist-info/METADATA")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for package in packages.glob("pydantic*"):  # what a moment earlier or later would have left
        shutil.rmtree(package / "_internal", ignore_errors=True)
    return checkout.make("demo")


def at_once(checkout: Checkout) -> str:
    """Set up twice at the same time."""
    shutil.rmtree(checkout.place / ".venv")
    first, second = checkout.start("demo"), checkout.start("demo")
    outputs = [process.communicate()[0] for process in (first, second)]
    return "\n".join(text for text in outputs if DEMO_PASSED not in text) or outputs[0]


def nothing_to_do(checkout: Checkout) -> str:
    """Change the times of the locks, not the locks: nothing is installed again."""
    for lock in LOCKS:
        (checkout.place / lock).touch()
    output = checkout.make("demo")
    return output if "Installing" not in output else f"installed again:\n{output[:200]}"


def copied(checkout: Checkout) -> str:
    """Copy the checkout with its environment, and break the original."""
    copy = checkout.place.with_name("a copy")
    shutil.copytree(checkout.place, copy, symlinks=True)
    demo = checkout.place / "agentsrv/cli/demo/__init__.py"
    demo.write_text('raise SystemExit("this is the original")\n')
    checkout.place = copy
    return checkout.make("demo")


def moved(checkout: Checkout) -> str:
    """Rename the folder."""
    checkout.place = checkout.place.rename(checkout.place.with_name("mov'd ü"))
    return checkout.make("demo")


def replaced(checkout: Checkout) -> str:
    """Replace the interpreter by one of another version, as a distribution's upgrade does."""
    link = checkout.place / ".venv/bin/python"
    link.unlink()
    link.symlink_to(sys.executable if sys.version_info[:2] != OLDEST_PYTHON else "/bin/false")
    return checkout.make("demo")


def too_old(checkout: Checkout) -> str:
    """Name an interpreter that does not serve; the answer says why."""
    old = checkout.place / "old-python"
    old.write_text("#!/bin/sh\nprintf 'it is Python 3.8'\nexit 1\n")
    old.chmod(0o755)
    output = checkout.make(f"PYTHON={old}", "demo")
    expected = f"PYTHON is {old}: it is Python 3.8."
    return DEMO_PASSED if expected in output and "needs Python 3.11" in output else output


def no_venv(checkout: Checkout) -> str:
    """Name a folder that is no environment: it is left alone."""
    kept = checkout.place / "docs"
    output = checkout.make("VENV=docs", "demo")
    whole = (kept / "README.md").exists() and "docs is not a virtual environment" in output
    return DEMO_PASSED if whole else output


MISHAPS: Final[tuple[Callable[[Checkout], str], ...]] = (
    killed,
    at_once,
    nothing_to_do,
    copied,
    moved,
    replaced,
    too_old,
    no_venv,
)


def survive(python: str, uv: str | None) -> list[bool]:
    """Let all mishaps happen to one clone; print and return which of them did no harm."""
    passed = []
    with tempfile.TemporaryDirectory(prefix="agentsrv-setup-") as folder:
        checkout = Checkout(Path(folder), python, uv)
        for mishap in MISHAPS:
            output = mishap(checkout)
            passed.append(DEMO_PASSED in output)
            result = "passed" if passed[-1] else f"failed:\n{output}"
            print(f"{mishap.__name__}: {result}", flush=True)
    return passed


def installed(python: Path) -> dict[str, str]:
    """Return what an environment has installed: names and versions."""
    code = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    lines = subprocess.run([python, "-c", code], check=True, text=True, stdout=subprocess.PIPE)
    return dict(line.split(" ", 1) for line in lines.stdout.splitlines())


def main() -> int:
    """Run all checks; return how many failed."""
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
    passed += survive(python, options.uv)
    return passed.count(False)


if __name__ == "__main__":
    sys.exit(main())
