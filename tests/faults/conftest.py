"""The ledger of fault tests: what was injected, what was checked, what was violated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from tests.figures import PROMISE


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
