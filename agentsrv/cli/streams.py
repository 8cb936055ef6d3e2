r"""The process's standard streams: safe on a terminal, and never a traceback when they fail.

Theory of operation. `guarded` surrounds the whole command line.

- A descriptor 0, 1 or 2 that is closed is opened on ``/dev/null``, so that no socket or database
  gets its number. For stdout it is opened for reading: writing then fails as it should, because
  the result has been lost. What nobody can be shown on stderr is dropped.
- A character that the stream's encoding lacks is written as an escape (``\u2713``). JSON is
  written in ASCII there, so that it stays JSON.
- On a terminal all text passes `VisiblePieces`: whatever is printed, by this program or by a
  library, has no escape sequences. Rich's own sequences are written to the stream that `raw`
  returns; the texts that Rich is given are made visible where they are put together.
- Where stdout is not a terminal, text is written as it is: a result in a file is the result.
- A pipe or terminal may be non-blocking: the flag belongs to the open file, which other processes
  share, and each of them may set it at any time (Node and ssh do). A write to it takes a part of
  the text, or nothing. ``_Patient`` waits for the reader and writes the rest, so text is never
  lost. ``read_stdin`` waits for the writer in the same way.
- A write to stdout that fails raises `OutputLost`, which `exits.leave` turns into an exit code:
  141 without a sentence where the reader of a pipe has gone, 74 otherwise.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO, cast

import orjson

from agentsrv.errors import AgentsrvError, InvalidCommandError
from agentsrv.telemetry.nonblocking_output import until_ready
from agentsrv.telemetry.safe_text import VisiblePieces, visible_json

STDIN, STDOUT, STDERR = range(3)
READ_BYTES: Final = 1 << 16
NARROW: Final = "backslashreplace"  # how a character is written that the encoding lacks


class OutputLost(AgentsrvError):
    """Standard output cannot be written."""

    code = "output_lost"

    def __init__(self, message: str, *, is_quiet: bool = False) -> None:
        super().__init__(message)
        self.is_quiet = is_quiet
        """Whether the reader of a pipe has gone, which is no fault."""


class _Patient(io.RawIOBase):
    """A raw stream whose ``write`` returns when everything is written.

    It is not closed together with the stream below.
    """

    def __init__(self, below: io.RawIOBase) -> None:
        self._below = below

    def writable(self) -> bool:
        """Return true, as ``io.TextIOWrapper`` asks for."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream below."""
        return self._below.fileno()

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return self._below.isatty()

    def write(self, data: Any, /) -> int:
        """Write all of ``data``, however long the reader takes; return its length in bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            written = self._below.write(left)
            if written is None:  # non-blocking, and full
                until_ready(self.fileno(), writable=True)
            else:
                left = left[written:]
        return size


def _patient(stream: TextIO) -> TextIO:
    """``stream`` on a raw stream that writes everything; a test's own stream as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # `python -u` has no buffer between them
    if not isinstance(raw, io.RawIOBase):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        cast("Any", _Patient(raw)),
        encoding=stream.encoding,
        errors=NARROW,
        line_buffering=bool(stream.line_buffering),
        write_through=getattr(stream, "write_through", False),
    )


class _Guarded:
    """A text stream whose writes are visible on a terminal, and whose failures are known."""

    def __init__(self, stream: TextIO, *, must_arrive: bool) -> None:
        self.original = stream
        self.stream = _patient(stream)
        self._must_arrive = must_arrive
        self._visible = VisiblePieces() if stream.isatty() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, and report its length."""
        with self._failures():
            self.stream.write(text if self._visible is None else self._visible.feed(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what has been written."""
        with self._failures():
            self.stream.flush()

    def end(self) -> None:
        """Write what was held back, at the end of the text."""
        if self._visible is not None:
            with self._failures():
                self.stream.write(self._visible.end())
        self.flush()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._must_arrive:
                raise OutputLost(
                    f"standard output cannot be written: {error.strerror or error}",
                    is_quiet=isinstance(error, BrokenPipeError),
                ) from error


@contextmanager
def guarded() -> Iterator[None]:
    """Guard ``sys.stdout`` and ``sys.stderr`` within the block.

    Raises:
        OutputLost: What was printed could not be written.
    """
    _open_missing()
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError):  # a test's own stream
            cast("Any", stream).reconfigure(errors=NARROW)
    stdout, stderr = _Guarded(before[0], must_arrive=True), _Guarded(before[1], must_arrive=False)
    sys.stdout, sys.stderr = cast("TextIO", stdout), cast("TextIO", stderr)
    try:
        try:
            yield
        finally:
            stderr.end()
            stdout.end()
    finally:
        sys.stdout, sys.stderr = before


def release() -> None:
    """Give the streams back to the application that is served: what it prints is its own.

    A stdout that was closed takes what is printed and drops it: an agent's ``print`` must not fail.
    """
    sys.stdout, sys.stderr = _original(sys.stdout), _original(sys.stderr)
    try:
        os.write(STDOUT, b"")
    except OSError:
        forget_output()


def raw(stream: TextIO) -> TextIO:
    """The stream itself, for a library that writes escape sequences of its own."""
    return stream.stream if isinstance(stream, _Guarded) else stream


def _original(stream: TextIO) -> TextIO:
    """The stream as it was before `guarded`."""
    return stream.original if isinstance(stream, _Guarded) else stream


def as_json(value: Any, *, indent: bool = False) -> str:
    """``value`` as JSON for stdout, in visible characters that its encoding has."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode()
    lines = map(visible_json, text.split("\n"))  # within a string a line end is an escape
    text = "\n".join(lines)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        import json

        text = json.dumps(orjson.loads(text), indent=2 if indent else None)
    return text


def typed(text: str, what: str) -> str:
    """An argument of the command line as text, whatever encoding the locale names.

    Raises:
        InvalidCommandError: Its bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:  # bytes that the locale's encoding has not: Python keeps them as half surrogates
            return os.fsencode(text).decode()
        except UnicodeError as error:
            raise InvalidCommandError(
                f"{what} has bytes that are not UTF-8 ({error}); expected UTF-8 text"
            ) from None
    return text


def read_stdin() -> str:
    """All of standard input, which must be UTF-8.

    Raises:
        InvalidCommandError: It is not.
    """
    data = bytearray()
    while (part := sys.stdin.buffer.read(READ_BYTES)) != b"":
        if part is None:  # non-blocking, and empty
            until_ready(sys.stdin.fileno(), writable=False)
        else:
            data += part
    try:
        return data.decode()
    except UnicodeError as error:
        raise InvalidCommandError(f"standard input is not UTF-8 ({error}); expected text") from None


def forget_output() -> None:
    """Drop what stdout still holds, so that the interpreter does not complain of it at its end."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDOUT)
        os.close(null)


def _open_missing() -> None:
    modes = {STDIN: os.O_RDONLY, STDOUT: os.O_RDONLY, STDERR: os.O_WRONLY}
    for descriptor, mode in modes.items():
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - takes no name
    sys.stdin = sys.stdin or os.fdopen(STDIN, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", encoding="utf-8", closefd=False)
