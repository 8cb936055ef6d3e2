"""Every probe in a tiny form."""

from __future__ import annotations

from agentsrv.bench.sizes import Sizes

TINY = Sizes(
    rounds=2,
    widths={1: 3, 50: 60},
    commits=3,
    sleepy=1,
    cancels=2,
    running=(1, 3),
    connects=5,
    connections=(5,),
    running_tasks=5,
    finished_tasks=10,
    subscribers=(1, 3),
    subscribed=20,
    streams=3,
    streamed=20,
    stored=(0, 280),
    replayed=600,
    nodes=(1, 2),
    tails=5,
    watched=0.1,
)
