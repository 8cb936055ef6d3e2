"""What people type and see: statuses by name, stdin, -h, http URLs, narrow terminals, JSON errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agentsrv.cli.prompt import _wording
from agentsrv.models.events import InputRequired
from tests.support.terminal import in_terminal


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("runing", "no status 'runing'; did you mean running?"),
        ("ask", "no status 'ask'; did you mean asks?"),
        ("foo", "no status 'foo'; expected one of pending, queued, running"),
    ],
)
def test_a_status_that_is_none_is_refused_with_the_nearest(agentsrv, word, told):
    """In words of our own."""
    result = agentsrv("list", "--status", word)
    assert (result.code, result.out) == (2, "")
    assert told in result.err


def test_a_task_that_asks_is_named_alike_everywhere(agentsrv):
    """In the list and in the status, and both names select it."""
    command = [sys.executable, "-m", "agentsrv", "run", "x", "--agent", "careful"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stderr is not None
        assert any("asks" in line for line in run.stderr)
        for name in ("asks", "input_required"):
            assert agentsrv("list", "--status", name).out.split()[1] == "asks"
        task_id = agentsrv("list", "--status", "asks").out.split()[0]
        shown = agentsrv("status", task_id).out
        assert f"task {task_id}: asks" in shown
        assert "careful: asks" in shown
        assert agentsrv("respond", task_id, "yes").code == 0
        run.communicate()


def test_a_text_can_come_from_stdin(url):
    """Where it is given as ``-``."""
    command = [sys.executable, "-m", "agentsrv", "run", "-", "--agent", "greeter", "--url", url, "--json",
               "--param", "name=Ada"]  # fmt: skip
    done = subprocess.run(command, input="two\nlines é".encode(), capture_output=True, check=True)
    assert json.loads(done.stdout.splitlines()[0])["data"]["task_description"] == "two\nlines é"
    done = subprocess.run(command, input=b"\xff", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"standard input is not UTF-8" in done.stderr


@pytest.mark.parametrize("command", [(), ("run",), ("list",), ("keys",)])
def test_help_has_a_short_name(agentsrv, command):
    """As everywhere."""
    shown = agentsrv(*command, "-h")
    assert shown.code == 0
    assert shown.out == agentsrv(*command, "--help").out


def test_the_address_of_the_browser_is_taken(agentsrv, url):
    """``http`` means ``ws``."""
    assert agentsrv("list", "--url", url.replace("ws://", "http://")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["status", "ffffffff", "--json"], 2, "not_found"),
        (["run", "x", "--agent", "nobody", "--json"], 2, "invalid_command"),
        (["run", "x", "--agent", "broken", "--json"], 1, "task_failed"),
        (["list", "--json", "--url", "ws://127.0.0.1:1"], 3, "no_server"),
        (["list", "--status", "foo", "--json"], 2, "invalid_command"),
    ],
)
def test_with_json_errors_are_json_too(agentsrv, arguments, code, error):
    """One object on stderr, with the code and whether to try again."""
    result = agentsrv(*arguments)
    assert result.code == code
    told = json.loads(result.err)["error"]
    assert told["code"] == error
    assert isinstance(told["retryable"], bool)
    assert told["message"]


@pytest.mark.parametrize("columns", [40, 59])
def test_a_narrow_list_has_room_for_the_text(url, agentsrv, columns):
    """At least half of the line."""
    agentsrv("run", "a text of its own", "--agent", "greeter", "--param", "name=Ada")
    with in_terminal("list", "--limit", "1", "--url", url, columns=columns) as terminal:
        assert terminal.end() == 0
    assert "a text of its own" in terminal.lines[0]
    with in_terminal("top", "--url", url, columns=columns) as terminal:
        terminal.wait_for("a text of its")
        terminal.type("q")
        assert terminal.end() == 0


def test_an_object_is_asked_for_with_its_fields():
    """Names, types, defaults and choices."""
    schema = {
        "type": "object",
        "properties": {
            "count": {"type": "integer"},
            "size": {"enum": ["small", "large"], "default": "small"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["count"],
    }
    asked = InputRequired("t/order/1", "order", 1, "What?", schema, None, None, None)
    assert _wording(asked) == (
        'order: What? [JSON: {"count": integer, "size": small|large = "small", "note": any?}, decline] '
    )
