"""Vault: encryption of secret answers, in the log and between nodes.

A question is secret if its schema has ``writeOnly``, as pydantic writes it for `SecretStr`. Its
answer is encrypted before it becomes part of an event or of a message to another node. So stores,
backups and all clients that follow the task receive the ciphertext only: ``{"sealed": "…"}``. It is
decrypted when the agent's ``ctx.ask`` returns, also after a restart or on another node with the
same key.

The key is derived from the setting ``secret_key``. Without the setting, it is kept in a file of
mode 600 next to the SQLite store, which is created when the first secret question is asked; a store
in memory has a random key. Several nodes on PostgreSQL need the setting, the same on all of them.

A ciphertext contains the question's id, so it cannot be moved to another question. If an answer
cannot be decrypted, because the key was lost or replaced, its step fails; the question is not asked
again, because the log has its answer.
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

MIN_REDACTED: Final = 4  # characters; shorter texts are parts of ordinary words


class Vault:
    """Encrypts and decrypts secret answers with one key.

    Args:
        key: The setting ``secret_key``.
        file: The file of the key if the setting is missing; ``None`` to keep it in memory.
        is_shared: Whether other nodes must decrypt answers that this one encrypts.
    """

    def __init__(
        self, key: str | None = None, file: Path | None = None, *, is_shared: bool = False
    ) -> None:
        self._key = key
        self._file = file
        self._is_shared = is_shared

    @property
    def needs_file(self) -> bool:
        """Whether `prepare` reads or writes the file of the key."""
        return self._key is None and self._file is not None

    def prepare(self) -> None:
        """Read the key, or create it; blocks until the file system has answered.

        Raises:
            PermanentError: Secret answers cannot be encrypted; the message names what is missing.
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
            self._key = self._read() or self._create(self._file)
        except FileExistsError:  # another thread has created it in the meantime
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
        """Read the key if its file exists; blocks as `prepare` does."""
        if self._key is None and self._file is not None:
            self._key = self._read()

    def seal(self, input_id: str, value: Any) -> dict[str, str]:
        """Return the ciphertext of the answer to a question.

        Raises:
            UnavailableError: This node has no key.
        """
        if self._key is None:
            raise UnavailableError(
                "this server has no key for secret answers: try again when the step asks again, "
                "or set secret_key"
            )
        plain = orjson.dumps({"id": input_id, "value": value})
        return {SEALED: self._fernet().encrypt(plain).decode()}

    def open(self, input_id: str, value: Any) -> Any:
        """Return the answer to a question; ``value`` itself if it is not a ciphertext.

        Raises:
            PermanentError: It was encrypted with another key, or for another question.
        """
        if not is_sealed(value):
            return value
        if self._key is not None:
            try:
                decrypted = orjson.loads(self._fernet().decrypt(value[SEALED].encode()))
            except _fernet_module().InvalidToken:
                pass
            else:
                if decrypted["id"] == input_id:
                    return decrypted["value"]
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
        purpose = f"the key for secret answers is in {str(self._file)!r}"
        return decode(read_bytes(self._file, purpose), purpose).strip() or None

    def _create(self, file: Path) -> str:
        key = secrets.token_urlsafe(32)
        # Written to a temporary file and linked: a crash or a full disk leaves no incomplete file.
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(f"{key}\n")
                opened.flush()
                os.fsync(opened.fileno())
            file.hardlink_to(temporary)
        finally:
            temporary.unlink()
        return key


def redactable_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value that are long enough to be found in other texts."""
    if isinstance(value, str) and len(value) >= MIN_REDACTED:
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from redactable_texts(item)


def _fernet_module() -> Any:
    try:
        from cryptography import fernet  # noqa: PLC0415 - an extra
    except ImportError:
        raise PermanentError(missing_extra("a secret question", "secrets")) from None
    return fernet
