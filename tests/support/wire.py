"""A WebSocket client without a library: it can stop reading, send halves, and flood."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Self

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
SHORT, MEDIUM = 125, 0xFFFF  # bytes whose length fits the header's second byte; two more bytes
CHUNK: Final = 1 << 16  # bytes
HEADER_END: Final = b"\r\n\r\n"

Frame = tuple[int, bytes]


class ConnectionLost(Exception):
    """The connection ended; ``code`` is the server's close code, if it sent one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class Parser:
    """Bytes of a server in, whole frames out. The server neither masks nor splits its frames."""

    def __init__(self) -> None:
        self.rest = bytearray()
        """What has come of the next frame."""

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; return the frames that are complete now."""
        self.rest += data
        frames, at = [], 0
        view = bytes(self.rest)
        while len(view) - at >= 2:
            length, body = view[at + 1], at + 2
            if length > SHORT:
                size = 2 if length == SHORT + 1 else 8
                length = int.from_bytes(view[body : body + size]) if len(view) >= body + size else 0
                body += size
            if len(view) < body + length or body > len(view):
                break
            frames.append((view[at] & 0x0F, view[body : body + length]))
            at = body + length
        del self.rest[:at]
        return frames


def framed(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros, which changes nothing and is as good a key as any."""
    length = len(payload)
    if length <= SHORT:
        header = bytes((0x80 | opcode, 0x80 | length))
    elif length <= MEDIUM:
        header = bytes((0x80 | opcode, 0x80 | SHORT + 1)) + length.to_bytes(2)
    else:
        header = bytes((0x80 | opcode, 0x80 | SHORT + 2)) + length.to_bytes(8)
    return header + bytes(4) + payload


def command(fields: dict[str, Any]) -> bytes:
    """A command as a frame."""
    return framed(TEXT, json.dumps(fields).encode())


def handshake(port: int, token: str | None = None) -> bytes:
    """The request that asks for a WebSocket."""
    says_who = f"Authorization: Bearer {token}\r\n" if token is not None else ""
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Sec-WebSocket-Version: 13\r\n{says_who}\r\n"
    ).encode()


class Wire:
    """One connection over a blocking socket; nothing is read unless it is asked for.

    Args:
        port: Where the server, or a proxy before it, listens on the loopback interface.
        receive_buffer: Bytes that the kernel keeps for this client; its own choice by default.
        timeout: Seconds that a read waits before it gives the connection up.
        token: Says who it is, where that is asked.
        request: The handshake, in place of a plain one.
    """

    def __init__(
        self,
        port: int,
        *,
        receive_buffer: int | None = None,
        timeout: float = 10.0,
        token: str | None = None,
        request: bytes | None = None,
    ) -> None:
        self._parser = Parser()
        self._waiting: list[Frame] = []
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(("127.0.0.1", port))
            self.port = int(self.socket.getsockname()[1])
            self.socket.sendall(request or handshake(port, token))
            self._shake_hands()
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go away without a closing handshake."""
        self.socket.close()

    @property
    def is_within_frame(self) -> bool:
        """Whether a part of a frame has come and the rest has not."""
        return bool(self._parser.rest)

    def send(self, fields: dict[str, Any]) -> None:
        """Send a command."""
        try:
            self.socket.sendall(command(fields))
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def bodies(self) -> Iterator[bytes]:
        """The texts that come; pings and the closing handshake are answered.

        Raises:
            ConnectionLost: The connection ended, or nothing came in time.
        """
        while True:
            while self._waiting:
                opcode, payload = self._waiting.pop(0)
                if opcode == TEXT:
                    yield payload
                elif opcode == PING:
                    self.socket.sendall(framed(PONG, payload))
                elif opcode == CLOSE:
                    with suppress(OSError):  # it may be gone already; what it said counts
                        self.socket.sendall(framed(CLOSE, payload))
                    code = int.from_bytes(payload[:2])
                    raise ConnectionLost(f"closed: {code} {payload[2:]!r}", code)
            try:
                self._waiting += self._parser.feed(self._receive())
            except OSError as error:
                raise ConnectionLost(str(error)) from error

    def ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a command and skip what comes before its answer."""
        self.send(fields)
        for body in self.bodies():
            frame: dict[str, Any] = json.loads(body)
            if frame["type"] in ("reply", "error"):
                return frame
        raise AssertionError("bodies end by an exception")

    def log(self, task_id: str) -> list[bytes]:
        """All events that a task has by now, as they are on the wire."""
        self.send({"command": "subscribe", "task_id": task_id})
        events = []
        for body in self.bodies():
            frame = json.loads(body)
            if frame.get("task_id") != task_id:
                continue
            if frame["type"] == "event":
                events.append(body)
            elif frame["type"] == "caught_up":
                break
        return events

    def _shake_hands(self) -> None:
        received = bytearray()
        while HEADER_END not in received:
            received += self._receive()
        head, _, rest = bytes(received).partition(HEADER_END)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionLost(f"no handshake: {head[:80]!r}")
        self._waiting += self._parser.feed(rest)

    def _receive(self) -> bytes:
        data = self.socket.recv(CHUNK)
        if not data:
            raise ConnectionLost("the connection ended")
        return data
