"""Dialogue: what a task's agents and the people behind it say to each other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson

from agentsrv.agents.questions import CheckError, Question, check_schema, is_secret
from agentsrv.engine.journal import Journal
from agentsrv.engine.vault import Vault, texts_of
from agentsrv.error_text import describe
from agentsrv.errors import FencedError, InvalidInputError, PermanentError, TooLargeError
from agentsrv.models import events as e
from agentsrv.models.commands import Respond
from agentsrv.models.task import Question as Asked
from agentsrv.models.task import TaskState
from agentsrv.models.transitions import TRANSITIONS, refuse
from agentsrv.threads import in_thread

MAX_QUESTIONS: Final = 100  # of one step: an agent that asks in a loop is stopped
MAX_ANSWER: Final = 1 << 16  # bytes of JSON
MAX_MESSAGES: Final = 1000  # of one task; all of them are kept for steps that read them later
MAX_MESSAGES_SIZE: Final = 1 << 20  # bytes of JSON that they may have together
SERVER: Final = "server"  # who settles a question when its time is over

Check = Callable[[Any], None]
"""Validates an answer: raises `InvalidInputError`, or `CheckError` if the author's code fails."""
_Waiter = tuple[Check, "asyncio.Future[None]"]


def task_of(input_id: str) -> str:
    """The task of the question with this id."""
    return input_id.partition("/")[0]


class InputBroker:
    """The questions, answers and messages of a task that runs here.

    All of it goes through the journal: a question is settled by the first event that settles
    it, and agents are given only what is committed. Who waits owns the waiting; nothing is left
    behind when it is cancelled.
    """

    def __init__(
        self, journal: Journal, now: Callable[[], float], vault: Vault | None = None
    ) -> None:
        self._journal = journal
        self._now = now
        self._vault = vault or Vault()
        self.secrets: set[str] = set()
        """Texts of the secret answers that agents were given: not for logs and events."""
        self._waiters: dict[str, list[_Waiter]] = {}
        self._expiries: dict[str, float] = {}
        """When questions expire, by the loop's clock: the wall clock may be set in between."""
        self._news: asyncio.Event | None = None

    # The agents' side.

    async def ask(
        self, step_id: str, attempt: int, question: Question, check: Check
    ) -> e.InputReceived:
        """Ask, unless that was done before, and wait until the question is settled.

        Each call returns its own copy of the answer.

        Cancelling the call leaves the question open. So does an error of the author's validators,
        which is raised here: it fails the attempt, and the next one asks again.

        Raises:
            PermanentError: Its number is that of another question, there are too many, or it asks
                for a secret that cannot be encrypted or decrypted here.
            Fenced: The task has ended, or another node runs it.
        """
        if question.is_secret:
            if self._vault.needs_file:
                await in_thread(self._vault.prepare)
            else:
                self._vault.prepare()
        asked = self._asked(step_id, attempt, question)
        if asked.answer is None:
            await self._settled(asked.asked, question.timeout, check)
        await self._journal.commit()  # an agent must not act on what a crash would undo
        answer = asked.answer
        assert answer is not None
        value = orjson.loads(answer.value)
        if question.is_secret:
            value = self._vault.open(asked.asked.input_id, value)
            self.secrets.update(texts_of(value))
        return e.InputReceived(asked.asked.input_id, step_id, answer.action, value, answer.by)

    async def message(self, number: int) -> Any:
        """Wait for the task's message of that number, counted from 0; each call has its own copy.

        Raises:
            Fenced: Another worker has the task.
        """
        messages = self._journal.state.messages
        while len(messages) <= number:
            if self._news is None:
                self._news = asyncio.Event()
            await self._news.wait()
        await self._journal.commit()
        return orjson.loads(messages[number])

    # The people's side.

    def respond(self, command: Respond, by: str) -> None:
        """Settle a question; that counts when the journal has committed it.

        Raises:
            NotFoundError, Conflict, InvalidStateError: It cannot be answered (any more).
            InvalidInputError, TooLargeError: That is no answer to it; it stays open.
        """
        waiters = self._waiters.get(command.input_id)
        check = None if waiters is None else partial(self._check, command.input_id, waiters[0][0])
        expiry, now = self._expiries.get(command.input_id), self._now()
        if expiry is not None:
            now = math.inf if expiry <= asyncio.get_running_loop().time() else -math.inf
        self._settle(received(self._journal.state, command, by, now, self._vault, check))

    def send(self, message: Any, by: str) -> int:
        """Give the running steps a message; that counts when the journal has committed it.

        Returns:
            Its number in the log.

        Raises:
            InvalidStateError: The task does not run.
            TooLargeError: It has too many messages, or too long ones.
        """
        state = self._journal.state
        self._journal.append(sent(state, message, by))
        seq = state.seq
        if self._news is not None:
            self._news.set()
            self._news.clear()
        return seq

    def _asked(self, step_id: str, attempt: int, question: Question) -> Asked:
        state = self._journal.state
        questions = state.steps[step_id].questions
        input_id = f"{state.task_id}/{step_id}/{question.key}"
        if input_id not in questions:
            if self._journal.closed:
                raise FencedError(f"task {state.task_id} is over for this step; nobody will answer")
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
        found = questions[input_id]
        if question.is_numbered and found.asked.prompt != question.prompt:
            raise PermanentError(
                f"question {question.key} of the step was {found.asked.prompt[:80]!r} in an "
                f"earlier attempt and is {question.prompt[:80]!r} now; an answer to one is none "
                "to the other: give questions that may change a key"
            )
        return found

    async def _settled(self, asked: e.InputRequired, longest: float | None, check: Check) -> None:
        loop = asyncio.get_running_loop()
        waiter: _Waiter = (check, loop.create_future())
        waiters = self._waiters.setdefault(asked.input_id, [])
        waiters.append(waiter)
        timer = None
        if asked.expires_at is not None:
            expiry = self._expiries.get(asked.input_id)
            if expiry is None:  # asked by an earlier process: only the wall clock was there
                left = max(0.0, e.parse_timestamp(asked.expires_at) - self._now())
                if longest is not None:  # the clock was set back
                    left = min(left, longest)
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
        """Validate an answer; what the author's validators raise goes to the steps that wait.

        Raises:
            InvalidInputError: That is not an answer, or the validators failed.
        """
        try:
            check(value)
        except CheckError as error:
            if error.is_secret:
                self.secrets.update(texts_of(value))
            for _, waiting in self._waiters.get(input_id, ()):
                if not waiting.done():
                    waiting.set_exception(error)
            told = "it is not repeated here" if error.is_secret else describe(error.error)
            raise InvalidInputError(
                f"the answer cannot be checked, because a validator of the question fails: {told}. "
                "The attempt fails with this error; the next one asks again"
            ) from error

    def _expire(self, asked: e.InputRequired) -> None:
        if asked in self._journal.state.inputs and not self._journal.closed:
            self._settle(
                e.InputReceived(asked.input_id, asked.step_id, "expire", asked.default, SERVER)
            )

    def _settle(self, event: e.InputReceived) -> None:
        self._journal.append(event)
        for _, waiting in self._waiters.get(event.input_id, ()):
            if not waiting.done():
                waiting.set_result(None)
                self._journal.works(event.step_id)  # as soon as the answer is committed


def received(  # noqa: PLR0917 - each is what the event is made of
    state: TaskState,
    command: Respond,
    by: str,
    now: float,
    vault: Vault,
    check: Check | None = None,
) -> e.InputReceived:
    """The event that settles a question, as a client wants it settled.

    Args:
        state: The task's.
        command: The answer.
        by: Whose it is.
        now: Seconds since the epoch.
        vault: Encrypts the value of a secret question.
        check: Validates the value. Defaults to the question's published JSON Schema.

    Raises:
        NotFoundError, Conflict, InvalidStateError: The question cannot be answered (any more).
        InvalidInputError, TooLargeError: That is no answer to it.
    """
    asked = state.question(command.input_id, now)
    value: Any = command.value
    if command.action == "accept":
        is_hidden = is_secret(asked.schema)
        if is_hidden:  # another node has encrypted it for the way
            value = _opened(vault, asked.input_id, value)
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


def _opened(vault: Vault, input_id: str, value: Any) -> Any:
    """The answer to a secret question.

    Raises:
        InvalidInputError: It looks like a ciphertext, but neither this node nor another with the
            same key has made it.
    """
    try:
        return vault.open(input_id, value)
    except PermanentError:
        raise InvalidInputError(
            f"found an object with only the field {e.SEALED!r}, which is how servers write an "
            "encrypted answer, and this server cannot decrypt it; expected the answer itself"
        ) from None


def sent(state: TaskState, message: Any, by: str) -> e.MessageReceived:
    """The event that gives a task's steps a message.

    Raises:
        InvalidStateError: The task does not run.
        TooLargeError: It has too many messages, or too long ones.
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
