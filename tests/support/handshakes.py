"""Handshakes as bytes: a good one, and whatever it is changed to."""

from __future__ import annotations

import asyncio
from typing import Final

from tests.support.principals import ADA_KEY

UPGRADE: Final = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAECAwQFBgcICQoLDA0ODw==",
    "Sec-WebSocket-Version": "13",
    "Authorization": f"Bearer {ADA_KEY}",
}


def handshake(
    *more: str, line: str = "GET / HTTP/1.1", without: str = "", **changes: str | None
) -> bytes:
    """A good handshake but for ``changes`` (``_`` for ``-``), and with ``more`` headers."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    headers = {name: value for name, value in (UPGRADE | named).items() if value is not None}
    lines = [line, *(f"{name}: {value}" for name, value in headers.items()), *more, "", ""]
    return "\r\n".join(lines).encode("latin-1", errors="replace")


async def shout(port: int, *lines: str) -> bytes:
    """Send the lines of a request as they are; return what is answered until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join((*lines, "", "")).encode("latin-1", errors="replace"))
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
