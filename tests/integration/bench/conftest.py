"""A PostgreSQL that the measurements share; each server has a schema of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import QUICK, postgres


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A database with nothing in it."""
    with postgres(*QUICK) as server:
        yield server.dsn()
