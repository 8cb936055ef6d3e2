"""Link: one connection that comes back; commands out, answers matched, events handed on."""

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
from typing import TYPE_CHECKING, Any, Final, Protocol
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
from agentsrv.client.subscriptions import Answer
from agentsrv.client.tokens import Token, Tokens
from agentsrv.client.trust import tls_context
from agentsrv.errors import (
    AgentsrvError,
    InvalidCommandError,
    RateLimitedError,
    ShuttingDownError,
    TooLargeError,
)
from agentsrv.models.events import Record
from agentsrv.protocol import PROTOCOL
from agentsrv.telemetry.websockets_logging import hide_frame_dumps

if TYPE_CHECKING:
    from agentsrv.protocol.frame_types import Hello

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
ENVELOPE: Final = ("type", "command", "id")  # of a reply; the rest is what was asked for
CLOSE_TIMEOUT: Final = 2.0  # seconds for a closing handshake
LONGEST_WAIT: Final = 60.0  # seconds that a server may have the client wait for the next try
BURST: Final = 100  # frames handled before the readers of events have a turn

_log = logging.getLogger("agentsrv.client")


@dataclass(frozen=True, slots=True)
class Options:
    """What may be set about a connection; the last three are for tests."""

    open_timeout: float = 10.0
    """Seconds for the handshake and the server's greeting."""
    ping_interval: float = 20.0
    """Seconds between pings; a connection that answers none for as long again is dropped."""
    max_frame: int = 64 << 20
    """Bytes of one frame from the server; a snapshot holds all that a task's steps wrote."""
    ca: Path | str | None = None
    """PEM file of the CAs that are trusted, in place of the system's; for ``wss://``."""
    buffer: int = 1000
    """Events kept for each iterator that does not take them; the rest waits in the log."""
    reconnect: Reconnect = field(default_factory=Reconnect)
    random: Callable[[float, float], float] = random.uniform
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Outage:
    """A connection that was lost and is not back yet."""

    reason: str
    """Why the connection ended, or why the latest attempt failed."""
    since: float
    """When it was lost, by ``Options.clock``."""
    retry_in: float
    """Seconds until the next attempt."""


OnConnection = Callable[[Outage | None], None]
"""Called when the connection is lost, after each failed attempt, and with ``None`` at its end."""


class Listener(Protocol):
    """Who is told what happens on a link; nothing here may wait."""

    def take(self, record: Record) -> None:
        """An event arrived."""

    def refused(self, task_id: str, error: AgentsrvError) -> None:
        """The server has ended a subscription to a task."""

    def up(self) -> None:
        """There is a connection."""

    def down(self) -> None:
        """There is none."""

    def fail(self, error: AgentsrvError) -> None:
        """There will be none any more."""


@dataclass(eq=False, slots=True)
class Call:
    """A command without an answer so far."""

    command: str
    body: bytes
    settle: Callable[[Answer], None]
    resend: bool
    """Whether it is sent again on the next connection; else it is settled as interrupted.
    One whose caller has gone is not."""
    is_line: bool = False
    """A command line has no id: its answer is told by the order."""
    sent: int = 0
    """How often; an error after more than one is caused by an ``ReplyLostError``."""
    abandoned: bool = False


class ReconnectingConnection:
    """Connects, and connects again; ``run`` is the one task that does it.

    Everything else returns at once. Commands wait here while there is no connection.

    Raises:
        ConfigurationError: The token cannot be one, or the file of the CA cannot be used.
    """

    def __init__(
        self, url: str, options: Options, listener: Listener, token: Token | None = None
    ) -> None:
        self.hello: Hello | None = None
        """The latest greeting."""
        self.failure: AgentsrvError | None = None
        """Why there will be no other connection."""
        self.ready = asyncio.Event()
        """Set at the first connection, and at the failure."""
        self.on_connection: OnConnection | None = None
        self._process: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost_at: float | None = None
        self._url = url
        self._tls = tls_context(url, options.ca)
        self._tokens = Tokens(token)
        self._options = options
        self._listener = listener
        self._calls: dict[int, Call] = {}
        self._ids = itertools.count(1)
        self._outbox: asyncio.Queue[bytes] | None = None
        self._progress = False
        self._sent_away = False
        self._reconnect_in = 0.0

    def start(self) -> asyncio.Task[None]:
        """Begin to connect, in the running event loop and this process only.

        Raises:
            ClientUsageError: It was started before.
        """
        if self._loop is not None:
            raise ClientUsageError("the client was entered before; make another Client")
        self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        return self._loop.create_task(self.run(), name="agentsrv-client")

    def check(self) -> None:
        """Check that a command can be answered here.

        Raises:
            ClientUsageError: It was not started, or in another process or event loop.
            AgentsrvError: There will be no other connection.
        """
        if self._loop is None:
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
        if asyncio.get_running_loop() is not self._loop:
            raise ClientUsageError(
                "the client belongs to another event loop; make one Client in each loop, or "
                "use SyncClient from any thread"
            )

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that connected."""
        return self._process is not None and self._process != os.getpid()

    def post(
        self, fields: dict[str, Any], settle: Callable[[Answer], None], *, resend: bool
    ) -> Call:
        """Send a command, now or when there is a connection.

        ``settle`` is called with the answer before any later frame is looked at.

        Raises:
            TooLargeError: The server would close the connection over a frame of this size.
            AgentsrvError: There will be no other connection.
        """
        number = next(self._ids)
        body = orjson.dumps(fields | {"id": number})
        return self._post(number, Call(fields["command"], body, settle, resend))

    def post_line(self, line: str, settle: Callable[[Answer], None]) -> Call:
        """Send a command line that only reads; see `post`."""
        try:
            body = line.encode()
        except UnicodeEncodeError as error:
            raise InvalidCommandError(f"{line!r} is not a text: {error}") from None
        command = line.partition(" ")[0]
        return self._post(next(self._ids), Call(command, body, settle, resend=True, is_line=True))

    def fail(self, error: AgentsrvError) -> None:
        """End everything with ``error``; the first one counts."""
        if self.failure is None:
            self.failure = error
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.settle(error)
            self._listener.fail(error)
            self.ready.set()

    async def run(self) -> None:
        """Keep a connection until it is given up; cancelling closes it."""
        failures, was_up = 0, False
        limits = self._options.reconnect
        try:
            while True:
                self._progress = False
                try:
                    socket = await self._connect()
                    was_up = True
                    error = await self._serve(socket)
                except AgentsrvError as refusal:
                    error = refusal
                failures = 1 if self._progress else failures + 1
                most = limits.attempts if was_up else limits.first_attempts
                if not error.retryable or failures >= most:
                    self.fail(error)
                    return
                _log.debug("%s; connecting again (failure %d)", error, failures)
                delay = self._delay(failures)
                if was_up:
                    self._lose(error.message, delay)
                await self._options.sleep(delay)
        finally:
            self.fail(ConnectionClosedError("the client is closed"))

    def _lose(self, reason: str, retry_in: float) -> None:
        if self._lost_at is None:
            self._lost_at = self._options.clock()
        self._report(Outage(reason, self._lost_at, retry_in))

    def _report(self, outage: Outage | None) -> None:
        if self.on_connection is not None:
            try:
                self.on_connection(outage)
            except Exception:  # noqa: BLE001 - logged; the connection does not depend on it
                _log.exception("on_connection failed")

    def _post(self, number: int, call: Call) -> Call:
        if self.failure is not None:
            raise self.failure
        most = self.hello["limits"].get("max_frame") if self.hello else None
        if most is not None and len(call.body) > most:
            raise TooLargeError(f"the command has {len(call.body)} bytes; the server takes {most}")
        self._calls[number] = call
        if self._outbox is not None:
            self._send(call)
        return call

    def _delay(self, failures: int) -> float:
        at_least, self._reconnect_in = self._reconnect_in, 0.0
        ceiling = self._options.reconnect.ceiling(failures)
        return at_least + self._options.random(0.0, ceiling)

    async def _connect(self) -> ClientConnection:
        """Connect and read the greeting.

        Raises:
            ServerUnavailableError, NotAServerError, AccessDeniedError: It did not work out.
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
                    proxy=None if urlsplit(url).hostname in LOOPBACK else True,
                    logger=hide_frame_dumps(_log.getChild("websocket")),
                )
                self.hello = connection_errors.greeting(await socket.recv(decode=False), url)
                return socket
        except BaseException as error:
            if socket is not None:
                socket.transport.abort()
            refusal = connection_errors.refusal(error, url)
            if refusal is None:
                raise
            raise refusal from error

    async def _serve(self, socket: ClientConnection) -> AgentsrvError:
        """Serve one connection until it ends, and tell why it did."""
        self._outbox = asyncio.Queue()
        writer = asyncio.create_task(_write(socket, self._outbox), name="agentsrv-client-writer")
        try:
            for call in list(self._calls.values()):
                self._send(call)
            self._listener.up()
            self.ready.set()
            if self._lost_at is not None:
                self._lost_at = None
                self._report(None)
            return await self._read(socket)
        except ConnectionClosed as closed:
            return connection_errors.verdict(closed, self._url, renews=self._tokens.renews)
        except (ValueError, KeyError, TypeError) as error:
            return ProtocolError(f"the server sent a frame that cannot be read: {error!r}")
        finally:
            self._outbox = None
            writer.cancel()
            await asyncio.wait({writer})
            self._drop_calls()
            self._listener.down()
            await socket.close()
            socket.transport.abort()

    async def _read(self, socket: ClientConnection) -> AgentsrvError:
        """Take what comes, until the server sends us away and nothing is lost by going."""
        self._sent_away = False
        while True:
            for _ in range(BURST):
                self._dispatch(orjson.loads(await socket.recv(decode=False)))
                if self._sent_away and all(call.resend for call in self._calls.values()):
                    return ServerUnavailableError("the server is about to stop")
            await asyncio.sleep(0)

    def _dispatch(self, frame: dict[str, Any]) -> None:
        from agentsrv.client import frames  # noqa: PLC0415 - it imports pydantic

        match frame["type"]:
            case "event":
                self._progress = True
                self._listener.take(frames.to_record(frame))
            case "reply":
                answer = {key: frame[key] for key in frame if key not in ENVELOPE}
                self._settle(frame["id"], answer)
            case "error":
                frames.check("error", frame)
                if frame["id"] is None and "task_id" in frame:
                    self._listener.refused(frame["task_id"], from_frame(frame))
                else:
                    self._settle(frame["id"], from_frame(frame))
            case "goaway":
                frames.check("goaway", frame)
                self._reconnect_in = min(max(0.0, float(frame["reconnect_in"])), LONGEST_WAIT)
            case _:
                pass  # caught_up, and what a newer server may have to tell

    def _settle(self, number: int | None, answer: Answer) -> None:
        self._progress = True
        if number is None:
            number = self._unnamed(answer)
        call = self._calls.get(number) if number is not None else None
        if call is None or number is None:
            _log.warning("an answer to no command of this client: %s", answer)
            return
        if isinstance(answer, RateLimitedError) and not call.is_line and not call.abandoned:
            wait = min(answer.retry_after or 0.0, LONGEST_WAIT)
            asyncio.get_running_loop().call_later(wait, self._send_again, number, call.sent)
            return
        if isinstance(answer, ShuttingDownError) and call.resend and not call.abandoned:
            call.sent -= 1  # that time counts for nothing; it is sent on the next connection
            self._sent_away = True
            return
        del self._calls[number]
        if not isinstance(answer, AgentsrvError):
            from agentsrv.client import frames  # noqa: PLC0415 - it imports pydantic

            try:
                frames.check_reply(call.command, answer)
            except ProtocolError as violation:
                answer = violation
        elif call.sent > 1:
            answer.__cause__ = ReplyLostError("the first answer was lost with its connection")
        call.settle(answer)

    def _unnamed(self, answer: Answer) -> int | None:
        """The command that an answer without an id belongs to.

        A reply belongs to the oldest command line, as only these have no id. An error may also
        be about a frame that the server could not read: then it is the oldest command's, because
        a connection's commands are answered in their order.
        """
        sent = [key for key, call in self._calls.items() if call.sent]
        lines = (key for key in sent if self._calls[key].is_line)
        oldest = sent[0] if sent and isinstance(answer, AgentsrvError) else None
        return next(lines, oldest)

    def _send_again(self, number: int, sent: int) -> None:
        """Send a command that was not carried out, unless a new connection has done so."""
        call = self._calls.get(number)
        if call is not None and call.sent == sent and self._outbox is not None:
            call.sent -= 1  # that time counts for nothing
            self._send(call)

    def _send(self, call: Call) -> None:
        assert self._outbox is not None
        call.sent += 1
        self._outbox.put_nowait(call.body)

    def _drop_calls(self) -> None:
        """Settle or forget the commands that are not sent again."""
        for number, call in list(self._calls.items()):
            if call.abandoned or (call.sent and not call.resend):
                del self._calls[number]
                call.settle(ReplyLostError("the connection was lost before the answer"))


async def _write(socket: ClientConnection, outbox: asyncio.Queue[bytes]) -> None:
    try:
        while True:
            await socket.send(await outbox.get(), text=True)
    except ConnectionClosed:
        pass  # the reader tells


__all__ = ["Call", "Listener", "OnConnection", "Options", "Outage", "ReconnectingConnection"]
