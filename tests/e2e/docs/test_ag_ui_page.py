"""docs/reference/ag-ui.md against the code; tests of interoperation send its frames."""

from __future__ import annotations

import re

from agentsrv.adapters.ag_ui.events import _EXPRESSED
from agentsrv.adapters.ag_ui.messages import OPTIONS, AguiSession, CancelRun, RunAgentInput
from agentsrv.models.events import EVENTS
from tests.e2e.docs.pages import DOCS, of

PAGE = (DOCS / "reference" / "ag-ui.md").read_text(encoding="utf-8")
SENT = PAGE.partition("## What the front end sends")[2].partition("\n## ")[0]
COMES = PAGE.partition("## What the front end receives")[2].partition("\n## ")[0]


def test_every_field_that_is_read_is_told():
    """By the name that AG-UI has for it."""
    read = {field.alias or name for name, field in RunAgentInput.model_fields.items()}
    rows = re.findall(r"^\| (`.*?`) \|", SENT, re.MULTILINE)
    told = {name.partition(".")[0] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert read <= told
    (line,) = re.findall(r"^\| `forwardedProps.agentsrv` .*", SENT, re.MULTILINE)
    assert re.findall(r"`(\w+)`", line.partition("): ")[2]) == list(OPTIONS)


def test_the_commands_of_the_page_are_taken():
    """With their fields."""
    frames = re.findall(r"^\| `(\{.*?\})` \|", SENT, re.MULTILINE)
    cancel, auth = (AguiSession().receive(frame) for frame in frames)
    assert isinstance(cancel, CancelRun)
    assert getattr(auth, "command", None) == "auth"


def test_the_types_of_events_are_agentsrv_s_or_ag_ui_s():
    """Whatever the page names in capitals or behind our name."""
    assert set(EVENTS) >= _EXPRESSED
    ours = set(re.findall(r"`agentsrv\.(\w+)`", COMES)) - {"task_id"}
    assert ours <= {*EVENTS, "error", "reply"}


def test_the_example_is_imported_as_the_page_says():
    """The transport is where the page takes it from."""
    (program,) = of("howto/ag-ui.md", "js")
    assert './websocket-agent.mjs"' in program
    assert (DOCS.parent / "examples" / "ag-ui" / "websocket-agent.mjs").is_file()
