"""Reads configuration files and files that settings name; each fault is one sentence."""

from __future__ import annotations

import codecs
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from agentsrv.errors import ConfigurationError

MAX_SIZE: Final = 1 << 20  # bytes of a configuration file
OTHER_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
OTHER_ENCODINGS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, because it begins with UTF-16's mark
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def check_regular(path: Path, subject: str) -> None:
    """Check that the path is a regular file: reading a pipe or a device may never end.

    ``subject`` begins the message of an error, for example ``jwt_key is 'x'``.

    Raises:
        ConfigurationError: It does not exist, is not a regular file, or cannot be examined.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(f"{subject}, which does not exist; expected a file") from None
    except OSError as error:
        raise ConfigurationError(f"{subject}, which cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in OTHER_KINDS if test(mode)), "no regular file")
        raise ConfigurationError(f"{subject}, which is {kind}; expected a regular file")


def read_bytes(path: Path, subject: str) -> bytes:
    """Return the content of the file; ``subject`` begins an error's message (`check_regular`).

    Raises:
        ConfigurationError: It is not a regular file, cannot be read, or exceeds ``MAX_SIZE``.
    """
    check_regular(path, subject)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigurationError(f"{subject}, which cannot be read: {error.strerror}") from None
    if len(data) > MAX_SIZE:
        raise ConfigurationError(f"{subject}, which is larger than {MAX_SIZE} bytes")
    return data


def decode(data: bytes, subject: str) -> str:
    """Return the text of UTF-8 ``data``, without a byte order mark.

    Raises:
        ConfigurationError: It is in another encoding, or contains a NUL character.
    """
    for mark, encoding in OTHER_ENCODINGS:
        if data.startswith(mark):
            raise ConfigurationError(f"{subject}, which is encoded as {encoding}; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{subject}, in line {line} of which byte {data[error.start]:#04x} is not UTF-8; save "
            "it as UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigurationError(
            f"{subject}, which contains a NUL character; save it as UTF-8 text"
        )
    return text


def read_if_there(path: Path) -> str:
    """Return the text of a configuration file; the empty string if it does not exist.

    Raises:
        ConfigurationError: As for ``read_bytes`` and ``decode``.
    """
    if not path.exists():
        return ""
    subject = f"settings are read from {path}"
    return decode(read_bytes(path, subject), subject)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the keys of a TOML file; an empty mapping if it does not exist.

    Raises:
        ConfigurationError: It cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(read_if_there(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"settings are read from {path}, which is not valid TOML: {error}"
        ) from None
