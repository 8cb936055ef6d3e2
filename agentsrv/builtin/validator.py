"""ValidatorAgent: checks the statements of a report against its sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from agentsrv import ModelError, Step, StepContext
from agentsrv.builtin import prompts
from agentsrv.builtin.analyzer import result_with
from agentsrv.builtin.evidence import MIN_SUPPORT, Evidence
from agentsrv.builtin.report import ReportBlock, Statement, escape, named, read, unescape
from agentsrv.builtin.threads import in_thread
from agentsrv.knowledge.text import shorten, stems, terms

if TYPE_CHECKING:
    from agentsrv import LanguageModel

MAX_SHOWN: Final = 160  # characters of a statement or error in messages

Json = dict[str, Any]
Verdict = Literal["quoted", "paraphrased", "miscited", "unsupported", "doubted"]
SUPPORTED: Final = frozenset({"quoted", "paraphrased"})


class ValidatorAgent:
    """Check each statement of a report against the passages that it cites."""

    async def run(self, step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Check each statement of a report against the passages that it cites.

        The steps of the report and of the retrieval must be among the dependencies. Streams the
        findings as Markdown; the result is that of `validate`. A language model judges as well: it
        may doubt a paraphrase but not a quote, and ``judgement`` in the result says whether the
        task is ``answered`` and what is ``missing``. A cancellation closes the model's HTTP
        exchange.

        Args:
            step: The step to run.
            ctx: The context of the attempt.

        Raises:
            ModelError: The model failed or its judgement is invalid; another attempt may succeed.
            PermanentError: The model rejected the request.
        """
        report = report_of(ctx)
        retrieval = result_with("passages", ctx.results)
        if report is None or retrieval is None:
            ctx.log.warning("step %s has no report and passages to check", step.step_id)
            yield "There is no report with passages to check.\n"
            return
        text, writer_result = report
        passages = retrieval["passages"]
        task = ctx.task_description
        findings = await in_thread(validate, task, text, writer_result, passages)
        if ctx.llm and findings["statements"]:
            await _judge(ctx.llm, task, passages, findings)
        ctx.set_result(findings)
        for paragraph in describe(findings):
            yield paragraph


def report_of(ctx: StepContext) -> tuple[str, Json] | None:
    """Return the text and the result of the last dependency that wrote a report.

    Its result has ``sources``, each with the ``number`` of its citations in the text.
    """
    for step_id, result in reversed(list(ctx.results.items())):
        sources = result.get("sources") if isinstance(result, dict) else None
        if isinstance(sources, list) and all(
            isinstance(source, dict) and isinstance(source.get("number"), int) for source in sources
        ):
            return ctx.outputs.get(step_id, ""), result
    return None


def claims(blocks: Iterable[ReportBlock]) -> Iterator[Statement]:
    """Yield the statements of a report that can be checked, in their order."""
    for block in blocks:
        yield from (statement for statement in block.statements if statement.is_claim)


def validate(task: str, report: str, writer_result: Json, passages: Sequence[Json]) -> Json:
    """Check ``report`` against ``passages``; return the findings as plain JSON.

    Args:
        task: The task that the report should answer.
        report: Its Markdown.
        writer_result: Result of the step that wrote it: its ``sources``, each with the ``id`` of a
            passage; whether every statement must be ``quoted``, so that a paraphrase is not enough;
            a report with 0 ``statements`` is not checked.
        passages: The retrieved passages.

    Returns:
        ``statements``, each with its ``text``, the numbers that it ``cites``, its ``verdict``, its
        ``support`` (0 to 1) and the ``id`` of the supporting passage (null without one);
        ``supported`` and ``unsupported``, their counts; ``broken_citations``, numbers without a
        source; ``uncovered_terms`` of the task that no supported statement mentions; and
        ``judgement``, null without a model.
    """
    evidence = {passage["id"]: Evidence(passage) for passage in passages}
    ids = {entry["number"]: entry.get("id") for entry in writer_result["sources"]}
    found = list(claims(read(report))) if writer_result.get("statements") != 0 else []
    quoted = bool(writer_result.get("quoted"))
    checked = [_checked(claim, ids, evidence, quoted=quoted) for claim in found]
    findings = {
        "statements": checked,
        "broken_citations": sorted({n for claim in found for n in claim.cites if n not in ids}),
        "uncovered_terms": _uncovered(task, checked, passages),
        "judgement": None,
    }
    return findings | _counted(checked)


def _checked(
    claim: Statement,
    ids: Mapping[int, int | None],
    evidence: Mapping[int, Evidence],
    *,
    quoted: bool,
) -> Json:
    text = unescape(claim.text)
    cited = [source for n in claim.cites if (source := ids.get(n)) in evidence]
    verdict, support, source = _support(text, cited, evidence, quoted=quoted)
    if verdict is None:
        others = [source for source in evidence if source not in cited]
        verdict, support_there, source = _support(text, others, evidence, quoted=quoted)
        support = max(support, support_there)
        verdict = "unsupported" if verdict is None else "miscited"
    return {
        "text": text,
        "cites": list(claim.cites),
        "verdict": verdict,
        "support": round(support, 2),
        "id": source,
    }


def _support(
    text: str, ids: Iterable[int | None], evidence: Mapping[int, Evidence], *, quoted: bool
) -> tuple[Verdict | None, float, int | None]:
    """Return the verdict on ``text`` by these passages (or ``None``), its support, and the id."""
    best, place = 0.0, None
    for source in ids:
        if source is None:
            continue
        if evidence[source].quotes(text):
            return "quoted", 1.0, source
        support = evidence[source].support(text)
        if support > best:
            best, place = support, source
    if best >= MIN_SUPPORT and not quoted:
        return "paraphrased", best, place
    return None, best, None


def _uncovered(task: str, checked: Iterable[Json], passages: Iterable[Json]) -> list[str]:
    """Return the task's words that occur in no supported statement nor in its source's heading."""
    titles = {passage["id"]: passage["title"] for passage in passages}
    present = {
        stem
        for claim in checked
        if claim["verdict"] in SUPPORTED
        for stem in stems(f"{claim['text']} {titles[claim['id']]}")
    }
    missing = {term.stem: term.surface for term in terms(task) if term.stem not in present}
    return list(missing.values())


def _counted(checked: Sequence[Json]) -> Json:
    supported = sum(claim["verdict"] in SUPPORTED for claim in checked)
    return {"supported": supported, "unsupported": len(checked) - supported}


class _Judgement(BaseModel):
    """A model's judgement on a report."""

    unsupported: list[int]
    answered: bool
    missing: Annotated[str, Field(max_length=1000)] = ""


def judgement_schema(statements: int) -> Json:
    """Return the JSON Schema of a model's judgement on this number of ``statements``."""
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
    """Add the model's judgement to ``findings``."""
    checked = findings["statements"]
    listed = [(number, claim["text"]) for number, claim in enumerate(checked, start=1)]
    messages = prompts.judgement(task, passages, listed)
    answer = await llm.complete(messages, judgement_schema(len(checked)))
    try:
        judgement = _Judgement.model_validate_json(answer)
    except ValidationError as error:
        reason = shorten(str(error.errors(include_url=False)[0]["msg"]), MAX_SHOWN)
        raise ModelError(f"the model's judgement does not match its schema: {reason}") from None
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
    for claim in checked:
        if claim["verdict"] not in SUPPORTED:
            yield f"- {claim['verdict']}: {escape(shorten(claim['text'], MAX_SHOWN))}\n"
    if findings["broken_citations"]:
        numbers = ", ".join(map(str, findings["broken_citations"]))
        yield f"\nNo source has the number {numbers}.\n"
    if findings["uncovered_terms"]:
        yield f"\nNo supported statement mentions: {named(findings['uncovered_terms'])}.\n"
    if findings["judgement"] is not None:
        answered = "answers" if findings["judgement"]["answered"] else "does not answer"
        missing = escape(findings["judgement"]["missing"])
        yield f"\nThe model finds that the report {answered} the task. {missing}".rstrip() + "\n"
