"""``agentsrv top``: the caller's tasks on a server, live."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Never

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentsrv.cli.connection import watched
from agentsrv.cli.live.console import console_of
from agentsrv.cli.live.tree import MARKS, WAITING, seconds
from agentsrv.cli.render import shorten, status_word
from agentsrv.client import Client, TaskSnapshot, TaskSummary
from agentsrv.errors import NotFoundError
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.telemetry.safe_text import visible

if TYPE_CHECKING:
    from agentsrv.store.shared import Node

try:
    import termios
    import tty
except ImportError:  # Windows
    _HAS_KEYS = False
else:
    _HAS_KEYS = True

INTERVAL: Final = 1.0  # seconds between two looks
WINDOW: Final = 10  # looks over which rates are told
DETAILED: Final = 10  # active tasks whose steps are looked at
NARROW: Final = 70  # columns
HEAD: Final = 5  # lines above the tasks, and the last one of the screen
ACTIVE: Final = tuple(status for status in TaskStatus if not status.is_terminal)
ENDED: Final = tuple(status for status in TaskStatus if status.is_terminal)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the server found."""

    at: datetime
    totals: Mapping[TaskStatus, int]
    rows: Sequence[TaskSummary]
    """Those that are not over, then those that are, the newest first of each."""
    details: Mapping[str, TaskSnapshot]
    """All about the first active ones, by id."""
    nodes: Sequence[Node] = ()
    """The servers that share the store, where that was looked at, too."""


async def look(client: Client, store: str | None, rows: int, at: datetime) -> Look:
    """Look at up to ``rows`` lines of nodes and tasks, and count all tasks."""
    servers: Sequence[Node] = ()
    if store is not None:
        from agentsrv.cli import nodes

        servers = await nodes.find(store)
    if servers:
        rows = max(rows - len(servers) - 2, 1)
    pages = await asyncio.gather(
        *(client.list(status=status, limit=rows) for status in (*ACTIVE, *ENDED))
    )
    totals = {status: page.total for status, page in zip((*ACTIVE, *ENDED), pages, strict=True)}
    found = [row for page in pages for row in page.tasks]
    found.sort(key=lambda row: row.created_at, reverse=True)
    found.sort(key=lambda row: row.status in ENDED)
    shown = found[:rows]
    active = [client.task(row.task_id) for row in shown if row.status not in ENDED][:DETAILED]
    snapshots = await asyncio.gather(*(task.status() for task in active), return_exceptions=True)
    details: dict[str, TaskSnapshot] = {}
    for snapshot in snapshots:
        if isinstance(snapshot, NotFoundError):
            continue  # it was removed meanwhile
        if isinstance(snapshot, BaseException):
            raise snapshot
        details[snapshot.task_id] = snapshot
    return Look(at, totals, shown, details, servers)


def draw(name: str, looks: Sequence[Look], width: int = 80) -> RenderableType:
    """The screen for the last of ``looks``; the others are there for the rates.

    Where it is less than ``NARROW`` columns wide, ids are shortened and two columns are left out.
    """
    is_narrow = width < NARROW
    last = looks[-1]
    counts = Text(no_wrap=True, overflow="ellipsis")
    for status, total in last.totals.items():
        if not total:
            continue
        mark, style = _mark(status)
        counts.append(f"{mark} ", style).append(f"{total} {_words(status)}  ")
    table = Table(box=None, pad_edge=False, expand=True)
    for title, options in (
        ("TASK", {"no_wrap": True}),
        ("STATUS", {"no_wrap": True}),
        ("AGE", {"no_wrap": True, "justify": "right"}),
        ("STEPS", {"no_wrap": True}),
        ("WHAT", {"no_wrap": True, "ratio": 1}),
    ):
        if is_narrow and title in ("AGE", "STEPS"):
            continue
        table.add_column(title, overflow="ellipsis", header_style="dim", **options)
    for row in last.rows:
        mark, style = _mark(row.status)
        age = (last.at - datetime.fromisoformat(row.created_at)).total_seconds()
        state = Text.assemble((mark, style), f" {_words(row.status)}")
        what = Text(shorten(row.user_input))
        if is_narrow:
            table.add_row(visible(row.task_id[:8]), state, what)
            continue
        steps = _steps(last.details.get(row.task_id))
        table.add_row(visible(row.task_id), state, seconds(max(age, 0.0)), steps, what)
    head = Text(f"{name}  {_rates(looks)}", no_wrap=True, overflow="ellipsis")
    return Group(head, counts, Text(), *_servers(last.nodes), table)


async def show(client: Client, url: str, store: str | None = None) -> None:
    """Look and draw again and again, until ``q`` is typed; without a terminal once."""
    server = client.hello.server
    name = visible(f"{server.name} {server.version} at {url}")
    console = console_of(sys.stdout)
    is_live = sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal
    if not (_HAS_KEYS and is_live):
        found = await look(client, store, console.height, datetime.now(UTC))
        console.print(draw(name, [found], console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
        watching = asyncio.create_task(_watch(client, store, name, live), name="agentsrv-top")
        try:
            with _keys(dict.fromkeys((b"q", b"Q"), watching.cancel)):
                await asyncio.wait({watching})
        finally:
            watching.cancel()
    if not watching.cancelled():
        watching.result()


async def _watch(client: Client, store: str | None, name: str, live: Live) -> Never:
    looks: deque[Look] = deque(maxlen=WINDOW + 1)

    def show_trouble(_: str) -> None:
        """Say on the last screen that it is not current any more, or draw it as it was."""
        title = f"{name}  {watch.trouble}; trying again" if watch.trouble else name
        if looks:
            screen = draw(visible(title), looks, live.console.width)
            live.update(screen, refresh=True)

    async with watched(client, show_trouble) as watch:
        while True:
            rows = max(live.console.height - HEAD, 1)
            looks.append(await look(client, store, rows, datetime.now(UTC)))
            screen = draw(f"{name}  (q quits)", looks, live.console.width)
            live.update(screen, refresh=True)
            await asyncio.sleep(INTERVAL)


@contextmanager
def _keys(actions: Mapping[bytes, Callable[[], Any]]) -> Iterator[None]:
    """Take single keys within the block; the terminal is as before behind it."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def take() -> None:
        actions.get(os.read(descriptor, 1), lambda: None)()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, take)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _servers(found: Sequence[Node]) -> Iterator[RenderableType]:
    """The servers' own table, and an empty line."""
    if found:
        from agentsrv.cli import nodes

        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in nodes.TITLES:
            table.add_column(title, no_wrap=True, justify="left" if title == "NODE" else "right")
        for node in found:
            table.add_row(
                *map(visible, nodes.told(node)), style=None if node.expires_in > 0 else "dim"
            )
        yield table
        yield Text()


def _rates(looks: Sequence[Look]) -> str:
    first, last = looks[0], looks[-1]
    passed = (last.at - first.at).total_seconds()
    if passed <= 0:
        return ""
    created = (sum(last.totals.values()) - sum(first.totals.values())) / passed
    ended = sum(last.totals[status] - first.totals[status] for status in ENDED) / passed
    return f"{created:.1f} created/s  {ended:.1f} ended/s"


def _steps(snapshot: TaskSnapshot | None) -> str:
    if snapshot is None or not snapshot.steps:
        return ""
    steps = snapshot.steps
    done = sum(step.status == StepStatus.COMPLETED for step in steps)
    busy = [
        step.agent
        for step in steps
        if step.status in (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.INPUT_REQUIRED)
    ]
    return visible(" ".join([f"{done}/{len(steps)}", *busy[:1]]))


def _mark(status: str) -> tuple[str, str]:
    mark, _, style = MARKS.get(status, WAITING)
    return mark, style


def _words(status: str) -> str:
    return visible(status_word(status))
