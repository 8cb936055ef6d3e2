"""The keys that sign JSON Web Tokens: of a file, or of a set that the issuer publishes (JWKS)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

import jwt

from agentsrv.errors import ConfigurationError
from agentsrv.server.exposure import is_loopback

MIN_SECRET: Final = 32  # bytes of an HS256 secret: as many as the hash has (RFC 7518, 3.2)
MIN_RSA: Final = 2048  # bits (RFC 7518, 3.3)
MAX_SET: Final = 1 << 20  # bytes of a JWKS
FETCH_TIMEOUT: Final = 5.0  # seconds for a JWKS
STALE: Final = 600.0  # seconds after which a JWKS is read again
PATIENCE: Final = 30.0  # seconds before it is read again for a key that it did not have
KEY_TYPES: Final = {"HS256": "oct", "RS256": "RSA", "ES256": "EC"}

_log = logging.getLogger("agentsrv.door")


class Keys(Protocol):
    """Where the key that signs a token is found."""

    async def find(self, key_id: str | None) -> Any:
        """The key of that id; ``None`` where there is none."""


class OneKey:
    """The key of a file: an HS256 secret, or a public key as PEM.

    Raises:
        ConfigurationError: It cannot be read, or is no key for the algorithm, or a weak one.
    """

    def __init__(self, file: Path, algorithm: str) -> None:
        try:
            data = file.read_bytes().rstrip(b"\r\n")
            self._key = jwt.get_algorithm_by_name(algorithm).prepare_key(data)
        except (OSError, ValueError, TypeError, jwt.PyJWTError) as error:
            raise ConfigurationError(
                f"jwt_key is {str(file)!r}; expected a file with the secret or the public key "
                f"(PEM) of {algorithm}: {type(error).__name__}"
            ) from None
        check_strength(algorithm, self._key, "jwt_key")

    async def find(self, key_id: str | None) -> Any:  # noqa: ARG002 - there is only one
        """The key, whatever a token calls it."""
        return self._key


class KeySet:
    """The keys of a JWKS, which is read again when it is old, or has no key of some id.

    Where that does not work, the keys that were read before still count, and the log says so.

    Args:
        load: Reads it; called in a thread.
        algorithm: Keys for others are passed over.
        now: Seconds, from whenever.
    """

    def __init__(
        self, load: Callable[[], bytes], algorithm: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._algorithm = algorithm
        self._now = now
        self._keys: dict[str | None, Any] = {}
        self._read_at = 0.0
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Read the set.

        Raises:
            ConfigurationError: It cannot be read, or has no key that can be used.
        """
        self._read_at = self._now()
        try:
            self._keys = parse_set(await asyncio.to_thread(self._load), self._algorithm)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"jwt_jwks cannot be read: {error}") from None

    async def find(self, key_id: str | None) -> Any:
        """The key of that id; without one, the only key there is."""
        async with self._reading:  # whoever waits here finds what the first one has read
            age = self._now() - self._read_at
            if age > STALE or (key_id not in self._keys and age > PATIENCE):
                try:
                    await self.read()
                except ConfigurationError as error:
                    _log.warning("%s; the keys that were read before still count", error)
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)


async def open_keys(file: Path | None, jwks: str | None, algorithm: str) -> Keys:
    """The keys of a file, or of a JWKS by its file or URL.

    Raises:
        ConfigurationError: Neither or both are given, or it cannot be used.
    """
    if (file is None) == (jwks is None):
        raise ConfigurationError("JSON Web Tokens need either jwt_key or jwt_jwks")
    if file is not None:
        return OneKey(file, algorithm)
    assert jwks is not None
    keys = KeySet(_loader(jwks), algorithm)
    await keys.read()
    return keys


def parse_set(data: bytes, algorithm: str) -> dict[str | None, Any]:
    """The keys of a JWKS that sign by ``algorithm``, by their ids.

    Raises:
        ValueError: It is none.
        ConfigurationError: It has no such key, or a weak one.
    """
    found = json.loads(data)
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("expected a JSON object with keys")  # noqa: TRY004 - as other bad JSON
    keys: dict[str | None, Any] = {}
    for fields in listed:
        if isinstance(fields, dict) and _signs(fields, algorithm):
            try:
                key = jwt.PyJWK(fields, algorithm).key
            except jwt.PyJWTError as error:
                raise ValueError(f"a key cannot be used: {type(error).__name__}") from None
            check_strength(algorithm, key, "jwt_jwks")
            keys[fields.get("kid")] = key
    if not keys:
        raise ConfigurationError(f"jwt_jwks has no key for {algorithm}")
    return keys


def check_strength(algorithm: str, key: Any, setting: str) -> None:
    """Refuse a key that can be guessed, and one that nobody but the issuer should have.

    Raises:
        ConfigurationError: It is too short, or a private key.
    """
    if algorithm == "HS256":
        if len(key) < MIN_SECRET:
            raise ConfigurationError(
                f"{setting} is a secret of {len(key)} bytes; expected at least {MIN_SECRET}"
            )
    elif hasattr(key, "private_numbers"):
        raise ConfigurationError(f"{setting} is a private key; expected the public one")
    elif algorithm == "RS256" and key.key_size < MIN_RSA:
        raise ConfigurationError(
            f"{setting} is a key of {key.key_size} bits; expected at least {MIN_RSA}"
        )


def _signs(fields: Mapping[str, Any], algorithm: str) -> bool:
    return (
        fields.get("kty") == KEY_TYPES[algorithm]
        and fields.get("alg", algorithm) == algorithm
        and fields.get("use", "sig") == "sig"
        and (algorithm != "ES256" or fields.get("crv") == "P-256")
        and isinstance(fields.get("kid"), str | None)
    )


def _loader(jwks: str) -> Callable[[], bytes]:
    url = urlsplit(jwks)
    if url.scheme not in ("http", "https"):
        return Path(jwks).read_bytes
    is_local = is_loopback(url.hostname or "")
    if url.scheme == "http" and not is_local:
        raise ConfigurationError(f"jwt_jwks is {jwks!r}; expected a file or an https URL")
    # No redirect: it could lead to where nothing is encrypted.
    opener = build_opener(_NoRedirects, *([ProxyHandler({})] if is_local else []))

    def fetch() -> bytes:
        with opener.open(jwks, timeout=FETCH_TIMEOUT) as response:
            data: bytes = response.read(MAX_SET + 1)
        if len(data) > MAX_SET:
            raise ValueError(f"it has more than {MAX_SET} bytes")
        return data

    return fetch


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing; the redirect itself becomes the error."""
