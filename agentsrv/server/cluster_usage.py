"""Neighbours: the limits of a principal hold over all nodes that share a store, nearly."""

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
from agentsrv.store.shared import SWEEP, SharedStore

WORTH: Final = 0.05  # of a limit: who uses less of each is not told of, as most use little

_log = logging.getLogger("agentsrv.listener")


class ClusterUsage:
    """Tells other nodes what principals use here, and has what they use there counted here.

    Each node tells all others every ``SWEEP`` seconds. Nobody is asked while something is decided,
    so what is used at two nodes within the same two sweeps may be more than the limit, by as much
    as each node lets through alone; and what a node does not tell, because it is not ``WORTH`` it,
    is not counted. While the store is away each node's limits are its own.
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
        self._least = [inf if limit is None else WORTH * limit for limit in limits]

    async def run(self) -> None:
        """Tell and learn until cancelled."""
        while True:
            try:
                told = await self._store.share(self._uses())
            except AgentsrvError as error:
                _log.debug("what other nodes' clients use is not known: %s", error)
                told = ()
            self._learn(told)
            await asyncio.sleep(SWEEP)

    def _uses(self) -> Mapping[str, Use]:
        """Who uses so much here that others should know."""
        connections, subscriptions, rate = self._least
        return {
            principal: use
            for principal, use in self._limiter.principals.measure(self._broker.counts)
            if use.connections >= connections
            or use.subscriptions >= subscriptions
            or use.rate >= rate
        }

    def _learn(self, told: Sequence[Mapping[str, Use]]) -> None:
        elsewhere: dict[str, list[Use]] = {}
        for uses in told:
            for principal, use in uses.items():
                elsewhere.setdefault(principal, []).append(use)
        self._limiter.principals.learn(elsewhere)
        self._broker.elsewhere = {
            principal: sum(use.subscriptions for use in uses)
            for principal, uses in elsewhere.items()
        }
