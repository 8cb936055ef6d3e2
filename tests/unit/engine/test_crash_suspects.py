"""Poison tasks among harmless ones, on clusters whose order of work is a seed's.

A poison task ends its whole node, as ``os._exit`` would; a supervisor starts it again. However the
crashes, the orderly stops and the cuts fall: no harmless task fails, each poison task fails after a
bounded number of crashes, and only crashes count as losses.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest

from agentsrv.agents.agent import Agent, StepContext
from agentsrv.agents.registry import Registry
from agentsrv.engine.crash_suspects import MAX_LOSSES
from agentsrv.engine.steps import MAX_IDLE_CHECK_INTERVAL
from agentsrv.models.events import Record, decode
from agentsrv.models.plan import Step
from tests.support.shared_memory import Place
from tests.support.simulation import SimulatedLoop, simulate
from tests.support.world import check_log, step
from tests.unit.engine.sample_agents import only
from tests.unit.engine.simulated_cluster import Member

STUCK = 20_000.0  # seconds after which a task that has not ended never will
HARMLESS = ("silent", "streaming", "planned", "asking", "asking_twice", "helped")
KINDS = ("at once", "later", "streaming", "beside", "given up", "half answered", "asked before")
KNOWN = 5.0  # seconds after which the store surely knows that a step only waits


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.seeds(6)
def test_only_poison_tasks_fail(seed: int, nodes: int) -> None:
    """Every seed is another interleaving, and crashes more than once."""
    figures = Counter[str]()
    simulate(Story(seed, nodes, figures).tell(), seed)
    assert figures["crashes"] > 1


@pytest.mark.process
def test_a_seed_gives_the_same_run_in_each_process():
    """Whatever the order of its sets, and whatever ran in the process before."""
    program = (
        "from collections import Counter; from tests.unit.engine.test_crash_suspects import Story\n"
        "from tests.support.simulation import simulate\n"
        "for seed in {seeds}:\n"
        "    story = Story(seed, 3, Counter()); simulate(story.tell(), seed)\n"
        "print(story.trace)"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", program.format(seeds=seeds)],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seeds, hashes in (("[6]", "1"), ("[3, 6]", "2"))
    }
    assert len(traces) == 1
    assert "task_failed" in traces.pop()


class Story:
    """Some nodes under supervisors, harmless tasks, and poison tasks that come at any time."""

    def __init__(self, seed: int, nodes: int, figures: Counter[str]) -> None:
        self.chance = random.Random(seed)
        self.nodes = nodes
        self.figures = figures
        self.place = Place(random.Random(seed), latency=self.chance.choice([0.0, 0.01]))
        self.registry = Registry()
        agents = (self.silent, self.streaming, self.asking, self.asking_twice, self.helped)
        for run in (*agents, self.poison):
            self.registry.add(Agent.of(run, retries=0))
        self.members: list[Member] = []
        self.homes: dict[asyncio.AbstractEventLoop, None] = {}
        self.born = 0
        self.crashes = 0
        self.trace: list[object] = []
        """What has happened, without the ids of tasks, which are drawn anew in each run."""
        self.waiting: dict[str, tuple[int, float]] = {}
        """The harmless tasks that only wait for answers: their attempt, and since when."""
        self.spared: set[tuple[str, int]] = set()
        """Attempts that only waited when their node crashed, for so long that others know."""

    # Agents.

    async def silent(self, step: Step, ctx: StepContext) -> None:
        """Say nothing for up to two minutes."""
        await asyncio.sleep(self.chance.choice([0.1, 3, 30, 120]))

    async def streaming(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Say something all the time."""
        for number in range(20):
            yield f"{number} "
            await asyncio.sleep(1)

    async def asking(self, step: Step, ctx: StepContext) -> None:
        """Wait for somebody, who never comes."""
        with self.resting(ctx):
            await ctx.ask("How many?", int, timeout=600, default=3)

    async def asking_twice(self, step: Step, ctx: StepContext) -> None:
        """Wait for two people."""
        with self.resting(ctx):
            await asyncio.gather(
                ctx.ask("How many?", int, key="a", timeout=600, default=3),
                ctx.ask("And how many?", int, key="b", timeout=600, default=3),
            )

    async def helped(self, step: Step, ctx: StepContext) -> None:
        """Work beside a question, and wait for its answer."""
        async with asyncio.TaskGroup() as group:
            question = ctx.ask("How many?", int, timeout=600, default=3)
            asked = group.create_task(question)
            await asyncio.sleep(self.chance.choice([0.5, 30]))
            with self.resting(ctx, after=MAX_IDLE_CHECK_INTERVAL):
                await asked

    @contextmanager
    def resting(self, ctx: StepContext, *, after: float = 0.0) -> Iterator[None]:
        """Take down that the step only waits; the node finds that within ``after`` seconds."""
        since = asyncio.get_running_loop().time() + after
        self.waiting[ctx.task_id] = (ctx.attempt, since)
        try:
            yield
        finally:
            self.waiting.pop(ctx.task_id, None)

    async def poison(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """End the node that runs this: at once, after a while, amid the text, beside a question."""
        kind = step.input
        question = ctx.confirm("Go on?", key="a")
        if kind == "beside" or (kind == "asked before" and ctx.attempt == 1):
            asyncio.create_task(question)  # noqa: RUF006 - left behind
            await asyncio.sleep(2)
        elif kind == "given up":
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await question
        elif kind == "half answered":
            asyncio.create_task(question)  # noqa: RUF006 - likewise
            await ctx.confirm("Now?", key="b", timeout=1, default=True)
        else:
            question.close()
        if kind == "later":
            await asyncio.sleep(2)
        elif kind == "streaming":
            for number in range(3):
                yield f"{number} "
                await asyncio.sleep(0.5)
        for member in self.members:
            runner = member.worker.live(ctx.task_id)
            if runner is not None and not member.is_dead:
                self.crashes += 1
                self.figures["crashes"] += 1
                self.spare(member)
                member.kill()
                delay = self.chance.uniform(0.1, 2)
                asyncio.get_running_loop().call_later(delay, self.bear_soon)
        await asyncio.sleep(10_000)

    def spare(self, member: Member) -> None:
        """Take down which attempts of a node must not be held for the cause of its crash."""
        known = asyncio.get_running_loop().time() - KNOWN
        for task, (attempt, since) in self.waiting.items():
            if since < known and member.worker.runs(task) and not member.is_cut_off:
                self.spared.add((task, attempt))

    # Nodes.

    def bear_soon(self) -> None:
        """A supervisor starts another process."""
        self.births.add(asyncio.create_task(self.bear()))

    async def bear(self) -> None:
        """Start a node."""
        member = Member(self.place.door(f"node-{self.born}"), self.registry, grace=1.0)
        self.born += 1
        await member.start()
        self.members.append(member)

    async def harm(self) -> None:
        """Stop nodes in an orderly way, and cut them off."""
        loop = asyncio.get_running_loop()
        while loop.time() < 60:
            await asyncio.sleep(self.chance.uniform(5, 20))
            living = [member for member in self.members if not member.is_dead]
            if not living:
                continue
            victim = self.chance.choice(living)
            if self.chance.random() < 0.5:
                await self.bear()
                await victim.stop()
                victim.kill()
                self.figures["stops"] += 1
            elif self.nodes > 1:
                victim.door.cut(stopped=self.chance.random() < 0.5)
                loop.call_later(self.chance.choice([5, 15]), victim.door.mend)
                self.figures["cuts"] += 1

    # All of it.

    async def tell(self) -> None:
        """Run it, and see whom it has failed."""
        self.births: set[asyncio.Task[None]] = set()
        for _ in range(self.nodes):
            await self.bear()
        harming = asyncio.create_task(self.harm())
        gateway = Member(self.place.door("gateway"), self.registry)
        await gateway.start(works=False)
        harmless, poison = [], []
        chain = [step(f"s{n}", "silent", *([f"s{n - 1}"] if n else [])) for n in range(4)]
        for name in HARMLESS:
            steps = chain if name == "planned" else [step("a", name)]
            harmless.append(await gateway.create(*steps))
        for _ in range(self.chance.choice([1, 2, 4])):
            kind = self.chance.choice(KINDS)
            poison.append(await gateway.create(step("a", "poison", input=kind)))
            await asyncio.sleep(self.chance.choice([0, 1, 40]))
        async with asyncio.timeout(STUCK):
            for task in (*harmless, *poison):
                await gateway.subscribe(task)
                await gateway.reader.until(task)
            await harming
        # Each turn of the loop has drawn from one of these, each call of the store from the other.
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self.trace += [loop.time(), loop.chance.random(), self.place.chance.random()]
        for member in (*self.members, gateway):
            member.door.mend()
            await member.stop()
        for task in harmless:
            log = await self.log(task)
            assert log[-1].event_type == "task_completed", f"harmless: {log[-1].data}"
            lost = {(task, each["attempt"]) for each in only(log, "step_lost")}
            assert not lost & self.spared, "a step that only waited was held for the cause"
        for task in poison:
            log = await self.log(task)
            assert log[-1].event_type == "task_failed"
            losses = [each["losses"] for each in only(log, "step_lost")]
            assert max(losses) == MAX_LOSSES
        assert self.crashes <= 12 * len(poison), f"{self.crashes} crashes by {len(poison)}"

    async def log(self, task: str) -> list[Record]:
        """A task's log, which has ended well formed."""
        log = [decode(body) for body in await self.place.read(task, 0, 10_000)]
        self.trace += [(record.event_type, record.timestamp) for record in log]
        check_log(log)
        return log
