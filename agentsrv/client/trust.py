"""Which certificates of servers a client trusts, and what to do about one that it does not."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from agentsrv.config_files import check_regular
from agentsrv.errors import ConfigurationError

VARIABLE = "SSL_CERT_FILE"  # by which OpenSSL finds the CAs that it trusts


def tls_context(url: str, ca: Path | str | None) -> ssl.SSLContext | None:
    """Return what the certificate of the server at ``url`` is checked with.

    With ``ca``, a PEM file, only the CAs in it are trusted; without it those of the system, or of
    the file that the variable SSL_CERT_FILE names. None for ``ws://``, where nothing is encrypted.

    Raises:
        ConfigurationError: The file is missing or has no certificate.
    """
    if urlsplit(url).scheme != "wss":
        return None
    if ca is None:
        file = os.environ.get(VARIABLE)
        if file and Path(file).exists():  # a missing one: see `untrusted`
            check_regular(Path(file), f"{VARIABLE} is {file!r}")
        return ssl.create_default_context()
    check_regular(Path(ca), f"ca is {os.fspath(ca)!r}")
    try:
        return ssl.create_default_context(cafile=os.fspath(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"ca is {os.fspath(ca)!r}; expected a PEM file with the certificate of a CA: "
            f"{error.strerror or error}"
        ) from None


def untrusted(error: ssl.SSLCertVerificationError, where: str) -> str:
    """Say why the certificate of the server at ``where`` is refused, and what to do."""
    told = f"{where}: the certificate is not trusted: {error.verify_message}"
    if "match" in error.verify_message:  # it is for another name or address
        return f"{told}; connect by a name that the certificate has"
    file = os.environ.get(VARIABLE)
    if file and not Path(file).exists():
        told += f" (there is no file {file}, which {VARIABLE} names)"
    return (
        f"{told}; for a certificate of your own, name the file of its CA by --ca FILE, in Python "
        f"by Options(ca=FILE), or by the variable {VARIABLE}"
    )
