"""Library: the knowledge base of a server, brought up to date while it serves."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from agentsrv.errors import AgentsrvError, KnowledgeError
from agentsrv.knowledge.ranking import Passage
from agentsrv.knowledge.search import KnowledgeBase

PATIENCE: Final = 30.0  # seconds that searches wait for the folder to be read

_log = logging.getLogger("agentsrv.knowledge")


class KnowledgeService:
    """The knowledge base that a server searches.

    Owns a task between `open` and `close`, which reads what is new in the folder and then gives
    it vectors. Searches wait for the reading, at most `PATIENCE` seconds, and not for vectors.
    """

    def __init__(self, base: KnowledgeBase) -> None:
        self._base = base
        self._patience = PATIENCE
        self._reading: asyncio.Task[None] | None = None
        self._embedding: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to bring the index up to date."""
        self._reading = asyncio.create_task(self._read())
        self._embedding = asyncio.create_task(self._embed(self._reading))

    async def search(self, query: str, limit: int) -> list[Passage]:
        """Search as soon as the folder is read; after `PATIENCE` seconds, what was read by then."""
        assert self._reading is not None, "the library is not open"
        done, _ = await asyncio.wait({self._reading}, timeout=self._patience)
        if not done and self._patience:
            self._patience = 0.0
            _log.warning("searches do not wait any longer for the folder to be read")
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
            _log.error("the knowledge base cannot be brought up to date: %s", error)
        else:
            _log.info(
                "knowledge base: %d files, %d passages, brought up to date in %.1f s",
                report.files,
                report.passages,
                report.seconds,
            )

    async def _embed(self, reading: asyncio.Task[None]) -> None:
        await asyncio.wait({reading})
        try:
            count = await self._base.embed()
        except AgentsrvError as error:
            _log.warning("passages are left without vectors until the next start: %s", error)
        else:
            if count:
                _log.info("knowledge base: %d passages have vectors", count)
