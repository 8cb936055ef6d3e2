"""The connection: connects again whenever it is lost, sends commands, and matches their replies.

Theory of operation
-------------------
One task of asyncio, ``ReconnectingConnection.run``, owns the connection::

    connect ──> greeting ──> serve: read frames until the connection ends ──┐
       ^                                                                    │
       └── wait: reconnect_in of goaway + random part of the back-off <─────┘

`connection_errors` maps each failure to an error. The loop ends at an error that is not
``retryable``, or after ``Reconnect.attempts`` failures in a row. It then calls `fail`, which
resolves all pending commands with the error, fails all event iterators, and makes every later
command raise it. A connection on which a frame other than the greeting arrived resets the count of
failures.

Every method except ``run`` returns at once. `send` registers a `PendingCommand` and, if there is a
connection, puts its frame into ``_outbox``, from which a second task writes; without a connection
the frame waits in ``_pending`` for the next one.

A pending command ends in one of these ways:

=================================  ===============================================================
reply, or error                    ``on_outcome`` is called before any later frame is read
``rate_limited``                   sent again after ``retry_after``; its caller does not notice
``shutting_down``                  sent again on the next connection, which is made at once if no
                                   command that must not be sent twice is pending
connection lost, ``resend``        sent again on the next connection
connection lost, not ``resend``    resolved with `ReplyLostError`, if it had been sent
caller cancelled (``abandoned``)   its outcome is dropped, and it is not sent again
=================================  ===============================================================

A command that is sent again may be refused because the first one was carried out: its error has a
`ReplyLostError` as ``__cause__``, and the caller decides what that means.

Replies are matched by the number in ``id``. Errors about frames that the server could not read have
none; such an error is attributed to the oldest command that was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from agentsrv.client import connection_errors
from agentsrv.client.backoff import Reconnect
from agentsrv.client.errors import (
    ClientUsageError,
    ConnectionClosedError,
    ProtocolError,
    ReplyLostError,
    ServerUnavailableError,
    from_frame,
)
from agentsrv.client.subscriptions import Outcome, TaskSubscriptions
from agentsrv.client.tokens import Token, Tokens
from agentsrv.client.trust import tls_context
from agentsrv.errors import (
    AgentsrvError,
    RateLimitedError,
    ShuttingDownError,
    TooLargeError,
)
from agentsrv.protocol import PROTOCOL
from agentsrv.telemetry.websockets_logging import hide_frame_dumps

if TYPE_CHECKING:
    from agentsrv.protocol.frame_types import Hello

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
REPLY_ENVELOPE: Final = ("type", "command", "id")  # the other fields are the command's result
CLOSE_TIMEOUT: Final = 2.0  # seconds for a closing handshake
MAX_SERVER_DELAY: Final = 60.0  # seconds; upper limit of retry_after and reconnect_in
FRAMES_PER_TURN: Final = 100  # frames that are read before the readers of events run

_log = logging.getLogger("agentsrv.client")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a connection."""

    open_timeout: float = 10.0
    """Seconds for the handshake and the server's greeting."""
    ping_interval: float = 20.0
    """Seconds between pings; a connection that answers none for as long again is dropped."""
    max_frame: int = 64 << 20
    """Bytes of one frame from the server; a snapshot holds the output of all steps of a task."""
    ca: Path | str | None = None
    """PEM file of the CAs that are trusted, in place of the system's; for ``wss://``."""
    buffer: int = 1000
    """Events kept for each iterator that does not take them; the rest waits in the log."""
    reconnect: Reconnect = field(default_factory=Reconnect)
    """How long to wait between attempts to connect, and how many to make."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The clock, sleep and randomness of a connection, which tests replace."""

    random: Callable[[float, float], float] = random.uniform
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Outage:
    """A connection that was lost and is not back yet."""

    reason: str
    """Why the connection ended, or why the latest attempt failed."""
    since: float
    """When it was lost, by ``time.monotonic()``."""
    retry_in: float
    """Seconds until the next attempt."""


OnConnection = Callable[[Outage | None], None]
"""Called when the connection is lost, after each failed attempt, and with ``None`` at its end."""


@dataclass(eq=False, slots=True)
class PendingCommand:
    """A command without a reply so far."""

    name: str
    body: bytes
    on_outcome: Callable[[Outcome], None]
    resend: bool
    """Whether it is sent again on the next connection."""
    times_sent: int = 0
    abandoned: bool = False
    """Whether its caller was cancelled."""


class ReconnectingConnection:
    """A connection that is replaced when it is lost; see the theory of operation above.

    Args:
        url: ``ws://`` or ``wss://``.
        options: Limits and back-off.
        subscriptions: Takes the events.
        token: Sent with each handshake.
        timing: Replaced in tests.

    Raises:
        ConfigurationError: The token is invalid, or the file of the CA cannot be used.
    """

    def __init__(
        self,
        url: str,
        options: Options,
        subscriptions: TaskSubscriptions,
        token: Token | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.hello: Hello | None = None
        """The latest greeting."""
        self.failure: AgentsrvError | None = None
        """Why there will be no further connection."""
        self.ready = asyncio.Event()
        """Set at the first connection, and at the failure."""
        self.on_connection: OnConnection | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop in which it was started."""
        self._process: int | None = None
        self._lost_at: float | None = None
        self._url = url
        self._tls = tls_context(url, options.ca)
        self._tokens = Tokens(token)
        self._options = options
        self._timing = timing or Timing()
        self._subscriptions = subscriptions
        self._pending: dict[int, PendingCommand] = {}
        """By id, in the order in which they were given."""
        self._ids = itertools.count(1)
        self._outbox: asyncio.Queue[bytes] | None = None
        """Frames for the task that writes; ``None`` without a connection."""
        self._progress = False
        """Whether a frame arrived after the greeting."""
        self._server_stops = False
        """Whether a command was refused with ``shutting_down``."""
        self._reconnect_in = 0.0

    def start(self) -> asyncio.Task[None]:
        """Begin to connect, in the running event loop and this process only.

        Raises:
            ClientUsageError: It was started before.
        """
        if self.loop is not None:
            raise ClientUsageError("the client was entered before; make another Client")
        self.loop, self._process = asyncio.get_running_loop(), os.getpid()
        return self.loop.create_task(self.run(), name="agentsrv-client")

    def check(self) -> None:
        """Check that a command can be sent and its reply received here.

        Raises:
            ClientUsageError: It was not started, or in another process or event loop.
            AgentsrvError: There will be no further connection.
        """
        if self.loop is None:
            raise ClientUsageError(
                "the client is not connected; use it within `async with Client(...) as client`"
            )
        if self.is_forked:
            raise ClientUsageError(
                f"the client belongs to process {self._process}, and this is its child "
                f"{os.getpid()}; make another Client after os.fork()"
            )
        if self.failure is not None:
            raise self.failure
        self.check_loop()

    def check_loop(self) -> None:
        """Check that the running event loop is that of the connection.

        Raises:
            ClientUsageError: It is another one.
        """
        if asyncio.get_running_loop() is not self.loop:
            raise ClientUsageError(
                "the client belongs to another event loop; make one Client in each loop, or "
                "use SyncClient from any thread"
            )

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that connected."""
        return self._process is not None and self._process != os.getpid()

    def send(
        self, fields: dict[str, Any], on_outcome: Callable[[Outcome], None], *, resend: bool
    ) -> PendingCommand:
        """Send a command now, or as soon as there is a connection.

        Args:
            fields: The command, without its id.
            on_outcome: Called with the outcome before any later frame is read.
            resend: Whether to send it again if the connection is lost before the reply.

        Raises:
            TooLargeError: The frame is larger than the server's ``max_frame``.
            AgentsrvError: There will be no further connection.
        """
        number = next(self._ids)
        body = orjson.dumps(fields | {"id": number})
        return self._add(number, PendingCommand(fields["command"], body, on_outcome, resend))

    def fail(self, error: AgentsrvError) -> None:
        """Resolve all commands and fail all iterators with ``error``; the first error counts."""
        if self.failure is None:
            self.failure = error
            pending, self._pending = self._pending, {}
            for command in pending.values():
                command.on_outcome(error)
            self._subscriptions.fail(error)
            self.ready.set()

    async def run(self) -> None:
        """Connect, serve and connect again until an error is final; cancelling closes it."""
        failures, was_up = 0, False
        limits = self._options.reconnect
        try:
            while True:
                self._progress = False
                try:
                    socket = await self._connect()
                    was_up = True
                    error = await self._serve(socket)
                except AgentsrvError as failure:
                    error = failure
                failures = 1 if self._progress else failures + 1
                max_failures = limits.attempts if was_up else limits.first_attempts
                if not error.retryable or failures >= max_failures:
                    self.fail(error)
                    return
                _log.debug("%s; connecting again (failure %d)", error, failures)
                delay = self._delay(failures)
                if was_up:
                    self._report_outage(error.message, delay)
                await self._timing.sleep(delay)
        finally:
            self.fail(ConnectionClosedError("the client is closed"))

    def _report_outage(self, reason: str, retry_in: float) -> None:
        if self._lost_at is None:
            self._lost_at = self._timing.clock()
        self._report(Outage(reason, self._lost_at, retry_in))

    def _report(self, outage: Outage | None) -> None:
        if self.on_connection is not None:
            try:
                self.on_connection(outage)
            except Exception:  # noqa: BLE001 - logged; the connection does not depend on it
                _log.exception("on_connection failed")

    def _add(self, number: int, command: PendingCommand) -> PendingCommand:
        if self.failure is not None:
            raise self.failure
        max_frame = self.hello["limits"].get("max_frame") if self.hello else None
        if max_frame is not None and len(command.body) > max_frame:
            raise TooLargeError(
                f"the command has {len(command.body)} bytes; the server takes {max_frame}"
            )
        self._pending[number] = command
        if self._outbox is not None:
            self._write(command)
        return command

    def _delay(self, failures: int) -> float:
        reconnect_in, self._reconnect_in = self._reconnect_in, 0.0
        ceiling = self._options.reconnect.ceiling(failures)
        return reconnect_in + self._timing.random(0.0, ceiling)

    async def _connect(self) -> ClientConnection:
        """Connect and read the greeting.

        Raises:
            ServerUnavailableError, NotAServerError, UnauthenticatedError: See `connection_errors`.
        """
        options, url = self._options, self._url
        socket: ClientConnection | None = None
        try:
            async with asyncio.timeout(options.open_timeout):
                socket = await connect(
                    url,
                    subprotocols=[Subprotocol(PROTOCOL)],
                    additional_headers=await self._tokens.headers(),
                    compression=None,
                    open_timeout=None,
                    ping_interval=options.ping_interval,
                    ping_timeout=options.ping_interval,
                    close_timeout=CLOSE_TIMEOUT,
                    max_size=options.max_frame,
                    ssl=self._tls,
                    proxy=None if urlsplit(url).hostname in LOOPBACK_HOSTS else True,
                    logger=hide_frame_dumps(_log.getChild("websocket")),
                )
                self.hello = connection_errors.read_hello(await socket.recv(decode=False), url)
                return socket
        except BaseException as error:
            if socket is not None:
                socket.transport.abort()
            meaning = connection_errors.connect_error(error, url)
            if meaning is None:
                raise
            raise meaning from error

    async def _serve(self, socket: ClientConnection) -> AgentsrvError:
        """Serve one connection until it ends, and return the reason."""
        self._outbox = asyncio.Queue()
        writer = asyncio.create_task(
            _write_frames(socket, self._outbox), name="agentsrv-client-writer"
        )
        try:
            for command in list(self._pending.values()):
                self._write(command)
            self._subscriptions.up()
            self.ready.set()
            if self._lost_at is not None:
                self._lost_at = None
                self._report(None)
            return await self._read(socket)
        except ConnectionClosed as closed:
            return connection_errors.close_error(closed, self._url, renews=self._tokens.renews)
        except (ValueError, KeyError, TypeError) as error:
            return ProtocolError(f"the server sent a frame that cannot be read: {error!r}")
        finally:
            self._outbox = None
            writer.cancel()
            await asyncio.wait({writer})
            self._drop_commands()
            self._subscriptions.down()
            await socket.close()
            socket.transport.abort()

    async def _read(self, socket: ClientConnection) -> AgentsrvError:
        """Read frames; return once the server refuses commands and no reply would be lost."""
        self._server_stops = False
        while True:
            for _ in range(FRAMES_PER_TURN):
                self._dispatch(orjson.loads(await socket.recv(decode=False)))
                if self._server_stops and all(command.resend for command in self._pending.values()):
                    return ServerUnavailableError("the server is about to stop")
            await asyncio.sleep(0)

    def _dispatch(self, frame: dict[str, Any]) -> None:
        from agentsrv.client import frames  # noqa: PLC0415 - it imports pydantic

        match frame["type"]:
            case "event":
                self._progress = True
                self._subscriptions.take(frames.to_record(frame))
            case "reply":
                fields = {key: frame[key] for key in frame if key not in REPLY_ENVELOPE}
                self._match(frame["id"], fields)
            case "error":
                frames.check("error", frame)
                if frame["id"] is None and "task_id" in frame:
                    self._subscriptions.end_by_server(frame["task_id"], from_frame(frame))
                else:
                    self._match(frame["id"], from_frame(frame))
            case "goaway":
                frames.check("goaway", frame)
                reconnect_in = max(0.0, float(frame["reconnect_in"]))
                self._reconnect_in = min(reconnect_in, MAX_SERVER_DELAY)
            case _:
                pass  # caught_up, and frames of a newer server

    def _match(self, number: int | None, outcome: Outcome) -> None:
        """Find the command of an outcome, and resolve it unless it is to be sent again."""
        self._progress = True
        if number is None and isinstance(outcome, AgentsrvError):
            number = self._oldest_sent()
        command = self._pending.get(number) if number is not None else None
        if command is None or number is None:
            _log.warning("a reply to no command of this client: %s", outcome)
            return
        if isinstance(outcome, RateLimitedError) and not command.abandoned:
            delay = min(outcome.retry_after or 0.0, MAX_SERVER_DELAY)
            asyncio.get_running_loop().call_later(
                delay, self._send_again, number, command.times_sent
            )
            return
        if isinstance(outcome, ShuttingDownError) and command.resend and not command.abandoned:
            command.times_sent -= 1  # it was not carried out; it is sent on the next connection
            self._server_stops = True
            return
        del self._pending[number]
        if not isinstance(outcome, AgentsrvError):
            from agentsrv.client import frames  # noqa: PLC0415 - it imports pydantic

            try:
                frames.check_reply(command.name, outcome)
            except ProtocolError as violation:
                outcome = violation
        elif command.times_sent > 1:
            outcome.__cause__ = ReplyLostError("the first reply was lost with its connection")
        command.on_outcome(outcome)

    def _oldest_sent(self) -> int | None:
        """Return the number of the oldest command that was sent."""
        sent = (number for number, command in self._pending.items() if command.times_sent)
        return next(sent, None)

    def _send_again(self, number: int, times_sent: int) -> None:
        """Send a rate-limited command again, unless a new connection has done so."""
        command = self._pending.get(number)
        if command is not None and command.times_sent == times_sent and self._outbox is not None:
            command.times_sent -= 1  # the first one was not carried out
            self._write(command)

    def _write(self, command: PendingCommand) -> None:
        assert self._outbox is not None
        command.times_sent += 1
        self._outbox.put_nowait(command.body)

    def _drop_commands(self) -> None:
        """Resolve the commands that must not be sent on the next connection."""
        for number, command in list(self._pending.items()):
            if command.abandoned or (command.times_sent and not command.resend):
                del self._pending[number]
                command.on_outcome(ReplyLostError("the connection was lost before the reply"))


async def _write_frames(socket: ClientConnection, outbox: asyncio.Queue[bytes]) -> None:
    try:
        while True:
            await socket.send(await outbox.get(), text=True)
    except ConnectionClosed:
        pass  # the task that reads returns the reason


__all__ = [
    "OnConnection",
    "Options",
    "Outage",
    "PendingCommand",
    "ReconnectingConnection",
    "Timing",
]
