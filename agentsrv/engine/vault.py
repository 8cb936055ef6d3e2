"""Secret answers: encrypted in the log, decrypted for the agent that asked.

A question is secret if its schema has ``writeOnly``, as pydantic writes it for `SecretStr`. Its
answer is encrypted before it becomes part of an event or of a message to another node. So stores,
backups and all clients that follow the task have the ciphertext only: ``{"sealed": "…"}``. It is
decrypted when the agent's ``ctx.ask`` returns, also after a restart or on another node with the
same key.

The key is derived from the setting ``secret_key``. Without the setting it is in a file of mode 600
beside the SQLite store, made when the first secret question is asked; a store in memory has a
random one. Several nodes on PostgreSQL need the setting, the same on all of them.

A ciphertext holds the question's id, so it cannot be moved to another question. An answer that
cannot be decrypted, because the key was lost or replaced, fails its step; the question is not asked
again, because its answer is settled in the log.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from agentsrv.config_files import decode, read_bytes
from agentsrv.errors import ConfigurationError, PermanentError, UnavailableError, missing_extra
from agentsrv.models.events import SEALED, is_sealed

MIN_SECRET: Final = 4  # characters; shorter ones are parts of ordinary words


class Vault:
    """Encrypts and decrypts secret answers with one key.

    Args:
        key: The setting ``secret_key``.
        file: Where the key is kept without the setting; ``None`` for nowhere.
        is_shared: Whether other nodes must decrypt what this one encrypts.
    """

    def __init__(
        self, key: str | None = None, file: Path | None = None, *, is_shared: bool = False
    ) -> None:
        self._key = key
        self._file = file
        self._is_shared = is_shared

    @property
    def needs_file(self) -> bool:
        """Whether `prepare` will read or write the key's file."""
        return self._key is None and self._file is not None

    def prepare(self) -> None:
        """Read the key, or make it; blocks for as long as the file system takes.

        Raises:
            PermanentError: Secrets cannot be kept here; the message says what is missing.
        """
        _fernet_module()
        if self._key is not None:
            return
        if self._is_shared:
            raise PermanentError(
                "a secret question on PostgreSQL needs the setting secret_key, the same on all "
                "nodes: one of them encrypts the answer and another may decrypt it"
            )
        if self._file is None:
            self._key = secrets.token_urlsafe(32)
            return
        try:
            self._key = self._read() or self._make(self._file)
        except FileExistsError:  # made by another thread meanwhile
            self._key = self._read()
        except ConfigurationError as error:
            raise PermanentError(error.message) from error
        except OSError as error:
            raise PermanentError(
                f"the key for secret answers cannot be kept in {self._file}: {error.strerror}"
            ) from error
        if self._key is None:
            raise PermanentError(
                f"the file of the key for secret answers, {self._file}, is empty; restore it, or "
                "delete it to make another key"
            )

    def load(self) -> None:
        """Read the key if there is one; blocks as `prepare` does."""
        if self._key is None and self._file is not None:
            self._key = self._read()

    def seal(self, input_id: str, value: Any) -> dict[str, str]:
        """The ciphertext of the answer to a question.

        Raises:
            Unavailable: This node has no key.
        """
        if self._key is None:
            raise UnavailableError(
                "this server has no key for secret answers: try again when the step asks again, "
                "or set secret_key"
            )
        plain = orjson.dumps({"id": input_id, "value": value})
        return {SEALED: self._fernet().encrypt(plain).decode()}

    def open(self, input_id: str, value: Any) -> Any:
        """The answer to a question; ``value`` itself if it is not a ciphertext.

        Raises:
            PermanentError: It was encrypted with another key, or for another question.
        """
        if not is_sealed(value):
            return value
        if self._key is not None:
            try:
                found = orjson.loads(self._fernet().decrypt(value[SEALED].encode()))
            except _fernet_module().InvalidToken:
                pass
            else:
                if found["id"] == input_id:
                    return found["value"]
        raise PermanentError(
            f"the secret answer to question {input_id} cannot be decrypted: its key was lost or "
            "replaced; restore the key, or create the task again"
        )

    def _fernet(self) -> Any:
        assert self._key is not None
        key = base64.urlsafe_b64encode(hashlib.sha256(self._key.encode()).digest())
        return _fernet_module().Fernet(key)

    def _read(self) -> str | None:
        assert self._file is not None
        if not self._file.exists():
            return None
        what = f"the key for secret answers is in {str(self._file)!r}"
        return decode(read_bytes(self._file, what), what).strip() or None

    def _make(self, file: Path) -> str:
        key = secrets.token_urlsafe(32)
        # Written beside and then linked: a crash or a full disk leaves no file without its key.
        beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(f"{key}\n")
                opened.flush()
                os.fsync(opened.fileno())
            file.hardlink_to(beside)
        finally:
            beside.unlink()
        return key


def texts_of(value: Any) -> Iterator[str]:
    """The texts in a JSON value that are long enough to be recognised elsewhere."""
    if isinstance(value, str) and len(value) >= MIN_SECRET:
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def _fernet_module() -> Any:
    try:
        from cryptography import fernet  # noqa: PLC0415 - an extra
    except ImportError:
        raise PermanentError(missing_extra("a secret question", "secrets")) from None
    return fernet
