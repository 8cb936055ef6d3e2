"""The figures that tests print when a run ends; they come with the reports of the tests.

So they arrive from other processes too, where several run the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

PROMISE: Final = "promise"
"""The name of a test's property: what the ledger of fault tests took."""
BAD_INPUT: Final = "bad input"
"""The same for a line that the acceptance tests count."""
FIGURES: Final = "AGENTSRV_FIGURES"  # where the ledger is also written, as JSON


class Figures:
    """A plugin that collects them."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {PROMISE: [], BAD_INPUT: []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what one test has found."""
        if report.when == "call":
            for name, value in report.user_properties:
                if name in self._found:
                    self._found[name].append(value)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print what there is, a section for each kind."""
        promises, lines = self._found[PROMISE], self._found[BAD_INPUT]
        if promises:
            terminalreporter.section("promises under faults")
            for entry in sorted(promises, key=_number):
                terminalreporter.write_line(_told(entry))
            if FIGURES in os.environ:
                Path(os.environ[FIGURES]).write_text(json.dumps(promises, indent=2))
        if lines:
            terminalreporter.section("bad input")
            for line in lines:
                terminalreporter.write_line(line)


def _number(entry: Mapping[str, Any]) -> int:
    return int(entry["promise"][1:].split(",")[0])


def _told(entry: Mapping[str, Any]) -> str:
    violations = entry["violations"]
    verdict = "held" if not violations else f"VIOLATED {violations} times"
    faults, checked = (
        ", ".join(f"{name} {value:g}" for name, value in entry[kind].items())
        for kind in ("faults", "checked")
    )
    return f"{entry['promise']:10} {verdict:10} {faults} | {checked}"
