"""The page of the protocol: that it tells everything, and that a browser may run nothing of it."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser

from agentsrv import errors
from agentsrv.models.commands import COMMANDS
from agentsrv.models.events import EVENTS
from agentsrv.protocol.close_codes import CLOSES
from agentsrv.protocol.frame_types import FRAMES
from agentsrv.protocol.schema import document
from agentsrv.server.docs import render
from tests.integration.server.test_static_files import request
from tests.support.talk import serving

DOCUMENT = document("1.2.3")
VOID = {"meta"}


class Outline(HTMLParser):
    """What is in a page: its elements, their ids, the links, the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        """Note the element, and that it is open."""
        given = dict(attrs)
        self.tags.add(tag)
        self.names.update(given)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag not in VOID:
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        """Elements are closed in the order of their opening."""
        assert self._open.pop() == tag

    def handle_data(self, data):
        """Text belongs to all elements around it."""
        for tag in set(self._open):
            self.texts[tag][-1] += data


def test_every_message_and_every_code_has_its_place():
    """With an anchor; every link leads somewhere, and no two places share a name."""
    outline = Outline(render(DOCUMENT))
    assert {*COMMANDS, *EVENTS, *FRAMES, "errors", "close-codes", "Step"} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    inner = {link.removeprefix("#") for link in outline.links if link.startswith("#")}
    assert inner <= set(outline.ids)
    assert {*COMMANDS, *EVENTS, *FRAMES, "errors", "close-codes"} <= inner
    assert {link for link in outline.links if not link.startswith("#")} == {"/asyncapi.json"}
    heads = set(outline.texts["th"])
    assert {*errors.BY_CODE, *(str(code) for code in CLOSES)} <= heads
    fields = {name for model in COMMANDS.values() for name in model.model_fields}
    assert fields - {"command"} <= heads
    assert {name for event in EVENTS.values() for name in event.__annotations__} <= heads


def test_every_example_stands_there_as_json():
    """They are those of the document."""
    shown = [json.loads(text) for text in Outline(render(DOCUMENT)).texts["pre"]]
    messages = DOCUMENT["components"]["messages"]
    for name, message in messages.items():
        if name != "error":
            assert message["examples"][0]["payload"] in shown, name


def test_nothing_in_it_runs_and_nothing_is_loaded():
    """No script, no style but its own, and texts of the document are no markup."""
    markup = "<script>alert(1)</script>"
    text = json.dumps(DOCUMENT).replace("1.2.3", markup).replace("The work to do", markup)
    hostile = json.loads(text)
    outline = Outline(render(hostile))
    assert not outline.tags & {"script", "img", "link", "iframe", "form"}
    assert not {name for name in outline.names if name.startswith("on") or name == "style"}
    assert any(markup in text for text in outline.texts["p"])
    assert any(markup in text for text in outline.texts["td"])


async def test_it_is_served_with_a_policy_that_allows_its_style_only():
    """The hash in the policy is that of what stands in the page."""
    async with serving() as server:
        status, headers, body = await request(server, "GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    (style,) = Outline(body.decode()).texts["style"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == f"'sha256-{digest}'"
    assert "script-src" not in policy
