"""Pages that never change while a server runs: made once, compressed where that is taken.

They are made when the first one is requested, because that takes as long as a tenth of the start.
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
"""The Content-Security-Policy: the console's own files and server; no text becomes markup."""
KEPT: Final = ("Cache-Control", "ETag", "Vary")  # headers of an answer without the page
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Page:
    """A body with its type, as it is and compressed."""

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
        """The answer to a GET; that to a HEAD is the same without the body.

        Who names the page's ETag has it already, and is told so.
        """
        if self._headers["ETag"] in ",".join(request.headers.get_all("If-None-Match")):
            status = HTTPStatus.NOT_MODIFIED
            kept = {name: value for name, value in self._headers.items() if name in KEPT}
            return Response(status.value, status.phrase, Headers(kept | _fresh()), b"")
        is_gzipped = _takes_gzip(request)
        body = self._gzipped if is_gzipped else self._body
        headers = Headers(self._headers | _fresh())
        headers["Content-Length"] = str(len(body))
        if is_gzipped:
            headers["Content-Encoding"] = "gzip"
        status = HTTPStatus.OK
        return Response(status.value, status.phrase, headers, body)


class StaticPages:
    """The pages of a server of that version."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._made: Mapping[str, Page] | None = None

    async def find(self, path: str) -> Page | None:
        """The page at ``path``, if there is one."""
        if self._made is None:
            self._made = await in_thread(make, self._version)
        return self._made.get(path)


@cache
def make(version: str) -> Mapping[str, Page]:
    """The pages of a server of that version by their paths; takes some 50 ms."""
    from agentsrv.protocol import schema  # noqa: PLC0415 - for pages only, as the next one
    from agentsrv.server import docs  # noqa: PLC0415

    document = schema.document(version)
    policy = {"Content-Security-Policy": docs.POLICY}
    return {
        SCHEMA: Page("application/json", orjson.dumps(document), {}),
        DOCS: Page(TYPES[".html"], docs.render(document).encode(), policy),
        **dict(_console()),
    }


def _console() -> Iterator[tuple[str, Page]]:
    """The console's files, by their paths; its page is at the root."""
    policy = {"Content-Security-Policy": CONSOLE_POLICY}
    for file in files("agentsrv").joinpath("console").iterdir():
        content_type = TYPES.get(PurePosixPath(file.name).suffix)
        if content_type is not None:
            path = "/" if file.name == "index.html" else f"{CONSOLE}{file.name}"
            yield path, Page(content_type, file.read_bytes(), policy)


def _fresh() -> dict[str, str]:
    return {"Date": formatdate(usegmt=True), "Connection": "close"}


def _takes_gzip(request: Request) -> bool:
    accepted = ",".join(request.headers.get_all("Accept-Encoding")).lower()
    for entry in accepted.split(","):
        coding, _, weight = entry.replace(" ", "").partition(";")
        if coding == "gzip":
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
