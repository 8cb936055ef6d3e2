"""API keys: shown once, stored as hashes in an append-only file.

Theory of operation
===================

A key is ``agentsrv_<id>_<secret>``. The id selects the line of the file, the whole text is hashed
with SHA-256 and compared in constant time. The secret has 256 random bits, so a slow hash is not
needed. For an unknown id a dummy digest is compared, which takes the same time.

The file has two kinds of lines, ``key ID PRINCIPAL SHA256 DATE`` and ``revoked ID DATE``. It is
only appended to, each time with one write, so readers and several writers need no lock. Running
servers notice a change by the file's inode, time and size at the next check of a key.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import date
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final, NamedTuple

from agentsrv.config_files import check_regular, decode, read_bytes
from agentsrv.errors import ConfigurationError

PREFIX: Final = "agentsrv_"  # lets people and secret scanners recognize a leaked key
SECRET_BYTES: Final = 32  # random bytes of a key
UNKNOWN_DIGEST: Final = "0" * 64  # compared if the key's id is unknown
PRINCIPAL: Final = r"[A-Za-z0-9_.@-]{1,64}"
RESERVED: Final = "server"  # principal of answers in the log that the server gave by default

_log = logging.getLogger("agentsrv.keys")


class Key(NamedTuple):
    """An API key without its text."""

    key_id: str
    principal: str
    digest: str
    """SHA-256 of the key, in hexadecimal digits."""
    created: date
    revoked: date | None = None

    def line(self) -> str:
        """Return the key's line of the file."""
        return f"key {self.key_id} {self.principal} {self.digest} {self.created}\n"


def make_key(principal: str, today: date) -> tuple[str, Key]:
    """Create a key for ``principal``; return its text, which is not stored, and the key.

    Raises:
        ConfigurationError: The principal's name is invalid.
    """
    if not re.fullmatch(PRINCIPAL, principal) or principal == RESERVED:
        raise ConfigurationError(
            f"the principal is {principal!r}; expected up to 64 letters, digits, _ . @ -, "
            f"and not {RESERVED!r}"
        )
    key_id = secrets.token_hex(4)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    return text, Key(key_id, principal, _digest(text), today)


def parse_keys(text: str, source: object) -> dict[str, Key]:
    """Parse the lines of a key file; return the keys by id, including revoked ones.

    Raises:
        ConfigurationError: A line is invalid; ``source`` names the file in the message.
    """
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        made, ended = _KEY.fullmatch(line.strip()), _REVOKED.fullmatch(line.strip())
        try:
            if made is not None and made[2] != RESERVED:
                key = Key(made[1], made[2], made[3], date.fromisoformat(made[4]))
                keys[key.key_id] = key
                continue
            if ended is not None and ended[1] in keys:
                keys[ended[1]] = keys[ended[1]]._replace(revoked=date.fromisoformat(ended[2]))
                continue
        except ValueError:
            pass  # an invalid date
        raise ConfigurationError(
            f"{source}, line {number}: expected 'key ID PRINCIPAL SHA256 DATE', or "
            "'revoked ID DATE' after it, as agentsrv keys writes them"
        )
    return keys


def read_keys(file: Path) -> dict[str, Key]:
    """Return all keys of a file; an empty mapping if it does not exist.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if not file.exists():
        return {}
    subject = f"key_file is {str(file)!r}"
    return parse_keys(decode(read_bytes(file, subject), subject), file)


def add_key(file: Path, key: Key) -> None:
    """Append a key to the file, which is created with access for its owner only."""
    _append(file, key.line())


def revoke_key(file: Path, key_id: str, today: date) -> None:
    """Append the revocation of a key to the file."""
    _append(file, f"revoked {key_id} {today}\n")


class KeyRing:
    """The accepted keys, from the file as it is now and from the settings.

    A file that has changed is read again at the next check. If it cannot be read, the keys that
    were read before remain valid, and an error is logged.

    Raises:
        ConfigurationError: The file does not exist or cannot be read.
    """

    def __init__(self, file: Path | None, from_settings: Mapping[str, Key]) -> None:
        self._file = file
        self._from_settings = _valid(from_settings.values())
        self._keys = self._from_settings
        self._seen: object = None
        if file is not None:
            if not file.exists():
                raise ConfigurationError(
                    f"key_file is {str(file)!r}, which does not exist; "
                    "expected: agentsrv keys create PRINCIPAL --key-file FILE"
                )
            self._seen = _stamp(file)
            self._keys = self._from_settings | _valid(read_keys(file).values())

    def find(self, text: str) -> Key | None:
        """Return the key with this text; ``None`` if there is none."""
        self._refresh()
        key = self._keys.get(text.removeprefix(PREFIX).partition("_")[0])
        matches = compare_digest(_digest(text), key.digest if key is not None else UNKNOWN_DIGEST)
        return key if matches else None

    def __contains__(self, key_id: str) -> bool:
        """Whether the key is still accepted."""
        self._refresh()
        return key_id in self._keys

    def _refresh(self) -> None:
        # In the event loop, because the stat of a cached file takes microseconds.
        if self._file is None or (stamp := _stamp(self._file)) == self._seen:
            return
        self._seen = stamp
        try:
            if stamp is None:
                raise ConfigurationError(f"{self._file} does not exist")  # noqa: TRY301 - same log
            self._keys = self._from_settings | _valid(read_keys(self._file).values())
        except ConfigurationError as error:
            _log.error("%s; the keys that were read before remain valid", error)


def _valid(keys: Iterable[Key]) -> dict[str, Key]:
    return {key.key_id: key for key in keys if key.revoked is None}


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _append(file: Path, line: str) -> None:
    if file.exists():
        check_regular(file, f"key_file is {str(file)!r}")
    # One write at the end, so that readers and other writers never see half of a line.
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = f"\n{line}"  # an editor has removed the last line end
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()


_KEY: Final = re.compile(rf"key ([0-9a-f]{{8}}) ({PRINCIPAL}) ([0-9a-f]{{64}}) (\S+)")
_REVOKED: Final = re.compile(r"revoked ([0-9a-f]{8}) (\S+)")
