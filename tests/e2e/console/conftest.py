"""A server as a process of its own, and a real Chromium that looks at its console."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.e2e.console.looking import Visit, visiting
from tests.support.programs import require
from tests.support.server_process import ServerProcess

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PATIENCE = 20_000  # ms
WIDE: ViewportSize = {"width": 1280, "height": 820}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Its own loop runs in it: all tests of a module with it are no coroutines."""
    chromium = require("chromium")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    """Serves what ``agents`` has; shared by a module's tests."""
    folder: Path = tmp_path_factory.mktemp("server")
    server = ServerProcess(folder, "tests.e2e.console.agents:app", "--drain-timeout=0.1")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def visit(browser: Browser, server: ServerProcess) -> Iterator[Visit]:
    """A page with nothing in its storage; it must say no error, and ask nobody else."""
    with visiting(browser, server, viewport=WIDE) as visit:
        yield visit


@pytest.fixture
def page(visit: Visit) -> Page:
    """The console, connected."""
    visit.open()
    return visit.page
