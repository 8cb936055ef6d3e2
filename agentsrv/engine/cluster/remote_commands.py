"""Peers: commands for tasks that other nodes run, and theirs for the tasks that run here."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, Field

from agentsrv.engine.idle_tasks import Result
from agentsrv.engine.runner import TaskRunner
from agentsrv.engine.steering import steer
from agentsrv.engine.worker import Worker
from agentsrv.error_text import as_fields
from agentsrv.errors import AgentsrvError, FencedError, InternalError, UnavailableError, by_code
from agentsrv.models.commands import Steering
from agentsrv.store.base import Head
from agentsrv.store.shared import SWEEP_INTERVAL, Message, SharedStore

PATIENCE: Final = 15.0  # seconds that a node has to answer; the lease of one that died is over then
EARLY: Final = 0.05  # seconds until a message is read again that came before its task's runner

_log = logging.getLogger("agentsrv.cluster")


class _RemoteCommand(BaseModel):
    """What stands in a message."""

    by: str
    """The principal, whom the asking node knows and whose task it is."""
    command: Annotated[Steering, Field(discriminator="command")]


class RemoteCommands:
    """Asks the nodes that run a task, and carries out what they ask.

    A message is carried out once, whoever dies: its reply is committed with the events that it
    caused, and the store takes neither where the message was answered or taken back before.
    """

    def __init__(self, store: SharedStore, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._taken: set[int] = set()
        """Messages that are decided; the inbox may show them until their replies are committed."""
        self._settled: set[int] = set()
        """Those of them that an inbox read from now on does not show, or is right to."""
        self._commits: set[asyncio.Task[None]] = set()
        self._looks = 0
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Look for messages and replies; called by the store."""

    def hold(self, head: Head) -> bool:
        """Whether another node runs the task."""
        return head.node is not None and head.node != self._store.node

    async def ask(self, head: Head, by: str, command: Steering) -> Result:
        """Let the node that runs the task carry out a command; the result is committed.

        Cancelling the call withdraws the caller, not the command.

        Raises:
            Fenced: Nobody has carried it out, and the task has no holder any more: decide again.
            Unavailable: Nobody has carried it out within ``PATIENCE``, or the store cannot tell.
            AgentsrvError: What the other node refuses it with.
        """
        letter = _RemoteCommand(by=by, command=command)
        looks = self._looks
        number = await self._store.post(head.task_id, letter.model_dump_json().encode())
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        if self._looks != looks:  # the answer may have been told of before anybody waited for it
            self._wake.set()
        try:
            return _open_reply(await self._reply(head.task_id, number, answered))
        finally:
            del self._asked[number]

    async def run(self) -> None:
        """Look for replies and messages whenever there may be some, until cancelled."""
        again = False
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(EARLY if again else None):
                        await self._wake.wait()
                self._wake.clear()
                self._looks += 1
                try:
                    await self._collect()
                    again = await self._carry_out()
                except AgentsrvError as error:
                    _log.debug("the inbox cannot be read: %s", error)  # the sweep tries again
        finally:
            for commit in self._commits:
                commit.cancel()

    async def _reply(self, task_id: str, number: int, answered: asyncio.Future[bytes]) -> bytes:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while not answered.done():
            await asyncio.wait({answered}, timeout=SWEEP_INTERVAL)
            if answered.done():
                break
            head = await self._store.head(task_id)
            is_held = head is not None and head.node is not None
            if is_held and loop.time() < deadline:
                continue  # it may have another holder by now, who finds the message too
            reply = await self._store.withdraw(number)
            if reply is not None:
                return reply
            if is_held:
                raise UnavailableError(
                    f"the node that runs task {task_id} does not answer; try again"
                )
            raise FencedError(f"task {task_id} is run by nobody any more")
        return answered.result()

    async def _collect(self) -> None:
        """Hand the replies that have come to those who wait for them."""
        if self._asked:
            for number, reply in (await self._store.replies(list(self._asked))).items():
                waiting = self._asked.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)

    async def _carry_out(self) -> bool:
        """Carry out what others ask; return whether a message came before its task's runner."""
        if not self._worker.running:
            return False
        settled, self._settled = self._settled, set()
        messages: Sequence[Message] = await self._store.inbox()
        self._taken -= settled
        early = False
        for message in messages:
            if message.number in self._taken:
                continue
            runner = self._worker.live(message.task_id)
            if runner is None:
                early = True
                continue
            self._taken.add(message.number)
            # In this turn, so that nothing comes between an event and its reply.
            refusal = _decide(message, runner)
            self._beside(self._commit(message.number, runner, refusal))
        return early

    async def _commit(self, number: int, runner: TaskRunner, reply: bytes | None) -> None:
        """Wait for what was decided; answer what caused no event behind what is committed."""
        try:
            await runner.journal.commit()
            if reply is not None:
                await self._store.reply(number, reply)
        except AgentsrvError as error:
            _log.debug("message %d waits for whoever runs its task next: %s", number, error)
        finally:
            self._settled.add(number)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)


def _decide(message: Message, runner: TaskRunner) -> bytes | None:
    """Carry a message out; its reply goes with the events, or is returned where there are none."""
    journal = runner.journal
    before = journal.state.seq
    try:
        letter = _RemoteCommand.model_validate_json(message.body)
        reply = orjson.dumps({"result": steer(runner, letter.by, letter.command)})
    except AgentsrvError as refusal:
        reply = _refused(refusal)
    except Exception:  # noqa: BLE001 - a fault of ours must be answered
        incident = uuid.uuid4().hex[:12]
        _log.exception("incident %s in task %s", incident, message.task_id)
        reply = _refused(InternalError(f"internal error (incident {incident})"))
    if journal.state.seq == before:
        return reply
    journal.reply(message.number, reply)
    return None


def _refused(refusal: AgentsrvError) -> bytes:
    return orjson.dumps({"error": as_fields(refusal)})


def _open_reply(body: bytes) -> Result:
    """The result in a reply.

    Raises:
        AgentsrvError: The refusal in it.
    """
    reply: dict[str, Any] = orjson.loads(body)
    if "result" in reply:
        result: Result = reply["result"]
        return result
    refusal = reply["error"]
    del refusal["retryable"]  # the class has it
    raise by_code(refusal.pop("code"))(refusal.pop("message"), **refusal)
