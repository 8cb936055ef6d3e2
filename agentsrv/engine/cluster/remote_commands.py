"""RemoteCommands: cancel, respond and send for tasks that another node runs, and vice versa.

Theory of operation
===================

Nodes exchange commands through the store: a *message* in the inbox of the task. The node that holds
the task's lease reads the inbox, applies the command to its runner, and writes the reply.

The sending node (``execute``):

1. posts the message and waits for its reply. A notification wakes ``run``, which reads all replies;
   without one, ``_wait_for_reply`` looks at the task every ``SWEEP_INTERVAL`` seconds.
2. As long as a node holds the task and ``REPLY_TIMEOUT`` has not passed, it keeps waiting. If the
   lease moves to another node, that node finds the message too.
3. Otherwise it withdraws the message. The store does that only if there is no reply: then no node
   has applied the command and none will. ``FencedError`` lets the router decide again, on a task
   that no node runs; ``UnavailableError`` asks the client to try again.

The receiving node (``run``):

1. reads the inbox, and applies each message in the same turn of the event loop as its runner's
   state is read (``_apply``).
2. If that appended events, the reply is part of the same append (``Journal.reply``): the store
   commits both or neither, and refuses both if the message was answered or withdrawn before. If it
   appended none (a refusal, a repeated cancel), the reply is written after the journal has
   committed what the decision was based on.

So a command is applied at most once, whichever node dies. ``_applied`` and ``_written`` are about
messages that this node has applied and that an inbox may still contain:

============================= ====================================================================
a message is in               state of the message
============================= ====================================================================
neither                       it is applied when it is read from the inbox
``_applied``                  it was applied; its reply is being committed
``_applied`` and ``_written`` the commit has ended. An inbox that is read from now on omits the
                              message, unless the commit failed; then it is applied again. The
                              message leaves both sets after that read.
============================= ====================================================================

A message may arrive before the runner of its task is created. ``run`` then reads the inbox again
after ``RUNNER_START_DELAY``.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
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

REPLY_TIMEOUT: Final = 15.0  # seconds; by then the lease of a node that died has expired
RUNNER_START_DELAY: Final = 0.05  # seconds

_log = logging.getLogger("agentsrv.cluster")


class _RemoteCommand(BaseModel):
    """The body of a message."""

    by: str
    """The principal; the sending node has authenticated it as the owner of the task."""
    command: Annotated[Steering, Field(discriminator="command")]


class RemoteCommands:
    """Sends commands to the nodes that run their tasks, and applies those of other nodes."""

    def __init__(self, store: SharedStore, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._replies: dict[int, asyncio.Future[bytes]] = {}
        """By message number: replies that calls of ``execute`` wait for."""
        self._applied: set[int] = set()
        self._written: set[int] = set()
        self._commits: set[asyncio.Task[None]] = set()
        self._reads = 0  # of replies and inbox
        self._wake = asyncio.Event()
        self.wake = self._wake.set
        """Look for messages and replies; called by the store."""

    def is_remote(self, head: Head) -> bool:
        """Whether another node holds the lease of the task."""
        return head.node is not None and head.node != self._store.node

    async def execute(self, head: Head, by: str, command: Steering) -> Result:
        """Let the node that runs the task apply a command; the result is committed.

        Cancelling the call does not withdraw the command.

        Raises:
            FencedError: No node has applied it, and no node holds the task: decide again.
            UnavailableError: No node has applied it within ``REPLY_TIMEOUT``, or the store is
                unavailable.
            AgentsrvError: The other node refused it.
        """
        body = _RemoteCommand(by=by, command=command).model_dump_json().encode()
        reads = self._reads
        number = await self._store.post(head.task_id, body)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        if self._reads != reads:  # the reply may have been read before the future existed
            self._wake.set()
        try:
            return _decode_reply(await self._wait_for_reply(head.task_id, number, reply))
        finally:
            del self._replies[number]

    async def run(self) -> None:
        """Read replies and messages whenever there may be some, until cancelled."""
        must_repeat = False
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RUNNER_START_DELAY if must_repeat else None):
                        await self._wake.wait()
                self._wake.clear()
                self._reads += 1
                try:
                    await self._read_replies()
                    must_repeat = await self._apply_messages()
                except AgentsrvError as error:
                    _log.debug("the inbox cannot be read: %s", error)  # it is read again
        finally:
            for commit in self._commits:
                commit.cancel()

    async def _wait_for_reply(
        self, task_id: str, number: int, reply: asyncio.Future[bytes]
    ) -> bytes:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REPLY_TIMEOUT
        while not reply.done():
            await asyncio.wait({reply}, timeout=SWEEP_INTERVAL)
            if reply.done():
                break
            head = await self._store.head(task_id)
            is_held = head is not None and head.node is not None
            if is_held and loop.time() < deadline:
                continue
            earlier_reply = await self._store.withdraw(number)
            if earlier_reply is not None:
                return earlier_reply
            if is_held:
                raise UnavailableError(
                    f"the node that runs task {task_id} does not answer; try again"
                )
            raise FencedError(f"no node runs task {task_id} any more")
        return reply.result()

    async def _read_replies(self) -> None:
        """Read the replies that have arrived, and pass them to the waiting calls."""
        if self._replies:
            for number, body in (await self._store.replies(list(self._replies))).items():
                reply = self._replies.get(number)
                if reply is not None and not reply.done():
                    reply.set_result(body)

    async def _apply_messages(self) -> bool:
        """Apply messages of other nodes; return whether one arrived before its task's runner."""
        if not self._worker.running:
            return False
        written, self._written = self._written, set()
        messages: Sequence[Message] = await self._store.inbox()
        self._applied -= written
        is_early = False
        for message in messages:
            if message.number in self._applied:
                continue
            runner = self._worker.live(message.task_id)
            if runner is None:
                is_early = True
                continue
            self._applied.add(message.number)
            # In this turn, so that no other event comes between those of the message and its reply.
            reply = _apply(message, runner)
            commit = asyncio.create_task(self._commit(message.number, runner, reply))
            self._commits.add(commit)
            commit.add_done_callback(self._commits.discard)
        return is_early

    async def _commit(self, number: int, runner: TaskRunner, reply: bytes | None) -> None:
        """Commit the events of a message; write its reply, if that is not part of the append."""
        try:
            await runner.journal.commit()
            if reply is not None:
                await self._store.reply(number, reply)
        except AgentsrvError as error:
            _log.debug("message %d is left to the next node that runs its task: %s", number, error)
        finally:
            self._written.add(number)


def _apply(message: Message, runner: TaskRunner) -> bytes | None:
    """Apply a message to the runner of its task.

    Returns:
        The reply if no event was appended; otherwise it is part of the append of the events.
    """
    journal = runner.journal
    before = journal.state.seq
    try:
        remote = _RemoteCommand.model_validate_json(message.body)
        reply = orjson.dumps({"result": steer(runner, remote.by, remote.command)})
    except AgentsrvError as refusal:
        reply = _encode_error(refusal)
    except Exception:  # noqa: BLE001 - a fault of the server must be answered too
        incident = uuid.uuid4().hex[:12]
        _log.exception("incident %s in task %s", incident, message.task_id)
        reply = _encode_error(InternalError(f"internal error (incident {incident})"))
    if journal.state.seq == before:
        return reply
    journal.reply(message.number, reply)
    return None


def _encode_error(error: AgentsrvError) -> bytes:
    return orjson.dumps({"error": as_fields(error)})


def _decode_reply(body: bytes) -> Result:
    """Return the result in a reply.

    Raises:
        AgentsrvError: The error in it.
    """
    reply: dict[str, Any] = orjson.loads(body)
    if "result" in reply:
        result: Result = reply["result"]
        return result
    error = reply["error"]
    del error["retryable"]  # the class has it
    raise by_code(error.pop("code"))(error.pop("message"), **error)
