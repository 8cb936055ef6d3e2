"""The ledger of fault tests: what was injected, what was checked, what was violated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

FIGURES = "AGENTSRV_FIGURES"  # where the ledger is also written, as JSON


@dataclass(frozen=True)
class Entry:
    """One fault test's figures."""

    promise: str
    faults: Mapping[str, float]
    checked: Mapping[str, float]
    violations: int


class Ledger:
    """Collects the figures of all fault tests; they are printed when the run ends."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

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
        self.entries.append(Entry(promise, dict(faults), dict(checked), violations))
        assert violations == 0, f"{promise}: {violations} violations; {faults}; {checked}"


LEDGER = Ledger()


@pytest.fixture
def ledger() -> Ledger:
    """Where a fault test puts its figures."""
    return LEDGER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ledger as one table."""
    if not LEDGER.entries:
        return
    terminalreporter.section("promises under faults")
    for entry in sorted(LEDGER.entries, key=lambda entry: int(entry.promise[1:].split(",")[0])):
        verdict = "held" if not entry.violations else f"VIOLATED {entry.violations} times"
        terminalreporter.write_line(
            f"{entry.promise:10} {verdict:10} {_told(entry.faults)} | {_told(entry.checked)}"
        )
    if FIGURES in os.environ:
        rows = [asdict(entry) for entry in LEDGER.entries]
        Path(os.environ[FIGURES]).write_text(json.dumps(rows, indent=2))


def _told(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())
