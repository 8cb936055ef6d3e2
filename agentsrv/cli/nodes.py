"""``agentsrv nodes``: the servers that share a store."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Final

import orjson

from agentsrv.app import POSTGRES
from agentsrv.cli.exits import say
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings
from agentsrv.store.shared import Node

HEADER: Final = f"{'NODE':32}  {'ROLE':7}  {'AGE':>9}  {'LEASE':>7}  {'TASKS':>5}  {'LAG':>8}"


async def run(settings: Settings, *, json: bool) -> None:
    """Print a line for each node, those that were lost in the last day included.

    The store is asked, no server: it may be one of them that does not answer.

    Raises:
        ConfigurationError: The store is not one that servers share, or cannot be read.
    """
    if not settings.store.startswith(POSTGRES):
        raise ConfigurationError(
            f"store is {settings.store!r}; expected postgresql://…, which servers may share"
        )
    if find_spec("asyncpg") is None:
        raise ConfigurationError("the store needs the extra: pip install agentsrv[postgres]")
    from agentsrv.store.postgres_look import look

    nodes = (await look(settings.store)).nodes
    if not nodes:
        say("no server has used this store yet")
        return
    if not json:
        print(HEADER)
    for node in nodes:
        print(orjson.dumps(node._asdict()).decode() if json else _line(node, time.time()))


def _line(node: Node, now: float) -> str:
    lease = f"{node.left:.1f} s" if node.left > 0 else "lost"
    age, lag = f"{max(0.0, now - node.started_at):.0f} s", f"{node.lag * 1000:.0f} ms"
    return f"{node.name:32}  {node.role:7}  {age:>9}  {lease:>7}  {node.running:>5}  {lag:>8}"
