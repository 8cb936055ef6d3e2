"""ResultCache: what agents have found, for those that are asked the same again."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from agentsrv.models.canonical import canonical

MAX_ENTRIES: Final = 1000
MAX_BYTES: Final = 16 << 20  # of outputs and results together
MAX_SHARE: Final = 16  # the part of them that one entry may take at most: the rest is for others


class Found(NamedTuple):
    """What an agent has written and given as its result."""

    output: str
    result: Any


class _Entry(NamedTuple):
    output: str
    result: bytes
    """Encoded: whoever is given it may change its own copy."""
    size: int
    until: float


class ResultCache:
    """Outputs and results by what they were made of; the least recently used go first.

    It lives as long as the server's process. The knowledge base is read when that starts, so no
    entry is older than what it was retrieved from.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, now: float) -> Found | None:
        """What is kept under ``key``, unless it is too old at ``now`` (of the loop's clock)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Found(entry.output, orjson.loads(entry.result))

    def put(self, key: bytes, found: Found, until: float) -> None:
        """Keep ``found`` until then, of the loop's clock; what is too large is not kept."""
        result = orjson.dumps(found.result)
        size = len(found.output.encode()) + len(result)
        if size > MAX_BYTES // MAX_SHARE:
            return
        self._drop(key)
        self._entries[key] = _Entry(found.output, result, size, until)
        self._bytes += size
        while self._bytes > MAX_BYTES or len(self._entries) > MAX_ENTRIES:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size


def key_of(principal: str, agent: str, *made_of: Any) -> bytes:
    """The key of what ``agent`` makes of ``made_of`` (JSON) for ``principal``, and nobody else."""
    return blake2b(canonical([principal, agent, *made_of]), digest_size=16).digest()
