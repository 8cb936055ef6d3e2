"""``agentsrv serve --processes``: several real servers on one port, above a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentsrv.client import Client
from agentsrv.store.postgres.store import PostgresStore
from tests.support.postgres import QUICK, postgres

APPLICATION = "tests.faults.cluster_app:app"
ENDS_WITHIN = 30  # seconds
AGENTSRV = (sys.executable, "-m", "agentsrv")


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """A store of nobody else's."""
    with postgres(*QUICK) as server:
        yield server.dsn()


class Serving:
    """The command, and what it says."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [
                *AGENTSRV,
                "serve",
                "--port=0",
                "--log-format=text",
                "--drain-timeout=0.1",
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, pattern: str) -> str:
        """What the next line with the pattern matches."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(pattern, line):
                return found[0]
        raise AssertionError(f"no {pattern!r} in {''.join(lines)}")


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    """Run it within the block."""
    running = Serving(*arguments)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.communicate(timeout=ENDS_WITHIN)


def nodes(dsn: str) -> dict[str, dict[str, object]]:
    """What ``agentsrv nodes`` tells of each."""
    told = subprocess.run(
        [*AGENTSRV, "nodes", f"--store={dsn}", "--json"], check=True, capture_output=True, text=True
    )
    return {node["name"]: node for node in map(json.loads, told.stdout.splitlines())}


def children(pid: int) -> list[int]:
    """The servers that a process has started."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; waits for that a while."""
    until, stat = time.monotonic() + ENDS_WITHIN, Path(f"/proc/{pid}/stat")
    while time.monotonic() < until:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


async def test_processes_share_a_port_and_the_tasks(dsn):
    """Each is a node of its own; one that dies is started again, and all end together."""
    with serving(APPLICATION, f"--store={dsn}", "--processes=2", "--node=both") as running:
        urls = {running.until(r"ws://\S+") for _ in range(2)}
        assert len(urls) == 1
        found = nodes(dsn)
        assert list(found) == ["both-1", "both-2"]
        assert all(float(str(node["expires_in"])) > 0 for node in found.values())
        async with Client(urls.pop()) as client:
            task = await client.start("x", agent="counter", params={"words": 2})
            records = [record async for record in task.events()]
            assert records[2].data["node"] in found
            assert records[-1].event_type == "task_completed"
        before = children(running.process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert running.until(r"both-\d ended with 137; it starts again in 0.5 s")
        running.until("listening on")
        after = children(running.process.pid)
        assert len(after) == 2
        os.killpg(running.process.pid, signal.SIGINT)  # as Ctrl-C does
        assert running.process.wait(ENDS_WITHIN) == 0
        assert all(map(is_gone, after))


def test_processes_do_not_outlive_their_parent(dsn):
    """Not even where it is killed."""
    with serving(APPLICATION, f"--store={dsn}", "--processes=2") as running:
        for _ in range(2):
            running.until("listening on")
        started = children(running.process.pid)
        running.process.kill()
        try:
            assert all(map(is_gone, started))
        finally:
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--processes=2", "--store=memory:"), "expected postgresql://"),
        (("--role=gateway",), "expected postgresql://"),
        (("nothing:app", "--processes=2", "--store=postgresql://x/x"), "no module 'nothing'"),
    ],
)
def test_what_cannot_be_served_is_told_once(tmp_path, arguments, told):
    """With the exit code of a usage error; nothing is started again and again."""
    ended = subprocess.run(
        [*AGENTSRV, "serve", "--port=0", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
        check=False,
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "starts again" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_nodes_needs_a_store_that_servers_share(tmp_path):
    """And one that answers; before the first server there is nobody in it."""
    with postgres(*QUICK) as empty:
        for store, code, told in (
            ("memory:", 2, "which servers may share"),
            ("postgresql://127.0.0.1:1/x", 2, "cannot inspect the PostgreSQL store"),
            (empty.dsn(), 0, "no server has used this store yet"),
        ):
            ended = subprocess.run(
                [*AGENTSRV, "nodes", f"--store={store}"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (ended.returncode, ended.stdout) == (code, "")
            assert told in ended.stderr


async def test_the_doctor_looks_into_the_store(dsn, capsys, monkeypatch):
    """Which PostgreSQL it is, and who lives there."""
    from agentsrv.cli import doctor

    monkeypatch.delenv("AGENTSRV_CI", raising=False)  # no setting, so it would be one fault more
    store = PostgresStore(dsn, node="one")
    await store.open()
    await store.close()
    assert await doctor.run({"store": dsn, "max_connections": 10}) == 0
    assert re.search(r"ok    store: PostgreSQL \d+\S*, nodes: \d+, tasks", capsys.readouterr().out)
    assert await doctor.run({"store": "postgresql://127.0.0.1:1/x", "max_connections": 10}) == 1
    assert "FAIL  store: cannot inspect the PostgreSQL store" in capsys.readouterr().out


def test_a_list_of_nodes_is_for_people_too(dsn):
    """A heading, and a line for each."""
    with serving(f"--store={dsn}", "--node=listed") as running:
        running.until(r"ws://\S+")
        told = subprocess.run(
            [*AGENTSRV, "nodes", f"--store={dsn}"], check=True, capture_output=True, text=True
        )
    heading, *lines = told.stdout.splitlines()
    assert heading.split() == ["NODE", "ROLE", "AGE", "LEASE", "TASKS", "LAG"]
    assert lines


def test_top_shows_the_nodes_too(dsn):
    """Above the tasks, where it is told which store they share."""
    with serving(f"--store={dsn}", "--node=watched") as running:
        url = running.until(r"ws://\S+")
        told = subprocess.run(
            [*AGENTSRV, "top", f"--url={url}", f"--store={dsn}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
    rows = [line.split() for line in told.stdout.splitlines()]
    heading = rows.index(["NODE", "ROLE", "AGE", "LEASE", "TASKS", "LAG"])
    assert any(row[:2] == ["watched", "all"] for row in rows[heading + 1 :])
    assert ["TASK", "STATUS", "AGE", "STEPS", "WHAT"] in rows[heading + 1 :]
