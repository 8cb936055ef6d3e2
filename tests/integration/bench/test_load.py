from __future__ import annotations

import asyncio

import pytest

from agentsrv.bench import load, wire
from agentsrv.bench.load import Runner
from agentsrv.bench.target import LocalServer, Target
from agentsrv.bench.wire import EventCounter, EventScanner, Refused, command, create
from agentsrv.client import ServerUnavailableError
from tests.bench import ratios
from tests.bench.servers import frame


class Sink(asyncio.Transport):
    """Takes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data) -> None:
        """Keep it."""
        self.written += bytes(data)


def opened(client):
    """The client behind its handshake, with nobody at the other end."""
    client.connection_made(Sink())
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    return client


def task_log(task_id: str) -> bytes:
    """Five events of a task, each behind a frame's header."""
    names = ["task_created", "step_started", "step_progress", "step_completed", "task_completed"]
    events = [frame(name, task_id, seq) for seq, name in enumerate(names, 1)]
    return b"".join(b"\x81\x7e\x00\xfa" + event for event in events)


@pytest.mark.parametrize("size", [1, 7, 60, 250, 1000, 10_000])
async def test_a_stream_is_counted_however_it_is_cut(size):
    """Events, beginnings and ends of tasks are each counted once."""
    runner, counter = opened(Runner(3, 3)), opened(EventCounter())
    running = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    stream = b"".join(task_log(f"{number:016x}") for number in range(3))
    for start in range(0, len(stream), size):
        runner.data_received(stream[start : start + size])
        counter.data_received(stream[start : start + size])
    await running
    assert (runner.events, len(runner.first), len(runner.last)) == (15, 3, 3)
    assert (counter.count, counter.bytes) == (15, len(stream))


async def test_a_runner_keeps_its_width_until_all_is_done():
    """A task that ends makes room for one, and none is started too many."""
    runner = opened(Runner(2, 3))
    running = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    frame_length = len(wire.text_frame(create()))
    sent = []
    for number in range(3):
        sent.append(len(runner._transport.written) // frame_length)
        runner.data_received(task_log(f"{number:016x}"))
    await running
    assert sent == [2, 3, 3]
    assert len(runner._transport.written) == 3 * frame_length


async def test_an_idle_connection_answers_pings():
    """Else the server would drop it in the midst of a measurement."""
    client = opened(EventCounter())
    client.data_received(b"\x89\x04abcd")
    assert client._transport.written == b"\x8a\x84\0\0\0\0abcd"


async def test_what_never_comes_is_told(monkeypatch):
    """With what it was."""
    monkeypatch.setattr(wire, "PATIENCE", 0.01)
    with pytest.raises(Refused, match="caught_up did not come within"):
        await opened(EventScanner()).find(b"caught_up")


async def test_a_load_counts_what_a_real_server_does():
    """Fourteen events a task; none of the latencies is missing."""
    place = LocalServer("memory:")
    try:
        async with place.server() as target:
            run = await load.run(target, 4, 20, connections=2)
            assert (run.tasks, run.events) == (20, 20 * 14)
            assert len(run.first) == len(run.last) == 20
            assert max(run.first) <= max(run.last) <= run.seconds

            client = await EventScanner.connect(target)
            with pytest.raises(Refused, match=r"refuses: .*nobody"):
                await client.ask(command("create", task_description="x", agent="nobody"))
            client.close()

            with pytest.raises(Refused, match="ended with task_failed"):
                await load.run(
                    target, 1, 1, make=lambda w, t: Runner(w, t, create("lag", seconds=0))
                )
    finally:
        place.close()


async def test_connections_take_turns_with_the_servers():
    """So the second one needs the second server."""
    async with ratios.server("bare") as target:
        nobody = [Target("ws://127.0.0.1:1")]
        run = await load.run(target, 1, 1, beside=nobody)
        assert run.tasks == 1
        with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1:1"):
            await load.run(target, 2, 2, connections=2, beside=nobody)


async def test_a_server_that_goes_away_is_told():
    """Whoever waits for it does not wait for ever."""
    async with ratios.server("bare") as target:
        client = await EventCounter().open(target)
    with pytest.raises(Refused, match="closed the connection"):
        await client.until(1)
