"""The console while connections break, servers die and tokens are asked for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from agentsrv.server.auth.keys import make_key
from tests.e2e.console.conftest import WIDE
from tests.e2e.console.looking import Visit, has_status, start, visiting
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]
ITEMS = 100
CLIENT = Path(__file__).parents[3] / "agentsrv" / "console" / "client.js"


@pytest.fixture
def server(tmp_path) -> Iterator[ServerProcess]:
    """One that a test may kill."""
    server = ServerProcess(tmp_path, "tests.e2e.console.agents:app", "--drain-timeout=0.1")
    server.start()
    yield server
    server.kill()


def has_whole_list(page: Page) -> None:
    """Wait for the output of `writer`: each item once, in its order."""
    has_status(page, "completed")
    items = page.locator(".output li")
    expect(items).to_have_text([f"item {number}" for number in range(ITEMS)])


def test_a_reload_in_the_middle_loses_nothing(page: Page):
    """The page is made of the log anew."""
    start(page, "a long list", "writer", pieces=ITEMS)
    expect(page.locator(".output li").nth(5)).to_be_attached()
    page.reload()
    has_whole_list(page)


def test_a_server_that_is_killed_and_comes_back_is_waited_for(visit: Visit, server: ServerProcess):
    """What the connection's state is, is told all the while; the text of the attempt that was
    lost is dropped, and that of the next one is there without a gap.
    """
    visit.open()
    visit.may_lose = True
    page = visit.page
    start(page, "a long list", "writer", pieces=ITEMS)
    expect(page.locator(".output li").nth(5)).to_be_attached()
    server.kill()
    expect(page.locator("#connection")).to_have_attribute(
        "data-state", re.compile("waiting|connecting")
    )
    expect(page.locator("#connection-text")).to_contain_text("offline")
    server.start()
    visit.is_connected()
    has_whole_list(page)
    expect(page.locator(".history")).to_contain_text("begins again after a restart of the server")
    expect(page.locator(".rows li").first).to_contain_text("completed")


def test_try_now_connects_while_the_next_attempt_is_far(visit: Visit, server: ServerProcess):
    """The page's clock stands still meanwhile, so that the attempt is the button's."""
    visit.may_lose = True
    page = visit.page
    page.clock.install()
    visit.open()
    server.kill()
    expect(page.locator("#connection-text")).to_contain_text("offline")
    page.clock.pause_at(datetime.fromtimestamp(page.evaluate("Date.now()") / 1000 + 60, UTC))
    expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    server.start()
    page.get_by_role("button", name="Try now").click()
    visit.is_connected()


def test_a_task_is_started_once_though_the_server_was_away(visit: Visit, server: ServerProcess):
    """It starts with the connection, which comes back by itself."""
    visit.open("#/new")
    visit.may_lose = True
    page = visit.page
    server.kill()
    expect(page.locator("#connection-text")).to_contain_text("offline")
    page.get_by_label("Task", exact=True).fill("once")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Starts with the connection…")).to_be_disabled()
    server.start()
    page.wait_for_url("**/#/task/*")
    expect(page.locator(".rows li")).to_have_count(1)


def test_a_server_that_is_silent_is_found_out(visit: Visit, server: ServerProcess):
    """A browser tells nothing of a dead network; a sign of life that does not come does."""
    visit.may_lose = True
    page = visit.page
    page.clock.install()
    visit.open()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        page.clock.run_for(61_000)
        expect(page.locator("#connection-text")).not_to_have_text("connected")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    page.clock.resume()
    visit.is_connected()


class TestSignIn:
    """Where the server asks who everybody is."""

    KEY, _LINE = make_key("ada", date(2026, 3, 1))

    @pytest.fixture
    def server(self, tmp_path) -> Iterator[ServerProcess]:
        """It knows Ada."""
        environment = {"AGENTSRV_API_KEYS": self._LINE.line().strip()}
        server = ServerProcess(tmp_path, "tests.e2e.console.agents:app", environment=environment)
        server.start()
        yield server
        server.kill()

    def sign_in(self, page: Page, token: str, *, keep: bool = True) -> None:
        """Fill the form in."""
        page.get_by_label("Token").fill(token)
        page.get_by_label("Keep it").set_checked(keep)
        page.get_by_role("button", name="Sign in").click()

    def test_only_who_signs_in_sees_anything(self, visit: Visit):
        """A wrong token is told, a right one stays until it is signed out; none of them is in an
        address, in a frame that is shown, or in what outlives the tab.
        """
        page = visit.page
        page.goto(visit.root)
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        expect(page.locator("#tasks")).not_to_be_visible()
        self.sign_in(page, "agentsrv_wrong")
        expect(page.get_by_role("alert")).to_contain_text("not accepted")
        self.sign_in(page, self.KEY)
        visit.is_connected()
        expect(page.locator("#connection-text")).to_have_text("connected as ada")
        task_id = start(page, "mine", "writer", pieces=1)
        has_status(page, "completed")
        page.reload()
        has_status(page, "completed")
        assert task_id in page.url
        assert self.KEY not in page.url
        page.get_by_role("button", name="Frames").click()
        page.locator("#frames summary").filter(has_text="↑ auth").click()
        expect(page.locator("#frames pre")).to_contain_text("…")
        assert self.KEY not in page.content()
        assert self.KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert self.KEY not in page.evaluate("JSON.stringify(sessionStorage)")

    def test_a_token_is_kept_only_where_that_is_wanted(self, visit: Visit):
        """Otherwise a reload asks again."""
        page = visit.page
        page.goto(visit.root)
        self.sign_in(page, self.KEY, keep=False)
        visit.is_connected()
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")

    def test_a_server_that_comes_back_is_signed_in_to_by_itself(self, visit: Visit, server):
        """By the token in memory."""
        page = visit.page
        page.goto(visit.root)
        self.sign_in(page, self.KEY, keep=False)
        visit.is_connected()
        visit.may_lose = True
        server.kill()
        expect(page.locator("#connection-text")).to_contain_text("offline")
        server.start()
        expect(page.locator("#connection-text")).to_have_text("connected as ada")


def test_the_console_is_for_narrow_screens_too(browser: Browser, server: ServerProcess):
    """At 320 pixels nothing has to be scrolled sideways but what is wide by itself."""
    with visiting(browser, server, viewport={**WIDE, "width": 320}) as visit:
        visit.open()
        page = visit.page
        expect(page.get_by_role("heading", name="New task")).not_to_be_visible()
        start(page, f"How does {'x' * 200} work?")
        expect(page.get_by_role("form", name="Question of order")).to_be_visible()
        for route in ("#/", "#/new", page.url.partition("/")[2].partition("/")[2]):
            page.goto(f"{visit.root}/{route[route.find('#') :]}")
            assert page.evaluate("document.documentElement.scrollWidth") == 320
            wide = page.evaluate(
                """[...document.querySelectorAll("main, nav, header")]
                .filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.tagName)"""
            )
            assert wide == []


OBSERVE = """async ([library, url]) => {
    const { Client } = await import(library);
    const states = [];
    await new Promise((resolve) => {
        const onState = ({ name, reason }) => {
            states.push(name);
            if (name === "closed" || states.length > 9) resolve(states.push(reason));
        };
        new Client(url, { onState });
    });
    return states;
}"""


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[str]:
    """The origin of other pages, which has the client's file, too."""
    (tmp_path / "pages").mkdir()
    shutil.copy(CLIENT, tmp_path / "pages")
    handler = partial(Quiet, directory=str(tmp_path / "pages"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{pages.server_port}"
        pages.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_page_of_a_refused_origin_stops_trying(browser: Browser, server, elsewhere):
    """A browser says only that there is no connection, so the client asks for the reason."""
    page = browser.new_page()
    page.goto(f"{elsewhere}/client.js")
    states = page.evaluate(OBSERVE, [f"{elsewhere}/client.js", server.url])
    page.close()
    assert states == ["connecting", "waiting", "closed", "the server does not allow this origin"]


def test_a_page_without_a_server_tries_again(browser: Browser, server, elsewhere):
    """No server is no refusal."""
    server.kill()
    page = browser.new_page()
    page.goto(f"{elsewhere}/client.js")
    states = page.evaluate(OBSERVE, [f"{elsewhere}/client.js", server.url])
    page.close()
    assert "closed" not in states
