"""One attempt, seen from the server: its connections, its messages, its end.

Theory of operation
===================

`Attempt.start` creates the four connections, sends their other ends to the fork server, and waits
until the supervisor has reported a process (``_begun``) or *control* has ended (``_gone``).

`Attempt.run` then runs two tasks until both have ended:

- ``_conversation`` (`_converse`) sends the job and serves messages on the *channel* until the
  worker sends its outcome. An end of file before that means that the worker has ended.
- ``_gone`` (`_watch`) reads *control* to its end, which means that no process is left.

The outcome is the conversation's, except where ``_problem`` or the exit status explains why the
process ended without one. A message that does not fit the protocol fails the attempt, because the
worker is not trusted. `run` returns after ``_gone``: it interrupts the worker (if cancelled,
or if its import is slow) or waits for its exit first, and kills it after a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from agentsrv.agents.isolation import system, wire
from agentsrv.agents.isolation.output import PAUSE_SECONDS, LogBudget, OutputReader
from agentsrv.errors import AgentProcessError, PermanentError, ProgrammingError, RemoteError

START_SECONDS: Final = 30.0
"""Time for the fork server to start a process; then it is considered broken."""
IMPORT_SECONDS: Final = 60.0
"""Time for the import of the application, by the fork server or by a worker."""
EXIT_SECONDS: Final = 1.0
"""Time for a worker to exit after its result: to join threads and run ``atexit`` handlers."""
INTERRUPT_SECONDS: Final = 0.25
"""Time for a worker to end after an interrupt."""
READ_BYTES: Final = 64 << 10
MAX_TYPE_NAME: Final = 100
LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Serves a request of the worker: takes the arguments and returns JSON."""

_log = logging.getLogger("agentsrv.agent")


class ReturnLimits(NamedTuple):
    """Limits for the values that one attempt returns.

    Attributes:
        text: Characters of the returned text; further ones are not read.
        result: Bytes of the result as JSON; the worker rejects a larger one.
    """

    text: int
    result: int


class RemoteTraceback(Exception):
    """The traceback of an error in a worker, for the log."""


class Attempt:
    """One process, from its connections to its end.

    ``run`` is called once. After it has returned or raised, no process of the attempt is left, with
    the exceptions listed in `process_function`.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        budget: LogBudget,
        limits: ReturnLimits,
    ) -> None:
        self._handlers = handlers
        self._budget = budget
        self._max_text = limits.text
        self._max_message = wire.max_message(limits.result)
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._outputs: list[OutputReader] = []
        self._channel: socket.socket
        self._control: socket.socket
        self._gone: asyncio.Task[None] | None = None
        self._conversation: asyncio.Task[tuple[str | None, Any]] | None = None
        self._status: int | None = None
        self._problem: str | None = None  # the reason for the end of the process, if known
        self._is_interrupted = False
        self._is_cut = False  # the text is longer than its limit
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._loaded: asyncio.Future[None] = self._loop.create_future()

    async def start(self, hand_over: Callable[[list[int]], Awaitable[None]]) -> bool:
        """Create the connections, and wait until a process is at their other ends.

        Returns whether the fork server has started a process or has ended, within
        ``START_SECONDS``; ``has_begun`` distinguishes the two.

        A cancellation leaves no process, and none of the author's code has run.

        Args:
            hand_over: Sends descriptors to the fork server.

        Raises:
            AgentProcessError: The process cannot be started now.
        """
        theirs: list[int] = []
        try:
            try:
                self._channel = self._connect(theirs)
                self._control = self._connect(theirs)
                for stream in ("stdout", "stderr"):
                    output, other = OutputReader.of_pipe(stream, self._budget)
                    theirs.append(other)
                    self._outputs.append(output)
            except OSError as error:
                raise AgentProcessError(
                    f"the agent's process cannot be started: {error}"
                ) from error
            await hand_over(theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._gone = self._loop.create_task(self._watch())
        try:
            done, _ = await asyncio.wait(
                {self._gone, self._begun},
                timeout=START_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            self._kill()
            await asyncio.wait({self._gone}, timeout=EXIT_SECONDS)
            raise
        return bool(done)

    @property
    def has_begun(self) -> bool:
        """Whether a process was started, or failed to start for a reason that `run` raises."""
        return self._begun.done()

    @property
    def is_answered(self) -> bool:
        """Whether the fork server has received the attempt: a process exists, or has ended."""
        return self._begun.done() or (self._gone is not None and self._gone.done())

    async def run(self, job: bytes) -> tuple[str | None, Any]:
        """Send the job and serve the worker; return its text (or ``None``) and its result.

        A cancellation interrupts the worker, kills it after ``INTERRUPT_SECONDS``, and returns when
        no process of the attempt is left. A second cancellation kills at once and does not wait.

        Raises:
            AgentProcessError: The process ended before it returned, sent an invalid message, or did
                not import the application within ``IMPORT_SECONDS``.
            RemoteError: The function raised; the class has the name of the error's class.
        """
        gone = self._gone
        assert gone is not None
        talk = self._conversation = self._loop.create_task(self._converse(job))
        talk.add_done_callback(retrieve_error)
        first = asyncio.FIRST_COMPLETED
        progress: set[asyncio.Future[Any]] = {talk, gone, self._loaded}
        try:
            done, _ = await asyncio.wait(progress, timeout=IMPORT_SECONDS, return_when=first)
            if not done:
                self._problem = (
                    f"was ended: it did not import the application within {IMPORT_SECONDS:g} s; "
                    "the log has the place where the import waits"
                )
                await self._interrupt(gone)
            await asyncio.wait({talk, gone}, return_when=first)
            if gone.done():  # messages that were sent before the end can still be read
                await asyncio.wait({talk}, timeout=EXIT_SECONDS)
            else:
                await self._exited(talk, gone)
        except asyncio.CancelledError:
            self._is_interrupted = True
            await self._interrupt(gone)
            raise
        return self._outcome(talk)

    def close(self) -> None:
        """Close all connections, which kills the processes that are left."""
        for output in self._outputs:
            output.close()
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for task in (self._gone, self._conversation):
            if task is not None and not task.done():
                task.cancel()
                task.add_done_callback(self._close_sockets)
        self._close_sockets()

    def _close_sockets(self, _: object = None) -> None:
        """Close the sockets once no task waits for them: the loop identifies them by number."""
        if all(task is None or task.done() for task in (self._gone, self._conversation)):
            for connection in self._sockets:
                connection.close()

    async def _interrupt(self, gone: asyncio.Task[None]) -> None:
        """Interrupt the worker; after ``INTERRUPT_SECONDS`` kill the rest of the attempt."""
        with suppress(OSError):
            self._control.send(b"i")
        await asyncio.wait({gone}, timeout=INTERRUPT_SECONDS)
        self._kill()
        await asyncio.wait({gone})

    async def _exited(
        self, talk: asyncio.Task[tuple[str | None, Any]], gone: asyncio.Task[None]
    ) -> None:
        """Wait ``EXIT_SECONDS`` for the process to exit, then kill it."""
        error = talk.exception()
        if not (self._is_cut or isinstance(error, AgentProcessError)):
            await asyncio.wait({gone}, timeout=EXIT_SECONDS)
        if gone.done():
            return
        self._kill()
        await asyncio.wait({gone})
        if isinstance(error, EOFError):
            self._problem = "closed its connection to the server, a descriptor it has not opened"
        elif not isinstance(error, AgentProcessError) and not self._is_cut:
            _log.warning(
                "the agent's process did not exit within %g s after its result and was killed: "
                "a thread or an atexit handler does not end",
                EXIT_SECONDS,
            )

    def _connect(self, theirs: list[int]) -> socket.socket:
        ours, other = socket.socketpair()
        self._sockets.append(ours)
        theirs.append(other.detach())
        ours.settimeout(0)
        return ours

    def _kill(self) -> None:
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def _outcome(self, talk: asyncio.Task[tuple[str | None, Any]]) -> tuple[str | None, Any]:
        error = talk.exception() if talk.done() else EOFError()
        problem = self._problem
        if problem is None and not isinstance(error, EOFError):
            return talk.result()
        if problem is None and self._status is None:
            problem = "was killed together with its supervisor"
        elif problem is None and self._status is not None:
            problem = system.describe_end(self._status)
        raise AgentProcessError(f"the agent's process {problem}")

    async def _watch(self) -> None:
        """Read the control connection to its end, at which no process is left."""
        data = b""
        try:
            while part := await self._loop.sock_recv(self._control, 4096):
                *lines, data = (data + part).split(b"\n")
                for line in lines:
                    message = orjson.loads(line)
                    self._status = message.get("status", self._status)
                    if "error" in message:
                        self._problem = f"cannot be started: {message['error']}"
                if not self._begun.done():
                    self._begun.set_result(None)
        except (OSError, ValueError):
            pass  # a reset counts as the end

    async def _converse(self, job: bytes) -> tuple[str | None, Any]:
        """Send the job, then serve messages until the outcome arrives.

        Raises:
            EOFError: The worker's end was closed before the outcome.
        """
        try:
            sending = self._loop.create_task(self._loop.sock_sendall(self._channel, job))
            try:
                return await self._serve()
            finally:
                sending.cancel()
                with suppress(OSError, asyncio.CancelledError):
                    await sending
        except ConnectionError as error:
            raise EOFError from error

    async def _serve(self) -> tuple[str | None, Any]:
        data = bytearray()
        text: list[str] | None = None
        length = 0
        while True:
            message = await self._receive(data)
            match message:
                case {"loaded": True}:
                    if not self._loaded.done():
                        self._loaded.set_result(None)
                case {"log": {"message": str(line), "level": int(level), **more}}:
                    await self._write_log(level, line, more)
                case {"request": int(number), "method": str(method), "arguments": dict(arguments)}:
                    await self._answer(number, method, arguments)
                case {"text": str(piece)}:
                    text = text or []
                    text.append(piece)
                    length += len(piece)
                    if length > self._max_text:  # the step truncates it and fails
                        self._is_cut = True
                        return "".join(text), None
                case {"done": {"result": result}}:
                    return None if text is None else "".join(text), result
                case {"failed": {"type": str(kind), "message": str(text_of_error), **more}}:
                    if not self._is_interrupted:
                        _log_traceback(more.get("traceback"))
                    raise _as_raised(kind, text_of_error, more)
                case _:
                    raise _invalid_message("its fields are unknown")

    async def _receive(self, data: bytearray) -> Any:
        """Return the next message; ``data`` keeps the bytes that were read after it."""
        size = wire.HEADER.size
        wanted = size
        while True:
            if len(data) >= size:
                (length,) = wire.HEADER.unpack_from(data)
                if length > self._max_message:
                    raise _invalid_message(
                        f"its length is {length} bytes; expected at most {self._max_message}"
                    )
                wanted = size + length
                if len(data) >= wanted:
                    break
            part = await self._loop.sock_recv(self._channel, max(READ_BYTES, wanted - len(data)))
            if not part:
                raise EOFError
            data += part
            await asyncio.sleep(0)  # other work of the loop runs between two reads
        body = bytes(data[size:wanted])
        del data[:wanted]
        try:
            return orjson.loads(body)
        except ValueError as error:
            raise _invalid_message(f"it is not JSON: {error}") from None

    async def _write_log(self, level: int, line: str, more: Mapping[Any, Any]) -> None:
        if not self._budget.take():
            self._budget.drop(1, len(line))
            await asyncio.sleep(PAUSE_SECONDS)
            return
        name, trace = more.get("logger"), more.get("traceback")
        prefix = f"{name}: " if isinstance(name, str) and name != _log.name else ""
        error = RemoteTraceback("\n" + trace) if isinstance(trace, str) else None
        nearest = max((known for known in LEVELS if known <= level), default=logging.DEBUG)
        exc_info = (RemoteTraceback, error, None) if error is not None else None
        _log.log(nearest, "%s%s", prefix, line, exc_info=exc_info)

    async def _answer(self, number: int, method: str, arguments: dict[str, Any]) -> None:
        handler = self._handlers.get(method)
        reply: dict[str, Any]
        if handler is None:
            raise _invalid_message(
                f"it requests {method[:40]!r}; expected {sorted(self._handlers)}"
            )
        try:
            reply = {"reply": number, "value": await handler(arguments)}
        except Exception as error:  # noqa: BLE001 - sent to the function
            reply = {"reply": number, "failed": wire.failure(error)}
        await self._loop.sock_sendall(self._channel, wire.frame(reply, self._max_message))


def retrieve_error(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's error, so that asyncio does not log it if the task is never awaited."""
    if not task.cancelled():
        task.exception()


def _invalid_message(reason: str) -> AgentProcessError:
    return AgentProcessError(
        f"the agent's process sent an invalid message: {reason}. The agent, or a library that "
        "it uses, writes to a descriptor that it has not opened"
    )


def _as_raised(kind: str, message: str, more: Mapping[Any, Any]) -> RemoteError:
    """Return the error that the function raised, as a class with the same name."""
    retry_after, programming = more.get("retry_after"), more.get("programming")
    name = kind if kind.isidentifier() and len(kind) <= MAX_TYPE_NAME else "UnknownError"
    is_permanent = more.get("permanent") is True
    bases = (RemoteError, PermanentError) if is_permanent else (RemoteError,)
    error: RemoteError = type(name, bases, {})(
        message,
        retry_after=retry_after if isinstance(retry_after, int | float) else None,
        programming=[
            ProgrammingError(tuple(map(str, kinds)), file)
            for kinds, file in _pairs(programming)
            if isinstance(kinds, list) and isinstance(file, str)
        ],
    )
    return error


def _pairs(found: object) -> list[list[Any]]:
    """Return the entries of a list that are pairs."""
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, list) and len(entry) == 2]  # noqa: PLR2004 - a pair


def _log_traceback(text: object) -> None:
    if isinstance(text, str):
        error = RemoteTraceback(f"\n{text}")
        _log.info("the agent's function raised", exc_info=(RemoteTraceback, error, None))
