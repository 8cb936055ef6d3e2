"""Reading files of settings, and files that settings name: each fault is one sentence."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any, Final

from agentsrv.errors import ConfigurationError

MAX_SIZE: Final = 1 << 20  # bytes of a file of settings
OTHER_ENCODINGS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_bytes(path: Path, what: str) -> bytes:
    """Return what is in the file; ``what`` is how an error calls it, such as ``jwt_key is 'x'``.

    Raises:
        ConfigurationError: It does not exist, is no file, cannot be read, or is larger than
            ``MAX_SIZE``.
    """
    try:
        if path.is_dir():
            raise ConfigurationError(f"{what}, which is a folder; expected a file")
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(f"{what}, which does not exist; expected a file") from None
    except OSError as error:
        raise ConfigurationError(f"{what}, which cannot be read: {error.strerror}") from None
    if len(data) > MAX_SIZE:
        raise ConfigurationError(f"{what}, which is larger than {MAX_SIZE} bytes")
    return data


def decode(data: bytes, what: str) -> str:
    """Return the text of UTF-8 ``data``, without a byte order mark.

    Raises:
        ConfigurationError: It is in another encoding, or contains a NUL character.
    """
    for mark, encoding in OTHER_ENCODINGS:
        if data.startswith(mark):
            raise ConfigurationError(f"{what}, which is encoded as {encoding}; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{what}, in line {line} of which byte {data[error.start]:#04x} is not UTF-8; save it "
            "as UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigurationError(f"{what}, which contains a NUL character; save it as UTF-8 text")
    return text


def read_if_there(path: Path) -> str:
    """Return the text of a file of settings; it is empty if there is no such file.

    Raises:
        ConfigurationError: As ``read_bytes`` and ``decode``.
    """
    if not path.exists():
        return ""
    what = f"settings are read from {path}"
    return decode(read_bytes(path, what), what)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the keys of a TOML file; none if there is no file.

    Raises:
        ConfigurationError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_if_there(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"settings are read from {path}, which is not valid TOML: {error}"
        ) from None
