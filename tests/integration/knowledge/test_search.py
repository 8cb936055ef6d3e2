import asyncio
import logging
import os
import threading

import pytest

from agentsrv.errors import KnowledgeError, ModelError
from agentsrv.knowledge import search
from agentsrv.knowledge.search import EMBED_RETRY_DELAY, KnowledgeBase

THREADS = "Creating a thread costs tens of microseconds on most machines."
QUEUES = "A bounded queue makes the producer wait until there is room."


@pytest.fixture
def folder(tmp_path):
    """A folder with two documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "threads.md").write_text(f"# Threads\n\n{THREADS}\n")
    (folder / "queues.md").write_text(f"# Queues\n\n{QUEUES}\n")
    return folder


@pytest.fixture
async def knowledge(folder, tmp_path):
    """A knowledge base over it that has read nothing yet."""
    base = KnowledgeBase(folder, tmp_path / "index" / "knowledge.db")
    yield base
    await base.close()


async def test_a_refresh_makes_the_folder_searchable(knowledge):
    """Before it the search is empty, after it a passage has its source, heading and line."""
    assert await knowledge.search("thread") == []
    report = await knowledge.refresh()
    assert (report.files, report.added, report.passages) == (2, 2, 2)
    (passage,) = await knowledge.search("What do threads cost?")
    assert (passage.source, passage.title, passage.line) == ("threads.md", "Threads", 3)
    assert passage.text == THREADS
    assert passage.score > 0


async def test_a_refresh_reads_only_what_changed(knowledge, folder):
    """Unchanged files are not read again, changed ones are, vanished ones are forgotten."""
    await knowledge.refresh()
    again = await knowledge.refresh()
    assert (again.added, again.updated, again.removed, again.files) == (0, 0, 0, 2)
    (folder / "threads.md").write_text("# Fibres\n\nA fibre costs almost nothing to create.\n")
    (folder / "queues.md").unlink()
    (folder / "new.txt").write_text("Semaphores limit how many operations run at once.")
    report = await knowledge.refresh()
    assert (report.added, report.updated, report.removed, report.files) == (1, 1, 1, 2)
    assert await knowledge.search("queue producer") == []
    assert await knowledge.search("microseconds") == []
    assert [passage.source for passage in await knowledge.search("fibres")] == ["threads.md"]


async def test_files_that_cannot_be_read_are_reported(knowledge, folder):
    """Each has its reason, also when the next refresh passes it over; nothing is raised."""
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / "program").write_bytes(b"\x7fELF\0\0\0")
    os.mkfifo(folder / "pipe")
    (folder / "self").symlink_to(folder)
    for _ in range(2):
        report = await knowledge.refresh()
        assert dict(report.skipped) == {
            "image.png": "not a document (.png)",
            "pipe": "not a regular file",
            "program": "binary",
        }
        assert report.files == 2
        assert report.reasons["binary"] == 1


async def test_progress_is_told_up_to_the_end(knowledge):
    """The last call says that all files are done."""
    calls = []

    async def on_progress(done, total, message):
        calls.append((done, total))

    await knowledge.refresh(on_progress)
    assert calls[-1] == (2, 2)


async def test_a_cancelled_refresh_can_be_repeated(knowledge):
    """What was read before stays, the rest follows at the next call."""

    async def cancel(done, total, message):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await knowledge.refresh(cancel)
    assert (await knowledge.refresh()).files == 2


async def test_searches_go_on_during_a_refresh(knowledge):
    """A reader waits neither for the writer nor for its own turn to write."""
    found = []

    async def search(done, total, message):
        found.append(await knowledge.search("threads"))

    await asyncio.gather(knowledge.refresh(search), knowledge.refresh(search))
    assert found[-1]


async def test_many_may_open_a_new_index_at_once(folder, tmp_path):
    """Whoever comes first creates it, the others wait for their turn."""
    for number in range(10):
        bases = [KnowledgeBase(folder, tmp_path / f"{number}.db") for _ in range(3)]
        await asyncio.gather(*(base.search("threads") for base in bases), bases[0].refresh())
        assert await bases[2].search("threads")
        await asyncio.gather(*(base.close() for base in bases))


async def test_a_vanished_folder_keeps_its_index(knowledge, folder):
    """The refresh fails, and what was read can still be found."""
    await knowledge.refresh()
    folder.rename(folder.with_name("away"))
    with pytest.raises(KnowledgeError, match="cannot list"):
        await knowledge.refresh()
    assert await knowledge.search("threads")


async def test_a_broken_index_is_a_knowledge_error(folder, tmp_path):
    """A path that cannot hold the index is named in the error."""
    base = KnowledgeBase(folder, folder)
    with pytest.raises(KnowledgeError, match="docs"):
        await base.search("threads")
    await base.close()


async def test_an_index_that_is_no_file_is_refused(folder, tmp_path):
    """To open a FIFO would hold the thread for ever."""
    path = tmp_path / "fifo.db"
    os.mkfifo(path)
    base = KnowledgeBase(folder, path)
    with pytest.raises(KnowledgeError, match="is not a regular file"):
        await base.search("water", 1)
    await base.close()


async def test_a_file_system_that_does_not_answer_does_not_hold_the_stop(
    folder, tmp_path, monkeypatch
):
    """The thread is left behind."""
    answers = threading.Event()

    def hang(_):
        answers.wait(60)
        raise KnowledgeError("late")

    monkeypatch.setattr(search, "Index", hang)
    monkeypatch.setattr(search, "CLOSE_TIMEOUT", 0.01)
    base = KnowledgeBase(folder, tmp_path / "hangs.db")
    searching = asyncio.create_task(base.search("water", 1))
    await asyncio.sleep(0.05)
    await base.close()
    assert not answers.is_set()
    answers.set()
    with pytest.raises(KnowledgeError, match="late"):
        await searching


async def test_after_closing_nothing_is_searched(knowledge):
    """A closed knowledge base says so; closing twice is fine."""
    await knowledge.refresh()
    await knowledge.close()
    await knowledge.close()
    with pytest.raises(KnowledgeError, match="closed"):
        await knowledge.search("threads")


async def search_texts(tmp_path, files, query, limit):
    """Write ``files``, index them and return the sources found."""
    folder = tmp_path / "docs"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    base = KnowledgeBase(folder, tmp_path / "knowledge.db")
    await base.refresh()
    found = await base.search(query, limit)
    await base.close()
    return [passage.source for passage in found]


async def test_passages_that_cover_the_question_come_first(tmp_path):
    """Both words once beat one word many times."""
    files = {
        "many.txt": "The apt tool is apt. With apt you install, and apt upgrades what apt has.",
        "both.txt": "The logging of apt is set in its own file of options, as others are too.",
        "other.txt": "Nothing of the kind is said in this file about packages of a system.",
    }
    assert await search_texts(tmp_path, files, "logging of apt", 2) == ["both.txt", "many.txt"]


async def test_duplicates_are_left_out_and_files_take_turns(tmp_path):
    """A copy adds nothing, and one long file does not fill the list."""
    section = (
        "## Part {n}\n\nA queue of kind {n} has its own limit number {n} and colour {n}{n}.\n\n"
    )
    files = {
        "long.md": "# Queue\n\n" + "".join(section.format(n=n) for n in range(8)),
        "copy/one.txt": QUEUES,
        "copy/two.txt": QUEUES,
    }
    found = await search_texts(tmp_path, files, "queue", 4)
    assert found.count("copy/one.txt") + found.count("copy/two.txt") == 1
    assert found.count("long.md") == 3


async def test_change_logs_come_after_descriptions(tmp_path):
    """The same sentence counts less where it records a change."""
    text = "Rotation of the access log happens at midnight on each host."
    files = {"changelog.txt": text + " Fixed.", "guide.txt": text + " Fine and well it is so."}
    assert await search_texts(tmp_path, files, "log rotation", 1) == ["guide.txt"]


async def test_spellings_find_each_other(tmp_path):
    """A short form finds the full word, a hyphen does not matter."""
    files = {
        "a.txt": "Asynchronous programs react to backpressure from their consumers.",
        "b.txt": "Some programs do nothing of the kind at any time of the day.",
    }
    for query in ("async", "back-pressure", "asyncio backpressure"):
        assert await search_texts(tmp_path, files, query, 2) == ["a.txt"]


class Embedder:
    """Gives vectors by two words, and counts what it was asked."""

    def __init__(self, model="two words", words=("thread", "queue")):
        self.model = model
        self.words = words
        self.asked = []
        self.error = None

    async def embed(self, texts):
        """Count the words."""
        self.asked.append(list(texts))
        if self.error is not None:
            raise self.error
        return [[float(text.lower().count(word)) + 0.01 for word in self.words] for text in texts]


@pytest.fixture
def embedder():
    """An embedding model that works."""
    return Embedder()


@pytest.fixture
def clock():
    """A clock that is set by hand: its only element."""
    return [0.0]


@pytest.fixture
async def hybrid(folder, tmp_path, embedder, clock):
    """A knowledge base with it."""
    base = KnowledgeBase(folder, tmp_path / "hybrid.db", embedder, now=lambda: clock[0])
    await base.refresh()
    yield base
    await base.close()


async def test_vectors_are_asked_for_once(hybrid, embedder, folder):
    """In batches, of title and text, and afterwards only for what is new."""
    assert await hybrid.embed() == 2
    assert [sorted(batch) for batch in embedder.asked] == [
        [f"Queues\n{QUEUES}", f"Threads\n{THREADS}"]
    ]
    assert await hybrid.embed() == 2
    (folder / "queues.md").write_text(
        "# Pipes\n\nA pipe is what a queue is in a shell of the system."
    )
    await hybrid.refresh()
    assert await hybrid.embed() == 2
    assert [len(batch) for batch in embedder.asked] == [2, 1]


async def test_batches_are_kept_as_they_come(folder, tmp_path, embedder, monkeypatch):
    """A model that fails leaves the vectors it gave, and the next call goes on from there."""
    monkeypatch.setattr("agentsrv.knowledge.search.EMBED_BATCH", 1)
    base = KnowledgeBase(folder, tmp_path / "batches.db", embedder)
    await base.refresh()
    real = embedder.embed

    async def once(texts):
        embedder.error = ModelError("enough") if embedder.asked else None
        return await real(texts)

    monkeypatch.setattr(embedder, "embed", once)
    with pytest.raises(ModelError):
        await base.embed()
    monkeypatch.setattr(embedder, "embed", real)
    embedder.error = None
    assert await base.embed() == 2
    assert [len(batch) for batch in embedder.asked] == [1, 1, 1]
    await base.close()


async def test_a_passage_that_is_too_long_leaves_the_others_theirs(hybrid, embedder, folder):
    """It fails its batch, and is not asked for again; a search goes on."""
    long = "The queue of queues grows and grows and is full of queues in the end. " * 3
    (folder / "long.md").write_text(f"# Queues of queues\n\n{long}")
    await hybrid.refresh()
    real = embedder.embed

    async def short_only(texts):
        embedder.error = ModelError("too long") if len("".join(texts)) > 200 else None
        return await real(texts)

    embedder.embed = short_only
    assert await hybrid.embed() == 2
    asked = len(embedder.asked)
    assert await hybrid.embed() == 2
    assert len(embedder.asked) == asked
    assert len(await hybrid.search("queue")) == 3


async def test_a_model_that_fails_in_between_is_not_the_passages_fault(hybrid, embedder):
    """Nothing is marked as refused, and the next call gives them all their vectors."""
    real = embedder.embed
    answers = iter([False, True, False, False])  # the batch, one, the other, the first again

    async def moody(texts):
        embedder.error = None if next(answers, True) else ModelError("busy")
        return await real(texts)

    embedder.embed = moody
    with pytest.raises(ModelError):
        await hybrid.embed()
    assert await hybrid.embed() == 2


async def test_a_model_that_refuses_everything_is_out_of_order(hybrid, embedder):
    """It is asked for some passages alone, and then no more."""
    embedder.error = ModelError("out of order")
    with pytest.raises(ModelError):
        await hybrid.embed()
    assert [len(batch) for batch in embedder.asked] == [2, 1, 1]
    embedder.error = None
    assert await hybrid.embed() == 2


async def test_another_model_has_vectors_of_its_own(hybrid, folder, tmp_path):
    """They are kept by the model's name, and of another dimension."""
    await hybrid.embed()
    other = Embedder("one word", ("queue",))
    base = KnowledgeBase(folder, tmp_path / "hybrid.db", other)
    assert await base.embed() == 2
    assert (await base.search("producer"))[0].source == "queues.md"
    assert await hybrid.search("thread")
    await base.close()


async def test_what_is_near_in_meaning_is_found(hybrid):
    """A query without a word of any passage; one without any content finds nothing."""
    assert await hybrid.search("queueable queueish threadlike") == []
    await hybrid.embed()
    found = await hybrid.search("queueable queueish threadlike")
    assert [passage.source for passage in found] == ["queues.md", "threads.md"]
    assert await hybrid.search("what is it?") == []


@pytest.mark.parametrize("error", [ModelError("no"), TimeoutError("too slow")])
async def test_a_model_that_fails_leaves_the_words(hybrid, embedder, clock, caplog, error):
    """With a warning; and it is left alone for a while."""
    await hybrid.embed()
    embedder.error = error
    before = len(embedder.asked)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [passage.source for passage in await hybrid.search("threads")] == ["threads.md"]
    assert len(embedder.asked) == before + 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    embedder.error = None
    clock[0] = EMBED_RETRY_DELAY
    assert len(await hybrid.search("threads")) == 2


async def test_a_model_that_is_silent_leaves_the_words(hybrid, embedder, monkeypatch):
    """A search does not wait for long."""
    monkeypatch.setattr("agentsrv.knowledge.search.EMBED_TIMEOUT", 0.01)

    async def never(texts):
        await asyncio.Event().wait()

    monkeypatch.setattr(embedder, "embed", never)
    assert [passage.source for passage in await hybrid.search("threads")] == ["threads.md"]


async def test_a_model_that_changed_leaves_the_words(hybrid, embedder, caplog):
    """Vectors of another dimension under the same name cannot be compared."""
    await hybrid.embed()
    embedder.words = ("thread",)
    assert [passage.source for passage in await hybrid.search("threads")] == ["threads.md"]
    assert "rebuild" in caplog.text
