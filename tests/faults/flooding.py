"""A client that sends more than it may: ``python -m tests.faults.flooding PORT TOKEN SECONDS``.

It offers 10,000 commands a second over some connections, whatever becomes of them, and prints at
its end what did, as JSON. Turns that come late offer more. A flood that has not been refused continues
for up to ``PATIENCE`` seconds: on a busy machine it takes that long to become one.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack, suppress
from typing import Final

from tests.support.wire import Wire, command

CONNECTIONS: Final = 20
A_SECOND: Final = 10_000  # commands, by all of them
TICK: Final = 0.01  # seconds
PATIENCE: Final = 60.0  # seconds
HELD: Final = 1 << 20  # bytes that wait in this process for one connection; beyond, it has to wait
CHUNK: Final = 1 << 18  # bytes
SERVED, REFUSED = b'"type":"reply"', b'"code":"rate_limited"'


class Tap:
    """One of the connections, written to and read from without waiting."""

    def __init__(self, wire: Wire) -> None:
        self._socket = wire.socket
        self._socket.setblocking(False)
        self._out = bytearray()
        self._tail = b""
        self.offered = self.served = self.refused = 0

    def turn(self, frame: bytes, due: int) -> None:
        """Offer what is due of all commands, and count the answers that have come."""
        count = min(due - self.offered, (HELD - len(self._out)) // len(frame))
        if count > 0:
            self._out += frame * count
            self.offered += count
        with suppress(BlockingIOError):
            del self._out[: self._socket.send(self._out)]
        try:
            data = self._tail + self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        self.served += data.count(SERVED)
        self.refused += data.count(REFUSED)
        # What may be the beginning of a mark, and not a whole one that would count twice.
        self._tail = data[-(min(len(SERVED), len(REFUSED)) - 1) :]


def main(port: int, token: str, seconds: float) -> None:
    """Flood."""
    frame = command({"command": "ping", "id": 1})
    with ExitStack() as stack:
        taps = [Tap(stack.enter_context(Wire(port, token=token))) for _ in range(CONNECTIONS)]
        print("flooding", flush=True)
        started = now = time.monotonic()
        turns = 0
        while now < started + seconds or (
            now < started + PATIENCE and not any(tap.refused for tap in taps)
        ):
            due = round(A_SECOND * (now - started) / CONNECTIONS)
            for tap in taps:
                tap.turn(frame, due)
            turns += 1
            time.sleep(max(0.0, started + turns * TICK - time.monotonic()))
            now = time.monotonic()
        told = {
            "seconds": now - started,
            "offered": sum(tap.offered for tap in taps),
            "served": sum(tap.served for tap in taps),
            "refused": sum(tap.refused for tap in taps),
        }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
