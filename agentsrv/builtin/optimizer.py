"""OptimizerAgent: corrects a report according to the validator's findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agentsrv import Step, StepContext
from agentsrv.builtin.analyzer import coverage, result_with
from agentsrv.builtin.extract import REDUNDANT_SIMILARITY, Graph, Sentence, needs_context, quality
from agentsrv.builtin.report import (
    Citations,
    ReportBlock,
    Statement,
    escape,
    open_questions,
    read,
    render,
    unescape,
)
from agentsrv.builtin.threads import in_thread
from agentsrv.builtin.validator import SUPPORTED, report_of
from agentsrv.knowledge.text import sentences, stems, terms

if TYPE_CHECKING:
    from agentsrv.knowledge.ranking import Passage

MAX_SEARCHES: Final = 4  # terms that are searched again
SEARCHED_PASSAGES: Final = 6  # passages of each such search
MAX_ADDED: Final = 2  # statements that are added for each term
ADDED_HEADING: Final = "## Found in a second search"
NO_STATEMENTS: Final = "No statement of the report is supported by a source."

Json = dict[str, Any]


class OptimizerAgent:
    """Correct a report: drop unsupported statements, fix citations, fill gaps, drop repetitions."""

    async def run(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Correct a report according to the validator's findings.

        Statements that no passage supports are dropped. Statements that another passage supports,
        and those without a citation, cite that passage. Repetitions are dropped. Terms of the task
        that no supported statement mentions are searched again, and sentences about them are
        added. No sentence is changed.

        The steps of the report, of the retrieval and of the validation must be among the
        dependencies; if one is missing, the report is passed on unchanged. The result is that of a
        report, with the counts of its ``changes``. The agent only reads and can be cancelled at
        any time.

        Args:
            step: The step to run.
            ctx: The context of the attempt.

        Raises:
            KnowledgeError: The knowledge base cannot be read.
        """
        report, retrieval = report_of(ctx), result_with("passages", ctx.results)
        findings = result_with("broken_citations", ctx.results)
        if report is None:
            ctx.log.warning("step %s has no report to correct", step.step_id)
            yield "There is no report to correct.\n"
            return
        text, writer_result = report
        if retrieval is None or not findings or not findings["statements"]:
            ctx.set_result(writer_result)
            yield text
            return
        draft = Draft(text, writer_result, findings, retrieval["passages"])
        await in_thread(draft.correct)
        for term in findings["uncovered_terms"][:MAX_SEARCHES]:
            found = await ctx.search(f"{term} {ctx.task_description}", SEARCHED_PASSAGES)
            draft.add_statements(term, found, ctx.task_description)
        body, result = draft.render(ctx.task_description, retrieval)
        ctx.set_result(result)
        yield body


class Draft:
    """A report during its correction.

    Its statements cite passages by id until `render` numbers them.
    """

    def __init__(
        self, text: str, writer_result: Json, findings: Json, passages: Sequence[Json]
    ) -> None:
        self._text = text
        self._writer_result = writer_result
        self._checked = {
            (claim["text"], tuple(claim["cites"])): claim for claim in findings["statements"]
        }
        self._passages = list(passages)
        self._blocks: list[ReportBlock] = []
        self._added: list[ReportBlock] = []
        self._changes = Counter(removed=0, cited_anew=0, repeated=0, added=0)

    def correct(self) -> None:
        """Drop or cite statements according to the findings, then drop repetitions."""
        ids = {entry["number"]: entry.get("id") for entry in self._writer_result["sources"]}
        for block in read(self._text):
            kept = [
                corrected
                for statement in block.statements
                if (corrected := self._corrected(statement, ids)) is not None
            ]
            # Sentences that are no claims introduce claims, so they are dropped with them.
            kept = kept if any(statement.is_claim for statement in kept) else []
            self._blocks.append(replace(block, statements=tuple(kept)))
        self._drop_repetitions()

    def _corrected(self, statement: Statement, ids: Mapping[int, int | None]) -> Statement | None:
        checked = self._checked.get((unescape(statement.text), statement.cites))
        if checked is None or checked["verdict"] in SUPPORTED:
            known = (found for n in statement.cites if (found := ids.get(n)) is not None)
            return Statement(statement.text, tuple(known))
        if checked["verdict"] == "miscited":
            self._changes["cited_anew"] += 1
            return Statement(statement.text, (checked["id"],))
        self._changes["removed"] += 1
        return None

    def _drop_repetitions(self) -> None:
        claims = [claim for block in self._blocks for claim in block.statements if claim.is_claim]
        graph = Graph([_sentence(claim.text) for claim in claims])
        repeated: set[int] = set()
        for later in range(len(claims)):
            earlier = (other for other in range(later) if other not in repeated)
            if any(graph.similarity(later, other) >= REDUNDANT_SIMILARITY for other in earlier):
                repeated.add(later)
        dropped = {id(claims[number]) for number in repeated}
        self._changes["repeated"] += len(dropped)
        self._blocks = [
            replace(block, statements=tuple(s for s in block.statements if id(s) not in dropped))
            for block in self._blocks
        ]

    def add_statements(self, term: str, found: Sequence[Passage], task: str) -> None:
        """Add up to `MAX_ADDED` sentences about ``term`` from the passages that were ``found``."""
        (stem,) = stems(term)[:1]
        about = set(stems(task))
        options = [
            (len(about & set(own)), text, passage)
            for passage in found
            for text in sentences(passage.text)
            if stem in (own := stems(text)) and quality(text) and not needs_context(text)
        ]
        options.sort(key=lambda option: -option[0])
        said = {unescape(item.text) for block in self._blocks for item in block.statements}
        for _, text, passage in options[:MAX_ADDED]:
            if text not in said:
                statement = Statement(escape(text), (self._id(passage),))
                self._added.append(ReportBlock("item", "", (statement,)))
                self._changes["added"] += 1

    def _id(self, found: Passage) -> int:
        """Return the passage's id in this report; a new one if it was not retrieved before."""
        for passage in self._passages:
            if (passage["source"], passage["text"]) == (found.source, found.text):
                return int(passage["id"])
        number = max((int(passage["id"]) for passage in self._passages), default=0) + 1
        own = {"source": found.source, "title": found.title, "text": found.text}
        self._passages.append({"id": number, "line": found.line, **own})
        return number

    def render(self, task: str, retrieval: Json) -> tuple[str, Json]:
        """Number the sources, and return the report with its result."""
        citations = Citations({passage["id"]: passage for passage in self._passages})
        added = [ReportBlock("heading", ADDED_HEADING), *self._added] if self._added else []
        blocks = [
            replace(
                block,
                statements=tuple(
                    Statement(item.text, tuple(map(citations.number, item.cites)))
                    for item in block.statements
                ),
            )
            for block in (*self._blocks, *added)
        ]
        count = sum(item.is_claim for block in blocks for item in block.statements)
        wanted = {term.stem: term for term in terms(task)}
        gaps = coverage(wanted, self._passages, retrieval)
        body = render(blocks) + ("" if count else f"{NO_STATEMENTS}\n\n")
        result = {
            "sources": citations.listed(),
            "statements": count,
            "quoted": bool(self._writer_result.get("quoted")),
            "not_covered": gaps["not_covered"],
            "changes": dict(self._changes),
        }
        return body + "".join([*citations.section(), *open_questions(gaps)]), result


def _sentence(text: str) -> Sentence:
    return Sentence(text, 0, 0, tuple(stems(text)), frozenset(), frozenset(), 1.0)
