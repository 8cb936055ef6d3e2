"""Pages that never change while a server runs: prepared once, compressed where that is taken."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from typing import Final

import orjson
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from agentsrv.protocol import asyncapi
from agentsrv.server import docs

SCHEMA: Final = "/asyncapi.json"
DOCS: Final = "/docs"


class Page:
    """A body with its type, as it is and compressed."""

    def __init__(self, content_type: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._headers = {
            "Content-Type": content_type,
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            **headers,
        }
        self._body = body
        self._gzipped = gzip.compress(body, mtime=0)

    def respond(self, request: Request) -> Response:
        """The answer to a GET; that to a HEAD is the same without the body."""
        is_gzipped = _takes_gzip(request)
        body = self._gzipped if is_gzipped else self._body
        headers = Headers(self._headers)
        headers["Date"] = formatdate(usegmt=True)
        headers["Connection"] = "close"
        headers["Content-Length"] = str(len(body))
        if is_gzipped:
            headers["Content-Encoding"] = "gzip"
        status = HTTPStatus.OK
        return Response(status.value, status.phrase, headers, body)


@cache
def prepare(version: str) -> Mapping[str, Page]:
    """The pages of a server of that version by their paths; takes some 50 ms."""
    schema = asyncapi.document(version)
    policy = {"Content-Security-Policy": docs.POLICY}
    return {
        SCHEMA: Page("application/json", orjson.dumps(schema), {}),
        DOCS: Page("text/html; charset=utf-8", docs.render(schema).encode(), policy),
    }


def _takes_gzip(request: Request) -> bool:
    accepted = ",".join(request.headers.get_all("Accept-Encoding")).lower()
    for entry in accepted.split(","):
        coding, _, weight = entry.replace(" ", "").partition(";")
        if coding == "gzip":
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
