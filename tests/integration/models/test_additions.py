"""A command and an event that are added to a copy of the package are known everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[3] / "agentsrv"

COMMAND = '''class Rename(Command):
    """Give a task a title."""

    command: Literal["rename"] = "rename"
    declaration: ClassVar = CommandDeclaration(
        reply=r.SendReply,
        example={"task_id": _TASK, "title": "Throughput"},
        reply_example={"task_id": _TASK, "seq": 13},
        lines=(
            CommandLine(
                "rename",
                "give a task a title",
                (
                    Argument("TASK_ID", "task_id", ArgumentKind.TASK_ID),
                    Argument("TITLE", "title", ArgumentKind.TEXT),
                ),
            ),
        ),
    )
    task_id: TaskId
    title: Text


AnyCommand = (
    Rename
    | Create'''
EVENT = '''@dataclass
class TaskRenamed(Event):
    """The task has another title."""

    event_type = "task_renamed"
    declaration = EventDeclaration(
        task=_WORKING | _stays(TaskStatus.PENDING),
        is_life_cycle=True,
        example={"title": "Throughput", "by": "anonymous"},
    )
    title: str
    by: str

    def fold_task(self, task: TaskState, timestamp: str) -> None:
        task.user_input = self.title


EVENTS: Final[dict'''
PROBE = """
import json
import agentsrv
from agentsrv.models import events as e
from agentsrv.models.task import TaskState
from agentsrv.protocol.schema import document
from agentsrv.protocol.session import Session, help_reply
from agentsrv.protocol.typescript import declarations

schema = document("1.2.3")
session = Session(is_authenticated=True)
state = TaskState("t1")
state.apply(e.TaskCreated("Why?", None, {}, {}), "2026-01-01T00:00:00.000Z")
renamed = e.TaskRenamed("Because", "ada")
state.apply(renamed, "2026-01-01T00:00:01.000Z")
body = e.encode(renamed, "t1", 2, "2026-01-01T00:00:01.000Z")
state.apply(e.TaskQueued(1), "2026-01-01T00:00:02.000Z")
refused = ""
try:
    state.apply(renamed, "2026-01-01T00:00:03.000Z")
except Exception as error:
    refused = str(error)
typed = session.receive("rename 3f2a Because of the loop")
example = schema["components"]["messages"]["rename"]["examples"][0]["payload"]
print(json.dumps({
    "file": agentsrv.__file__,
    "messages": sorted(schema["components"]["messages"]),
    "examples": [
        schema["components"]["messages"][name]["examples"][0]["payload"]
        for name in ("rename", "rename_reply", "task_renamed")
    ],
    "read": type(session.receive(json.dumps(example)).command).__name__,
    "typed": typed.command.model_dump(exclude_none=True),
    "is_abbreviated": typed.is_abbreviated,
    "unauthenticated": json.loads(
        Session(is_authenticated=False).receive(json.dumps(example)).frame
    )["code"],
    "help": [help_reply()["commands"]["rename"], help_reply()["lines"]["rename TASK_ID TITLE"]],
    "typescript": [
        part in declarations(schema) for part in ("rename: RenameReply", "| TaskRenamedEvent")
    ],
    "user_input": state.user_input,
    "refused": refused,
    "is_life_cycle": e.is_life_cycle(body),
    "decoded": e.decode(body).event == renamed,
}))
"""


def replace_once(path: Path, old: str, new: str) -> None:
    """Replace a text that occurs once in a file."""
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which both are added."""
    root = tmp_path_factory.mktemp("added")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, root / "agentsrv", ignore=ignored)
    models = root / "agentsrv" / "models"
    replace_once(models / "commands.py", "AnyCommand = (\n    Create", COMMAND)
    replace_once(models / "events.py", "\nEVENTS: Final[dict", "\n" + EVENT)
    return root


@pytest.fixture(scope="module")
def known(copied: Path) -> dict[str, Any]:
    """Observations of the copy by a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=copied, env={"PYTHONPATH": str(copied)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found["file"].startswith(str(copied))
    return found


def test_the_schema_has_the_command_its_reply_and_the_event(known):
    """Each with its example, and as TypeScript."""
    assert {"rename", "rename_reply", "task_renamed"} <= set(known["messages"])
    command, reply, event = known["examples"]
    assert command == {"command": "rename", "task_id": "3f2a9c0d1b7e4a65", "title": "Throughput"}
    assert (reply["type"], reply["command"], reply["seq"]) == ("reply", "rename", 13)
    assert event["data"] == {"title": "Throughput", "by": "anonymous"}
    assert known["typescript"] == [True, True]


def test_the_session_reads_the_command_in_json_and_as_a_line(known):
    """With the rights that it declares; `help` shows both."""
    assert known["read"] == "Rename"
    assert known["typed"] == {
        "command": "rename",
        "task_id": "3f2a",
        "title": "Because of the loop",
    }
    assert known["is_abbreviated"]
    assert known["unauthenticated"] == "unauthenticated"
    assert known["help"] == [known["examples"][0], "give a task a title"]


def test_the_fold_takes_the_event_where_it_declares_it(known):
    """It changes the state; in another status it is refused. Lists receive it."""
    assert known["user_input"] == "Because"
    assert "a task that is queued takes task_cancelled, task_started" in known["refused"]
    assert known["is_life_cycle"]
    assert known["decoded"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # mypy begins without a cache
def test_the_type_checker_names_what_does_not_carry_the_command_out(copied, tmp_path):
    """The dispatch of a connection ends in `assert_never`."""
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}", "--follow-imports=silent",
         "agentsrv/server/connection.py"],
        cwd=copied, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert 'Argument 1 to "assert_never" has incompatible type "Rename"' in ran.stdout
