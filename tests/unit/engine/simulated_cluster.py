"""Several nodes in one simulated loop, above one place; they die, hang and are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from agentsrv.agents.registry import Registry
from agentsrv.delivery.subscriptions import Subscriber
from agentsrv.engine.cluster.follower import CommitFollower
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.commands import CommandHandler
from agentsrv.engine.store_events import StoreEvents
from tests.support.shared_memory import Place, SharedMemory
from tests.support.simulation import now
from tests.support.world import OWNER, Reader, World, die


class Member(World):
    """One node of a cluster."""

    def __init__(
        self, door: SharedMemory, registry: Registry | None = None, **options: Any
    ) -> None:
        super().__init__(door, registry, node=door.node, **options)
        self.door = door
        self.remote_commands = RemoteCommands(door, self.worker)
        self.command_handler = CommandHandler(
            door,
            self.registry,
            self.worker,
            now=now,
            grace=self.environment.grace,
            remote_commands=self.remote_commands,
        )
        self.follower = CommitFollower(door, self.broker, self.worker.runs, now)
        self.listener = StoreEvents(
            self.broker, self.worker, remote_commands=self.remote_commands, follower=self.follower
        )
        self.is_dead = False
        self._beside: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """The node's name."""
        return self.door.node

    @property
    def is_cut_off(self) -> bool:
        """Whether the node cannot reach the store."""
        return not self.door._mended.is_set()

    async def start(self, *, works: bool = True) -> None:
        """Take part; as a gateway it claims nothing."""
        await self.door.open(self.listener)
        if works:
            self.worker.start()
        self._beside = [
            asyncio.create_task(self.remote_commands.run()),
            asyncio.create_task(self.follower.run()),
        ]

    async def stop(self) -> None:
        """Drain and go."""
        if self.is_dead:
            return
        await self.worker.drain(0.001)
        self._end()
        await self.door.close()

    def kill(self) -> None:
        """Die as by kill -9."""
        self.is_dead = True
        self.door.die()
        if self.worker._loop_task is not None:
            die(self)
        self._end()

    def client(self, owner: str = OWNER) -> tuple[Subscriber, Reader]:
        """Another connection."""
        reader = Reader()
        return Subscriber(self.broker, reader, owner), reader

    def _end(self) -> None:
        for task in self._beside:
            task.cancel()


@asynccontextmanager
async def cluster(
    place: Place, names: str = "ab", registry: Registry | None = None, gateways: str = ""
) -> AsyncIterator[list[Member]]:
    """Nodes of these names, of one letter each; those of ``gateways`` claim nothing."""
    registry = registry or Registry()
    async with AsyncExitStack() as stack:
        members = []
        for name in names:
            member = Member(place.door(name), registry)
            stack.push_async_callback(member.stop)
            await member.start(works=name not in gateways)
            members.append(member)
        yield members
