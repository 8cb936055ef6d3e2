"""The keys that sign JSON Web Tokens: of a file, or of a set that the issuer publishes (JWKS).

Theory of operation of a set. `KeySet.find` returns a key that is known at once and never waits for
the issuer. Two things read the set again, always one request at a time:

- a token arrives and the set is older than `STALE` seconds: in the background;
- a token names a key that is not known: its login waits for a request that begins after it came,
  so that it sees what the issuer publishes now, at most `WAIT` seconds.

Requests begin at least `INTERVAL` seconds apart. All logins that wait share the next one, so a
stranger cannot use up the requests: a new key of the issuer is found within `WAIT` seconds, however
many strangers name keys that do not exist. An address whose tokens named `UNKNOWN` such keys within
`WINDOW` seconds is refused without waiting.

A request runs in a thread of its own, which is left behind after `FETCH_TIMEOUT` seconds in all: an
issuer that sends a byte now and then holds up neither logins nor the stop of the server. Not more
than `THREADS` may be left behind at a time.

If the issuer does not answer, or answers with something else than keys, the keys that were read
before count for `LAST_GOOD` seconds.
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

MIN_SECRET: Final = 32  # bytes of an HS256 secret: as many as the hash has (RFC 7518, 3.2)
MIN_RSA: Final = 2048  # bits (RFC 7518, 3.3)
MAX_SET: Final = 1 << 20  # bytes of a JWKS
MAX_KEYS: Final = 1000  # of a JWKS
FETCH_TIMEOUT: Final = 5.0  # seconds for a JWKS
STALE: Final = 600.0  # seconds after which a JWKS is read again
INTERVAL: Final = 2.0  # seconds between the beginnings of two requests
WAIT: Final = 4.0  # seconds that a login waits for a key: less than it has by ``auth_timeout``
LAST_GOOD: Final = 86_400.0  # seconds for which keys count while the issuer does not answer
UNKNOWN: Final = 3  # unknown keys that an address may name within
WINDOW: Final = 60.0  # seconds, before it is refused without waiting
SOURCES: Final = 10_000  # addresses that are remembered
THREADS: Final = 4  # requests that may be left behind
KEY_TYPES: Final = {"HS256": "oct", "RS256": "RSA", "ES256": "EC"}

_log = logging.getLogger("agentsrv.listener")


class Keys(Protocol):
    """Where the key that signs a token is found."""

    async def find(self, key_id: str | None, source: str = "") -> Any:
        """The key of that id, for a token from the address ``source``; ``None`` without one."""


class OneKey:
    """The key of a file: an HS256 secret, or a public key as PEM.

    Raises:
        ConfigurationError: It cannot be read, or is no key for the algorithm, or a weak one.
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

    async def find(self, key_id: str | None, source: str = "") -> Any:  # noqa: ARG002 - one only
        """The key, whatever a token calls it."""
        return self._key


class KeySet:
    """The keys of a JWKS; see the module's theory of operation.

    Args:
        load: Reads it; called in a thread. Raises `OSError` or `ValueError`.
        algorithm: Keys for others are passed over.
        now: Seconds, from whenever.
        sleep: Waits for some seconds.
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
        self._read_at = -math.inf  # when the keys were read
        self._tried_at = -math.inf  # when the last request began
        self._begun = 0  # requests
        self._request: asyncio.Task[None] | None = None
        self._threads = 0
        self._has_failed = False
        self._unknown: OrderedDict[str, list[float]] = OrderedDict()

    async def read(self) -> None:
        """Read the set.

        Raises:
            ConfigurationError: It cannot be read, or has no key that can be used.
        """
        self._begun += 1
        self._tried_at = self._now()
        try:
            self._keys = await self._fetch()
        except (OSError, ValueError, TimeoutError) as error:
            told = redact(str(error)) or f"no answer within {FETCH_TIMEOUT:g} s"
            raise ConfigurationError(f"jwt_jwks cannot be read: {told}") from None
        self._read_at = self._now()

    async def find(self, key_id: str | None, source: str = "") -> Any:
        """The key of that id; without an id, the only key there is; ``None`` if there is none.

        Args:
            key_id: The ``kid`` of a token.
            source: The address that the token came from.
        """
        if self._now() - self._tried_at > STALE:
            self._ensure_request()
        key = self._known(key_id)
        if key is None and not self._is_suspect(source):
            try:
                async with asyncio.timeout(WAIT):
                    key = await self._find_anew(key_id)
            except TimeoutError:
                pass
            if key is None:
                self._suspect(source)
        return key

    def _known(self, key_id: str | None) -> Any:
        if self._now() - self._read_at > LAST_GOOD:
            return None
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _find_anew(self, key_id: str | None) -> Any:
        """Wait for a request that begins from now on, or for an earlier one that has the key."""
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
        if (left := self._tried_at + INTERVAL - self._now()) > 0:
            await self._sleep(left)
        try:
            await self.read()
        except ConfigurationError as error:
            if not self._has_failed:
                hours = LAST_GOOD / 3600
                told = "%s; the keys that were read before count for up to %g hours"
                _log.warning(told, error, hours)
            self._has_failed = True
        else:
            if self._has_failed:
                _log.info("jwt_jwks is read again")
            self._has_failed = False

    async def _fetch(self) -> dict[str | None, Any]:
        """Load and parse the set in a thread, which is left behind if it takes too long."""
        if self._threads >= THREADS:
            raise OSError(f"{THREADS} earlier requests have not ended")
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
        return len(times) >= UNKNOWN and self._now() - times[-UNKNOWN] < WINDOW

    def _suspect(self, source: str) -> None:
        """Note that a token from there named a key that does not exist."""
        if source:
            self._unknown.setdefault(source, []).append(self._now())
            del self._unknown[source][:-UNKNOWN]
            self._unknown.move_to_end(source)
            if len(self._unknown) > SOURCES:
                self._unknown.popitem(last=False)


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

    Keys of other types, uses and algorithms are passed over; so are keys that are weak, private or
    broken, with a warning. Of two keys with one id the first counts.

    Raises:
        ValueError: It is not a JWKS.
        ConfigurationError: It has no such key.
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
        except Exception as error:  # noqa: BLE001 - whatever the fields make the library raise
            problem = f"jwt_jwks has a key that cannot be used: {type(error).__name__}"
        else:
            keys.setdefault(fields.get("kid"), key)
            continue
        _log.warning("%s; it is passed over", problem)
    if not keys:
        raise ConfigurationError(problem)
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
        return partial(read_bytes, Path(jwks), f"jwt_jwks is {jwks!r}")
    is_local = is_loopback(url.hostname or "")
    if url.scheme == "http" and not is_local:
        raise ConfigurationError(f"jwt_jwks is {jwks!r}; expected a file or an https URL")
    # No redirect: it could lead to where nothing is encrypted.
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
        """Follow nothing; the redirect itself becomes the error."""
