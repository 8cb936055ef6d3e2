"""Ten thousand tasks, a megabyte of output, and how much the console itself is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from websockets.sync.client import connect

from tests.e2e.console.agents import CHAPTER
from tests.e2e.console.looking import Visit, has_status, start
from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parents[3]
CONSOLE = ROOT / "agentsrv" / "console"
TASKS = 10_000
BATCH = 200  # commands that are under way at once
KIB = 1024
PAGES = 76 * KIB  # bytes of all that the browser is sent, but
LIBRARY = 29 * KIB  # the client, which others use too

OBSERVE = """() => {
    window.held = [];
    const note = (list) => window.held.push(...list.getEntries().map(({ duration }) => duration));
    new PerformanceObserver(note).observe({ entryTypes: ["longtask"] });
}"""


def served() -> dict[str, int]:
    """The console's files and their bytes."""
    kinds = (".html", ".css", ".js", ".svg")
    return {file.name: file.stat().st_size for file in CONSOLE.iterdir() if file.suffix in kinds}


def test_the_console_is_small():
    """Raw, with its comments: nothing is built."""
    sizes = served()
    library = sizes.pop("client.js")
    print(f"pages: {sum(sizes.values())} bytes, client.js: {library} bytes")
    assert sum(sizes.values()) <= PAGES
    assert library <= LIBRARY


def test_the_wheel_has_the_console(tmp_path):
    """Each of its files."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"agentsrv/console/{name}" for name in served()} <= names
    assert files("agentsrv").joinpath("console", "index.html").is_file()


def create_tasks(server: ServerProcess) -> None:
    """Put tasks into the log, the last one with a name of its own."""
    with connect(server.url) as socket:
        socket.recv()
        for first in range(0, TASKS, BATCH):
            for number in range(first, first + BATCH):
                text = f"task number {number}"
                socket.send(f'{{"command": "create", "id": 1, "task_description": "{text}"}}')
            for _ in range(BATCH):
                assert '"reply"' in str(socket.recv())


@pytest.mark.interop
@pytest.mark.timeout(180)
def test_ten_thousand_tasks_are_scrolled_and_searched(visit: Visit, server: ServerProcess):
    """There are rows for what is in sight only; the last is found though it was never in sight."""
    create_tasks(server)
    visit.open()
    page = visit.page
    rows = page.locator(".rows li")
    expect(page.locator(".count")).to_contain_text("of 10,000 tasks")
    expect(rows.first).to_have_attribute("aria-posinset", "1")
    page.evaluate(OBSERVE)
    page.get_by_label("Search tasks").fill("number 7")
    expect(page.locator(".count")).to_have_text("1,111 tasks")
    page.get_by_label("Search tasks").fill("task number 1799")
    expect(rows).to_have_count(1)
    expect(rows.filter(has_text="task number 1799")).to_be_visible()
    page.get_by_label("Search tasks").fill("")
    expect(page.locator(".count")).to_have_text("10,000 tasks")
    for part in range(1, 11):
        page.evaluate(f"document.querySelector('.scroller').scrollTop = {part * TASKS * 6.4}")
        expect(page.locator(f".rows li[aria-posinset='{min(TASKS, part * 1000)}']")).to_be_visible()
        assert rows.count() < 60
    places = rows.evaluate_all("(rows) => rows.map((row) => Number(row.ariaPosInSet))")
    assert places == list(range(places[0], TASKS + 1))
    text = rows.last.locator(".what").inner_text()
    rows.last.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(text)
    print(f"held up for {page.evaluate('window.held')} ms")


@pytest.mark.interop
@pytest.mark.timeout(180)
def test_a_megabyte_of_output_is_shown(page: Page):
    """Bit by bit: the page can be used while it comes."""
    page.evaluate(OBSERVE)
    start(page, "a novel", "novelist")
    has_status(page, "completed")
    expect(page.locator(".output p").last).to_have_text("The end.")
    blocks = page.locator(".output h4").count()
    assert blocks == 1_000_000 // len(CHAPTER)
    assert page.locator(".output pre").count() == blocks
    print(f"{blocks} chapters, held up for {page.evaluate('window.held')} ms")
