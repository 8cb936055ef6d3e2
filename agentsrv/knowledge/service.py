"""The knowledge base of a server, which is refreshed while the server runs."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentsrv.errors import AgentsrvError, KnowledgeError
from agentsrv.knowledge.ranking import Passage
from agentsrv.knowledge.search import KnowledgeBase

READ_TIMEOUT: Final = 30.0  # seconds that searches wait for the folder to be read

_log = logging.getLogger("agentsrv.knowledge")


class KnowledgeService:
    """Refreshes and searches a `KnowledgeBase`.

    Between `open` and `close`, a background task reads new and changed files of the folder; a
    second one then computes vectors. Searches wait for the first task, together at most
    `READ_TIMEOUT` seconds, and not for the second.
    """

    def __init__(self, base: KnowledgeBase) -> None:
        self._base = base
        self._timeout = READ_TIMEOUT
        self._reading: asyncio.Task[None] | None = None
        self._embedding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to refresh the index."""
        self._reading = asyncio.create_task(self._read())
        self._embedding = asyncio.create_task(self._embed(self._reading))

    async def search(self, query: str, limit: int) -> list[Passage]:
        """Search after the folder has been read; after `READ_TIMEOUT`, search the files so far."""
        assert self._reading is not None, "the service is not open"
        done, _ = await asyncio.wait({self._reading}, timeout=self._timeout)
        if not done and self._timeout:
            self._timeout = 0.0
            _log.warning("searches no longer wait for the folder to be read")
        return await self._base.search(query, limit)

    async def close(self) -> None:
        """Stop reading and close the index."""
        for task in (self._embedding, self._reading):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._base.close()

    async def _read(self) -> None:
        try:
            report = await self._base.refresh()
        except KnowledgeError as error:
            _log.error("the knowledge base cannot be refreshed: %s", error)
        else:
            _log.info(
                "knowledge base: %d files, %d passages, refreshed in %.1f s",
                report.files,
                report.passages,
                report.seconds,
            )

    async def _embed(self, reading: asyncio.Task[None]) -> None:
        await asyncio.wait({reading})
        try:
            count = await self._base.embed()
        except AgentsrvError as error:
            _log.warning("passages have no vectors until the next start: %s", error)
        else:
            if count:
                _log.info("knowledge base: %d passages have vectors", count)
