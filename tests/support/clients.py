"""Fixtures for tests of clients, with a real server or without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentsrv.client import Options, Reconnect


@pytest.fixture
def hasty() -> Options:
    """Options of a client that connects again without waiting, for ever."""
    return Options(reconnect=Reconnect(base=0.0, attempts=10_000, first_attempts=10_000))


@pytest.fixture(autouse=True)
async def nothing_left_running() -> AsyncIterator[None]:
    """No test leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if "client" in task.get_name()}
    assert not left
