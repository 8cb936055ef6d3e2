"""Applies the limits of principals across all nodes that share a store, approximately."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from agentsrv.delivery.broker import EventBroker
from agentsrv.errors import AgentsrvError
from agentsrv.models.usage import Use
from agentsrv.server.limits import ConnectionLimiter
from agentsrv.settings import Settings
from agentsrv.store.shared import SWEEP_INTERVAL, SharedStore

REPORT_THRESHOLD: Final = 0.05  # of a limit: smaller usage is not published, as most usage is small

_log = logging.getLogger("agentsrv.listener")


class ClusterUsage:
    """Publishes the principals' usage of this node, and applies that of the other nodes here.

    Every ``SWEEP_INTERVAL`` seconds each node publishes its usage in the store and reads that of
    the others. Decisions use the last known values and wait for no node. So within two sweeps,
    several nodes together can exceed a limit by as much as each alone permits, and usage below
    ``REPORT_THRESHOLD`` is never counted elsewhere. While the store is unreachable, each node
    applies its limits to its own usage only.
    """

    def __init__(
        self,
        store: SharedStore,
        limiter: ConnectionLimiter,
        broker: EventBroker,
        settings: Settings,
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._broker = broker
        limits = (
            settings.principal_connections,
            settings.principal_subscriptions,
            settings.command_rate,
        )
        self._thresholds = [inf if limit is None else REPORT_THRESHOLD * limit for limit in limits]

    async def run(self) -> None:
        """Publish and apply usage until cancelled."""
        while True:
            try:
                published = await self._store.share(self._uses())
            except AgentsrvError as error:
                _log.debug("the usage on other nodes is unknown: %s", error)
                published = ()
            self._apply(published)
            await asyncio.sleep(SWEEP_INTERVAL)

    def _uses(self) -> Mapping[str, Use]:
        """Return the usage of principals that exceeds the threshold of any limit."""
        connections, subscriptions, rate = self._thresholds
        return {
            principal: use
            for principal, use in self._limiter.principals.usage(self._broker.counts)
            if use.connections >= connections
            or use.subscriptions >= subscriptions
            or use.rate >= rate
        }

    def _apply(self, published: Sequence[Mapping[str, Use]]) -> None:
        elsewhere: dict[str, list[Use]] = {}
        for uses in published:
            for principal, use in uses.items():
                elsewhere.setdefault(principal, []).append(use)
        self._limiter.principals.set_remote_usage(elsewhere)
        self._broker.elsewhere = {
            principal: sum(use.subscriptions for use in uses)
            for principal, uses in elsewhere.items()
        }
