"""WebSocket connections spoken by hand, so that the client is not what is measured.

Frames are neither parsed nor checked: what a probe waits for is searched in the raw stream.
The mask of what is sent is zero, which costs the client nothing.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import urlsplit

import orjson

from agentsrv.bench.target import Target
from agentsrv.client.errors import NotAServerError, ServerUnavailableError
from agentsrv.errors import AgentsrvError

EVENT: Final = b'"event_type":"'
"""Stands once in each event's frame."""
PROGRESS: Final = EVENT + b"step_progress"
REPLY: Final = b'"type":"reply"'
PATIENCE: Final = 300.0  # seconds after which a server that does not answer is stuck
TASK_ID: Final = 16  # bytes of a task's id
SHOWN: Final = 300  # bytes of a refusal that are told
PING: Final = b"\x89"  # the first byte of a ping; on an idle connection it comes alone
SHORT: Final = 126  # bytes from which on a frame's length takes two more

_REFUSAL: Final = b'"type":"error"'


class Refused(AgentsrvError):
    """The server refused a command, or ended the connection, in the midst of a measurement."""


class FrameStream(asyncio.Protocol):
    """One connection; a subclass says in ``received`` what it looks for.

    Whoever waits is told when the connection ends or a command is refused.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._opened = False
        self._fault: AgentsrvError | None = None
        self._waiter: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, target: Target) -> Self:
        """Connect and shake hands.

        Raises:
            ServerUnavailableError: Nobody is there, or it speaks no WebSocket.
        """
        return await cls().open(target)

    async def open(self, target: Target) -> Self:
        """Connect this one; see ``connect``."""
        url, parts = target.url, urlsplit(target.url)
        is_secure = parts.scheme == "wss"
        host, port = parts.hostname or "127.0.0.1", parts.port or (443 if is_secure else 80)
        try:
            await self._loop.create_connection(lambda: self, host, port, ssl=is_secure or None)
        except OSError as error:
            raise ServerUnavailableError(f"no server at {url}: {error}") from None
        self._transport.write(self.greeting(parts.path or "/", parts.netloc, target.token))
        async with patience(f"an answer to the handshake at {url}"):
            await self.wait()
        return self

    def greeting(self, path: str, host: str, token: str | None) -> bytes:
        """What is sent first."""
        key = base64.b64encode(os.urandom(16)).decode()
        who = "" if token is None else f"Authorization: Bearer {token}\r\n"
        return (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n{who}"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()

    def send(self, *commands: bytes) -> None:
        """Send each command as a frame, all in one write."""
        self._transport.write(b"".join(map(text_frame, commands)))

    def close(self) -> None:
        """Go, without a closing handshake; without effect where there is no connection."""
        if hasattr(self, "_transport"):
            self._transport.abort()

    def received(self, data: bytes) -> None:
        """Take a part of the stream; by default forget it."""

    async def wait(self) -> None:
        """Wait until ``wake`` is called; a call that came before counts.

        Raises:
            Refused: A command was refused, or the connection was lost.
        """
        await self._waiter
        self._waiter = self._loop.create_future()
        if self._fault is not None:
            raise self._fault

    def wake(self) -> None:
        """Let ``wait`` return."""
        if not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, fault: AgentsrvError) -> None:
        """Let ``wait`` raise."""
        self._fault = self._fault or fault
        self.wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if not self._opened:
            data = self._shake_hands(data)
        if data[:1] == PING and data[1:2] == bytes((len(data) - 2 & 0x7F,)):
            self._transport.write(_pong(data))
        if _REFUSAL in data:
            start = data.index(_REFUSAL)
            self.fail(Refused(f"the server refuses: {_message(data[start : start + SHOWN])}"))
        self.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.fail(Refused(f"the server closed the connection{f': {exc}' if exc else ''}"))

    def _shake_hands(self, data: bytes) -> bytes:
        """Take the answer to the greeting; return what follows it."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return b""
        self._buffer = b""
        self._opened = True
        status = head.partition(b"\r\n")[0].decode(errors="replace")
        if " 101 " not in status:
            self.fail(NotAServerError(f"expected a WebSocket; found {status}"))
        self.wake()
        return rest


class EventScanner(FrameStream):
    """A dialogue: one thing is waited for after the other."""

    async def find(self, mark: bytes, length: int = 0) -> bytes:
        """Wait for ``mark``; return it with ``length`` bytes behind it, and drop what was before.

        Raises:
            Refused: See ``Stream.wait``; or it did not come in time.
        """
        async with patience(mark.decode()):
            while True:
                start = self._buffer.find(mark)
                end = start + len(mark) + length
                if start >= 0 and len(self._buffer) >= end:
                    found, self._buffer = self._buffer[start:end], self._buffer[end:]
                    return found
                await self.wait()

    async def task_id(self, behind: bytes = b"") -> str:
        """Wait for the next task's id, right ``behind`` something if that is given."""
        mark = behind + b'"task_id":"'
        return (await self.find(mark, TASK_ID))[len(mark) :].decode()

    async def ask(self, command: bytes) -> None:
        """Send a command and wait for its reply."""
        self.send(command)
        await self.find(REPLY)

    def received(self, data: bytes) -> None:
        """See ``Stream``."""
        self._buffer += data
        self.wake()


class EventCounter(FrameStream):
    """Counts how often ``mark`` comes, and the bytes."""

    def __init__(self, mark: bytes = EVENT) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0
        self._mark = mark
        self._wanted = 0

    async def until(self, count: int) -> None:
        """Wait until ``count`` marks have come, from the connection's beginning on.

        Raises:
            Refused: See ``Stream.wait``; or it did not come in time.
        """
        self._wanted = count
        async with patience(f"{count} times {self._mark.decode()}"):
            while self.count < count:
                await self.wait()

    def received(self, data: bytes) -> None:
        """See ``Stream``."""
        self.bytes += len(data)
        data = self._buffer + data
        self.count += data.count(self._mark)
        self._buffer = data[-(len(self._mark) - 1) :]
        if self.count >= self._wanted:
            self.wake()


@asynccontextmanager
async def patience(wanted: str) -> AsyncIterator[None]:
    """Let the block wait for what is ``wanted`` for ``PATIENCE`` seconds.

    Raises:
        Refused: It took longer.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise Refused(f"{wanted} did not come within {PATIENCE:g} s") from None


def text_frame(payload: bytes) -> bytes:
    """A whole text frame with a mask of zeros (RFC 6455, section 5.2)."""
    if len(payload) < SHORT:
        return bytes((0x81, 0x80 | len(payload))) + b"\0\0\0\0" + payload
    return bytes((0x81, 0xFE)) + len(payload).to_bytes(2) + b"\0\0\0\0" + payload


def create(
    agent: str | None = None, *, description: str = "measure", bound: bool = False, **params: object
) -> bytes:
    """The command that creates and executes a task: of one agent, or of the app's planner.

    A ``bound`` task is cancelled when its connection ends.
    """
    chosen = {"agent": agent, "params": params} if agent is not None else {}
    ending = {"on_disconnect": "cancel"} if bound else {}
    return command("create", task_description=description, **chosen, execute=True, **ending)


def command(name: str, **fields: object) -> bytes:
    """Any command."""
    return orjson.dumps({"command": name, "id": 1, **fields})


def _pong(ping: bytes) -> bytes:
    return bytes((0x8A, 0x80 | ping[1])) + b"\0\0\0\0" + ping[2:]


def _message(refusal: bytes) -> str:
    _, _, told = refusal.partition(b'"message":"')
    return (told or refusal).partition(b'"')[0].decode(errors="replace")
