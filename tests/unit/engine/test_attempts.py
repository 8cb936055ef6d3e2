"""What an attempt leaves behind changes nothing of the next one, nor of other steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.models.plan import Step
from agentsrv.models.task import StepState
from tests.support.simulation import simulate
from tests.support.world import World, check_log, running, step

HALF = "\ud83d"
OTHER_HALF = "\ude00"


@pytest.mark.parametrize("second", ["b", OTHER_HALF, "b" + HALF])
@pytest.mark.parametrize("cached", [False, True])
def test_half_a_pair_does_not_begin_the_next_text(cached: bool, second: str):
    """Half a surrogate pair at the end of a failed attempt is lost with it.

    The next attempt runs the agent again, or takes what another task has put into the cache.
    """

    async def story() -> None:
        calls = 0

        async def torn(step: Step, ctx: StepContext) -> AsyncIterator[str]:
            nonlocal calls
            calls += 1
            if calls == 1:
                yield "a" + HALF
                raise ValueError("first")
            yield second

        world = World()
        world.agent(torn, cache=60.0)
        async with running(world):
            task = await world.create(step("a", "torn"))
            await world.reader.until(task, "step_retrying")
            if cached:
                await world.reader.until(await world.create(step("a", "torn")))
            await world.reader.until(task)
        texts = [
            (record.data["attempt"], record.data["output"])
            for record in world.reader.of(task)
            if record.event_type == "partial_output"
        ]
        (end,) = (r for r in world.reader.of(task) if r.event_type == "step_completed")
        assert end.data["cached"] is cached
        expected = second.replace(HALF, "\ufffd").replace(OTHER_HALF, "\ufffd")
        assert [texts[0], (2, "".join(text for _, text in texts[1:]))] == [(1, "a"), (2, expected)]
        check_log(await world.log(task))

    simulate(story())


def test_a_question_left_behind_does_not_keep_the_turn_of_a_suspect(monkeypatch):
    """Its answer comes while another suspect has the turn, and the attempt ends without it."""
    monkeypatch.setattr(StepState, "record_progress", lambda _: None)  # it stays a suspect

    async def story() -> None:
        end = asyncio.Event()
        left: list[asyncio.Task[object]] = []

        async def leaves(step: Step, ctx: StepContext) -> str:
            left.append(asyncio.create_task(ctx.confirm("Which?")))
            await end.wait()
            return "done"

        world = World()
        world.agent(leaves)
        suspects = world.environment.suspects
        other = object()
        async with running(world):
            task = await world.create(step("a", "leaves"))
            asked = await world.reader.until(task, "input_required")
            runner = world.worker.live(task)
            assert runner is not None
            runner.state.steps["a"].losses = 2
            await suspects.admit(other, 2)
            await world.respond(asked.data["input_id"], value=True)
            await asyncio.sleep(0.01)
            end.set()
            await world.reader.until(task)
            suspects.release(other)
            await asyncio.wait(left)
            async with asyncio.timeout(60):
                await suspects.admit(object(), 2)

    simulate(story())
