import json

import pytest

from agentsrv.agents.agent import Agent
from agentsrv.builtin.retriever import RESULT_BYTES, RetrieverAgent
from agentsrv.errors import KnowledgeError
from agentsrv.knowledge.ranking import Passage
from agentsrv.models.plan import Step
from tests.support.agent_contexts import make_context, run


def passage(number, text="Threads have costs.", source="threads.md"):
    """Return a passage as the knowledge base finds it."""
    return Passage(number * 7, source, "Threads", text, 1.0 / number, 3)


def searcher(found):
    """Return a search that finds ``found`` for every query that mentions threads."""
    queries = []

    async def search(query, limit):
        queries.append((query, limit))
        return found[:limit] if "hread" in query else []

    return search, queries


async def test_the_result_lists_the_passages():
    """They are numbered from 1 in the order of the search, as plain JSON."""
    search, queries = searcher([passage(1), passage(2, source="costs.md")])
    output, result = await run(
        RetrieverAgent(), make_context("What do threads cost?", search), passages=5
    )
    assert queries == [("What do threads cost?", 5)]
    assert output == "2 passages from 2 sources: threads.md, costs.md.\n"
    assert json.loads(json.dumps(result)) == result
    assert [entry["id"] for entry in result["passages"]] == [1, 2]
    assert result["searched_terms"] == ["threads", "cost"]


async def test_terms_that_occur_nowhere_are_told_from_those_that_occur_elsewhere():
    """A term that the passages lack is searched for on its own."""
    search, queries = searcher([passage(1, text="Locks are held."), passage(2, text="More locks.")])
    _, result = await run(RetrieverAgent(), make_context("threading of unicorns", search))
    assert queries[1:] == [("unicorns", 3)]
    assert result["unknown_terms"] == ["unicorns"]


@pytest.mark.parametrize("given", ["threads", {"query": "threads"}])
async def test_the_input_of_the_step_may_be_another_query(given):
    """A planner can ask for something else than the task's text."""
    search, queries = searcher([passage(1)])
    step = Step(step_id="s", agent="retriever", input=given)
    await run(RetrieverAgent(), make_context("the task", search), step)
    assert queries[0][0] == "threads"


async def test_the_result_has_a_bounded_size():
    """Long passages are left out from the end, the first one never."""
    search, _ = searcher([passage(number, text="thread " * 1000) for number in range(1, 40)])
    _, result = await run(RetrieverAgent(), make_context("threads", search), passages=50)
    assert 1 <= len(result["passages"]) < 10
    assert len(json.dumps(result)) < 1.1 * RESULT_BYTES


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("What about unicorns?", "No passage mentions unicorns.\n"),
        ("What is it?", "The task contains no words to search for.\n"),
    ],
)
async def test_finding_nothing_is_said(task, output):
    """An empty retrieval is a result like any other."""
    search, _ = searcher([])
    assert (await run(RetrieverAgent(), make_context(task, search)))[0] == output


async def test_a_broken_knowledge_base_fails_the_step():
    """The error reaches whoever decides about retries."""

    async def search(query, limit):
        raise KnowledgeError("the index is gone")

    with pytest.raises(KnowledgeError):
        await run(RetrieverAgent(), make_context("threads", search))


def test_its_parameter_has_limits():
    """The registered agent publishes them."""
    agent = Agent.of(RetrieverAgent().run, name="retriever")
    schema = agent.params.model.model_json_schema()["properties"]["passages"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (1, 50, 12)
    assert agent.description.startswith("Find the passages")
