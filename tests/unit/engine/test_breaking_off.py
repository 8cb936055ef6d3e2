"""Runs that break off: each is counted, backed off and bounded, and others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentsrv.engine import commands
from agentsrv.engine.runner import TaskRunner
from agentsrv.engine.worker import MAX_BROKEN_RUNS, MAX_FAULTS
from agentsrv.errors import FencedError, InvalidCommandError, ShuttingDownError, UnavailableError
from agentsrv.models.commands import Create
from agentsrv.store.base import Append, Lease
from tests.support.simulation import simulate
from tests.support.world import OWNER, World, check_log, running, step
from tests.unit.engine.sample_agents import quick, sleeper

DAY = 86_400.0


async def talker(step: Any, ctx: Any) -> Any:
    """Write two pieces, with a commit in between."""
    yield "first"
    await asyncio.sleep(1)
    yield "second"


class Spoilt:
    """What is wrong with some tasks of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks: set[str] = set()
        self.runs = 0
        """Claims of these tasks."""
        claim = world.store.claim

        async def counted(node: str, limit: int) -> Any:
            leases = await claim(node, limit)
            self.runs += sum(lease.task_id in self.tasks for lease in leases)
            return leases

        world.store.claim = counted  # type: ignore[method-assign]

    def refuse(self, error: Exception, is_refused: Callable[[bytes], bool]) -> None:
        """Let the store refuse appends of the tasks."""
        append = self.world.store.append

        def refusing(wanted: Append) -> asyncio.Future[None]:
            if wanted.task_id in self.tasks and is_refused(b"\n".join(wanted.events)):
                raise error
            return append(wanted)

        self.world.store.append = refusing  # type: ignore[method-assign, assignment]

    def refuse_reads(self, error: Exception) -> None:
        """Let nobody read the logs of the tasks."""
        read = self.world.store.read

        async def refusing(task_id: str, after: int, limit: int) -> Sequence[bytes]:
            if task_id in self.tasks:
                raise error
            return await read(task_id, after, limit)

        self.world.store.read = refusing  # type: ignore[method-assign]
        self.world.worker._prepared.clear()

    def break_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the server fail when it runs one of the tasks, but for its end."""
        run = TaskRunner.run

        async def breaking(runner: TaskRunner) -> None:
            if runner.state.task_id in self.tasks and runner._final_failure is None:
                raise AssertionError("a fault of the server")
            await run(runner)

        monkeypatch.setattr(TaskRunner, "run", breaking)


def has(*words: bytes) -> Callable[[bytes], bool]:
    """Whether events have one of the words."""
    return lambda events: any(word in events for word in words)


WAYS: dict[str, Callable[[Spoilt, pytest.MonkeyPatch], None]] = {
    "a piece of text": lambda spoilt, _: spoilt.refuse(TypeError("no"), has(b'"second"')),
    "the first events": lambda spoilt, _: spoilt.refuse(
        TypeError("no"), has(b"step_started", b"step_retrying")
    ),
    "a refusal": lambda spoilt, _: spoilt.refuse(InvalidCommandError("no"), has(b'"second"')),
    "the task's end": lambda spoilt, _: spoilt.refuse(OverflowError("no"), has(b"task_completed")),
    "a fault of the server": lambda spoilt, monkeypatch: spoilt.break_runs(monkeypatch),
}
"""What breaks off each run of a task."""

LOST: dict[str, tuple[Callable[[Spoilt], None], int]] = {
    "no append": (lambda spoilt: spoilt.refuse(TypeError("no"), bool), MAX_FAULTS),
    "no read": (lambda spoilt: spoilt.refuse_reads(TypeError("no")), MAX_FAULTS),
    "no read now": (lambda spoilt: spoilt.refuse_reads(UnavailableError("no")), MAX_BROKEN_RUNS),
    "no append now": (lambda spoilt: spoilt.refuse(UnavailableError("no"), bool), MAX_BROKEN_RUNS),
}
"""The same, where nothing at all can be read or written of the task; and after how many runs it is
given up."""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_task_whose_runs_break_off_fails(way, monkeypatch, caplog):
    """After a stated number of runs, with less and less of them; others run meanwhile."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        world.agent(quick)
        spoilt = Spoilt(world)
        async with running(world):
            way(spoilt, monkeypatch)
            task = await world.create(step("a", "talker"), execute=False)
            spoilt.tasks.add(task)
            await world.execute(task)
            began = asyncio.get_running_loop().time()
            for _ in range(30):
                other = await world.create(step("a", "quick"))
                assert (await world.reader.until(other)).event_type == "task_completed"
                await world.command_handler.check_ready()
                await asyncio.sleep(1)
            end = await world.reader.until(task)
            seconds = asyncio.get_running_loop().time() - began
        assert end.event_type == "task_failed"
        assert f"was run {MAX_FAULTS} times and broke off each time" in end.data["error_message"]
        assert spoilt.runs == MAX_FAULTS + 1
        assert 120 < seconds < 300
        assert not world.worker._broken_runs
        assert not world.worker.measures.left_alone
        check_log(await world.log(task))

    simulate(story())


@pytest.mark.parametrize(("way", "most"), LOST.values(), ids=LOST)
def test_a_task_that_cannot_even_fail_is_left_alone(way, most, caplog):
    """The log and a metric say so; nothing of it runs any more, and others run."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        world.agent(quick)
        spoilt = Spoilt(world)
        async with running(world):
            task = await world.create(step("a", "talker"), execute=False)
            spoilt.tasks.add(task)
            await world.execute(task)
            way(spoilt)
            await asyncio.sleep(DAY)
            assert spoilt.runs == most + 1
            assert world.worker.measures.left_alone == 1
            assert world.worker.running == 0
            await world.command_handler.check_ready()
            other = await world.create(step("a", "quick"))
            assert (await world.reader.until(other)).event_type == "task_completed"

    simulate(story())
    (told,) = [record for record in caplog.records if "is left alone" in record.message]
    assert told.levelname == "ERROR"


def test_a_fault_of_the_whole_store_fails_no_task(caplog):
    """It meets several tasks, without a commit in between; they go on when it has passed."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        spoilt = Spoilt(world)
        async with running(world):
            spoilt.refuse(TypeError("no"), bool)
            tasks = [await world.create(step("a", "talker"), execute=False) for _ in range(3)]
            for task in tasks:
                await world.execute(task)
            spoilt.tasks = set(tasks)
            await asyncio.sleep(1200)
            assert spoilt.runs > 3 * MAX_FAULTS
            with pytest.raises(
                UnavailableError, match="fails to commit the events of 3 tasks: Type"
            ):
                await world.command_handler.check_ready()
            spoilt.tasks = set()
            for task in tasks:
                assert (await world.reader.until(task)).event_type == "task_completed"
            await world.command_handler.check_ready()

    simulate(story())


def test_tasks_that_fail_together_are_bounded_too():
    """Where there is no other task whose commits would show that the store works."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        spoilt = Spoilt(world)
        async with running(world):
            spoilt.refuse(TypeError("no"), bool)
            for _ in range(3):
                task = await world.create(step("a", "talker"), execute=False)
                await world.execute(task)
                spoilt.tasks.add(task)
            await asyncio.sleep(DAY)
            assert world.worker.measures.left_alone == 3
            assert spoilt.runs <= 3 * (MAX_BROKEN_RUNS + 1)
            await world.command_handler.check_ready()

    simulate(story())


def test_a_release_that_fails_is_bounded(caplog):
    """By a fault of the store: it is tried again less and less, then the task is left alone."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        spoilt = Spoilt(world)
        releases = 0

        async def release(task_id: str, epoch: int) -> None:
            nonlocal releases
            releases += 1
            raise TypeError("no")

        async with running(world):
            task = await world.create(step("a", "talker"), execute=False)
            spoilt.tasks.add(task)
            spoilt.refuse(TypeError("no"), has(b'"second"'))
            world.store.release = release  # type: ignore[method-assign]
            await world.execute(task)
            await asyncio.sleep(DAY)
            assert (releases, spoilt.runs) == (MAX_FAULTS, 1)
            assert world.worker.measures.left_alone == 1

    simulate(story())


def test_a_long_run_begins_the_count_anew():
    """Faults that are far apart are not those of one cause."""

    async def story() -> None:
        async def lasting(step: Any, ctx: Any) -> Any:
            await asyncio.sleep(1000)
            yield "second"

        world = World()
        world.agent(lasting)
        spoilt = Spoilt(world)
        async with running(world):
            spoilt.refuse(TypeError("no"), has(b'"second"'))
            task = await world.create(step("a", "lasting"), execute=False)
            spoilt.tasks.add(task)
            await world.execute(task)
            await asyncio.sleep(DAY)
            assert spoilt.runs > 3 * MAX_FAULTS
            assert world.reader.types(task)[-1] != "task_failed"

    simulate(story())


async def _hanging() -> None:
    await asyncio.sleep(DAY)


def raising(error: Exception) -> Callable[..., Any]:
    """What raises it."""

    async def call(*_: object) -> None:
        raise error

    return call


NOT_READY: dict[str, tuple[str, Any, str]] = {
    "it waits": ("trouble", "the store cannot write now: full", "cannot write now: full"),
    "it is closed": ("check", raising(UnavailableError("it is closed")), "it is closed"),
    "it fails": ("check", raising(TypeError("a fault")), "cannot be checked: TypeError: a fault"),
    "it hangs": ("check", _hanging, "does not answer within 2 s"),
    "it is away": ("claim", raising(UnavailableError("away")), "no tasks can be claimed: away"),
    "it gives no tasks": ("claim", raising(KeyError("x")), "no tasks can be claimed: KeyError"),
}
"""States of a store in which a server is not ready; the two of commits are above."""


@pytest.mark.parametrize(("name", "value", "reason"), NOT_READY.values(), ids=NOT_READY)
def test_a_server_is_ready_while_its_store_serves_it(name, value, reason):
    """And says why it is not; it is again when that has passed."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            await world.command_handler.check_ready()
            before = getattr(world.store, name)
            setattr(world.store, name, value)
            world.listener.ready()
            await asyncio.sleep(1)
            with pytest.raises(UnavailableError) as refused:
                await world.command_handler.check_ready()
            assert reason in refused.value.message
            setattr(world.store, name, before)
            world.listener.ready()
            await asyncio.sleep(1)
            await world.command_handler.check_ready()
            world.command_handler.draining = True
            with pytest.raises(ShuttingDownError):
                await world.command_handler.check_ready()

    assert commands.READY_WITHIN == 2.0
    simulate(story())


def test_a_task_that_others_take_over_is_not_failed_for_it():
    """However often; only the wait before the next run becomes longer."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        spoilt = Spoilt(world)
        async with running(world):
            task = await world.create(step("a", "talker"), execute=False)
            spoilt.tasks.add(task)
            await world.execute(task)
            spoilt.refuse(FencedError("another worker"), bool)
            await asyncio.sleep(DAY)
            assert MAX_BROKEN_RUNS < spoilt.runs < 2 * DAY / 60
            assert world.worker.measures.left_alone == 0
            spoilt.tasks.clear()
            assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())


def test_a_release_that_fails_in_a_drain_leaves_no_task_alone(caplog):
    """The next start continues it; nothing says that it broke off too often."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)

        async def release(task_id: str, epoch: int) -> None:
            raise TypeError("no")

        async with running(world):
            task = await world.create(step("a", "sleeper"))
            await world.reader.until(task, "step_started")
            world.store.release = release  # type: ignore[method-assign]
            await world.worker.drain(0.1)
        assert world.worker.measures.left_alone == 0

    simulate(story())
    assert "left alone" not in caplog.text


def test_a_release_of_an_ended_task_is_tried_again():
    """A task may have ended before its lease was given back; the store may be away just then."""

    async def story() -> None:
        world = World()
        world.agent(talker)
        store, refusals = world.store, 3
        give_back = store.release

        async def release(task_id: str, epoch: int) -> None:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise UnavailableError("no")
            await give_back(task_id, epoch)

        async with running(world):
            task = await world.create(step("a", "talker"))
            await world.reader.until(task)
            store.release = release  # type: ignore[method-assign]
            lease = Lease(task, 1, len(await world.log(task)), b"{}", OWNER)
            world.worker._prepared[task] = (None, None, 0.0)
            spec = Create(task_description="x").model_dump_json().encode()
            await world.worker._run(lease._replace(spec=spec), None)
            await asyncio.sleep(60)
            assert refusals == -1

    simulate(story())
