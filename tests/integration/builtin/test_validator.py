import json
import re
from collections import Counter

import pytest

from agentsrv.agents.llm import Endpoint, LanguageModel
from agentsrv.builtin.report import read
from agentsrv.builtin.validator import SUPPORTED, ValidatorAgent, claims, judgement_schema, validate
from agentsrv.errors import ModelError
from tests.support.agent_contexts import make_context, run
from tests.support.fake_model import fake_model
from tests.support.reports import QUESTIONS, report_on

TASK = "What are the costs of threads?"
PASSAGES = [
    {
        "id": 1,
        "source": "threads.md",
        "title": "Memory",
        "text": "Each thread costs memory for its stack. Idle threads cost tens of kilobytes each.",
        "line": 1,
    },
    {
        "id": 2,
        "source": "switches.md",
        "title": "Time",
        "text": "A switch between two threads costs microseconds. Caches make it worse.",
        "line": 4,
    },
]


def told(*, quoted=True, statements=1):
    """The result of a writer that cites the passages as 1 and 2, and 3, which is not there."""
    sources = [{"number": number, "id": number} for number in (1, 2)]
    return {
        "sources": [*sources, {"number": 3, "id": 77}],
        "statements": statements,
        "quoted": quoted,
    }


def verdicts(report, **more):
    """The verdicts on the statements of a report."""
    return [one["verdict"] for one in validate(TASK, report, told(**more), PASSAGES)["statements"]]


QUOTE = "Each thread costs memory for its stack."
PARAPHRASE = "Every thread's stack costs memory."


@pytest.mark.parametrize(
    ("report", "quoted", "verdict"),
    [
        (f"{QUOTE} [1]", True, "quoted"),
        (f"{QUOTE} [1]", False, "quoted"),
        (f"{QUOTE} [2][1]", True, "quoted"),
        (f"{PARAPHRASE} [1]", False, "paraphrased"),
        (f"{PARAPHRASE} [1]", True, "unsupported"),
        (f"{QUOTE} [2]", True, "miscited"),
        (f"{PARAPHRASE} [2]", False, "miscited"),
        (f"{QUOTE} [9]", True, "miscited"),
        (f"{QUOTE} [3]", True, "miscited"),
        (QUOTE, True, "miscited"),
        ("Threads are blue and smell of cheese. [1]", True, "unsupported"),
        ("Threads are blue and smell of cheese.", False, "unsupported"),
        (r"Each thread costs \*memory\* for its stack. [1]", True, "unsupported"),
    ],
)
def test_a_statement_has_a_verdict(report, quoted, verdict):
    """By the passages that it cites, then by the others."""
    assert verdicts(report, quoted=quoted) == [verdict]


def test_findings_are_counted():
    """Which statements, which citations, which words of the task."""
    report = f"{QUOTE} [1]\n\nCows fly over high mountains. [9]"
    findings = validate("costs of threads and unicorns", report, told(), PASSAGES)
    assert (findings["supported"], findings["unsupported"]) == (1, 1)
    assert findings["broken_citations"] == [9]
    assert findings["uncovered_terms"] == ["unicorns"]
    assert findings["statements"][0] == {
        "text": QUOTE,
        "cites": [1],
        "verdict": "quoted",
        "support": 1.0,
        "id": 1,
    }
    assert json.loads(json.dumps(findings)) == findings


def test_a_report_without_statements_is_not_checked():
    """Where the writer had nothing to say, its words about that are no claims."""
    text = "The knowledge base could not be searched, so there is nothing to report."
    assert verdicts(text, statements=0) == []
    assert verdicts(text) == ["unsupported"]


# ------------------------------------------------------------------------------ planted errors

INVENTED = [
    "The first event loop was sold by a bakery in Vienna during the winter of 1967.",
    "A committee of astronomers decides every spring which sockets may be closed.",
    "Green threads grow faster when somebody waters them twice a week.",
]
OPPOSITES = [
    ("more", "less"), ("faster", "slower"), ("raises", "lowers"), ("always", "never"),
    ("large", "small"), ("before", "after"), ("long", "short"), ("high", "low"),
    ("increase", "decrease"), ("safe", "unsafe"), ("first", "last"),
]  # fmt: skip


def with_other_numbers(text):
    """The statement with each number doubled; None where it has none."""
    changed = re.sub(r"\d+", lambda match: str(int(match[0]) * 2 + 1), text)
    return changed if changed != text else None


def denied(text):
    """The statement turned into its contrary."""
    for verb in ("is", "are", "can", "does", "has", "must", "may", "should", "will"):
        if f" {verb} " in text and f" {verb} not" not in text:
            return text.replace(f" {verb} ", f" {verb} not ", 1)
    return f"It is not the case that {text[0].lower()}{text[1:]}"


def opposed(text):
    """The statement with one word replaced by its opposite; None where it has none."""
    for pair in OPPOSITES:
        for one, other in (pair, pair[::-1]):
            changed = re.sub(rf"\b{one}\b", other, text)
            if changed != text:
                return changed
    return None


def with_another_subject(text):
    """The statement about something else."""
    return f"Bakeries {text.partition(' ')[2]}"


PARAPHRASES = [
    ("What are the costs of threads?", "To switch between two threads of one process costs microseconds, typically."),
    ("What are the costs of threads?", "Typically, switching between threads of a process has a cost of microseconds."),
    ("What is back-pressure?", "By back-pressure a slow consumer signals its producer to slow down."),
    ("What is back-pressure?", "Back-pressure: the signal of a slow consumer that tells the producer to wait."),
    ("When is a retry safe?", "Retrying is safe only if the operation may be repeated."),
    ("How does async I/O affect throughput?", "Throughput is raised by asynchronous I/O when requests spend their time waiting for a network or a disk."),
    ("Why does my asyncio server freeze for two seconds?", "A blocking call freezes all connections of a server."),
    ("How large should a connection pool be?", "The connections in use are requests per second times seconds."),
]  # fmt: skip


def verdicts_on(planted, task, text, results, *, quoted):
    """What the validator says of sentences, with what they cite, that are put into a report."""
    before, after = text.split("## Sources", 1)
    items = (f"- {sentence} {''.join(f'[{n}]' for n in cites)}\n" for sentence, cites in planted)
    text = f"{before}{''.join(items)}\n## Sources{after}"
    result = results["step_003"] | {"quoted": quoted}
    findings = validate(task, text, result, results["step_001"]["passages"])
    return [one["verdict"] for one in findings["statements"][-len(planted) :]]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Where the index of the examples is kept."""
    return tmp_path_factory.mktemp("index") / "knowledge.db"


def errors_for(text, results, foreign):
    """Wrong sentences for a report: of what kind, what they say and cite."""
    own = list(claims(read(text)))
    sources = results["step_003"]["sources"]
    flat = {
        passage["id"]: " ".join(passage["text"].split())
        for passage in results["step_001"]["passages"]
    }
    for number, one in enumerate(own):
        for kind, changed in (
            ("another number", with_other_numbers(one.text)),
            ("denied", denied(one.text)),
            ("opposite", opposed(one.text)),
            ("another subject", with_another_subject(one.text)),
            ("invented", INVENTED[number % len(INVENTED)]),
            ("of another topic", foreign[number * 7 % len(foreign)]),
        ):
            if changed is not None and changed not in text:
                yield kind, changed, one.cites
        for other in sources:  # unless the passages overlap: then it is no error
            if other["number"] not in one.cites and one.text not in flat[other["id"]]:
                yield "another source", one.text, (other["number"],)
    yield from (("without a source", sentence, ()) for sentence in INVENTED)


@pytest.mark.slow
async def test_planted_errors_are_found(database, capsys):
    """In reports that must quote all of them; where a paraphrase will do, most of them. What a
    report says of itself is never doubted.
    """
    reports = {task: await report_on(task, database) for task in QUESTIONS}
    foreign = [one.text for text, _ in reports.values() for one in claims(read(text))]
    planted: Counter[str] = Counter()
    found: Counter[tuple[str, bool]] = Counter()
    alarms: Counter[bool] = Counter()
    for task, (text, results) in reports.items():
        errors = list(errors_for(text, results, foreign))
        planted.update(kind for kind, _, _ in errors)
        for quoted in (True, False):
            told = results["step_003"] | {"quoted": quoted}
            alarms[quoted] += validate(task, text, told, results["step_001"]["passages"])[
                "unsupported"
            ]
            sentences = [(sentence, cites) for _, sentence, cites in errors]
            said = verdicts_on(sentences, task, text, results, quoted=quoted)
            for (kind, _, _), verdict in zip(errors, said, strict=True):
                found[kind, quoted] += verdict not in SUPPORTED
    with capsys.disabled():
        print("\n\nplanted errors found     as quotes  as paraphrases")
        for kind, count in planted.items():
            print(
                f"  {kind:20} {found[kind, True]:4} of {count:<4} {found[kind, False]:4} of {count}"
            )
        count = len(foreign)
        print(f"  false alarms         {alarms[True]:4} of {count:<4} {alarms[False]:4} of {count}")
    assert alarms == {True: 0, False: 0}
    floors = {"opposite": 0.7, "denied": 0.85, "another subject": 0.0}  # the last is beyond it
    for kind, count in planted.items():
        assert found[kind, True] == count > 0
        assert found[kind, False] >= floors.get(kind, 0.95) * count, kind


async def test_paraphrases_are_seldom_doubted(database, capsys):
    """Sentences that say the same in other words."""
    refused = []
    for task, sentence in PARAPHRASES:
        text, results = await report_on(task, database)
        cites = [source["number"] for source in results["step_003"]["sources"]]
        (verdict,) = verdicts_on([(sentence, cites)], task, text, results, quoted=False)
        if verdict not in SUPPORTED:
            refused.append(sentence)
    with capsys.disabled():
        print(
            f"\n\nparaphrases doubted: {len(refused)} of {len(PARAPHRASES)}", *refused, sep="\n  "
        )
    assert len(refused) <= 0.3 * len(PARAPHRASES)


# ----------------------------------------------------------------------------------- the agent


def context(report, model=None, **more):
    """The context of a step behind a retrieval and a report."""
    return make_context(
        TASK,
        results={"step_001": {"passages": PASSAGES}, "step_003": told(**more)},
        outputs={"step_001": "2 passages", "step_003": report},
        model=model,
    )


async def test_the_agent_tells_what_it_found():
    """As Markdown for people, as JSON for the steps behind it."""
    report = f"{QUOTE} [1]\n\nCows fly over high mountains. [9]"
    output, result = await run(ValidatorAgent(), context(report))
    assert output.startswith("1 of 2 statements are supported by their sources.\n")
    assert "- unsupported: Cows fly over high mountains.\n" in output
    assert "No source has the number 9" in output
    assert result == validate(TASK, report, told(), PASSAGES)
    assert result["judgement"] is None


@pytest.mark.parametrize("sources", [["a.md"], [{"number": "1"}], "a.md", None])
async def test_what_only_looks_like_a_report_is_none(sources):
    """An author's own result may have sources of another kind."""
    ctx = context(QUOTE)
    ctx.results = {**ctx.results, "step_003": {"sources": sources}}
    output, _ = await run(ValidatorAgent(), ctx)
    assert output == "There is no report with passages to check.\n"


async def test_a_report_of_an_authors_own_is_checked():
    """Its result needs no more than the sources."""
    ctx = context(f"{QUOTE} [1]\n\n{PARAPHRASE} [2]")
    sources = [{"number": 1, "id": 1}, {"number": 2}]
    ctx.results = {**ctx.results, "step_003": {"sources": sources}}
    _, result = await run(ValidatorAgent(), ctx)
    assert [one["verdict"] for one in result["statements"]] == ["quoted", "miscited"]


@pytest.mark.parametrize("missing", ["step_001", "step_003"])
async def test_without_a_report_or_passages_it_says_so(missing):
    """A degraded plan goes on."""
    ctx = context(QUOTE)
    ctx.results = {name: value for name, value in ctx.results.items() if name != missing}
    output, result = await run(ValidatorAgent(), ctx)
    assert output == "There is no report with passages to check.\n"
    assert result is None


async def judged(report, *answers, **more):
    """What the agent finds with a model that answers so."""
    async with fake_model() as fake, Endpoint(fake.url, None, 5.0) as client:
        fake.script(*answers)
        ctx = context(report, LanguageModel(client, "fake", 100), **more)
        return *await run(ValidatorAgent(), ctx), fake.requests


async def test_a_model_may_doubt_a_paraphrase_but_no_quote():
    """And says whether the task is answered."""
    report = f"{QUOTE} [1]\n\n{PARAPHRASE} [1]"
    answer = {"unsupported": [1, 2, 9], "answered": False, "missing": "What they cost in time."}
    output, result, requests = await judged(report, json.dumps(answer), quoted=False)
    assert [one["verdict"] for one in result["statements"]] == ["quoted", "doubted"]
    assert (result["supported"], result["unsupported"]) == (1, 1)
    assert result["judgement"] == {"answered": False, "missing": "What they cost in time."}
    assert result["usage"]["requests"] == 1
    assert "does not answer the task. What they cost in time.\n" in output
    assert f'<statement id="2">\n{PARAPHRASE}\n</statement>' in requests[0].prompt
    schema = requests[0].body["response_format"]["json_schema"]["schema"]
    assert schema == judgement_schema(2)


@pytest.mark.parametrize("answer", ["I like it.", "{}", '{"unsupported": "1", "answered": true}'])
async def test_a_judgement_that_is_none_is_a_model_error(answer):
    """Which the server's retries mend, or the step degrades."""
    with pytest.raises(ModelError, match="judgement"):
        await judged(f"{QUOTE} [1]", answer)


async def test_what_states_nothing_is_not_judged():
    """The model is not asked."""
    _, result, requests = await judged("Nothing.", "unused", statements=0)
    assert result["statements"] == requests == []
