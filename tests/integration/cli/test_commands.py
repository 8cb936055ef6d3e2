import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from agentsrv.bench import sizes, suite
from agentsrv.cli import running
from agentsrv.protocol.schema import document
from agentsrv.settings import Settings
from agentsrv.version import __version__
from tests.bench.sizes import TINY
from tests.support.programs import require
from tests.support.terminal import in_terminal

TEXTS = "agentsrv/cli/demo/knowledge"


@pytest.fixture
def task(agentsrv) -> str:
    """The id of a task that has run."""
    result = agentsrv("run", "Greet", "--agent", "greeter", "--param", "name=Ada", "--json")
    task_id: str = json.loads(result.out.splitlines()[0])["task_id"]
    return task_id


def interrupt_when(condition) -> threading.Thread:
    """Send this process a SIGINT when ``condition`` holds."""

    def watch() -> None:
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_run_prints_the_result_and_tells_the_events_beside_it(agentsrv):
    """Only the result is on stdout; stderr says which step did what."""
    result = agentsrv(
        "run", "Greet", "--agent", "greeter", "--param", "name=Ada", "--param", "times=2"
    )
    assert (result.code, result.out) == (0, "Hello Ada\nHello Ada\n")
    lines = result.err.splitlines()
    assert lines[0] == "task created: Greet"
    assert "step_001 started: greeter -" in lines
    assert "step_001 writes:" in lines
    assert lines[-1].startswith("task completed in")


def test_run_as_json_prints_an_event_a_line(agentsrv):
    """With the fields of the frames, and nothing else."""
    result = agentsrv("run", "Greet", "--agent", "greeter", "--param", 'name="Ada"', "--json")
    events = [json.loads(line) for line in result.out.splitlines()]
    assert (result.code, result.err) == (0, "")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["data"]["final_output"] == "Hello Ada\n"


def test_a_failed_task_exits_with_1(agentsrv):
    """And one sentence that says where and why."""
    result = agentsrv("run", "Print", "--agent", "broken")
    assert (result.code, result.out) == (1, "")
    last = result.err.splitlines()[-1]
    assert "failed in step_001" in last
    assert last.endswith("the machine is out of paper")


def test_interrupting_run_cancels_the_task_on_the_server(agentsrv, capfd):
    """Ctrl-C waits for task_cancelled and exits with 130."""
    seen: list[str] = []

    def is_writing() -> bool:
        seen.append(capfd.readouterr().err)
        return "so far" in "".join(seen)

    watcher = interrupt_when(is_writing)
    result = agentsrv("run", "Wait", "--agent", "endless")
    watcher.join()
    assert result.code == 130
    assert "cancelled" in result.err
    newest = agentsrv("list", "--limit", "1", "--json").out
    assert json.loads(newest)["status"] == "cancelled"


def test_a_time_out_cancels_the_task_and_exits_with_5(agentsrv):
    """The log tells why."""
    result = agentsrv("run", "Wait", "--agent", "endless", "--timeout", "0.05", "--json")
    assert result.code == 5
    assert json.loads(result.out.splitlines()[-1])["data"]["reason"] == "timed out"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run", "x", "--agent", "nobody"], 2, "the agents are broken, careful"),
        (["run", "x", "--agent", "greeter"], 2, "params.name: Field required"),
        (["run", "x", "--param", "alone"], 2, "expected NAME=VALUE"),
        (["run", "x", "--url", "ws://127.0.0.1:1"], 3, "no server at ws://127.0.0.1:1"),
        (["list", "--url", "ftp://x"], 2, "expected one like ws://"),
        (["list", "--status", "sleeping"], 2, "status"),
        (["status", "zzz"], 2, "there is no task 'zzz'"),
        (["serve", "--port", "70000"], 2, "port is 70000"),
        (["serve", "--store", "mongo://x"], 2, "expected sqlite:///FILE"),
        (["serve", "--knowledge", "/nowhere"], 2, "expected a folder"),
        (["serve", "nothing.here:app"], 2, "no module 'nothing"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(agentsrv, arguments, code, sentence):
    """On stderr, with its exit code, without a traceback."""
    result = agentsrv(*arguments)
    assert (result.code, result.out) == (code, "")
    [line] = result.err.splitlines()
    assert line.startswith("agentsrv: ")
    assert sentence in line


def test_a_command_that_does_not_exist_is_a_usage_error(agentsrv):
    """As is a missing folder; help is no error."""
    assert agentsrv("fly").code == 2
    assert agentsrv("index", "/nowhere").code == 2
    assert agentsrv("--help").code == 0
    assert agentsrv("--version").out.startswith("agentsrv ")


def test_tail_shows_a_task_from_anywhere_and_exits_as_it_did(agentsrv, task):
    """The beginning of the id is enough."""
    result = agentsrv("tail", task[:13], "--after", "4")
    assert result.code == 0
    assert "Hello Ada" in result.out
    assert "task created" not in result.out
    events = agentsrv("tail", task, "--json").out.splitlines()
    assert [json.loads(event)["seq"] for event in events] == list(range(1, len(events) + 1))


def test_status_tells_all_about_a_task(agentsrv, task):
    """For people, and as JSON."""
    out = agentsrv("status", task[:13]).out
    assert out.startswith(f"task {task}: completed")
    assert "step_001 greeter: completed" in out
    assert out.endswith("Hello Ada\n")
    assert json.loads(agentsrv("status", task, "--json").out)["task_id"] == task


def test_list_shows_the_newest_tasks_first(agentsrv, task):
    """As lines or as JSON, as many as wanted."""
    agentsrv("run", "Greet another", "--agent", "greeter", "--param", "name=Bo", "--json")
    result = agentsrv("list", "--status", "completed", "--limit", "2")
    first, second = result.out.splitlines()
    assert first.endswith("Greet another")
    assert second.startswith(task)
    rows = agentsrv("list", "--limit", "1", "--json").out.splitlines()
    assert json.loads(rows[0])["user_input"] == "Greet another"


class Asking(threading.Thread):
    """A run of an agent that asks, in a process of its own; its terminal is where given."""

    def __init__(self, url, *arguments):
        super().__init__()
        command = [sys.executable, "-m", "agentsrv", "run", "Ask", "--agent", "careful"]
        self.process = subprocess.Popen(
            [*command, "--json", "--url", url, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.events: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.start()

    def run(self) -> None:
        """Read the events."""
        assert self.process.stdout is not None
        with self.process:
            for line in self.process.stdout:
                self.events.append(json.loads(line))
                if self.events[-1]["event_type"] == "input_required":
                    self.asked.set()

    @property
    def input_id(self) -> str:
        """The id of what it asks."""
        assert self.asked.wait(20)
        return str(self.events[-1]["data"]["input_id"])

    @property
    def end(self) -> dict[str, Any]:
        """The data of its last event."""
        self.join(20)
        return dict(self.events[-1]["data"])


def test_a_question_is_answered_from_anywhere(agentsrv, url):
    """By its id or by its task's; the status shows it, and a wrong answer is told."""
    asking = Asking(url)
    input_id = asking.input_id
    task_id = input_id.partition("/")[0]
    assert f"step_001 asks {input_id}: Shall I?" in agentsrv("status", task_id).out
    wrong = agentsrv("respond", input_id, "perhaps")
    assert (wrong.code, wrong.out) == (2, "")
    assert 'found "perhaps"; value: Input should be a valid boolean' in wrong.err
    result = agentsrv("respond", task_id[:13], "yes")
    assert (result.code, result.out) == (0, f"question {input_id} is answered\n")
    assert asking.end["final_output"] == "done"
    late = agentsrv("respond", input_id, "no")
    assert (late.code, late.err) == (2, f"agentsrv: no question '{input_id}' is open\n")
    late = agentsrv("respond", task_id, "no")
    assert (late.code, late.err) == (2, f"agentsrv: task {task_id} asks nothing\n")


def test_an_answer_may_be_refused_and_is_read_as_an_option(agentsrv, url):
    """--decline takes no answer; the word yes is an option where it is one."""
    asking = Asking(url)
    for arguments in ([], ["yes", "--decline"]):
        assert agentsrv("respond", asking.input_id, *arguments).code == 2
    assert agentsrv("respond", asking.input_id, "--decline").out.endswith("is declined\n")
    assert asking.end["error_message"].startswith("InputDeclined: anonymous declined")
    asking = Asking(url, "--param", 'options=["yes", "no"]')
    agentsrv("respond", asking.input_id, "yes")
    assert asking.end["final_output"] == "yes"


CHOOSE = ["--param", 'options=["red", "blue"]']
YES_OR_NO = r"step_001: Shall I\? \[yes \| no, decline\] "
RED_OR_BLUE = r"step_001: Which\? \[red \| blue, decline, Enter for blue\] "


@pytest.mark.parametrize(
    ("arguments", "talk", "end"),
    [
        ([], [(YES_OR_NO, "yes\n")], "done"),
        ([], [(YES_OR_NO, "maybe\n"), ('found "maybe"', ""), (YES_OR_NO, "no\n")], "not done"),
        (CHOOSE, [(RED_OR_BLUE, "red\n")], "red"),
        (CHOOSE, [(RED_OR_BLUE, "\n")], "blue"),
        ([], [(YES_OR_NO, "decline\n")], "InputDeclined: anonymous declined to answer: Shall I"),
        ([], [(YES_OR_NO, "\x04")], "InputDeclined: anonymous declined to answer: Shall I"),
    ],
    ids=["yes", "a wrong one first", "an option", "the default", "decline", "Ctrl-D"],
)
def test_run_asks_the_person_at_the_terminal(url, arguments, talk, end):
    """The prompt says what can be answered; after a wrong answer it comes again."""
    command = ["-m", "agentsrv", "run", "Ask", "--agent", "careful", "--url", url, *arguments]
    terminal = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=20)
    for shown, typed in talk:
        terminal.expect(shown)
        terminal.send(typed)
    terminal.expect(f"\n[^\n]*{end}")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == ("InputDeclined" in end)


def test_a_prompt_ends_with_its_question(url, agentsrv):
    """Somebody else answered: the run goes on without the person at the terminal."""
    with in_terminal("run", "Ask", "--agent", "careful", "--url", url) as terminal:
        terminal.wait_for("step_001: Shall I? [yes | no, decline]")
        newest = json.loads(agentsrv("list", "--limit", "1", "--json").out)["task_id"]
        agentsrv("respond", newest, "yes")
        assert terminal.end() == 0
        assert terminal.lines[1].startswith("▸ Ask")
        assert "done" in terminal.lines


def test_cancel_tells_where_the_task_is(agentsrv, task):
    """Also where there is nothing to cancel any more."""
    assert agentsrv("cancel", task[:13]).out == f"task {task} is completed already\n"


def test_agents_are_shown_with_their_parameters(agentsrv):
    """What a user may give as --param."""
    out = agentsrv("agents").out
    assert "greeter: Greet somebody." in out
    assert "--param name=…  (string, required)" in out
    assert "--param times=…  (integer, default 1)" in out
    assert {agent["name"] for agent in json.loads(agentsrv("agents", "--json").out)} >= {"greeter"}


def test_run_serves_itself_where_there_is_no_server(agentsrv, monkeypatch, tmp_path):
    """With the knowledge that it is given; the usual address is tried first."""
    folder = os.path.abspath(TEXTS)  # noqa: PTH100
    monkeypatch.delenv("AGENTSRV_URL")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "DEFAULT_URL", "ws://127.0.0.1:1")
    result = agentsrv("run", "Why does back-pressure matter?", "--knowledge", folder)
    assert result.code == 0
    assert "back-pressure.md" in result.out
    assert "this process serves itself" in result.err


def test_a_knowledge_folder_is_for_runs_without_a_server(agentsrv, tmp_path):
    """Where one answers, which has its own, the option is refused."""
    result = agentsrv("run", "Hello", "--agent", "greeter", "--knowledge", str(tmp_path))
    assert (result.code, result.out) == (2, "")
    assert "--knowledge" in result.err
    assert "a server answers at ws://127.0.0.1:" in result.err


def test_index_is_where_serve_looks_for_it(agentsrv, monkeypatch, tmp_path):
    """In the folder for state, beside the store that is set, or where an option says.

    What was skipped is counted by reason.
    """
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text("# Tea\n\nTea is made of leaves and hot water.\n")
    (tmp_path / "texts/b.bin").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    result = agentsrv("index", "texts")
    assert result.code == 0
    index = Path(result.out.partition(": ")[0])
    assert ": 1 files, 1 passages" in result.out
    assert index.is_file()
    assert index.parent == Path(os.environ["XDG_STATE_HOME"], "agentsrv")
    monkeypatch.setenv("AGENTSRV_STORE", "sqlite:///mine.db")
    agentsrv("index", "texts")
    assert (tmp_path / "mine.knowledge.db").exists()
    agentsrv("index", "texts", "--out", "elsewhere.db")
    assert (tmp_path / "elsewhere.db").exists()


def test_index_gives_passages_vectors(agentsrv, model_url, monkeypatch, tmp_path):
    """Where a model for them is configured; if it fails, the words are indexed all the same."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text("# Tea\n\nTea is made of leaves and hot water.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTSRV_EMBEDDING_MODEL", "letters")
    monkeypatch.setenv("AGENTSRV_LLM_URL", model_url)
    assert "  1 passages have vectors of letters\n" in agentsrv("index", "texts").out
    monkeypatch.setenv("AGENTSRV_LLM_URL", "http://127.0.0.1:1/v1")
    failed = agentsrv("index", "texts", "--out", "other.db")
    assert failed.code == 1
    assert failed.out.startswith("other.db: 1 files, 1 passages")
    assert "no connection to the model's endpoint" in failed.err


def test_every_setting_is_an_option_of_serve(agentsrv):
    """With the text that stands below it, and its default."""
    out = " ".join(agentsrv("serve", "--help").out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in out
        if field.default not in (None, False, ()):
            default = field.default
            shown = ",".join(default) if isinstance(default, tuple) else default
            assert f"[default: {shown}]" in out
    assert "TCP port; 0 selects a free port." in out


def test_bench_measures_and_writes_the_figures(agentsrv, tmp_path, monkeypatch):
    """On stdout as a table, in the file as JSON."""
    monkeypatch.setattr(sizes, "QUICK", TINY)
    path = tmp_path / "figures.json"
    result = agentsrv("bench", "commit", "--quick", "--store", "memory:", "--json", str(path))
    assert (result.code, result.err) == (0, "")
    assert "commit: From a create to its reply" in result.out
    assert "create to reply p50, ms" in result.out
    figures = json.loads(path.read_text())["figures"]
    assert [each["key"] for each in figures][:2] == ["commit.reply.p50", "commit.reply.p99"]


def test_bench_takes_other_sizes(agentsrv, monkeypatch):
    """The largest numbers of idle connections and of stored events, on servers of this store."""
    asked = []

    async def measure(bench, names, on_progress):
        asked.append((bench, names))

    monkeypatch.setattr(suite, "measure", measure)
    result = agentsrv("bench", "idle", "--connections", "7", "--stored", "28", "--store", "memory:")
    assert result.code == 0
    [(bench, names)] = asked
    assert list(names) == ["idle"]
    assert (bench.sizes.connections, bench.sizes.stored) == ((7,), (0, 28))
    assert bench.place.store == "memory:"


def test_bench_refuses_what_it_cannot_measure(agentsrv, url):
    """A server that is not there, one of another application, two places at once."""
    for arguments, code, told in (
        (["--url", "ws://127.0.0.1:1"], 3, "no server at ws://127.0.0.1:1"),
        (["--url", url], 2, "expected one that was started with agentsrv serve agentsrv.bench.app"),
        (["--url", url, "--store", "memory:"], 2, "--url and --store: expected one of them"),
        (["speed"], 2, "there is no probe 'speed'"),
    ):
        result = agentsrv("bench", *arguments)
        assert (result.code, told in result.err) == (code, True), result.err


def test_mcp_tells_which_extra_it_needs(agentsrv, monkeypatch):
    """Where it is not installed."""
    monkeypatch.setitem(sys.modules, "mcp", None)
    result = agentsrv("mcp")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("not installed: pip install 'agentsrv[mcp]'\n")
    assert len(result.err.splitlines()) == 1


def test_schema_prints_the_published_schema(agentsrv):
    """As JSON that people can read, of this version; no server is asked."""
    result = agentsrv("schema")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == json.loads(json.dumps(document(__version__)))
    assert "\n  " in result.out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("agentsrv ca", {"cancel"}),
        ("agentsrv serve --knowledge", {"--knowledge", "--knowledge-index"}),
    ],
)
def test_bash_completes_commands_and_options(typed, completed):
    """With the script that the command line prints, in a real bash."""
    require("bash")
    script = (
        'eval "$(agentsrv --show-completion bash)"\n'
        f"COMP_WORDS=({typed}) COMP_CWORD={typed.count(' ')}\n"
        '_agentsrv_completion agentsrv; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == completed
