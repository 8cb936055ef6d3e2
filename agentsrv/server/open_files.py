"""Raises the limit of open files, which limits the number of connections."""

from __future__ import annotations

from typing import Final

OTHER_FILES: Final = 200  # open files of a process in addition to its connections


def raise_open_file_limit(wanted: int) -> int:
    """Raise the limit of this process and its children; return how many connections fit."""
    import resource  # noqa: PLC0415 - missing on Windows, where clients run

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - OTHER_FILES)
