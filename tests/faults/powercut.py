"""A server's life as strace recorded it, and the disks that a power cut in it may leave.

What was written before an ``fsync`` of its file that has returned is there. Of everything else
any part may be there: whole writes, sectors of them, or nothing. Names of files are certain
after an ``fsync`` of their folder.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

CALLS = "openat,pwrite64,ftruncate,fsync,fdatasync,unlink,rename,sendto"
SECTOR = 512  # bytes; smaller pieces are written whole or not at all
UNTRACED = ("-shm",)  # rebuilt by whoever opens the store

LINE = re.compile(rb"(\d+)\s+(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)", re.DOTALL)
RESULT = re.compile(rb"\)\s+= (-?\d+)")
STRING = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(rb"\d+<([^>]*(?:->[^>]*)?)>")

Keep = Literal["nothing", "everything", "writes", "sectors"]
KEEPS: tuple[Keep, ...] = ("nothing", "everything", "writes", "sectors")


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written behind ``offset``; ``None`` where the file was cut off there."""

    offset: int
    data: bytes | None


@dataclass(eq=False)
class File:
    """One file: what is certain of it, and what is not."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def sync(self, count: int) -> None:
        """Make the first ``count`` writes certain."""
        for write in self.pending[:count]:
            apply(self.synced, write)
        del self.pending[:count]

    def after_cut(self, keep: Keep, chance: random.Random) -> bytes:
        """What may be found when the power is back."""
        content = bytearray(self.synced)
        for write in self.pending:
            for part in survivors(write, keep, chance):
                apply(content, part)
        return bytes(content)


class Disk:
    """The files of one folder while a recorded life goes on."""

    def __init__(self) -> None:
        self._now: dict[str, File] = {}
        self._certain: dict[str, File] = {}
        self._pending: list[tuple[str, File | None]] = []

    @property
    def uncertain(self) -> int:
        """How many writes a cut may undo."""
        return sum(len(file.pending) for file in self._now.values())

    def open(self, name: str) -> None:
        """Create the file, unless there is one."""
        if name not in self._now:
            self._name(name, File())

    def write(self, name: str, write: Write) -> None:
        """Begin to write."""
        self._now[name].pending.append(write)

    def unlink(self, name: str) -> None:
        """Remove a name, if there is one."""
        if self._now.pop(name, None) is not None:
            self._pending.append((name, None))

    def begin_sync(self, name: str) -> tuple[File, int]:
        """Which file is synced, and up to which write."""
        return self._now[name], len(self._now[name].pending)

    def sync_names(self) -> None:
        """Make all names certain."""
        for name, file in self._pending:
            put(self._certain, name, file)
        self._pending.clear()

    def after_cut(self, keep: Keep, chance: random.Random) -> dict[str, bytes]:
        """The files that may be found when the power is back."""
        names = dict(self._certain)
        for name, file in self._pending:
            if keep == "everything" or (keep != "nothing" and chance.random() < 0.5):
                put(names, name, file)
        return {name: file.after_cut(keep, chance) for name, file in names.items()}

    def _name(self, name: str, file: File) -> None:
        self._now[name] = file
        self._pending.append((name, file))


def put(names: dict[str, File], name: str, file: File | None) -> None:
    """Let ``name`` stand for ``file``, or for nothing."""
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def apply(content: bytearray, write: Write) -> None:
    """Carry out one write; a hole before it is zeros."""
    end = write.offset + (0 if write.data is None else len(write.data))
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if write.data is None:
        del content[write.offset :]
    else:
        content[write.offset : end] = write.data


def survivors(write: Write, keep: Keep, chance: random.Random) -> Iterator[Write]:
    """The parts of an uncertain write that a cut leaves."""
    if keep == "sectors" and write.data is not None:
        start = 0
        while start < len(write.data):
            end = start + SECTOR - (write.offset + start) % SECTOR
            if chance.random() < 0.5:
                yield Write(write.offset + start, write.data[start:end])
            start = end
    elif keep == "everything" or (keep != "nothing" and chance.random() < 0.5):
        yield write


class Told:
    """The frames that clients were sent, taken out of the bytes on their sockets."""

    def __init__(self) -> None:
        self.events: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.others: list[dict[str, Any]] = []
        """Replies and the like that name a task."""
        self._streams: dict[str, bytes] = {}

    @property
    def count(self) -> int:
        """How many events were sent, each counted once."""
        return sum(map(len, self.events.values()))

    def send(self, peer: str, data: bytes) -> None:
        """Take what was sent on a socket, whole frames or parts."""
        stream = self._streams.get(peer, b"") + data
        if stream.startswith(b"HTTP/1.1"):
            head, blank, rest = stream.partition(b"\r\n\r\n")
            stream = rest if blank else head
        while (frame := split(stream)) is not None:
            opcode, body, stream = frame
            if opcode == 1:
                self._take(body)
        self._streams[peer] = stream

    def _take(self, body: bytes) -> None:
        frame = orjson.loads(body)
        if frame["type"] == "event":
            self.events[frame["task_id"]][frame["seq"]] = body
        elif "task_id" in frame:
            self.others.append(frame)


def split(stream: bytes) -> tuple[int, bytes, bytes] | None:
    """The first frame of a server's stream: opcode, body, what follows; ``None``: not whole."""
    if len(stream) < 2:
        return None
    size = stream[1]
    start = {126: 4, 127: 10}.get(size, 2)
    if start > 2:
        size = int.from_bytes(stream[2:start])
    if len(stream) < start + size:
        return None
    return stream[0] & 0x0F, stream[start : start + size], stream[start + size :]


@dataclass(frozen=True, slots=True)
class Call:
    """A line of the record: a call begins, ends, or both."""

    thread: bytes
    name: str
    text: bytes
    begins: bool
    result: int | None
    """``None`` while it has not ended."""


class Recording:
    """The calls of one server's life; ``play`` goes through them."""

    def __init__(self, record: Path, folder: Path) -> None:
        self._folder = str(folder)
        self.calls = [call for line in record.read_bytes().splitlines() if (call := parse(line))]
        """Lines that matter."""
        self._sent = self._results()

    @property
    def checkpoints(self) -> int:
        """How often the write-ahead log was copied into the file."""
        synced = [
            path_of(call.text).decode().rpartition("/")[2]
            for call in self.calls
            if call.begins and call.name == "fdatasync"
        ]
        return synced[synced.index("agentsrv.db-wal") :].count("agentsrv.db")

    def play(self, disk: Disk, told: Told) -> Iterator[int]:
        """Live it again; yields the number of each line, when it has happened."""
        syncing: dict[bytes, tuple[File, int] | None] = {}
        for number, call in enumerate(self.calls):
            if call.begins:
                self._begin(number, call, disk, told, syncing)
            if call.name in ("fsync", "fdatasync") and call.result == 0 and call.thread in syncing:
                started = syncing.pop(call.thread)
                if started is None:
                    disk.sync_names()
                else:
                    file, count = started
                    file.sync(count)
            yield number

    def _begin(
        self,
        number: int,
        call: Call,
        disk: Disk,
        told: Told,
        syncing: dict[bytes, tuple[File, int] | None],
    ) -> None:
        match call.name:
            case "sendto":
                peer = DESCRIPTOR.search(call.text)
                size = self._sent.get(number, -1)
                if peer is not None and size > 0:
                    told.send(peer[1].decode(), string(call.text)[:size])
            case "openat" if b"O_CREAT" in call.text:
                if (name := self._name(string(call.text))) is not None:
                    disk.open(name)
            case "unlink":
                if (name := self._name(string(call.text))) is not None:
                    disk.unlink(name)
            case "pwrite64" | "ftruncate":
                if (name := self._name(path_of(call.text))) is not None:
                    disk.write(name, write_of(call))
            case "fsync" | "fdatasync":
                path = path_of(call.text).decode()
                if path == self._folder:
                    syncing[call.thread] = None
                elif (name := self._name(path_of(call.text))) is not None:
                    syncing[call.thread] = disk.begin_sync(name)
            case "rename":
                raise NotImplementedError("SQLite renames nothing")
            case _:
                pass

    def _name(self, path: bytes) -> str | None:
        """The name of a file of the store."""
        folder, _, name = path.decode().rpartition("/")
        matters = name.startswith("agentsrv.db") and not name.endswith(UNTRACED)
        return name if folder == self._folder and matters else None

    def _results(self) -> dict[int, int]:
        """How many bytes each send took, by the number of the line in which it began."""
        begun: dict[bytes, int] = {}
        results: dict[int, int] = {}
        for number, call in enumerate(self.calls):
            if call.begins:
                begun[call.thread] = number
            if call.result is not None and call.name == "sendto":
                results[begun[call.thread]] = call.result
        return results


def parse(line: bytes) -> Call | None:
    """Read one line of the record."""
    found = LINE.match(line)
    if found is None:
        return None
    thread, resumed, begun, text = found.groups()
    result = RESULT.search(text)
    return Call(
        thread,
        (resumed or begun).decode(),
        text,
        begun is not None,
        None if result is None else int(result[1]),
    )


def write_of(call: Call) -> Write:
    """The write that a call makes."""
    numbers = [int(number) for number in re.findall(rb", (\d+)(?=[,)]| <unf)", call.text)]
    if call.name == "ftruncate":
        return Write(numbers[0], None)
    size, offset = numbers[-2:]
    data = string(call.text)
    assert len(data) == size, f"strace has cut off {call.text[:200]!r}"
    return Write(offset, data)


def path_of(text: bytes) -> bytes:
    """The path of the file that a call's descriptor stands for."""
    found = DESCRIPTOR.match(text)
    assert found is not None, text[:200]
    return unhex(found[1])


def string(text: bytes) -> bytes:
    """The first string among a call's arguments."""
    found = STRING.search(text)
    assert found is not None, text[:200]
    return unhex(found[1])


def unhex(text: bytes) -> bytes:
    r"""Undo ``\x61\x62``."""
    return bytes.fromhex(text.replace(rb"\x", b"").decode())
