import json

import pytest

from agentsrv.builtin.optimizer import ADDED_HEADING, NO_STATEMENTS, OptimizerAgent
from agentsrv.builtin.planner import research
from agentsrv.builtin.validator import validate
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.knowledge.markup import plain
from agentsrv.knowledge.ranking import Passage
from tests.support.agent_contexts import make_context, run
from tests.support.reports import QUESTIONS, run_steps

TASK = "What are the costs of threads and of unicorns?"
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
        "text": "A switch between two threads costs some microseconds. Caches make it much worse.",
        "line": 4,
    },
]
TOLD = {
    "sources": [
        {"number": 1, "id": 2, "source": "switches.md", "title": "Time", "line": 4},
        {"number": 2, "id": 1, "source": "threads.md", "title": "Memory", "line": 1},
    ],
    "statements": 1,
    "quoted": True,
}
STACK = "Each thread costs memory for its stack."
SWITCH = "A switch between two threads costs some microseconds."
WRONG = "Cows fly over the highest mountains."
UNICORNS = "A unicorn costs a kingdom and two castles each year."


async def mended(report, search=None, findings=True):
    """The report after the optimizer, its result, and what was searched for."""
    queries = []

    async def find(query, limit):
        queries.append(query)
        return search or []

    results = {"step_001": {"passages": PASSAGES, "unknown_terms": []}, "step_003": TOLD}
    if findings:
        results["step_004"] = validate(TASK, report, TOLD, PASSAGES)
    ctx = make_context(TASK, find, results, {"step_003": report})
    output, result = await run(OptimizerAgent(), ctx)
    return output, result, queries


async def test_what_nothing_supports_is_dropped():
    """With its heading, if nothing else stands below it."""
    report = f"# Costs\n\n{STACK} [2] {WRONG} [1]\n\n## Cows\n\n- {WRONG} [1]\n"
    output, result, _ = await mended(report)
    assert output.startswith(f"# Costs\n\n{STACK} [1]\n\n## Sources\n\n1. `threads.md`, line 1: ")
    assert WRONG not in output
    assert "switches.md" not in output
    assert result["changes"] == {"removed": 2, "cited_anew": 0, "repeated": 0, "added": 0}
    assert result["statements"] == 1
    assert [source["id"] for source in result["sources"]] == [1]


async def test_what_another_source_supports_is_cited_anew():
    """Also what cited nothing, or a source that there is not."""
    output, result, _ = await mended(f"{SWITCH} [2]\n\n{STACK}\n\nCaches make it much worse. [7]")
    assert f"{SWITCH} [1]\n\n{STACK} [2]\n\nCaches make it much worse. [1]\n" in output
    assert result["changes"]["cited_anew"] == 3


async def test_repetition_is_dropped():
    """The first of two sentences that say the same stays."""
    output, result, _ = await mended(f"{STACK} [2]\n\n## Memory\n\n- {STACK} [2]\n- {SWITCH} [1]")
    assert output.count(STACK) == 1
    assert output.startswith(f"{STACK} [1]\n\n## Memory\n\n- {SWITCH} [2]\n")
    assert result["changes"]["repeated"] == 1


async def test_gaps_are_filled_by_a_second_search():
    """With quotes about the missing term, each with its source."""
    found = [
        Passage(70, "unicorns.md", "Upkeep", f"{UNICORNS} Horses are cheaper.", 1.0, 3),
        Passage(71, "bread.md", "Baking", "Bread needs flour and water and some salt.", 0.5, 1),
    ]
    output, result, queries = await mended(f"{STACK} [2]", found)
    assert queries == [f"unicorns {TASK}"]
    assert f"{ADDED_HEADING}\n\n- {UNICORNS} [2]\n\n## Sources\n" in output
    assert "2. `unicorns.md`, line 3: Upkeep\n" in output
    assert result["changes"]["added"] == 1
    assert result["not_covered"] == []


async def test_a_gap_that_stays_is_named():
    """The knowledge base has nothing on it."""
    output, result, _ = await mended(f"{STACK} [2]")
    assert ADDED_HEADING not in output
    assert "unicorns" in output.partition("## Not covered")[2]
    assert result["changes"]["added"] == 0


async def test_a_report_of_which_nothing_is_left_says_so():
    """It is not an empty text."""
    output, result, _ = await mended(f"# Cows\n\n{WRONG} [1]")
    assert output.startswith(f"# Cows\n\n{NO_STATEMENTS}\n\n")
    assert result["statements"] == 0


async def test_without_findings_the_report_is_passed_on():
    """Where the validator has degraded."""
    output, result, queries = await mended(f"{WRONG} [1]", findings=False)
    assert (output, result, queries) == (f"{WRONG} [1]", TOLD, [])


async def test_without_a_report_it_says_so():
    """There is nothing to pass on."""
    assert (await run(OptimizerAgent(), make_context(TASK)))[
        0
    ] == "There is no report to correct.\n"


@pytest.mark.parametrize("task", [*QUESTIONS, "What do threads cost unicorns?"])
async def test_the_research_ends_with_a_report_that_stands_the_test(task, tmp_path):
    """The whole plan on the examples: what the optimizer leaves, the validator accepts."""
    outputs, results = await run_steps(research(task), task, tmp_path / "index.db")
    told, passages = results["step_005"], results["step_001"]["passages"]
    known = {entry["id"] for entry in passages}
    added = [
        source | {"text": plain((KNOWLEDGE / source["source"]).read_text(encoding="utf-8"))}
        for source in told["sources"]
        if source["id"] not in known
    ]
    findings = validate(task, outputs["step_005"], told, [*passages, *added])
    assert findings["unsupported"] == 0
    assert findings["supported"] == told["statements"] > 0
    assert findings["broken_citations"] == []
    assert len(json.dumps(told)) < 40_000
    assert outputs["step_005"].startswith("# ")
