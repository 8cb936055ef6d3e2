"""A store that several nodes of one event loop share: answers late, loses hints, dies by seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agentsrv.errors import FencedError, UnavailableError
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import Use
from agentsrv.store.attempt_marks import AttemptMarks
from agentsrv.store.base import (
    SILENT,
    Append,
    Commit,
    Created,
    Head,
    Lease,
    LogHead,
    NewTask,
    Page,
    Span,
    StoreListener,
)
from agentsrv.store.memory import MemoryStore
from agentsrv.store.postgres.lease import Timing
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import NEWS_WINDOW, USAGE_TTL, Message, Node
from tests.support.store_listener import Heard

T = TypeVar("T")

TIMING = Timing()
LEASE = TIMING.ttl  # seconds


@dataclass(slots=True)
class Letter:
    """A message and what became of it."""

    message: Message
    reply: bytes | None = None
    is_withdrawn: bool = False


class Place(MemoryStore):
    """What the doors lead to. Its clock is the loop's.

    Args:
        chance: Decides how late answers and hints are, and which hints are lost.
        latency: Seconds that a call takes at most, in each direction.
        drops: Share of the hints that is lost.
    """

    def __init__(
        self,
        chance: random.Random | None = None,
        *,
        latency: float = 0.0,
        drops: float = 0.0,
        limits: QueueLimits | None = None,
    ) -> None:
        super().__init__(limits)
        self.chance = chance or random.Random(0)
        self.latency = latency
        self.drops = drops
        self.doors: list[SharedMemory] = []
        self.letters: dict[int, Letter] = {}
        self.holders: dict[str, str] = {}
        """The node that claimed each task last."""
        self.leases: dict[str, float] = {}
        """Until when each node's leases hold."""
        self.lags: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.moved: dict[str, float] = {}
        """When each task's log went on."""
        self.uses: dict[str, tuple[float, Mapping[str, Use]]] = {}
        """What each node told last of its principals, and when."""
        self.is_away = False
        self._posted = 0

    def door(self, name: str, timing: Timing = TIMING) -> SharedMemory:
        """Another node's door."""
        door = SharedMemory(self, name, timing)
        self.doors.append(door)
        return door

    def listen(self, committed: Callable[[Commit], None]) -> None:
        """Have ``committed`` called from now on."""
        self._listener = Heard(committed=committed)

    def late(self) -> float:
        """Seconds that something takes."""
        return self.chance.random() * self.latency

    def lives(self, node: str | None) -> bool:
        """Whether a node's leases hold."""
        return node is not None and self.leases.get(node, 0) > asyncio.get_running_loop().time()

    def holder(self, task_id: str) -> str | None:
        """Who holds the lease of a task."""
        node = self.holders.get(task_id)
        return node if self._queue.is_leased(task_id) and self.lives(node) else None

    def held_by(self, node: str) -> list[str]:
        """The tasks whose lease a node holds, or held when it was alive."""
        leased = self._queue.is_leased
        return [task_id for task_id, by in self.holders.items() if by == node and leased(task_id)]

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``."""
        leases = await super().claim(node, limit)
        self.holders.update((lease.task_id, node) for lease in leases)
        return leases

    def shown(self, head: Head) -> Head:
        """A head as the doors show it."""
        return head._replace(node=self.holder(head.task_id))

    def is_open(self, number: int) -> bool:
        """Whether a message waits for its answer."""
        letter = self.letters[number]
        return letter.reply is None and not letter.is_withdrawn

    def post(self, task_id: str, body: bytes) -> int:
        """Keep a message."""
        self._posted += 1
        self.letters[self._posted] = Letter(Message(self._posted, task_id, body))
        return self._posted

    def orphan(self, *, of: str | None = None) -> None:
        """Take the tasks of a node, or of all whose leases are over."""
        for node in dict.fromkeys(self.holders.values()):  # no set: its order is the process's
            if node == of or not self.lives(node):
                for task_id in self.held_by(node):
                    task = self._tasks[task_id]
                    is_dead = any(door.node == node and door.is_dead for door in self.doors)
                    end = task.lease_end
                    task.lease_end = end.crashed() if is_dead else end.declared()
                    task.head = task.head._replace(epoch=task.head.epoch + 1)
                    self._queue.lose(task_id, task.head.owner)

    def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> list[LogHead]:
        """See ``SharedStore.news``."""
        since = asyncio.get_running_loop().time() - NEWS_WINDOW
        return [
            LogHead(task_id, task.head.owner, task.head.seq)
            for task_id, task in self._tasks.items()
            if task_id in task_ids or (task.head.owner in owners and self.moved[task_id] >= since)
        ]


class SharedMemory:
    """One node's door: a ``SharedStore``.

    A call is under way for a while, there and back. While the node is ``cut`` off, calls wait as
    they would for a network: those that wait for too long end as ``UnavailableError``, whether they
    had come through or not.
    """

    def __init__(self, place: Place, node: str, timing: Timing) -> None:
        self.node = node
        self.lag = 0.0
        self._listener = SILENT
        self.damage: dict[str, str] = {}
        self.trouble: str | None = None
        self.calls: list[str] = []
        """The names of the calls so far."""
        self._place = place
        self._timing = timing
        self._mended = asyncio.Event()
        self._mended.set()
        self._is_dead = False
        self.is_dead = False
        """Whether its process is gone; a stop that was declared before counts for more."""
        self._stops = False
        self.marks: AttemptMarks | None = None
        self.commits_starts = True
        self._is_stopped = False
        self._is_lost = False
        self._beaten_at = 0.0
        self._ticking: asyncio.Task[None] | None = None
        self._trips: set[asyncio.Task[Any]] = set()

    # What happens to nodes.

    def cut(self, *, stopped: bool = False) -> None:
        """Cut the node off; where it is ``stopped``, its own clock does not tell it of that."""
        self._mended.clear()
        self._is_stopped = stopped

    def mend(self) -> None:
        """Let it in again."""
        self._mended.set()

    def die(self) -> None:
        """End it as kill -9 does: what was sent may arrive, and nothing comes back."""
        self.is_dead = not self._stops
        self._is_dead = True
        self._mended.set()
        if self._ticking is not None:
            self._ticking.cancel()

    # The store.

    async def open(self, listener: StoreListener = SILENT) -> None:
        """See ``Store.open``."""
        self._listener = listener
        self._place.started[self.node] = asyncio.get_running_loop().time()
        self._beat()
        self._ticking = asyncio.create_task(self._tick())

    async def announce_stop(self) -> None:
        """See ``Store.announce_stop``."""
        self._stops = True

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._ticking is not None:
            self._ticking.cancel()
        if not self._is_dead:
            self._place.orphan(of=self.node)
            self._place.leases.pop(self.node, None)
            self._place.uses.pop(self.node, None)

    async def check(self) -> None:
        """See ``Store.check``."""
        await self.head("")

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""

        def create() -> Created:
            created = _at_once(self._place.create(task))
            return created._replace(head=self._place.shown(created.head))

        return await self._call("create", create)

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""

        def head() -> Head | None:
            found = _at_once(self._place.head(task_id))
            return None if found is None else self._place.shown(found)

        return await self._call("head", head)

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        return await self._call("find", lambda: _at_once(self._place.find(owner, prefix)))

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        return await self._call(
            "find_key", lambda: _at_once(self._place.find_key(owner, idempotency_key))
        )

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        return await self._call("read", lambda: _at_once(self._place.read(task_id, after, limit)))

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes]]:
        """See ``Store.read_each``."""
        return await self._call("read_each", lambda: _at_once(self._place.read_each(spans)))

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        return await self._call("spec", lambda: _at_once(self._place.spec(task_id)))

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        return await self._call("state", lambda: _at_once(self._place.state(task_id)))

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        return await self._call(
            "list", lambda: _at_once(self._place.list(owner, status, limit, cursor))
        )

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""

        def write() -> None:
            for number, _ in append.replies:
                if not self._place.is_open(number):
                    raise FencedError(f"message {number} was answered or taken back")
            self._place.append(append).result()
            for number, reply in append.replies:
                self._place.letters[number].reply = reply
                self._hint(lambda door: door._listener.inbox())

        return self._trip("append", write)

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``."""

        def claim() -> Sequence[Lease]:
            if self._is_lost or not self._place.lives(self.node):
                return ()  # a node that has lost its lease gets nothing until it has another
            self._place.orphan()
            return _at_once(self._place.claim(self.node, limit))

        return await self._call("claim", claim)

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""

        def release() -> None:
            _at_once(self._place.release(task_id, epoch))
            self._hint(lambda door: door._listener.ready())

        await self._call("release", release)

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._call("purge", lambda: _at_once(self._place.purge(before, limit)))

    @property
    def queued(self) -> int:
        """See ``Store.queued``."""
        return self._place.queued

    def queued_by(self, owner: str) -> int:
        """See ``Store.queued_by``."""
        return self._place.queued_by(owner)

    # What nodes share.

    async def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> Sequence[LogHead]:
        """See ``SharedStore.news``."""
        return await self._call("news", lambda: self._place.news(task_ids, owners))

    async def post(self, task_id: str, body: bytes) -> int:
        """See ``SharedStore.post``."""

        def post() -> int:
            self._hint(lambda door: door._listener.inbox())
            return self._place.post(task_id, body)

        return await self._call("post", post)

    async def withdraw(self, number: int) -> bytes | None:
        """See ``SharedStore.withdraw``."""

        def withdraw() -> bytes | None:
            letter = self._place.letters[number]
            letter.is_withdrawn = True
            return letter.reply

        return await self._call("withdraw", withdraw)

    async def replies(self, numbers: Sequence[int]) -> Mapping[int, bytes]:
        """See ``SharedStore.replies``."""
        letters = self._place.letters

        def replies() -> Mapping[int, bytes]:
            found = {number: letters[number].reply for number in numbers if number in letters}
            return {number: reply for number, reply in found.items() if reply is not None}

        return await self._call("replies", replies)

    async def inbox(self) -> Sequence[Message]:
        """See ``SharedStore.inbox``."""

        def inbox() -> Sequence[Message]:
            place = self._place
            messages = [
                letter.message for number, letter in place.letters.items() if place.is_open(number)
            ]
            return [each for each in messages if place.holder(each.task_id) == self.node]

        return await self._call("inbox", inbox)

    async def reply(self, number: int, body: bytes) -> None:
        """See ``SharedStore.reply``."""

        def reply() -> None:
            place = self._place
            letter = place.letters[number]
            is_ours = place.holder(letter.message.task_id) in (self.node, None)
            if is_ours and place.is_open(number):
                letter.reply = body
            self._hint(lambda door: door._listener.inbox())

        await self._call("reply", reply)

    async def share(self, uses: Mapping[str, Use]) -> Sequence[Mapping[str, Use]]:
        """See ``SharedStore.share``."""

        def share() -> Sequence[Mapping[str, Use]]:
            told, at = self._place.uses, asyncio.get_running_loop().time()
            told[self.node] = (at, uses)
            since = at - USAGE_TTL
            return [use for node, (at, use) in told.items() if node != self.node and at > since]

        return await self._call("share", share)

    async def nodes(self) -> Sequence[Node]:
        """See ``SharedStore.nodes``."""
        place, at = self._place, asyncio.get_running_loop().time()
        await asyncio.sleep(0)
        return [
            Node(name, "all", place.started[name], until - at, len(held), place.lags[name])
            for name, until in sorted(place.leases.items())
            for held in [place.held_by(name)]
        ]

    # The way there and back.

    async def _call(self, name: str, work: Callable[[], T]) -> T:
        return await asyncio.shield(self._trip(name, work))

    def _trip(self, name: str, work: Callable[[], T]) -> asyncio.Task[T]:
        self.calls.append(name)
        trip = asyncio.get_running_loop().create_task(self._travel(work))
        self._trips.add(trip)
        trip.add_done_callback(self._returned)
        return trip

    async def _travel(self, work: Callable[[], T]) -> T:
        """Do ``work`` at the place a moment later; its answer comes later still."""
        place = self._place
        self._check_alive()
        await asyncio.sleep(place.late())
        self._check_alive(0.5)
        await self._way()
        commits: list[Commit] = []
        place.listen(commits.append)
        result = work()
        for commit in commits:
            self._announce(commit)
        await asyncio.sleep(place.late())
        await self._way()
        self._check_alive()
        for commit in commits:
            self._listener.committed(commit)
        return result

    def _check_alive(self, share: float = 1.0) -> None:
        """Let only so many calls of a dead node come further."""
        if self._is_dead and self._place.chance.random() < share:
            raise UnavailableError("the node is dead")

    async def _way(self) -> None:
        """Wait until the place can be reached, as long as that makes sense."""
        try:
            async with asyncio.timeout(self._gives_up):
                await self._mended.wait()
        except TimeoutError:
            raise UnavailableError(f"the store is out of reach for {self._gives_up:g} s") from None

    def _returned(self, trip: asyncio.Task[Any]) -> None:
        self._trips.discard(trip)
        if not trip.cancelled():
            trip.exception()  # whoever wanted to know may be gone

    def _announce(self, commit: Commit) -> None:
        news = LogHead(commit.task_id, commit.owner, commit.after + len(commit.events))
        self._place.moved[commit.task_id] = asyncio.get_running_loop().time()
        self._hint(lambda door: door._listener.news([news]), own=False)
        self._hint(lambda door: door._listener.ready())

    def _hint(self, tell: Callable[[SharedMemory], Any], *, own: bool = True) -> None:
        """Tell the doors of something: late, not at all, or twice."""
        chance, loop = self._place.chance, asyncio.get_running_loop()
        for door in self._place.doors if own else [d for d in self._place.doors if d is not self]:
            for _ in range(2 if chance.random() < 0.1 else 1):
                if chance.random() >= self._place.drops:
                    loop.call_later(self._place.late(), door._hear, tell)

    def _hear(self, tell: Callable[[SharedMemory], Any]) -> None:
        if not self._is_dead and self._mended.is_set():
            tell(self)

    # The lease.

    @property
    def _gives_up(self) -> float:
        """Seconds without a beat after which a node stops what it runs."""
        return self._timing.ttl - self._timing.margin

    def _beat(self) -> None:
        at = asyncio.get_running_loop().time()
        self._beaten_at, self._is_lost = at, False
        self._place.leases[self.node] = at + self._timing.ttl
        self._place.lags[self.node] = self.lag

    def _lose(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._listener.leases_lost()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._timing.renew_interval, self._timing.sweep_interval) / 2)
            is_late = loop.time() - self._beaten_at >= self._gives_up
            if is_late and (self._mended.is_set() or not self._is_stopped):
                self._lose()
            if not self._mended.is_set():
                continue
            if self._is_lost:
                self._place.orphan(of=self.node)  # nobody here goes on with them
            if self._is_lost or loop.time() - self._beaten_at >= self._timing.renew_interval:
                self._beat()
            self._listener.ready()
            self._listener.inbox()


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")
