"""Lists the files of a knowledge base's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentsrv.errors import KnowledgeError

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A listed file; ``reason`` is set if it must not be opened."""

    name: str
    size: int
    mtime_ns: int
    reason: str = ""


def scan(folder: Path) -> list[FoundFile]:
    """List the regular files below ``folder``, by name.

    Symbolic links are not followed, so there are no loops and no files outside of the folder.
    Hidden files and folders, ``node_modules`` and similar folders are skipped. A subfolder that
    cannot be listed is returned as an entry with its reason.

    Raises:
        KnowledgeError: ``folder`` itself is missing or cannot be listed.
    """
    found: list[FoundFile] = []

    def unlisted(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise KnowledgeError(f"cannot list the folder {folder}: {error.strerror}") from error
        name = Path(error.filename).relative_to(folder).as_posix()
        found.append(FoundFile(f"{name}/", 0, 0, error.strerror or "cannot be listed"))

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        folders[:] = [name for name in folders if not _is_skipped(name)]
        for name in names:
            if not _is_skipped(name):
                found.extend(_found(folder, Path(parent, name)))
    return sorted(found, key=lambda file: file.name)


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def _found(folder: Path, path: Path) -> Iterable[FoundFile]:
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        return [FoundFile(shown, 0, 0, "its name is not UTF-8")]
    try:
        status = path.lstat()
    except OSError as error:
        # The file was deleted since it was listed, or its path is too long.
        return [FoundFile(name, 0, 0, error.strerror or "cannot be examined")]
    if stat.S_ISLNK(status.st_mode):
        return [FoundFile(name, 0, 0, "symbolic link")]
    return [FoundFile(name, status.st_size, status.st_mtime_ns)]
