"""What a run as a whole needs."""

from __future__ import annotations

import os

import pytest

from tests.figures import Figures


def pytest_configure(config: pytest.Config) -> None:
    """Let the figures of tests be printed, by the process that reports."""
    config.pluginmanager.register(Figures())
    if hasattr(config, "workerinput"):
        # Readline, which pytest imports, leaves the size of the terminal to the processes that
        # pytest starts; the terminals that tests open have sizes of their own.
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)
