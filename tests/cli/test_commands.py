import json
import os
import signal
import threading
import time

import pytest

from agentsrv import cli
from agentsrv.bench import sizes
from agentsrv.cli import running
from agentsrv.settings import Settings
from tests.bench.sizes import TINY

TEXTS = "examples/knowledge"


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
        (["run", "x", "--agent", "nobody"], 2, "there are: analyzer, broken"),
        (["run", "x", "--agent", "greeter"], 2, "params.name: Field required"),
        (["run", "x", "--param", "alone"], 2, "expected NAME=VALUE"),
        (["run", "x", "--url", "ws://127.0.0.1:1"], 3, "no server at ws://127.0.0.1:1"),
        (["list", "--url", "ftp://x"], 2, "expected one like ws://"),
        (["list", "--status", "sleeping"], 2, "status"),
        (["status", "zzz"], 2, "no task's id begins with 'zzz'"),
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


def test_index_is_where_serve_looks_for_it(agentsrv, monkeypatch, tmp_path):
    """Beside the store, or where it is told; what was skipped is counted by reason."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text("# Tea\n\nTea is made of leaves and hot water.\n")
    (tmp_path / "texts/b.bin").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    result = agentsrv("index", "texts")
    assert result.code == 0
    assert result.out.startswith("agentsrv.knowledge.db: 1 files, 1 passages")
    assert (tmp_path / "agentsrv.knowledge.db").exists()
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
        if field.default is not None:
            assert f"[default: {field.default}]" in out
    assert "TCP port; 0 takes a free one." in out
    assert cli.__all__ == ["main"]


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
    """The largest numbers of idle connections and of stored events."""
    monkeypatch.setattr(sizes, "QUICK", TINY)
    result = agentsrv("bench", "idle", "stored", "--quick", "--connections", "7", "--stored", "28")
    assert result.code == 0
    assert "with 7 idle connections" in result.out
    assert "28 events" in result.out
    assert "280 events" not in result.out


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
