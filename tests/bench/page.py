"""``python -m tests.bench.page``: the figures of docs/explanation/performance.json, as tables and plots.

What stands between the marks in docs/explanation/performance.md is written anew, and so are the SVG files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from agentsrv.bench.app import EVENTS
from agentsrv.bench.capacity import ACTIVE
from agentsrv.bench.figures import Figure
from agentsrv.bench.suite import PROBES
from tests.bench.plots import Bars
from tests.bench.ratios import NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation"
FIGURES = DOCS / "performance.json"
PAGE = DOCS / "performance.md"
CANCELS = {
    "tasks": "asyncio tasks, nothing stored",
    "memory": "agentsrv, memory",
    "sqlite": "agentsrv, SQLite",
    "postgres": "agentsrv, PostgreSQL",
}
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


class Found:
    """The figures of a report, by their keys."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.machine: dict[str, Any] = report["machine"]
        self.notes: list[str] = report["notes"]
        self.figures = {each["key"]: Figure.of_json(each) for each in report["figures"]}

    def __getitem__(self, key: str) -> Figure | None:
        """The figure, if it was measured."""
        return self.figures.get(key)

    def told(self, key: str) -> str:
        """The figure as text, a dash if it was not measured."""
        figure = self[key]
        return "–" if figure is None else figure.told()

    def sizes(self, prefix: str, suffix: str = "") -> list[int]:
        """The numbers that stand in the keys between the two, in their order."""
        parts = [
            key.removeprefix(prefix).removesuffix(suffix).partition(".")[0]
            for key in self.figures
            if key.startswith(prefix) and key.endswith(suffix)
        ]
        return [int(part) for part in dict.fromkeys(parts) if part.isdigit()]


def main(figures: Path = FIGURES, page: Path = PAGE) -> None:
    """Write the page's figures and its plots."""
    found = Found(orjson.loads(figures.read_bytes()))
    for name, plot in plots(found).items():
        (page.parent / f"performance-{name}.svg").write_text(plot.draw(), encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    told = "\n\n".join(sections(found))
    page.write_text(f"{before}{BEGIN}\n{told}\n\n{END}{after}", encoding="utf-8")


def sections(found: Found) -> Iterator[str]:
    """The parts between the marks."""
    machine, charts = found.machine, plots(found)
    yield (
        f"Measured on {machine['cores']} cores ({machine['machine']}, {machine['system']}), "
        f"{machine['implementation']} {machine['python']}, SQLite {machine['sqlite']}, "
        f"uvloop {machine.get('uvloop')}. Each figure is the median of its rounds, with the lowest "
        "and the highest in brackets."
    )
    yield "### Compared with other servers"
    yield throughput(found)
    yield f"![{charts['ratio'].title}](performance-ratio.svg)"
    yield cancels(found)
    yield idle(found)
    yield writes(found)
    for probe, function in PROBES.items():
        rows = [
            (figure.label, figure.told())
            for key, figure in found.figures.items()
            if key.startswith(f"{probe}.")
        ]
        if rows:
            yield f"### {probe}\n\n{(function.__doc__ or '').partition(chr(10))[0]}"
            yield table(("figure", "measured"), rows)
        if rows and probe in charts:
            yield f"![{charts[probe].title}](performance-{probe}.svg)"
    if found.notes:
        yield "### Notes"
        yield "\n".join(f"- {note}" for note in found.notes)


def throughput(found: Found) -> str:
    """Tasks per second of all servers."""
    rows = [
        (
            name,
            str(width),
            found.told(f"yardstick.tasks.{width}.{name}"),
            found.told(f"yardstick.ratio.{width}.{name}"),
            found.told(f"yardstick.last.{width}.{name}.p50"),
            found.told(f"yardstick.last.{width}.{name}.p99"),
            found.told(f"yardstick.client.{width}.{name}"),
            found.told(f"yardstick.cost.{width}.{name}"),
        )
        for width in found.sizes("yardstick.tasks.")
        for name in NAMES
        if found[f"yardstick.tasks.{width}.{name}"] is not None
    ]
    head = (
        *("server", "at a time", "tasks/s", "over bare", "last event p50, ms", "p99, ms"),
        *("client's share of a core, %", "server's µs for each task"),
    )
    return table(head, rows)


def cancels(found: Found) -> str:
    """Cancels of agentsrv and of asyncio tasks."""
    rows = [
        (
            name,
            str(running),
            found.told(f"yardstick.cancel.{running}.{name}.p50"),
            found.told(f"yardstick.cancel.{running}.{name}.p99"),
            found.told(f"yardstick.cancel.{running}.{name}.ratio50"),
            found.told(f"yardstick.cancel.{running}.{name}.ratio99"),
        )
        for running in found.sizes("yardstick.cancel.", ".tasks.p50")
        for name in CANCELS
        if found[f"yardstick.cancel.{running}.{name}.p50"] is not None
    ]
    head = ("server", "running", "cancel p50, ms", "p99, ms", "p50 over tasks", "p99 over tasks")
    return table(head, rows)


def idle(found: Found) -> str:
    """Memory of idle connections."""
    rows = [
        (name, str(count), found.told(f"yardstick.idle.{count}.{name}"))
        for count in found.sizes("yardstick.idle.", ".bare")
        for name in ("bare", "memory")
    ]
    return table(("server", "idle connections", "KiB for each"), rows)


def writes(found: Found) -> str:
    """What an event costs behind its commit, beside the corked server's write."""
    per_event = {
        name: figure.median / EVENTS
        for name in ("bare", "corked")
        if (figure := found[f"yardstick.cost.{ACTIVE}.{name}"]) is not None
    }
    rates = {
        name: figure.median * EVENTS
        for name in ("bare", "corked")
        if (figure := found[f"yardstick.tasks.{ACTIVE}.{name}"]) is not None
    }
    rows = [
        (f"{name}, {ACTIVE} at a time", f"{per_event[name]:.1f}", f"{rates[name]:,.0f}")
        for name in per_event
    ]
    subscriber, replay = found["subscribers.cost"], found["replay.events"]
    if subscriber is not None:
        rows.append(("agentsrv, a further subscriber", f"{subscriber.median:.1f}", "–"))
    if replay is not None:
        rows.append(("agentsrv, replay of a long log", "–", f"{replay.median:,.0f}"))
    return table(("what is written", "server's µs for each event", "events/s"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def plots(found: Found) -> dict[str, Bars]:
    """The charts, by the names of their files."""
    widths = found.sizes("yardstick.tasks.")
    present = [name for name in NAMES if found[f"yardstick.tasks.{widths[-1]}.{name}"] is not None]
    cancelled = found.sizes("yardstick.cancel.", ".tasks.p50")
    cancels = [
        name
        for name in CANCELS
        if found[f"yardstick.cancel.{cancelled[-1]}.{name}.p50"] is not None
    ]
    return {
        "ratio": Bars(
            "Tasks per second, as a multiple of the bare server's",
            {
                f"{width} at a time": [found[f"yardstick.ratio.{width}.{name}"] for name in present]
                for width in widths
            },
            present,
            digits=2,
        ),
        "cancel": Bars(
            "Cancel to the client's event, p99 in ms",
            {
                f"{running} running": [
                    found[f"yardstick.cancel.{running}.{name}.p99"] for name in cancels
                ]
                for running in cancelled
            },
            [CANCELS[name] for name in cancels],
            digits=1,
        ),
        "subscribers": Bars(
            "Events delivered per second to the subscribers of one task",
            {
                f"{count} subscribers": [found[f"subscribers.{count}.events"]]
                for count in found.sizes("subscribers.", ".events")
            },
            ("events/s",),
        ),
        "stored": Bars(
            "Tasks per second, by the number of stored events",
            {
                f"{count:,} events": [found[f"stored.{count}.tasks"]]
                for count in found.sizes("stored.", ".tasks")
            },
            ("tasks/s",),
        ),
    }


if __name__ == "__main__":
    main()
