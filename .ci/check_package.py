"""Checks the built wheel where a user installs it: an empty environment and an empty folder.

    python .ci/check_package.py [--uv PATH] [--pipx PATH]

Builds the sdist and, from it, the wheel; checks that the wheel has every file of the package;
follows the first screen of the README word for word, with the wheel's path in place of the name;
serves its ``hello.py``; requests the console, /docs and the schema; and runs commands that need an
extra, which answer with the one command that installs it. With uv and pipx it also runs the wheel
without an environment. Prints each command and the last line of its output; exits with the number
of checks that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TIMEOUT: Final = 300  # seconds of one command

EXTRAS: Final[Mapping[str, str]] = {
    "agentsrv mcp": "mcp",
    "agentsrv serve --port 0 --jwt-algorithm HS256 --jwt-issuer i --jwt-audience a": "jwt",
    "agentsrv serve --port 0 --reload": "reload",
    "agentsrv serve --port 0 --loop uvloop": "fast",
    "agentsrv serve --port 0 --store postgresql://localhost/x": "postgres",
    "agentsrv serve --port 0 --llm-url http://localhost/v1 --llm-model m": "llm",
    "agentsrv index pdf": "pdf",
}
"""Commands that need an extra, and the extra that the answer must name."""

_failures: list[str] = []


def check(what: str, *, passed: bool, output: str) -> None:
    """Print one check, and keep it if it failed."""
    lines = output.rstrip().splitlines() or [""]
    print(f"{'ok  ' if passed else 'FAIL'}  $ {what}\n      {lines[-1]}", flush=True)
    if not passed:
        print(output)
        _failures.append(what)


class Environment:
    """An empty folder, and the environment in which commands are run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        self._env = {
            "HOME": str(home),
            "PATH": f"{folder}/.venv/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
        }
        # What says where packages come from, and whom this machine trusts.
        prefixes = ("PIP_", "UV_", "SSL_CERT_")
        self._env |= {name: v for name, v in os.environ.items() if name.startswith(prefixes)}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell; its output has both streams."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        return subprocess.run(
            ["sh", "-c", f"exec 2>&1; {command}"],
            cwd=self.folder,
            env=self._env,
            timeout=TIMEOUT,
            check=False,
            **pipes,
        )

    def check(self, command: str, expected: str) -> None:
        """Run a command that ends with status 0 and prints ``expected``."""
        done = self.run(command)
        passed = done.returncode == 0 and expected in done.stdout
        check(command, passed=passed, output=done.stdout)

    @contextmanager
    def serving(self, command: str) -> Iterator[str]:
        """Serve within the block; yields the URL."""
        process = subprocess.Popen(
            command.split(), cwd=self.folder, env=self._env, stderr=subprocess.PIPE, text=True,
            executable=shutil.which("agentsrv", path=self._env["PATH"]),
        )  # fmt: skip
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"ws://[0-9.]+:\d+", line):
                    yield found[0]
                    return
            check(command, passed=False, output="".join(lines))
        finally:
            process.terminate()
            status = process.wait(TIMEOUT)
            check(f"{command}; kill $!", passed=status == 0, output=f"exit status {status}")


def build(folder: Path) -> Path:
    """Build the sdist and, from what it holds, the wheel; return the wheel's path."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d"]
    subprocess.run([*hatchling, folder, "-t", "sdist"], cwd=ROOT, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    (tree,) = (folder / "unpacked").iterdir()
    subprocess.run([*hatchling, folder, "-t", "wheel"], cwd=tree, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_files(wheel: Path) -> None:
    """Check that the wheel has every file of the package: also SQL, pages and styles."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = (file for file in (ROOT / "agentsrv").rglob("*") if file.is_file())
    paths = {str(file.relative_to(ROOT)) for file in files if file.suffix != ".pyc"}
    missing = sorted(paths - packed)
    check(f"unzip -l {wheel.name}", passed=not missing, output=f"missing: {missing}")


def readme_blocks(language: str) -> list[str]:
    """Return the README's blocks of code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def follow_the_readme(user: Environment, wheel: Path) -> None:
    """Type the first block of commands, then serve and run the first agent."""
    install, agent = readme_blocks("console")[:2]
    commands = [line.removeprefix("$ ") for line in install.splitlines()]
    assert commands[1].startswith("pip install agentsrv"), commands
    for command in commands:
        user.check(command.replace("install agentsrv", f"install {wheel}"), "")
    user.check("agentsrv demo", "stopped at SIGTERM with exit status 0")
    (user.folder / "hello.py").write_text(readme_blocks("python")[0])
    serve, run = (line.removeprefix("$ ").split("   ")[0] for line in agent.splitlines())
    with user.serving(f"{serve} --port 0") as url:
        user.check(f"AGENTSRV_URL={url} {run}", "Hello, Ada")
        for page, expected in {"": "<title>", "docs": "<title>", "healthz": "ok"}.items():
            address = f"{url.replace('ws', 'http', 1)}/{page}"
            with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own server
                text = answer.read().decode()
            check(f"GET /{page}", passed=expected in text, output=text[:80])


def main() -> int:
    """Run all checks; return how many failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uv", default=shutil.which("uv"), help="also run the wheel by this uv")
    parser.add_argument("--pipx", default=shutil.which("pipx"), help="and by this pipx")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentsrv-package-") as name:
        wheel = build(Path(name))
        check_files(wheel)
        folder = Path(name, "user")
        folder.mkdir()
        user = Environment(folder)
        follow_the_readme(user, wheel)
        user.check("agentsrv --version", f"agentsrv {wheel.name.split('-')[1]}")
        schema = user.run("agentsrv schema").stdout
        check("agentsrv schema", passed="asyncapi" in json.loads(schema), output=schema[:80])
        (folder / "pdf").mkdir()
        (folder / "pdf/a.pdf").write_bytes(b"%PDF-1.4\n")
        for command, extra in EXTRAS.items():
            output = user.run(command).stdout
            lines = [line for line in output.splitlines() if "extra" in line or "pip" in line]
            passed = len(lines) == 1 and lines[0].endswith(f"pip install 'agentsrv[{extra}]'")
            check(command, passed=passed and "Traceback" not in output, output=output)
        if options.uv:
            user.check(f"{options.uv} tool run --from {wheel} agentsrv demo", "exit status 0")
        if options.pipx:
            user.check(f"{options.pipx} run --spec {wheel} agentsrv demo", "exit status 0")
    return len(_failures)


if __name__ == "__main__":
    sys.exit(main())
