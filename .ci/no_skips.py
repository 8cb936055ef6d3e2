"""Pytest plugin (-p no_skips): a skipped test fails the run, unless its reason excuses it.

A reason that starts with ``platform:`` says that this kind of machine cannot run the test at
all. Any other skip is a program or a service that is not installed.
"""

from __future__ import annotations

import pytest

EXCUSE = "platform:"

_unexcused: list[tuple[str, str]] = []


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Remember ``report`` if it is a skip without an excuse."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    what = report.longrepr
    reason = what[2] if isinstance(what, tuple) else str(what)
    reason = reason.removeprefix("Skipped: ").strip()
    if not reason.startswith(EXCUSE):
        _unexcused.append((report.nodeid, reason))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Look at each phase of each test."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Look at modules that skip as a whole."""
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a run that is otherwise green into a failed one."""
    green = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if _unexcused and green:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the skips that made the run fail."""
    if _unexcused:
        terminalreporter.section("skipped without an excuse", red=True)
        for nodeid, reason in _unexcused:
            terminalreporter.line(f"{nodeid}: {reason}")
        terminalreporter.line(f"Install what is missing, or start the reason with {EXCUSE!r}.")
