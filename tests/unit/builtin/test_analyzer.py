import json

import pytest

from agentsrv.builtin.analyzer import AnalyzerAgent, analyze, heading
from tests.support.agent_contexts import make_context, run

TASK = "What are the costs of threads?"


def passage(number, text, title="What threads cost > Memory", source="threads.md"):
    """Return a passage as the retriever hands it over."""
    return {"id": number, "source": source, "title": title, "text": text, "score": 1.0, "line": 5}


MEMORY = passage(
    1,
    "Each thread costs memory for its stack. This is often forgotten by people. Idle threads cost"
    " tens of kilobytes each.",
)
SWITCHES = passage(
    2,
    "A switch between two threads costs microseconds. Caches make the cost of threads worse.",
    title="What threads cost > Context switches",
)
OTHER = passage(3, "Bread needs flour and water.", title="Baking", source="bread.md")


def retrieval(*passages, unknown=()):
    """Return a retriever's result."""
    return {"passages": list(passages), "unknown_terms": list(unknown)}


def test_statements_are_sentences_of_the_passages():
    """Each stands in its passage as quoted, and names it."""
    analysis = analyze(TASK, retrieval(MEMORY, SWITCHES), 40)
    texts = {1: MEMORY["text"], 2: SWITCHES["text"]}
    assert len(analysis["statements"]) >= 4
    for statement in analysis["statements"]:
        assert statement["text"] in texts[statement["source"]]
    scores = [statement["score"] for statement in analysis["statements"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0


def test_what_is_about_something_else_is_left_out():
    """A passage without the words of the task states nothing about it."""
    analysis = analyze(TASK, retrieval(MEMORY, OTHER), 40)
    assert {source["source"] for source in analysis["sources"]} == {"threads.md"}


def test_themes_are_the_headings_of_the_sources():
    """Statements are grouped by the heading that they stand under."""
    analysis = analyze(TASK, retrieval(MEMORY, SWITCHES), 40)
    assert set(analysis["themes"]) == {"Memory", "Context switches"}
    assert {statement["theme"] for statement in analysis["statements"]} <= {*analysis["themes"], ""}


@pytest.mark.parametrize(
    ("title", "source", "expected"),
    [
        ("Threads > Memory", "a.md", "Memory"),
        ("Threads > Overview", "a.md", "Threads: overview"),
        ("NETWORK SETUP", "a.txt", "Network setup"),
        ("bash/README.Debian", "bash/README.Debian.gz", ""),
    ],
)
def test_headings_are_made_for_reading(title, source, expected):
    """General headings say of what, capitals are lowered, a path is none."""
    assert heading({"title": title, "source": source}) == expected


def test_what_is_not_covered_has_three_degrees():
    """Unknown everywhere, known apart from the rest, and known to one file only."""
    task = "costs of threads, unicorns and dragons"
    analysis = analyze(task, retrieval(MEMORY, OTHER, unknown=["unicorns"]), 40)
    assert analysis["not_covered"] == ["unicorns"]
    assert analysis["apart"] == ["dragons"]
    assert analysis["single_source"] == ["costs", "threads"]


def test_the_analysis_is_the_same_each_time_and_small():
    """The same passages give the same bytes, and the limit bounds them."""
    long = [passage(n, MEMORY["text"].replace("tens", f"{n} tens")) for n in range(1, 50)]
    first, second = (json.dumps(analyze(TASK, retrieval(*long), 40)) for _ in range(2))
    assert first == second
    assert len(first) < 40_000
    assert len(json.loads(first)["statements"]) <= 40


async def test_the_agent_streams_what_it_found():
    """The output is Markdown, the result what `analyze` returns."""
    ctx = make_context(TASK, results={"step_001": retrieval(MEMORY, SWITCHES)})
    output, result = await run(AnalyzerAgent(), ctx, statements=3)
    assert output.startswith("3 statements from 1 files.\n")
    assert f"- {result['statements'][0]['text']}" in output
    assert result == analyze(TASK, retrieval(MEMORY, SWITCHES), 3)


@pytest.mark.parametrize(
    ("results", "searched", "said"),
    [
        ({}, False, "No passages arrived"),
        ({"step_001": retrieval()}, True, "state nothing"),
    ],
)
async def test_without_passages_it_says_so(results, searched, said):
    """A degraded or empty retrieval is no failure."""
    output, result = await run(AnalyzerAgent(), make_context(TASK, results=results))
    assert said in output
    assert (result["searched"], result["statements"]) == (searched, [])
    assert result["not_covered"] + result["apart"] == ["costs", "threads"]
