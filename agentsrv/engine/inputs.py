"""InputBroker: questions of a running task's agents, their answers, and messages of the client.

Theory of operation
===================

All questions, answers and messages are events of the task's log; the broker only adds the waiting.
It needs no recovery: another process folds the log and continues.

A question is named by its ``input_id``: the task, the step, and the question's key (its number in
the step unless the author chose one). All attempts of a step, on all nodes, derive the same id. So
an attempt that repeats an earlier one finds its questions in the log:

=========================== ======================================================
the question in the log     ``ask``
=========================== ======================================================
is missing                  appends ``input_required`` and waits
is open                     waits; no event is appended
is settled                  returns the answer without waiting
=========================== ======================================================

A question is settled by the first ``input_received``: an answer or a refusal of the client
(``respond``), or its expiry with the default value. An answer is checked before it is appended: by
the schema and the validators of the step that waits, or by the published JSON Schema if no step
waits. An invalid one leaves the question open. If the *validators* fail, rather than the answer,
the error is raised in ``ask`` and fails the attempt; the question stays open, and the next attempt
waits again.

Order within one turn of the event loop: the event is folded, then the futures of the waiting calls
are resolved. ``ask`` returns after the commit, and the router replies to ``respond`` after it, so
no agent acts on an answer that a crash could undo.

Expiry. ``expires_at`` in the log is wall-clock time. While the process that published the question
lives, its event loop's clock decides, because the wall clock may be set in between; a later process
has only the wall clock. It limits the remaining time to the question's timeout, in case the clock
was set back.

Messages are a list in the task's state. A reader awaits the message of a number, so each step reads
all of them from the first one, and no queue grows for steps that do not read.

Cancelling a call of ``ask`` or ``message`` ends the waiting and leaves nothing behind in the
broker.

Secret answers are encrypted before they become part of an event (see `vault`), and decrypted when
``ask`` returns. Their texts are kept in ``secrets``, so that logs and tracebacks leave them out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson

from agentsrv.agents.questions import CheckError, Question, check_schema, is_secret
from agentsrv.engine.journal import Journal
from agentsrv.engine.vault import Vault, redactable_texts
from agentsrv.error_text import describe
from agentsrv.errors import FencedError, InvalidInputError, PermanentError, TooLargeError
from agentsrv.models import events as e
from agentsrv.models.commands import Respond
from agentsrv.models.task import Question as LoggedQuestion
from agentsrv.models.task import TaskState
from agentsrv.models.transitions import TRANSITIONS, refuse
from agentsrv.threads import in_thread

MAX_QUESTIONS: Final = 100  # of one step, so that an agent that asks in a loop fails
MAX_ANSWER: Final = 1 << 16  # bytes of JSON
MAX_MESSAGES: Final = 1000  # of one task; all of them are kept for steps that read them later
MAX_MESSAGES_SIZE: Final = 1 << 20  # bytes of JSON of all messages of a task
EXPIRED_BY: Final = "server"  # the principal in the event that settles an expired question

Check = Callable[[Any], None]
"""Validates an answer: raises `InvalidInputError`, or `CheckError` if the author's code fails."""
_Waiter = tuple[Check, "asyncio.Future[None]"]
"""A call of ``ask`` that waits; its future ends when the question is settled."""


def task_of(input_id: str) -> str:
    """Return the id of the task that asked the question."""
    return input_id.partition("/")[0]


class InputBroker:
    """Questions, answers and messages of one running task; see the head of this module."""

    def __init__(
        self, journal: Journal, now: Callable[[], float], vault: Vault | None = None
    ) -> None:
        self._journal = journal
        self._now = now
        self._vault = vault or Vault()
        self.secrets: set[str] = set()
        """Texts of the secret answers that agents have received; logs and events omit them."""
        self._waiters: dict[str, list[_Waiter]] = {}
        self._expiries: dict[str, float] = {}
        """By input id: when questions expire, by the event loop's clock."""
        self._message_arrived: asyncio.Event | None = None

    # Calls of agents.

    async def ask(
        self, step_id: str, attempt: int, question: Question, check: Check
    ) -> e.InputReceived:
        """Publish the question, unless it was published before, and wait until it is settled.

        Each call returns its own copy of the answer. Cancelling the call leaves the question open.

        Raises:
            PermanentError: An earlier attempt asked another question with this number, the step has
                asked too many questions, or the question is secret and its answer cannot be
                encrypted or decrypted on this node.
            CheckError: The author's validators failed on an answer.
            FencedError: The task has ended, or another node runs it.
        """
        if question.is_secret:
            if self._vault.needs_file:
                await in_thread(self._vault.prepare)
            else:
                self._vault.prepare()
        logged = self._publish_question(step_id, attempt, question)
        if logged.answer is None:
            await self._wait_for_answer(logged.asked, question.timeout, check)
        await self._journal.commit()  # an agent must not act on an answer that a crash would undo
        input_id, answer = logged.asked.input_id, logged.answer
        assert answer is not None
        value = orjson.loads(answer.value)
        if question.is_secret:
            value = self._vault.open(input_id, value)
            self.secrets.update(redactable_texts(value))
        return e.InputReceived(input_id, step_id, answer.action, value, answer.by)

    async def message(self, number: int) -> Any:
        """Wait for message ``number`` of the task, counted from 0; each call returns its own copy.

        Raises:
            FencedError: Another worker runs the task.
        """
        messages = self._journal.state.messages
        while len(messages) <= number:
            if self._message_arrived is None:
                self._message_arrived = asyncio.Event()
            await self._message_arrived.wait()
        await self._journal.commit()
        return orjson.loads(messages[number])

    # Commands of clients.

    def respond(self, command: Respond, by: str) -> None:
        """Settle a question for the principal ``by``; durable when the journal has committed.

        Raises:
            NotFoundError, ConflictError, InvalidStateError: The question cannot be answered, or no
                longer.
            InvalidInputError, TooLargeError: The answer is invalid; the question stays open.
        """
        waiters = self._waiters.get(command.input_id)
        check = None if waiters is None else partial(self._check, command.input_id, waiters[0][0])
        expiry, now = self._expiries.get(command.input_id), self._now()
        if expiry is not None:
            now = math.inf if expiry <= asyncio.get_running_loop().time() else -math.inf
        self._append_answer(answer_event(self._journal.state, command, by, now, self._vault, check))

    def send(self, message: Any, by: str) -> int:
        """Send the running steps a message of the principal ``by``; durable when committed.

        Returns:
            The number of its event in the log.

        Raises:
            InvalidStateError: The task does not run.
            TooLargeError: The task has too many messages, or too many bytes of them.
        """
        state = self._journal.state
        self._journal.append(message_event(state, message, by))
        seq = state.seq
        if self._message_arrived is not None:
            self._message_arrived.set()
            self._message_arrived.clear()
        return seq

    def _publish_question(self, step_id: str, attempt: int, question: Question) -> LoggedQuestion:
        """Return the question as the log has it; append it first if the log does not have it."""
        state = self._journal.state
        questions = state.steps[step_id].questions
        input_id = f"{state.task_id}/{step_id}/{question.key}"
        if input_id not in questions:
            if self._journal.is_closed:
                raise FencedError(
                    f"task {state.task_id} has ended for this step; the question cannot be asked"
                )
            if len(questions) >= MAX_QUESTIONS:
                raise PermanentError(f"a step may ask {MAX_QUESTIONS} questions; this is one more")
            expires_at = None
            if question.timeout is not None:
                expires_at = e.format_timestamp(self._now() + question.timeout)
                self._expiries[input_id] = asyncio.get_running_loop().time() + question.timeout
            self._journal.append(
                e.InputRequired(
                    input_id,
                    step_id,
                    attempt,
                    question.prompt,
                    question.schema,
                    question.options,
                    question.default,
                    expires_at,
                )
            )
        logged = questions[input_id]
        if question.is_numbered and logged.asked.prompt != question.prompt:
            raise PermanentError(
                f"question {question.key} of the step was {logged.asked.prompt[:80]!r} in an "
                f"earlier attempt and is {question.prompt[:80]!r} now; the answer to one may not "
                "answer the other: give questions that may change a key"
            )
        return logged

    async def _wait_for_answer(
        self, asked: e.InputRequired, max_wait: float | None, check: Check
    ) -> None:
        """Wait until the question is settled or expires.

        Args:
            asked: The question in the log.
            max_wait: Seconds that the agent permits; limits the time until ``asked.expires_at``.
            check: Validates answers as long as this call waits.
        """
        loop = asyncio.get_running_loop()
        waiter: _Waiter = (check, loop.create_future())
        waiters = self._waiters.setdefault(asked.input_id, [])
        waiters.append(waiter)
        timer = None
        if asked.expires_at is not None:
            expiry = self._expiries.get(asked.input_id)
            if expiry is None:  # published by an earlier process
                left = max(0.0, e.parse_timestamp(asked.expires_at) - self._now())
                if max_wait is not None:
                    left = min(left, max_wait)
                expiry = self._expiries[asked.input_id] = loop.time() + left
            timer = loop.call_at(expiry, self._expire, asked)
        try:
            await waiter[1]
        finally:
            waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(asked.input_id, None)
            if timer is not None:
                timer.cancel()

    def _check(self, input_id: str, check: Check, value: Any) -> None:
        """Validate an answer; an error of the author's validators is raised in the waiting calls.

        Raises:
            InvalidInputError: The answer is invalid, or the validators failed.
        """
        try:
            check(value)
        except CheckError as error:
            if error.is_secret:
                self.secrets.update(redactable_texts(value))
            for _, waiting in self._waiters.get(input_id, ()):
                if not waiting.done():
                    waiting.set_exception(error)
            reason = "it is not repeated here" if error.is_secret else describe(error.error)
            raise InvalidInputError(
                "the answer cannot be checked, because a validator of the question fails: "
                f"{reason}. The attempt fails with this error; the next one asks again"
            ) from error

    def _expire(self, asked: e.InputRequired) -> None:
        if asked in self._journal.state.inputs and not self._journal.is_closed:
            self._append_answer(
                e.InputReceived(asked.input_id, asked.step_id, "expire", asked.default, EXPIRED_BY)
            )

    def _append_answer(self, event: e.InputReceived) -> None:
        """Append the event that settles a question, and wake up the calls that wait for it."""
        self._journal.append(event)
        for _, waiting in self._waiters.get(event.input_id, ()):
            if not waiting.done():
                waiting.set_result(None)
                self._journal.set_working(event.step_id)  # it continues after the commit


def answer_event(  # noqa: PLR0917 - the event depends on each of them
    state: TaskState,
    command: Respond,
    by: str,
    now: float,
    vault: Vault,
    check: Check | None = None,
) -> e.InputReceived:
    """Return the event that settles a question as a client's command says.

    Args:
        state: The state of the task.
        command: The answer.
        by: The principal who answers.
        now: Seconds since the epoch.
        vault: Encrypts the value of a secret question.
        check: Validates the value. Defaults to the question's published JSON Schema.

    Raises:
        NotFoundError, ConflictError, InvalidStateError: The question cannot be answered, or no
            longer.
        InvalidInputError, TooLargeError: The answer is invalid.
    """
    asked = state.question(command.input_id, now)
    value: Any = command.value
    if command.action == "accept":
        is_hidden = is_secret(asked.schema)
        if is_hidden:  # another node may have encrypted it for the transport
            value = _decrypt(vault, asked.input_id, value)
        size = len(orjson.dumps(value))
        if size > MAX_ANSWER:
            raise TooLargeError(f"the value has {size} bytes; expected at most {MAX_ANSWER}")
        if check is None:
            check_schema(asked.schema, value)
        else:
            check(value)
        if is_hidden:
            value = vault.seal(asked.input_id, value)
    return e.InputReceived(asked.input_id, asked.step_id, command.action, value, by)


def _decrypt(vault: Vault, input_id: str, value: Any) -> Any:
    """Return the answer to a secret question; ``value`` itself if it is not encrypted.

    Raises:
        InvalidInputError: It looks like a ciphertext, but no node with this node's key made it.
    """
    try:
        return vault.open(input_id, value)
    except PermanentError:
        raise InvalidInputError(
            f"found an object with only the field {e.SEALED!r}, which is how servers write an "
            "encrypted answer, and this server cannot decrypt it; expected the answer itself"
        ) from None


def message_event(state: TaskState, message: Any, by: str) -> e.MessageReceived:
    """Return the event that sends a task's steps a message of the principal ``by``.

    Raises:
        InvalidStateError: The task does not run.
        TooLargeError: The task would have too many messages, or too many bytes of them.
    """
    event = e.MessageReceived(message, by)
    if e.MessageReceived not in TRANSITIONS[state.status]:
        refuse(state.status, event)
    size = state.messages_size + len(orjson.dumps(message))
    if len(state.messages) >= MAX_MESSAGES or size > MAX_MESSAGES_SIZE:
        raise TooLargeError(
            f"task {state.task_id} has {len(state.messages)} messages, and would have {size} "
            f"bytes of them; expected at most {MAX_MESSAGES}, and {MAX_MESSAGES_SIZE} bytes"
        )
    return event
