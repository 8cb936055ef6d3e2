"""A server with tasks, for tests that run each command of the command line on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentsrv.client import SyncClient
from tests.support.listening import listening

APP = '''
from agentsrv import App

app = App()

@app.agent
async def quick(ctx):
    """Say hello."""
    return "hello"

@app.agent
async def careful(ctx):
    """Ask first."""
    return str(await ctx.confirm("Shall I?"))
'''


@contextmanager
def serving_places(folder: Path) -> Iterator[dict[str, str]]:
    """Serve ``APP`` from ``folder``; yields what command lines name in braces.

    ``url``, ``pending`` and ``done`` (tasks), ``question`` (an open one), ``store`` (the SQLite
    file) and ``texts`` (a folder).
    """
    (folder / "quick.py").write_text(APP)
    texts = folder / "texts"
    texts.mkdir()
    (texts / "text.md").write_text("# Threads\n\nA thread shares its memory with the others.\n")
    store = folder / "tasks.db"
    with (
        listening(folder, "quick:app", f"--store=sqlite:///{store}") as url,
        SyncClient(url) as client,
    ):
        pending = client.create("hello", agent="quick")
        done = client.start("hello", agent="quick")
        assert done.result().final_output
        asking = client.start("hello", agent="careful")
        asked = next(record for record in asking.events() if record.event_type == "input_required")
        yield {
            "url": url,
            "pending": pending.id,
            "done": done.id,
            "question": str(asked.data["input_id"]),
            "store": str(store),
            "texts": str(texts),
        }
