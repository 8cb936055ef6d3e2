"""Reads documents in a child process, so that no file can block the server.

Theory of operation
===================

For some inputs, parsers of documents take hours: HTML with unclosed tags, PDF that decompresses to
gigabytes. A regular expression holds Python's lock while it runs, so in a thread it would block the
event loop, and a thread cannot be stopped. `DocumentReader` therefore sends each path to a child
process (`reading_process`) and waits for the answer. Reading a file ends with `UnreadableError` and
a reason if

- it takes `CPU_SECONDS` of CPU time: a timer in the child ends the child;
- it takes `WALL_SECONDS`, for example on a network folder that hangs: the parent kills the child;
- it takes more than `MAX_MEMORY`, or ends the child in another way.

The next file then gets a new child. The index stores the reason, so a file is tried once, and again
only after it has changed. `close` kills the child; a `read` that waits for it then raises.
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

CPU_SECONDS: Final = 5.0  # per file; 4 MiB of prose take 0.5 s, 4 MiB of tables in Markdown 3 s
WALL_SECONDS: Final = 60.0  # per file
START_SECONDS: Final = 60.0  # until the child must be ready
MAX_MEMORY: Final = 1 << 30  # bytes of the child's address space
READ_BYTES: Final = 1 << 16

ReadFile = Callable[[Path, str], Document]
"""Reads the file at a path, with its name for messages; raises `UnreadableError`."""

_log = logging.getLogger("agentsrv.knowledge")


class DocumentReader:
    """Reads documents in a child process, which is started on demand.

    `read` must be called by one thread at a time; `close` may be called by any thread.

    Args:
        cpu_seconds: Maximum CPU time per file.
        wall_seconds: Maximum time per file.
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
            UnreadableError: The file contains no passages, or cannot be read within the limits.
            KnowledgeError: The reader was closed, or no process can be started.
        """
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([str(path), name]).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            pass  # the child has ended, so `_answer` returns None
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

    def stop_child(self) -> None:
        """End the idle child and release its pipes; the next `read` starts another."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)

    def close(self) -> None:
        """Kill the child and reject further files; a `read` that is in progress raises.

        Call `stop_child` after that `read`, to release the child's pipes.
        """
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-P", reading_process.__file__]
        try:
            child = subprocess.Popen(  # noqa: S603 - our own program
                [*program, str(self._cpu_seconds), str(MAX_MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must reach the server only
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
            self.stop_child()
            raise KnowledgeError("the knowledge base is closed")
        return child

    def _answer(self, child: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """Return the child's next line; ``None`` if it ended, or wrote none in time."""
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        line = bytearray()
        with selectors.PollSelector() as selector:  # epoll would need a descriptor
            selector.register(child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                data = os.read(child.stdout.fileno(), READ_BYTES)
                if not data:
                    return None
                line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end_of(self, child: subprocess.Popen[bytes]) -> str:
        """Return the reason why there was no answer; kills the child."""
        self._child = None
        status = child.poll()
        if status is None:
            with suppress(subprocess.TimeoutExpired):
                status = child.wait(0.1)  # its pipes close shortly before its end
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
        child.wait(1.0)  # it takes longer only if the kernel waits for a disk
