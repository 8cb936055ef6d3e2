"""What is imported when: nobody pays for what they do not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import agentsrv

EVERYTHING = frozenset({"agentsrv.app", "agentsrv.server", "agentsrv.store", "sqlite3"})
# What runs, at most how many modules it imports, and some that it must not.
CASES = {
    "import agentsrv": (40, {"asyncio", "pydantic", "orjson", "typer", *EVERYTHING}),
    "import sys; sys.argv = ['agentsrv', '--version']; from agentsrv.cli import main; main()": (
        130,
        {"asyncio", "pydantic", "orjson", "typer", *EVERYTHING},
    ),
    "from agentsrv import App": (470, {"markdown_it", "typer", "pytest"}),
    "import agentsrv.client": (420, {"typer", "pydantic_settings", *EVERYTHING}),
    "from agentsrv import Step, PermanentError": (330, {"websockets", "typer", *EVERYTHING}),
}


@pytest.mark.parametrize("code", CASES)
def test_little_is_imported(code: str) -> None:
    """The modules are counted that are there in addition to those of an empty program."""
    at_most, forbidden = CASES[code]
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{code}\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split("\n"))
    assert imported & forbidden == set()
    assert len(imported) <= at_most, f"{len(imported)} modules"


def test_the_client_needs_no_unix() -> None:
    """It is imported where the modules of the system are missing that Windows lacks."""
    program = (
        "import asyncio, subprocess, sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty', 'syslog'):\n"
        "    sys.modules[name] = None\n"
        "import agentsrv.client"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_found() -> None:
    """By the module that `agentsrv` names for it, and nothing else is."""
    assert sorted(agentsrv._MODULES) == sorted(agentsrv.__all__)
    for name in agentsrv.__all__:
        assert getattr(agentsrv, name) is not None
        assert name in dir(agentsrv)
    with pytest.raises(AttributeError, match="'agentsrv' has no attribute 'Nothing'"):
        _ = agentsrv.Nothing
