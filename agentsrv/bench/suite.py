"""All probes in their order, and the report as a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import orjson

from agentsrv.bench import capacity, history, latency, machine, scaling
from agentsrv.bench.figures import Report
from agentsrv.bench.sizes import Bench, Skipped
from agentsrv.errors import ConfigurationError

Probe = Callable[[Bench], Awaitable[None]]

SHARED: Final[Mapping[str, Probe]] = {
    "processes": scaling.processes,
    "nodes": scaling.nodes,
    "tails": scaling.tails,
}
"""Those that need a store that servers share."""
PROBES: Final[Mapping[str, Probe]] = {
    "throughput": latency.throughput,
    "commit": latency.commit,
    "sleepers": latency.sleepers,
    "cancel": latency.cancel,
    "streams": capacity.streams,
    "subscribers": capacity.subscribers,
    "connects": capacity.connects,
    "idle": capacity.idle,
    "tasks": capacity.tasks,
    "stored": history.stored,
    "replay": history.replay,
    **SHARED,
}


async def measure(
    bench: Bench,
    names: Sequence[str] = (),
    on_progress: Callable[[float, float, str], None] | None = None,
) -> None:
    """Run the probes of these names, or all of them, into the report.

    ``on_progress`` is told before each how many are behind it, of how many, and its name.

    Raises:
        ConfigurationError: There is no probe of a name.
        ServerUnavailableError: Nobody answers.
        Refused: The server refused what a probe asked for, or went away.
    """
    for name in names:
        if name not in PROBES:
            raise ConfigurationError(f"there is no probe {name!r}; there are {', '.join(PROBES)}")
    chosen = names or list(PROBES)
    for number, name in enumerate(chosen):
        if on_progress is not None:
            on_progress(number, len(chosen), name)
        probe = PROBES[name]
        bench.report.title(f"{name}: {(probe.__doc__ or '').partition(chr(10))[0]}")
        try:
            await probe(bench)
        except Skipped as reason:
            bench.report.note(f"{name}: {reason.message}")


def write(report: Report, path: Path) -> None:
    """Write the report as JSON, with what is known of the machine; a line for each figure.

    Raises:
        OSError: The file cannot be written.
    """
    head = orjson.dumps({"machine": machine.describe(), "notes": report.notes})
    lines = b",\n".join(orjson.dumps(figure.as_json()) for figure in report.figures)
    path.write_bytes(head.removesuffix(b"}") + b',"figures":[\n' + lines + b"\n]}\n")
