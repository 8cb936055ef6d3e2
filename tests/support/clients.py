"""Fixtures for tests of clients, with a real server or without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentsrv.client import Client, OnInput, Options, Reconnect, TaskResult
from agentsrv.client.task_handle import OnEvent


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


async def run_task(
    client: Client,
    text: str,
    *,
    on_event: OnEvent | None = None,
    on_input: OnInput | None = None,
    **options: Any,
) -> TaskResult:
    """Start a task with ``options``, and wait for its result."""
    task = await client.start(text, **options)
    return await task.result(on_event=on_event, on_input=on_input)
