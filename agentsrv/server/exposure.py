"""What a server may be exposed to: refusals to start, TLS, and who stands behind a proxy."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings

LOCAL_NAME: Final = "localhost"


def check_exposure(settings: Settings, *, is_guarded: bool) -> None:
    """Refuse what would let strangers come in or listen in.

    Args:
        settings: Where the server would listen, and how.
        is_guarded: Whether it asks everybody who they are.

    Raises:
        ConfigurationError: Others can reach the address, and nobody is asked or nothing encrypted.
    """
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
    """Whose request it is.

    Args:
        peer: Address at the other end of the connection.
        forwarded: Values of the ``X-Forwarded-For`` headers, which anybody may have written.
        trusted: Addresses and networks of our proxies, whose word is taken.

    Returns:
        The last address that none of our proxies has; ``peer`` unless it is one of them.
    """
    networks = [ip_network(name, strict=False) for name in trusted]
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    address = peer
    while hops and any(ip_address(address) in network for network in networks):
        hop = hops.pop()
        if not is_address(hop):
            break
        address = hop
    return address


def _no_password() -> str:
    """Instead of asking at the terminal, for which a server would wait without a word."""
    raise ValueError("the key has a password")
