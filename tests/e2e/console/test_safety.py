"""What strangers' texts do in the console, and whether everybody can use it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.console.agents import LINKS, TRICK
from tests.e2e.console.looking import Visit, has_status, start, visiting
from tests.support.nodejs import npm_folder
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.interop, pytest.mark.timeout(180)]
AXE = "axe-core@4.14.1"
GRAVE = ("serious", "critical")
FOREIGN = """[...document.querySelectorAll("main img, main script, main iframe, main svg *, nav img")]
    .filter((node) => node.namespaceURI.endsWith("html")).map((node) => node.outerHTML)"""
TARGETS = """[...document.querySelectorAll(".markdown a")].map(({ href, rel }) => [href, rel])"""
REL = "noopener noreferrer nofollow"


def test_texts_of_others_stay_text(page: Page, visit: Visit):
    """Description, output, tables, code, sources, questions, options, answers and errors: a dialog,
    an error on the page's console or a request would be a fault.
    """
    page.get_by_role("button", name="Frames").click()
    start(page, TRICK + LINKS, "trickster")
    expect(page.get_by_role("heading", level=1)).to_have_text(TRICK + LINKS)
    expect(page.locator(".question")).to_contain_text(TRICK)
    expect(page.locator(".output pre")).to_have_text(TRICK)
    expect(page.locator(".output blockquote")).to_have_text(TRICK)
    allowed = [
        "https://example.org/x.png",
        "https://example.org/ok",
        "mailto:ada@example.org",
        "https://example.org/bare",
    ]
    targets = page.evaluate(TARGETS)
    assert {target for target, _ in targets} == set(allowed)
    assert {rel for _, rel in targets} == {REL}
    page.locator(".question").get_by_role("button", name=TRICK).click()
    has_status(page, "completed")
    page.get_by_text("Sources (1)").click()
    page.locator("#frames summary").last.click()
    assert page.evaluate(FOREIGN) == []
    page.get_by_role("link", name="Run again").click()
    expect(page.get_by_label("Task", exact=True)).to_have_value(TRICK + LINKS)
    start(page, "fail", "broken")
    expect(page.get_by_role("alert")).to_contain_text(TRICK)
    assert page.evaluate(FOREIGN) == []
    visit.open(f"#/task/{TRICK}")
    expect(page.get_by_role("heading", level=1)).to_have_text("This task cannot be shown")


def test_markup_is_refused_by_the_browser_itself(page: Page, visit: Visit):
    """Whatever a later change of the code may do."""
    told = page.evaluate("""() => {
        try { document.body.innerHTML = "<b>x</b>"; return "made"; } catch { return "refused"; }
    }""")
    assert told == "refused"
    assert all("Trusted" in fault for fault in visit.faults)
    visit.faults.clear()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_no_grave_fault(browser: Browser, server: ServerProcess, theme, width):
    """On each page, in both themes, narrow and wide: contrast, names, roles, order."""
    source = (npm_folder("axe", AXE) / "node_modules/axe-core/axe.min.js").read_text()
    view = {"width": width, "height": 820}
    with visiting(browser, server, viewport=view, color_scheme=theme) as visit:
        visit.open()
        page = visit.page

        def look(where: str) -> list[str]:
            page.evaluate(source)
            found = page.evaluate("axe.run()")["violations"]
            return [
                f"{where}: {fault['id']} {node['html'][:90]}"
                for fault in found
                for node in fault["nodes"]
                if fault["impact"] in GRAVE
            ]

        page.emulate_media(reduced_motion="reduce")
        faults = look("tasks")
        start(page, "How does back-pressure work?")
        expect(page.get_by_role("form", name="Question of order")).to_be_visible()
        faults += look("question")
        page.get_by_role("button", name="Cancel…").click()
        faults += look("dialog")
        page.get_by_label("Reason").fill("x")
        page.keyboard.press("Enter")
        has_status(page, "cancelled")
        page.get_by_role("button", name="find").click()
        page.get_by_role("button", name="Frames").click()
        page.locator("#frames summary").last.click()
        faults += look("cancelled")
        page.get_by_role("button", name="Frames").click()
        page.get_by_role("link", name="Run again").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Run again")
        page.get_by_label("Done by").select_option("writer")
        faults += look("form")
    assert faults == []
