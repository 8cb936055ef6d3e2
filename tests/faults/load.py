"""A load on a server that may die at any moment, and everything that the clients were told."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.faults.checker import Stored, Violations

TERMINAL = ("task_completed", "task_failed", "task_cancelled")
UNDECIDED = ("unavailable", "shutting_down")  # what a server that is about to end may answer
ASK_AGAIN = 0.05  # seconds before a command that was answered so is sent again
RETRY_PAUSE = 0.01  # seconds between attempts to connect
NO_SERVER = (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake)


@dataclass(eq=False)
class Job:
    """One task as its client means it; ``key`` is also its description."""

    key: str
    execute: bool
    """Whether ``create`` executes it, or a command of its own."""
    cancel_after: int | None
    """The number of events after which the client cancels it."""
    task_id: str | None = None
    executed: bool = False
    cancelled: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A command that was acknowledged."""

    command: str
    job: Job
    frame: Mapping[str, Any]


@dataclass(eq=False)
class Life:
    """One connection from its handshake to its end."""

    socket: ClientConnection
    asked: dict[int, tuple[str, Job | None]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    """The number of the next event of each task that is followed."""
    cancelling: set[Job] = field(default_factory=set)


class Load:
    """Creates, executes and cancels tasks on several connections, each of which comes back.

    A command without an answer is sent again on the next connection, a ``create`` with the
    same idempotency key; one that is answered ``unavailable`` by a server that lives on, on the
    same one. Subscriptions go on at the last event or begin anew, by chance.
    ``run`` owns the connections; it returns when all tasks have ended after ``finish``, or
    when ``quota`` tasks have.
    """

    def __init__(
        self,
        url: str,
        *,
        seed: int = 0,
        connections: int = 4,
        window: int = 3,
        quota: int | None = None,
        cancels: float = 0.2,
        agent: str | None = None,
        name: str = "job",
    ) -> None:
        self.url = url
        self.jobs: list[Job] = []
        self.told: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.replies: list[Reply] = []
        self.errors: Counter[str] = Counter()
        self.wrong = Violations()
        self.reconnects = 0
        self.goaways = 0
        self.resent = 0
        self.asked = asyncio.Event()
        """Set by each command that is sent; for those who want to be in time with one."""
        self._connections = connections
        self._window = window
        self._left = quota
        self._name = name
        self._cancels = cancels
        self._agent: dict[str, str] = {} if agent is None else {"agent": agent}
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._job_of: dict[str, Job] = {}
        self._lives: dict[int, Life] = {}
        self._stopping = False

    @property
    def frames(self) -> int:
        """How many events the clients have, each counted once."""
        return sum(map(len, self.told.values()))

    @property
    def open_jobs(self) -> list[Job]:
        """The tasks whose end was not told yet."""
        return [job for job in self.jobs if not job.ended]

    async def run(self) -> None:
        """Work until there is no more to do."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._connection(number))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run within the block, and no longer."""
        task = asyncio.create_task(self.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def finish(self) -> None:
        """Create no more tasks; ``run`` ends with those that there are."""
        self._left = 0
        await self._wake()

    async def stop(self) -> None:
        """Let ``run`` end now, with tasks under way."""
        self._stopping = True
        await self._wake()

    async def _wake(self) -> None:
        for life in list(self._lives.values()):
            try:
                await life.socket.send(orjson.dumps({"command": "ping"}), text=True)
            except ConnectionClosed:
                continue

    async def _connection(self, number: int) -> None:
        own: list[Job] = []
        while not self._is_done(own):
            try:
                async with connect(
                    self.url,
                    compression=None,
                    ping_interval=None,
                    open_timeout=5,
                    close_timeout=1,
                    proxy=None,
                ) as socket:
                    life = self._lives[number] = Life(socket)
                    await self._converse(life, own)
            except NO_SERVER:
                self.reconnects += number in self._lives
                await asyncio.sleep(RETRY_PAUSE)
            finally:
                self._lives.pop(number, None)

    def _is_done(self, own: list[Job]) -> bool:
        return self._stopping or (self._left == 0 and all(job.ended for job in own))

    async def _converse(self, life: Life, own: list[Job]) -> None:
        for job in own:
            if not job.ended:
                self.resent += job.task_id is None
                await self._go_on(life, job)
        while True:
            while self._left != 0 and sum(not job.ended for job in own) < self._window:
                job = self._new_job()
                own.append(job)
                await self._go_on(life, job)
            if self._is_done(own):
                return
            await self._take(life, await life.socket.recv(decode=False))

    def _new_job(self) -> Job:
        if self._left is not None:
            self._left -= 1
        chance = self._random
        cancel_after = chance.randrange(12) if chance.random() < self._cancels else None
        job = Job(f"{self._name} {len(self.jobs)}", chance.random() < 0.7, cancel_after)
        self.jobs.append(job)
        return job

    async def _go_on(self, life: Life, job: Job) -> None:
        """Send what the job waits for."""
        if job.task_id is None:
            await self._ask(
                life,
                job,
                command="create",
                task_description=job.key,
                idempotency_key=job.key,
                execute=job.execute,
                **self._agent,
            )
        elif not job.executed:
            life.expected[job.task_id] = 1
            await self._ask(life, job, command="execute", task_id=job.task_id)
        else:
            await self._subscribe(life, job)

    async def _subscribe(self, life: Life, job: Job) -> None:
        assert job.task_id is not None
        after = self._random.choice((0, max(self.told[job.task_id], default=0)))
        life.expected[job.task_id] = after + 1
        await self._ask(life, job, command="subscribe", task_id=job.task_id, after_seq=after)

    async def _ask(self, life: Life, job: Job | None, **command: Any) -> None:
        number = next(self._numbers)
        life.asked[number] = command["command"], job
        await life.socket.send(orjson.dumps({"id": number} | command), text=True)
        self.asked.set()

    async def _take(self, life: Life, text: bytes) -> None:
        frame = orjson.loads(text)
        match frame["type"]:
            case "event":
                await self._take_event(life, frame, text)
            case "goaway":  # what a server says whose store has failed, too
                self.goaways += 1
                await self._ask(life, None, command="list", limit=1)
            case "reply" if frame["id"] is not None:
                command, job = life.asked.pop(frame["id"])
                if job is None:
                    return
                self.replies.append(Reply(command, job, frame))
                await self._take_reply(life, command, job, frame)
            case "error":
                self.errors[frame["code"]] += 1
                command, job = life.asked.pop(frame["id"])
                if job is not None and frame["code"] == "invalid_state" and command == "execute":
                    job.executed = True
                    await self._subscribe(life, job)
                elif frame["code"] not in UNDECIDED:
                    self.wrong.append(f"{job}: {command} was answered {frame}")
                elif frame["code"] == "unavailable" and job is not None:
                    await asyncio.sleep(ASK_AGAIN)
                    await self._ask_again(life, job, command)
            case _:
                pass

    async def _ask_again(self, life: Life, job: Job, command: str) -> None:
        if command == "cancel":
            life.cancelling.discard(job)
            await self._perhaps_cancel(life, job)
        else:
            await self._go_on(life, job)

    async def _take_reply(self, life: Life, command: str, job: Job, frame: dict[str, Any]) -> None:
        match command:
            case "create":
                job.task_id = frame["task_id"]
                job.executed = job.execute
                self._job_of[frame["task_id"]] = job
                life.expected[frame["task_id"]] = 1
                if not job.execute:
                    await self._go_on(life, job)
                await self._perhaps_cancel(life, job)
            case "execute":
                job.executed = True
            case "cancel":
                job.cancelled = True
            case _:
                pass

    async def _take_event(self, life: Life, frame: dict[str, Any], text: bytes) -> None:
        task, seq = frame["task_id"], frame["seq"]
        job = self._job_of.get(task)
        if job is None or life.expected.get(task) != seq:
            self.wrong.append(f"{task}: event {seq}, expected {life.expected.get(task)}")
            return
        life.expected[task] += 1
        before = self.told[task].setdefault(seq, text)
        self.wrong.expect(before == text, f"{task}: event {seq} was {before!r}, is {text!r}")
        job.ended = job.ended or frame["event_type"] in TERMINAL
        await self._perhaps_cancel(life, job)

    async def _perhaps_cancel(self, life: Life, job: Job) -> None:
        wanted = job.cancel_after is not None and not job.cancelled and job not in life.cancelling
        assert job.task_id is not None
        if wanted and len(self.told[job.task_id]) >= (job.cancel_after or 0):
            life.cancelling.add(job)
            await self._ask(life, job, command="cancel", task_id=job.task_id)


def check_told(load: Load, stores: Mapping[str, Stored]) -> tuple[int, Violations]:
    """Whether all that clients were told is in the logs; return also how much of it is not."""
    wrong = Violations(load.wrong)
    lost = 0
    for task, told in load.told.items():
        log = stores[task].log if task in stores else []
        for seq, text in told.items():
            if seq > len(log) or log[seq - 1] != text:
                lost += 1
                wrong.append(f"{task}: event {seq} was told and is lost: {text!r}")
    for reply in load.replies:
        broken = check_reply(reply, stores)
        lost += len(broken)
        wrong += broken
    times = Counter(stored.user_input for stored in stores.values())
    for job in load.jobs:
        count = times.pop(job.key, 0)
        wrong.expect(count <= 1, f"{job.key}: created {count} times")
    wrong.expect(not times, f"tasks that nobody asked for: {times}")
    return lost, wrong


def check_reply(reply: Reply, stores: Mapping[str, Stored]) -> Violations:
    """Whether the log says what the reply said."""
    wrong = Violations()
    frame = reply.frame
    stored = stores.get(frame["task_id"])
    if stored is None:
        wrong.append(f"{frame['task_id']}: {reply.command} was answered, and it is lost")
        return wrong
    log = [orjson.loads(body)["event_type"] for body in stored.log]
    match reply.command:
        case "create":
            wrong.expect(frame["seq"] <= len(log), f"{stored.task_id}: shorter than {frame}")
            wrong.expect(stored.user_input == reply.job.key, f"{reply.job.key}: another's task")
        case "execute":
            queued = log[frame["seq"] - 1 : frame["seq"]] == ["task_queued"]
            wrong.expect(queued, f"{stored.task_id}: execute was answered {frame}, log: {log}")
        case "cancel" if not frame["already"]:
            decided = "task_cancelling" in log or log[-1:] == ["task_cancelled"]
            wrong.expect(decided, f"{stored.task_id}: cancel was answered {frame}, log: {log}")
        case _:
            pass
    return wrong
