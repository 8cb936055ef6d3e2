"""OptimizerAgent: a report without what the validator found wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agentsrv import Step, StepContext
from agentsrv.builtin.analyzer import coverage, retrieval_of
from agentsrv.builtin.extract import REDUNDANT, Graph, Sentence, leans, quality
from agentsrv.builtin.report import (
    Block,
    Citations,
    Statement,
    escape,
    open_questions,
    read,
    render,
    unescape,
)
from agentsrv.builtin.threads import in_thread
from agentsrv.builtin.validator import GOOD, report_of
from agentsrv.knowledge.text import sentences, stems, terms

if TYPE_CHECKING:
    from agentsrv.knowledge.ranking import Passage

MAX_GAPS: Final = 4  # terms that are looked for a second time
LOOKED_AT: Final = 6  # passages that are looked at for each of them
ADDED: Final = 2  # statements that are added for each of them
SECOND_LOOK: Final = "## Found at a second look"
NOTHING_LEFT: Final = "No statement of the report is supported by a source."

Json = dict[str, Any]


class OptimizerAgent:
    """Mend a report: drop what nothing supports, cite anew, fill gaps, shorten repetition."""

    async def run(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Mend a report by what the validator has found.

        Statements that no passage supports are dropped, those that another passage supports
        than the one they cite are cited anew, and so is what cites nothing; repetitions are
        dropped. The knowledge base is searched a second time for terms of the task that no
        supported statement mentions; what it has is quoted. No sentence is changed.

        Needs the steps of the report, of the retrieval and of the validation among its
        dependencies; without one of them the report is passed on as it is. The result is that
        of a report, with its ``changes``. Only reads: a cancellation leaves nothing behind.

        Args:
            step: The step to run.
            ctx: What the step may use.

        Raises:
            KnowledgeError: The knowledge base is broken.
        """
        report, retrieval = report_of(ctx), retrieval_of(ctx.results)
        findings = findings_of(ctx.results)
        if report is None:
            ctx.log.warning("step %s has no report to mend", step.step_id)
            yield "There is no report to mend.\n"
            return
        text, told = report
        if retrieval is None or not findings or not findings["statements"]:
            ctx.set_result(told)
            yield text
            return
        draft = Draft(text, told, findings, retrieval["passages"])
        await in_thread(draft.mend)
        for term in findings["uncovered_terms"][:MAX_GAPS]:
            found = await ctx.search(f"{term} {ctx.task_description}", LOOKED_AT)
            draft.look_again(term, found, ctx.task_description)
        body, result = draft.finished(ctx.task_description, retrieval)
        ctx.set_result(result)
        yield body


def findings_of(results: Mapping[str, Any]) -> Json | None:
    """Return the validator's findings among the ``results`` of other steps, or None."""
    for result in results.values():
        if isinstance(result, dict) and "broken_citations" in result:
            return result
    return None


class Draft:
    """A report that is being mended.

    Its statements cite passages by their ids until it is `finished`.
    """

    def __init__(self, text: str, told: Json, findings: Json, passages: Sequence[Json]) -> None:
        self._text = text
        self._told = told
        self._checked = {(one["text"], tuple(one["cites"])): one for one in findings["statements"]}
        self._passages = list(passages)
        self._blocks: list[Block] = []
        self._added: list[Block] = []
        self._changes = Counter(removed=0, cited_anew=0, repeated=0, added=0)

    def mend(self) -> None:
        """Drop and cite anew what the findings say, then drop repetitions."""
        ids = {entry["number"]: entry.get("id") for entry in self._told["sources"]}
        for block in read(self._text):
            kept = [
                mended
                for statement in block.statements
                if (mended := self._mended(statement, ids)) is not None
            ]
            # what states nothing leads over to something that does
            kept = kept if any(statement.is_claim for statement in kept) else []
            self._blocks.append(replace(block, statements=tuple(kept)))
        self._drop_repetitions()

    def _mended(self, statement: Statement, ids: Mapping[int, int | None]) -> Statement | None:
        checked = self._checked.get((unescape(statement.text), statement.cites))
        if checked is None or checked["verdict"] in GOOD:
            known = (found for n in statement.cites if (found := ids.get(n)) is not None)
            return Statement(statement.text, tuple(known))
        if checked["verdict"] == "miscited":
            self._changes["cited_anew"] += 1
            return Statement(statement.text, (checked["id"],))
        self._changes["removed"] += 1
        return None

    def _drop_repetitions(self) -> None:
        claims = [one for block in self._blocks for one in block.statements if one.is_claim]
        graph = Graph([_sentence(one.text) for one in claims])
        repeated: set[int] = set()
        for later in range(len(claims)):
            earlier = (other for other in range(later) if other not in repeated)
            if any(graph.similarity(later, other) >= REDUNDANT for other in earlier):
                repeated.add(later)
        gone = {id(claims[number]) for number in repeated}
        self._changes["repeated"] += len(gone)
        self._blocks = [
            replace(block, statements=tuple(one for one in block.statements if id(one) not in gone))
            for block in self._blocks
        ]

    def look_again(self, term: str, found: Sequence[Passage], task: str) -> None:
        """Add up to `ADDED` sentences about ``term`` out of the passages that were ``found``."""
        (stem,) = stems(term)[:1]
        about = set(stems(task))
        options = [
            (len(about & set(own)), text, passage)
            for passage in found
            for text in sentences(passage.text)
            if stem in (own := stems(text)) and quality(text) and not leans(text)
        ]
        options.sort(key=lambda option: -option[0])
        said = {unescape(one.text) for block in self._blocks for one in block.statements}
        for _, text, passage in options[:ADDED]:
            if text not in said:
                statement = Statement(escape(text), (self._id(passage),))
                self._added.append(Block("item", "", (statement,)))
                self._changes["added"] += 1

    def _id(self, found: Passage) -> int:
        """The id of a passage in this report, a new one where it was not retrieved before."""
        for passage in self._passages:
            if (passage["source"], passage["text"]) == (found.source, found.text):
                return int(passage["id"])
        number = max((int(passage["id"]) for passage in self._passages), default=0) + 1
        own = {"source": found.source, "title": found.title, "text": found.text}
        self._passages.append({"id": number, "line": found.line, **own})
        return number

    def finished(self, task: str, retrieval: Json) -> tuple[str, Json]:
        """Number the sources, and return the report with its result."""
        citations = Citations({passage["id"]: passage for passage in self._passages})
        added = [Block("heading", SECOND_LOOK), *self._added] if self._added else []
        blocks = [
            replace(
                block,
                statements=tuple(
                    Statement(one.text, tuple(map(citations.number, one.cites)))
                    for one in block.statements
                ),
            )
            for block in (*self._blocks, *added)
        ]
        count = sum(one.is_claim for block in blocks for one in block.statements)
        wanted = {term.stem: term for term in terms(task)}
        gaps = coverage(wanted, self._passages, retrieval)
        body = render(blocks) + ("" if count else f"{NOTHING_LEFT}\n\n")
        result = {
            "sources": citations.listed(),
            "statements": count,
            "quoted": bool(self._told.get("quoted")),
            "not_covered": gaps["not_covered"],
            "changes": dict(self._changes),
        }
        return body + "".join([*citations.section(), *open_questions(gaps)]), result


def _sentence(text: str) -> Sentence:
    return Sentence(text, 0, 0, tuple(stems(text)), frozenset(), frozenset(), 1.0)
