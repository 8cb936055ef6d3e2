"""P7: who does not read costs a bounded amount of memory, slows nobody, and loses nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentsrv.bench.figures import percentile
from agentsrv.bench.machine import resident
from agentsrv.server.connection import MAX_UNDER_WAY
from tests.faults.clients import SMALL_BUFFER, Answers, Drops, Reading, flood
from tests.faults.conftest import Ledger
from tests.support.measure import (
    MIB,
    Watch,
    eventually,
    needs_proc,
    sockets,
)
from tests.support.server_process import ServerProcess
from tests.support.wire import PING, TEXT, ConnectionLost, Wire, command, framed, handshake

pytestmark = [pytest.mark.faults, needs_proc]

LONG = (pytest.mark.soak, pytest.mark.timeout(1200))
APPLICATION = "tests.faults.pouring_app:app"
MAX_PER_STALLED = 2.0  # MiB of the server's memory for a client that takes nothing
MAX_ANSWER = 5.0  # seconds in which others are answered while somebody floods
MAX_PER_TASK = 512  # bytes of memory that a finished task may leave behind
NOISE = 2 * MIB  # of the allocator, and of the page cache of SQLite
POUR = {"command": "create", "task_description": "pour finish", "execute": False}
POURED = 0.5  # MiB of events of one such task


@contextmanager
def serving(folder: Path, **limits: float) -> Iterator[ServerProcess]:
    """A server as a process, with these settings; it must end well."""
    options = [
        text
        for name, value in limits.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    server = ServerProcess(folder, APPLICATION, *options)
    server.start()
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0


def pour(wire: Wire, tasks: list[str]) -> None:
    """Execute the tasks one after the other, without following them."""
    wire.send({"command": "subscribe", "all": True})
    for task in tasks:
        wire.send({"command": "execute", "task_id": task, "subscribe": False})
        for body in wire.bodies():
            frame = json.loads(body)
            if frame.get("event_type") == "task_completed":
                break


@pytest.mark.parametrize(
    ("readers", "megabytes", "pause", "stall_timeout"),
    [
        pytest.param(10, 5, 0.001, 1.0, id="short"),
        pytest.param(50, 100, 0.004, 10.0, id="long", marks=LONG),
    ],
)
def test_a_client_that_stops_reading_costs_little_and_loses_nothing(
    *, readers, megabytes, pause, stall_timeout, tmp_path: Path, ledger: Ledger
):
    """A stopped process and sockets that never read, beside clients that do."""
    stopped, silent = 4, 4
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, stall_timeout=stall_timeout))
        driver = stack.enter_context(Wire(server.port, timeout=60))

        def phase(*others: Callable[[list[str]], None]) -> tuple[dict[str, Any], Watch, list[str]]:
            create = POUR | {"params": {"pause": pause}}
            tasks = [driver.ask(create)["task_id"] for _ in range(int(megabytes / POURED))]
            with Reading(server.port, readers) as reading:
                reading.follow(tasks)
                for other in others:
                    other(tasks)
                with Watch(lambda: resident(server.pid)) as memory:
                    pour(driver, tasks)
                    seen = reading.seen()
            return seen, memory, tasks

        without, calm, _ = phase()

        halted = stack.enter_context(Reading(server.port, stopped))
        deaf = [
            stack.enter_context(Wire(server.port, receive_buffer=SMALL_BUFFER, timeout=2))
            for _ in range(silent)
        ]
        drops = Drops(server.port, [*halted.client_ports, *(wire.port for wire in deaf)])
        stack.enter_context(drops)

        def halt(tasks: list[str]) -> None:
            halted.follow(tasks)
            halted.stop()

        def ignore(tasks: list[str]) -> None:
            for wire in deaf:
                for task in tasks:
                    wire.send({"command": "subscribe", "task_id": task})

        beside, memory, tasks = phase(halt, ignore)
        all_dropped = drops.wait(2 * stall_timeout + 5)
        halted.go_on()
        caught_up = halted.seen()
        missed = sum(not resumes(server.port, wire, tasks) for wire in deaf)

    per_stalled = max(0.0, memory.peak - calm.peak) / (stopped + silent) / MIB
    violations = (
        without["wrong"]
        + beside["wrong"]
        + (beside["lost"] > 0)
        + caught_up["wrong"]
        + (caught_up["lost"] < stopped)
        + missed
        + (not all_dropped)
        + (drops.first < 0.9 * stall_timeout)
        + (per_stalled > MAX_PER_STALLED)
    )
    ledger.record(
        "P7",
        faults={"stopped clients": stopped, "clients that never read": silent},
        checked={
            "readers": readers,
            "events": without["events"] + beside["events"] + caught_up["events"],
            "MB read": round((without["bytes"] + beside["bytes"]) / 1e6),
            "RSS MiB before": round(calm.before / MIB, 1),
            "peak without": round(calm.peak / MIB, 1),
            "peak with": round(memory.peak / MIB, 1),
            "MiB per stalled": round(per_stalled, 2),
            "p50 ms without": round(without["p50"], 2),
            "with": round(beside["p50"], 2),
            "p99 ms without": round(without["p99"], 2),
            "p99 with": round(beside["p99"], 2),
            "dropped after s, first": round(drops.first, 1),
            "last": round(drops.last, 1),
        },
        violations=violations,
    )


def resumes(port: int, wire: Wire, tasks: list[str]) -> bool:
    """Whether what a dropped client finds in its buffer, and then after resuming, is all."""
    got: dict[str, list[bytes]] = {task: [] for task in tasks}

    def take(body: bytes) -> None:
        frame = json.loads(body)
        if frame["type"] == "event":
            assert frame["seq"] == len(got[frame["task_id"]]) + 1
            got[frame["task_id"]].append(body)

    try:
        for body in wire.bodies():
            take(body)
    except ConnectionLost:
        pass
    with Wire(port) as again:
        for task in tasks:
            after = len(got[task])
            again.send({"command": "subscribe", "task_id": task, "after_seq": after})
            for body in again.bodies():
                take(body)
                if json.loads(body)["type"] == "caught_up":
                    break
        return all(again.log(task) == events for task, events in got.items())


@pytest.mark.parametrize(
    ("megabytes", "stall_timeout"),
    [
        pytest.param(2, 0.5, id="short"),
        pytest.param(20, 2.0, id="long", marks=LONG),
    ],
)
def test_a_client_that_reads_slowly_is_not_dropped(
    megabytes, stall_timeout, tmp_path: Path, ledger: Ledger
):
    """Whoever takes something within each stall time-out gets everything on one connection."""
    create = POUR | {"execute": True, "params": {"pause": 0}}
    got = expected = lost = 0
    with serving(tmp_path, stall_timeout=stall_timeout) as server:
        with Wire(server.port) as wire:
            tasks = []
            for _ in range(int(megabytes / POURED)):
                tasks.append(wire.ask(create)["task_id"])
                for body in wire.bodies():
                    if json.loads(body).get("event_type") == "task_completed":
                        break
            expected = sum(len(wire.log(task)) for task in tasks)
        started = time.monotonic()
        with Wire(server.port, receive_buffer=SMALL_BUFFER) as slow:
            for task in tasks:
                slow.send({"command": "subscribe", "task_id": task})
            try:
                for body in slow.bodies():
                    got += b'"type":"event"' in body[:40]
                    if got == expected:
                        break
                    time.sleep(0.03)  # a slow reader is what is tested
            except ConnectionLost:
                lost = 1
        lasted = time.monotonic() - started
    assert lost or lasted > 3 * stall_timeout
    ledger.record(
        "P7",
        faults={"slow reader": 1},
        checked={"events": expected, "read": got, "s": round(lasted, 1)},
        violations=lost + (got != expected),
    )


def padded(fields: dict[str, Any]) -> bytes:
    """A command of 200 bytes: what waits as a frame is then small beside what it asks for."""
    return framed(TEXT, json.dumps(fields).encode().ljust(200))


BATCH = 100  # frames that a flood sends at once
BIG_PING = framed(PING, b"x" * 125)
# What is sent, and how many MiB of the server's memory it may cost. What a client sends is read
# 256 KiB at a time, and waits as objects.
FLOODS = {
    "pings": ([BIG_PING] * BATCH, 1.0),
    "help": ([padded({"command": "help", "id": number}) for number in range(BATCH)], 3.0),
    "help without ids": ([padded({"command": "help"})] * BATCH, 3.0),
    "commands among pings": ([padded({"command": "ping"}), *[BIG_PING] * BATCH], 1.0),
}


@pytest.mark.parametrize("what", FLOODS)
@pytest.mark.parametrize(
    ("clients", "stall_timeout"),
    [
        pytest.param(4, 1.0, id="short"),
        pytest.param(20, 10.0, id="long", marks=LONG),
    ],
)
def test_a_flood_whose_answers_are_not_read_is_bounded(
    what, clients, stall_timeout, tmp_path: Path, ledger: Ledger
):
    """The server stops reading from who does not read, goes on with others, and drops it."""
    frames, most = FLOODS[what]
    seconds = 3 * stall_timeout + 2
    outcomes: list[tuple[int, bool]] = []
    with serving(tmp_path, stall_timeout=stall_timeout) as server, Wire(server.port) as wire:
        wire.ask({"command": "help"})
        with Watch(lambda: resident(server.pid)) as memory, Answers(server.port) as answers:
            data = b"".join(frames)
            threads = [
                threading.Thread(
                    target=lambda: outcomes.append(flood(server.port, data, seconds)), name="flood"
                )
                for _ in range(clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    per_client = memory.growth / clients / MIB
    cut_off = sum(was_cut for _, was_cut in outcomes)
    ledger.record(
        "P7",
        faults={
            f"floods of {what}": clients,
            "frames": len(frames) * sum(sent for sent, _ in outcomes),
        },
        checked={
            "cut off": cut_off,
            "RSS MiB before": round(memory.before / MIB, 1),
            "MiB per client": round(per_client, 2),
            "others' p50 ms": round(percentile(answers.seconds, 0.5) * 1000, 2),
            "others' p99 ms": round(percentile(answers.seconds, 0.99) * 1000, 2),
        },
        violations=(clients - cut_off) + (per_client > most) + (answers.longest > MAX_ANSWER),
    )


def test_answers_that_are_long_are_bounded_too(tmp_path: Path, ledger: Ledger):
    """A client asks for the state of a large task a hundred times, and reads none of it."""
    length = 0
    with serving(tmp_path, stall_timeout=1) as server, Wire(server.port) as wire:
        task = wire.ask(POUR | {"execute": True, "params": {"pause": 0}, "subscribe": True})
        for body in wire.bodies():
            if json.loads(body).get("event_type") == "task_completed":
                break
        status = {"command": "status", "task_id": task["task_id"]}
        for _ in range(5):
            length = len(json.dumps(wire.ask(status)))
        data = b"".join(command({**status, "id": number}) for number in range(BATCH))
        with Watch(lambda: resident(server.pid)) as memory, Answers(server.port) as answers:
            _, cut_off = flood(server.port, data, 5)
    growth, size = memory.growth / MIB, length / MIB
    bound = 4 * MAX_UNDER_WAY * size  # the task, its answer, the write that joins them
    ledger.record(
        "P7",
        faults={"long answers not read": BATCH},
        checked={
            "MiB of one answer": round(size, 2),
            "MiB of memory": round(growth, 1),
            "others' p99 ms": round(percentile(answers.seconds, 0.99) * 1000, 2),
        },
        violations=(not cut_off) + (growth > bound) + (answers.longest > MAX_ANSWER),
    )


@pytest.mark.parametrize(
    ("connections", "open_timeout"),
    [
        pytest.param(200, 1.0, id="short"),
        pytest.param(4000, 5.0, id="long", marks=LONG),
    ],
)
def test_half_open_handshakes_are_closed_in_time(
    connections, open_timeout, tmp_path: Path, ledger: Ledger
):
    """Connections that say nothing, or half a request, or a byte now and then."""
    with serving(tmp_path, open_timeout=open_timeout) as server, ExitStack() as stack:
        with Wire(server.port) as wire:
            wire.ask({"command": "ping"})
        before = sockets(server.pid)
        memory = stack.enter_context(Watch(lambda: resident(server.pid)))
        held = stack.enter_context(Watch(lambda: sockets(server.pid), every=0.2))
        answers = stack.enter_context(Answers(server.port))
        half = handshake(server.port)[:60]
        started = time.monotonic()
        idle = []
        for number in range(connections):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            if number % 2:
                sock.sendall(half)
            idle.append(sock)
        opened = time.monotonic() - started
        while time.monotonic() - started < open_timeout / 2:
            for sock in idle[1::4]:
                sock.sendall(b"x")
            time.sleep(0.1)
        closed = eventually(
            lambda: sockets(server.pid) <= before + 1, opened + 2 * open_timeout + 5
        )
        lasted = time.monotonic() - started
        with Wire(server.port) as wire:
            assert wire.ask({"command": "ping"})["type"] == "reply"
    per_connection = memory.growth / connections / 1024
    ledger.record(
        "P7",
        faults={"half-open handshakes": connections},
        checked={
            "held at once": held.growth - 1,
            "all closed after s": round(lasted, 1),
            "KiB per connection": round(per_connection, 1),
            "others' p99 ms": round(percentile(answers.seconds, 0.99) * 1000, 2),
        },
        violations=(not closed) + (per_connection > 64) + (answers.longest > MAX_ANSWER),
    )


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param((200, 1000, 2000), id="short"),
        pytest.param((1000, 2000, 10_000), id="long", marks=LONG),
    ],
)
def test_finished_tasks_leave_nothing_in_memory(counts, tmp_path: Path, ledger: Ledger):
    """When it has warmed up, the server is as large behind thousands of tasks as behind a few."""
    sizes = [0] * len(counts)
    with serving(tmp_path) as server, Wire(server.port, timeout=30) as wire:
        for number, before, count in zip(range(3), (0, *counts), counts, strict=False):
            run_tasks(wire, count - before)
            sizes[number] = resident(server.pid)
    more, growth = counts[-1] - counts[-2], sizes[-1] - sizes[-2]
    ledger.record(
        "P7",
        faults={"tasks that end": counts[-1]},
        checked={
            **{
                f"RSS MiB at {n}": round(size / MIB, 1)
                for n, size in zip(counts, sizes, strict=True)
            },
            "bytes per task": round(growth / more),
        },
        violations=int(growth > MAX_PER_TASK * more + NOISE),
    )


def run_tasks(wire: Wire, count: int, at_once: int = 50) -> None:
    """Run tasks of three short steps, follow them all, some of them at the same time."""
    started = ended = 0
    create = {"command": "create", "task_description": "finish count finish", "execute": True}
    create |= {"params": {"events": 5}}
    while ended < count:
        while started < count and started - ended < at_once:
            wire.send({**create, "id": started})
            started += 1
        for body in wire.bodies():
            frame = json.loads(body)
            assert frame["type"] != "error", frame
            if frame.get("event_type") == "task_completed":
                ended += 1
                break
