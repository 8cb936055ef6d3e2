"""Members of one list: what a page must do when something goes wrong, and on any screen."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.console.looking import Visit, has_status, start, visiting
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


def _answer_one(page: Page) -> None:
    page.locator(".question").first.get_by_role("button", name="Yes").click()


def test_the_list_agrees_with_the_page_after_a_reload(page: Page):
    """Of two questions one is answered: the task still asks, in both."""
    start(page, "both", "twice")
    expect(page.locator(".question")).to_have_count(2)
    page.reload()
    row = page.locator(".rows li").filter(has_text="both").first
    expect(page.locator(".question")).to_have_count(2)
    expect(row).to_contain_text("asks")
    _answer_one(page)
    expect(page.locator(".question")).to_have_count(1)
    expect(row).to_contain_text("asks")
    expect(page.locator(".facts .badge")).to_have_text("asks")
    _answer_one(page)
    expect(row).to_contain_text("completed")


def test_the_focus_goes_to_the_next_question_and_then_to_the_head(page: Page):
    """And not to the page's body; Ctrl+Enter answers."""
    start(page, "order", "clerk")
    page.get_by_role("button", name="Yes").click()
    answer = page.get_by_label("Answer")
    expect(answer).to_be_focused()
    answer.fill("3")
    answer.press("Control+Enter")
    expect(page.get_by_role("button", name="small")).to_be_focused()
    page.get_by_role("button", name="large").click()
    has_status(page, "completed")
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_a_failed_task_shows_its_input_and_its_error_once(page: Page):
    """The input is folded, and there is no empty output."""
    start(page, "fail in a way of its own", "broken")
    has_status(page, "failed")
    main = page.locator("main")
    expect(main.get_by_role("alert")).to_contain_text("out of paper")
    # The traceback quotes the line of code that raised it, too.
    shown = main.locator("article > :not(section:has(.history)):not(:has(> .trace))")
    expect(shown.filter(has_text="out of paper")).to_have_count(1)
    expect(page.get_by_role("heading", name="Output")).to_have_count(0)
    page.get_by_text("Input", exact=True).click()
    expect(page.locator(".input pre")).to_contain_text("agent: broken")


def test_a_traceback_is_folded_but_for_the_authors_own_frame(page: Page, visit: Visit):
    """As the events bring it; a server that does not tell has none."""
    visit.open()
    told = page.evaluate("""async () => {
        const { TaskState } = await import("./console/fold.js");
        const state = new TaskState();
        const steps = [{ step_id: "a", agent: "x", depends_on: [] }];
        const frames = [{ file: "lib.py", line: 1, function: "f", code: "g()", own: false },
                        { file: "desk.py", line: 7, function: "x", code: "1 / 0", own: true }];
        const at = (event_type, data) => state.apply({ event_type, data, timestamp: "2026-01-01T00:00:00Z" });
        at("plan_created", { steps });
        at("step_started", { step_id: "a", attempt: 1, agent: "x" });
        at("step_retrying", { step_id: "a", attempt: 1, next_attempt: 2, retry_in: 1, error_message: "no" });
        const without = state.steps.get("a").traceback.length;
        at("step_failed", { step_id: "a", error_message: "no", traceback: frames });
        at("task_failed", { status: "failed", error_message: "no", failed_step: "a" });
        return [without, state.traceback.map(({ own }) => own)];
    }""")
    assert told == [0, [False, True]]


def test_being_offline_does_not_look_alive(browser: Browser, tmp_path):
    """A band says so, times stand still, and what will be sent is listed."""
    server = ServerProcess(tmp_path, "tests.e2e.console.agents:app", "--drain-timeout=0.1")
    server.start()
    try:
        with visiting(browser, server, viewport={"width": 1024, "height": 768}) as visit:
            visit.open()
            page = visit.page
            start(page, "order", "clerk")
            expect(page.locator(".question")).to_contain_text("May I")
            visit.may_lose = True
            server.kill()
            expect(page.locator("#outage")).to_be_visible()
            expect(page.locator("#outage")).to_contain_text("No connection")
            shown = page.locator(".facts span").last.inner_text()
            page.get_by_role("button", name="Yes").click()
            expect(page.locator("#outage")).to_contain_text("Will be sent: Answer")
            expect(page.locator(".question")).to_contain_text(
                "will be sent when the connection is back"
            )
            expect(page.locator("#outage-facts")).to_contain_text(re.compile("[3-9] s ago"))
            assert page.locator(".facts span").last.inner_text() == shown
            server.start()
            page.locator("#retry").click()
            expect(page.locator("#outage")).to_be_hidden()
            expect(page.locator(".question")).to_contain_text("How many?")
    finally:
        server.stop()


def test_the_list_and_the_graph_are_one_stop_each_for_tab(page: Page):
    """Arrows go from row to row and from step to step."""
    start(page, "one", "writer", pieces=1)
    start(page, "How does back-pressure work?")
    expect(page.locator(".step")).to_have_count(4)
    assert page.locator(".rows a[tabindex='0']").count() == 1
    assert page.locator(".step[tabindex='0']").count() == 1
    page.locator(".step").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".step").nth(1)).to_be_focused()


def test_keys_do_not_act_while_somebody_types(page: Page):
    """And do otherwise."""
    page.get_by_label("Task", exact=True).fill("n?/")
    expect(page.locator("dialog")).to_have_count(0)
    page.locator("h1").focus()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("search the tasks")
    page.keyboard.press("Escape")
    page.locator("h1").focus()
    page.keyboard.press("/")
    expect(page.get_by_label("Search tasks")).to_be_focused()


@pytest.mark.parametrize(("width", "height"), [(390, 800), (320, 225), (360, 225)])
def test_small_screens_have_a_list_a_landmark_and_a_heading(browser, server, width, height):
    """A phone, and a zoom of 400 %."""
    with visiting(browser, server, viewport={"width": width, "height": height}) as visit:
        visit.open()
        page = visit.page
        box = page.locator(".scroller").bounding_box()
        assert box is not None
        assert box["height"] >= 120
        expect(page.get_by_role("main")).to_have_count(1)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_forced_colours_keep_the_dots(browser: Browser, server: ServerProcess):
    """Where the system takes the page's colours away."""
    with visiting(browser, server, forced_colors="active") as visit:
        visit.open()
        start(visit.page, "x", "writer", pieces=1)
        has_status(visit.page, "completed")
        find = (
            "getComputedStyle(document.querySelector('.facts .badge'), '::before').backgroundColor"
        )
        assert visit.page.evaluate(find) not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")


def test_the_example_of_a_plan_is_one_that_the_server_takes(page: Page):
    """And what is wrong with another is said once."""
    page.get_by_label("Task", exact=True).fill("plan")
    page.get_by_label("Done by").select_option("A plan of my own")
    page.get_by_label("Plan, as JSON").fill('{"steps": [{"step_id": "a"}]}')
    page.get_by_role("button", name="Start").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("agent")
    lines = alert.inner_text().splitlines()
    assert len(lines) == len(set(lines)) == 1
    page.reload()
    page.get_by_label("Task", exact=True).fill("plan")
    page.get_by_label("Done by").select_option("A plan of my own")
    page.get_by_role("button", name="Start").click()
    has_status(page, "completed")


def test_a_text_that_turns_the_direction_turns_no_other(page: Page):
    """A description with an override, and a line of 30,000 characters without a space."""
    start(page, "\u202e" + "x" * 30_000, "writer", pieces=1)
    has_status(page, "completed")
    find = "[...document.querySelectorAll('.history li span, .facts code, .rows .what')]"
    kinds = page.evaluate(f"{find}.map((node) => getComputedStyle(node).unicodeBidi)")
    assert kinds
    assert set(kinds) == {"isolate"}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
