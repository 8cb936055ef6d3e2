import json
import re

import pytest

from agentsrv.builtin.analyzer import analyze
from agentsrv.builtin.report import escape
from agentsrv.builtin.writer import ReportSize, WriterAgent, compose
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.knowledge.markup import plain
from agentsrv.knowledge.text import sentences
from tests.support.agent_contexts import make_context, run
from tests.support.reports import QUESTIONS, report_on

CITED = re.compile(r" \[(\d+)\]")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Where the index of the examples is kept for all tests."""
    return tmp_path_factory.mktemp("index") / "knowledge.db"


def body_of(report):
    """Return the part of a report that quotes, without its headings."""
    quoted = report.split("## Sources")[0]
    return [line for line in quoted.splitlines() if line and not line.startswith("#")]


@pytest.mark.process
@pytest.mark.parametrize(("task", "expected"), QUESTIONS.items(), ids=QUESTIONS)
async def test_the_first_paragraph_answers_the_question(task, expected, database):
    """The statement that a reader would choose stands in the direct answer."""
    report, _ = await report_on(task, database)
    assert expected in body_of(report)[0]


@pytest.mark.parametrize("task", QUESTIONS)
async def test_every_statement_stands_in_the_file_that_it_cites(task, database):
    """Quotes are unchanged but for white space and markup, and all sources exist."""
    report, results = await report_on(task, database)
    files = {entry["number"]: entry["source"] for entry in results["step_003"]["sources"]}
    contents = {
        source: plain((KNOWLEDGE / source).read_text(encoding="utf-8")) for source in files.values()
    }
    count = 0
    for line in body_of(report):
        parts = CITED.split(line.removeprefix("- "))
        assert parts[-1] == ""
        for text, number in zip(parts[::2], parts[1::2], strict=False):
            for sentence in sentences(text):
                count += 1
                unescaped = re.sub(r"\\(.)", r"\1", sentence)
                assert unescaped in contents[files[int(number)]]
    assert count == results["step_003"]["statements"] > 0


@pytest.mark.process
async def test_the_same_folder_and_task_give_the_same_report(database, tmp_path):
    """A second index of the folder changes nothing, to the byte."""
    task = "How does async I/O affect throughput?"
    one, other = await report_on(task, database), await report_on(task, tmp_path / "again.db")
    assert one == other
    assert all(len(json.dumps(result)) < 40_000 for result in one[1].values())


async def test_sources_are_numbered_as_they_are_cited(database):
    """Each number that is cited is listed, in order, and none besides."""
    report, results = await report_on("What are the costs of threads?", database)
    cited = [int(number) for line in body_of(report) for number in CITED.findall(line)]
    listed = [int(number) for number in re.findall(r"^(\d+)\. `", report, re.MULTILINE)]
    assert list(dict.fromkeys(cited)) == listed == list(range(1, len(listed) + 1))
    assert len(results["step_003"]["sources"]) == len(listed)


async def test_nothing_is_said_twice(database):
    """A statement of the answer is in no section."""
    report, _ = await report_on("What are the costs of threads?", database)
    said = [
        sentence
        for line in body_of(report)
        for sentence in sentences(CITED.sub("", line.removeprefix("- ")))
    ]
    assert len(said) == len(set(said))


async def test_gaps_are_named(database):
    """A term that the folder has nothing on is in the report and in the result."""
    report, results = await report_on("connection pools for unicorns", database)
    assert "- The knowledge base has nothing on: unicorns.\n" in report
    assert results["step_003"]["not_covered"] == ["unicorns"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("How do I bake sourdough bread?", "The knowledge base has nothing on this."),
        ("What is it?", "The task names nothing that could be searched for."),
    ],
)
async def test_without_a_finding_the_report_says_what_to_do(task, said, database):
    """An honest nothing, with the next step for the reader."""
    report, results = await report_on(task, database)
    assert said in report
    assert results["step_003"]["statements"] == 0


async def test_without_an_analysis_the_report_says_so():
    """A degraded plan ends with a report, not with an error."""
    report, result = await run(WriterAgent(), make_context("Costs of threads"))
    assert report.startswith("# Costs of threads\n")
    assert "could not be searched" in report
    assert result == {"sources": [], "statements": 0, "quoted": True, "not_covered": []}


def test_the_shape_limits_the_report():
    """The sections and their sentences are no more than asked for."""
    text = " ".join(f"Threads cost number {n} of thing{n} in case{n}." for n in range(30))
    passage = {"id": 1, "source": "a.md", "title": "A > B", "text": text, "score": 1.0, "line": 1}
    analysis = analyze("cost of threads", {"passages": [passage]}, 40)
    assert compose(analysis, ReportSize(1, 0, 1)).result["statements"] == 1
    report = compose(analysis, ReportSize(2, 1, 3))
    assert report.result["statements"] == 5
    assert sum(line.startswith("## ") for line in report.paragraphs) == 3


def test_sentences_that_lean_on_others_follow_them_or_are_left_out():
    """A pronoun without its noun is not quoted, one with it may be."""
    text = (
        "Threads have a cost in memory. This cost of threads is often forgotten by authors. People"
        " sleep at night in beds. It is the cost of threads that counts in the end."
    )
    passage = {"id": 1, "source": "a.md", "title": "A > B", "text": text, "score": 1.0, "line": 1}
    report = "".join(
        compose(analyze("cost of threads", {"passages": [passage]}, 9), ReportSize(1)).paragraphs
    )
    assert "Threads have a cost in memory. [1]" in report
    assert "It is the cost" not in report


def test_markup_in_statements_is_shown_not_obeyed():
    """A quoted star or bracket stays one, an underscore inside a word needs no care."""
    text = "Threads cost *much* more than x[0] in snake_case."
    assert escape(text) == r"Threads cost \*much\* more than x\[0\] in snake_case."
    assert plain(escape(text)) == text
