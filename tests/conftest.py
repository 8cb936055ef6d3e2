"""What a run as a whole needs."""

from __future__ import annotations

import pytest

from tests.figures import Figures


def pytest_configure(config: pytest.Config) -> None:
    """Let the figures of tests be printed, by the process that reports."""
    config.pluginmanager.register(Figures())
