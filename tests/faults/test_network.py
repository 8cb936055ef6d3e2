"""P3: whatever the network does, resuming behind event N brings N+1, N+2 and so on, each once."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from agentsrv.agents.agent import StepContext
from agentsrv.delivery.subscriptions import Subscriber
from agentsrv.errors import AgentsrvError, UnavailableError
from agentsrv.models.events import is_terminal
from agentsrv.models.plan import Step
from tests.faults.conftest import Ledger
from tests.support.measure import eventually, needs_proc, sockets
from tests.support.proxy import Cut, CuttingProxy, Kind
from tests.support.server_process import ServerProcess
from tests.support.simulation import SimulatedLoop
from tests.support.wire import ConnectionLost, Wire
from tests.support.world import OWNER, World, step, subscribe

pytestmark = pytest.mark.faults
T = TypeVar("T")

# A model: followers of tasks in a simulated loop, cut off at every frame.


async def talk(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write twenty pieces, some of them at once."""
    for number in range(20):
        yield f"{number} "
        if number % 3:
            await asyncio.sleep(0.1)


async def stumble(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Fail twice behind a piece of text, then succeed."""
    yield f"attempt {ctx.attempt} "
    if ctx.attempt < 3:
        raise RuntimeError("not yet")


async def fail(step: Step, ctx: StepContext) -> None:
    """Fail for good."""
    await ctx.progress(1, 2, "in vain")
    raise ValueError("never")


async def wait(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write a piece, and nothing more until cancelled."""
    yield "so far"
    await asyncio.Event().wait()


class Follower:
    """Somebody who wants each event of a task once, over any number of connections.

    A connection breaks after ``budget`` frames; what was sent behind is lost on the way.
    """

    def __init__(self, world: World, task_id: str, after: int) -> None:
        self.task_id = task_id
        self.after = after
        self.events: list[bytes] = []
        self.connections = 0
        self.has_room = True
        self._world = world
        self._budget = 0
        self._subscriber: Subscriber | None = None

    @property
    def last(self) -> int:
        """The number of the last event that has come."""
        return self.after + len(self.events)

    async def connect(self, budget: int) -> None:
        """Resume behind the last event, on a connection that bears ``budget`` frames."""
        self.cut()
        self._budget, self.has_room = budget, True
        self.connections += 1
        self._subscriber = Subscriber(self._world.broker, self, OWNER)
        await subscribe(self._world, self._subscriber, self.task_id, self.last)

    def cut(self) -> None:
        """Break the connection, if there is one."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.close()

    def resume(self) -> None:
        """Take frames again."""
        self.has_room = True
        if self._subscriber is not None:
            self._subscriber.resume()

    # The sink of whichever connection there is.

    def deliver(self, events: Sequence[bytes]) -> None:
        """See ``Sink.deliver``."""
        for event in events:
            if self._spend():
                self.events.append(bytes(event))

    def caught_up(self, task_id: str, seq: int) -> None:
        """See ``Sink.caught_up``."""
        if self._spend():
            assert seq <= self.last, f"caught up with {seq}, but the last that came is {self.last}"

    def refused(self, task_id: str, refusal: AgentsrvError) -> None:
        """See ``Sink.refused``."""
        raise AssertionError(refusal)

    def _spend(self) -> bool:
        """Whether the connection bears one frame more; it breaks as soon as it does not."""
        if self._subscriber is None:
            return False
        self._budget -= 1
        if self._budget == 0:
            # From a turn of its own, as a socket tells: not out of the midst of a delivery.
            asyncio.get_running_loop().call_soon(self._lose, self._subscriber)
        return self._budget >= 0

    def _lose(self, subscriber: Subscriber) -> None:
        if self._subscriber is subscriber:
            self.cut()


class Resumption(RuleBasedStateMachine):
    """Tasks in every state, and followers whose connections break at any frame."""

    tasks = Bundle("tasks")
    pending = Bundle("pending")
    followers = Bundle("followers")
    connections = 0
    events = 0

    @initialize(
        target=followers,
        seed=st.none() | st.integers(0, 1000),
        budgets=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    )
    def begin(self, seed: int | None, budgets: list[int]) -> Any:
        """Start with a followed task of each kind, in an ordered loop or one that shuffles."""
        self.loop = SimulatedLoop(seed)
        self.followed: list[Follower] = []
        self.ids: list[str] = []

        async def start() -> World:
            world = World(concurrency=3, grace=1.0)
            for agent in (talk, stumble, fail, wait):
                world.agent(agent)
            await world.open()
            world.worker.start()
            return world

        self.world = self.do(start())
        for agent, budget in zip((talk, stumble, fail, wait), budgets, strict=True):
            task_id = self.run(agent.__name__)
            self.followed.append(Follower(self.world, task_id, 0))
            self.do(self.followed[-1].connect(budget))
        return multiple(*self.followed)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the loop run until ``work`` is done."""
        return self.loop.run_until_complete(work)

    @rule(target=pending, agents=st.lists(st.sampled_from(["talk", "stumble"]), max_size=2))
    def create(self, agents: list[str]) -> str:
        """Put a task into the log only."""
        steps = [step(f"s{number}", agent) for number, agent in enumerate(["talk", *agents])]
        return self._remember(self.do(self.world.create(*steps, execute=False)))

    @rule(target=tasks, agent=st.sampled_from(["talk", "stumble", "fail", "wait"]))
    def start(self, agent: str) -> str:
        """Run a task of one step."""
        return self.run(agent)

    @rule(target=tasks, task_id=consumes(pending))
    def execute(self, task_id: str) -> str:
        """Run what was put into the log."""

        async def try_it() -> None:
            with suppress(AgentsrvError):  # it was cancelled before
                await self.world.execute(task_id)

        self.do(try_it())
        return task_id

    @rule(task_id=tasks | pending)
    def cancel(self, task_id: str) -> None:
        """Cancel a task in whatever state it is."""
        self.do(self._cancel(task_id))

    @rule(target=followers, task_id=tasks | pending, data=st.data(), budget=st.integers(1, 12))
    def follow(self, task_id: str, data: st.DataObject, budget: int) -> Follower:
        """Follow a task from any of its events on."""
        head = self.do(self.world.status(task_id))["seq"]
        follower = Follower(self.world, task_id, data.draw(st.integers(0, head), label="after"))
        self.followed.append(follower)
        self.do(follower.connect(budget))
        return follower

    @rule(follower=followers, budget=st.integers(1, 12))
    def reconnect(self, follower: Follower, budget: int) -> None:
        """Resume where the last connection broke, or break it and resume."""
        self.do(follower.connect(budget))

    @rule(follower=followers)
    def cut(self, follower: Follower) -> None:
        """Break a connection between two frames."""
        follower.cut()

    @rule(follower=followers)
    def stall(self, follower: Follower) -> None:
        """Take nothing more for now."""
        follower.has_room = False

    @rule(follower=followers)
    def unstall(self, follower: Follower) -> None:
        """Take frames again."""

        async def resume() -> None:
            follower.resume()

        self.do(resume())

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        """Let events pour in."""
        self.do(asyncio.sleep(seconds))

    @invariant()
    def each_event_has_come_once_and_in_order(self) -> None:
        """What a follower has is its task's log from where it asked, without a gap."""
        for follower in getattr(self, "followed", ()):
            numbers = [json.loads(event)["seq"] for event in follower.events]
            first = follower.after + 1
            assert numbers == list(range(first, first + len(numbers)))

    def teardown(self) -> None:
        """End all tasks; every follower then gets the rest, frame by frame."""
        if not hasattr(self, "world"):
            return
        try:
            self.do(asyncio.wait_for(self._end(), 1000))
            self.each_event_has_come_once_and_in_order()
        finally:
            self.do(self.world.worker.drain(0.001))
            self.loop.close()

    async def _cancel(self, task_id: str) -> None:
        while True:
            try:
                await self.world.cancel(task_id)
            except UnavailableError:  # what may be tried again is, as a client would
                await asyncio.sleep(0.001)
            else:
                return

    async def _end(self) -> None:
        for task_id in self.ids:
            await self._cancel(task_id)
        await asyncio.sleep(5)
        for follower in self.followed:
            log = list(await self.world.store.read(follower.task_id, 0, 10_000))
            assert is_terminal(log[-1])
            for _ in range(len(log) + 1):
                if follower.last < len(log):
                    await follower.connect(1)
                    await asyncio.sleep(0.01)
            assert follower.events == [bytes(event) for event in log[follower.after :]]
            Resumption.connections += follower.connections
            Resumption.events += len(follower.events)

    def run(self, agent: str) -> str:
        """Run a task of one step."""
        return self._remember(self.do(self.world.create(step("a", agent))))

    def _remember(self, task_id: str) -> str:
        self.ids.append(task_id)
        return task_id


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(40, 30, id="short"),
        pytest.param(4000, 60, id="long", marks=pytest.mark.soak),
    ],
)
def test_resuming_has_no_gap_and_no_duplicate_whatever_the_state(examples, steps, ledger: Ledger):
    """Connections that break at any frame of tasks in any state, while events pour in."""
    Resumption.connections = Resumption.events = 0
    wanted = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(Resumption, settings=wanted)
    ledger.record(
        "P3",
        faults={"simulated disconnects": Resumption.connections},
        checked={"histories": examples, "events": Resumption.events},
        violations=0,
    )


# The real thing: a server, and a proxy that cuts.

LIMITS = {
    "AGENTSRV_PING_INTERVAL": "0.5",
    "AGENTSRV_PING_TIMEOUT": "0.5",
    "AGENTSRV_STALL_TIMEOUT": "1",
    "AGENTSRV_OPEN_TIMEOUT": "2",
}
EVENT = 240  # bytes of one, about
SILENCE = 0.4  # seconds after which a client gives a silent connection up


class Pursuit:
    """A client that follows one task to its end through a proxy, and counts what is wrong."""

    def __init__(self, port: int, task_id: str) -> None:
        self.task_id = task_id
        self.events: list[bytes] = []
        self.connections = 0
        self.within_frame = 0
        self.wrong = 0
        self._port = port

    def run(self) -> None:
        """Connect until the terminal event has come."""
        while not self.events or not is_terminal(self.events[-1]):
            self.connections += 1
            try:
                with Wire(self._port, timeout=SILENCE) as wire:
                    try:
                        self._take(wire)
                    finally:
                        self.within_frame += wire.is_within_frame
            except (ConnectionLost, OSError):
                continue

    def _take(self, wire: Wire) -> None:
        after = len(self.events)
        wire.send({"command": "subscribe", "task_id": self.task_id, "after_seq": after})
        for body in wire.bodies():
            frame = json.loads(body)
            if frame["type"] == "event":
                self.wrong += frame["seq"] != len(self.events) + 1
                self.events.append(body)
                if is_terminal(body):
                    return


@needs_proc
@pytest.mark.parametrize(
    ("clients", "events", "cuts", "patience"),
    [
        pytest.param(2, 500, 10, 0, id="short"),
        pytest.param(4, 2500, 50, 15, id="long", marks=pytest.mark.soak),
    ],
)
async def test_streams_that_are_cut_go_on_without_a_gap(
    *, clients, events, cuts, patience, tmp_path: Path, ledger: Ledger
):
    """Connections cut at random bytes: closed, reset, or silent; each event comes once.

    The server gives up its end of the silent ones; with ``patience`` (seconds) it is waited for.
    """
    server = ServerProcess(tmp_path, "tests.faults.pouring_app:app", environment=LIMITS)
    chance = random.Random(7)
    left = clients * cuts
    lock = threading.Lock()

    def next_cut() -> Cut | None:
        nonlocal left
        with lock:
            left -= 1
            if left < 0:
                return None
        kind = (Kind.CLOSE, Kind.RESET, Kind.CLOSE, Kind.RESET, Kind.SILENCE)[left % 5]
        if chance.random() < 0.1:  # within the handshake's request, or the command
            return Cut(chance.randrange(1, 250), kind, upstream=True)
        return Cut(chance.randrange(1, events * EVENT // cuts), kind)

    proxy = CuttingProxy(server.port, next_cut)
    await asyncio.to_thread(server.start)
    try:
        async with proxy.running():
            with Wire(server.port) as wire:
                before = sockets(server.pid)
                command = {
                    "command": "create",
                    "task_description": "count",
                    "params": {"events": events},
                    "execute": True,
                    "subscribe": False,
                }
                pursuits = [
                    Pursuit(proxy.port, wire.ask(command)["task_id"]) for _ in range(clients)
                ]
            await asyncio.gather(*(asyncio.to_thread(pursuit.run) for pursuit in pursuits))
            with Wire(server.port) as wire:
                logs = [wire.log(pursuit.task_id) for pursuit in pursuits]
            # The proxy keeps its end of the silent ones.
            await asyncio.to_thread(eventually, lambda: sockets(server.pid) < before, patience)
            kept = sockets(server.pid) - before + 1 if patience else 0
    finally:
        assert await asyncio.to_thread(server.stop) == 0
    wrong = sum(pursuit.wrong for pursuit in pursuits)
    differing = sum(pursuit.events != log for pursuit, log in zip(pursuits, logs, strict=True))
    got = sum(len(pursuit.events) for pursuit in pursuits)
    assert got >= clients * events
    ledger.record(
        "P3",
        faults={
            **{kind.value: count for kind, count in proxy.cuts.items()},
            "within a frame": sum(pursuit.within_frame for pursuit in pursuits),
        },
        checked={"connections": proxy.connections, "events": got, "sockets kept": kept},
        violations=wrong + differing + kept,
    )
    assert sum(proxy.cuts.values()) >= clients * cuts * 0.9
