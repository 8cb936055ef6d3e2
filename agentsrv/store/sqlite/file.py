"""DatabaseFile: the file below an SQLite store: who has it, and whether it is still there.

Theory of operation.

One server at a time: the server holds ``flock`` on the database's own inode. Every spelling of
the path (a symbolic or hard link, a relative path, another mount of the same file system) leads
to the same inode and therefore to the same lock. ``flock`` is independent of the POSIX locks that
SQLite takes on the same file. The descriptor is opened before SQLite opens the file and closed
after SQLite has closed it, because closing any descriptor of a file drops all POSIX locks that
the process holds on it.

The file stays where it is: SQLite keeps writing to a file that was deleted or renamed, and
nothing that is written there can be found afterwards. ``complaint`` compares the inodes that the
paths of the database and of its write-ahead log lead to with those that were opened. It costs
three ``stat`` calls and runs in the store's thread after each commit, before the commit is
acknowledged, and once a second while the store is idle.

The files do not get shorter under the server, or what was committed is lost. ``cut_off`` compares
the size of the write-ahead log with the number of pages that its index (``-shm``) counts, and the
size of the database with what it was before and with its header. It runs before each commit too:
SQLite would write behind the gap, and at the next start read only what is before it.

A file that is overwritten in place keeps its inode. ``overwritten`` looks at the header of the
database: SQLite's magic, the write-ahead mode, the application's id, and a change counter that
only grows. The pages of the new content do not belong to the write-ahead log of the old one;
``set_log_aside`` renames that log, so that SQLite never applies it to the new content.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.sqlite.schema import APPLICATION

HEADER_SIZE: Final = 100  # bytes of a database's header
MAGIC: Final = b"SQLite format 3\x00"
WAL_MODE: Final = b"\x02\x02"  # the header's file format versions in write-ahead mode
APPLICATION_ID: Final = APPLICATION.to_bytes(4, "big")
INDEX_HEADER: Final = struct.Struct("=14xHI28x")  # of a log's index: size of pages, pages in it
LOG_HEADER: Final = 32  # bytes
FRAME_HEADER: Final = 24  # bytes before each page in a log
MAX_PAGE: Final = 1 << 16  # bytes; written as 1
MODE: Final = 0o644  # of a new file, less the umask; what SQLite itself gives
WRITE_LOCK: Final = 120  # the byte of the log's index that SQLite locks in order to write
NEVER: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)
"""Errors of opening a file that stay until somebody changes a setting or the file."""
BESIDE: Final = ("-wal", "-shm")
"""What SQLite keeps next to a database: its write-ahead log, and the index of that."""


class StoreInUseError(UnavailableError):
    """Another server has the store; the message says which process, where that can be seen."""


class DatabaseFile:
    """The database's own descriptor, its lock, and what its paths led to when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        """Also where an agent changes the working folder."""
        self._fd: int | None = None
        self._shm: int | None = None
        """Descriptor of the log's index."""
        self._inodes: dict[Path, tuple[int, int]] = {}
        self._sizes: list[int] = []
        """Bytes of the database and its log, when ``complaint`` looked last."""
        self._largest = 0
        """Bytes that the database had."""
        self._changes = 0

    def lock(self) -> None:
        """Open the file, creating an empty one if there is none, and lock it.

        Raises:
            ConfigurationError: The path cannot be that of a database.
            StoreInUseError: Another server has the file.
            Unavailable: The file cannot be opened now: the disk is full, too many files are open.
        """
        import fcntl  # noqa: PLC0415 - not on Windows, where clients run

        check_place(self.path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        except OSError as error:
            reason = f"cannot open the store {self.path}: {error.strerror}"
            if error.errno in NEVER:
                raise ConfigurationError(reason) from error
            raise UnavailableError(reason) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(self._fd)
            self.close()
            raise StoreInUseError(
                f"another server{holder} uses the store {self.path}; stop it, or set store to "
                "another file"
            ) from None
        except OSError as error:
            self.close()
            raise UnavailableError(
                f"cannot lock the store {self.path}: {error.strerror}"
            ) from error
        _locked.add(self)

    def release_in_child(self) -> None:
        """Let go of the lock in a child of ``os.fork()``: it belongs to the open file.

        The number stays in use, so that a later ``close`` closes no file of the child.
        """
        if self._fd is not None:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, self._fd, inheritable=False)
            os.close(nothing)

    def close(self) -> None:
        """Close the descriptor, and unlock the file with it. SQLite must have closed it before."""
        self._close_shm()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _close_shm(self) -> None:
        if self._shm is not None:
            os.close(self._shm)
            self._shm = None

    def watch(self) -> None:
        """Remember what the paths lead to now. SQLite must have opened its log before.

        Raises:
            OSError: One of the files is not there.
        """
        assert self._fd is not None
        found = os.fstat(self._fd)
        self._inodes = {self.path: (found.st_dev, found.st_ino)}
        for path in (beside(self.path, suffix) for suffix in BESIDE):
            found = path.stat()
            self._inodes[path] = (found.st_dev, found.st_ino)
        self._close_shm()  # of an index that is no more: no lock of SQLite's is lost by it
        self._shm = os.open(beside(self.path, "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        self._largest = self._changes = 0

    def complaint(self) -> str | None:
        """Why nothing may be acknowledged: a file that was deleted, moved or replaced."""
        self._sizes = []
        for path, opened in self._inodes.items():
            try:
                found = os.stat(path)  # noqa: PTH116 - after each commit: without a call more
            except OSError as error:
                what = "was deleted or renamed" if error.errno == errno.ENOENT else error.strerror
                return f"{path}: {what}"
            if (found.st_dev, found.st_ino) != opened:
                return f"{path} was replaced by another file"
            self._sizes.append(found.st_size)
        return None

    def cut_off(self) -> str | None:
        """Which file is shorter than what was written to it, as far as ``complaint`` has seen."""
        if self._shm is None or self._fd is None:
            return None
        database, log, _ = self._sizes
        expected = _log_bytes(os.pread(self._shm, 2 * INDEX_HEADER.size, 0))
        if log < expected:
            name = beside(self.path, "-wal")
            return f"{name} was cut off: it has {log} bytes, expected at least {expected}"
        if database < self._largest:
            expected = _database_bytes(os.pread(self._fd, HEADER_SIZE, 0))
            if database < expected:  # else it was made smaller by VACUUM
                return f"{self.path} was cut off: it has {database} bytes, expected {expected}"
        self._largest = database
        return None

    @property
    def log_size(self) -> int:
        """Bytes of the write-ahead log; 0 where there is none."""
        try:
            return beside(self.path, "-wal").stat().st_size
        except OSError:
            return 0

    @property
    def is_in_place(self) -> bool:
        """Whether the path leads to the database that was opened."""
        assert self._fd is not None
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    @property
    def lacks_log_only(self) -> bool:
        """Whether the database is in its place, and of its log there is nothing at all."""
        return self.is_in_place and not any(beside(self.path, each).exists() for each in BESIDE)

    def has_header(self) -> bool:
        """Whether the database itself says whose it is; until a checkpoint only its log may."""
        assert self._fd is not None
        return self._is_expected(os.pread(self._fd, HEADER_SIZE, 0))

    def overwritten(self) -> str | None:
        """Whether other content was written over the database; see the module."""
        assert self._fd is not None
        for _ in range(2):  # a checkpoint of another program may just be writing the header
            if self._is_expected(os.pread(self._fd, HEADER_SIZE, 0)):
                return None
        return f"{self.path} was overwritten by another file"

    def _is_expected(self, header: bytes) -> bool:
        changes = int.from_bytes(header[24:28], "big")
        is_expected = (
            header[: len(MAGIC)] == MAGIC
            and header[18:20] == WAL_MODE
            and header[68:72] == APPLICATION_ID
            and changes >= self._changes
        )
        self._changes = max(self._changes, changes) if is_expected else self._changes
        return is_expected

    def set_log_aside(self) -> None:
        """Rename the write-ahead log: it must not be applied to what is in the database now."""
        for suffix in BESIDE:
            path = beside(self.path, suffix)
            try:
                path.rename(beside(path, ".of-overwritten"))
            except OSError:
                continue  # not there any more


def _log_bytes(header: bytes) -> int:
    """Bytes of a write-ahead log up to its last commit, by the two copies of its index's header."""
    size = INDEX_HEADER.size
    if len(header) < 2 * size or header[:size] != header[size:]:
        return 0  # somebody is writing it
    page, frames = INDEX_HEADER.unpack(header[:size])
    page = MAX_PAGE if page == 1 else page
    return LOG_HEADER + frames * (FRAME_HEADER + page) if frames else 0


def _database_bytes(header: bytes) -> int:
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    return (MAX_PAGE if page == 1 else page) * pages


def writer_of(path: Path) -> int | None:
    """The process that holds SQLite's lock for writing on the store, where that can be seen."""
    try:
        found = beside(path, "-shm").stat()
    except OSError:
        return None
    for kind, pid, inode, first, last in _locks():
        if kind == "POSIX" and inode == found.st_ino and first <= WRITE_LOCK <= last:
            return pid
    return None


def _locks() -> Iterator[tuple[str, int, int, int, int]]:
    """The exclusive locks that the system shows: kind, process, inode, first and last byte."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # another system, or one that hides them
        return
    for line in lines:
        fields = line.split()
        with suppress(ValueError, IndexError):
            if fields[3] == "WRITE" and int(fields[4]) > 0:
                last = sys.maxsize if fields[7] == "EOF" else int(fields[7])
                inode = int(fields[5].rpartition(":")[2])
                yield fields[1], int(fields[4]), inode, int(fields[6]), last


def check_place(path: Path) -> None:
    """Refuse a path that cannot be that of a database; nothing is created or opened.

    Raises:
        ConfigurationError: With what was found there.
    """
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ConfigurationError(f"the store's folder {path.parent} does not exist") from None
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"cannot open the store {str(path)!r}: {reason}") from error
    if stat.S_ISDIR(kind):
        raise ConfigurationError(f"the store {path} is a folder; expected a file in it")
    if not stat.S_ISREG(kind):
        raise ConfigurationError(f"the store {path} is no regular file; expected a database file")


def beside(path: Path, suffix: str) -> Path:
    """The file of that suffix next to the database itself, which ``path`` may be a link to.

    SQLite names its own files so. A server that uses another name of the same database finds them.
    """
    real = path.resolve()
    return real.with_name(real.name + suffix)


def holder_of(path: Path) -> str | None:
    """Which server has the store: empty where that cannot be seen; ``None``: no server has it.

    The lock is tried for a moment; a server that starts in just this moment finds it taken.

    Raises:
        OSError: The file cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    import fcntl  # noqa: PLC0415 - not on Windows, where clients run

    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe_holder(fd)
    finally:
        os.close(fd)
    return None


def _describe_holder(fd: int) -> str:
    """`` (process 123)``: who holds the lock on the file, as far as the system says."""
    inode = os.fstat(fd).st_ino
    pids = [pid for kind, pid, locked, *_ in _locks() if (kind, locked) == ("FLOCK", inode)]
    return f" (process {pids[0]})" if pids else ""


_locked: WeakSet[DatabaseFile] = WeakSet()


def _release_in_child() -> None:
    for file in _locked:
        file.release_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
