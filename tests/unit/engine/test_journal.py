"""Whatever a store does with an append, those who wait for the commit are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine import recovery
from agentsrv.engine.journal import Journal
from agentsrv.errors import AgentsrvError, FencedError, UnavailableError
from agentsrv.models import events as e
from agentsrv.models.plan import Step
from agentsrv.models.task import TaskState
from agentsrv.store.base import Append, Lease
from agentsrv.store.memory import MemoryStore
from agentsrv.telemetry.server_metrics import ServerMetrics
from tests.support.shared_memory import Place
from tests.support.simulation import now, simulate
from tests.support.world import World, check_log, running, step
from tests.unit.engine.sample_agents import quick
from tests.unit.engine.simulated_cluster import Member, cluster

FAULTS: dict[str, BaseException] = {
    "a refusal": FencedError("another writer"),
    "a store that is away": UnavailableError("not now"),
    "a fault of the store": KeyError("place"),
    "a value that cannot be stored": ValueError("embedded null"),
}
OUTSIDE: dict[str, BaseException] = {
    "a cancellation": asyncio.CancelledError(),
    "a fault that is no Exception": SystemExit(1),
}
"""What an append raises only when it is under way: at once it would end the loop."""
CASES = [(fault, when) for fault in FAULTS.values() for when in ("raised", "at once", "later")]
CASES += [(fault, when) for fault in OUTSIDE.values() for when in ("at once", "later")]


class Failing(MemoryStore):
    """Fails each append, at once or a moment later."""

    def __init__(self, fault: BaseException, when: str) -> None:
        super().__init__()
        self.fault = fault
        self.when = when

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        del append
        if self.when == "raised":
            raise self.fault
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self.when == "at once":
            self.fail(done)
        else:
            loop.call_later(1, self.fail, done)
        return done

    def fail(self, done: asyncio.Future[None]) -> None:
        """Let the append fail."""
        if isinstance(self.fault, asyncio.CancelledError):
            done.cancel()
        else:
            done.set_exception(self.fault)


@pytest.mark.parametrize(("fault", "when"), CASES)
def test_every_error_of_an_append_reaches_those_who_wait(fault, when, caplog):
    """All calls of ``commit``, those that come later, and the runner; the log has the stack."""
    measures, lost = ServerMetrics(), list[AgentsrvError]()

    async def story() -> None:
        journal = Journal(
            Failing(fault, when),
            Lease("t1", 1, 0, b"{}", "ann"),
            TaskState("t1"),
            now=now,
            on_lost=lost.append,
            measures=measures,
        )
        journal.append(e.TaskCreated("do it", None, {}, {}))
        waiting = [asyncio.create_task(journal.commit()) for _ in range(3)]
        done, hanging = await asyncio.wait(waiting, timeout=100)
        assert not hanging
        assert all(isinstance(each.exception(), AgentsrvError) for each in done)
        with pytest.raises(AgentsrvError):
            await journal.commit()
        assert journal.is_closed
        assert len(lost) == 1

    simulate(story())
    is_fault = not isinstance(fault, AgentsrvError)
    assert measures.store_faults.total == is_fault
    assert ("by a fault of its own" in caplog.text) is is_fault
    assert (type(fault).__name__ in caplog.text) is is_fault


def test_a_task_runs_again_after_a_fault_of_the_store(caplog):
    """From its log, as after any other loss; other tasks do not notice."""

    async def story() -> None:
        async with cluster(Place(), "a") as (here,):
            here.agent(quick)
            appending, faults = here.door.append, 1

            def append(append: Append) -> Any:
                nonlocal faults
                if faults and b"step_completed" in b"".join(append.events):
                    faults -= 1
                    raise TypeError("a fault")
                return appending(append)

            here.door.append = append  # type: ignore[method-assign]
            task = await here.create(step("a", "quick"))
            assert (await here.reader.until(task)).event_type == "task_completed"
            assert "task_recovered" in here.reader.types(task)
            check_log(await here.log(task))
            assert here.worker.measures.store_faults.total == 1

    simulate(story())
    assert "TypeError: a fault" in caplog.text


def test_a_worker_claims_again_after_a_fault_of_the_store(caplog):
    """The store will not say that it can claim again."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        claiming, faults = world.store.claim, 3

        async def claim(node: str, limit: int) -> Any:
            nonlocal faults
            if faults:
                faults -= 1
                raise TypeError("cannot unpack a row")
            return await claiming(node, limit)

        world.store.claim = claim  # type: ignore[method-assign]
        async with running(world):
            task = await world.create(step("a", "quick"))
            assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())
    assert "cannot unpack a row" in caplog.text


def test_a_listener_that_fails_keeps_nobody_waiting(caplog):
    """The append is durable, and its caller hears of it."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        publish = world.listener.committed

        def listen(commit: Any) -> None:
            publish(commit)
            raise LookupError("a listener's fault")

        world.listener.committed = listen
        async with running(world):
            task = await world.create(step("a", "quick"))
            assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())
    assert "a listener's fault" in caplog.text


def test_a_subscriber_hears_of_a_fault_of_the_store(caplog):
    """Instead of waiting for events that nobody reads; the log has the incident."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"))
            await world.reader.until(task)
            read_each = world.store.read_each

            async def broken(spans: Any) -> Any:
                raise LookupError("a fault")

            world.store.read_each = broken  # type: ignore[method-assign]
            await world.subscribe(task)
            await asyncio.sleep(1)
            (refusal,) = world.reader.refusals
            assert refusal.code == "internal"
            assert task in refusal.message
            world.store.read_each = read_each  # type: ignore[method-assign]
            await world.subscribe(task)
            await asyncio.sleep(1)
            assert world.reader.marks

    simulate(story())
    assert "incident" in caplog.text


def test_a_task_whose_report_fails_does_not_hold_up_the_review(monkeypatch, caplog):
    """After a crash the others run, though one of the tasks cannot be looked at."""

    async def story() -> None:
        async with cluster(Place(), "a") as (here,):

            async def waiting(step: Any, ctx: Any) -> None:
                await asyncio.sleep(5)

            here.agent(waiting)
            tasks = [await here.create(step("a", "waiting")) for _ in range(2)]
            for task in tasks:
                await here.reader.until(task, "step_started")
            here.kill()
            looking, broken = recovery.interrupted_attempts, 1

            def interrupted(state: Any, lease: Lease) -> Any:
                nonlocal broken
                if broken:
                    broken -= 1
                    raise LookupError("a fault")
                return looking(state, lease)

            monkeypatch.setattr("agentsrv.engine.worker.interrupted_attempts", interrupted)
            again = Member(here.door._place.door("b"), here.registry)
            await again.start()
            for task in tasks:
                await again.subscribe(task)
                assert (await again.reader.until(task)).event_type == "task_completed"
            await again.stop()

    simulate(story())
    assert "its run broke off" in caplog.text


def test_the_room_for_output_is_that_of_all_lives_of_a_task():
    """A journal of the same log has counted what earlier attempts wrote, too."""

    async def writer(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        yield "x" * 100
        if ctx.attempt < 3:
            raise ValueError("again")
        await asyncio.sleep(1000)

    async def story() -> None:
        world = World()
        world.agent(writer)
        async with running(world):
            task = await world.create(step("a", "writer"))
            await asyncio.sleep(100)
            state = TaskState.fold(task, await world.store.read(task, 0, 100))
            lease = Lease(task, 1, state.seq, b"{}", "ann")
            journal = Journal(
                world.store, lease, state, now=now, on_lost=lambda _: None, measures=ServerMetrics()
            )
            assert state.steps["a"].output == "x" * 100
            assert journal.characters_written == 300
            await world.cancel(task)

    simulate(story())
