"""WriterAgent: writes a Markdown report that answers the task from its sources."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agentsrv import ModelTruncatedError, Step, StepContext
from agentsrv.builtin import prompts
from agentsrv.builtin.analyzer import CUT_OFF, as_sentence, result_with
from agentsrv.builtin.code_fences import FenceFilter
from agentsrv.builtin.extract import Graph
from agentsrv.builtin.report import (
    INDIRECT,
    Citations,
    cite,
    cited,
    escape,
    named,
    open_questions,
    read,
)
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.text import shorten

if TYPE_CHECKING:
    from agentsrv import LanguageModel

MAX_TITLE = 100  # characters
DIRECT_RELEVANCE = 0.6  # from which a statement counts as a direct answer
ANSWER_SHARE = 0.7  # of the best relevance, which a statement of the answer needs
SAME_PASSAGE = 0.4  # similarity of statements of one passage: the answer should use several
OTHER_HEADING = "Also relevant"  # heading of statements without a common theme

Json = dict[str, Any]


class WriterAgent:
    """Write a Markdown report with numbered sources from an analysis."""

    async def run(
        self,
        step: Step,
        ctx: StepContext,
        answer_sentences: Annotated[int, Field(ge=1, le=8)] = 3,
        max_sections: Annotated[int, Field(ge=0, le=10)] = 4,
        sentences_per_section: Annotated[int, Field(ge=1, le=12)] = 4,
    ) -> AsyncIterator[str]:
        """Write a Markdown report with numbered sources that answers the task.

        The report is streamed paragraph by paragraph. Every statement is an unchanged sentence of
        a source. Without statements, the report says so and advises the user.

        With a language model, the model writes the body from the passages, and the report is
        streamed as it arrives; ``quoted`` in the result is then false. This agent writes the list
        of sources in both cases. A cancellation keeps the streamed text and closes the model's
        HTTP exchange.

        Args:
            step: The step to run.
            ctx: The context of the attempt.
            answer_sentences: Maximum number of sentences in the direct answer, without a model.
            max_sections: Maximum number of sections by theme, without a model.
            sentences_per_section: Maximum number of sentences in a section, without a model.

        Raises:
            ModelError: The model failed; another attempt may succeed.
            PermanentError: The model rejected the request.
        """
        analysis = result_with("statements", ctx.results)
        retrieval = result_with("passages", ctx.results)
        if ctx.llm and analysis and retrieval and retrieval["passages"]:
            async with aclosing(_by_model(ctx, ctx.llm, analysis, retrieval["passages"])) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if analysis is None:
            ctx.log.warning("step %s has no analysis to write from", step.step_id)
        report = await in_thread(
            compose,
            analysis or {"task": ctx.task_description},
            ReportSize(answer_sentences, max_sections, sentences_per_section),
        )
        ctx.set_result(report.result)
        for paragraph in report.paragraphs:
            yield paragraph


async def _by_model(
    ctx: StepContext, llm: LanguageModel, analysis: Json, passages: Sequence[Json]
) -> AsyncGenerator[str, None]:
    """Stream the report that the model writes; its citations are ids of passages."""
    notes = "\n\n".join(
        text for step_id, text in ctx.outputs.items() if ctx.results[step_id] is analysis
    )
    yield title_of(ctx.task_description)
    body, unfenced, is_cut_off = "", FenceFilter(), False
    try:
        async with aclosing(
            llm.stream(prompts.report(ctx.task_description, passages, notes))
        ) as pieces:
            async for piece in pieces:
                if shown := unfenced.feed(piece):
                    body += shown
                    yield shown
    except ModelTruncatedError as error:
        if not error.text.strip():
            raise
        ctx.log.warning("the report is cut off: %s", error.message)
        is_cut_off = True
    if rest := unfenced.end():
        body += rest
        yield rest
    if is_cut_off:
        yield f"\n\n{CUT_OFF}"
    blocks = await in_thread(read, body)
    known = {passage["id"]: passage for passage in passages}
    citations = Citations(
        known, {number: number for number in sorted(cited(blocks)) if number in known}
    )
    yield "\n\n"
    for line in (*citations.section(), *open_questions(analysis)):
        yield line
    count = sum(item.is_claim for block in blocks for item in block.statements)
    ctx.set_result(
        _result(citations, count, analysis, quoted=False) | {"usage": llm.usage.counts()}
    )


@dataclass(frozen=True, slots=True)
class ReportSize:
    """The maximum size of a report, in sentences and sections."""

    answer: int = 3
    sections: int = 4
    per_section: int = 4


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A finished report: its paragraphs with line ends, and the structured result."""

    paragraphs: list[str]
    result: Json


def title_of(task: str) -> str:
    """Return the first line of a report on ``task``."""
    return f"# {shorten(task.lstrip('# '), MAX_TITLE) or 'Report'}\n\n"


def compose(analysis: Json, size: ReportSize) -> WrittenReport:
    """Write the report on an ``analysis``, as `agentsrv.builtin.analyzer.analyze` returns it."""
    title = title_of(analysis["task"])
    if not analysis.get("statements"):
        nothing = _result(Citations({}), 0, analysis, quoted=True)
        return WrittenReport([title, *_nothing(analysis)], nothing)
    chosen = select(analysis, size)
    citations = Citations({source["id"]: source for source in analysis["sources"]})
    paragraphs = [title, _answer(chosen.answer, citations)]
    for heading, members in chosen.sections:
        paragraphs.append(f"## {heading}\n\n")
        paragraphs.extend(f"- {line}\n" for line in _lines(members, citations))
        paragraphs.append("\n")
    paragraphs.extend(citations.section())
    paragraphs.extend(open_questions(analysis))
    count = len(chosen.answer) + sum(len(members) for _, members in chosen.sections)
    return WrittenReport(paragraphs, _result(citations, count, analysis, quoted=True))


@dataclass(frozen=True, slots=True)
class _Chosen:
    answer: list[Json]
    sections: list[tuple[str, list[Json]]]


def select(analysis: Json, size: ReportSize) -> _Chosen:
    """Select the statements of the answer and of each section, each statement once."""
    statements = analysis["statements"]
    graph = Graph([as_sentence(statement) for statement in statements])
    answer = graph.diversify(_directness(statements), size.answer, spread=SAME_PASSAGE)
    taken = list(answer)
    sections: list[tuple[str, list[Json]]] = []
    for theme in [*analysis["themes"], ""]:
        if len(sections) == size.sections:
            break
        scores = [
            statement["score"] if statement["theme"] == theme else 0.0 for statement in statements
        ]
        members = _supported(statements, graph.diversify(scores, size.per_section, taken))
        if members:
            taken += members
            sections.append((theme or OTHER_HEADING, _in_order(statements, members)))
    return _Chosen([statements[number] for number in answer], sections)


def _directness(statements: Sequence[Json]) -> list[float]:
    """Return how directly each statement answers; 0 excludes it from the answer.

    Statements that need context are excluded if there are others.
    """
    allowed = [statement for statement in statements if not statement["leans"]] or statements
    best = max(statement["relevance"] for statement in allowed)
    return [
        statement["score"] * statement["relevance"] ** 2
        if statement in allowed and statement["relevance"] >= ANSWER_SHARE * best
        else 0.0
        for statement in statements
    ]


def _supported(statements: Sequence[Json], numbers: Iterable[int]) -> list[int]:
    """Return the statements that need no context, or directly follow the one that they need."""
    places = {
        (statements[number]["source"], statements[number]["order"]): number for number in numbers
    }
    supported: dict[tuple[int, int], int] = {}
    for source, order in sorted(places):
        number = places[source, order]
        if not statements[number]["leans"] or (source, order - 1) in supported:
            supported[source, order] = number
    kept = set(supported.values())
    return [number for number in places.values() if number in kept]


def _in_order(statements: Sequence[Json], numbers: Iterable[int]) -> list[Json]:
    """Return the statements with these numbers in the order of their passages.

    The passage of the best statement comes first.
    """
    members = [statements[number] for number in numbers]
    first: dict[int, int] = {}
    for place, statement in enumerate(members):
        first.setdefault(statement["source"], place)
    return sorted(members, key=lambda statement: (first[statement["source"]], statement["order"]))


def _answer(members: list[Json], citations: Citations) -> str:
    text = " ".join(_lines(members, citations))
    if max(statement["relevance"] for statement in members) >= DIRECT_RELEVANCE:
        return f"{text}\n\n"
    return f"{INDIRECT} {text}\n\n"


def _lines(members: Sequence[Json], citations: Citations) -> Iterator[str]:
    """Yield the statements with their citations; neighbours in a passage share a line."""
    run: list[Json] = []
    for statement in members:
        if run and not _adjacent(run[-1], statement):
            yield _line(run, citations)
            run = []
        run.append(statement)
    if run:
        yield _line(run, citations)


def _adjacent(statement: Json, following: Json) -> bool:
    is_same = statement["source"] == following["source"]
    return bool(is_same and following["order"] == statement["order"] + 1)


def _line(run: Sequence[Json], citations: Citations) -> str:
    number = citations.number(run[0]["source"])
    return cite((escape(statement["text"]) for statement in run), [number])


def _nothing(analysis: Json) -> Iterator[str]:
    missing = analysis.get("not_covered") or analysis.get("task_terms", [])
    if not analysis.get("searched", False):
        yield "The knowledge base could not be searched, so there is nothing to report.\n\n"
        yield "Check that a folder is configured and indexed, and run the task again.\n"
        return
    if not analysis["task_terms"]:
        yield "The task names nothing that could be searched for.\n\n"
        yield "Describe in a few words what the report should be about.\n"
        return
    yield "The knowledge base has nothing on this.\n\n## Not covered\n\n"
    yield f"- No statement was found on: {named(missing)}.\n\n"
    yield "Add documents on it to the folder, or ask with the words that its documents use.\n"


def _result(citations: Citations, count: int, analysis: Json, *, quoted: bool) -> Json:
    return {
        "sources": citations.listed(),
        "statements": count,
        "quoted": quoted,
        "not_covered": list(analysis.get("not_covered", [])),
    }
