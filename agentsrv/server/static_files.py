"""Pages that do not change while a server runs, in memory, plain and compressed.

They are built at the first request for one, because building takes a tenth of the server's start.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

import orjson
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from agentsrv.threads import in_thread

SCHEMA: Final = "/asyncapi.json"
DOCS: Final = "/docs"
CONSOLE: Final = "/console/"
CONSOLE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Content-Security-Policy: files and connections of this server only; no text becomes markup."""
NOT_MODIFIED_HEADERS: Final = ("Cache-Control", "ETag", "Vary")
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class StaticFile:
    """A body with its type, plain and compressed."""

    def __init__(self, content_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._headers = {
            "Content-Type": content_type,
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
            "ETag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            **headers,
        }
        self._body = body
        self._gzipped = gzip.compress(body, mtime=0)

    def respond(self, request: Request) -> Response:
        """Return the response to a GET; the caller removes the body for a HEAD.

        A request with the file's ETag gets status 304.
        """
        if self._headers["ETag"] in ",".join(request.headers.get_all("If-None-Match")):
            status = HTTPStatus.NOT_MODIFIED
            kept = {n: value for n, value in self._headers.items() if n in NOT_MODIFIED_HEADERS}
            return Response(status.value, status.phrase, Headers(kept | _fresh()), b"")
        is_gzipped = _accepts_gzip(request)
        body = self._gzipped if is_gzipped else self._body
        headers = Headers(self._headers | _fresh())
        headers["Content-Length"] = str(len(body))
        if is_gzipped:
            headers["Content-Encoding"] = "gzip"
        status = HTTPStatus.OK
        return Response(status.value, status.phrase, headers, body)


class StaticPages:
    """The static files of a server with this version."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._files: Mapping[str, StaticFile] | None = None

    async def find(self, path: str) -> StaticFile | None:
        """Return the file at ``path``, or ``None``."""
        if self._files is None:
            self._files = await in_thread(build, self._version)
        return self._files.get(path)


@cache
def build(version: str) -> Mapping[str, StaticFile]:
    """Return the static files of a server with this version by path; takes about 50 ms."""
    from agentsrv.protocol import schema  # noqa: PLC0415 - needed by the pages only
    from agentsrv.server import docs  # noqa: PLC0415

    document = schema.document(version)
    policy = {"Content-Security-Policy": docs.POLICY}
    return {
        SCHEMA: StaticFile("application/json", orjson.dumps(document), {}),
        DOCS: StaticFile(TYPES[".html"], docs.render(document).encode(), policy),
        **dict(_console()),
    }


def _console() -> Iterator[tuple[str, StaticFile]]:
    """Yield the console's files with their paths; its page is at the root."""
    policy = {"Content-Security-Policy": CONSOLE_POLICY}
    for file in files("agentsrv").joinpath("console").iterdir():
        content_type = TYPES.get(PurePosixPath(file.name).suffix)
        if content_type is not None:
            path = "/" if file.name == "index.html" else f"{CONSOLE}{file.name}"
            yield path, StaticFile(content_type, file.read_bytes(), policy)


def _fresh() -> dict[str, str]:
    return {"Date": formatdate(usegmt=True), "Connection": "close"}


def _accepts_gzip(request: Request) -> bool:
    accepted = ",".join(request.headers.get_all("Accept-Encoding")).lower()
    for entry in accepted.split(","):
        coding, _, weight = entry.replace(" ", "").partition(";")
        if coding == "gzip":
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
