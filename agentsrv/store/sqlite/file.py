"""DatabaseFile: locks the file of an SQLite store, and notices if others move or damage it.

Theory of operation
===================
*One server at a time.* The server holds ``flock`` on the database's inode. Every spelling of the
path (a symbolic or hard link, a relative path, another mount of the same file system) leads to the
same inode and therefore to the same lock. ``flock`` is independent of the POSIX locks that SQLite
takes on the file. The descriptor is opened before SQLite opens the file and closed after SQLite has
closed it, because closing any descriptor of a file drops all POSIX locks that the process holds on
it.

*A moved file.* SQLite keeps writing to a file that was deleted or renamed, and those writes cannot
be found afterwards. ``complaint`` compares the inodes of the paths of the database and its
write-ahead log with those that were opened. It costs three ``stat`` calls. The store's thread calls
it after each commit, before the commit is acknowledged, and once a second while the store is idle.

*A truncated file.* Commits in the missing part are lost. ``cut_off`` compares the size of the
write-ahead log with the number of pages in its index (``-shm``), and the size of the database with
its earlier size and with its header. It is called before each commit, too: SQLite would write after
the gap, and at the next start read only the part before it.

*An overwritten file* keeps its inode. ``overwritten`` examines the header of the database: SQLite's
magic, the write-ahead mode, the application id, and a change counter that only grows. The old
write-ahead log does not belong to the new content; ``set_log_aside`` renames it, so that SQLite
never applies it.
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
INDEX_HEADER: Final = struct.Struct("=14xHI28x")  # of a log's index: page size, number of pages
LOG_HEADER_SIZE: Final = 32  # bytes
FRAME_HEADER_SIZE: Final = 24  # bytes before each page in a log
MAX_PAGE_SIZE: Final = 1 << 16  # bytes; stored as 1
FILE_MODE: Final = 0o644  # of a new file, less the umask; the same as SQLite's
WRITE_LOCK_BYTE: Final = 120  # of the log's index, which SQLite locks in order to write
PERMANENT_ERRORS: Final = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENXIO,
)
"""Errors of opening a file that do not pass by themselves."""
LOG_SUFFIXES: Final = ("-wal", "-shm")
"""Suffixes of the write-ahead log of a database, and of the index of the log."""


class StoreInUseError(UnavailableError):
    """Another server uses the store; the message names the process if that can be found out."""


class DatabaseFile:
    """The lock and the descriptor of a database, and the inodes of its files; see the module."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        """Absolute, because an agent may change the working folder."""
        self._fd: int | None = None
        self._shm: int | None = None
        """Descriptor of the log's index."""
        self._inodes: dict[Path, tuple[int, int]] = {}
        self._sizes: list[int] = []
        """Sizes of the files in bytes, at the last call of ``complaint``."""
        self._largest = 0
        """The size of the database in bytes, at the last call of ``cut_off``."""
        self._changes = 0

    def lock(self) -> None:
        """Open the file, creating an empty one if there is none, and lock it.

        Raises:
            ConfigurationError: The path cannot be that of a database.
            StoreInUseError: Another server uses the file.
            UnavailableError: The file cannot be opened now, for example because the disk is full
                or too many files are open.
        """
        import fcntl  # noqa: PLC0415 - not on Windows, where clients run

        check_place(self.path)
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            reason = f"cannot open the store {self.path}: {error.strerror}"
            if error.errno in PERMANENT_ERRORS:
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
        """Give up the lock in a child of ``os.fork()``, which shares it with the parent.

        The descriptor stays in use, so that a later ``close`` closes no other file of the child.
        """
        if self._fd is not None:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, self._fd, inheritable=False)
            os.close(nothing)

    def close(self) -> None:
        """Close the descriptor, which unlocks the file. SQLite must have closed the file before."""
        self._close_shm()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _close_shm(self) -> None:
        if self._shm is not None:
            os.close(self._shm)
            self._shm = None

    def watch(self) -> None:
        """Record the inodes of the files. SQLite must have opened its log before.

        Raises:
            OSError: One of the files does not exist.
        """
        assert self._fd is not None
        found = os.fstat(self._fd)
        self._inodes = {self.path: (found.st_dev, found.st_ino)}
        for path in (companion(self.path, suffix) for suffix in LOG_SUFFIXES):
            found = path.stat()
            self._inodes[path] = (found.st_dev, found.st_ino)
        self._close_shm()  # of an earlier index: this drops no lock of SQLite
        self._shm = os.open(companion(self.path, "-shm"), os.O_RDONLY | os.O_CLOEXEC)
        self._largest = self._changes = 0

    def complaint(self) -> str | None:
        """Which file was deleted, moved or replaced, so that nothing may be acknowledged."""
        self._sizes = []
        for path, opened in self._inodes.items():
            try:
                found = os.stat(path)  # noqa: PTH116 - called after each commit
            except OSError as error:
                reason = "was deleted or renamed" if error.errno == errno.ENOENT else error.strerror
                return f"{path}: {reason}"
            if (found.st_dev, found.st_ino) != opened:
                return f"{path} was replaced by another file"
            self._sizes.append(found.st_size)
        return None

    def cut_off(self) -> str | None:
        """Which file is shorter than what was written to it, by the sizes of ``complaint``."""
        if self._shm is None or self._fd is None:
            return None
        database, log, _ = self._sizes
        expected = _log_bytes(os.pread(self._shm, 2 * INDEX_HEADER.size, 0))
        if log < expected:
            name = companion(self.path, "-wal")
            return f"{name} was truncated: it has {log} bytes, expected at least {expected}"
        if database < self._largest:
            expected = _database_bytes(os.pread(self._fd, HEADER_SIZE, 0))
            if database < expected:  # otherwise VACUUM has made it smaller
                return f"{self.path} was truncated: it has {database} bytes, expected {expected}"
        self._largest = database
        return None

    @property
    def log_size(self) -> int:
        """Size of the write-ahead log in bytes; 0 if there is none."""
        try:
            return companion(self.path, "-wal").stat().st_size
        except OSError:
            return 0

    @property
    def is_in_place(self) -> bool:
        """Whether the path leads to the open database."""
        assert self._fd is not None
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except OSError:
            return False

    @property
    def lacks_log_only(self) -> bool:
        """Whether the database is in its place, and both files of its log are missing."""
        logs = (companion(self.path, suffix) for suffix in LOG_SUFFIXES)
        return self.is_in_place and not any(log.exists() for log in logs)

    def has_header(self) -> bool:
        """Whether the header is in the database; before a checkpoint it may be in the log only."""
        assert self._fd is not None
        return self._is_expected(os.pread(self._fd, HEADER_SIZE, 0))

    def overwritten(self) -> str | None:
        """A message if other content was written over the database; see the module."""
        assert self._fd is not None
        for _ in range(2):  # a checkpoint of another program may be writing the header
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
        """Rename the write-ahead log, which must not be applied to the new content."""
        for suffix in LOG_SUFFIXES:
            path = companion(self.path, suffix)
            try:
                path.rename(companion(path, ".of-overwritten"))
            except OSError:
                continue  # it does not exist


def _log_bytes(header: bytes) -> int:
    """Bytes of a write-ahead log up to its last commit, from both copies of its index's header."""
    size = INDEX_HEADER.size
    if len(header) < 2 * size or header[:size] != header[size:]:
        return 0  # it is being written
    page, frames = INDEX_HEADER.unpack(header[:size])
    page = MAX_PAGE_SIZE if page == 1 else page
    return LOG_HEADER_SIZE + frames * (FRAME_HEADER_SIZE + page) if frames else 0


def _database_bytes(header: bytes) -> int:
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    return (MAX_PAGE_SIZE if page == 1 else page) * pages


def writer_of(path: Path) -> int | None:
    """The process that holds SQLite's write lock on the store, if that can be found out."""
    try:
        found = companion(path, "-shm").stat()
    except OSError:
        return None
    for kind, pid, inode, first, last in _locks():
        if kind == "POSIX" and inode == found.st_ino and first <= WRITE_LOCK_BYTE <= last:
            return pid
    return None


def _locks() -> Iterator[tuple[str, int, int, int, int]]:
    """The system's exclusive file locks: kind, process, inode, first and last byte."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # not Linux, or not permitted
        return
    for line in lines:
        fields = line.split()
        with suppress(ValueError, IndexError):
            if fields[3] == "WRITE" and int(fields[4]) > 0:
                last = sys.maxsize if fields[7] == "EOF" else int(fields[7])
                inode = int(fields[5].rpartition(":")[2])
                yield fields[1], int(fields[4]), inode, int(fields[6]), last


def check_place(path: Path) -> None:
    """Refuse a path that cannot be that of a database. Nothing is created or opened.

    Raises:
        ConfigurationError: The path is a folder or a special file, or cannot be examined.
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
        raise ConfigurationError(
            f"the store {path} is not a regular file; expected a database file"
        )


def companion(path: Path, suffix: str) -> Path:
    """The file with this suffix next to the database, to which ``path`` may be a symbolic link.

    SQLite names its files like this. So all names of a database lead to the same files.
    """
    real = path.resolve()
    return real.with_name(real.name + suffix)


def holder_of(path: Path) -> str | None:
    """The server that uses the store, empty if it cannot be identified; ``None``: no server.

    The lock is taken for a moment. A server that starts in this moment is refused.

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
    """`` (process 123)``: the holder of the lock on the file, if the system shows it."""
    inode = os.fstat(fd).st_ino
    pids = [pid for kind, pid, locked, *_ in _locks() if (kind, locked) == ("FLOCK", inode)]
    return f" (process {pids[0]})" if pids else ""


_locked: WeakSet[DatabaseFile] = WeakSet()


def _release_in_child() -> None:
    for file in _locked:
        file.release_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
