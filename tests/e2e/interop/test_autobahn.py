"""WebSocket conformance, as Autobahn|Testsuite sees it: our connection, beside the bare library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

INSTALL = Path(__file__).parents[3] / ".ci" / "autobahn"
NO_PYTHON = 3  # what INSTALL says where there is no Python 2.7
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]  # 12 and 13: compression
NUMBER_OF_CASES = 301
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")

KNOWN = {
    "7.1.5": "a close in the midst of a fragmented message is answered with another code than 1000",
}
"""Failures of the library itself, which a run against it alone shows too."""

Results = Mapping[str, Mapping[str, Any]]


@contextmanager
def echoing(kind: str) -> Iterator[str]:
    """The URL of a server that sends back what comes."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.interop.echo_server", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "WEBSOCKETS_MAX_FRAGMENTS": "70000"},
    ) as server:
        try:
            assert server.stdout is not None
            yield f"ws://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@pytest.fixture
def wstest() -> str:
    """The suite's program."""
    done = subprocess.run([INSTALL], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == NO_PYTHON:
        pytest.skip("platform: the suite needs Python 2.7, and there is none")
    assert done.returncode == 0, "the suite cannot be installed"
    return done.stdout.strip()


def failures(results: Results) -> set[str]:
    """The cases that failed, by what was sent or by how the connection was closed."""
    return {
        case
        for case, result in results.items()
        if result["behavior"] not in GOOD or result["behaviorClose"] not in GOOD
    }


@pytest.mark.interop
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_suite_finds_nothing_that_is_not_the_librarys(wstest: str, tmp_path: Path):
    """Every case that fails here fails against the bare library too, and is known."""
    with ExitStack() as stack:
        servers = [
            {"agent": kind, "url": stack.enter_context(echoing(kind))}
            for kind in ("agentsrv", "websockets")
        ]
        spec = {
            "outdir": str(tmp_path / "reports"),
            "servers": servers,
            "cases": CASES,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        command = [wstest, "-m", "fuzzingclient", "-s", str(tmp_path / "spec.json")]
        subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=800, check=True)
    index = json.loads((tmp_path / "reports" / "index.json").read_text())
    for kind, results in index.items():
        counts = Counter(result["behavior"] for result in results.values())
        print(f"{kind}: {len(results)} cases, {dict(counts)}, failed {failures(results)}")
    ours, bare = index["agentsrv"], index["websockets"]
    assert len(ours) == len(bare) == NUMBER_OF_CASES
    assert failures(ours) <= failures(bare)
    assert failures(ours) <= KNOWN.keys()
