"""API keys: made once, kept as hashes in a file that only grows."""

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

PREFIX: Final = "agentsrv_"  # lets people and scanners see what was leaked
SECRET: Final = 32  # random bytes; so much chance needs no slow hash
NOBODY: Final = "0" * 64  # compared with where there is no such key
PRINCIPAL: Final = r"[A-Za-z0-9_.@-]{1,64}"
RESERVED: Final = "server"  # who the log tells where a question's time is over

_log = logging.getLogger("agentsrv.keys")


class Key(NamedTuple):
    """An API key, without the key itself."""

    key_id: str
    principal: str
    digest: str
    """SHA-256 of the key, in hexadecimal digits."""
    created: date
    revoked: date | None = None

    def line(self) -> str:
        """What stands in the file."""
        return f"key {self.key_id} {self.principal} {self.digest} {self.created}\n"


def make_key(principal: str, today: date) -> tuple[str, Key]:
    """Make a key for ``principal``; the text is shown once and kept nowhere.

    Raises:
        ConfigurationError: That is no name for a principal.
    """
    if not re.fullmatch(PRINCIPAL, principal) or principal == RESERVED:
        raise ConfigurationError(
            f"the principal is {principal!r}; expected up to 64 of letters, digits, _ . @ -, "
            f"and not {RESERVED!r}"
        )
    key_id = secrets.token_hex(4)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(SECRET)}"
    return text, Key(key_id, principal, _digest(text), today)


def parse_keys(text: str, source: object) -> dict[str, Key]:
    """Read the lines of a key file, by key; those that were revoked are marked.

    Raises:
        ConfigurationError: A line is none; ``source`` tells where.
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
            pass  # no date
        raise ConfigurationError(
            f"{source}, line {number}: expected 'key ID PRINCIPAL SHA256 DATE', or "
            "'revoked ID DATE' behind it, as agentsrv keys writes them"
        )
    return keys


def read_keys(file: Path) -> dict[str, Key]:
    """All keys of a file; of one that does not exist, none.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if not file.exists():
        return {}
    what = f"key_file is {str(file)!r}"
    return parse_keys(decode(read_bytes(file, what), what), file)


def add_key(file: Path, key: Key) -> None:
    """Append a key to the file, which is made for its owner alone where there is none."""
    _append(file, key.line())


def revoke_key(file: Path, key_id: str, today: date) -> None:
    """Append that a key counts no more."""
    _append(file, f"revoked {key_id} {today}\n")


class KeyRing:
    """The keys that are accepted: of a file, as it is now, and of the settings.

    A file that has changed is read again before the next answer. Where it cannot be read, the
    keys that were read before still count, and the log says so.

    Raises:
        ConfigurationError: The file cannot be read, or is not there.
    """

    def __init__(self, file: Path | None, given: Mapping[str, Key]) -> None:
        self._file = file
        self._given = _valid(given.values())
        self._keys = self._given
        self._seen: object = None
        if file is not None:
            if not file.exists():
                raise ConfigurationError(
                    f"key_file is {str(file)!r}, which does not exist; "
                    "expected: agentsrv keys create PRINCIPAL --key-file FILE"
                )
            self._seen = _stamp(file)
            self._keys = self._given | _valid(read_keys(file).values())

    def find(self, text: str) -> Key | None:
        """The key whose text this is."""
        self._refresh()
        key = self._keys.get(text.removeprefix(PREFIX).partition("_")[0])
        matches = compare_digest(_digest(text), key.digest if key is not None else NOBODY)
        return key if matches else None

    def __contains__(self, key_id: str) -> bool:
        """Whether the key is accepted still."""
        self._refresh()
        return key_id in self._keys

    def _refresh(self) -> None:
        # In the event loop: a stat of a file that is in memory costs microseconds.
        if self._file is None or (stamp := _stamp(self._file)) == self._seen:
            return
        self._seen = stamp
        try:
            if stamp is None:
                raise ConfigurationError(f"{self._file} is gone")  # noqa: TRY301 - told as any other
            self._keys = self._given | _valid(read_keys(self._file).values())
        except ConfigurationError as error:
            _log.error("%s; the keys that were read before still count", error)


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
    # One write at the end: neither readers nor others who append see half of it.
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = f"\n{line}"  # somebody has edited it
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()


_KEY: Final = re.compile(rf"key ([0-9a-f]{{8}}) ({PRINCIPAL}) ([0-9a-f]{{64}}) (\S+)")
_REVOKED: Final = re.compile(r"revoked ([0-9a-f]{8}) (\S+)")
