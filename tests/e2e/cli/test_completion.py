"""What a shell is offered when Tab is pressed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SERVE = "Serve agents until SIGTERM or Ctrl-C."
AFTER = "Number of the last event seen."
DRAIN = "[default: 10.0]"


def offered(line: str, shell: str) -> str:
    """What completes the last word of ``line``, as the shell's script asks for it."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    others = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    wanted = {"_AGENTSRV_COMPLETE": f"complete_{shell}"}
    program = "import sys; sys.argv[0] = 'agentsrv'; from agentsrv.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | words | others | wanted,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("line", "bash", "described"),
    [
        ("agentsrv ser", "serve", SERVE),
        ("agentsrv tail --af", "--after", AFTER),
        ("agentsrv serve --drain", "--drain-timeout", DRAIN),
        ("agentsrv keys rev", "revoke", "Let a key count no more"),
    ],
)
def test_each_shell_is_offered_names_and_descriptions(line, bash, described):
    """Bash takes names only; a description is as ``--help`` has it, also what is in brackets."""
    assert offered(line, "bash").split() == [bash]
    for shell, escape in (("fish", ""), ("zsh", "\\\\")):
        told = offered(line, shell)
        assert bash in told
        assert described.replace(":", f"{escape}:") in told


@pytest.mark.parametrize("line", ["agentsrv nonsense", "agentsrv serve --nonsense"])
def test_nothing_is_offered_where_nothing_fits(line):
    """No error is printed either: it would be in the middle of what is typed."""
    assert offered(line, "bash").strip() == ""
