"""A unit test starts no process, unless it is marked ``process``."""

from __future__ import annotations

import sys

import pytest

STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty")

_forbids = False
_started: list[str] = []


def _audit(event: str, _arguments: tuple[object, ...]) -> None:
    if _forbids and event in STARTS:
        _started.append(event)


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def _no_process(request: pytest.FixtureRequest) -> object:
    global _forbids  # noqa: PLW0603 - an audit hook cannot be taken away
    _forbids = request.node.get_closest_marker("process") is None
    yield
    _forbids = False
    started = list(_started)
    _started.clear()
    assert not started, f"a unit test has started a process ({started}); mark it, or move it"
