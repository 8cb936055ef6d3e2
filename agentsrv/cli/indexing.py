"""``agentsrv index``: the knowledge base's index, made or brought up to date."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from agentsrv.cli.live.progress import OnProgress, progress
from agentsrv.cli.options import make_settings
from agentsrv.cli.signals import run_until_signal
from agentsrv.knowledge.search import IndexReport, KnowledgeBase
from agentsrv.resources import make_index_folder, open_models


def run(folder: Path, out: Path | None) -> None:
    """Read ``folder`` into the index ``out``, by default the one that `serve` uses; print a report.

    Raises:
        ConfigurationError: The settings are invalid, or the index cannot be kept there.
    """
    given = {"knowledge_index": out} if out is not None else {}
    settings = make_settings(knowledge=folder, **given)
    target = make_index_folder(settings)

    async def build() -> None:
        async with open_models(settings) as models:
            base = KnowledgeBase(folder, target, models.embedder)
            try:
                with progress() as on_progress:
                    report = await base.refresh(on_progress and _awaitable(on_progress))
                _print(report, target)
                if models.embedder is not None:
                    count = await base.embed()
                    print(f"  {count} passages have vectors of {models.embedder.model}")
            finally:
                await base.close()

    run_until_signal(build())


def _print(report: IndexReport, target: Path) -> None:
    print(
        f"{target}: {report.files} files, {report.passages} passages, "
        f"{report.bytes / 1e3:,.0f} kB of text, {report.seconds:.1f} s "
        f"({report.added} added, {report.updated} updated, {report.removed} removed)"
    )
    for reason, count in report.reasons.items():
        print(f"  skipped {count}: {reason}")


def _awaitable(show: OnProgress) -> Callable[[int, int, str], Awaitable[None]]:
    async def on_progress(done: int, total: int, message: str) -> None:
        show(done, total, message)

    return on_progress
