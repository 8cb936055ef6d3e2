"""strace before a server: faults at its n-th system call, and a record of its writes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.programs import require

STRACE = ["strace", "-f"]
FAST = "--seccomp-bpf"  # stops the process in the chosen calls only; loses injected signals


def require_strace() -> None:
    """Skip the test where processes cannot be traced."""
    require("strace")
    probe = subprocess.run([*STRACE, "-o", "/dev/null", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"platform: strace may not trace here: {probe.stderr.decode().strip()}")


def kill_at(calls: str, number: int, path: Path | None = None) -> Sequence[str]:
    """A tracer that kills the server in its ``number``-th call, before it is carried out.

    Only calls on ``path`` count, where it is given. Each thread counts for itself.
    """
    return inject(calls, f"signal=KILL:when={number}", path)


def fail_from(calls: str, number: int, path: Path | None = None) -> Sequence[str]:
    """A tracer that lets the ``number``-th call and all that follow fail with EIO.

    Each thread counts for itself, and so does each of the ``calls``.
    """
    return inject(calls, f"error=EIO:when={number}+", path)


def inject(calls: str, what: str, path: Path | None) -> Sequence[str]:
    """A tracer that tampers with ``calls``, only with those on ``path`` if there is one."""
    chosen = [] if path is None else ["-P", str(path)]
    tampering = ["-e", f"trace={calls}", "-e", f"inject={calls}:{what}"]
    return [*STRACE, "-o", "/dev/null", *tampering, *chosen]


def record(calls: str, into: Path) -> Sequence[str]:
    """A tracer that keeps ``calls`` with all of their data."""
    return [*STRACE, FAST, "-yy", "-xx", "-s", "10000000", "-o", str(into), "-e", f"trace={calls}"]
