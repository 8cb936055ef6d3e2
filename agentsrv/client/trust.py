"""The certificates that a client trusts, and the message about one that it does not trust."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from agentsrv.config_files import check_regular
from agentsrv.errors import ConfigurationError

CA_FILE_VARIABLE = "SSL_CERT_FILE"  # OpenSSL trusts the CAs in the file that it names


def tls_context(url: str, ca: Path | str | None) -> ssl.SSLContext | None:
    """Return the TLS context for ``url``; ``None`` for ``ws://``, which is not encrypted.

    With ``ca``, a PEM file, only the CAs in it are trusted; without it those of the system, or of
    the file that the variable SSL_CERT_FILE names.

    Raises:
        ConfigurationError: The file is missing or has no certificate.
    """
    if urlsplit(url).scheme != "wss":
        return None
    if ca is None:
        file = os.environ.get(CA_FILE_VARIABLE)
        if file and Path(file).exists():  # a missing one: see `untrusted`
            check_regular(Path(file), f"{CA_FILE_VARIABLE} is {file!r}")
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
    """Return why the certificate of the server at ``where`` is not trusted, and what to do."""
    message = f"{where}: the certificate is not trusted: {error.verify_message}"
    if "match" in error.verify_message:  # it was issued for another name or address
        return f"{message}; connect by a name that the certificate has"
    file = os.environ.get(CA_FILE_VARIABLE)
    if file and not Path(file).exists():
        message += f" ({CA_FILE_VARIABLE} names the file {file}, which does not exist)"
    return (
        f"{message}; for a certificate of your own, name the file of its CA by --ca FILE, in "
        f"Python by Options(ca=FILE), or by the variable {CA_FILE_VARIABLE}"
    )
