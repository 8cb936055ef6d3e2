"""docs/howto/from-http.md: the client that has moved, and the script that reads lines."""

import os
import subprocess
import sys
from pathlib import Path

from agentsrv.cli.demo import KNOWLEDGE
from tests.e2e.docs.pages import of, run
from tests.support.listening import listening
from tests.support.programs import require


def test_the_program_prints_what_the_page_shows(tmp_path):
    """With the built-in agents."""
    (program,), (shown,) = of("howto/from-http.md", "python"), of("howto/from-http.md", "text")
    with listening(tmp_path, f"--knowledge={KNOWLEDGE}") as url:
        assert run(tmp_path, "moved.py", program, url) == shown


def test_the_command_prints_a_line_for_each_event(tmp_path):
    """From the first to the last."""
    require("jq")
    (script,) = of("howto/from-http.md", "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with listening(tmp_path, f"--knowledge={KNOWLEDGE}") as url:
        printed = subprocess.run(
            ["sh", "-ec", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "AGENTSRV_URL": url},
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    types = printed.split()
    assert (types[0], types[-1]) == ("task_created", "task_completed")
