"""Checks before the start: unsafe addresses, TLS, host names; and addresses of clients.

Theory of operation
===================

A server on a loopback address needs no protection from the network. On any other address, or
behind a proxy, `check_bind_address` requires authentication and encryption, and refuses to start
otherwise. A mistake in ``allowed_hosts`` or ``allowed_origins`` would show only as refused clients,
so entries that can never match are rejected as well, with a suggestion.

Hosts and origins have one normal form (`host_of`, `origin_of`), in which settings and requests are
compared: lower case, IDNA, without the scheme's default port.

Behind proxies, the client's address is found by reading ``X-Forwarded-For`` from its end
(`client_address`): each trusted proxy appends the address of its peer, so the entries of trusted
proxies can be believed, and the first entry that is not one of them is the client. Entries before
it are the client's own claim.
"""

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
_PAGE_SCHEMES: Final = {"ws": "http", "wss": "https"}
"""For schemes of WebSockets, the schemes of pages; no page has an origin with the former."""


def check_bind_address(settings: Settings, *, is_guarded: bool) -> None:
    """Refuse to start on a public address without authentication and TLS.

    Args:
        settings: The address, and the settings of authentication, TLS and proxies.
        is_guarded: Whether clients must authenticate.

    Raises:
        ConfigurationError: The address can be reached from other machines, without authentication
            or encryption; or an allowed host or origin can never match.
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
            f"{reached}, and clients would not have to authenticate; expected key_file "
            "(see: agentsrv keys create), api_keys or jwt_algorithm"
        )
    if settings.tls_cert is None and not settings.behind_proxy:
        raise ConfigurationError(
            f"{reached}, and the traffic would not be encrypted; expected tls_cert and tls_key, "
            "or behind_proxy if a proxy terminates TLS"
        )


def check_names(settings: Settings) -> None:
    """Check that allowed hosts and origins can match.

    Raises:
        ConfigurationError: One cannot; the message suggests a valid value.
    """
    for name in settings.allowed_origins:
        if origin_of(name) is None:
            scheme, _, authority = name.strip().rpartition("://")
            host = host_of(authority)
            scheme = _PAGE_SCHEMES.get(scheme.lower(), "https")
            meant = f"{scheme}://{host}" if host is not None else "https://app.example"
            raise ConfigurationError(
                f"allowed_origins contains {name!r}, which is not an origin and matches no page; "
                f"expected scheme://host or scheme://host:port, such as {meant}"
            )
    for name in settings.allowed_hosts:
        if host_of(name) is None:
            origin = origin_of(name)
            host = urlsplit(origin).hostname if origin is not None else "agents.example"
            raise ConfigurationError(
                f"allowed_hosts contains {name!r}, which is not a host name and matches no "
                f"request; expected a name or an address, such as {host}"
            )


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    if host.lower() == LOCAL_NAME:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the context for TLS 1.2 and later; ``None`` without a certificate.

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
    """Return the address of the client that sent a request.

    Args:
        peer: The address at the other end of the connection.
        forwarded: Values of the ``X-Forwarded-For`` headers. Clients can write any, and some
            proxies add the client's port.
        trusted: Addresses and networks of the trusted proxies.

    Returns:
        The last address that is not a trusted proxy; ``peer`` if it is not one.
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
    """Parse an entry: ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[…]:80``."""
    host = hop.strip().strip('"').strip()
    if host.startswith("["):
        host, _, port = host[1:].partition("]")
        if port and not port.startswith(":"):
            return None
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return unmapped(host) if is_address(host) else None


def unmapped(address: str) -> str:
    """Return ``192.0.2.1`` for ``::ffff:192.0.2.1``, as dual-stack sockets write it."""
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def origin_of(url: str) -> str | None:
    """Return an origin in normal form: scheme, host, and the port unless it is the default.

    Returns:
        The origin in lower case; ``None`` if ``url`` is not one, or has a path or a user.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if not parts.scheme or not host or rest or "*" in host or " " in host:
        return None
    if parts.scheme in _PAGE_SCHEMES:
        return None
    suffix = "" if port is None or port == _PORTS.get(parts.scheme) else f":{port}"
    try:
        name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        return None
    return f"{parts.scheme}://{name}{suffix}"


def host_of(name: str) -> str | None:
    """Return the host of a ``Host`` header or setting: without its port, in lower case.

    Returns:
        ``None`` if it is not a host.
    """
    name = name.strip()
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    origin = origin_of(f"http://{name}")
    return urlsplit(origin).hostname if origin is not None and "/" not in name else None


def _no_password() -> str:
    """Raise instead of OpenSSL's default, which asks at the terminal and blocks the start."""
    raise ValueError("the key has a password")
