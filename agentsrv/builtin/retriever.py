"""RetrieverAgent: searches the knowledge base for passages about the task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agentsrv import Step, StepContext
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.text import stems, terms

if TYPE_CHECKING:
    from agentsrv.knowledge.ranking import Passage

RESULT_BYTES = 36_000  # bytes of text in the result, which is an event in the task's log
MAX_TERM_SEARCHES = 8  # searches for single terms that no passage contains
TERM_PASSAGES = 3  # passages of such a search: the first may only be similar in meaning
MAX_SHOWN_SOURCES = 6  # sources that the summary names


class RetrieverAgent:
    """Find the passages of the knowledge base that are about the task."""

    async def run(
        self,
        step: Step,
        ctx: StepContext,
        passages: Annotated[int, Field(ge=1, le=50)] = 12,
    ) -> AsyncIterator[str]:
        """Find the passages of the knowledge base that are about the task.

        The step's ``input`` may be a different query: a string, or an object with ``query``. The
        result has the ``query``, the best ``passages`` up to `RESULT_BYTES` (best first), the
        ``searched_terms``, and the ``unknown_terms`` among them, which occur in no document. The
        agent only reads and can be cancelled at any time.

        Args:
            step: The step to run.
            ctx: The context of the attempt.
            passages: Maximum number of passages.

        Raises:
            KnowledgeError: The knowledge base cannot be read.
        """
        query = _query(step, ctx)
        await ctx.progress(0, 1, "searching the knowledge base")
        found = await ctx.search(query, passages)
        kept = _fitting(found)
        searched = list(dict.fromkeys(term.surface for term in terms(query)))
        # In a thread: stemming many long passages for the first time takes about 20 ms.
        missing = await in_thread(_missing, query, kept)
        unknown = [
            term
            for term in missing[:MAX_TERM_SEARCHES]
            if not any(map(partial(_mentions, term), await ctx.search(term, TERM_PASSAGES)))
        ]
        ctx.set_result(
            {
                "query": query,
                "passages": kept,
                "searched_terms": searched,
                "unknown_terms": unknown,
            }
        )
        await ctx.progress(1, 1, f"{len(kept)} passages")
        yield _summary(kept, searched)


def _query(step: Step, ctx: StepContext) -> str:
    query = step.input.get("query") if isinstance(step.input, dict) else step.input
    return query if isinstance(query, str) and query.strip() else ctx.task_description


def _fitting(found: list[Passage]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    size = 0
    for number, passage in enumerate(found, start=1):
        size += len(passage.text.encode()) + len(passage.title.encode()) + len(passage.source) + 90
        if kept and size > RESULT_BYTES:
            break
        kept.append(
            {
                "id": number,
                "source": passage.source,
                "title": passage.title,
                "text": passage.text,
                "score": passage.score,
                "line": passage.line,
            }
        )
    return kept


def _missing(query: str, kept: list[dict[str, Any]]) -> list[str]:
    """Return the words of ``query`` that occur in none of the kept passages."""
    present: set[str] = set()
    for passage in kept:
        present.update(stems(passage["text"]), stems(passage["title"]))
        present.update(stems(passage["source"].replace("_", " ")))
    missing = {term.stem: term.surface for term in terms(query) if term.stem not in present}
    return list(missing.values())


def _mentions(term: str, passage: Passage) -> bool:
    about = f"{passage.title} {passage.source.replace('_', ' ')} {passage.text}"
    return not set(stems(term)).isdisjoint(stems(about))


def _summary(kept: list[dict[str, Any]], searched: list[str]) -> str:
    if not searched:
        return "The task contains no words to search for.\n"
    if not kept:
        return f"No passage mentions {', '.join(searched)}.\n"
    sources = list(dict.fromkeys(passage["source"] for passage in kept))
    more = len(sources) - MAX_SHOWN_SOURCES
    shown = ", ".join(sources[:MAX_SHOWN_SOURCES]) + (f" and {more} more" if more > 0 else "")
    passages = "1 passage" if len(kept) == 1 else f"{len(kept)} passages"
    files = "1 source" if len(sources) == 1 else f"{len(sources)} sources"
    return f"{passages} from {files}: {shown}.\n"
