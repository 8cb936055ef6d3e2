import json
import re
import subprocess
import sys

import pytest

from tests.support.terminal import in_terminal

ALL = ["✓ gather gather", "✓ left look", "✓ right look"]


def agentsrv(*arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "agentsrv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def newest(url: str) -> dict[str, str]:
    """The newest task of the server."""
    row: dict[str, str] = json.loads(agentsrv("list", "--limit", "1", "--json", "--url", url))
    return row


def test_run_shows_the_plan_as_a_tree_and_the_text_below_it(plan_url):
    """Which step waits for which, the attempt that failed, and how it ended; the cursor is back."""
    with in_terminal("run", "write it", "--url", plan_url) as terminal:
        assert terminal.end() == 0
        lines = terminal.lines
        assert re.fullmatch(r"▸ write it  \w{16}", lines[0])
        assert re.fullmatch(r"└── ✓ gather gather  attempt 2 of 3  0\.\d\d s", lines[1])
        assert lines[2] == "      attempt 1: RuntimeError: the line is busy"
        assert lines[3].startswith("    ├── ✓ left look  0.")
        assert lines[4].startswith("    └── ✓ right look  0.")
        assert lines[5].startswith("        └── ▸ last write  after left, right")
        assert lines[6:8] == ["One", "Two"]
        assert lines[-1].startswith("task completed in")
        assert not terminal.is_cursor_hidden


def test_the_text_alone_is_on_stdout(plan_url, tmp_path):
    """The tree is shown all the same, with every step at its end."""
    path = tmp_path / "text"
    with in_terminal("run", "write it", "--url", plan_url, stdout=path) as terminal:
        assert terminal.end() == 0
        for shown in [*ALL, "✓ last write", "✓ write it"]:
            assert shown in terminal.text
    assert path.read_text() == "One\nTwo\n"


def test_text_of_a_failed_attempt_is_followed_by_the_tree_and_the_whole(plan_url):
    """What was streamed belongs to no result; what comes last does."""
    with in_terminal("run", "rewrite it", "--url", plan_url) as terminal:
        assert terminal.end() == 0
        torn = terminal.lines.index("On")
        again = terminal.lines[torn + 1 :]
        assert again[0].startswith("▸ rewrite it")
        assert "attempt 1: RuntimeError: out of ink" in terminal.text
        assert again[-1] == "One"


def test_a_question_is_answered_at_the_prompt_and_the_tree_comes_back(plan_url):
    """The tree makes room for the prompt."""
    with in_terminal("run", "ask it", "--url", plan_url) as terminal:
        terminal.wait_for("last: Shall I? [yes | no, decline]")
        assert "gather" not in terminal.text
        terminal.type("yes\n")
        assert terminal.end() == 0
        asked, *tree = terminal.lines
        assert asked == "last: Shall I? [yes | no, decline] yes"
        assert tree[0].startswith("▸ ask it")
        assert "done" in tree


def test_one_interrupt_cancels_and_waits_for_the_end(plan_url):
    """The task is cancelled on the server, the tree says so, and the exit code is 130."""
    with in_terminal("run", "endless wait", "--url", plan_url) as terminal:
        terminal.wait_for("last endless")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert (
            "agentsrv: cancelling the task; once more to leave it to the server" in terminal.lines
        )
        assert "■ last endless" in terminal.text
        assert "cancelled by anonymous" in terminal.text
        assert not terminal.is_cursor_hidden
    assert newest(plan_url)["status"] == "cancelled"


def test_an_interrupt_at_the_prompt_asks_before_it_cancels(plan_url):
    """The second one cancels the task, as at any other time."""
    with in_terminal("run", "ask it", "--url", plan_url) as terminal:
        terminal.wait_for("last: Shall I? [yes | no, decline]")
        terminal.type("\x03")
        terminal.wait_for("or Ctrl-C again to cancel")
        assert newest(plan_url)["status"] == "input_required"
        terminal.type("\x03")
        assert terminal.end() == 130
        assert (
            "agentsrv: cancelling the task; once more to leave it to the server" in terminal.lines
        )
        assert "■ last ask" in terminal.text
    assert newest(plan_url)["status"] == "cancelled"


@pytest.mark.parametrize(
    ("typed", "code", "status"), [("leave", 130, "input_required"), ("yes", 0, "completed")]
)
def test_after_an_interrupt_a_question_can_be_left_or_answered(plan_url, typed, code, status):
    """What is left stays open, and the way back is named."""
    with in_terminal("run", "ask it", "--url", plan_url) as terminal:
        terminal.wait_for("last: Shall I? [yes | no, decline]")
        terminal.type("\x03")
        terminal.wait_for("or Ctrl-C again to cancel")
        terminal.type(f"{typed}\n")
        assert terminal.end() == code
    task = newest(plan_url)
    assert task["status"] == status
    assert (f"agentsrv tail {task['task_id']}" in "".join(terminal.lines)) is (typed == "leave")
    if typed == "leave":
        agentsrv("cancel", task["task_id"], "--url", plan_url)


def test_two_interrupts_detach_and_tell_how_to_come_back(plan_url):
    """The task is not waited for; the cursor is back, and the tree stays."""
    with in_terminal("run", "stubborn wait", "--url", plan_url) as terminal:
        terminal.wait_for("last stubborn")
        terminal.type("\x03")
        terminal.wait_for("cancelling the task")
        task_id = newest(plan_url)["task_id"]
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "agentsrv: interrupted again: the task is left to the server" in terminal.lines
        told = "".join(terminal.lines)  # a long line is wrapped
        assert (
            f"agentsrv: to see what becomes of it: agentsrv tail {task_id} --url {plan_url}" in told
        )
        assert not terminal.is_cursor_hidden
    # Its step does not stop: where looking takes longer than the grace, the task has ended by now.
    assert newest(plan_url)["status"] in ("cancelling", "cancelled")


def test_tail_shows_a_task_as_run_does(plan_url):
    """From its beginning, wherever it is; what it asks can be answered there."""
    run = [sys.executable, "-m", "agentsrv", "run", "ask it", "--url", plan_url]
    with subprocess.Popen(
        run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as other:
        assert other.stderr is not None
        assert any("last asks" in line for line in other.stderr)
        task_id = newest(plan_url)["task_id"]
        with in_terminal("tail", task_id[:12], "--url", plan_url) as terminal:
            terminal.wait_for("last: Shall I? [yes | no, decline]")
            terminal.type("no\n")
            assert terminal.end() == 0
            assert "✓ gather gather  attempt 2 of 3" in terminal.text
            assert "not done" in terminal.lines
        assert other.communicate()[0] == "not done\n"
    with in_terminal("tail", task_id, "--url", plan_url) as terminal:
        assert terminal.end() == 0
        assert "Shall I" not in terminal.text
        assert "not done" in terminal.lines


def test_interrupting_tail_leaves_the_task_alone(plan_url):
    """Only who looks goes away."""
    run = [sys.executable, "-m", "agentsrv", "run", "endless wait", "--url", plan_url]
    with subprocess.Popen(
        run, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as other:
        assert other.stderr is not None
        assert any("last started" in line for line in other.stderr)
        task_id = newest(plan_url)["task_id"]
        with in_terminal("tail", task_id, "--url", plan_url) as terminal:
            terminal.wait_for("last endless")
            terminal.type("\x03")
            assert terminal.end() == 130
            assert not terminal.is_cursor_hidden
        assert newest(plan_url)["status"] == "running"
        agentsrv("cancel", task_id, "--url", plan_url)
        other.communicate()


def test_lines_are_cut_where_the_terminal_ends(plan_url):
    """Also when it is made narrower while the tree is shown."""
    title = "endless wait for something that does not fit into one line of it"
    with in_terminal("run", title, "--url", plan_url, columns=50) as terminal:
        terminal.wait_for("last endless")
        assert all(len(line) <= 50 for line in terminal.lines)
        assert "something that does not fit" not in terminal.text
        terminal.resize(24, 34)
        terminal.wait_for("endless wait for so…")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "■ endless wait for so…" in terminal.text


@pytest.mark.parametrize(
    ("env", "is_live", "is_coloured"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["as it is", "NO_COLOR", "TERM=dumb"],
)
def test_the_terminal_is_taken_at_its_word(plan_url, env, is_live, is_coloured):
    """Without colours where they are not wanted, and as lines where nothing can be drawn."""
    with in_terminal("run", "write it", "--url", plan_url, env=env) as terminal:
        assert terminal.end() == 0
    colours = re.findall(r"\x1b\[[0-9;]*3\d[0-9;]*m", terminal.written)
    assert (bool(colours), "└──" in terminal.text) == (is_coloured, is_live)
    assert ("last writes:" in terminal.lines) is not is_live
    assert ("\x1b" in terminal.written) is is_live


def test_json_is_not_mixed_with_anything(plan_url):
    """Also on a terminal each line is an event."""
    with in_terminal("run", "write it", "--json", "--url", plan_url, columns=2000) as terminal:
        assert terminal.end() == 0
    events = [json.loads(line)["event_type"] for line in terminal.written.splitlines()]
    assert (events[0], events[-1]) == ("task_created", "task_completed")
