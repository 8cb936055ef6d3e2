"""AnalyzerAgent: selects the sentences of the passages that answer the task.

The analysis consists of sentences of the passages, each with its source, the themes that group
them, and the task's terms that were not found.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from agentsrv import ModelTruncatedError, Step, StepContext
from agentsrv.builtin import prompts
from agentsrv.builtin.extract import Graph, Sentence, needs_context, quality, relevance, specificity
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.documents import default_title, is_changelog
from agentsrv.knowledge.text import Term, sentences, shorten, stems, terms

MAX_SENTENCES = 300  # sentences that are compared with each other: 45,000 pairs, about 0.1 s
MIN_RELEVANCE = 0.34  # below it a statement has at most one word of three, by chance
LOW_RELEVANCE_SHARE = 0.8  # of the best relevance, which is enough if all are below the minimum
MIN_RELEVANCE_SHARE = 0.35  # of the best relevance: statements below are off topic
MIN_SCORE_SHARE = 0.08  # of the best statement's score
SUBJECT_FACTOR = 1.5  # for a sentence that begins with a term of the task
SUBJECT_STEMS = 2  # content words that count as its beginning
CHANGELOG_FACTOR = 0.2  # for a statement of a change log, which reports events rather than facts
MAX_THEMES = 8
MIN_SHARED = 2  # statements of a theme, passages with a key term
THEME_SIMILARITY = 0.12  # average similarity from which a statement joins a theme
MAX_KEY_TERMS = 12
CUT_OFF = "(Cut off here: the model's answer reached its token limit.)"
MAX_SHOWN_STATEMENTS = 3  # of each theme in the text of the analysis

_NUMBER = re.compile(r"^(?:\d+\.)*\d*\s+")
_GENERIC = frozenset(
    stems(
        "basic basics concept description general goal history introduction note notes option"
        " options purpose remark remarks rule setup summary synopsis usage miscellaneous design"
    )
)

Json = dict[str, Any]


class AnalyzerAgent:
    """Find statements about the task in the passages, and terms that they do not cover."""

    async def run(
        self,
        step: Step,
        ctx: StepContext,
        statements: Annotated[int, Field(ge=1, le=60)] = 40,
    ) -> AsyncIterator[str]:
        """Find statements about the task in the passages, by theme, and terms without any.

        Streams a short analysis as Markdown; the result is that of `analyze`. Without passages,
        the text says so. With a language model, the text is the model's notes, and the result
        also has its ``usage``.

        The computation runs in a thread: after a cancellation it ends within a second, and its
        result is dropped. A cancellation closes the model's HTTP exchange.

        Args:
            step: The step to run.
            ctx: The context of the attempt.
            statements: Maximum number of statements in the result.

        Raises:
            ModelError: The model failed; another attempt may succeed.
            PermanentError: The model rejected the request.
        """
        retrieval = result_with("passages", ctx.results)
        if retrieval is None:
            ctx.log.warning("step %s has no passages to analyze", step.step_id)
        analysis = await in_thread(analyze, ctx.task_description, retrieval, statements)
        llm = ctx.llm
        if not llm or not (retrieval and retrieval["passages"]):
            for paragraph in describe(analysis):
                yield paragraph
        else:
            messages = prompts.analysis(ctx.task_description, retrieval["passages"])
            try:
                async with aclosing(llm.stream(messages)) as pieces:
                    async for piece in pieces:
                        yield piece
            except ModelTruncatedError as error:
                if not error.text.strip():
                    raise
                ctx.log.warning("step %s: %s", step.step_id, error.message)
                yield f"\n\n{CUT_OFF}\n"
            analysis["usage"] = llm.usage.counts()
        ctx.set_result(analysis)


def result_with(key: str, results: Mapping[str, Any]) -> Json | None:
    """Return the first of the dependencies' ``results`` that has a list ``key``, or ``None``."""
    for result in results.values():
        if isinstance(result, dict) and isinstance(result.get(key), list):
            return result
    return None


def analyze(task: str, retrieval: Json | None, limit: int) -> Json:
    """Return the statements about ``task`` in the passages of ``retrieval``, as plain JSON.

    Returns:
        ``task``; ``searched`` (false without a retrieval); ``task_terms``; ``key_terms`` of the
        passages; at most ``limit`` ``statements`` (``text``, ``source``, ``order``, ``score``,
        ``relevance``, ``leans``: needs the sentence before it, ``terms``, ``theme``), the best
        first; ``themes``, the most important first; ``sources`` (``id``, ``source``, ``title``,
        ``line``); and the task's terms that are ``not_covered`` by the knowledge base, that occur
        only ``apart`` from the rest of the task, and that a ``single_source`` mentions.
    """
    wanted: dict[str, Term] = {}
    for term in terms(task):
        wanted.setdefault(term.stem, term)
    passages = retrieval["passages"] if retrieval else []
    statements = rank(collect(passages, wanted), wanted, limit)
    used = {statement["source"] for statement in statements}
    return {
        "task": shorten(task, 1000),
        "searched": retrieval is not None,
        "task_terms": [term.surface for term in wanted.values()],
        "key_terms": key_terms(passages, wanted),
        "themes": assign_themes(statements, passages),
        "statements": statements,
        "sources": [
            {key: passage[key] for key in ("id", "source", "title", "line")}
            for passage in passages
            if passage["id"] in used
        ],
        **coverage(wanted, passages, retrieval),
    }


def coverage(wanted: Mapping[str, Term], passages: Sequence[Json], retrieval: Json | None) -> Json:
    """Return the task's terms without a passage, without one about the task, and with one file."""
    unknown = set(stems(" ".join(retrieval.get("unknown_terms", [])))) if retrieval else set()
    mentioned = mentions(passages)
    files = {stem: mentioned.get(stem, set()) for stem in wanted}
    kinds: dict[str, list[str]] = {"not_covered": [], "apart": [], "single_source": []}
    for stem, term in wanted.items():
        if not files[stem]:
            kinds["not_covered" if not retrieval or stem in unknown else "apart"].append(
                term.surface
            )
        elif len(files[stem]) == 1:
            kinds["single_source"].append(term.surface)
    return kinds


def collect(passages: Iterable[Json], wanted: Mapping[str, Term]) -> list[Sentence]:
    """Return the sentences of ``passages`` that can be read alone, without repetitions."""
    found: list[Sentence] = []
    seen: set[str] = set()
    best = 0.0
    for passage in passages:
        best = best or float(passage["score"]) or 1.0
        # The last headings and the path describe the subject of the text.
        titles = " ".join(passage["title"].split(" > ")[-2:])
        context = frozenset(stems(f"{titles} {passage['source'].replace('_', ' ')}"))
        value = 0.4 + 0.6 * min(1.0, float(passage["score"]) / best)
        if is_changelog(PurePosixPath(passage["source"]).name):
            value *= CHANGELOG_FACTOR
        nearby = frozenset(stems(passage["text"]))
        for order, text in enumerate(sentences(passage["text"])):
            prior = value * quality(text)
            if prior and text not in seen and len(found) < MAX_SENTENCES:
                seen.add(text)
                own = tuple(stems(text))
                found.append(Sentence(text, passage["id"], order, own, context, nearby, prior))
    return found if wanted else []


def rank(pool: Sequence[Sentence], wanted: Mapping[str, Term], limit: int) -> list[Json]:
    """Return the best sentences as statements, by topic-sensitive centrality, best first."""
    weights = specificity(pool, wanted)
    fits = [relevance(sentence, weights) for sentence in pool]
    best = max(fits, default=0.0)
    threshold = max(MIN_RELEVANCE_SHARE * best, min(MIN_RELEVANCE, LOW_RELEVANCE_SHARE * best))
    # Squared, so that a sentence with both words of a question outranks two with one each.
    factors = [SUBJECT_FACTOR if _is_subject(sentence, weights) else 1.0 for sentence in pool]
    bias = [
        fit * fit * factor if fit > threshold else 0.0
        for fit, factor in zip(fits, factors, strict=True)
    ]
    central = Graph(pool).centrality(bias)
    scores = [
        rank * sentence.prior if fit > threshold else 0.0
        for rank, sentence, fit in zip(central, pool, fits, strict=True)
    ]
    highest = max(scores, default=0.0) or 1.0
    ranking = sorted(range(len(pool)), key=lambda number: -scores[number])
    return [
        {
            "text": pool[number].text,
            "source": pool[number].passage,
            "order": pool[number].order,
            "score": round(scores[number] / highest, 4),
            "relevance": round(fits[number], 4),
            "leans": needs_context(pool[number].text),
            "terms": [wanted[stem].surface for stem in wanted if stem in pool[number].stems],
        }
        for number in ranking[:limit]
        if scores[number] >= MIN_SCORE_SHARE * highest
    ]


def _is_subject(sentence: Sentence, weights: Mapping[str, float]) -> bool:
    """Return whether the sentence begins with a term of the task, and is thus about it."""
    return any(stem in weights for stem in sentence.stems[:SUBJECT_STEMS])


def assign_themes(statements: list[Json], passages: Iterable[Json]) -> list[str]:
    """Set the ``theme`` of each statement; return the themes, the most important first.

    A theme is a heading of the sources above two or more statements. Any other statement joins the
    theme with the most similar statements, or has the theme "".
    """
    headings = {passage["id"]: heading(passage) for passage in passages}
    worth: Counter[str] = Counter()
    members: defaultdict[str, list[int]] = defaultdict(list)
    for number, statement in enumerate(statements):
        name = headings[statement["source"]]
        worth[name] += statement["score"]
        members[name].append(number)
        statement["theme"] = ""
    names = [name for name, own in members.items() if name and len(own) >= MIN_SHARED]
    themes = sorted(names, key=lambda name: -worth[name])[:MAX_THEMES]
    for name in themes:
        for number in members[name]:
            statements[number]["theme"] = name
    grouped = {name: members[name] for name in themes}
    graph = Graph([as_sentence(statement) for statement in statements])
    for number, statement in enumerate(statements):
        if not statement["theme"]:
            likeness = {
                name: sum(graph.similarity(number, other) for other in own) / len(own)
                for name, own in grouped.items()
            }
            nearest = max(likeness, key=lambda name: likeness[name], default="")
            statement["theme"] = nearest if likeness.get(nearest, 0.0) >= THEME_SIMILARITY else ""
    return themes


def heading(passage: Mapping[str, str]) -> str:
    """Return the heading above the passage, "" if its file has none.

    A generic heading such as "Overview" is appended to the heading above it.
    """
    if passage["title"] == default_title(passage["source"]):
        return ""
    path = [_NUMBER.sub("", part).strip(" .:#") for part in passage["title"].split(" > ")]
    names = [part.capitalize() if part.isupper() else part[:1].upper() + part[1:] for part in path]
    if len(names) > 1 and not set(stems(names[-1])) - _GENERIC:
        return f"{names[-2]}: {names[-1][:1].lower()}{names[-1][1:]}"
    return names[-1]


def as_sentence(statement: Json) -> Sentence:
    """Return a statement of an analysis as a `Sentence` for `Graph`."""
    own = tuple(stems(statement["text"]))
    place = (statement["source"], statement["order"])
    return Sentence(statement["text"], *place, own, frozenset(), frozenset(), 1.0)


def key_terms(passages: Iterable[Json], wanted: Mapping[str, Term]) -> list[str]:
    """Return the words that occur in most passages, without the task's own."""
    spread: Counter[str] = Counter()
    written: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for passage in passages:
        found = terms(passage["text"])
        spread.update({term.stem for term in found if term.surface.isalpha()})
        for term in found:
            written[term.stem][term.surface.lower()] += 1
    common = sorted(
        (stem for stem, count in spread.items() if count >= MIN_SHARED and stem not in wanted),
        key=lambda stem: (-spread[stem], -written[stem].total(), stem),
    )
    return [written[stem].most_common(1)[0][0] for stem in common[:MAX_KEY_TERMS]]


def mentions(passages: Iterable[Json]) -> dict[str, set[str]]:
    """Return for each stem the files with a passage, heading or name that contains it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for passage in passages:
        about = f"{passage['title']} {passage['source'].replace('_', ' ')}"
        for stem in {*stems(about), *stems(passage["text"])}:
            found[stem].add(passage["source"])
    return found


def describe(analysis: Json) -> Iterable[str]:
    """Yield the text of the analysis as short paragraphs of Markdown."""
    statements = analysis["statements"]
    if not analysis["searched"]:
        yield "No passages arrived from the retrieval, so there is nothing to analyze.\n"
        return
    if not statements:
        yield "The passages state nothing about the task.\n"
        return
    sources = {source["source"] for source in analysis["sources"]}
    yield f"{len(statements)} statements from {len(sources)} files.\n"
    for theme in [*analysis["themes"], ""]:
        members = [statement for statement in statements if statement["theme"] == theme]
        if members:
            lines = [f"- {statement['text']}" for statement in members[:MAX_SHOWN_STATEMENTS]]
            yield f"\n**{theme or 'Other'}**\n\n"
            yield "\n".join(lines) + "\n"
    if analysis["not_covered"]:
        yield f"\nNo passage mentions: {', '.join(analysis['not_covered'])}.\n"
