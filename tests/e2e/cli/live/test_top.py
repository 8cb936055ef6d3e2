import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console

from agentsrv.cli.live.top import Look, draw
from agentsrv.models.states import TaskStatus
from tests.support.terminal import in_terminal

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@contextmanager
def a_task(url, text):
    """A task that waits in its last step."""
    with subprocess.Popen(
        [sys.executable, "-m", "agentsrv", "run", text, "--url", url],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            assert any(" last " in line for line in process.stderr)
            yield process
        finally:
            process.terminate()
            process.communicate()


def test_top_shows_the_tasks_as_they_come_and_go(plan_url):
    """With how far they are; q quits and leaves the terminal as it was."""
    with in_terminal("top", "--url", plan_url, columns=100) as terminal:
        terminal.wait_for("TASK", "STATUS", "AGE", "STEPS", "WHAT", "ended/s")
        with a_task(plan_url, "endless show of patience"):
            terminal.wait_for("▸ running", "3/4 endless", "endless show of patience")
        terminal.resize(24, 60)
        terminal.wait_for("…")  # what does not fit any more is cut
        terminal.type("xq")
        assert terminal.end() == 0
        assert not terminal.is_cursor_hidden
        assert "\x1b[?1049l" in terminal.written  # back from the alternate screen


def test_top_tells_once_without_a_terminal(plan_url):
    """As plain lines."""
    with a_task(plan_url, "ask for a sign"):
        done = subprocess.run(
            [sys.executable, "-m", "agentsrv", "top", "--url", plan_url],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "\x1b" not in done.stdout
    [line] = [line for line in done.stdout.splitlines() if "ask for a sign" in line]
    assert line.split()[1:3] == ["?", "asks"]


def test_rates_are_those_of_the_looks_there_are():
    """Created and ended tasks by the seconds between the first look and the last."""

    def a_look(number, running, completed):
        totals = dict.fromkeys(TaskStatus, 0)
        totals |= {TaskStatus.RUNNING: running, TaskStatus.COMPLETED: completed}
        return Look(NOW + timedelta(seconds=number), totals, [], {})

    console = Console(width=100)
    with console.capture() as captured:
        console.print(draw("here", [a_look(0, 2, 10), a_look(1, 9, 11), a_look(4, 4, 30)]))
    head, counts, *_ = captured.get().splitlines()
    assert head.split("  ") == ["here", "5.5 created/s", "5.0 ended/s"]
    assert "▸ 4 running" in counts
    assert "✓ 30 completed" in counts
