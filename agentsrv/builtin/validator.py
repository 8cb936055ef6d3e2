"""ValidatorAgent: whether the sources of a report state what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from agentsrv import ModelError, Step, StepContext
from agentsrv.builtin import prompts
from agentsrv.builtin.analyzer import retrieval_of
from agentsrv.builtin.evidence import ENOUGH, Evidence
from agentsrv.builtin.report import Block, Statement, escape, named, read, unescape
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.text import shorten, stems, terms

if TYPE_CHECKING:
    from agentsrv import LanguageModel

SHOWN: Final = 160  # characters of a statement, where a person reads of it

Json = dict[str, Any]
Verdict = Literal["quoted", "paraphrased", "miscited", "unsupported", "doubted"]
GOOD: Final = frozenset({"quoted", "paraphrased"})


class ValidatorAgent:
    """Check each statement of a report against the passages that it cites."""

    async def run(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Check each statement of a report against the passages that it cites.

        Needs the steps of the report and of the retrieval among its dependencies. Streams what
        it found as Markdown; the result is that of `validate`. With a language model the model
        judges too: it may doubt a paraphrase, but no quote, and ``judgement`` in the result says
        whether the task is ``answered`` and what is ``missing``. A cancellation leaves nothing
        behind, and closes the model's HTTP exchange.

        Args:
            step: The step to run.
            ctx: What the step may use.

        Raises:
            ModelError: The model failed, or its judgement was none; another attempt may succeed.
            PermanentError: The model cannot be asked like this.
        """
        report = report_of(ctx)
        retrieval = retrieval_of(ctx.results)
        if report is None or retrieval is None:
            ctx.log.warning("step %s has no report and passages to check", step.step_id)
            yield "There is no report with passages to check.\n"
            return
        text, told = report
        passages = retrieval["passages"]
        findings = await in_thread(validate, ctx.task_description, text, told, passages)
        if ctx.llm and findings["statements"]:
            await _judge(ctx.llm, ctx.task_description, passages, findings)
        ctx.set_result(findings)
        for paragraph in describe(findings):
            yield paragraph


def report_of(ctx: StepContext) -> tuple[str, Json] | None:
    """Return the text and the result of the last step before this one that wrote a report.

    Its result has ``sources``, each with the ``number`` that the text cites it by.
    """
    for step_id, result in reversed(list(ctx.results.items())):
        sources = result.get("sources") if isinstance(result, dict) else None
        if isinstance(sources, list) and all(
            isinstance(source, dict) and isinstance(source.get("number"), int) for source in sources
        ):
            return ctx.outputs.get(step_id, ""), result
    return None


def claims(blocks: Iterable[Block]) -> Iterator[Statement]:
    """Yield the statements of a report that can be right or wrong, in their order."""
    for block in blocks:
        yield from (statement for statement in block.statements if statement.is_claim)


def validate(task: str, report: str, told: Json, passages: Sequence[Json]) -> Json:
    """Check ``report`` against ``passages``, as plain JSON.

    Args:
        task: What the report is to answer.
        report: Its Markdown.
        told: The result of the step that wrote it: its ``sources``, each with the ``id`` of a
            passage, and whether all in it is to be ``quoted``: then a paraphrase is not enough.
            One with 0 ``statements`` is not checked.
        passages: What was retrieved.

    Returns:
        ``statements``, each with its ``text``, the numbers that it ``cites``, its ``verdict``,
        the ``support`` it has (0 to 1) and by which passage (``id``, null without any);
        ``supported`` and ``unsupported``, which count them; ``broken_citations``, numbers that
        no source has; ``uncovered_terms`` of the task that no supported statement mentions; and
        ``judgement``, null without a model.
    """
    evidence = {passage["id"]: Evidence(passage) for passage in passages}
    ids = {entry["number"]: entry.get("id") for entry in told["sources"]}
    found = list(claims(read(report))) if told.get("statements") != 0 else []
    quoted = bool(told.get("quoted"))
    checked = [_checked(one, ids, evidence, quoted=quoted) for one in found]
    findings = {
        "statements": checked,
        "broken_citations": sorted({n for one in found for n in one.cites if n not in ids}),
        "uncovered_terms": _uncovered(task, checked, passages),
        "judgement": None,
    }
    return findings | _counted(checked)


def _checked(
    one: Statement, ids: Mapping[int, int | None], evidence: Mapping[int, Evidence], *, quoted: bool
) -> Json:
    text = unescape(one.text)
    cited = [source for n in one.cites if (source := ids.get(n)) in evidence]
    verdict, support, source = _support(text, cited, evidence, quoted=quoted)
    if verdict is None:
        others = [source for source in evidence if source not in cited]
        verdict, support_there, source = _support(text, others, evidence, quoted=quoted)
        support = max(support, support_there)
        verdict = "unsupported" if verdict is None else "miscited"
    return {
        "text": text,
        "cites": list(one.cites),
        "verdict": verdict,
        "support": round(support, 2),
        "id": source,
    }


def _support(
    text: str, ids: Iterable[int | None], evidence: Mapping[int, Evidence], *, quoted: bool
) -> tuple[Verdict | None, float, int | None]:
    """The verdict on ``text`` if the passages of these ``ids`` support it, how much, and which."""
    best, place = 0.0, None
    for source in ids:
        if source is None:
            continue
        if evidence[source].quotes(text):
            return "quoted", 1.0, source
        support = evidence[source].support(text)
        if support > best:
            best, place = support, source
    if best >= ENOUGH and not quoted:
        return "paraphrased", best, place
    return None, best, None


def _uncovered(task: str, checked: Iterable[Json], passages: Iterable[Json]) -> list[str]:
    """The words of the task that no supported statement has, nor its heading in the source."""
    titles = {passage["id"]: passage["title"] for passage in passages}
    present = {
        stem
        for one in checked
        if one["verdict"] in GOOD
        for stem in stems(f"{one['text']} {titles[one['id']]}")
    }
    missing = {term.stem: term.surface for term in terms(task) if term.stem not in present}
    return list(missing.values())


def _counted(checked: Sequence[Json]) -> Json:
    supported = sum(one["verdict"] in GOOD for one in checked)
    return {"supported": supported, "unsupported": len(checked) - supported}


class _Judgement(BaseModel):
    """What a model answers that judges a report."""

    unsupported: list[int]
    answered: bool
    missing: Annotated[str, Field(max_length=1000)] = ""


def judgement_schema(statements: int) -> Json:
    """The JSON Schema of a model's judgement on so many ``statements``."""
    number = {"type": "integer", "minimum": 1, "maximum": statements}
    properties = {
        "unsupported": {"type": "array", "items": number, "maxItems": statements},
        "answered": {"type": "boolean"},
        "missing": {"type": "string", "pattern": "^[A-Za-z0-9 ,.:;()'?!/-]{0,300}$"},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


async def _judge(llm: LanguageModel, task: str, passages: Sequence[Json], findings: Json) -> None:
    """Let the model judge, and put what it says into ``findings``."""
    checked = findings["statements"]
    listed = [(number, one["text"]) for number, one in enumerate(checked, start=1)]
    messages = prompts.judgement(task, passages, listed)
    answer = await llm.complete(messages, judgement_schema(len(checked)))
    try:
        judgement = _Judgement.model_validate_json(answer)
    except ValidationError as error:
        told = shorten(str(error.errors(include_url=False)[0]["msg"]), SHOWN)
        raise ModelError(f"the model's judgement is not what was asked for: {told}") from None
    for number in judgement.unsupported:
        if 1 <= number <= len(checked) and checked[number - 1]["verdict"] == "paraphrased":
            checked[number - 1]["verdict"] = "doubted"
    findings["judgement"] = {"answered": judgement.answered, "missing": judgement.missing}
    findings["usage"] = llm.usage.counts()
    findings.update(_counted(checked))


def describe(findings: Json) -> Iterator[str]:
    """Yield ``findings`` as short paragraphs of Markdown."""
    checked = findings["statements"]
    if not checked:
        yield "The report states nothing that could be checked.\n"
        return
    yield f"{findings['supported']} of {len(checked)} statements are supported by their sources.\n"
    for one in checked:
        if one["verdict"] not in GOOD:
            yield f"- {one['verdict']}: {escape(shorten(one['text'], SHOWN))}\n"
    if findings["broken_citations"]:
        numbers = ", ".join(map(str, findings["broken_citations"]))
        yield f"\nThere is no source of the number {numbers}.\n"
    if findings["uncovered_terms"]:
        yield f"\nNo supported statement mentions: {named(findings['uncovered_terms'])}.\n"
    if findings["judgement"] is not None:
        answered = "answers" if findings["judgement"]["answered"] else "does not answer"
        missing = escape(findings["judgement"]["missing"])
        yield f"\nThe model finds that the report {answered} the task. {missing}".rstrip() + "\n"
