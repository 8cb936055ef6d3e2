"""How `build` connects the parts of a server; nothing is opened or started."""

from __future__ import annotations

import time

import pytest

from agentsrv.agents.agent import Agent
from agentsrv.agents.agent import StepContext as Context
from agentsrv.agents.registry import MAX_DESCRIBED, Registry
from agentsrv.engine.vault import Vault
from agentsrv.errors import ConfigurationError
from agentsrv.models.plan import Step
from agentsrv.server.auth.authenticator import Authenticator
from agentsrv.settings import Settings
from agentsrv.store.base import Store
from agentsrv.store.memory import MemoryStore
from agentsrv.wiring import Server, build
from tests.support.shared_memory import Place


async def idle(step: Step, ctx: Context) -> None:
    """An agent."""


def built(store: Store, registry: Registry | None = None, **settings: object) -> Server:
    """The parts of a server above ``store``."""
    return build(
        Settings(**settings),  # type: ignore[arg-type]
        registry or Registry(),
        Authenticator(None, None, time.time),
        store,
        node="one",
        vault=Vault(),
    )


async def test_a_store_of_its_own():
    """Commits go to the broker, and what other nodes would do concerns nobody."""
    server = built(MemoryStore())
    listener = server.store_listener
    assert server.cluster is None
    assert listener.committed == server.broker.publish
    assert listener.resumed == server.broker.revive
    assert listener.ready == server.worker.wake
    assert listener.broken == server.fail
    listener.news([])
    listener.inbox()


async def test_a_store_that_nodes_share():
    """Commits go through the follower, which puts them among those of other nodes."""
    server = built(Place().door("one"))
    listener, cluster = server.store_listener, server.cluster
    assert cluster is not None
    assert listener.committed == cluster.follower.publish
    assert listener.news == cluster.follower.notice
    assert listener.inbox == cluster.remote_commands.wake
    assert listener.leases_lost == server.worker.abandon


async def test_metrics_read_the_parts():
    """What is measured on demand is that of this server's parts."""
    measures = built(MemoryStore()).worker.measures
    assert (measures.running(), measures.connections(), measures.behind()) == (0, 0, 0)
    assert (measures.queued(), measures.waits(), measures.stalls()) == (0, False, 0)


async def test_agents_that_one_reply_cannot_describe_are_refused():
    """Before anything is opened."""
    registry = Registry()
    registry.add(Agent.of(idle, description="x" * MAX_DESCRIBED))
    with pytest.raises(ConfigurationError, match="bytes as JSON"):
        built(MemoryStore(), registry)


async def test_the_registry_gets_the_limit_of_plans():
    """It is a setting."""
    registry = Registry()
    built(MemoryStore(), registry, max_plan=1234)
    assert registry.max_plan == 1234
