"""The ledger of fault tests, and three nodes behind nginx for those that need them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from examples.cluster.local import nginx
from tests.faults.nodes import NAMES, Cluster, made_cluster
from tests.support.figures import PROMISE
from tests.support.postgres import QUICK, postgres
from tests.support.programs import require


class Ledger:
    """Takes the figures of a fault test; they are printed when the run ends."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def record(
        self,
        promise: str,
        *,
        faults: Mapping[str, float],
        checked: Mapping[str, float],
        violations: int,
    ) -> None:
        """Keep the figures of one test, then fail it where a promise was violated.

        Args:
            promise: Which promise, as ``P1`` or ``P3, P4``.
            faults: What was injected, and how often.
            checked: What was looked at, and how often; also measured figures.
            violations: How often the promise did not hold.
        """
        entry = {"promise": promise, "faults": dict(faults), "checked": dict(checked)}
        self._record(PROMISE, {**entry, "violations": violations})
        assert violations == 0, f"{promise}: {violations} violations; {faults}; {checked}"


@pytest.fixture
def ledger(record_property) -> Ledger:
    """Where a fault test puts its figures."""
    return Ledger(record_property)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes, above a database of their own."""
    with postgres(*QUICK) as server:
        async with made_cluster(server, tmp_path) as cluster:
            cluster.start(*NAMES)
            yield cluster


@pytest.fixture
async def url(cluster: Cluster, tmp_path: Path) -> AsyncIterator[str]:
    """Where nginx listens for all of them."""
    require("nginx")
    async with nginx(tmp_path, [cluster.nodes[name].port for name in NAMES]) as port:
        yield f"ws://127.0.0.1:{port}"
