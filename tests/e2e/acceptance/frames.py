"""Bytes behind a good handshake, and what each is answered with: see RFC 6455.

A number is the close code; where the connection lives, the code of the error, ``reply`` or
``nothing``.
"""

from __future__ import annotations

import json
import zlib
from typing import Final

from tests.e2e.acceptance.handshakes import Rows
from tests.e2e.acceptance.probe import NOTHING, text
from tests.support.wire import CLOSE, PING, PONG, TEXT, framed

CONT, BINARY = 0x0, 0x2
FIN, MASKED = 0x80, 0x80
MAX_FRAME: Final = 1 << 20  # bytes; the server's default
MAX_FRAGMENTS: Final = 4096  # of a message; websockets' default
PINGING: Final = json.dumps({"command": "ping", "id": 1}).encode()
FLOOD: Final = 20_000  # pings


def part(opcode: int, payload: bytes) -> bytes:
    """A frame that is not the last of its message."""
    frame = framed(opcode, payload)
    return bytes((frame[0] & ~FIN,)) + frame[1:]


def reserved(bits: int, payload: bytes = PINGING) -> bytes:
    """A text frame with reserved bits."""
    frame = framed(TEXT, payload)
    return bytes((frame[0] | bits,)) + frame[1:]


def declared(length: int) -> bytes:
    """The header of a text frame that says to be so long, in eight bytes, and no more."""
    return bytes((FIN | TEXT, MASKED | 127)) + length.to_bytes(8) + bytes(4)


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return framed(CLOSE, code.to_bytes(2) + reason)


def bomb() -> bytes:
    """A gigabyte of spaces, compressed as permessage-deflate would: a megabyte."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    spaces = bytes(1 << 20)
    data = b"".join(deflate.compress(spaces) for _ in range(1 << 10))
    return data + deflate.flush(zlib.Z_SYNC_FLUSH)


HEADERS: Final[Rows] = {
    "a frame without a mask": (bytes((FIN | TEXT, len(PINGING))) + PINGING, 1002, "incorrect masking"),
    **{
        f"reserved bits {bits >> 4:03b}": (reserved(bits), 1002, "reserved bits must be 0")
        for bits in (0x40, 0x20, 0x10, 0x60, 0x70)
    },
    **{
        f"reserved opcode {opcode:X}": (framed(opcode, b"x"), 1002, "invalid opcode")
        for opcode in (*range(0x3, 0x8), *range(0xB, 0x10))
    },
    "a frame of a deflate bomb": (reserved(0x40, bomb()[: MAX_FRAME - 99]), 1002, "reserved bits"),
    "a frame beyond the limit": (framed(TEXT, b" " * (MAX_FRAME + 1)), 1009, f"frame with {MAX_FRAME + 1} bytes exceeds limit of {MAX_FRAME} bytes"),
    "a frame beyond all limits": (framed(TEXT, bytes(16 * MAX_FRAME)), 1009, "exceeds limit"),
    "the header of one byte too many": (declared(MAX_FRAME + 1), 1009, "exceeds limit"),
    "the header of an exabyte": (declared(1 << 60), 1009, "exceeds limit"),
    "a length with its first bit": (declared(1 << 63), 1009, ""),
    "a length in more bytes than it needs": (
        bytes((FIN | TEXT, MASKED | 127)) + len(PINGING).to_bytes(8) + bytes(4) + PINGING, "reply", "",
    ),
    "a frame just within the limit": (framed(TEXT, PINGING.ljust(MAX_FRAME)), "reply", "ping"),
    "a binary frame": (framed(BINARY, PINGING), 1003, "expected text frames"),
    "an empty binary frame": (framed(BINARY, b""), 1003, "expected text frames"),
}  # fmt: skip

TEXTS: Final[Rows] = {
    **{
        name: (framed(TEXT, b'{"command": "' + data + b'"}'), 1007, "at position 13")
        for name, data in {
            "a byte that UTF-8 does not have": b"\xff",
            "UTF-8 longer than needed": b"\xc0\xaf",
            "half a surrogate pair as UTF-8": b"\xed\xa0\x80",
            "a surrogate pair as UTF-8": b"\xed\xa0\xbd\xed\xb8\x80",
            "a character beyond Unicode": b"\xf4\x90\x80\x80",
            "a character cut short": b"\xe2\x82",
            "a continuation byte alone": b"\x80",
            "Latin-1": "é".encode("latin-1"),
        }.items()
    },
    "UTF-8 cut at the end": (framed(TEXT, b"ping \xe2\x82"), 1007, "unexpected end of data"),
    "UTF-16": (framed(TEXT, "ping".encode("utf-16")), 1007, "at position 0"),
}  # fmt: skip

FRAGMENTS: Final[Rows] = {
    "a message in three": (
        part(TEXT, PINGING[:5]) + part(CONT, PINGING[5:9]) + framed(CONT, PINGING[9:]), "reply", "ping",
    ),
    "a ping between them": (
        part(TEXT, PINGING[:5]) + framed(PING, b"?") + framed(CONT, PINGING[5:]), "reply", "ping",
    ),
    "a character over two": (
        part(TEXT, b"run \xe2") + framed(CONT, b"\x82") + framed(TEXT, b"ping"), 1007, "unexpected end",
    ),
    "empty ones": (part(TEXT, b"") + part(CONT, b"") + framed(CONT, b"ping"), "reply", "ping"),
    "the second without a first": (framed(CONT, PINGING), 1002, "unexpected continuation frame"),
    "two messages at once": (part(TEXT, b"p") + framed(TEXT, PINGING), 1002, "expected a continuation frame"),
    "a ping in two": (part(PING, b"x") + framed(CONT, b"y"), 1002, "fragmented control frame"),
    "a close frame in two": (part(CLOSE, b"\x03\xe8") + framed(CONT, b""), 1002, "fragmented control frame"),
    "bytes beyond the limit together": (
        part(TEXT, bytes(MAX_FRAME)) + framed(CONT, b"x"), 1009, "exceeds limit",
    ),
    "too many": (part(TEXT, b"") + part(CONT, b"") * MAX_FRAGMENTS + framed(CONT, b""), 1009, "too many fragments"),
    "a binary message": (part(BINARY, b"x") + framed(CONT, b"y"), 1003, "expected text frames"),
}  # fmt: skip

CONTROL: Final[Rows] = {
    "a pong that nobody asked for": (framed(PONG, b"here I am"), NOTHING, ""),
    "a ping flood": (framed(PING, b"x" * 125) * FLOOD, NOTHING, ""),
    "a pong flood": (framed(PONG, b"x" * 125) * FLOOD, NOTHING, ""),
    "a ping that is too long": (framed(PING, b"x" * 126), 1002, "control frame too long"),
    "a close frame that is too long": (closing(1000, b"x" * 124), 1002, "control frame too long"),
    "a good end": (closing(1000, b"bye"), 1000, "bye"),
    "an end without a code": (framed(CLOSE, b""), 0, ""),
    "half a code": (framed(CLOSE, b"\x03"), 1002, "close frame too short"),
    **{
        f"close code {code}": (closing(code), 1002, "invalid status code")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "a reason that is no UTF-8": (closing(1000, b"\xff"), 1007, "invalid start byte at position 0"),
    "words behind the end": (closing(1000) + framed(TEXT, PINGING), 1000, ""),
}  # fmt: skip

BAD_LINES: Final[Rows] = {
    "nineteen bad frames in a row": (text("nonsense") * 19, "unknown_command", "nonsense"),
    "twenty of them": (text("nonsense") * 20, 4400, "too many bad frames in a row"),
    "of different kinds": ((text("{") + text("") + text('{"a": 1}') + text("?")) * 5, 4400, "too many"),
    "a good one between them": (
        text("nonsense") * 19 + text("ping") + text("nonsense") * 19, "unknown_command", "nonsense",
    ),
}  # fmt: skip

CUT: Final[dict[str, bytes]] = {
    "nothing": b"",
    "a header's first byte": framed(TEXT, PINGING)[:1],
    "a header": framed(TEXT, PINGING)[:6],
    "half a frame": framed(TEXT, PINGING)[:-5],
    "half a message": part(TEXT, PINGING),
    "a command": framed(TEXT, PINGING),
    "a task": text(
        '{"command": "create", "task_description": "x", "agent": "echo", "execute": true}'
    ),
    "most of a large frame": framed(TEXT, bytes(MAX_FRAME))[:-1],
}
"""After which the client is gone without a word."""


def rows() -> Rows:
    """All that is answered, by what is special about each."""
    return {**HEADERS, **TEXTS, **FRAGMENTS, **CONTROL, **BAD_LINES}
