"""A listener of a store, of which a test gives or replaces the methods it is interested in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentsrv.store.base import SILENT, Commit, LogHead


@dataclass(slots=True)
class Heard:
    """A ``StoreListener``; what a test does not give does nothing."""

    committed: Callable[[Commit], Any] = SILENT.committed
    ready: Callable[[], Any] = SILENT.ready
    durable: Callable[[float], Any] = SILENT.durable
    resumed: Callable[[], Any] = SILENT.resumed
    broken: Callable[[BaseException], Any] = SILENT.broken
    news: Callable[[Sequence[LogHead]], Any] = SILENT.news
    inbox: Callable[[], Any] = SILENT.inbox
    leases_lost: Callable[[], Any] = SILENT.leases_lost


def heard(store: Any) -> Heard:
    """The listener with which a store was opened, to replace its methods."""
    listener = store._listener
    assert isinstance(listener, Heard), "open the store with Heard()"
    return listener
