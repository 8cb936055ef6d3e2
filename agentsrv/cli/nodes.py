"""``agentsrv nodes``: the servers that share a store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from agentsrv.cli.exits import say
from agentsrv.cli.streams import as_json
from agentsrv.errors import ConfigurationError
from agentsrv.resources import POSTGRES, need_postgres
from agentsrv.store.shared import Node

TITLES: Final = ("NODE", "ROLE", "AGE", "LEASE", "TASKS", "LAG")
LINE: Final = "{:32}  {:7}  {:>9}  {:>7}  {:>5}  {:>8}"


async def run(store: str, *, json: bool) -> None:
    """Print a line for each node, those that were lost in the last day included.

    Raises:
        ConfigurationError: The store is not one that servers share, or cannot be read.
    """
    nodes = await find(store)
    if not nodes:
        say("no server has used this store yet")
        return
    if not json:
        print(LINE.format(*TITLES))
    for node in nodes:
        print(as_json(node._asdict()) if json else LINE.format(*told(node)))


async def find(store: str) -> Sequence[Node]:
    """The nodes of a store, those that were lost in the last day included.

    The store is asked, no server: it may be one of them that does not answer.

    Raises:
        ConfigurationError: The store is not one that servers share, or cannot be read.
    """
    if not store.startswith(POSTGRES):
        raise ConfigurationError(
            f"store is {store!r}; expected postgresql://…, which servers may share"
        )
    need_postgres()
    from agentsrv.store.postgres.inspect import read_info

    return (await read_info(store)).nodes or ()


def told(node: Node) -> tuple[str, ...]:
    """What there is to say of a node, in the order of ``TITLES``."""
    return (
        node.name,
        node.role,
        f"{max(0.0, time.time() - node.started_at):.0f} s",
        f"{node.expires_in:.1f} s" if node.expires_in > 0 else "lost",
        str(node.running),
        f"{node.lag * 1000:.0f} ms",
    )
