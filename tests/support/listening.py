"""``agentsrv serve`` as a process of its own, for tests that look at it from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60  # seconds that it has to end


@contextmanager
def listening(folder: Path, *arguments: str) -> Iterator[str]:
    """Serve from memory in ``folder`` on a free port, with further arguments; yields the URL."""
    command = [sys.executable, "-m", "agentsrv", "serve", "--port=0", "--store=memory:"]
    command.append("--log-format=text")
    process = subprocess.Popen(
        [*command, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        log = ""
        while "listening on " not in log:
            log = process.stderr.readline()
            assert log, "the server ended before it listened"
        yield log.split("listening on ")[1].strip()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
