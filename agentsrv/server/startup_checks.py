"""What a server may be exposed to: refusals to start, TLS, and who stands behind a proxy."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from agentsrv.config_files import check_regular
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings

LOCAL_NAME: Final = "localhost"
_PORTS: Final = {"http": 80, "https": 443}
_NO_PAGES: Final = {"ws": "http", "wss": "https"}
"""Schemes that no page has, and those of pages that connect with them."""


def check_bind_address(settings: Settings, *, is_guarded: bool) -> None:
    """Refuse what would let strangers come in or listen in.

    Args:
        settings: Where the server would listen, and how.
        is_guarded: Whether it asks everybody who they are.

    Raises:
        ConfigurationError: Others can reach the address without authentication or encryption; or
            an allowed host or origin is one that no request can have.
    """
    check_names(settings)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "tls_key" if settings.tls_key is None else "tls_cert"
        raise ConfigurationError(f"TLS needs a certificate and its key; {missing} is missing")
    if settings.behind_proxy:
        reached = "behind_proxy says that others reach the server"
    elif is_loopback(settings.host):
        return
    else:
        reached = f"host is {settings.host!r}, which others can reach"
    if not is_guarded:
        raise ConfigurationError(
            f"{reached}, and nobody would be asked who they are; expected key_file "
            "(see: agentsrv keys create), api_keys or jwt_algorithm"
        )
    if settings.tls_cert is None and not settings.behind_proxy:
        raise ConfigurationError(
            f"{reached}, and the traffic would not be encrypted; expected tls_cert and tls_key, "
            "or behind_proxy where a proxy does it"
        )


def check_names(settings: Settings) -> None:
    """Refuse allowed hosts and origins that can never match.

    Raises:
        ConfigurationError: It says what was found, and what was probably meant.
    """
    for given in settings.allowed_origins:
        if origin_of(given) is None:
            scheme, _, name = given.strip().rpartition("://")
            host = host_of(name)
            scheme = _NO_PAGES.get(scheme.lower(), "https")
            meant = f"{scheme}://{host}" if host is not None else "https://app.example"
            raise ConfigurationError(
                f"allowed_origins contains {given!r}, which is not an origin and matches no page; "
                f"expected scheme://host or scheme://host:port, such as {meant}"
            )
    for given in settings.allowed_hosts:
        if host_of(given) is None:
            origin = origin_of(given)
            host = urlsplit(origin).hostname if origin is not None else "agents.example"
            raise ConfigurationError(
                f"allowed_hosts contains {given!r}, which is not a host name and matches no "
                f"request; expected a name or an address, such as {host}"
            )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine's own programs can reach ``host``."""
    if host.lower() == LOCAL_NAME:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether ``host`` is a number and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What TLS connections are made with, 1.2 and above; ``None`` without a certificate.

    Raises:
        ConfigurationError: The certificate or its key cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    for name, file in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        check_regular(file, f"{name} is {str(file)!r}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"tls_cert is {str(settings.tls_cert)!r}, tls_key {str(settings.tls_key)!r}; expected "
            f"a certificate and its key without a password, as PEM: {error}"
        ) from None
    return context


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[str]) -> str:
    """The address of the client that a request comes from.

    Args:
        peer: Address at the other end of the connection.
        forwarded: Values of the ``X-Forwarded-For`` headers. Any client may have written them, and
            some proxies add the client's port.
        trusted: Addresses and networks of our proxies, whose entries are believed.

    Returns:
        The last address that is not one of our proxies; ``peer`` if it is not one of them.
    """
    networks = [ip_network(name, strict=False) for name in trusted]
    hops = [hop for value in forwarded for hop in value.split(",")]
    address = unmapped(peer)
    while hops and any(ip_address(address) in network for network in networks):
        hop = _address_of(hops.pop())
        if hop is None:
            break
        address = hop
    return address


def _address_of(hop: str) -> str | None:
    """The address of an entry: ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[…]:80``."""
    host = hop.strip().strip('"').strip()
    if host.startswith("["):
        host, _, port = host[1:].partition("]")
        if port and not port.startswith(":"):
            return None
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return unmapped(host) if is_address(host) else None


def unmapped(address: str) -> str:
    """``192.0.2.1`` for ``::ffff:192.0.2.1``, as sockets of both versions write it."""
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def origin_of(url: str) -> str | None:
    """An origin as browsers write it: scheme, host and a port that is not the scheme's own.

    Returns:
        It in lower case; ``None`` if ``url`` is not an origin, or has a path or a user.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if not parts.scheme or not host or rest or "*" in host or " " in host:
        return None
    if parts.scheme in _NO_PAGES:
        return None
    suffix = "" if port is None or port == _PORTS.get(parts.scheme) else f":{port}"
    try:
        name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        return None
    return f"{parts.scheme}://{name}{suffix}"


def host_of(name: str) -> str | None:
    """The host of a ``Host`` header, or of a setting: without its port, in lower case.

    Returns:
        ``None`` if it is not a host.
    """
    name = name.strip()
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    origin = origin_of(f"http://{name}")
    return urlsplit(origin).hostname if origin is not None and "/" not in name else None


def _no_password() -> str:
    """Instead of asking at the terminal, for which a server would wait without a word."""
    raise ValueError("the key has a password")
