"""AnalyzerAgent: what the passages state about the task.

The analysis consists of the passages' own sentences, each with its source; of the themes that
they speak about; and of the task's terms that nothing was found on.
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
from agentsrv.builtin.extract import Graph, Sentence, leans, quality, relevance, specificity
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.documents import default_title, is_changelog
from agentsrv.knowledge.text import Term, sentences, shorten, stems, terms

MAX_SENTENCES = 300  # that are compared with each other: 45,000 pairs, about 0.1 s
PARTLY = 0.34  # relevance below which a statement has one word of three, by chance
ALMOST = 0.8  # part of the best relevance that is enough where all of them are low
MIN_SCORE = 0.08  # of the best statement's score
SUBJECT = 1.5  # factor for a sentence that begins with a term of the task
SUBJECT_STEMS = 2  # content words that count as its beginning
CHANGELOG = 0.2  # factor for a statement of a change log: an event, seldom a fact
RELATED = 0.35  # of the relevance there is at best: what has less is about something else
MAX_THEMES = 8
SHARED_BY = 2  # statements that a theme needs, passages that a key term needs
ALIKE = 0.12  # average similarity from which a statement joins a theme
KEY_TERMS = 12
CUT_OFF = "(Cut off here: the model's answer reached its token limit.)"
SHOWN_STATEMENTS = 3  # of a theme, in the analysis that a person reads

_NUMBER = re.compile(r"^(?:\d+\.)*\d*\s+")
_GENERIC = frozenset(
    stems(
        "basic basics concept description general goal history introduction note notes option"
        " options purpose remark remarks rule setup summary synopsis usage miscellaneous design"
    )
)

Json = dict[str, Any]


class AnalyzerAgent:
    """Find what the passages state about the task, and what they leave open."""

    async def run(
        self,
        step: Step,
        ctx: StepContext,
        statements: Annotated[int, Field(ge=1, le=60)] = 40,
    ) -> AsyncIterator[str]:
        """Find what the passages state about the task, by theme, and what they leave open.

        Streams a short analysis as Markdown; the result is what `analyze` returns. Works without
        passages too, and says so. With a language model, the text is what the model notes, and
        the result also has its ``usage``.

        The arithmetic runs in a thread; a cancellation leaves it to end there, within a second,
        and its outcome is dropped. That of a model closes the HTTP exchange.

        Args:
            step: The step to run.
            ctx: What the step may use.
            statements: How many statements to keep for the writer, at most.

        Raises:
            ModelError: The model failed; another attempt may succeed.
            PermanentError: The model cannot be asked like this.
        """
        retrieval = retrieval_of(ctx.results)
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


def retrieval_of(results: Mapping[str, Any]) -> Json | None:
    """Return the retriever's result among the ``results`` of other steps, None without one."""
    for result in results.values():
        if isinstance(result, dict) and isinstance(result.get("passages"), list):
            return result
    return None


def analyze(task: str, retrieval: Json | None, limit: int) -> Json:
    """Return what the passages of ``retrieval`` state about ``task``, as plain JSON.

    Returns:
        ``task``; ``searched`` (false: there was no retrieval); ``task_terms``; ``key_terms`` of
        the passages; at most ``limit`` ``statements`` (``text``, ``source``, ``order``, ``score``,
        ``relevance``, ``leans`` on the sentence before it, ``terms``, ``theme``), the best first;
        ``themes``, the most important first; ``sources`` (``id``, ``source``, ``title``,
        ``line``); and of the task's terms those that are ``not_covered`` by the knowledge base,
        those that it mentions only ``apart`` from the rest of the task, and those that a
        ``single_source`` mentions.
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
    """Return which terms of the task nothing, only other texts or only one file speaks of."""
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
    """Return the sentences of ``passages`` that can stand on their own, each of them once."""
    found: list[Sentence] = []
    seen: set[str] = set()
    best = 0.0
    for passage in passages:
        best = best or float(passage["score"]) or 1.0
        # the headings nearest to the text say what it is about; the path names its subject
        titles = " ".join(passage["title"].split(" > ")[-2:])
        context = frozenset(stems(f"{titles} {passage['source'].replace('_', ' ')}"))
        value = 0.4 + 0.6 * min(1.0, float(passage["score"]) / best)
        if is_changelog(PurePosixPath(passage["source"]).name):
            value *= CHANGELOG
        nearby = frozenset(stems(passage["text"]))
        for order, text in enumerate(sentences(passage["text"])):
            prior = value * quality(text)
            if prior and text not in seen and len(found) < MAX_SENTENCES:
                seen.add(text)
                own = tuple(stems(text))
                found.append(Sentence(text, passage["id"], order, own, context, nearby, prior))
    return found if wanted else []


def rank(pool: Sequence[Sentence], wanted: Mapping[str, Term], limit: int) -> list[Json]:
    """Return the best sentences as statements, by topic-sensitive centrality, the best first."""
    weights = specificity(pool, wanted)
    fits = [relevance(sentence, weights) for sentence in pool]
    best = max(fits, default=0.0)
    threshold = max(RELATED * best, min(PARTLY, ALMOST * best))
    # squared: a sentence with both words of a question beats two with one of them each
    bias = [
        fit * fit * (SUBJECT if _is_subject(sentence, weights) else 1.0) if fit > threshold else 0.0
        for fit, sentence in zip(fits, pool, strict=True)
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
            "leans": leans(pool[number].text),
            "terms": [wanted[stem].surface for stem in wanted if stem in pool[number].stems],
        }
        for number in ranking[:limit]
        if scores[number] >= MIN_SCORE * highest
    ]


def _is_subject(sentence: Sentence, weights: Mapping[str, float]) -> bool:
    """Tell whether the sentence begins with a term of the task: then it is about that term."""
    return any(stem in weights for stem in sentence.stems[:SUBJECT_STEMS])


def assign_themes(statements: list[Json], passages: Iterable[Json]) -> list[str]:
    """Give each statement its ``theme``, and return the themes, the most important first.

    A theme is a heading of the sources that two or more statements stand under. A statement
    that stands alone joins the theme whose statements it is most like, or has the theme "".
    """
    headings = {passage["id"]: heading(passage) for passage in passages}
    worth: Counter[str] = Counter()
    members: defaultdict[str, list[int]] = defaultdict(list)
    for number, statement in enumerate(statements):
        name = headings[statement["source"]]
        worth[name] += statement["score"]
        members[name].append(number)
        statement["theme"] = ""
    names = [name for name, own in members.items() if name and len(own) >= SHARED_BY]
    themes = sorted(names, key=lambda name: -worth[name])[:MAX_THEMES]
    for name in themes:
        for number in members[name]:
            statements[number]["theme"] = name
    settled = {name: members[name] for name in themes}
    graph = Graph([as_sentence(statement) for statement in statements])
    for number, statement in enumerate(statements):
        if not statement["theme"]:
            likeness = {
                name: sum(graph.similarity(number, other) for other in own) / len(own)
                for name, own in settled.items()
            }
            nearest = max(likeness, key=lambda name: likeness[name], default="")
            statement["theme"] = nearest if likeness.get(nearest, 0.0) >= ALIKE else ""
    return themes


def heading(passage: Mapping[str, str]) -> str:
    """Return the heading that the passage stands under, "" where its file has none.

    A heading such as "Overview" is put behind the one above it, which says of what.
    """
    if passage["title"] == default_title(passage["source"]):
        return ""
    path = [_NUMBER.sub("", part).strip(" .:#") for part in passage["title"].split(" > ")]
    names = [part.capitalize() if part.isupper() else part[:1].upper() + part[1:] for part in path]
    if len(names) > 1 and not set(stems(names[-1])) - _GENERIC:
        return f"{names[-2]}: {names[-1][:1].lower()}{names[-1][1:]}"
    return names[-1]


def as_sentence(statement: Json) -> Sentence:
    """Return a statement of an analysis in the form that `Graph` compares."""
    own = tuple(stems(statement["text"]))
    place = (statement["source"], statement["order"])
    return Sentence(statement["text"], *place, own, frozenset(), frozenset(), 1.0)


def key_terms(passages: Iterable[Json], wanted: Mapping[str, Term]) -> list[str]:
    """Return the words that most passages share, other than the task's own."""
    spread: Counter[str] = Counter()
    written: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for passage in passages:
        found = terms(passage["text"])
        spread.update({term.stem for term in found if term.surface.isalpha()})
        for term in found:
            written[term.stem][term.surface.lower()] += 1
    common = sorted(
        (stem for stem, count in spread.items() if count >= SHARED_BY and stem not in wanted),
        key=lambda stem: (-spread[stem], -written[stem].total(), stem),
    )
    return [written[stem].most_common(1)[0][0] for stem in common[:KEY_TERMS]]


def mentions(passages: Iterable[Json]) -> dict[str, set[str]]:
    """Return for each stem the files that mention it in a passage, its headings or their name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for passage in passages:
        about = f"{passage['title']} {passage['source'].replace('_', ' ')}"
        for stem in {*stems(about), *stems(passage["text"])}:
            found[stem].add(passage["source"])
    return found


def describe(analysis: Json) -> Iterable[str]:
    """Yield ``analysis`` as short paragraphs of Markdown."""
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
            lines = [f"- {statement['text']}" for statement in members[:SHOWN_STATEMENTS]]
            yield f"\n**{theme or 'Other'}**\n\n"
            yield "\n".join(lines) + "\n"
    if analysis["not_covered"]:
        yield f"\nNo passage mentions: {', '.join(analysis['not_covered'])}.\n"
