"""Carries out commands: reads what a decision needs, decides, and appends.

A command returns data: a ``CommandOutcome`` where the caller has to begin a subscription or to bind
the task to its connection, the reply alone otherwise. The caller holds the task's events back until
the reply is sent (`delivery.subscriptions.Hold`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

import orjson

from agentsrv.agents.registry import Registry
from agentsrv.engine import inputs
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.cluster.router import CommandRouter
from agentsrv.engine.idle_tasks import IdleTaskWriter, Result, committing, write
from agentsrv.engine.worker import Worker
from agentsrv.error_text import describe
from agentsrv.errors import (
    AgentsrvError,
    FencedError,
    InvalidCommandError,
    InvalidStateError,
    NotFoundError,
    SeqAheadError,
    ShuttingDownError,
    UnavailableError,
)
from agentsrv.models import events as e
from agentsrv.models.commands import (
    TASK_ID_LENGTH,
    Cancel,
    Create,
    Execute,
    List,
    Respond,
    Send,
    Subscribe,
)
from agentsrv.models.outcome import CommandOutcome, Follow
from agentsrv.models.states import TaskStatus
from agentsrv.models.task import TaskState
from agentsrv.store.base import Head, NewTask, Store
from agentsrv.store.replay import load_state

READY_WITHIN: Final = 2.0  # seconds that the store has to answer; a commit is under way for some ms

_log = logging.getLogger("agentsrv.commands")


class CommandHandler:
    """Carries out commands for a principal; everything that a result says is committed.

    Cancelling a call withdraws the caller, not what the call has begun to commit.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        worker: Worker,
        *,
        now: Callable[[], float],
        grace: float,
        remote_commands: RemoteCommands | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._worker = worker
        self._now = now
        self._grace = grace
        self._idle_tasks = IdleTaskWriter(store, now, worker.measures)
        self._router = CommandRouter(self._idle_tasks, worker, remote_commands, now)
        self._queueing: dict[str, int] = {}
        self.draining = False
        """Whether new work is refused."""

    async def create(self, principal: str, command: Create, task_id: str) -> CommandOutcome:
        """Put a task with this new id into the log, and into the queue if the command says so.

        Where the idempotency key was used, the outcome is about the task that it created.

        Raises:
            InvalidCommandError: No agents, plan or params of this kind are possible.
            ConflictError: The idempotency key was used with another command.
            OverloadedError: The queue or the principal's part of it is full.
            ShuttingDownError: The server is about to stop.
        """
        self._check_open()
        plan = self._registry.given_plan(command.agent, command.plan)
        if plan is None and command.resume_from is None and self._registry.planner is None:
            raise InvalidCommandError("the server has no planner; expected an agent or a plan")
        if command.params and command.resume_from is None:
            self._registry.check_names(command.params, plan)
        self._registry.check_params(command.params, plan)
        if command.resume_from is not None:
            await self._check_resumable(principal, command)
        now = self._now()
        created = e.TaskCreated(
            command.task_description,
            command.agent,
            command.params,
            command.metadata,
            command.traceparent,
        )
        events: list[e.Event] = [created]
        if command.execute:
            events.append(self._queued_event(principal))
        state = TaskState(task_id)
        bodies = write(state, events, now)
        new = NewTask(
            task_id=task_id,
            owner=principal,
            status=state.status,
            user_input=command.task_description,
            created_at=now,
            spec=command.spec(),
            events=bodies,
            idempotency_key=command.idempotency_key,
        )
        self._count_queueing(principal, +command.execute)
        try:
            head, is_replayed = await self._store.create(new)
        finally:
            self._count_queueing(principal, -command.execute)
        if is_replayed:
            head = await self._idle_tasks.head(principal, head.task_id)
        elif command.execute:
            self._worker.prepare(command, state, len(new.spec))
        has_ended = is_replayed and head.status.is_terminal
        follow = bind = None
        if command.execute and command.subscribe:
            follow = Follow(head.task_id, 0, head.seq, has_ended)
        if command.execute and command.on_disconnect == "cancel" and not has_ended:
            bind = head.task_id
        return CommandOutcome(_head_result(head) | {"replayed": is_replayed}, follow, bind)

    async def execute(self, principal: str, command: Execute) -> CommandOutcome:
        """Queue a pending task.

        Raises:
            NotFoundError, InvalidStateError, OverloadedError, ShuttingDownError: Nothing was
                changed.
        """
        self._check_open()

        async def decide(head: Head) -> CommandOutcome:
            if head.status is not TaskStatus.PENDING:
                raise InvalidStateError(
                    f"task {head.task_id} is {head.status}; execute needs pending"
                )
            spec = await self._store.spec(head.task_id)
            is_bound = spec and Create.model_validate_json(spec).on_disconnect == "cancel"
            event = self._queued_event(principal)
            self._count_queueing(principal, 1)
            try:
                state = await self._idle_tasks.load(head)
                result = await self._idle_tasks.append(head, state, event)
            finally:
                self._count_queueing(principal, -1)
            return CommandOutcome(
                result,
                Follow(head.task_id, 0, result["seq"], ended=False) if command.subscribe else None,
                head.task_id if is_bound else None,
            )

        return await self._idle_tasks.decide(principal, command.task_id, decide)

    async def status(self, principal: str, task_id: str) -> Result:
        """The whole snapshot of a task.

        Raises:
            NotFoundError: The principal has no such task.
        """
        head = await self._idle_tasks.head(principal, task_id)
        runner = self._worker.live(task_id)
        if runner is not None and not head.status.is_terminal:
            try:
                async with committing():
                    return await runner.snapshot()
            except FencedError:
                pass  # another node runs the task now: read its log
        state = await self._store.state(task_id) if head.status.is_terminal else None
        if state is not None:
            snapshot: Result = orjson.loads(state)
            return snapshot
        return (await load_state(self._store, task_id)).snapshot()

    async def list(self, principal: str, command: List) -> Result:
        """A page of the principal's tasks.

        Raises:
            InvalidCommandError: The cursor is none of a list's.
        """
        page = await self._store.list(principal, command.status, command.limit, command.cursor)
        rows = [
            {
                "task_id": row.task_id,
                "status": row.status.value,
                "user_input": row.user_input,
                "created_at": e.format_timestamp(row.created_at),
            }
            for row in page.rows
        ]
        return {"tasks": rows, "total": page.total, "next_cursor": page.next_cursor}

    async def cancel(self, principal: str, command: Cancel) -> Result:
        """Cancel the task ``task_id`` in whatever state it is; to do it again changes nothing.

        Raises:
            NotFoundError: The principal has no such task.
        """
        assert command.task_id is not None
        grace = self._grace if command.grace is None else command.grace
        steering = Cancel(task_id=command.task_id, reason=command.reason, grace=grace)
        return await self._router.route(principal, command.task_id, steering)

    async def respond(self, principal: str, command: Respond) -> Result:
        """Answer a question, whether its task runs here at the moment or waits for a worker.

        Raises:
            NotFoundError: The principal was asked no such question.
            ConflictError, InvalidStateError: It cannot be answered any more.
            InvalidInputError, TooLargeError: The answer is not valid; the question stays open.
            UnavailableError: Try again when the step asks its question again.
        """
        input_id = command.input_id
        return await self._router.route(
            principal, inputs.task_of(input_id), command, f"question {input_id!r}"
        )

    async def send(self, principal: str, command: Send) -> Result:
        """Give a message to the steps of a task.

        Raises:
            NotFoundError, InvalidStateError, TooLargeError: Nothing was sent.
        """
        return await self._router.route(principal, command.task_id, command)

    async def question(self, principal: str, name: str) -> e.InputRequired:
        """The question of that id, or else the one open question of the task of that id.

        Raises:
            NotFoundError: There is none.
            InvalidCommandError: The task has more than one.
            ConflictError, InvalidStateError: It cannot be answered any more.
        """
        task_id, slash, _ = name.partition("/")
        what = f"question {name!r}" if slash else None
        head = await self._idle_tasks.head(principal, task_id, what)
        runner = self._worker.live(task_id)
        state = await load_state(self._store, head.task_id) if runner is None else runner.state
        if slash:
            return state.question(name, self._now())
        asked = state.inputs
        if not asked:
            raise NotFoundError(f"task {task_id} asks nothing now")
        if len(asked) > 1:
            ids = ", ".join(question.input_id for question in asked)
            raise InvalidCommandError(
                f"task {task_id} asks {len(asked)} questions; name one of {ids}"
            )
        return asked[0]

    async def subscribe(self, principal: str, command: Subscribe) -> CommandOutcome:
        """Follow a task's log from the event after ``after_seq`` on.

        Raises:
            NotFoundError: The principal has no such task.
            SeqAheadError: ``after_seq`` is greater than the number of the last event.
        """
        assert command.task_id is not None
        head = await self._idle_tasks.head(principal, command.task_id)
        if command.after_seq > head.seq:
            raise SeqAheadError(
                f"task {head.task_id} has {head.seq} events; found after_seq "
                f"{command.after_seq}; expected at most {head.seq}"
            )
        follow = Follow(head.task_id, command.after_seq, head.seq, head.status.is_terminal)
        return CommandOutcome(_head_result(head), follow)

    async def find_key(self, principal: str, idempotency_key: str) -> str:
        """The id of the principal's task that was created with this key.

        Raises:
            NotFoundError: There is none.
        """
        task_id = await self._store.find_key(principal, idempotency_key)
        if task_id is None:
            raise NotFoundError(f"no task has idempotency_key {idempotency_key!r}")
        return task_id

    async def resolve(self, principal: str, prefix: str) -> str:
        """The one task of the principal whose id begins with ``prefix``.

        Raises:
            NotFoundError: None does.
            InvalidCommandError: More than one does.
        """
        found = await self._store.find(principal, prefix)
        if not found:
            raise NotFoundError(f"no task's id begins with {prefix!r}; list shows your tasks")
        if len(found) > 1:
            raise InvalidCommandError(
                f"{prefix!r} begins more than one task's id: {found[0]}, {found[1]}; "
                "expected more of it"
            )
        return found[0]

    async def check_ready(self) -> None:
        """Return if new work would be taken now, and run.

        Raises:
            ShuttingDownError: The server is about to stop.
            UnavailableError: The store cannot write or does not answer, the worker cannot claim
                tasks, or the appends of several tasks fail.
        """
        self._check_open()
        complaint = self._store.trouble or self._worker.measures.store_faults.complaint
        if complaint is not None:
            raise UnavailableError(complaint)
        try:
            async with asyncio.timeout(READY_WITHIN):
                await self._store.check()
        except TimeoutError:
            raise UnavailableError(f"the store does not answer within {READY_WITHIN:g} s") from None
        except AgentsrvError:
            raise
        except Exception as error:
            _log.exception("the store cannot be checked")
            raise UnavailableError(f"the store cannot be checked: {describe(error)}") from error

    def agents(self) -> Result:
        """The registered agents."""
        return {"agents": self._registry.described()}

    async def _check_resumable(self, principal: str, command: Create) -> None:
        if command.agent is not None or command.plan is not None:
            raise InvalidCommandError(
                "found resume_from beside agent or plan; the plan is taken over"
            )
        assert command.resume_from is not None
        head = await self._idle_tasks.head(principal, command.resume_from)
        if head.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
            raise InvalidStateError(
                f"task {head.task_id} is {head.status}; resume_from needs failed or cancelled"
            )

    def _count_queueing(self, principal: str, change: int) -> None:
        """Count the principal's tasks that are on their way into the queue; keep no zeros."""
        count = self._queueing.pop(principal, 0) + change
        if count:
            self._queueing[principal] = count

    def _queued_event(self, principal: str) -> e.TaskQueued:
        return e.TaskQueued(self._store.queued_by(principal) + self._queueing.get(principal, 0) + 1)

    def _check_open(self) -> None:
        if self.draining:
            raise ShuttingDownError("the server is about to stop; reconnect and try again")


def new_task_id() -> str:
    """A random id of `TASK_ID_LENGTH` hexadecimal digits."""
    return os.urandom(TASK_ID_LENGTH // 2).hex()


def _head_result(head: Head) -> Result:
    return {"task_id": head.task_id, "status": str(head.status), "seq": head.seq}
