"""What people do in the console, by mouse and keys, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.console.looking import Visit, has_status, start

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]


def test_a_task_is_started_watched_and_answered(page: Page):
    """Plan, retry, questions of three kinds, sources, output and history."""
    start(page, "How does back-pressure work?")
    expect(page.get_by_role("heading", level=1)).to_have_text("How does back-pressure work?")
    expect(page.locator(".step")).to_have_count(4)
    question = page.get_by_role("form", name="Question of order")
    expect(question.locator("li")).to_have_text(["one", "two"])
    has_status(page, "input_required")
    question.get_by_role("button", name="Yes").click()
    expect(question).to_contain_text("How many?")
    question.get_by_label("Answer").fill("3")
    question.get_by_role("button", name="Answer").click()
    expect(question).to_contain_text("Of which size?")
    expect(page).to_have_title(re.compile(r"^\(1\) How does"))
    question.get_by_role("button", name="large").click()
    has_status(page, "completed")
    expect(question).to_have_count(0)
    expect(page.locator(".output li")).to_have_count(20)
    expect(page.locator(".output h4")).to_have_text("A dry list")
    expect(page.locator(".history li").last).to_contain_text("Completed")
    page.get_by_role("button", name="order").click()
    expect(page.locator(".output")).to_have_text("ordered 3, large")
    page.get_by_role("button", name="find").click()
    expect(page.locator(".output")).to_have_text("what attempt 2 wrote")
    expect(page.get_by_role("button", name="find")).to_contain_text("try 2")
    page.get_by_text("Sources (1)").click()
    expect(page.locator("details[open] li")).to_have_text("Threads, threads.md, line 3")
    page.get_by_role("button", name="Show the result").click()
    expect(page.locator(".output li")).to_have_count(20)


def test_a_question_may_be_declined(page: Page):
    """A dialog says what that does before it is done."""
    start(page, "order", "clerk")
    page.get_by_role("button", name="Decline…").click()
    expect(page.get_by_role("dialog")).to_contain_text("The step that asks fails")
    page.get_by_role("dialog").get_by_role("button", name="Back").click()
    has_status(page, "input_required")
    page.get_by_role("button", name="Decline…").click()
    page.get_by_role("dialog").get_by_role("button", name="Decline: this step fails").click()
    has_status(page, "failed")
    expect(page.locator(".history")).to_contain_text("answered step_001: declined")


def test_an_answer_that_is_none_is_told(page: Page):
    """The question stays open."""
    start(page, "order", "clerk")
    page.get_by_role("button", name="Yes").click()
    expect(page.locator(".question")).to_contain_text("How many?")
    expect(page.get_by_label("Answer")).to_be_focused()
    page.get_by_role("button", name="Answer").click()  # required: the browser holds it back
    expect(page.locator(".question input:invalid")).to_have_count(1)
    has_status(page, "input_required")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the task").click()
    has_status(page, "cancelled")


def test_a_task_is_cancelled_with_a_reason_and_resumed(page: Page):
    """The reason stands in its history; who resumes it comes to the new task."""
    first = start(page, "wait", "waiter")
    expect(page.locator(".output")).to_have_text("so far")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_label("Reason").fill("seen enough")
    page.keyboard.press("Enter")
    has_status(page, "cancelled")
    expect(page.locator(".history li").last).to_contain_text("seen enough")
    page.get_by_role("button", name="Resume").click()
    page.wait_for_url(lambda url: not url.endswith(first))
    has_status(page, "running")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the task").click()
    has_status(page, "cancelled")


def test_a_task_is_run_again_with_changes(page: Page):
    """The form has what the earlier task had; fields are of the types that the schema has."""
    start(page, "a list", "writer", pieces=3)
    has_status(page, "completed")
    page.get_by_role("link", name="Run again").click()
    expect(page.get_by_label("pieces")).to_have_value("3")
    expect(page.get_by_label("Task", exact=True)).to_have_value("a list")
    page.get_by_label("pieces").fill("5")
    page.get_by_label("tone").select_option("warm")
    page.get_by_label("Task", exact=True).press("Control+Enter")
    page.wait_for_url("**/#/task/*")
    has_status(page, "completed")
    expect(page.locator(".output h4")).to_have_text("A warm list")
    expect(page.locator(".output li")).to_have_count(5)


def test_a_plan_of_ones_own_is_run_and_what_is_wrong_with_one_is_told(page: Page):
    """By the server, and before that where it is no JSON."""
    page.get_by_label("Task", exact=True).fill("plan")
    page.get_by_label("Done by").select_option("A plan of my own")
    for text, complaint in (("{", "The plan:"), ('{"steps": [{"step_id": "a"}]}', "agent")):
        page.get_by_label("Plan, as JSON").fill(text)
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert")).to_contain_text(complaint)
    plan = '{"steps": [{"step_id": "a", "agent": "writer"}, {"step_id": "b", "agent": "broken", "depends_on": ["a"]}]}'
    page.get_by_label("Plan, as JSON").fill(plan)
    page.get_by_role("button", name="Start").click()
    has_status(page, "failed")
    expect(page.locator(".step")).to_have_count(2)
    expect(page.get_by_role("alert")).to_contain_text("out of paper")


def test_agents_are_sent_a_message(page: Page):
    """By a dialog."""
    start(page, "listen", "listener")
    page.get_by_role("button", name="Send a message…").click()
    page.get_by_label("Message").fill("keep it short")
    page.keyboard.press("Enter")
    has_status(page, "completed")
    expect(page.locator(".output")).to_have_text("I was told: keep it short")


def test_the_list_is_live_filtered_and_searched(page: Page, visit: Visit):
    """A task started elsewhere comes into it, and changes there."""
    rows = page.locator(".rows li")
    other = page.context.new_page()
    other.goto(f"{visit.root}/")
    start(other, "the unmistakable one", "waiter")
    mine = rows.filter(has_text="the unmistakable one")
    expect(mine).to_contain_text("running")
    page.get_by_label("Search tasks").fill("unmistak")
    expect(rows).to_have_count(1)
    page.get_by_label("Status").select_option("running")
    expect(mine).to_have_count(1)
    other.get_by_role("button", name="Cancel…").click()
    other.get_by_role("dialog").get_by_role("button", name="Cancel the task").click()
    expect(rows).to_have_count(0)
    page.get_by_label("Status").select_option("")
    expect(mine).to_contain_text("cancelled")
    other.close()


def test_the_list_tells_who_asks(page: Page):
    """At once, and as long as it is so."""
    start(page, "somebody must answer this", "clerk")
    row = page.locator(".rows li").filter(has_text="somebody must answer this").first
    expect(row).to_contain_text("asks")
    page.get_by_role("button", name="Decline…").click()
    page.get_by_role("dialog").get_by_role("button", name="Decline: this step fails").click()
    expect(row).to_contain_text("failed")


def test_the_page_is_used_by_keys_alone(page: Page):
    """The first Tab is the way past the head; arrows go through the list."""
    start(page, "first", "writer", pieces=1)
    start(page, "second", "writer", pieces=1)
    page.reload()
    expect(page.locator(".rows li")).not_to_have_count(0)
    page.keyboard.press("Tab")
    expect(page.locator("#skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.locator(".rows a").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("first")
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_frames_are_shown_to_learn_from(page: Page):
    """With a command to copy, and no token."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Frames").click()
    start(page, "it's a task", "writer", pieces=1)
    page.locator("#frames summary").filter(has_text=re.compile("↑ create")).click()
    page.get_by_role("button", name="Copy as wscat").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(1)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("wscat -c 'ws://127.0.0.1:")
    assert '"task_description":"it' in copied
    page.get_by_role("button", name="Copy as Python").click()
    expect(page.get_by_role("button", name="Copied")).to_have_count(2)
    compile(page.evaluate("navigator.clipboard.readText()"), "copied", "exec")


def test_news_are_announced_and_tokens_are_not(page: Page):
    """Whoever listens is told how the task goes on, and spared its text."""
    page.evaluate("""() => {
        window.said = [];
        const live = document.getElementById("live");
        new MutationObserver(() => window.said.push(live.textContent)).observe(live, {childList: true});
    }""")
    start(page, "announce", "writer")
    has_status(page, "completed")
    said = page.evaluate("window.said")
    assert said[-1] == "Completed"
    assert not [text for text in said if "item" in text or "characters" in text]


def test_the_theme_is_switched_and_kept(page: Page):
    """Beyond a reload."""
    html = page.locator("html")
    expect(html).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="Dark").click()
    expect(html).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(html).to_have_attribute("data-theme", "dark")


def test_a_task_that_there_is_not_is_told(page: Page, visit: Visit):
    """Also where the address is nonsense."""
    visit.open("#/task/0000000000000000")
    expect(page.get_by_role("heading", level=1)).to_have_text("No such task")
    visit.open("#/new/%3Cb%3E")
    expect(page.get_by_role("alert")).not_to_be_empty()
