"""One server from outside, which all inputs meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.support.figures import BAD_INPUT
from tests.support.issuer import AUDIENCE, ISSUER, SECRET
from tests.support.principals import BOTH
from tests.support.server_process import ServerProcess

LENGTHS = [
    pytest.param("short", marks=pytest.mark.timeout(300)),
    pytest.param("long", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """It knows Ada's key and Bob's, and takes tokens of the issuer."""
    folder = tmp_path_factory.mktemp("acceptance")
    (folder / "secret").write_bytes(SECRET)
    process = ServerProcess(
        folder,
        "tests.e2e.acceptance.app:app",
        "--jwt-algorithm=HS256",
        f"--jwt-key={folder / 'secret'}",
        f"--jwt-issuer={ISSUER}",
        f"--jwt-audience={AUDIENCE}",
        "--command-rate=1000000",  # all inputs come from two principals, as fast as they can
        environment={"AGENTSRV_API_KEYS": BOTH},
    )
    process.start()
    yield process
    assert process.stop() == 0
    assert faults(process) == []


def faults(process: ServerProcess) -> list[str]:
    """Lines of its log that tell of something that nobody handled."""
    signs = ("Traceback", "ERROR", "CRITICAL", "incident", "never retrieved", "never awaited")
    lines = process.log.read_text().splitlines()
    return [line for line in lines if any(sign in line for sign in signs)]


@pytest.fixture
def note(record_property) -> Callable[[str], None]:
    """Takes a line that is printed when the run ends."""
    return partial(record_property, BAD_INPUT)
