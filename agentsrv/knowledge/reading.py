"""Reads documents in a process of their own, so that no file can hold up the server.

Theory of operation. Parsers of documents have inputs that take them hours: HTML whose tags do not
close, PDF that unpacks to gigabytes. A regular expression keeps Python's lock while it runs, so in
a thread it would also stop the event loop, and no thread can be ended. `DocumentReader` therefore
sends each path to a child process (`reading_process`) and waits for the answer. A file ends as
`UnreadableError`, with the reason, when

- it takes `CPU_SECONDS` of CPU time: the child has set itself a timer that ends it;
- it takes `WALL_SECONDS`, for example on a network folder that hangs: the parent kills the child;
- it takes more than `MEMORY`, or ends the child in another way.

The next file then gets a new child. The index keeps the reason, so a file is tried once, and again
only after it has changed. `close` kills the child; a call of `read` that waits for it then raises.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agentsrv.errors import KnowledgeError
from agentsrv.knowledge import reading_process
from agentsrv.knowledge.documents import Chunk, Document, UnreadableError

CPU_SECONDS: Final = 5.0  # for one file; 4 MiB of prose take 0.5 s, 4 MiB of tables in Markdown 3 s
WALL_SECONDS: Final = 60.0  # for one file
START_SECONDS: Final = 60.0  # for the child to be ready
MEMORY: Final = 1 << 30  # bytes of the child's address space
READ_AT_ONCE: Final = 1 << 16  # bytes

Read = Callable[[Path, str], Document]
"""Reads the file at a path that users know by a name; raises `UnreadableError`."""

_log = logging.getLogger("agentsrv.knowledge")


class DocumentReader:
    """Reads documents in a child process, which is started when it is first needed.

    `read` is for one thread at a time; `close` may be called from any.

    Args:
        cpu_seconds: Of CPU time for one file.
        wall_seconds: For one file.
    """

    def __init__(
        self, *, cpu_seconds: float = CPU_SECONDS, wall_seconds: float = WALL_SECONDS
    ) -> None:
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def read(self, path: Path, name: str) -> Document:
        """Read a file; see `agentsrv.knowledge.documents.read_document`.

        Raises:
            Unreadable: The file gives no passages, or cannot be read within the limits.
            KnowledgeError: The reader was closed, or no process can be started.
        """
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([str(path), name]).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            pass  # it has ended; so there is no answer
        answer = self._answer(child, self._wall_seconds)
        if answer is None:
            reason = self._end_of(child)
            if self._closed:
                raise KnowledgeError("the knowledge base is closed")
            _log.warning("%s was not read: %s", name, reason)
            raise UnreadableError(reason)
        if "reason" in answer:
            raise UnreadableError(answer["reason"])
        return Document(tuple(Chunk(*chunk) for chunk in answer["chunks"]), answer["size"])

    def rest(self) -> None:
        """End the child, which is idle, and release its pipes; the next `read` starts another."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)

    def close(self) -> None:
        """End the child and refuse further files; a `read` that is under way raises.

        Call `rest` when it has, to release the child's pipes.
        """
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-P", reading_process.__file__]
        try:
            child = subprocess.Popen(  # noqa: S603 - our own program
                [*program, str(self._cpu_seconds), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the server's to handle
            )
        except OSError as error:
            raise KnowledgeError(
                f"cannot start the process that reads documents: {error}"
            ) from error
        self._child = child
        if self._answer(child, START_SECONDS) is None:
            reason = self._end_of(child)
            if self._closed:
                raise KnowledgeError("the knowledge base is closed")
            raise KnowledgeError(f"cannot start the process that reads documents: {reason}")
        if self._closed:
            self.rest()
            raise KnowledgeError("the knowledge base is closed")
        return child

    def _answer(self, child: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The child's next line; None if it ended, or did not write one in time."""
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        line = bytearray()
        with selectors.PollSelector() as selector:  # which needs no descriptor
            selector.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                data = os.read(child.stdout.fileno(), READ_AT_ONCE)
                if not data:
                    return None
                line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end_of(self, child: subprocess.Popen[bytes]) -> str:
        """Say why there was no answer; the child is gone afterwards."""
        self._child = None
        status = child.poll()
        if status is None:
            with suppress(subprocess.TimeoutExpired):
                status = child.wait(0.1)  # its pipes close shortly before it ends
        _end(child)
        if status is None:
            return f"it takes more than {self._wall_seconds:g} s to read"
        if status == -signal.SIGPROF:
            return f"it takes more than {self._cpu_seconds:g} s of CPU time to read"
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"it ends the process that reads it ({ended})"


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(1.0)  # longer only where the kernel waits for a disk
