import asyncio
import logging

import pytest

from agentsrv.errors import ModelError
from agentsrv.knowledge.search import KnowledgeBase
from agentsrv.knowledge.service import KnowledgeService

THREADS = "Creating a thread costs tens of microseconds on most machines."


class Embedder:
    """Gives vectors when it is let, or fails."""

    model = "slow"

    def __init__(self):
        self.may = asyncio.Event()
        self.error = None

    async def embed(self, texts):
        """Wait, then answer."""
        await self.may.wait()
        if self.error is not None:
            raise self.error
        return [[1.0] for _ in texts]


@pytest.fixture
def folder(tmp_path):
    """A folder with one document."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "threads.md").write_text(f"# Threads\n\n{THREADS}\n")
    return folder


async def until_logged(text, caplog):
    """Wait until the log says ``text``."""
    logged = asyncio.Event()

    class Watch(logging.Handler):
        def emit(self, record):
            if text in caplog.text:
                logged.set()

    watch = Watch()
    logging.getLogger().addHandler(watch)
    try:
        if text not in caplog.text:
            await logged.wait()
    finally:
        logging.getLogger().removeHandler(watch)


async def test_a_search_waits_for_the_reading_but_not_for_the_vectors(folder, tmp_path, caplog):
    """The first search finds what is in the folder; the log tells when the vectors are there."""
    caplog.set_level(logging.INFO)
    embedder = Embedder()
    library = KnowledgeService(KnowledgeBase(folder, tmp_path / "index.db", embedder))
    await library.open()
    searched = asyncio.create_task(library.search("threads", 3))
    await until_logged("refreshed in", caplog)
    assert "have vectors" not in caplog.text
    embedder.may.set()  # the query needs one, too
    assert [passage.text for passage in await searched] == [THREADS]
    await until_logged("1 passages have vectors", caplog)
    await library.close()


async def test_a_model_that_fails_is_a_warning(folder, tmp_path, caplog):
    """Searches go on by words."""
    embedder = Embedder()
    embedder.error = ModelError("out of order")
    embedder.may.set()
    library = KnowledgeService(KnowledgeBase(folder, tmp_path / "index.db", embedder))
    await library.open()
    assert await library.search("threads", 3)
    await until_logged("have no vectors", caplog)
    await library.close()
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_folder_that_cannot_be_read_is_an_error_in_the_log(folder, tmp_path, caplog):
    """The server lives on, with what was indexed before."""
    library = KnowledgeService(KnowledgeBase(folder / "gone", tmp_path / "index.db"))
    await library.open()
    assert await library.search("threads", 3) == []
    await library.close()
    assert "cannot be refreshed" in caplog.text


async def test_closing_stops_what_is_under_way(folder, tmp_path):
    """A model that never answers holds nobody up."""
    library = KnowledgeService(KnowledgeBase(folder, tmp_path / "index.db", Embedder()))
    await library.open()
    await library.close()
