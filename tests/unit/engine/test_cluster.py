"""Nodes that die, hang and are cut off, in a loop that shuffles what is ready."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agentsrv.agents.agent import Agent, StepContext
from agentsrv.agents.registry import Registry
from agentsrv.errors import AgentsrvError, NotFoundError, UnavailableError
from agentsrv.models.events import Record, decode
from agentsrv.models.plan import Step
from tests.support.shared_memory import Place
from tests.support.simulation import simulate
from tests.support.world import check_log, step, subscribe
from tests.unit.engine.sample_agents import only
from tests.unit.engine.simulated_cluster import Member

TASKS = 4
CHAOS = 60.0  # seconds in which nodes die
STUCK = 400.0  # seconds after which a task that has not ended never will
PATIENCE = 30.0  # seconds until a client takes its node for dead


@pytest.mark.seeds(15)
def test_a_cluster_keeps_its_promises(seed: int) -> None:
    """Every seed is another interleaving of faults."""
    simulate(Story(seed, Counter()).tell(), seed)


def test_the_clusters_suffer_faults() -> None:
    """Nodes die and tasks are asked for from elsewhere, often enough to show something."""
    figures = Counter[str]()
    for seed in range(8):
        simulate(Story(seed, figures).tell(), seed)
    assert figures["recoveries"] > 2
    assert figures["asked of other nodes"] > 8


class Story:
    """Three nodes, some tasks, and people who want things of them from anywhere."""

    def __init__(self, seed: int, figures: Counter[str]) -> None:
        self.chance = random.Random(seed)
        self.figures = figures
        self.place = Place(
            random.Random(seed),
            latency=self.chance.choice([0.0, 0.01, 0.2]),
            drops=self.chance.choice([0.0, 0.3, 1.0]),
        )
        self.registry = Registry()
        for run in (self.lively, self.asking, self.listening):
            self.registry.add(Agent.of(run))
        self.members: list[Member] = []
        self.born = 0
        self.is_over = False
        self.acknowledged: dict[str, list[tuple[str, Any]]] = {}

    # Agents.

    async def lively(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Write some words."""
        for number in range(4):
            yield f"{number} "
            await asyncio.sleep(self.chance.choice([0, 0.05, 3]))

    async def asking(self, step: Step, ctx: StepContext) -> str:
        """Ask something."""
        return str(await ctx.ask("How many?", int))

    async def listening(self, step: Step, ctx: StepContext) -> str:
        """Wait for two messages."""
        found = []
        async for message in ctx.messages():
            found.append(str(message))
            if len(found) == 2:
                break
        return " ".join(found)

    # Nodes.

    async def bear(self, *, works: bool = True) -> None:
        """Start another node."""
        member = Member(self.place.door(f"node-{self.born}"), self.registry, grace=1.0)
        self.born += 1
        await member.start(works=works)
        self.members.append(member)

    def anyone(self) -> Member:
        """A node that accepts connections."""
        return self.chance.choice([member for member in self.members if not member.is_dead])

    async def harm(self) -> None:
        """Do something to a node, again and again."""
        loop = asyncio.get_running_loop()
        end = loop.time() + CHAOS
        while loop.time() < end:
            await asyncio.sleep(self.chance.uniform(0, 12))
            victim = self.anyone()
            match self.chance.choice(["kill", "cut", "stop", "restart"]):
                case "kill":
                    victim.kill()
                    self.figures["kills"] += 1
                    await self.bear()
                case "cut":
                    await self.cut(victim, stopped=False)
                case "stop":
                    await self.cut(victim, stopped=True)
                case _:
                    await self.bear()
                    await victim.stop()
                    victim.kill()
                    self.figures["restarts"] += 1

    async def cut(self, victim: Member, *, stopped: bool) -> None:
        """Cut a node off for a while that may be longer than a lease."""
        victim.door.cut(stopped=stopped)
        self.figures["stops" if stopped else "cuts"] += 1
        loop = asyncio.get_running_loop()
        loop.call_later(self.chance.choice([0.5, 5, 9, 15, 40]), victim.door.mend)

    # People.

    async def call(self, work: Callable[[Member], Awaitable[Any]]) -> Any:
        """Ask some node, and another one until one answers."""
        while True:
            member = self.anyone()
            try:
                async with asyncio.timeout(PATIENCE):
                    return await work(member)
            except (TimeoutError, UnavailableError):
                await asyncio.sleep(0.5)

    async def watch(self, task: str) -> list[Record]:
        """Follow a task from node to node; return what was told."""
        seen: list[Record] = []
        while not (seen and seen[-1].is_terminal):
            member = self.anyone()
            subscriber, reader = member.client()
            try:
                async with asyncio.timeout(PATIENCE):
                    await subscribe(member, subscriber, task, len(seen))
            except (TimeoutError, UnavailableError):
                continue
            stays = asyncio.get_running_loop().time() + self.chance.uniform(1, 40)
            while not member.is_dead and not any(r.is_terminal for r in reader.records):
                await asyncio.sleep(0.25)
                if asyncio.get_running_loop().time() > stays and self.chance.random() < 0.1:
                    break
            subscriber.close()
            seen += reader.records
        return seen

    async def want(self, task: str) -> None:
        """Answer, send and perhaps cancel: what was acknowledged is kept."""
        done = self.acknowledged[task] = []
        mortal = self.chance.random() < 0.3
        for number in range(1000):
            await asyncio.sleep(self.chance.uniform(0, 4))
            if self.is_over:
                return
            member = self.anyone()
            if member.worker.live(task) is None:
                self.figures["asked of other nodes"] += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    match self.chance.choice(["send", "answer", "answer", "cancel"]):
                        case "send":
                            reply = await member.send(task, number)
                            done.append(("send", (number, reply["seq"])))
                        case "answer":
                            status = await member.status(task)
                            for asked in status["inputs"]:
                                await member.respond(asked["input_id"], number)
                                done.append(("answer", (asked["input_id"], number)))
                        case _ if mortal and number > 8:
                            reply = await member.cancel(task, reason=str(number))
                            if not reply["already"]:
                                done.append(("cancel", str(number)))
            except NotFoundError:
                raise
            except (TimeoutError, AgentsrvError):
                pass  # unknown, or refused

    # All of it.

    async def tell(self) -> None:
        """Run it, and see what the promises are worth."""
        for works in (True, True, self.chance.random() < 0.5):
            await self.bear(works=works)
        harming = asyncio.create_task(self.harm())
        steps = (
            step("a", "lively"),
            step("b", "asking", "a"),
            step("c", "listening", "a"),
            step("d", "lively", "b", "c"),
        )
        tasks = []
        for number in range(TASKS):
            key = f"task-{number}"
            tasks.append(
                await self.call(lambda node, k=key: node.create(*steps, idempotency_key=k))  # type: ignore[misc]
            )
        wanting = [asyncio.create_task(self.want(task)) for task in tasks]
        watching = [asyncio.create_task(self.watch(task)) for task in tasks]
        async with asyncio.timeout(STUCK):
            told = await asyncio.gather(*watching)
            await harming
        self.is_over = True
        await asyncio.wait(wanting)
        for want in wanting:
            want.result()
        for member in self.members:
            member.door.mend()
            await member.stop()
        for task, seen in zip(tasks, told, strict=True):
            log = [decode(body) for body in await self.place.read(task, 0, 10_000)]
            self.check(task, log, seen)

    def check(self, task: str, log: list[Record], seen: list[Record]) -> None:
        """What holds for a task, and for those who followed it."""
        check_log(log)
        assert seen == log, f"a client was told {len(seen)} of {len(log)} events"
        done = Counter(each["step_id"] for each in only(log, "step_completed"))
        assert all(times == 1 for times in done.values()), f"steps completed again: {done}"
        sent = Counter(
            (record.data["message"], record.seq)
            for record in log
            if record.event_type == "message_received"
        )
        answered = Counter(
            (each["input_id"], each["value"]) for each in only(log, "input_received")
        )
        ends = only(log, "task_cancelling") + only(log, "task_cancelled")
        cancelled = Counter({each["reason"]: 1 for each in ends})
        found = {"send": sent, "answer": answered, "cancel": cancelled}
        for kind, what in self.acknowledged[task]:
            assert found[kind][what] == 1, f"{kind} {what} is there {found[kind][what]} times"
            self.figures[f"{kind} acknowledged"] += 1
        messages = Counter(message for message, _ in sent)
        assert all(times == 1 for times in messages.values()), "a message is there twice"
        self.figures["recoveries"] += len(only(log, "task_recovered"))
        self.figures[log[-1].event_type] += 1
