"""ResultCache: outputs and results of agents that declare ``cache``, for identical later calls."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from agentsrv.models.canonical import canonical

MAX_ENTRIES: Final = 1000
MAX_BYTES: Final = 16 << 20  # of all outputs and results together
MAX_ENTRY_SHARE: Final = 16  # one entry may use a sixteenth of ``MAX_BYTES``


class CachedResult(NamedTuple):
    """The text and the result of a completed step."""

    output: str
    result: Any


class _Entry(NamedTuple):
    output: str
    result: bytes
    """As JSON: each reader receives its own copy."""
    size: int
    expires_at: float


class ResultCache:
    """Completed results by the hash of everything that the agent was given.

    The least recently used entries are dropped first. The cache lives as long as the server's
    process. The knowledge base is read when the process starts, so no entry is older than the
    documents that it was made from.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes, now: float) -> CachedResult | None:
        """Return the entry of ``key`` unless it has expired at ``now`` (the event loop's clock)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= now:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return CachedResult(entry.output, orjson.loads(entry.result))

    def put(self, key: bytes, completed: CachedResult, expires_at: float) -> None:
        """Keep ``completed`` until ``expires_at`` (the loop's clock), unless it is too large."""
        result = orjson.dumps(completed.result)
        size = len(completed.output.encode()) + len(result)
        if size > MAX_BYTES // MAX_ENTRY_SHARE:
            return
        self._drop(key)
        self._entries[key] = _Entry(completed.output, result, size, expires_at)
        self._bytes += size
        while self._bytes > MAX_BYTES or len(self._entries) > MAX_ENTRIES:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size


def cache_key(principal: str, agent: str, *inputs: Any) -> bytes:
    """Return the key of a call of ``agent`` with ``inputs`` (JSON); principals share no entries."""
    return blake2b(canonical([principal, agent, *inputs]), digest_size=16).digest()
