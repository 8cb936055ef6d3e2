"""WriterAgent: a Markdown report that answers the task in the words of its sources."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from agentsrv.agents.analyzer import as_sentence, shorten
from agentsrv.agents.base import StepContext
from agentsrv.agents.extract import Graph
from agentsrv.models.plan import Step

MAX_TITLE = 100  # characters
DIRECT = 0.6  # relevance from which a statement counts as an answer
CLOSE = 0.7  # part of the best relevance that a statement of the answer needs
SPREAD = 0.4  # of the answer: it should not draw on one passage alone
OTHER = "Also relevant"  # heading of what shares its theme with nothing else

# an underscore inside a word is no markup
_SPECIAL = re.compile(r"[\\`*\[\]<]|(?<![^\W_])_|_(?![^\W_])")

Json = dict[str, Any]


class WriterAgent:
    """Write a Markdown report with numbered sources from what the analysis found."""

    async def run(
        self,
        step: Step,
        ctx: StepContext,
        answer_sentences: Annotated[int, Field(ge=1, le=8)] = 3,
        max_sections: Annotated[int, Field(ge=0, le=10)] = 4,
        sentences_per_section: Annotated[int, Field(ge=1, le=12)] = 4,
    ) -> AsyncIterator[str]:
        """Write a Markdown report with numbered sources that answers the task.

        It is streamed paragraph by paragraph. Every statement is a sentence of a source,
        unchanged; nothing is made up. Without an analysis, or with an empty one, the report says
        so and what to do. A cancellation leaves the paragraphs that were streamed.

        Args:
            step: The step to run.
            ctx: What the step may use.
            answer_sentences: Sentences of the direct answer, at most.
            max_sections: Sections by theme after it, at most.
            sentences_per_section: Sentences in each of them, at most.
        """
        analysis = analysis_of(ctx.results)
        if analysis is None:
            ctx.log.warning("step %s has no analysis to write from", step.step_id)
        report = await asyncio.to_thread(
            compose,
            analysis or {"task": ctx.task_description},
            Shape(answer_sentences, max_sections, sentences_per_section),
        )
        ctx.set_result(report.result)
        for paragraph in report.paragraphs:
            yield paragraph


@dataclass(frozen=True, slots=True)
class Shape:
    """How long a report may be, in sentences and sections."""

    answer: int = 3
    sections: int = 4
    per_section: int = 4


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report: its paragraphs, each with its line ends, and the structured result."""

    paragraphs: list[str]
    result: Json


def analysis_of(results: Mapping[str, Any]) -> Json | None:
    """Return the analysis among the ``results`` of other steps, None where there is none."""
    for result in results.values():
        if isinstance(result, dict) and isinstance(result.get("statements"), list):
            return result
    return None


def compose(analysis: Json, shape: Shape) -> Report:
    """Compose the report on an ``analysis``, as `agentsrv.agents.analyzer.analyze` returns it."""
    title = f"# {shorten(analysis['task'].lstrip('# '), MAX_TITLE) or 'Report'}\n\n"
    if not analysis.get("statements"):
        return Report([title, *_nothing(analysis)], _result(_Citations({}), 0, analysis))
    chosen = select(analysis, shape)
    citations = _Citations({source["id"]: source for source in analysis["sources"]})
    paragraphs = [title, _answer(chosen.answer, citations)]
    for heading, members in chosen.sections:
        paragraphs.append(f"## {heading}\n\n")
        paragraphs.extend(f"- {line}\n" for line in _lines(members, citations))
        paragraphs.append("\n")
    paragraphs.extend(citations.section())
    paragraphs.extend(_open_questions(analysis))
    count = len(chosen.answer) + sum(len(members) for _, members in chosen.sections)
    return Report(paragraphs, _result(citations, count, analysis))


@dataclass(frozen=True, slots=True)
class _Chosen:
    answer: list[Json]
    sections: list[tuple[str, list[Json]]]


def select(analysis: Json, shape: Shape) -> _Chosen:
    """Choose the statements of the answer and of each section, none of them twice."""
    statements = analysis["statements"]
    graph = Graph([as_sentence(statement) for statement in statements])
    answer = graph.diversify(_directness(statements), shape.answer, spread=SPREAD)
    taken = list(answer)
    sections: list[tuple[str, list[Json]]] = []
    for theme in [*analysis["themes"], ""]:
        if len(sections) == shape.sections:
            break
        scores = [
            statement["score"] if statement["theme"] == theme else 0.0 for statement in statements
        ]
        members = _supported(statements, graph.diversify(scores, shape.per_section, taken))
        if members:
            taken += members
            sections.append((theme or OTHER, _in_order(statements, members)))
    return _Chosen([statements[number] for number in answer], sections)


def _directness(statements: Sequence[Json]) -> list[float]:
    """Return how much each statement is to the point; 0 keeps it out of the answer.

    The answer takes sentences that stand on their own, if there are any.
    """
    allowed = [statement for statement in statements if not statement["leans"]] or statements
    best = max(statement["relevance"] for statement in allowed)
    return [
        statement["score"] * statement["relevance"] ** 2
        if statement in allowed and statement["relevance"] >= CLOSE * best
        else 0.0
        for statement in statements
    ]


def _supported(statements: Sequence[Json], numbers: Iterable[int]) -> list[int]:
    """Return the statements that stand on their own, or right behind the one they lean on."""
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
    """Return the statements of these numbers as they follow each other in their passages.

    The passage of the best one comes first: a section begins with what matters most.
    """
    members = [statements[number] for number in numbers]
    first: dict[int, int] = {}
    for place, statement in enumerate(members):
        first.setdefault(statement["source"], place)
    return sorted(members, key=lambda statement: (first[statement["source"]], statement["order"]))


def _answer(members: list[Json], citations: _Citations) -> str:
    text = " ".join(_lines(members, citations))
    if max(statement["relevance"] for statement in members) >= DIRECT:
        return f"{text}\n\n"
    return f"No source answers this directly. What comes closest: {text}\n\n"


def _lines(members: Sequence[Json], citations: _Citations) -> Iterator[str]:
    """Yield the statements with their citations; neighbours in a passage stay together."""
    run: list[Json] = []
    for statement in members:
        if run and not _adjacent(run[-1], statement):
            yield _line(run, citations)
            run = []
        run.append(statement)
    if run:
        yield _line(run, citations)


def _adjacent(one: Json, other: Json) -> bool:
    return bool(one["source"] == other["source"] and other["order"] == one["order"] + 1)


def _line(run: Sequence[Json], citations: _Citations) -> str:
    text = " ".join(escape(statement["text"]) for statement in run)
    return f"{text} [{citations.number(run[0]['source'])}]"


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is."""
    return _SPECIAL.sub(r"\\\g<0>", text)


@dataclass(slots=True)
class _Citations:
    """Numbers the sources in the order in which the report cites them, from 1."""

    sources: Mapping[int, Json]
    numbers: dict[int, int] = field(default_factory=dict)

    def number(self, source: int) -> int:
        return self.numbers.setdefault(source, len(self.numbers) + 1)

    def section(self) -> Iterator[str]:
        yield "## Sources\n\n"
        for source, number in self.numbers.items():
            entry = self.sources[source]
            line = f", line {entry['line']}" if entry["line"] else ""
            yield f"{number}. `{entry['source']}`{line}: {escape(entry['title'])}\n"
        yield "\n"

    def listed(self) -> list[Json]:
        return [
            {"number": number}
            | {key: self.sources[source][key] for key in ("source", "title", "line")}
            for source, number in self.numbers.items()
        ]


def _open_questions(analysis: Json) -> Iterator[str]:
    yield "## Not covered\n\n"
    if analysis["not_covered"]:
        yield f"- The knowledge base has nothing on: {_named(analysis['not_covered'])}.\n"
    if analysis["single_source"]:
        yield f"- Only one of the files found mentions: {_named(analysis['single_source'])}.\n"
    if analysis["apart"]:
        yield f"- Mentioned, but not where the rest of the task is: {_named(analysis['apart'])}.\n"
    if not any(analysis[kind] for kind in ("not_covered", "apart", "single_source")):
        yield "Nothing: each term of the task occurs in at least two of the files found.\n"


def _named(words: Iterable[str]) -> str:
    return ", ".join(escape(word) for word in words)


def _nothing(analysis: Json) -> Iterator[str]:
    missing = analysis.get("not_covered") or analysis.get("task_terms", [])
    if not analysis.get("searched", False):
        yield "The knowledge base could not be searched, so there is nothing to report.\n\n"
        yield "Check that a folder is configured and indexed, and run the task again.\n"
        return
    if not analysis["task_terms"]:
        yield "The task names nothing that could be searched for.\n\n"
        yield "Say in a few words what the report should be about.\n"
        return
    yield "The knowledge base has nothing on this.\n\n## Not covered\n\n"
    yield f"- No statement was found on: {_named(missing)}.\n\n"
    yield "Add documents on it to the folder, or ask with the words that its documents use.\n"


def _result(citations: _Citations, count: int, analysis: Json) -> Json:
    return {
        "sources": citations.listed(),
        "statements": count,
        "not_covered": list(analysis.get("not_covered", [])),
    }
