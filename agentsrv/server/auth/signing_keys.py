"""The keys that sign JSON Web Tokens: from a file, or from a set that the issuer publishes (JWKS).

Theory of operation
===================

`KeySet.find` returns a known key at once and never waits for the issuer. Two events request the
set again, always one request at a time:

- a token arrives and the set is older than `REFRESH_AFTER` seconds: in the background;
- a token names an unknown key: its login waits, at most `KEY_TIMEOUT` seconds, for a request that
  begins after the login, and therefore sees the current set.

Requests begin at least `REQUEST_INTERVAL` seconds apart. All waiting logins share the next one, so
unknown keys in tokens of strangers cannot exhaust the requests: a new key of the issuer is found
within `KEY_TIMEOUT` seconds in any case. An address whose tokens have named `MAX_UNKNOWN` unknown
keys within `UNKNOWN_WINDOW` seconds is refused without waiting.

A request runs in a new daemon thread, which is abandoned after `FETCH_TIMEOUT` seconds in all: an
issuer that sends single bytes delays neither logins nor the server's stop. At most `MAX_THREADS`
abandoned threads may exist at a time.

If the issuer does not answer, or sends anything but keys, the keys that were read before remain
valid for `MAX_AGE` seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

import jwt

from agentsrv.config_files import read_bytes
from agentsrv.error_text import redact
from agentsrv.errors import ConfigurationError
from agentsrv.server.startup_checks import is_loopback
from agentsrv.threads import in_own_thread

MIN_SECRET: Final = 32  # bytes of an HS256 secret, the length of the hash (RFC 7518, 3.2)
MIN_RSA: Final = 2048  # bits (RFC 7518, 3.3)
MAX_SET: Final = 1 << 20  # bytes of a JWKS
MAX_KEYS: Final = 1000  # keys of a JWKS
FETCH_TIMEOUT: Final = 5.0  # seconds for a JWKS
REFRESH_AFTER: Final = 600.0  # seconds after which a JWKS is requested again
REQUEST_INTERVAL: Final = 2.0  # seconds between the beginnings of two requests
KEY_TIMEOUT: Final = 4.0  # seconds that a login waits for a key: less than ``auth_timeout``
MAX_AGE: Final = 86_400.0  # seconds for which keys remain valid while the issuer does not answer
MAX_UNKNOWN: Final = 3  # unknown keys that the tokens of an address may name within
UNKNOWN_WINDOW: Final = 60.0  # seconds before it is refused without waiting
MAX_SOURCES: Final = 10_000  # addresses whose unknown keys are counted
MAX_THREADS: Final = 4  # requests that run, including abandoned ones
KEY_TYPES: Final = {"HS256": "oct", "RS256": "RSA", "ES256": "EC"}

_log = logging.getLogger("agentsrv.listener")


class KeySource(Protocol):
    """Finds the key that signs a token."""

    async def find(self, key_id: str | None, source: str = "") -> Any:
        """Return the key with that id for a token from the address ``source``, or ``None``."""


class SingleKey:
    """The key of a file: an HS256 secret, or a public key as PEM.

    Raises:
        ConfigurationError: It cannot be read, does not fit the algorithm, or is too weak.
    """

    def __init__(self, file: Path, algorithm: str) -> None:
        try:
            data = read_bytes(file, f"jwt_key is {str(file)!r}").rstrip(b"\r\n")
            self._key = jwt.get_algorithm_by_name(algorithm).prepare_key(data)
        except (OSError, ValueError, TypeError, jwt.PyJWTError) as error:
            raise ConfigurationError(
                f"jwt_key is {str(file)!r}; expected a file with the secret or the public key "
                f"(PEM) of {algorithm}: {type(error).__name__}"
            ) from None
        check_strength(algorithm, self._key, "jwt_key")

    async def find(self, key_id: str | None, source: str = "") -> Any:  # noqa: ARG002 - one key
        """Return the key, for any id."""
        return self._key


class KeySet:
    """The keys of a JWKS; see the module's theory of operation.

    Args:
        load: Loads the set, in a thread. Raises `OSError` or `ValueError`.
        algorithm: Keys for other algorithms are ignored.
        now: A monotonic clock, in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        load: Callable[[], bytes],
        algorithm: str,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._load = load
        self._algorithm = algorithm
        self._now = now
        self._sleep = sleep
        self._keys: dict[str | None, Any] = {}
        self._read_at = -math.inf  # time at which the keys were read
        self._tried_at = -math.inf  # time at which the last request began
        self._begun = 0  # number of requests
        self._request: asyncio.Task[None] | None = None
        self._threads = 0
        self._has_failed = False
        self._unknown: OrderedDict[str, list[float]] = OrderedDict()

    async def read(self) -> None:
        """Request the set.

        Raises:
            ConfigurationError: It cannot be read, or contains no usable key.
        """
        self._begun += 1
        self._tried_at = self._now()
        try:
            self._keys = await self._fetch()
        except (OSError, ValueError, TimeoutError) as error:
            reason = redact(str(error)) or f"no answer within {FETCH_TIMEOUT:g} s"
            raise ConfigurationError(f"jwt_jwks cannot be read: {reason}") from None
        self._read_at = self._now()

    async def find(self, key_id: str | None, source: str = "") -> Any:
        """Return the key with that id; without an id, the only key; ``None`` if there is none.

        Args:
            key_id: The ``kid`` of a token.
            source: The address that sent the token.
        """
        if self._now() - self._tried_at > REFRESH_AFTER:
            self._ensure_request()
        key = self._known(key_id)
        if key is None and not self._is_suspect(source):
            try:
                async with asyncio.timeout(KEY_TIMEOUT):
                    key = await self._find_anew(key_id)
            except TimeoutError:
                pass
            if key is None:
                self._suspect(source)
        return key

    def _known(self, key_id: str | None) -> Any:
        if self._now() - self._read_at > MAX_AGE:
            return None
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _find_anew(self, key_id: str | None) -> Any:
        """Wait for a request that begins from now on, or for an earlier one with the key."""
        wanted = self._begun + 1
        while True:
            request = self._ensure_request()
            await asyncio.wait({request})
            key = self._known(key_id)
            if key is not None or self._begun >= wanted:
                return key

    def _ensure_request(self) -> asyncio.Task[None]:
        if self._request is None or self._request.done():
            self._request = asyncio.create_task(self._read_again(), name="agentsrv-jwks")
        return self._request

    async def _read_again(self) -> None:
        if (left := self._tried_at + REQUEST_INTERVAL - self._now()) > 0:
            await self._sleep(left)
        try:
            await self.read()
        except ConfigurationError as error:
            if not self._has_failed:
                hours = MAX_AGE / 3600
                text = "%s; the keys that were read before remain valid for up to %g hours"
                _log.warning(text, error, hours)
            self._has_failed = True
        else:
            if self._has_failed:
                _log.info("jwt_jwks can be read again")
            self._has_failed = False

    async def _fetch(self) -> dict[str | None, Any]:
        """Load and parse the set in a thread, which is abandoned if it takes too long."""
        if self._threads >= MAX_THREADS:
            raise OSError(f"{MAX_THREADS} earlier requests have not ended")
        ended = in_own_thread(lambda: parse_set(self._load(), self._algorithm), "agentsrv-jwks")
        self._threads += 1
        ended.add_done_callback(self._thread_ended)
        await asyncio.wait({ended}, timeout=FETCH_TIMEOUT)
        if not ended.done():
            raise TimeoutError
        return ended.result().result()

    def _thread_ended(self, _: object) -> None:
        self._threads -= 1

    def _is_suspect(self, source: str) -> bool:
        times = self._unknown.get(source, [])
        return len(times) >= MAX_UNKNOWN and self._now() - times[-MAX_UNKNOWN] < UNKNOWN_WINDOW

    def _suspect(self, source: str) -> None:
        """Count a token from there that named an unknown key."""
        if source:
            self._unknown.setdefault(source, []).append(self._now())
            del self._unknown[source][:-MAX_UNKNOWN]
            self._unknown.move_to_end(source)
            if len(self._unknown) > MAX_SOURCES:
                self._unknown.popitem(last=False)


async def open_keys(file: Path | None, jwks: str | None, algorithm: str) -> KeySource:
    """Return the key of a file, or the keys of a JWKS by its file or URL.

    Raises:
        ConfigurationError: Both or neither are set, or it cannot be used.
    """
    if (file is None) == (jwks is None):
        raise ConfigurationError("JSON Web Tokens need either jwt_key or jwt_jwks")
    if file is not None:
        return SingleKey(file, algorithm)
    assert jwks is not None
    keys = KeySet(_loader(jwks), algorithm)
    await keys.read()
    return keys


def parse_set(data: bytes, algorithm: str) -> dict[str | None, Any]:
    """Return the keys of a JWKS for ``algorithm``, by id.

    Keys with other types, uses and algorithms are ignored. Keys that are weak, private or broken
    are ignored with a warning. If two keys have the same id, the first is used.

    Raises:
        ValueError: It is not a JWKS.
        ConfigurationError: It contains no such key.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("expected a JSON object with keys, found nested JSON") from None
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("expected a JSON object with keys")  # noqa: TRY004 - as other bad JSON
    if len(listed) > MAX_KEYS:
        raise ValueError(f"it has {len(listed)} keys; expected at most {MAX_KEYS}")
    keys: dict[str | None, Any] = {}
    problem = f"jwt_jwks has no key for {algorithm}"
    for fields in listed:
        if not (isinstance(fields, dict) and _signs(fields, algorithm)):
            continue
        try:
            key = jwt.PyJWK(fields, algorithm).key
            check_strength(algorithm, key, "jwt_jwks")
        except ConfigurationError as error:
            problem = error.message
        except Exception as error:  # noqa: BLE001 - malformed fields may raise anything
            problem = f"jwt_jwks has a key that cannot be used: {type(error).__name__}"
        else:
            keys.setdefault(fields.get("kid"), key)
            continue
        _log.warning("%s; it is ignored", problem)
    if not keys:
        raise ConfigurationError(problem)
    return keys


def check_strength(algorithm: str, key: Any, setting: str) -> None:
    """Check that a key cannot be guessed and is not a private key.

    Raises:
        ConfigurationError: It is too short, or private.
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
        return partial(read_bytes, Path(jwks), f"jwt_jwks is {jwks!r}")
    is_local = is_loopback(url.hostname or "")
    if url.scheme == "http" and not is_local:
        raise ConfigurationError(f"jwt_jwks is {jwks!r}; expected a file or an https URL")
    # A redirect could lead to an unencrypted address.
    opener = build_opener(_NoRedirects, *([ProxyHandler({})] if is_local else []))

    def fetch() -> bytes:
        deadline, data = time.monotonic() + FETCH_TIMEOUT, bytearray()
        try:
            response = opener.open(jwks, timeout=FETCH_TIMEOUT)
        except HTTPError as error:
            error.close()
            raise OSError(f"HTTP status {error.code}; expected 200") from None
        with response:
            while chunk := response.read1(MAX_SET):
                data += chunk
                if len(data) > MAX_SET:
                    raise ValueError(f"it has more than {MAX_SET} bytes")
                if time.monotonic() > deadline:
                    raise OSError(f"it takes more than {FETCH_TIMEOUT:g} s")
        return bytes(data)

    return fetch


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect; urllib then raises the redirect as an error."""
