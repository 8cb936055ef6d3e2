"""How tests look at the console, and what must hold whatever they do there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from tests.support.server_process import ServerProcess

PATIENCE = 20_000  # ms
LOST = ("WebSocket connection to", "Failed to load resource")  # how a browser tells of no server


class Visit:
    """A page, and what it did that it must not do."""

    def __init__(self, page: Page, server: ServerProcess) -> None:
        self.page = page
        self.root = server.url.replace("ws://", "http://")
        self.faults: list[str] = []
        self.may_lose = False
        """Whether the server is going to be away, of which the browser itself tells."""
        page.set_default_timeout(PATIENCE)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._see)
        page.on("websocket", lambda socket: self._ask(socket.url))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))

    def open(self, route: str = "") -> None:
        """Open a page of the console, and wait until it is connected."""
        self.page.goto(f"{self.root}/{route}")
        self.is_connected()

    def is_connected(self) -> None:
        """Wait for a connection."""
        expect(self.page.locator("#connection")).to_have_attribute("data-state", "connected")

    def _hear(self, message: ConsoleMessage) -> None:
        is_known = self.may_lose and message.text.startswith(LOST)
        if message.type in ("error", "warning") and not is_known:
            self.faults.append(f"console: {message.text}")

    def _see(self, request: Request) -> None:
        self._ask(request.url)

    def _ask(self, url: str) -> None:
        if urlsplit(url).netloc != urlsplit(self.root).netloc:
            self.faults.append(f"request: {url}")


@contextmanager
def visiting(browser: Browser, server: ServerProcess, **options: Any) -> Iterator[Visit]:
    """Visit a server's console in a profile of its own, without a fault."""
    context = browser.new_context(**options)
    try:
        visit = Visit(context.new_page(), server)
        yield visit
        assert not visit.faults, visit.faults
    finally:
        context.close()


def start(page: Page, text: str, agent: str | None = None, **params: Any) -> str:
    """Start a task by the form; the id of the task whose page is then open."""
    page.get_by_role("link", name="New task").click()
    expect(page.locator("body")).to_have_attribute("data-page", "new")
    page.get_by_label("Task", exact=True).fill(text)
    if agent is not None:
        page.get_by_label("Done by").select_option(agent)
    for name, value in params.items():
        page.get_by_label(name).fill(str(value))
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/#/task/*")
    return page.url.rpartition("/")[2]


def has_status(page: Page, status: str) -> None:
    """Wait until the task whose page is open has that status."""
    expect(page.locator(".facts .badge")).to_have_class(re.compile(rf"\bis-{status}\b"))
