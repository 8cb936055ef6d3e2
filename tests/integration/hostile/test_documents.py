"""Hostile documents and questions: bounded work, a reason in the index, and a stop in between."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentsrv.errors import KnowledgeError
from agentsrv.knowledge.documents import UnreadableError
from agentsrv.knowledge.reading import DocumentReader
from agentsrv.knowledge.search import KnowledgeBase
from tests.integration.hostile.documents import BRACKETS, DOCUMENTS, QUESTIONS, SENTENCE

CPU_SECONDS = 0.5


@pytest.fixture(scope="module")
def reader():
    """A reader with a small budget."""
    reader = DocumentReader(cpu_seconds=CPU_SECONDS)
    yield reader
    reader.stop_child()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_document_is_read_or_unreadable(tmp_path, reader, document):
    """Within its budget, by a process that the next file finds again."""
    if document.name.endswith(".pdf"):
        pytest.importorskip("pypdf")
    path = tmp_path / document.name
    path.write_bytes(document.content)
    try:
        reader.read(path, document.name)
        reason = None
    except UnreadableError as error:
        reason = str(error)
    if document.reason is not None:
        assert reason is not None
        assert re.search(document.reason, reason)
    harmless = tmp_path / "harmless.txt"
    harmless.write_bytes(SENTENCE)
    assert reader.read(harmless, "harmless.txt").chunks[0].text == SENTENCE.decode()


def make_fifo(path):
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def make_socket(path):
    """A socket."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_loop(path):
    """A link to itself."""
    path.symlink_to(path)


def make_device(path):
    """A link to a device without an end."""
    path.symlink_to("/dev/zero")


def make_folder_loop(path):
    """A folder that links to its parent."""
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "up").symlink_to("..")


def make_sparse(path):
    """A file of a terabyte that takes no space."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL = {
    make_fifo: "not a regular file",
    make_socket: "No such device|not a regular file",
    make_loop: "symbolic link",
    make_device: "symbolic link",
    make_folder_loop: None,
    make_sparse: "larger than 4 MiB",
}


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
async def test_what_is_no_file_is_passed_over(tmp_path, monkeypatch, make):
    """It is in the report with the reason, and its neighbour is found."""
    folder = tmp_path / "docs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    make(Path("special.txt"))
    (folder / "harmless.txt").write_bytes(SENTENCE)
    base = KnowledgeBase(folder, tmp_path / "index.db")
    try:
        report = await base.refresh()
        assert report.files == 1
        expected = SPECIAL[make]
        if expected is not None:
            ((name, reason),) = report.skipped
            assert name == "special.txt"
            assert re.search(expected, reason)
        assert await base.search("kettle")
    finally:
        await base.close()


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/", "/no/such/file", "/dev/null"])
def test_a_path_that_was_replaced_is_unreadable(reader, path):
    """By a device, a folder or nothing, since it was listed."""
    with pytest.raises(UnreadableError):
        reader.read(Path(path), "a.txt")


async def test_a_file_that_takes_too_long_is_told_once(tmp_path, caplog):
    """In the log and in the index; the others are found, and it is not tried again."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(BRACKETS * 99)
    (folder / "harmless.txt").write_bytes(SENTENCE)
    base = KnowledgeBase(
        folder, tmp_path / "index.db", documents=DocumentReader(cpu_seconds=CPU_SECONDS)
    )
    try:
        for _ in range(2):
            report = await base.refresh()
            assert report.skipped == (("bad.txt", "it takes more than 0.5 s of CPU time to read"),)
            assert await base.search("kettle")
    finally:
        await base.close()
    assert caplog.text.count("bad.txt was not read: it takes more than 0.5 s of CPU time") == 1


async def test_closing_does_not_wait_for_a_bad_file(tmp_path):
    """The process that reads it is ended; without a limit of time it would read on."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(BRACKETS * 99)
    documents = DocumentReader(cpu_seconds=1e6, wall_seconds=1e6)
    base = KnowledgeBase(folder, tmp_path / "index.db", documents=documents)
    refresh = asyncio.create_task(base.refresh())
    while documents._child is None:  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    await base.close()
    with pytest.raises(KnowledgeError, match="is closed"):
        await refresh


async def test_closing_leaves_no_process_behind(tmp_path):
    """Neither an idle one; pytest reports pipes that are not closed."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_bytes(SENTENCE)
    documents = DocumentReader()
    documents.read(tmp_path / "docs" / "a.txt", "a.txt")
    child = documents._child
    assert child is not None
    await KnowledgeBase(tmp_path / "docs", tmp_path / "index.db", documents=documents).close()
    assert child.returncode == -signal.SIGKILL


def test_sigterm_ends_a_server_that_reads_a_bad_file(tmp_path):
    """At once; it was neither the file's budget nor its end that was waited for."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(100):  # of 5 s each
        (folder / f"{number}.txt").write_bytes(BRACKETS * 99)
    command = [sys.executable, "-m", "agentsrv", "serve", "--port", "0", "--store", "memory:"]
    index = ["--knowledge", str(folder), "--knowledge-index", str(tmp_path / "index.db")]
    with subprocess.Popen([*command, *index], cwd=tmp_path, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if b"ws://" in line:
                break
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def test_a_reader_without_a_process_says_so(monkeypatch, tmp_path):
    """The folder cannot be read, and no file is blamed."""
    monkeypatch.setattr("sys.executable", "/bin/false")
    (tmp_path / "a.txt").write_bytes(SENTENCE)
    with pytest.raises(KnowledgeError, match=r"cannot start .*exit status 1"):
        DocumentReader().read(tmp_path / "a.txt", "a.txt")


ANSWER = """if True:
    import random, resource, sys, tempfile
    from pathlib import Path
    from agentsrv.builtin import planner, prompts, report, validator, writer
    from agentsrv.builtin.analyzer import analyze
    from agentsrv.knowledge.documents import read_document
    from agentsrv.knowledge.folder import scan
    from agentsrv.knowledge.index import Index
    from agentsrv.knowledge.ranking import find
    from agentsrv.builtin.retriever import _fitting, _missing
    from agentsrv.cli.demo import KNOWLEDGE
    from tests.integration.hostile.documents import LENGTH, QUESTIONS

    folder = KNOWLEDGE
    index = Index(Path(tempfile.mkdtemp()) / "index.db")
    index.read(folder, scan(folder), 1e9, read_document)
    known = _fitting(find(index, "the costs of threads", 12))
    letters = random.Random(1).choices("abcdefghijklmnop", k=LENGTH)
    words = " ".join("".join(letters[at : at + 5]) for at in range(0, LENGTH, 6))
    questions = [words, *((unit * LENGTH)[:LENGTH] for unit in QUESTIONS.values())]
    for question in questions:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + int(sys.argv[1]), -1))
        found = _fitting(find(index, question.encode(errors="replace").decode(), 12)) or known
        _missing(question, found)
        written = writer.compose(
            analyze(question, {"passages": found, "unknown_terms": []}, 40), writer.ReportSize()
        )
        planner.report(question)
        prompts.report(question, found, question)
        report.read(question)
        told = {"sources": [{"number": 1, "id": 1}], "quoted": False}
        validator.validate("threads", question, told, found)
        validator.validate(question, "".join(written.paragraphs), told, found)
        passage = {"id": 1, "source": "a.md", "title": "T", "text": question, "score": 1, "line": 1}
        analyze("threads", {"passages": [passage], "unknown_terms": []}, 40)
        print("answered")
"""


@pytest.mark.slow
def test_no_question_takes_long():
    """All that is done with a question and with a report, in seconds of CPU time.

    A quadratic expression takes minutes for the longest question; the most that was measured for
    one is 2 s.
    """
    ran = subprocess.run(
        [sys.executable, "-c", ANSWER, "30"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("answered") == len(QUESTIONS) + 1
